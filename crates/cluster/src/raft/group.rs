//! A Raft group as the rest of the server sees it: propose, read behind a barrier, wait, look.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::{
    BasicNode, ChangeMembers, ServerState, SnapshotPolicy,
    error::{ClientWriteError, InitializeError, RaftError},
};
use parking_lot::Mutex;
use proto::raft::{ProposeRequest, ReadIndexRequest};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, interval, timeout_at},
};
use tonic::Request;

use super::{
    group_thread::GroupThread,
    handover::Elections,
    log::Log,
    machine::{Machine, Refusal},
    network::{self, Network},
    state::State,
    types::{Payloads, Raft},
};
use crate::{
    batch::{Attempt, Batcher, Sink},
    config::Times,
    error::{ClusterError, ProposeError},
    links::Links,
    role::MemberId,
    seam,
};

/// A snapshot is made when the log has grown by this since the last one, and by as much as that one was long: so
/// snapshots write no more than the log does, and the log of a small machine stays short.
const SNAPSHOT_LOG_BYTES: u64 = 2 << 20;
/// The same where a snapshot is not made until somebody wants it, and is long then.
const DURABLE_LOG_BYTES: u64 = 32 << 20;

/// A handle to one Raft group on this backend; cheap to clone.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    batcher: Batcher,
    tasks: Vec<AbortHandle>,
    _thread: Arc<GroupThread>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// What a group needs to open.
pub(crate) struct Opening {
    pub(crate) name: &'static str,
    pub(crate) dir: PathBuf,
    pub(crate) member: MemberId,
    pub(crate) links: Arc<Links>,
    pub(crate) times: Times,
    /// Where its tasks run.
    pub(crate) thread: Arc<GroupThread>,
    /// No other node can reach this one, and what the group agrees on ends with this process.
    pub(crate) alone: bool,
}

/// The part of a group that its own service and queues share.
pub(crate) struct Core {
    pub(crate) name: &'static str,
    pub(crate) member: MemberId,
    pub(crate) raft: Raft,
    pub(crate) dir: PathBuf,
    /// What the machine answers to bytes that it cannot read.
    pub(crate) refusal: Refusal,
    log: Log,
    state: State,
    pub(super) links: Arc<Links>,
    quorum_age: Duration,
    /// Before this it may have confirmed a leader in a life before, which counts on it for so long: it votes for nobody.
    pub(super) votes_from: Mutex<Option<Instant>>,
    applied: watch::Receiver<u64>,
    seen: Mutex<Seen>,
    /// This node gives its lead away, and neither decides nor grants anything meanwhile.
    pub(super) yielding: AtomicBool,
    pub(super) elections: Arc<Elections>,
}

/// What was last seen of openraft's metrics, with the time of the last quorum kept as a time.
#[derive(Default)]
struct Seen {
    quorum_at: Option<Instant>,
    /// What was heard of a quorum before this counts no more: voters were asked to let go of this leader.
    counts_from: Option<Instant>,
    leads_since: Option<(u64, Instant)>,
    /// Who led last, and how often another one did after somebody.
    leader: Option<u64>,
    leader_changes: u64,
}

/// A proposal that was committed and applied by the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The index of the entry that carries it: wait for it before reading here what was written.
    pub index: u64,
    /// What the machine answered.
    pub reply: Bytes,
}

/// Facts about one Raft group on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group's name.
    pub name: String,
    /// The leader as this node knows it.
    pub leader: Option<MemberId>,
    /// Whether this node leads.
    pub is_leader: bool,
    /// The current term.
    pub term: u64,
    /// The last entry of the log here.
    pub last_log: u64,
    /// The last entry applied here.
    pub applied: u64,
    /// The last entry covered by a snapshot here.
    pub snapshot: u64,
    /// The members who vote.
    pub voters: Vec<MemberId>,
    /// The members who only learn.
    pub learners: Vec<MemberId>,
    /// On the leader: milliseconds since a quorum last acknowledged it.
    pub quorum_age_ms: Option<u64>,
    /// On the leader: the last entry that each member is known to have.
    pub matched: Vec<(MemberId, u64)>,
    /// How often this node has seen another member lead than before, since it started.
    pub leader_changes: u64,
    /// Bytes of the entries in the log here.
    pub log_bytes: u64,
    /// Bytes of the newest snapshot here, 0 before the first; `None` where the state itself is on disk.
    pub snapshot_bytes: Option<u64>,
    /// Why the group stopped here, if it did.
    pub failure: Option<String>,
}

impl Group {
    /// Proposes one payload and returns what the machine answered, once it is committed and applied by the
    /// leader. It is forwarded to the leader, batched, and tried again until the deadline; a payload may then
    /// be applied more than once, so it must be idempotent.
    pub async fn propose(&self, payload: Bytes, deadline: Instant) -> Result<Proposed, ProposeError> {
        self.inner.batcher.propose(payload, deadline).await
    }

    /// An index such that a reader who waited for it here sees all that was acknowledged anywhere before
    /// the call. Calls that come together share one question to the leader.
    pub async fn read_index(&self, deadline: Instant) -> Result<u64, ProposeError> {
        self.inner.batcher.read_index(deadline).await
    }

    /// Waits until the machine here has applied `index`.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), ProposeError> {
        let mut applied = self.inner.core.applied.clone();
        let waited = timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ProposeError::Stopped("the machine has stopped".into())),
            Err(_) => Err(ProposeError::Deadline),
        }
    }

    /// Facts for operators.
    pub fn status(&self) -> GroupStatus {
        self.inner.core.status()
    }

    pub(crate) fn name(&self) -> &'static str {
        self.inner.core.name
    }

    pub(crate) fn core(&self) -> Arc<Core> {
        self.inner.core.clone()
    }

    /// Opens the log and the machine and begins to take part; a group without members waits.
    pub(crate) async fn open(opening: Opening, machine: Box<dyn Machine>) -> Result<Group, ClusterError> {
        let Opening { name, dir, member, links, times, thread, alone } = opening;
        let disk = |e: std::io::Error| ClusterError::Disk { path: dir.clone(), source: e.into() };
        let failed = |reason: String| ClusterError::Raft { group: name.into(), reason };
        let log_dir = dir.join("log");
        let open = if alone { Log::open_alone } else { Log::open };
        let log = seam::blocking(move || open(name, &log_dir)).await;
        let log = log.map_err(|e| failed(e.to_string()))?.map_err(disk)?;
        let state_dir = dir.join("state");
        let refusal = machine.refusal();
        let state = State::open(name, &state_dir, machine).await.map_err(disk)?;
        let applied = state.thread().applied();
        let config = raft_config(name, &times).validate().map_err(|e| failed(e.to_string()))?;
        let elections = Arc::<Elections>::default();
        let (dir, shared) = (state_dir.clone(), elections.clone());
        let network = Network { links: links.clone(), group: name, dir, elections: shared };
        let (opened, machine) = (log.clone(), state.clone());
        // openraft starts its tasks where it is made.
        let raft = thread
            .handle()
            .spawn(async move { Raft::new(member.0, Arc::new(config), network, opened, machine).await })
            .await
            .map_err(|e| failed(e.to_string()))?;
        let raft = raft.map_err(|e| failed(e.to_string()))?;
        let quorum_age = Duration::from_millis(times.quorum_age_ms);
        let (seen, yielding) = (Mutex::default(), AtomicBool::new(false));
        let dir = state_dir;
        let votes_from = Mutex::new((!log.is_blank()).then(|| Instant::now() + quorum_age));
        let core = Core {
            name,
            member,
            raft,
            dir,
            refusal,
            log,
            state,
            links,
            quorum_age,
            votes_from,
            applied,
            seen,
            yielding,
            elections,
        };
        let core = Arc::new(core);
        if !core.log.is_blank() && core.status().voters == [member] {
            // Nobody else could lead, so there is nothing to wait for.
            core.raft.trigger().elect().await.map_err(|e| failed(e.to_string()))?;
        }
        let batcher = Batcher::start(Arc::new(GroupSink(core.clone())), thread.handle());
        let watching = thread.handle().spawn(watch_quorum(core.clone()));
        let keeping = thread.handle().spawn(keep_log_short(core.clone()));
        let tasks = vec![watching.abort_handle(), keeping.abort_handle()];
        Ok(Group { inner: Arc::new(Inner { core, batcher, tasks, _thread: thread }) })
    }

    /// Whether the group has members.
    pub(crate) async fn is_initialized(&self) -> bool {
        self.inner.core.raft.is_initialized().await.unwrap_or(false)
    }

    /// Gives the group its first members; does nothing if it has some.
    pub(crate) async fn initialize(&self, founders: &[(MemberId, String)]) -> Result<(), ClusterError> {
        let members: BTreeMap<u64, BasicNode> =
            founders.iter().map(|(member, address)| (member.0, BasicNode::new(address))).collect();
        match self.inner.core.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(e) => Err(ClusterError::Raft { group: self.name().into(), reason: e.to_string() }),
        }
    }

    /// Adds a member that only learns.
    pub(crate) async fn add_learner(&self, member: MemberId, address: &str) -> Result<(), String> {
        let added = self.inner.core.raft.add_learner(member.0, BasicNode::new(address), false).await;
        added.map(drop).map_err(|e| e.to_string())
    }

    /// Replaces the voters; those who are no longer one go on learning.
    pub(crate) async fn set_voters(&self, voters: &[MemberId]) -> Result<(), String> {
        let voters: BTreeSet<u64> = voters.iter().map(|member| member.0).collect();
        let change = ChangeMembers::ReplaceAllVoters(voters);
        self.inner.core.raft.change_membership(change, true).await.map(drop).map_err(|e| e.to_string())
    }

    /// Removes members that do not vote.
    pub(crate) async fn remove(&self, members: &[MemberId]) -> Result<(), String> {
        let change = ChangeMembers::RemoveNodes(members.iter().map(|member| member.0).collect());
        self.inner.core.raft.change_membership(change, true).await.map(drop).map_err(|e| e.to_string())
    }

    pub(crate) async fn stop(&self) {
        self.inner.batcher.stop();
        self.inner.tasks.iter().for_each(AbortHandle::abort);
        if let Err(e) = self.inner.core.raft.shutdown().await {
            tracing::warn!(group = self.name(), error = %e, "the group did not stop in order");
        }
    }
}

fn raft_config(name: &str, times: &Times) -> openraft::Config {
    // openraft begins an election after its lease, which is its `election_timeout_max`, plus a random time
    // between its two timeouts: so that sum, and not the timeouts, is what the settings speak of.
    let lease = times.election_max_ms / 2;
    let wait =
        times.election_min_ms.saturating_sub(lease).max(2 * times.heartbeat_ms).min(lease.saturating_sub(1));
    openraft::Config {
        cluster_name: name.into(),
        heartbeat_interval: times.heartbeat_ms,
        election_timeout_min: wait.max(times.heartbeat_ms + 1),
        election_timeout_max: lease.max(times.heartbeat_ms + 2),
        install_snapshot_timeout: 60_000,
        max_payload_entries: 256,
        replication_lag_threshold: 200_000,
        // By bytes of the log instead, in `keep_log_short`: counting entries cut throughput to a third.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        ..openraft::Config::default()
    }
}

impl Core {
    /// Whether this node leads under a quorum that is young enough.
    pub(crate) fn leads_surely(&self) -> bool {
        self.leads().is_some()
    }

    /// The term and since when this node leads it, under a quorum that is young enough.
    pub(crate) fn leads(&self) -> Option<(u64, Instant)> {
        let (leads, alone) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow();
            let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(self.member.0);
            (leads, metrics.membership_config.membership().voter_ids().count() == 1)
        };
        let seen = self.seen.lock();
        let young = seen.quorum_at.is_some_and(|at| at.elapsed() <= self.quorum_age);
        if self.yielding.load(Ordering::SeqCst) {
            return None;
        }
        // A single voter is its own quorum at any time, and openraft has no reason to tell so again and again.
        if leads && (alone || young) { seen.leads_since } else { None }
    }

    /// Counts on no voter until it has confirmed this leader once more.
    pub(super) fn forget_quorum(&self) {
        let mut seen = self.seen.lock();
        (seen.quorum_at, seen.counts_from) = (None, Some(Instant::now()));
    }

    /// Up to which index this node knows the log to be agreed on, applied here or not; `None` where the group has
    /// stopped or has agreed on nothing.
    pub(crate) async fn committed(&self) -> Option<u64> {
        self.raft.with_raft_state(|state| state.committed.map(|id| id.index)).await.ok().flatten()
    }

    /// Whether this member may vote for another one.
    pub(crate) fn may_vote(&self) -> bool {
        self.votes_from.lock().is_none_or(|from| Instant::now() >= from)
    }

    /// Whether the group has stopped here for good: what this node knows of it stands still.
    pub(crate) fn has_stopped(&self) -> bool {
        self.raft.metrics().borrow().running_state.is_err()
    }

    pub(crate) fn leader(&self) -> Option<MemberId> {
        self.raft.metrics().borrow().current_leader.map(MemberId)
    }

    pub(super) fn address_in_group(&self, member: MemberId) -> String {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let node = metrics.membership_config.membership().get_node(&member.0);
        node.map(|node| node.addr.clone()).unwrap_or_default()
    }

    /// Has payloads agreed on as one entry, if this node leads.
    pub(crate) async fn propose_here(
        &self,
        payloads: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Vec<Proposed>, Attempt> {
        if !self.leads_surely() {
            return Err(Attempt::Again("this node does not lead under a fresh quorum".into()));
        }
        match timeout_at(deadline, self.raft.client_write(Payloads(payloads))).await {
            Ok(Ok(written)) => {
                let index = written.log_id.index;
                Ok(written.data.0.into_iter().map(|reply| Proposed { index, reply }).collect())
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(Attempt::Again("the leader changed".into()))
            }
            Ok(Err(e)) => Err(Attempt::Never(ProposeError::Stopped(e.to_string()))),
            Err(_) => Err(Attempt::Never(ProposeError::Deadline)),
        }
    }

    /// The read index, if this node leads.
    pub(crate) async fn read_index_here(&self, deadline: Instant) -> Result<u64, Attempt> {
        match timeout_at(deadline, self.raft.get_read_log_id()).await {
            Ok(Ok((read, _))) => Ok(read.map_or(0, |id| id.index)),
            Ok(Err(RaftError::Fatal(e))) => Err(Attempt::Never(ProposeError::Stopped(e.to_string()))),
            Ok(Err(e)) => Err(Attempt::Again(e.to_string())),
            Err(_) => Err(Attempt::Never(ProposeError::Deadline)),
        }
    }

    /// Has payloads agreed on by whoever leads.
    pub(crate) async fn propose_once(
        &self,
        payloads: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Vec<Proposed>, Attempt> {
        let again = |status: tonic::Status| Attempt::Again(status.message().to_string());
        let leader = self.leader().ok_or_else(|| Attempt::Again("no leader is known".into()))?;
        if leader == self.member {
            return self.propose_here(payloads, deadline).await;
        }
        let mut client =
            network::client(&self.links, leader, &self.address_in_group(leader)).map_err(again)?;
        let timeout = call_timeout(deadline);
        let timeout_ms = timeout.as_millis() as u64;
        let (cluster, group) = (self.links.cluster_bytes(), self.name.into());
        let mut request = Request::new(ProposeRequest { cluster, group, payloads, timeout_ms });
        request.set_timeout(timeout);
        let reply = client.propose(request).await.map_err(again)?.into_inner();
        if reply.not_leader {
            return Err(Attempt::Again("the node asked does not lead".into()));
        }
        Ok(reply.results.into_iter().map(|p| Proposed { index: p.index, reply: p.reply }).collect())
    }

    /// The read index of whoever leads.
    pub(crate) async fn read_index_once(&self, deadline: Instant) -> Result<u64, Attempt> {
        let again = |status: tonic::Status| Attempt::Again(status.message().to_string());
        let leader = self.leader().ok_or_else(|| Attempt::Again("no leader is known".into()))?;
        if leader == self.member {
            return self.read_index_here(deadline).await;
        }
        let mut client =
            network::client(&self.links, leader, &self.address_in_group(leader)).map_err(again)?;
        let timeout = call_timeout(deadline);
        let timeout_ms = timeout.as_millis() as u64;
        let (cluster, group) = (self.links.cluster_bytes(), self.name.into());
        let mut request = Request::new(ReadIndexRequest { cluster, group, timeout_ms });
        request.set_timeout(timeout);
        let reply = client.read_index(request).await.map_err(again)?.into_inner();
        if reply.not_leader {
            Err(Attempt::Again("the node asked does not lead".into()))
        } else {
            Ok(reply.index)
        }
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        let is_leader = metrics.state == ServerState::Leader;
        let (quorum_at, leader_changes) = {
            let seen = self.seen.lock();
            (seen.quorum_at.filter(|_| is_leader), seen.leader_changes)
        };
        GroupStatus {
            name: self.name.into(),
            leader: metrics.current_leader.map(MemberId),
            is_leader,
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: *self.applied.borrow(),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
            voters: membership.voter_ids().map(MemberId).collect(),
            learners: membership.learner_ids().map(MemberId).collect(),
            quorum_age_ms: quorum_at.map(|at| at.elapsed().as_millis() as u64),
            matched: matched.map(|(id, at)| (MemberId(*id), at.map_or(0, |id| id.index))).collect(),
            leader_changes,
            log_bytes: self.log.kept(),
            snapshot_bytes: self.state.snapshot_bytes(),
            failure: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }
}

/// A call to another node is given up before the deadline, so that a leader that hangs costs one attempt only.
pub(crate) fn call_timeout(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(1500))
}

struct GroupSink(Arc<Core>);

impl Sink for GroupSink {
    fn is_near(&self) -> bool {
        self.0.leads_surely()
    }

    fn send(&self, payloads: Vec<Bytes>, deadline: Instant) -> BoxFuture<'_, Result<Vec<Proposed>, Attempt>> {
        Box::pin(self.0.propose_once(payloads, deadline))
    }

    fn read_index(&self, deadline: Instant) -> BoxFuture<'_, Result<u64, Attempt>> {
        Box::pin(self.0.read_index_once(deadline))
    }
}

/// Notes when a quorum was last heard of: openraft tells an age, which stands still while nothing happens.
async fn watch_quorum(core: Arc<Core>) {
    let mut metrics = core.raft.metrics();
    loop {
        {
            // The lock on the metrics stops openraft: it is held for this block only, and never across an await.
            let metrics = metrics.borrow_and_update();
            let now = Instant::now();
            let mut seen = core.seen.lock();
            let age = metrics.millis_since_quorum_ack.map(Duration::from_millis);
            let at = age.and_then(|age| now.checked_sub(age));
            if let Some(at) = at.filter(|at| seen.counts_from.is_none_or(|from| *at >= from)) {
                seen.quorum_at = seen.quorum_at.max(Some(at));
            }
            if metrics.current_leader.is_some() && metrics.current_leader != seen.leader {
                seen.leader_changes += u64::from(seen.leader.is_some());
                seen.leader = metrics.current_leader;
            }
            let leads = metrics.state == ServerState::Leader && metrics.current_leader == Some(core.member.0);
            if !leads {
                seen.leads_since = None;
            } else if seen.leads_since.is_none_or(|(term, _)| term != metrics.current_term) {
                seen.leads_since = Some((metrics.current_term, now));
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Has a snapshot made whenever the log has grown enough, and what is behind the snapshot purged.
async fn keep_log_short(core: Arc<Core>) {
    let mut ticks = interval(Duration::from_secs(1));
    let mut at_snapshot = 0;
    loop {
        ticks.tick().await;
        let (snapshot, purged) = {
            let metrics = core.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.snapshot.map_or(0, |id| id.index), metrics.purged.map_or(0, |id| id.index))
        };
        let appended = core.log.appended();
        let mut done = Ok(());
        let due = match core.state.snapshot_bytes() {
            Some(bytes) => bytes.max(seam::snapshot_log_bytes(SNAPSHOT_LOG_BYTES)),
            None => seam::snapshot_log_bytes(DURABLE_LOG_BYTES),
        };
        if appended - at_snapshot > due {
            at_snapshot = appended;
            done = core.raft.trigger().snapshot().await;
        }
        // Half of it stays behind a snapshot, for followers that are a little late.
        if let Some(upto) = core.log.purgeable(due / 2).map(|upto| upto.min(snapshot))
            && upto > purged
        {
            done = done.and(core.raft.trigger().purge_log(upto).await);
        }
        if let Err(e) = done {
            tracing::error!(group = core.name, error = %e, "the group has stopped");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Read},
        path::Path,
    };

    use jid::FullJid;

    use super::*;
    use crate::{
        cluster::{Cluster, Deps},
        config::{Config, Discovery},
        raft::machine::{Committed, SnapshotWriter},
        role::{Roles, Sid},
        routes::ConflictPolicy,
    };

    /// Adds up numbers, and says that it keeps the sum.
    struct Sum(Arc<Mutex<u64>>);

    impl Machine for Sum {
        fn is_durable(&self) -> bool {
            true
        }

        fn apply(&mut self, entries: &[Committed]) -> io::Result<Vec<Vec<Bytes>>> {
            let mut sum = self.0.lock();
            let mut add = |payload: &Bytes| {
                *sum += u64::from(payload[0]);
                Bytes::copy_from_slice(&sum.to_le_bytes())
            };
            Ok(entries.iter().map(|entry| entry.payloads.iter().map(&mut add).collect()).collect())
        }

        fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
            let sum = *self.0.lock();
            Ok(Box::new(move |out| out.write_all(&sum.to_le_bytes())))
        }

        fn install(&mut self, _mark: Bytes, snapshot: &mut dyn Read) -> io::Result<()> {
            let mut bytes = [0; 8];
            snapshot.read_exact(&mut bytes)?;
            *self.0.lock() = u64::from_le_bytes(bytes);
            Ok(())
        }
    }

    async fn node(dir: &Path, name: &str) -> (Arc<Cluster>, Group, Arc<Mutex<u64>>) {
        let config = Config {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            plain: true,
            discovery: Discovery::File(dir.join("seeds")),
            ..Config::default()
        };
        let roles = Roles { frontend: false, backend: true };
        let cluster = Cluster::start(config, Deps { name: name.into(), roles, data_dir: dir.join(name) })
            .await
            .unwrap();
        let sum = Arc::new(Mutex::new(0));
        let group = cluster.open_group("data", Box::new(Sum(sum.clone()))).await.unwrap();
        let server = cluster.clone();
        tokio::spawn(async move { server.serve(server.grpc_services()).await });
        (cluster, group, sum)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_late_backend_is_brought_up_by_snapshots_when_the_log_is_purged() {
        let dir = tempfile::tempdir().unwrap();
        let (first, data, sum) = node(dir.path(), "first").await;
        first.ready().await.unwrap();
        let jid = FullJid::new("alice@localhost/phone").unwrap();
        let sid = Sid::random();
        first.bind(&jid, sid, ConflictPolicy::Replace).await.unwrap();
        let mut index = 0;
        for _ in 0..50 {
            index = data.propose(Bytes::from_static(&[2]), soon()).await.unwrap().index;
        }
        assert_eq!(*sum.lock(), 100);
        for group in first.groups_for_test() {
            let core = group.core();
            let applied = group.status().applied;
            core.raft.trigger().snapshot().await.unwrap();
            core.raft
                .wait(None)
                .metrics(|m| m.snapshot.is_some_and(|id| id.index >= applied), "snapshot")
                .await
                .unwrap();
            core.raft.trigger().purge_log(applied).await.unwrap();
            core.raft
                .wait(None)
                .metrics(|m| m.purged.is_some_and(|id| id.index >= applied), "purged")
                .await
                .unwrap();
        }
        // More after the snapshot: what is sent may be newer than what was frozen.
        data.propose(Bytes::from_static(&[1]), soon()).await.unwrap();

        std::fs::write(dir.path().join("seeds"), first.address()).unwrap();
        let (late, late_data, late_sum) = node(dir.path(), "late").await;
        tokio::time::timeout_at(soon(), late.ready()).await.unwrap().unwrap();
        assert_eq!(late.routes().full(&jid).unwrap().sid, sid);
        let read = tokio::time::timeout_at(soon(), async {
            loop {
                // The group adds its learner a moment later than the table's.
                if let Ok(read) = late_data.read_index(Instant::now() + Duration::from_secs(1)).await {
                    return read;
                }
            }
        });
        let read = read.await.unwrap();
        assert!(read > index);
        late_data.wait_applied(read, soon()).await.unwrap();
        assert_eq!(*late_sum.lock(), 101);
        // It forwards what it is asked to the leader.
        let reply = late_data.propose(Bytes::from_static(&[9]), soon()).await.unwrap();
        assert_eq!(reply.reply, Bytes::copy_from_slice(&110_u64.to_le_bytes()));
    }
}
