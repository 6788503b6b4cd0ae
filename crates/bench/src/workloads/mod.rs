//! The workloads, a file each.

pub mod archive;
pub mod chat;
pub mod churn;
pub mod disco;
pub mod idle;
pub mod login;
pub mod offline;
pub mod ping;
pub mod presence;
pub mod roster;

mod asking;
mod stage;

pub use stage::Stage;
