//! What one member has of a group, read while the node is stopped, and a new beginning of the group from it.

use std::{io, io::Read, path::Path};

use bytes::Bytes;
use openraft::{EntryPayload, RaftLogReader, storage::RaftLogStorage};

use super::{
    begin,
    log::Log,
    machine::{Committed, SnapshotWriter},
    state,
    types::{Mark, Membership, Vote},
};
use crate::role::MemberId;

/// How many entries are read at once.
const SLICE: u64 = 256;

/// The log of a group on a stopped node.
pub(crate) struct Survivor {
    log: Log,
    /// The newest term that it knows.
    pub(crate) term: u64,
    /// Its last entry; 0 if it has none.
    pub(crate) last: u64,
}

impl Survivor {
    /// Opens the log below the folder of a group.
    pub(crate) async fn open(name: &str, dir: &Path) -> io::Result<Survivor> {
        let mut log = Log::open(name, &dir.join("log"))?;
        let state = log.get_log_state().await.map_err(io::Error::other)?;
        let vote = log.read_vote().await.map_err(io::Error::other)?;
        let term = vote.map_or(0, |vote| vote.leader_id().term);
        let last = state.last_log_id;
        let (term, last) = (last.map_or(0, |id| id.leader_id.term).max(term), last.map_or(0, |id| id.index));
        Ok(Survivor { log, term, last })
    }

    /// The newest snapshot below the folder of a group: the index that it covers, and its bytes.
    pub(crate) fn snapshot(dir: &Path) -> io::Result<Option<(u64, Vec<u8>)>> {
        let dir = dir.join("state");
        if !dir.exists() {
            return Ok(None);
        }
        let Some((meta, mut file)) = state::newest(&dir)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some((meta.last_log_id.map_or(0, |id| id.index), bytes)))
    }

    /// Gives every entry behind `from`, in slices and in order. Those that no majority is known to have are among
    /// them: somebody may have been told that they are safe.
    pub(crate) async fn replay(
        &mut self,
        from: u64,
        mut apply: impl FnMut(Vec<Committed>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut next = from + 1;
        while next <= self.last {
            let end = (next + SLICE).min(self.last + 1);
            let entries = self.log.limited_get_log_entries(next, end).await.map_err(io::Error::other)?;
            let (Some(first), Some(newest)) = (entries.first(), entries.last()) else {
                return Err(hole(next));
            };
            if first.log_id.index != next {
                return Err(hole(next));
            }
            next = newest.log_id.index + 1;
            let committed = entries.into_iter().map(|entry| {
                // Only the place counts: the members are others from the next entry on.
                let mark = Mark { log_id: Some(entry.log_id), membership: Membership::default() };
                let payloads = match entry.payload {
                    EntryPayload::Normal(payloads) => payloads.0,
                    EntryPayload::Blank | EntryPayload::Membership(_) => Vec::new(),
                };
                Committed { index: entry.log_id.index, mark: mark.encode(), payloads }
            });
            apply(committed.collect())?;
        }
        Ok(())
    }
}

/// What is to stand behind a mark that a machine keeps: the index of the entry.
pub(crate) fn index_of(mark: &[u8]) -> Option<u64> {
    Mark::decode(mark).map(|mark| mark.index())
}

/// The place at which a group begins anew, of one member.
pub(crate) fn place(term: u64, index: u64, member: MemberId, address: &str) -> Bytes {
    begin::place(term, index, member, address).encode()
}

/// Writes a log without entries, whose next term is behind `term`, and a snapshot at `place` if the machine keeps none
/// itself.
pub(crate) async fn begin(
    name: &str,
    dir: &Path,
    (term, member): (u64, MemberId),
    snapshot: Option<(&[u8], SnapshotWriter)>,
) -> io::Result<()> {
    let mut log = Log::open(name, &dir.join("log"))?;
    log.save_vote(&Vote::new(term, member.0)).await.map_err(io::Error::other)?;
    let state_dir = dir.join("state");
    std::fs::create_dir_all(&state_dir)?;
    if let Some((place, writer)) = snapshot {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a place that cannot be read");
        let place = Mark::decode(place).ok_or_else(damaged)?;
        state::keep(&state_dir, &state::meta_of(&place), writer)?;
    }
    Ok(())
}

fn hole(index: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log has no entry {index}"))
}
