//! Agreement: the only place where openraft's types are seen.

pub mod group;
pub(crate) mod group_thread;
pub(crate) mod log;
pub mod machine;
mod machine_thread;
pub(crate) mod network;
mod state;
mod types;
pub(crate) mod wal;
