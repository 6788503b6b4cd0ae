//! What can go wrong in the cluster.

use std::{io, path::PathBuf, sync::Arc};

use crate::role::ClusterId;

/// The cluster cannot start.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClusterError {
    /// Another cluster answers at an address that this node was told to look at.
    #[error(
        "refused to start: this node belongs to cluster `{ours}`, but `{address}` belongs to cluster `{theirs}`"
    )]
    Foreign {
        /// The cluster in this node's data directory.
        ours: ClusterId,
        /// The cluster that answered.
        theirs: ClusterId,
        /// Where it answered.
        address: String,
    },
    /// A setting cannot work.
    #[error("failed to use the settings of the cluster: {0}")]
    Config(String),
    /// The data directory cannot be used.
    #[error("failed to use `{path}`: {source}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A Raft group cannot start or has stopped.
    #[error("failed to run the Raft group `{group}`: {reason}")]
    Raft {
        /// The group.
        group: String,
        /// Why.
        reason: String,
    },
    /// A certificate cannot be used.
    #[error("failed to use the certificates of the cluster: {0}")]
    Identity(String),
    /// There is no certificate for the links, and this node is not the one to make an authority.
    #[error(
        "this node has no certificate for its links: on the first node of a cluster run `rookery cluster init`; on every other one run `rookery cluster join` with a token from `rookery cluster token`, or set `cluster.join`"
    )]
    NoCertificate,
    /// This node cannot found a cluster or join one.
    #[error("{0}")]
    Join(String),
    /// Nobody answers who could let this node in.
    #[error("no node of the cluster answers: {0}")]
    Unreachable(String),
    /// An operator removed this node from its cluster.
    #[error(
        "this node was removed from its cluster, or its cluster was recovered without it: to bring the machine back, give it an empty data directory (`node.data_dir`) and a new token of `rookery cluster token`"
    )]
    Removed,
    /// The cluster was rebuilt from another node.
    #[error(
        "the cluster of this node was recovered without it (`rookery cluster recover`; it is in epoch {epoch} now), so what this node has is not part of it any more: to bring the machine back, keep its data directory (`node.data_dir`) aside, and give it an empty one and, where the cluster makes its own certificates, a new token of `rookery cluster token`"
    )]
    Recovered {
        /// The epoch that the cluster is in now.
        epoch: u64,
    },
    /// A recovery was interrupted.
    #[error(
        "a recovery of the cluster was begun at this node and is not complete: run `rookery cluster recover` again"
    )]
    Recovering,
    /// Nothing can be recovered here.
    #[error("{0}")]
    Recovery(String),
    /// Another process runs as this node.
    #[error(
        "another process came up as this node, with a copy of its data directory (`node.data_dir`), so this one ends: a node has one data directory, and each data directory has one node; give this machine an empty one and a new token"
    )]
    Superseded,
    /// The node was stopped before it was ready.
    #[error("stopped")]
    Stopped,
}

/// The cluster has no quorum, or this node has no lease.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster is unavailable: {0}")]
pub struct Unavailable(pub String);

/// A resource was not bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Another session has the full JID, and the policy does not replace it.
    #[error("the resource is taken")]
    Conflict,
    /// The cluster has no quorum, or this node has no lease.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A proposal was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The deadline passed; the proposal may still be applied later.
    #[error("the deadline passed before the proposal was acknowledged")]
    Deadline,
    /// The group has stopped, or this node has no part in it.
    #[error("the group has stopped: {0}")]
    Stopped(String),
    /// The proposal is larger than a log entry may be.
    #[error("the proposal is larger than {0} bytes")]
    TooLarge(usize),
}

impl From<ProposeError> for Unavailable {
    fn from(e: ProposeError) -> Self {
        Unavailable(e.to_string())
    }
}
