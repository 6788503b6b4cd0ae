//! The cluster as the rest of the server sees it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jid::FullJid;
use tokio::{sync::mpsc, time::Instant};
use tonic::transport::Channel;

use crate::{
    changes::Change,
    config::Config,
    error::{BindError, ClusterError, Unavailable},
    raft::{
        group::{Group, GroupStatus},
        machine::Machine,
    },
    role::{ClusterId, Incarnation, NodeId, Roles, Sid},
    routes::{ConflictPolicy, Living, NodeRow},
    table::TableView,
};

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
}

/// This node's part in the cluster.
pub struct Cluster {
    table: Arc<TableView>,
}

impl Cluster {
    /// Opens what is kept on disk and begins to look for the others; returns at once. Mount
    /// [`Cluster::grpc_services`] then, and wait for [`Cluster::ready`].
    pub async fn start(_config: Config, _deps: Deps) -> Result<Arc<Cluster>, ClusterError> {
        Err(ClusterError::Stopped)
    }

    /// Waits until this node is admitted, has the route table and holds its lease; fails when it must not start.
    pub async fn ready(&self) -> Result<(), ClusterError> {
        Err(ClusterError::Stopped)
    }

    /// Runs a Raft group of the given name on this backend, with the voters of the group `routes`. Call it right
    /// after [`Cluster::start`]; proposals wait until the cluster is formed.
    pub async fn open_group(
        &self,
        _name: &'static str,
        _machine: Box<dyn Machine>,
    ) -> Result<Group, ClusterError> {
        Err(ClusterError::Stopped)
    }

    /// This node and its incarnation; zero before it is admitted.
    pub fn me(&self) -> (NodeId, Incarnation) {
        (NodeId::default(), Incarnation::default())
    }

    /// What this node does.
    pub fn roles(&self) -> Roles {
        Roles::default()
    }

    /// Whether this node holds its lease; without it, it must deliver nothing and bind nothing.
    pub fn is_serving(&self) -> bool {
        false
    }

    /// This node's copy of the route table.
    pub fn routes(&self) -> Arc<TableView> {
        self.table.clone()
    }

    /// Binds a full JID to a session of this node; returns once that is agreed and applied here.
    pub async fn bind(&self, _jid: &FullJid, _sid: Sid, _policy: ConflictPolicy) -> Result<Bound, BindError> {
        Err(Unavailable("not started".into()).into())
    }

    /// Takes the route of a session back; nothing happens if the session no longer has it.
    pub async fn unbind(&self, _jid: &FullJid, _sid: Sid) -> Result<(), Unavailable> {
        Err(Unavailable("not started".into()))
    }

    /// Changes the priority of a session; `None` is not available. Returns once agreed and applied here.
    pub async fn set_priority(
        &self,
        _jid: &FullJid,
        _sid: Sid,
        _priority: Option<i8>,
    ) -> Result<(), Unavailable> {
        Err(Unavailable("not started".into()))
    }

    /// Takes a full JID from whoever has it; whether somebody had it.
    pub async fn kick(&self, _jid: &FullJid) -> Result<bool, Unavailable> {
        Err(Unavailable("not started".into()))
    }

    /// Brings living sessions back after [`Change::LeaseBack`]; returns those whose full JIDs are taken.
    pub async fn resync(&self, _living: Vec<Living>) -> Result<Vec<Sid>, Unavailable> {
        Err(Unavailable("not started".into()))
    }

    /// Waits until the table here is at least as new as the leader's was at the call; returns its index.
    pub async fn barrier(&self) -> Result<u64, Unavailable> {
        Err(Unavailable("not started".into()))
    }

    /// Waits until the table here has applied `index`; whether it did so in time.
    pub async fn wait_index(&self, _index: u64, _deadline: Instant) -> bool {
        false
    }

    /// What happens from now on. The queue holds 65,536 changes; at the bound the table here stands still until
    /// the receiver takes some, so a receiver must never wait for the table.
    pub fn changes(&self) -> mpsc::Receiver<Change> {
        mpsc::channel(1).1
    }

    /// A link to another node, made at first use and shared; `None` if it has no address or is unknown.
    pub fn peer_channel(&self, _node: NodeId) -> Option<Channel> {
        None
    }

    /// Links to the backends that are up, this node's own first if it is one; for clients of placed services.
    pub fn backend_channels(&self) -> Vec<(NodeId, Channel)> {
        Vec::new()
    }

    /// The services of the cluster; others may be added before they are served with [`Cluster::serve`].
    pub fn grpc_services(&self) -> tonic::service::Routes {
        tonic::service::Routes::default()
    }

    /// Serves gRPC on the cluster's listener, under its certificates, until [`Cluster::stop`]. Does nothing but
    /// wait if no listener is configured.
    pub async fn serve(&self, _services: tonic::service::Routes) -> Result<(), ClusterError> {
        Err(ClusterError::Stopped)
    }

    /// Facts for operators.
    pub fn status(&self) -> ClusterStatus {
        ClusterStatus::default()
    }

    /// Leaves in order: stops renewing, stops the groups and the listener, within `grace`.
    pub async fn stop(&self, _grace: Duration) {}
}
