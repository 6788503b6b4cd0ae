//! Who is here and who is where: discovery, membership, roles, Raft and the route table.

pub mod changes;
pub mod cluster;
pub mod config;
pub mod error;
pub mod raft;
mod batch;
pub mod identity;
mod links;
pub mod role;
pub mod routes;
pub mod table;

pub use changes::{Change, LostSession};
pub use cluster::{Bound, Cluster, ClusterStatus, Deps};
pub use config::{Config, Discovery, Times, TlsFiles};
pub use error::{BindError, ClusterError, ProposeError, Unavailable};
pub use raft::{
    group::{Group, GroupStatus, Proposed},
    machine::{Committed, Machine, SnapshotWriter},
};
pub use role::{ClusterId, Incarnation, MemberId, NodeId, Roles, Sid};
pub use routes::{ConflictPolicy, Living, Loss, NodeRow, NodeState, Routes, Row};
pub use table::TableView;
