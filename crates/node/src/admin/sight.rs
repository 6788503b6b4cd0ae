//! What this node knows of itself, and asks the others: state for whoever watches, and what invariants are judged by.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use cluster::{Cluster, DIGEST_FORMAT, NodeId, NodeRow, NodeState, Sid, identity};
use futures::future::join_all;
use jid::FullJid;
use proto::sight::{
    CheckReply, CheckRequest, Group, LookReply, LookRequest, Mark, Peer, sight_client::SightClient,
    sight_server,
};
use router::Router;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Response, Status, transport::Channel};

use super::peers;
use crate::parts::SharedListeners;

/// How long the others have for an answer about their state.
const LOOK: Duration = Duration::from_secs(1);
/// How long they have for what the invariants are judged by.
const CHECK: Duration = Duration::from_secs(8);
/// How long a node waits to come to the index that it is asked about.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Indexes before the one that is asked about, for a node that does not come to it.
const BEFORE: u64 = 64;
/// Digests in an answer.
const MARKS: usize = 512;
/// A session is between its birth and its row, or its end and that of its row, for a moment: only what is so at each of
/// these looks is told.
const LOOKS: usize = 4;
/// Time between two of them.
const BETWEEN: Duration = Duration::from_millis(500);
/// Sessions that are named in an answer.
const NAMED: usize = 100;

/// What this node can see.
#[derive(Clone)]
pub struct Sight {
    /// Its part in the cluster.
    pub cluster: Arc<Cluster>,
    /// What carries its stanzas.
    pub router: Arc<Router>,
    /// Its clients, once it has some.
    pub listeners: SharedListeners,
}

/// What one node answered, or why it did not.
pub type Answer<T> = Result<T, String>;

impl Sight {
    /// What each node that is not gone says of itself.
    pub async fn look(&self, nodes: &[NodeRow]) -> Vec<(NodeRow, Answer<LookReply>)> {
        let ask = |sight: Sight, client: Option<SightClient<Channel>>| async move {
            let Some(mut client) = client else { return Ok(sight.look_here()) };
            let request = LookRequest { cluster: sight.cluster_id() };
            client.look(request).await.map(Response::into_inner)
        };
        self.each(nodes, LOOK, ask).await
    }

    /// What each node that is not gone says about the invariants.
    pub async fn check(&self, nodes: &[NodeRow], index: u64) -> Vec<(NodeRow, Answer<CheckReply>)> {
        let ask = move |sight: Sight, client: Option<SightClient<Channel>>| async move {
            let Some(mut client) = client else { return Ok(sight.check_here(index).await) };
            let request = CheckRequest { cluster: sight.cluster_id(), index };
            client.check(request).await.map(Response::into_inner)
        };
        self.each(nodes, CHECK, ask).await
    }

    fn cluster_id(&self) -> Bytes {
        peers::cluster_id(&self.cluster)
    }

    /// Asks all nodes that are not gone at a time; without a client, this one.
    async fn each<T, F: Future<Output = Result<T, Status>>>(
        &self,
        nodes: &[NodeRow],
        bound: Duration,
        ask: impl Fn(Sight, Option<SightClient<Channel>>) -> F,
    ) -> Vec<(NodeRow, Answer<T>)> {
        let me = self.cluster.me().0;
        let mut asked = Vec::new();
        for row in nodes.iter().filter(|row| row.state != NodeState::Gone).cloned() {
            let channel = if row.node == me { None } else { self.cluster.peer_channel(row.node) };
            let has_way = row.node == me || channel.is_some();
            let answer = has_way.then(|| ask(self.clone(), channel.map(SightClient::new)));
            asked.push(async move {
                let Some(answer) = answer else { return (row, Err("it has no address".to_owned())) };
                let answer = match timeout(bound, answer).await {
                    Ok(Ok(answer)) => Ok(answer),
                    Ok(Err(status)) => Err(status.message().to_owned()),
                    Err(_) => Err(format!("no answer within {} s", bound.as_secs())),
                };
                (row, answer)
            });
        }
        join_all(asked).await
    }

    /// What this node says of itself.
    pub fn look_here(&self) -> LookReply {
        let status = self.cluster.status();
        let groups = status.groups.into_iter().map(|group| Group {
            name: group.name,
            leader: group.leader.map_or(0, |member| member.0),
            term: group.term,
            last_log: group.last_log,
            applied: group.applied,
            snapshot: group.snapshot,
            log_bytes: group.log_bytes,
            snapshot_bytes: group.snapshot_bytes,
            leader_changes: group.leader_changes,
            failure: group.failure.unwrap_or_default(),
        });
        LookReply {
            node: self.cluster.me().0.0,
            serving: status.serving,
            lease_age_ms: status.lease_age_ms,
            index: status.index,
            sessions: self.listeners.get().map_or(0, |listeners| listeners.session_count() as u64),
            groups: groups.collect(),
            peers: peers_of(&self.router.lanes()),
        }
    }

    async fn check_here(&self, index: u64) -> CheckReply {
        self.cluster.wait_index(index, Instant::now() + CATCH_UP).await;
        let marks = self.cluster.digests(index.saturating_sub(BEFORE), MARKS);
        let mark = |(index, digest): (u64, u128)| Mark {
            index,
            digest: Bytes::copy_from_slice(&digest.to_be_bytes()),
        };
        let marks = marks.into_iter().map(mark).collect();
        let mut seen = self.apart();
        for _ in 1..LOOKS {
            if seen.unrouted.is_empty() && seen.ghosts.is_empty() {
                break;
            }
            sleep(BETWEEN).await;
            seen = seen.still(self.apart());
        }
        let named = |apart: &Sessions| {
            let mut names: Vec<String> = apart.values().map(ToString::to_string).collect();
            names.sort_unstable();
            names.truncate(NAMED);
            names
        };
        CheckReply {
            node: self.cluster.me().0.0,
            digest_format: DIGEST_FORMAT,
            marks,
            serving: self.cluster.is_serving(),
            sessions: seen.sessions as u64,
            rows: seen.rows as u64,
            unrouted: named(&seen.unrouted),
            ghosts: named(&seen.ghosts),
            unrouted_count: seen.unrouted.len() as u64,
            ghosts_count: seen.ghosts.len() as u64,
        }
    }

    /// What lives here against what the table here says of this node, now.
    fn apart(&self) -> Apart {
        let living = self.listeners.get().map(|listeners| listeners.sessions()).unwrap_or_default();
        let living: Sessions = living.into_iter().map(|session| (Sid(session.sid), session.jid)).collect();
        let (me, incarnation) = self.cluster.me();
        let mut rows = Sessions::new();
        self.cluster.routes().each(|row| {
            if row.node == me && row.incarnation == incarnation {
                rows.insert(row.sid, row.jid.clone());
            }
        });
        Apart::of(living, rows)
    }
}

/// Full JIDs by the lives of their sessions.
type Sessions = HashMap<Sid, FullJid>;

/// How the sessions of a node and the rows for it differ.
#[derive(Debug, PartialEq)]
struct Apart {
    sessions: usize,
    rows: usize,
    /// Sessions without a row.
    unrouted: Sessions,
    /// Rows without a session.
    ghosts: Sessions,
}

impl Apart {
    fn of(living: Sessions, rows: Sessions) -> Apart {
        let (sessions, routed) = (living.len(), rows.len());
        let differs = |from: &Sessions, sid: &Sid, jid: &FullJid| from.get(sid) != Some(jid);
        let unrouted = living.iter().filter(|(sid, jid)| differs(&rows, sid, jid));
        let unrouted = unrouted.map(|(sid, jid)| (*sid, jid.clone())).collect();
        let ghosts = rows.iter().filter(|(sid, jid)| differs(&living, sid, jid));
        let ghosts = ghosts.map(|(sid, jid)| (*sid, jid.clone())).collect();
        Apart { sessions, rows: routed, unrouted, ghosts }
    }

    /// What was so before and is so now.
    fn still(mut self, now: Apart) -> Apart {
        self.unrouted.retain(|sid, jid| now.unrouted.get(sid) == Some(jid));
        self.ghosts.retain(|sid, jid| now.ghosts.get(sid) == Some(jid));
        Apart { unrouted: self.unrouted, ghosts: self.ghosts, ..now }
    }
}

/// What is on its way to each other node, over all lanes.
fn peers_of(lanes: &[router::LaneFacts]) -> Vec<Peer> {
    let mut peers: BTreeMap<NodeId, Peer> = BTreeMap::new();
    for lane in lanes {
        let peer = peers.entry(NodeId(lane.node)).or_default();
        peer.node = lane.node;
        peer.unreceived += lane.unreceived as u64;
        peer.unsettled += lane.unsettled as u64;
        peer.unsettled_bytes += lane.unsettled_bytes as u64;
        peer.lanes += 1;
        peer.connected += u32::from(lane.connected);
    }
    peers.into_values().collect()
}

#[tonic::async_trait]
impl sight_server::Sight for Sight {
    async fn look(&self, request: Request<LookRequest>) -> Result<Response<LookReply>, Status> {
        identity::is_node(&request)?;
        peers::is_ours(&self.cluster, &request.get_ref().cluster)?;
        Ok(Response::new(self.look_here()))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckReply>, Status> {
        identity::is_node(&request)?;
        peers::is_ours(&self.cluster, &request.get_ref().cluster)?;
        Ok(Response::new(self.check_here(request.get_ref().index).await))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(of: &[(u128, &str)]) -> Sessions {
        of.iter().map(|(sid, jid)| (Sid(*sid), FullJid::new(jid).unwrap())).collect()
    }

    #[test]
    fn only_what_stays_apart_is_told() {
        let rows = sessions(&[(1, "a@x/r"), (2, "b@x/r"), (4, "d@x/old")]);
        let first = Apart::of(sessions(&[(1, "a@x/r"), (3, "c@x/r"), (4, "d@x/new")]), rows);
        assert_eq!(first.unrouted, sessions(&[(3, "c@x/r"), (4, "d@x/new")]));
        assert_eq!(first.ghosts, sessions(&[(2, "b@x/r"), (4, "d@x/old")]));
        // One came into the table meanwhile, another one has ended, and a third is new.
        let rows = sessions(&[(1, "a@x/r"), (2, "b@x/r"), (3, "c@x/r")]);
        let still = first.still(Apart::of(sessions(&[(1, "a@x/r"), (3, "c@x/r"), (9, "e@x/r")]), rows));
        assert_eq!((still.sessions, still.rows), (3, 3));
        assert_eq!(still.unrouted, Sessions::new());
        assert_eq!(still.ghosts, sessions(&[(2, "b@x/r")]));
    }

    #[test]
    fn the_lanes_to_a_node_add_up() {
        let lane = |node, lane, unreceived, connected| router::LaneFacts {
            node,
            incarnation: 1,
            lane,
            connected,
            unreceived,
            unsettled: unreceived + 1,
            unsettled_bytes: 10,
        };
        let peers = peers_of(&[lane(7, 0, 2, true), lane(4, 0, 0, true), lane(7, 1, 3, false)]);
        let peer = |node, unreceived, unsettled, lanes, connected| Peer {
            node,
            unreceived,
            unsettled,
            unsettled_bytes: 10 * u64::from(lanes),
            lanes,
            connected,
        };
        assert_eq!(peers, [peer(4, 0, 1, 1, 1), peer(7, 5, 7, 2, 1)]);
    }
}
