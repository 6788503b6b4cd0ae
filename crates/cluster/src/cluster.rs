//! The cluster as the rest of the server sees it.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::future::join_all;
use jid::FullJid;
use parking_lot::Mutex;
use proto::{
    join::join_server::JoinServer, membership::membership_server::MembershipServer,
    raft::raft_server::RaftServer,
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::Instant,
};
use tonic::transport::{Channel, Server};

use crate::{
    batch::Batcher,
    birth::Certificate,
    changes::Change,
    config::{CERTIFICATE_LIFETIME_MAX_S, Config},
    discovery,
    error::{BindError, ClusterError, Unavailable},
    feed,
    hub::{Hub, RoutesMachine},
    identity::{
        audit::{Audit, Reason},
        credentials::{self, Credentials, Security},
        door::{self, Door},
        entry,
        gate::Gate,
        joining,
        kept::Kept,
        service as join_service,
    },
    keeper,
    lease::{Heard, Holding, Marks},
    life,
    links::{Links, MESSAGE_MAX},
    membership,
    raft::{
        group::{Group, GroupStatus, Opening},
        group_thread::GroupThread,
        machine::Machine,
        network::{self, Groups},
    },
    recovery,
    role::{ClusterId, Incarnation, MemberId, NodeId, Roles, Sid},
    routes::{Command, ConflictPolicy, Doors, Living, NodeRow, NodeState, Outcome},
    seam::Listener,
    shared::{Known, Phase, RouteSink, Shared, Wish, submit, wait_index},
    table::TableView,
};

/// Calls in work on one link; a node that has more to ask waits with them. Far more than a storm of logins asks of the
/// store at a time, since the renewal of a lease must not wait behind it.
const STREAMS: u32 = 4096;
/// Calls that a caller took back before anybody looked at them, at a time: beyond it the link ends (CVE-2023-44487).
const TAKEN_BACK: usize = 64;
/// Calls on one link that ended by a fault of the caller: beyond it the link ends.
const FAULTS: usize = 1024;
/// The largest head of a call.
const HEAD_BYTES: u32 = 16 << 10;

/// What the cluster needs beside its settings.
#[derive(Clone, Debug)]
pub struct Deps {
    /// The node's name in the config.
    pub name: String,
    /// What this node does.
    pub roles: Roles,
    /// Where vote, log and identity are kept: a folder `cluster` is made in it.
    pub data_dir: PathBuf,
}

/// A session that was bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The full JID that it has; the rename policy may have changed the resource.
    pub jid: FullJid,
    /// The index of the table that shows it.
    pub index: u64,
}

/// Facts about the cluster as this node sees it.
#[derive(Clone, Debug, Default)]
pub struct ClusterStatus {
    /// The cluster, once it is formed.
    pub cluster: Option<ClusterId>,
    /// This node, once it is admitted.
    pub node: Option<NodeId>,
    /// Its incarnation.
    pub incarnation: Option<Incarnation>,
    /// Whether it holds its lease.
    pub serving: bool,
    /// Every node.
    pub nodes: Vec<NodeRow>,
    /// The node that leads the group `routes`.
    pub leader: Option<NodeId>,
    /// The index of the route table here.
    pub index: u64,
    /// Visible sessions.
    pub sessions: usize,
    /// The Raft groups on this node.
    pub groups: Vec<GroupStatus>,
    /// Milliseconds since the last acknowledged renewal of the lease was sent.
    pub lease_age_ms: Option<u64>,
    /// Seeds that discovery gives now.
    pub seeds: Vec<String>,
    /// How often somebody was refused on a link, by the reason.
    pub refusals: Vec<(&'static str, u64)>,
    /// Certificates that this node has signed, renewals included.
    pub certificates_issued: u64,
    /// When this node's own certificate runs out, in seconds since 1970.
    pub certificate_expires: Option<u64>,
}

/// This node's part in the cluster.
pub struct Cluster {
    shared: Arc<Shared>,
    batcher: Arc<Batcher>,
    /// Where route commands are gathered, and agreed on where this node is a backend.
    _routes: Arc<GroupThread>,
    listener: Mutex<Option<Listener>>,
    data_dir: PathBuf,
    tasks: Mutex<Vec<AbortHandle>>,
    stopping: watch::Sender<bool>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.batcher.stop();
        self.tasks.lock().iter().for_each(AbortHandle::abort);
    }
}

impl Cluster {
    /// Opens what is kept on disk and begins to look for the others; returns at once. Open further groups and
    /// serve [`Cluster::grpc_services`] with [`Cluster::serve`] then, and wait for [`Cluster::ready`].
    pub async fn start(config: Config, deps: Deps) -> Result<Arc<Cluster>, ClusterError> {
        let (listener, address) = listen(&config).await?;
        check(&config, &deps, &address)?;
        let dir = deps.data_dir.join("cluster");
        let disk = |e: std::io::Error| ClusterError::Disk { path: dir.clone(), source: e.into() };
        let kept = Kept::in_cluster_dir(&dir);
        let security = entry::secured(&config, &deps, &kept, &address).await?;
        let certificate = Certificate::open(&dir).map_err(disk)?;
        let credentials = match security {
            Security::Plain => None,
            Security::Tls(credentials) => Some(credentials),
        };
        if let Some(credentials) = &credentials {
            credentials::check_roles(credentials, deps.roles)?;
            if let Some(kept) = credentials.kept() {
                credentials::check_name(kept, certificate.born().key)?;
            }
        }
        let links = Arc::new(Links::new(credentials.clone()));
        let born = certificate.born();
        if born.recovering {
            return Err(ClusterError::Recovering);
        }
        if let Some(cluster) = born.cluster {
            links.set_cluster(cluster, born.epoch);
        }
        let view = Arc::new(TableView::default());
        let hub = Arc::new(Hub::new(view.clone(), links.clone(), certificate.born().key));
        let known = Known { backends: kept_backends(&credentials), ..Known::default() };
        let shared = Arc::new(Shared {
            name: deps.name,
            roles: deps.roles,
            address,
            certificate,
            links,
            groups: Arc::default(),
            hub: hub.clone(),
            view,
            discovery: discovery::source(&config.discovery),
            lease: Mutex::new(Holding::new(config.times.fence())),
            heard: Mutex::new(Heard::new(&config.times)),
            marks: Mutex::new(Marks::new(&config.times)),
            promise: Mutex::default(),
            sees: Mutex::default(),
            known: Mutex::new(known),
            audit: Arc::default(),
            credentials: credentials.clone(),
            authority: Mutex::default(),
            phase: watch::Sender::new(Phase::Starting),
            wish: watch::Sender::default(),
            config,
        });
        let routes = group_thread("routes")?;
        let batcher = Arc::new(Batcher::start(Arc::new(RouteSink(shared.clone())), routes.handle()));
        let cluster = Arc::new(Cluster {
            shared: shared.clone(),
            batcher: batcher.clone(),
            _routes: routes.clone(),
            listener: Mutex::new(listener),
            data_dir: dir,
            tasks: Mutex::default(),
            stopping: watch::Sender::new(false),
        });
        if shared.roles.backend {
            let alone = shared.address.is_empty();
            cluster.open_group_on(routes, "routes", Box::new(RoutesMachine(hub)), alone).await?;
            cluster.spawn(life::initialize_groups(shared.clone()));
            cluster.spawn(keeper::keep(shared.clone()));
        } else {
            cluster.spawn(feed::follow(shared.clone()));
        }
        cluster.spawn(life::stay_known(shared.clone()));
        if let Some(credentials) = credentials {
            let links = shared.links.clone();
            cluster.spawn(credentials::watch(credentials.clone(), move || links.renew()));
            cluster.spawn(joining::stay_certified(shared.clone(), credentials));
        }
        cluster.spawn(life::stay_as_wished(shared.clone(), batcher.clone()));
        cluster.spawn(life::live(shared, batcher));
        Ok(cluster)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().push(tokio::spawn(task).abort_handle());
    }

    /// Waits until this node is admitted, has the route table and holds its lease; fails when it must not start.
    pub async fn ready(&self) -> Result<(), ClusterError> {
        let mut phase = self.shared.phase.subscribe();
        let ended = phase.wait_for(|phase| !matches!(phase, Phase::Starting)).await;
        match ended.as_deref() {
            Ok(Phase::Failed(error)) => Err(error.clone()),
            Ok(_) => Ok(()),
            Err(_) => Err(ClusterError::Stopped),
        }
    }

    /// Runs a Raft group of the given name on this backend, with the voters of the group `routes`. Call it right
    /// after [`Cluster::start`]; proposals wait until the cluster is formed.
    pub async fn open_group(
        &self,
        name: &'static str,
        machine: Box<dyn Machine>,
    ) -> Result<Group, ClusterError> {
        self.open_group_on(group_thread(name)?, name, machine, false).await
    }

    async fn open_group_on(
        &self,
        thread: Arc<GroupThread>,
        name: &'static str,
        machine: Box<dyn Machine>,
        alone: bool,
    ) -> Result<Group, ClusterError> {
        let shared = &self.shared;
        let Some(member) = shared.member() else {
            return Err(ClusterError::Config(format!("a frontend takes no part in the group `{name}`")));
        };
        let dir = recovery::group_dir(&self.data_dir, name, shared.certificate.born().logs);
        let (links, times) = (shared.links.clone(), shared.config.times.clone());
        let opening = Opening { name, dir, member, links, times, thread, alone };
        let group = Group::open(opening, machine).await?;
        shared.groups.add(group.clone());
        Ok(group)
    }

    #[cfg(test)]
    pub(crate) fn groups_for_test(&self) -> Vec<Group> {
        self.shared.groups.all()
    }

    /// The member that this node is, and where it is reached, if it founded its cluster alone.
    pub(crate) fn sole_founder(&self) -> Option<(MemberId, String)> {
        let born = self.shared.certificate.born();
        let alone = matches!(&born.founders[..], [(only, _)] if *only == born.member);
        (alone && self.shared.roles.backend).then(|| (born.member, self.shared.address.clone()))
    }

    /// This node and its incarnation; zero before it is admitted.
    pub fn me(&self) -> (NodeId, Incarnation) {
        self.shared.hub.me()
    }

    /// What this node does.
    pub fn roles(&self) -> Roles {
        self.shared.roles
    }

    /// `host:port` of this node's cluster listener; empty if it has none.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// Whether this node holds its lease; without it, it must deliver nothing and bind nothing.
    pub fn is_serving(&self) -> bool {
        self.shared.lease.lock().is_held(Instant::now())
    }

    /// This node's copy of the route table.
    pub fn routes(&self) -> Arc<TableView> {
        self.shared.view.clone()
    }

    /// Binds a full JID to a session of this node; returns once that is agreed and applied here.
    pub async fn bind(&self, jid: &FullJid, sid: Sid, policy: ConflictPolicy) -> Result<Bound, BindError> {
        self.serving()?;
        let (node, incarnation) = self.me();
        let command = Command::Bind { jid: jid.clone(), node, incarnation, sid, policy };
        match self.applied(&command).await? {
            // Agreed, and hidden by a later incarnation before it was heard.
            (_, Outcome::Bound { .. }) if self.me().1 != incarnation => {
                Err(unexpected(Outcome::Stale).into())
            }
            (index, Outcome::Bound { jid }) => Ok(Bound { jid, index }),
            (_, Outcome::Conflict) => Err(BindError::Conflict),
            (_, outcome) => Err(unexpected(outcome).into()),
        }
    }

    /// Takes the route of a session back; nothing happens if the session no longer has it.
    pub async fn unbind(&self, jid: &FullJid, sid: Sid) -> Result<(), Unavailable> {
        self.applied(&Command::Unbind { jid: jid.clone(), sid }).await.map(drop)
    }

    /// Changes the priority of a session; `None` is not available. Returns once agreed and applied here.
    pub async fn set_priority(
        &self,
        jid: &FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> Result<(), Unavailable> {
        self.serving()?;
        match self.applied(&Command::SetPriority { jid: jid.clone(), sid, priority }).await?.1 {
            // Displaced or kicked: it must not tell anybody that it is here.
            Outcome::Stale => Err(Unavailable("the session has lost its full JID".into())),
            _ => Ok(()),
        }
    }

    /// As [`Cluster::set_priority`], of a session that is shown to nobody (XEP-0186), until that is called for it.
    ///
    /// # Errors
    /// Without agreement, where the session has lost its full JID, and where a backend of an earlier version leads.
    pub async fn hide(&self, jid: &FullJid, sid: Sid, priority: Option<i8>) -> Result<(), Unavailable> {
        self.serving()?;
        match self.applied(&Command::Hide { jid: jid.clone(), sid, priority }).await?.1 {
            Outcome::Stale => Err(Unavailable("the session has lost its full JID".into())),
            Outcome::Unreadable => Err(Unavailable("an earlier version cannot hide sessions".into())),
            _ => Ok(()),
        }
    }

    /// The session waits without a connection to be resumed (XEP-0198).
    pub async fn detach(&self, jid: &FullJid, sid: Sid) -> Result<(), Unavailable> {
        self.serving()?;
        self.applied(&Command::Detach { jid: jid.clone(), sid }).await.map(drop)
    }

    /// Goes on with a session here under a new life; false if it is no longer there to be resumed.
    pub async fn attach(&self, jid: &FullJid, sid: Sid, new_sid: Sid) -> Result<bool, Unavailable> {
        self.serving()?;
        let (node, incarnation) = self.me();
        let command = Command::Attach { jid: jid.clone(), sid, node, incarnation, new_sid };
        Ok(matches!(self.applied(&command).await?.1, Outcome::Bound { .. }))
    }

    /// Takes a full JID from whoever has it; whether somebody had it.
    pub async fn kick(&self, jid: &FullJid) -> Result<bool, Unavailable> {
        Ok(self.applied(&Command::Kick { jid: jid.clone() }).await?.1 == Outcome::Done)
    }

    /// Tells everybody that this node takes nothing new, from now on and in later incarnations of this process.
    ///
    /// # Errors
    /// Where it is not agreed on in time; it is tried on.
    pub async fn drain(&self) -> Result<(), Unavailable> {
        self.wish(|wish| wish.draining = true).await
    }

    /// Tells everybody that this node takes what is new again.
    ///
    /// # Errors
    /// As of [`Cluster::drain`].
    pub async fn undrain(&self) -> Result<(), Unavailable> {
        self.wish(|wish| wish.draining = false).await
    }

    /// Tells everybody where clients reach this node, which serves them from now on; they are sent here when they
    /// must leave another node.
    pub fn open_doors(&self, doors: Doors) {
        self.shared.wish.send_modify(|wish| wish.doors = doors);
    }

    async fn wish(&self, change: impl FnOnce(&mut Wish)) -> Result<(), Unavailable> {
        let shared = &self.shared;
        shared.wish.send_modify(change);
        let wanted = || {
            let row = shared.view.node(self.me().0)?;
            Some((row.state == NodeState::Draining) == shared.wish.borrow().draining)
        };
        let mut index = shared.hub.index();
        let shown = index.wait_for(|_| wanted() == Some(true));
        match tokio::time::timeout_at(shared.deadline(), shown).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Unavailable("the cluster has not agreed on the state of this node".into())),
        }
    }

    /// Where a client goes that may not stay here; `None` where no other frontend that is up told how clients
    /// reach it. The same key leads to the same node.
    pub fn elsewhere(&self, key: &str, direct_tls: bool) -> Option<String> {
        self.shared.view.elsewhere(key, self.me().0, direct_tls)
    }

    /// Whether clients could be served by another node.
    pub fn has_other_frontend(&self) -> bool {
        let me = self.me().0;
        let able = |row: &NodeRow| row.node != me && row.roles.frontend && row.state == NodeState::Up;
        self.shared.view.nodes().iter().any(able)
    }

    /// Why a Raft group of this node has stopped for good, if one has.
    pub fn failure(&self) -> Option<String> {
        self.shared.groups.all().iter().find_map(|group| {
            let status = group.status();
            status.failure.map(|failure| format!("group `{}`: {failure}", status.name))
        })
    }

    /// Brings living sessions back after [`Change::LeaseBack`]; returns those whose full JIDs are taken.
    pub async fn resync(&self, living: Vec<Living>) -> Result<Vec<Sid>, Unavailable> {
        self.serving()?;
        let (node, incarnation) = self.me();
        let mut refused = Vec::new();
        // One entry for each slice: no single one grows large.
        for slice in living.chunks(512) {
            let command = Command::Resync { node, incarnation, living: slice.to_vec() };
            match self.applied(&command).await? {
                (_, Outcome::Resynced { refused: more }) => refused.extend(more),
                (_, outcome) => return Err(unexpected(outcome)),
            }
        }
        Ok(refused)
    }

    /// Has a command agreed on and applied here.
    pub(crate) async fn applied(&self, command: &Command) -> Result<(u64, Outcome), Unavailable> {
        let deadline = self.shared.deadline();
        let (index, outcome) = submit(&self.batcher, command, deadline).await?;
        if !wait_index(&self.shared.hub, index, deadline).await {
            return Err(Unavailable("the route table here is behind".into()));
        }
        Ok((index, outcome))
    }

    fn serving(&self) -> Result<(), Unavailable> {
        if self.is_serving() { Ok(()) } else { Err(Unavailable("this node has no lease".into())) }
    }

    /// Waits until the table here is at least as new as the leader's was at the call; returns its index.
    pub async fn barrier(&self) -> Result<u64, Unavailable> {
        let deadline = self.shared.deadline();
        let index = self.batcher.read_index(deadline).await?;
        if wait_index(&self.shared.hub, index, deadline).await {
            Ok(index)
        } else {
            Err(Unavailable("the route table here is behind".into()))
        }
    }

    /// Digests of the table here from an index on, `most` of them, as far as they are kept: equal to those of every
    /// other node at the same index, by whatever way its table came.
    pub fn digests(&self, from: u64, most: usize) -> Vec<(u64, u128)> {
        self.shared.hub.digests(from, most)
    }

    /// Waits until the table here has applied `index`; whether it did so in time.
    pub async fn wait_index(&self, index: u64, deadline: Instant) -> bool {
        wait_index(&self.shared.hub, index, deadline).await
    }

    /// What happens from now on; subscribe before [`Cluster::ready`] to miss nothing. The queue holds 65,536
    /// changes; at the bound the table here stands still until the receiver takes some, so a receiver must never
    /// wait for the table.
    pub fn changes(&self) -> mpsc::Receiver<Change> {
        self.shared.hub.subscribe()
    }

    /// A link to another node, made at first use and shared; `None` if it has no address or is unknown.
    pub fn peer_channel(&self, node: NodeId) -> Option<Channel> {
        let address = self.shared.view.node(node)?.address;
        if address.is_empty() { None } else { self.shared.links.channel(&address).ok() }
    }

    /// Links to the backends that are here, this node's own first if it is one, draining ones last; for clients of
    /// placed services.
    pub fn backend_channels(&self) -> Vec<(NodeId, Channel)> {
        let me = self.me().0;
        let mut rows = self.shared.view.nodes();
        rows.retain(|row| row.roles.backend && row.state != NodeState::Gone);
        rows.sort_by_key(|row| (row.node != me, row.state == NodeState::Draining));
        rows.iter().filter_map(|row| Some((row.node, self.peer_channel(row.node)?))).collect()
    }

    /// The services of the cluster; others may be added before they are served with [`Cluster::serve`].
    pub fn grpc_services(&self) -> tonic::service::Routes {
        let membership = membership::Service(self.shared.clone());
        let membership = MembershipServer::new(membership)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        let mut routes = tonic::service::Routes::new(membership);
        if self.shared.kept().is_some() {
            let (shared, batcher) = (self.shared.clone(), self.batcher.clone());
            let join = join_service::Service { shared, batcher, knocks: Mutex::default() };
            routes = routes
                .add_service(JoinServer::new(join).max_decoding_message_size(join_service::REQUEST_BYTES));
        }
        if !self.shared.roles.backend {
            return routes;
        }
        let (links, groups): (Arc<Links>, Arc<Groups>) =
            (self.shared.links.clone(), self.shared.groups.clone());
        let raft = RaftServer::new(network::Service { links, groups });
        let raft = raft.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX);
        routes.add_service(raft)
    }

    /// Serves gRPC on the cluster's listener, under its certificates, until [`Cluster::stop`]. Does nothing but
    /// wait if no listener is configured. An error if this node is removed, or another process comes up as it.
    pub async fn serve(&self, services: tonic::service::Routes) -> Result<(), ClusterError> {
        let mut stopping = self.stopping.subscribe();
        let stopped = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        tokio::select! {
            served = self.serve_until(services, stopped) => served,
            ended = self.shared.hub.ended() => Err(ended.into()),
        }
    }

    async fn serve_until(
        &self,
        services: tonic::service::Routes,
        stopped: impl Future<Output = ()>,
    ) -> Result<(), ClusterError> {
        let Some(listener) = self.listener.lock().take() else {
            stopped.await;
            return Ok(());
        };
        let failed =
            |e: tonic::transport::Error| ClusterError::Config(format!("failed to serve the cluster: {e}"));
        let shared = &self.shared;
        let door = Door {
            credentials: shared.credentials.clone(),
            links: shared.links.clone(),
            view: shared.view.clone(),
            audit: shared.audit.clone(),
        };
        Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(2)))
            .http2_keepalive_timeout(Some(Duration::from_secs(3)))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_concurrent_streams(STREAMS)
            .http2_max_pending_accept_reset_streams(Some(TAKEN_BACK))
            .http2_max_local_error_reset_streams(Some(FAULTS))
            .http2_max_header_list_size(HEAD_BYTES)
            .layer(Gate(shared.links.clone()))
            .add_routes(services)
            .serve_with_incoming_shutdown(door::open(listener, door), stopped)
            .await
            .map_err(failed)
    }

    /// Facts for operators.
    pub fn status(&self) -> ClusterStatus {
        let shared = &self.shared;
        let groups: Vec<GroupStatus> = shared.groups.all().iter().map(Group::status).collect();
        let nodes = shared.view.nodes();
        let leads = |row: &&NodeRow, leader| row.member.is_some() && row.member == leader;
        let leader = match shared.routes_group() {
            Some(group) => {
                let leader = group.core().leader();
                nodes.iter().find(|row| leads(row, leader)).map(|row| row.node)
            }
            None => {
                let leader = shared.known.lock().leader.clone();
                nodes.iter().find(|row| Some(&row.address) == leader.as_ref()).map(|row| row.node)
            }
        };
        let (node, incarnation) = self.me();
        let admitted = node.0 != 0;
        let age = shared.lease.lock().age(Instant::now());
        let cluster: Option<ClusterId> = shared.links.cluster();
        ClusterStatus {
            cluster,
            node: admitted.then_some(node),
            incarnation: admitted.then_some(incarnation),
            serving: self.is_serving(),
            nodes,
            leader,
            index: shared.view.index(),
            sessions: shared.view.len(),
            groups,
            lease_age_ms: age.map(|age| age.as_millis() as u64),
            seeds: shared.known.lock().seeds.clone(),
            refusals: refusals(&shared.audit),
            certificates_issued: shared.audit.certificates_issued(),
            certificate_expires: shared.credentials.as_ref().map(|credentials| credentials.valid().1),
        }
    }

    /// Leaves: another node leads what this one led, this node is expired at once in place of after its lease, then its
    /// groups and listener stop. All of it is given up after `grace`.
    pub async fn stop(&self, grace: Duration) {
        let leave = async {
            let (groups, heirs) = (self.shared.groups.all(), self.shared.heirs(true));
            let until = Instant::now() + grace / 4;
            groups.iter().for_each(Group::stand_aside);
            join_all(groups.iter().map(|group| group.hand_over(&heirs, until))).await;
            let (node, incarnation) = self.me();
            if node.0 != 0 && self.is_serving() {
                // Before the others hold its life for over.
                self.shared.lease.lock().close();
                let command = Command::ExpireNode { node, incarnation };
                if let Err(error) = submit(&self.batcher, &command, Instant::now() + grace / 2).await {
                    tracing::warn!(%error, "left without a word: the others will find out");
                }
            }
            self.halt().await;
        };
        if tokio::time::timeout(grace, leave).await.is_err() {
            tracing::warn!("the cluster did not stop in time");
        }
    }

    /// Stops at once and tells nobody, as a crash would.
    pub async fn halt(&self) {
        self.batcher.stop();
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        self.stopping.send_replace(true);
        self.shared.lease.lock().lose(Instant::now());
        for group in self.shared.groups.all() {
            group.stop().await;
        }
        self.shared.groups.clear();
    }
}

fn unexpected(outcome: Outcome) -> Unavailable {
    match outcome {
        // The row of this node, or of the session, is no longer the one that asked.
        Outcome::Stale => Unavailable("this node's incarnation has ended".into()),
        other => Unavailable(format!("an answer that does not fit: {other:?}")),
    }
}

fn refusals(audit: &Audit) -> Vec<(&'static str, u64)> {
    Reason::ALL.into_iter().map(|reason| (reason.word(), audit.count(reason))).collect()
}

fn kept_backends(credentials: &Option<Arc<Credentials>>) -> BTreeSet<String> {
    let kept = credentials.as_ref().and_then(|credentials| credentials.kept());
    kept.map(Kept::backends).unwrap_or_default().into_iter().collect()
}

fn group_thread(name: &'static str) -> Result<Arc<GroupThread>, ClusterError> {
    let failed = |e: std::io::Error| ClusterError::Raft { group: name.into(), reason: e.to_string() };
    GroupThread::start(name).map(Arc::new).map_err(failed)
}

/// Binds the listener, so that a port in use is an error at once, and says where others reach it.
async fn listen(config: &Config) -> Result<(Option<Listener>, String), ClusterError> {
    let Some(listen) = config.listen else { return Ok((None, String::new())) };
    let refused = |e: std::io::Error| ClusterError::Config(format!("failed to listen on `{listen}`: {e}"));
    let listener = Listener::bind(listen).await.map_err(refused)?;
    let bound: SocketAddr = listener.local_addr().map_err(refused)?;
    let address = config.advertise.clone().unwrap_or_else(|| bound.to_string());
    if config.advertise.is_none() && bound.ip().is_unspecified() {
        let text = format!(
            "`cluster.listen` is `{listen}`, so `cluster.advertise` must say where others reach this node"
        );
        return Err(ClusterError::Config(text));
    }
    Ok((Some(listener), address))
}

fn check(config: &Config, deps: &Deps, address: &str) -> Result<(), ClusterError> {
    let refused = |text: &str| Err(ClusterError::Config(text.into()));
    if !deps.roles.frontend && !deps.roles.backend {
        return refused("a node needs at least one role");
    }
    if config.expect == 0 || config.expect > 5 {
        return refused("`cluster.expect` is a number of voting backends: 1, 3 or 5");
    }
    if address.is_empty() && (config.expect > 1 || !deps.roles.backend) {
        return refused("a node of a cluster needs `cluster.listen`");
    }
    if config.certificate_lifetime_s > CERTIFICATE_LIFETIME_MAX_S {
        return refused("`cluster.certificate_lifetime_s` is longer than a year");
    }
    let times = &config.times;
    if times.renew_ms * 2 > times.fence_ms || times.fence_ms >= times.expire_ms {
        return refused("the times of the lease must rise: twice `renew_ms`, `fence_ms`, `expire_ms`");
    }
    if times.fence_ms + times.quorum_age_ms >= times.expire_ms + times.election_max_ms / 2 {
        return refused("`quorum_age_ms` is too long: a leader without a quorum could keep leases alive");
    }
    Ok(())
}
