//! What is kept: typed, versioned tables over an engine that can be exchanged.
//!
//! Read in this order:
//! - [`engine`]: partitions, tables, batches and the trait that every engine implements.
//! - [`record`]: how a value becomes bytes: a schema version in front, a chain of migrations behind.
//! - [`table`]: [`Store`], the typed access that the rest of the server uses.
//! - [`accounts`]: who may log in, with SCRAM keys and never a password.
//! - [`facts`]: counters and latencies of store calls.
//! - [`engines`]: `memory` for tests, `sled` for everything embedded.
//! - `conformance` (a feature, for tests): one suite of promises that is run on every engine.

pub mod accounts;
mod aside;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod engine;
pub mod engines;
pub mod facts;
pub mod record;
pub mod table;

pub use accounts::{Account, AccountError, AccountState, Accounts, Credentials, ScramKeys};
pub use engine::{
    Batch, BoxFuture, Committed, Engine, Expect, Key, Op, Partition, Range, Record, StoreError, Table,
    Version,
};
pub use facts::{Facts, FactsSnapshot, LatencySnapshot};
pub use record::Stored;
pub use table::{Store, Versioned, discard};
