//! The replicated store: every backend keeps all of it in sled, equal by the Raft group `data`.
//!
//! - [`open`]: the engine that fits this node's roles, for `node` to build its `Store` on.
//! - `engine`: the engine of a backend: a commit is a proposal, a read waits behind a read index.
//! - `remote`: the engine of a frontend: asks any backend and turns to the next when one dies.
//! - `backend`: the engine of a backend's own sessions, which asks the others when its replica fails.
//! - `service`: what a backend answers to frontends.
//! - `machine`: committed commands become records, in one atomic write with the place in the log.
//! - `wire`: commands, answers and failures as messages of `proto/store.proto`.

mod backend;
mod engine;
mod machine;
mod open;
mod remote;
mod service;
pub(crate) mod wire;

#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod tests;

pub use engine::Replica;
pub(crate) use machine::Offline;
pub use open::{Opened, open};
pub use remote::Remote;
