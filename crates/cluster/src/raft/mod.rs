//! Agreement: the only place where openraft's types are seen.

pub mod group;
pub mod machine;
mod machine_thread;
mod state;
mod log;
mod wal;
pub(crate) mod network;
mod types;
