//! Who is here and who is where: discovery, membership, roles, Raft and the route table.

// What the rest of the server uses.
pub mod cluster;

pub mod changes;
pub mod config;
pub mod error;
pub mod role;

// The route table.
pub mod routes;
mod accounts;
mod written;
pub mod table;
pub mod tally;
pub mod trust;

mod hub;
pub mod placement;

// How nodes find each other, belong together and stay.
pub mod discovery;
mod formation;

mod birth;
mod life;
pub mod recovery;

mod keeper;
mod lease;

mod feed;
mod membership;

// What they agree by, and what they keep.
pub mod raft;
pub mod replica;

#[doc(hidden)]
pub mod readers;

mod batch;
#[cfg(test)]
mod noise;
mod links;
mod seam;
#[cfg(feature = "simulation")]
pub mod simulation;
mod shared;

// Who may come in, and who may say what.
mod admission;
pub mod identity;

pub use admission::{AdmissionError, NewToken};
pub use changes::{Change, LostSession};
pub use cluster::{Bound, Cluster, ClusterStatus, Deps};
pub use config::{Config, Discovery, Join, Times, TlsFiles};
pub use error::{BindError, ClusterError, ProposeError, Unavailable};
pub use raft::{
    group::{Group, GroupStatus, Proposed},
    machine::{Committed, Machine, Refusal, SnapshotWriter},
};
pub use role::{ClusterId, Incarnation, MemberId, NodeId, Roles, Sid};
pub use routes::{ConflictPolicy, Doors, Living, Loss, NodeRow, NodeState, Routes, Row};
pub use table::TableView;
pub use tally::DIGEST_FORMAT;
pub use trust::{TokenFault, TokenRow, TokenState};
