//! What happened in a run, in the order in which it did, and a digest of it.

use std::sync::Arc;

use parking_lot::Mutex;

/// The number of a node's process, never used twice in a run.
pub type Process = u64;
/// One life of one session.
pub type Sid = u128;
/// A node as the cluster names it, with its incarnation.
pub type Life = (u64, u64);

/// Who has a full JID, as a node's table says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub jid: String,
    pub sid: Sid,
    pub life: Life,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process began on a host.
    Started { host: usize, process: Process },
    /// It ended without a word, with the power of its machine or alone.
    Killed { host: usize, process: Process, power: bool },
    /// It left in order, or by an error of its own.
    Stopped { host: usize, process: Process, why: String },
    /// A fault began or ended; only for the reader.
    Fault(String),
    /// A process noticed that its lease is gone.
    Fenced { process: Process },
    /// It has a lease again, and brings its sessions back.
    Back { process: Process, life: Life },
    /// A process heard that a life of a node is over.
    Gone { by: Process, life: Life },
    /// A table says that a life of a node is over, whoever was told of it: what is read from a log is told to nobody.
    Over { life: Life },
    /// A session was asked for.
    BindAsked { sid: Sid, jid: String, process: Process },
    /// It was given and acknowledged.
    Bound { sid: Sid, index: u64, life: Life },
    /// It was refused, or nobody knows.
    BindFailed { sid: Sid },
    /// It was brought back under a new life of its node.
    BroughtBack { sid: Sid, life: Life },
    /// A session is about to say that it is available.
    Announced { sid: Sid },
    /// A session is about to be taken back.
    UnbindAsked { sid: Sid },
    /// A session ended at its node.
    Ended { sid: Sid, why: String },
    /// From now on a session may deliver, or no longer.
    Serves { sid: Sid, serves: bool },
    /// A message was taken from a client.
    Accepted { id: u64, from: Sid, to: String, process: Process },
    /// It was written to a client.
    Delivered { id: u64, to: Sid, life: Life, process: Process },
    /// It came back to its sender.
    Bounced { id: u64, to: Sid },
    /// A client was told of the presence of a full JID.
    Told { to: Sid, of: String, available: bool },
    /// A value was to be kept.
    KeepAsked { value: u64 },
    /// It was acknowledged.
    Kept { value: u64, index: u64 },
    /// The table of a process at an index.
    Table { process: Process, index: u64, routes: Arc<Vec<Route>> },
    /// All that was done to heal is done; nothing breaks from here on.
    Healed,
    /// At the end: the sessions that live, as their nodes know.
    Living { routes: Vec<Route> },
    /// At the end: so many messages were dropped by a process as errors to sessions that are no more.
    Ignored { process: Process, messages: u64 },
    /// At the end: what a process has kept.
    Ledger { process: Process, values: Arc<Vec<u64>> },
    /// At the end, with a reason where the run did not come to it.
    End { failure: Option<String> },
}

/// An event with its time in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dated {
    pub at: u64,
    pub event: Event,
}

/// What happened so far; clones share it.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    now: u64,
    events: Vec<Dated>,
}

impl History {
    pub fn push(&self, event: Event) {
        let mut inner = self.0.lock();
        let at = inner.now;
        inner.events.push(Dated { at, event });
    }

    pub fn set_now(&self, now: u64) {
        self.0.lock().now = now;
    }

    pub fn events(&self) -> Vec<Dated> {
        self.0.lock().events.clone()
    }
}

/// FNV-1a over all events: two runs with the same digest were the same.
pub fn digest(events: &[Dated]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for dated in events {
        for byte in format!("{dated:?}").bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}
