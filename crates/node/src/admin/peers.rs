//! Sessions of other nodes: asks the nodes where they live, and answers nodes that ask for ours.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use cluster::{Cluster, NodeId, Row, Sid, identity};
use futures::{Stream, future::join_all, stream};
use proto::{
    admin,
    sessions::{
        Connection, ConnectionsPart, ConnectionsRequest, DrainRequest, UndrainReply, UndrainRequest,
        sessions_client::SessionsClient, sessions_server,
    },
};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::drains;
use crate::parts::Drainer;

/// How long all other nodes together have for their answers.
const DEADLINE: Duration = Duration::from_secs(2);
/// Connections in one part of an answer.
const PART: usize = 1000;

/// What this node knows about the connections of its own sessions: all, or those of one account (bare JID).
pub type LocalSessions = Arc<dyn Fn(&str) -> HashMap<Sid, admin::Connection> + Send + Sync>;

/// Connections by session, and why those of some nodes are missing.
#[derive(Default)]
pub struct Connections {
    /// Every session that was told of.
    pub known: HashMap<Sid, admin::Connection>,
    /// Nodes without an answer, each with the reason.
    pub silent: HashMap<NodeId, String>,
}

/// Collects the connections of these rows from the nodes that they are on, all nodes at a time.
pub async fn connections(
    cluster: &Cluster,
    local: &LocalSessions,
    rows: &[Row],
    account: &str,
) -> Connections {
    let me = cluster.me().0;
    let mut wanted: HashMap<NodeId, HashSet<Sid>> = HashMap::new();
    for row in rows {
        wanted.entry(row.node).or_default().insert(row.sid);
    }
    let mut found = Connections::default();
    if wanted.remove(&me).is_some() {
        found.known = local(account);
    }
    let asked = wanted.into_iter().map(|(node, sids)| async move {
        let answer = timeout(DEADLINE, ask(cluster, node, &sids, account)).await;
        (node, answer.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs()))))
    });
    for (node, answer) in join_all(asked).await {
        match answer {
            Ok(connections) => found.known.extend(connections),
            Err(reason) => {
                found.silent.insert(node, reason);
            }
        }
    }
    found
}

/// What one node says of the wanted sessions; whatever else it says is dropped.
async fn ask(
    cluster: &Cluster,
    node: NodeId,
    wanted: &HashSet<Sid>,
    account: &str,
) -> Result<Vec<(Sid, admin::Connection)>, String> {
    let channel = cluster.peer_channel(node).ok_or("the node has no address")?;
    // Without a timeout of its own: the caller drops the call at the deadline, which cancels it over there.
    let request = ConnectionsRequest { cluster: cluster_id(cluster), account: account.to_owned() };
    let said = |status: Status| status.message().to_owned();
    let mut parts = SessionsClient::new(channel).connections(request).await.map_err(said)?.into_inner();
    let mut found = Vec::new();
    while let Some(part) = parts.message().await.map_err(said)? {
        found.extend(part.connections.into_iter().filter_map(read).filter(|(sid, _)| wanted.contains(sid)));
        // a node that repeats itself without end is not listened to
        if found.len() >= wanted.len() {
            break;
        }
    }
    Ok(found)
}

pub(super) fn cluster_id(cluster: &Cluster) -> bytes::Bytes {
    let id = cluster.status().cluster;
    id.map(|id| bytes::Bytes::copy_from_slice(&id.0.to_be_bytes())).unwrap_or_default()
}

fn read(connection: Connection) -> Option<(Sid, admin::Connection)> {
    let sid = Sid(u128::from_be_bytes(connection.sid.as_ref().try_into().ok()?));
    let Connection { peer_address, age_s, tls, mechanism, queued, .. } = connection;
    Some((sid, admin::Connection { peer_address, age_s, tls, mechanism, queued }))
}

fn written((sid, connection): (Sid, admin::Connection)) -> Connection {
    let admin::Connection { peer_address, age_s, tls, mechanism, queued } = connection;
    let sid = bytes::Bytes::copy_from_slice(&sid.0.to_be_bytes());
    Connection { sid, peer_address, age_s, tls, mechanism, queued }
}

/// Answers other nodes.
pub struct Peers {
    /// The cluster that they must belong to.
    pub cluster: Arc<Cluster>,
    /// Connections of this node's sessions.
    pub local: LocalSessions,
    /// What empties this node.
    pub drainer: Arc<Drainer>,
}

#[tonic::async_trait]
impl sessions_server::Sessions for Peers {
    type ConnectionsStream = Pin<Box<dyn Stream<Item = Result<ConnectionsPart, Status>> + Send>>;

    async fn connections(
        &self,
        request: Request<ConnectionsRequest>,
    ) -> Result<Response<Self::ConnectionsStream>, Status> {
        identity::is_node(&request)?;
        let request = request.into_inner();
        self.is_ours(&request.cluster)?;
        let connections: Vec<Connection> = (self.local)(&request.account).into_iter().map(written).collect();
        let parts = connections.chunks(PART).map(|part| Ok(ConnectionsPart { connections: part.to_vec() }));
        let parts: Vec<_> = parts.collect();
        Ok(Response::new(Box::pin(stream::iter(parts))))
    }

    type DrainStream = drains::ProgressStream;

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        may_operate(&request)?;
        let DrainRequest { cluster, rate_per_s, stop } = request.into_inner();
        self.is_ours(&cluster)?;
        drains::begin(&self.drainer, rate_per_s, stop).map(Response::new)
    }

    async fn undrain(&self, request: Request<UndrainRequest>) -> Result<Response<UndrainReply>, Status> {
        may_operate(&request)?;
        self.is_ours(&request.into_inner().cluster)?;
        self.drainer.undrain().await.map_err(drains::refusal)?;
        Ok(Response::new(UndrainReply {}))
    }
}

impl Peers {
    fn is_ours(&self, theirs: &[u8]) -> Result<(), Status> {
        is_ours(&self.cluster, theirs)
    }
}

/// Refuses who asks for another cluster.
pub(super) fn is_ours(cluster: &Cluster, theirs: &[u8]) -> Result<(), Status> {
    let ours = cluster_id(cluster);
    if ours.is_empty() || theirs != ours {
        return Err(Status::permission_denied("this node belongs to another cluster"));
    }
    Ok(())
}

/// Whoever takes over a frontend must not be able to empty the others with its certificate.
fn may_operate<T>(request: &Request<T>) -> Result<(), Status> {
    identity::may_speak_raft(request).map(drop).map_err(|_| {
        let text = "a frontend may not drain other nodes: ask a backend, or the node itself (`--admin`)";
        Status::permission_denied(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_drains_a_node_without_the_certificate_of_a_backend() {
        let refused = may_operate(&Request::new(())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        assert!(refused.message().contains("ask a backend"), "{refused:?}");
    }

    #[test]
    fn a_connection_reads_as_it_was_written_and_a_bad_name_is_dropped() {
        let connection = admin::Connection {
            peer_address: "127.0.0.1:9".into(),
            age_s: 7,
            tls: "TLS 1.3".into(),
            mechanism: "PLAIN".into(),
            queued: 3,
        };
        let sent = written((Sid(5), connection.clone()));
        assert_eq!(read(sent.clone()), Some((Sid(5), connection)));
        assert_eq!(read(Connection { sid: vec![1, 2].into(), ..sent }), None);
    }
}
