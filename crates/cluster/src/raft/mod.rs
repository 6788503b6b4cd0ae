//! Agreement: the only place where openraft's types are seen.

pub(crate) mod begin;
pub mod group;
pub(crate) mod group_thread;
mod handover;
pub(crate) mod log;
pub mod machine;
mod machine_thread;
pub(crate) mod network;
mod runtime;
mod state;
pub(crate) mod survivor;
pub(crate) mod types;
pub(crate) mod wal;
#[cfg(test)]
mod wire_tests;
