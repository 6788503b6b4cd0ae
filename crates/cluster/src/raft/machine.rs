//! The contract between a Raft group and what it agrees on: opaque payloads in, opaque replies out.

use std::io::{self, Read, Write};

use bytes::Bytes;

/// One committed log entry.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The index of the entry in the log.
    pub index: u64,
    /// The place in the log after this entry, opaque to the machine: a durable machine keeps the newest one in
    /// the same atomic write as the effects of the entry, and gives it back by [`Machine::mark`].
    pub mark: Bytes,
    /// The proposals of the entry, in order; none in an entry that is Raft's own, whose mark counts all the same.
    pub payloads: Vec<Bytes>,
}

/// Writes a frozen state, on a thread where it may block.
pub type SnapshotWriter = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// The answer to bytes that cannot be read.
pub type Refusal = fn(&[u8]) -> Option<Bytes>;

/// What a Raft group agrees on.
///
/// It lives on a thread of its own, where it may block, but for payloads that [`Machine::is_quick`]. It must be total: a payload that makes one replica
/// panic makes all of them panic.
pub trait Machine: Send + 'static {
    /// Whether the machine keeps its state, with the mark, across a restart. Then it is its own snapshot: one is
    /// only written out when a follower needs it.
    fn is_durable(&self) -> bool {
        false
    }

    /// The mark of the newest entry that is kept here across a restart; `None` if nothing is kept, and then
    /// the group brings the state back from its newest snapshot and log.
    fn mark(&self) -> Option<Bytes> {
        None
    }

    /// Whether to apply this payload now takes microseconds and waits for nothing: then the entry may be applied
    /// by the task that brings it, together with at most 63 others, in place of a trip to the thread.
    fn is_quick(&self, _payload: &Bytes) -> bool {
        false
    }

    /// Says of bytes, without the state, what the machine would answer because it cannot read them; `None` if it can.
    /// Such bytes are answered when another node proposes them: in the log they would be in everybody's way.
    fn refusal(&self) -> Refusal {
        |_| None
    }

    /// Applies committed entries in order; the answer has one list per entry with one reply per payload.
    ///
    /// An error says that the disk failed, and stops the group on this node.
    fn apply(&mut self, entries: &[Committed]) -> io::Result<Vec<Vec<Bytes>>>;

    /// Freezes the state as it is now. For a durable machine it is called when a follower needs it; for one
    /// that keeps nothing, also each time the log has grown enough.
    fn snapshot(&mut self) -> io::Result<SnapshotWriter>;

    /// Replaces the state by a snapshot, with the mark that goes with it.
    fn install(&mut self, mark: Bytes, snapshot: &mut dyn Read) -> io::Result<()>;

    /// Makes all that was applied survive a power cut; the log is not purged before this returned.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
