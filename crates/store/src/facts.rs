//! Counters and latencies of store calls, kept as plain atomics for whoever exports them.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use parking_lot::Mutex;

use crate::engine::{StoreError, Table};

/// Which call of the engine is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    Scan,
    Commit,
}

/// Upper bounds of the latency buckets, in seconds; one bucket more counts what is slower.
pub const BUCKETS_S: [f64; 14] =
    [0.00001, 0.000025, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS_S.len() + 1],
    sum_ns: AtomicU64,
    errors: AtomicU64,
}

/// What a [`Latency`] held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencySnapshot {
    /// Calls per bucket, not cumulative; the last one has no upper bound.
    pub buckets: [u64; BUCKETS_S.len() + 1],
    /// All calls, failed ones too.
    pub count: u64,
    /// Time of all calls together, in seconds.
    pub sum_s: f64,
    /// Calls that ended in an error.
    pub errors: u64,
}

impl Latency {
    pub fn record(&self, took: Duration, failed: bool) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS_S.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        self.errors.fetch_add(u64::from(failed), Relaxed);
    }

    pub fn snapshot(&self) -> LatencySnapshot {
        let buckets = std::array::from_fn(|i| self.buckets[i].load(Relaxed));
        LatencySnapshot {
            count: buckets.iter().sum(),
            buckets,
            sum_s: self.sum_ns.load(Relaxed) as f64 / 1e9,
            errors: self.errors.load(Relaxed),
        }
    }
}

/// What the calls through a [`crate::Store`] cost and how they ended.
#[derive(Debug, Default)]
pub struct Facts {
    get: Latency,
    scan: Latency,
    commit: Latency,
    reads: Mutex<BTreeMap<&'static str, u64>>,
    full: AtomicU64,
    corrupt: AtomicU64,
    deadline: AtomicU64,
    unavailable: AtomicU64,
}

/// What [`Facts`] held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct FactsSnapshot {
    pub get: LatencySnapshot,
    pub scan: LatencySnapshot,
    pub commit: LatencySnapshot,
    /// Gets and scans of each table that was ever read, and so by whom: a table belongs to one module.
    pub reads: BTreeMap<&'static str, u64>,
    /// Calls refused because the disk is full.
    pub full: u64,
    /// Calls that met a corrupt record.
    pub corrupt: u64,
    /// Calls whose deadline passed.
    pub deadline: u64,
    /// Calls that found no engine, or no quorum.
    pub unavailable: u64,
}

impl Facts {
    pub fn record(&self, call: Call, took: Duration, error: Option<&StoreError>) {
        let latency = match call {
            Call::Get => &self.get,
            Call::Scan => &self.scan,
            Call::Commit => &self.commit,
        };
        latency.record(took, error.is_some());
        let counter = match error {
            Some(StoreError::Full) => &self.full,
            Some(StoreError::Corrupt { .. }) => &self.corrupt,
            Some(StoreError::Deadline) => &self.deadline,
            Some(StoreError::Unavailable { .. }) => &self.unavailable,
            _ => return,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Counts a get or a scan of a table.
    pub fn read(&self, table: Table) {
        *self.reads.lock().entry(table.0).or_default() += 1;
    }

    pub fn snapshot(&self) -> FactsSnapshot {
        FactsSnapshot {
            get: self.get.snapshot(),
            scan: self.scan.snapshot(),
            commit: self.commit.snapshot(),
            reads: self.reads.lock().clone(),
            full: self.full.load(Relaxed),
            corrupt: self.corrupt.load(Relaxed),
            deadline: self.deadline.load(Relaxed),
            unavailable: self.unavailable.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_in_the_bucket_of_its_duration() {
        let facts = Facts::default();
        facts.record(Call::Get, Duration::from_micros(7), None);
        facts.record(Call::Get, Duration::from_secs(9), Some(&StoreError::Deadline));
        facts.read(Table("roster"));
        facts.read(Table("roster"));
        let seen = facts.snapshot();
        assert_eq!((seen.get.buckets[0], seen.get.buckets[BUCKETS_S.len()]), (1, 1));
        assert_eq!((seen.get.count, seen.get.errors, seen.deadline, seen.scan.count), (2, 1, 1, 0));
        assert_eq!(seen.reads, BTreeMap::from([("roster", 2)]));
        assert!((seen.get.sum_s - 9.000_007).abs() < 1e-9);
    }
}
