//! What the tasks and services of one node share.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::membership::{
    BarrierRequest, Peer, RenewReply, RenewRequest, SubmitRequest, membership_client::MembershipClient,
    renew_reply::Verdict,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{Request, Status, transport::Channel};

use crate::{
    batch::{Attempt, Batcher, Sink},
    birth::Certificate,
    config::Config,
    discovery::Discover,
    error::{ClusterError, Unavailable},
    formation::Promise,
    hub::Hub,
    identity::{audit::Audit, authority::Authority, credentials::Credentials, kept::Kept},
    lease::{Heard, Holding, Marks},
    links::{Links, MESSAGE_MAX},
    raft::{
        group::{Group, Proposed, call_timeout},
        network::Groups,
    },
    role::{Incarnation, MemberId, NodeId, Roles},
    routes::{Command, Doors, NodeRow, NodeState, Outcome},
    table::TableView,
};

/// How long the leader may take for a renewal that is passed on: whoever asked still waits then.
const PASSING_ON: Duration = Duration::from_millis(500);
/// How many addresses are remembered at most.
const KNOWN_MAX: usize = 512;

/// How far the start has come.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    Starting,
    Ready,
    Failed(ClusterError),
}

/// One node's part in the cluster.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) name: String,
    pub(crate) roles: Roles,
    /// Where others reach this node; empty if they cannot.
    pub(crate) address: String,
    pub(crate) certificate: Certificate,
    pub(crate) links: Arc<Links>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) view: Arc<TableView>,
    pub(crate) discovery: Box<dyn Discover>,
    pub(crate) lease: Mutex<Holding>,
    pub(crate) heard: Mutex<Heard>,
    pub(crate) marks: Mutex<Marks>,
    pub(crate) promise: Mutex<Promise>,
    /// The members that this node would found a cluster with.
    pub(crate) sees: Mutex<Vec<MemberId>>,
    /// Addresses that answered as backends of this cluster, and others to knock at.
    pub(crate) known: Mutex<Known>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) audit: Arc<Audit>,
    /// The certificates of the links; `None` where they are plain.
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// The cluster's authority, once this backend has its key.
    pub(crate) authority: Mutex<Option<Arc<Authority>>>,
    pub(crate) wish: watch::Sender<Wish>,
}

/// What this node wants the table to say of it; told again under each new incarnation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) draining: bool,
    pub(crate) doors: Doors,
}

impl Wish {
    /// What has to be agreed on for that, where the table says `row` and `doors` of the node.
    pub(crate) fn missing(&self, row: &NodeRow, doors: Option<&Doors>) -> Vec<Command> {
        let (node, incarnation) = (row.node, row.incarnation);
        let mut missing = Vec::new();
        if doors != Some(&self.doors) && (doors.is_some() || self.doors != Doors::default()) {
            missing.push(Command::NodeDoors { node, incarnation, doors: self.doors.clone() });
        }
        match row.state {
            NodeState::Up if self.draining => missing.push(Command::NodeDrain { node, incarnation }),
            NodeState::Draining if !self.draining => {
                missing.push(Command::NodeUndrain { node, incarnation });
            }
            NodeState::Gone => missing.clear(),
            NodeState::Up | NodeState::Draining => {}
        }
        missing
    }
}

/// Addresses heard of.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) backends: BTreeSet<String>,
    pub(crate) others: BTreeSet<String>,
    pub(crate) seeds: Vec<String>,
    /// The backend that answered last.
    pub(crate) good: Option<String>,
    /// Where the leader was last.
    pub(crate) leader: Option<String>,
    /// The backend that passes renewals on, and how long it is asked before the leader is tried again.
    pub(crate) detour: Option<(String, Instant)>,
}

impl Known {
    pub(crate) fn note_other(&mut self, address: &str) {
        if !address.is_empty() && self.others.len() < KNOWN_MAX {
            self.others.insert(address.into());
        }
    }
}

impl Shared {
    pub(crate) fn member(&self) -> Option<MemberId> {
        self.roles.backend.then(|| self.certificate.born().member)
    }

    /// What the cluster's own authority gave to this node.
    pub(crate) fn kept(&self) -> Option<&Kept> {
        self.credentials.as_ref().and_then(|credentials| credentials.kept())
    }

    pub(crate) fn routes_group(&self) -> Option<Group> {
        self.groups.get("routes")
    }

    /// How this node introduces itself.
    pub(crate) fn introduction(&self) -> Peer {
        Peer {
            cluster: self.links.cluster_bytes(),
            member: self.member().map_or(0, |member| member.0),
            name: self.name.clone(),
            address: self.address.clone(),
            frontend: self.roles.frontend,
            backend: self.roles.backend,
            expect: self.config.expect as u32,
            sees: self.sees.lock().iter().map(|member| member.0).collect(),
        }
    }

    pub(crate) fn membership(&self, address: &str) -> Result<MembershipClient<Channel>, Status> {
        let client = MembershipClient::new(self.links.channel(address)?);
        Ok(client.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX))
    }

    /// Other backends to ask, the likeliest first.
    pub(crate) fn backends(&self) -> Vec<String> {
        let known = self.known.lock();
        let mut addresses: Vec<String> = known.good.iter().cloned().collect();
        let mut rows = self.view.nodes();
        rows.retain(|row| row.roles.backend && row.state != NodeState::Gone);
        // One that drains answers until it stops, but will soon.
        rows.sort_by_key(|row| row.state == NodeState::Draining);
        addresses.extend(rows.iter().map(|row| row.address.clone()));
        addresses.extend(known.backends.iter().cloned());
        let mut unique = BTreeSet::new();
        addresses.retain(|address| {
            !address.is_empty() && *address != self.address && unique.insert(address.clone())
        });
        addresses
    }

    /// The members that could lead in place of this node: those that are up, and behind them, if `all`, those that
    /// drain too.
    pub(crate) fn heirs(&self, all: bool) -> Vec<MemberId> {
        let (me, mut rows) = (self.hub.me().0, self.view.nodes());
        let leaving: Vec<NodeId> = self.view.routes.read().leaving().map(|row| row.node).collect();
        let stays = |row: &NodeRow| row.state == NodeState::Up && !leaving.contains(&row.node);
        rows.retain(|row| row.node != me && (stays(row) || (all && row.state != NodeState::Gone)));
        rows.sort_by_key(|row| !stays(row));
        rows.iter().filter_map(|row| row.member).collect()
    }

    /// Whether the table here stands still for good, as after a disk that was full, while other nodes may go on: it
    /// would never hear that a session lost its full JID.
    pub(crate) fn stands_still(&self) -> bool {
        let others = !self.address.is_empty();
        others && self.routes_group().is_some_and(|group| group.core().has_stopped())
    }

    /// Grants a renewal if this node leads, to a node that has applied the table up to `index` where it says so.
    pub(crate) fn grant(&self, node: NodeId, incarnation: Incarnation, index: Option<u64>) -> RenewReply {
        let group = self.routes_group();
        let core = group.as_ref().map(Group::core);
        let leads = core.as_ref().is_some_and(|core| core.leads_surely());
        let row = self.view.node(node);
        let verdict = match row {
            _ if !leads => Verdict::NotLeader,
            // This table may be behind for a moment after an election.
            None => Verdict::NotLeader,
            Some(row) if row.incarnation < incarnation => Verdict::NotLeader,
            Some(row) if row.incarnation > incarnation || row.state == NodeState::Gone => Verdict::Stale,
            Some(_) if index.is_some_and(|index| self.is_behind(index)) => {
                tracing::debug!(%node, index, "a node is too far behind for its lease");
                Verdict::NotLeader
            }
            Some(_) => {
                self.heard.lock().renewed(node, incarnation, Instant::now());
                Verdict::Granted
            }
        };
        let leader = core.and_then(|core| core.leader()).and_then(|leader| self.links.address(leader));
        RenewReply { verdict: verdict.into(), leader: leader.unwrap_or_default(), passed_on: false }
    }

    fn is_behind(&self, index: u64) -> bool {
        let ours = *self.hub.index().borrow();
        self.marks.lock().is_behind(index, ours, Instant::now())
    }

    /// Asks the leader in the stead of a frontend that may not reach it; what the leader says. Not for a backend: it has
    /// the table by Raft, from the leader, and would serve with one that stands still. The same holds for whoever has
    /// the table from this node, so it must have its own lease.
    pub(crate) async fn pass_on(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        index: Option<u64>,
    ) -> Option<Verdict> {
        let is_frontend = self.view.node(node).is_some_and(|row| !row.roles.backend);
        if !is_frontend || !self.lease.lock().is_held(Instant::now()) {
            return None;
        }
        let leader = self.routes_group()?.core().leader().filter(|leader| Some(*leader) != self.member())?;
        let address = self.links.address(leader)?;
        let cluster = self.links.cluster_bytes();
        let (node, incarnation) = (node.0, incarnation.0);
        let request = RenewRequest { cluster, node, incarnation, passed_on: true, index };
        let mut client = self.membership(&address).ok()?;
        let reply = timeout(PASSING_ON, client.renew(request)).await.ok()?;
        match reply.map(|reply| reply.into_inner().verdict()) {
            Ok(verdict) => Some(verdict).filter(|verdict| *verdict != Verdict::NotLeader),
            Err(status) => {
                tracing::debug!(address, status = status.message(), "a renewal was not passed on");
                None
            }
        }
    }

    /// The backend to ask when one did not answer: each gets its turn.
    pub(crate) fn backend_after(&self, address: &str) -> Option<String> {
        let mut others = self.backends();
        others.retain(|other| other != address);
        others.sort_unstable();
        let next = others.iter().position(|other| other.as_str() > address).unwrap_or(0);
        others.into_iter().nth(next)
    }

    pub(crate) fn fail(&self, error: ClusterError) {
        tracing::error!(%error, "the cluster cannot go on");
        self.phase.send_replace(Phase::Failed(error));
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config.times.command()
    }
}

/// Route commands go to this node's own group if it knows a leader, else to any backend.
pub(crate) struct RouteSink(pub(crate) Arc<Shared>);

impl RouteSink {
    fn next_backend(&self) -> Result<String, Attempt> {
        let backends = self.0.backends();
        backends.into_iter().next().ok_or_else(|| Attempt::Again("no backend is known".into()))
    }

    /// Notes whether a backend answered; one that did not is asked last.
    fn note(&self, address: &str, answered: bool) {
        let mut known = self.0.known.lock();
        if answered {
            known.good = Some(address.into());
        } else if known.good.as_deref() == Some(address) || known.good.is_none() {
            drop(known);
            let next = self.0.backend_after(address);
            self.0.known.lock().good = next;
        }
    }

    async fn submit(&self, commands: Vec<Bytes>, deadline: Instant) -> Result<Vec<Proposed>, Attempt> {
        let address = self.next_backend()?;
        let again = |status: Status| Attempt::Again(format!("`{address}`: {}", status.message()));
        let timeout = call_timeout(deadline);
        let cluster = self.0.links.cluster_bytes();
        let timeout_ms = timeout.as_millis() as u64;
        let mut request = Request::new(SubmitRequest { cluster, commands, timeout_ms });
        request.set_timeout(timeout);
        let reply = self.0.membership(&address).map_err(again)?.submit(request).await;
        self.note(&address, reply.is_ok());
        let outcomes = reply.map_err(again)?.into_inner().outcomes;
        Ok(outcomes.into_iter().map(|o| Proposed { index: o.index, reply: o.outcome }).collect())
    }

    async fn barrier(&self, deadline: Instant) -> Result<u64, Attempt> {
        let address = self.next_backend()?;
        let again = |status: Status| Attempt::Again(format!("`{address}`: {}", status.message()));
        let timeout = call_timeout(deadline);
        let (cluster, timeout_ms) = (self.0.links.cluster_bytes(), timeout.as_millis() as u64);
        let mut request = Request::new(BarrierRequest { cluster, timeout_ms });
        request.set_timeout(timeout);
        let reply = self.0.membership(&address).map_err(again)?.barrier(request).await;
        self.note(&address, reply.is_ok());
        Ok(reply.map_err(again)?.into_inner().index)
    }
}

impl Sink for RouteSink {
    fn is_near(&self) -> bool {
        self.0.routes_group().is_some_and(|group| group.core().leads_surely())
    }

    fn send(&self, payloads: Vec<Bytes>, deadline: Instant) -> BoxFuture<'_, Result<Vec<Proposed>, Attempt>> {
        Box::pin(async move {
            let core = self.0.routes_group().map(|group| group.core());
            match core.filter(|core| core.leader().is_some()) {
                Some(core) => core.propose_once(payloads, deadline).await,
                None => self.submit(payloads, deadline).await,
            }
        })
    }

    fn read_index(&self, deadline: Instant) -> BoxFuture<'_, Result<u64, Attempt>> {
        Box::pin(async move {
            let core = self.0.routes_group().map(|group| group.core());
            match core.filter(|core| core.leader().is_some()) {
                Some(core) => core.read_index_once(deadline).await,
                None => self.barrier(deadline).await,
            }
        })
    }
}

/// Has a command agreed on, and says at which index.
pub(crate) async fn submit(
    batcher: &Batcher,
    command: &Command,
    deadline: Instant,
) -> Result<(u64, Outcome), Unavailable> {
    let proposed = batcher.propose(command.encode().into(), deadline).await?;
    let outcome = Outcome::decode(&proposed.reply);
    let outcome = outcome.ok_or_else(|| Unavailable("the answer could not be read".into()))?;
    Ok((proposed.index, outcome))
}

/// Waits until the table here has applied `index`; whether it did in time.
pub(crate) async fn wait_index(hub: &Hub, index: u64, deadline: Instant) -> bool {
    let mut applied = hub.index();
    if *applied.borrow() >= index {
        return true;
    }
    hub.want(index);
    matches!(
        tokio::time::timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await,
        Ok(Ok(_))
    )
}

/// A pause between attempts of the background tasks.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_asks_for_what_the_table_does_not_say_of_it() {
        use NodeState::{Draining, Gone, Up};
        let (node, incarnation) = (NodeId(4), Incarnation(7));
        let one = Doors { starttls: "one.example:5222".into(), direct_tls: String::new() };
        let drain = Command::NodeDrain { node, incarnation };
        let undrain = Command::NodeUndrain { node, incarnation };
        let tell = |doors: &Doors| Command::NodeDoors { node, incarnation, doors: doors.clone() };
        let none = Doors::default();
        // what the node wants, what the table says, what is missing
        for (draining, doors, state, known, missing) in [
            (false, &none, Up, None, vec![]),
            (false, &none, Draining, None, vec![undrain.clone()]),
            (true, &none, Up, None, vec![drain.clone()]),
            (true, &none, Draining, None, vec![]),
            (false, &one, Up, None, vec![tell(&one)]),
            (false, &one, Up, Some(&none), vec![tell(&one)]),
            (false, &one, Up, Some(&one), vec![]),
            (false, &none, Up, Some(&one), vec![tell(&none)]),
            // After a new incarnation all of it is told again.
            (true, &one, Up, None, vec![tell(&one), drain.clone()]),
            (true, &one, Gone, None, vec![]),
        ] {
            let wish = Wish { draining, doors: doors.clone() };
            let row = NodeRow {
                node,
                incarnation,
                name: "one".into(),
                address: String::new(),
                roles: Roles::default(),
                state,
                member: None,
                key: 1,
                start: 1,
            };
            assert_eq!(wish.missing(&row, known), missing, "{wish:?} {state:?} {known:?}");
        }
    }
}
