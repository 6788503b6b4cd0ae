//! What this crate reads from disks and other nodes, a function each: the doors of the fuzz targets.

use crate::{
    raft::{
        log, network,
        wal::{self, Kind},
    },
    replica::wire,
};

/// A segment of a log with its checksums; how many records were good.
pub fn log_segment(bytes: &[u8]) -> usize {
    let mut at = 0;
    let records = std::iter::from_fn(|| {
        let (kind, payload, next) = wal::record_at(bytes, at)?;
        at = next;
        Some((kind, payload))
    });
    log::replay(records)
}

/// Records of a log, each with the byte of its kind, without checksums; how many were taken.
pub fn log_records<'a>(records: impl Iterator<Item = (u8, &'a [u8])>) -> usize {
    log::replay(records.filter_map(|(kind, payload)| Some((Kind::of(kind)?, payload))))
}

/// The body of a call of another member.
pub fn raft_calls(body: &[u8]) {
    network::read_calls(body);
}

/// A command of the replicated store, or what a backend asks or answers about it.
pub fn store_messages(body: &[u8]) {
    wire::read_messages(body);
}
