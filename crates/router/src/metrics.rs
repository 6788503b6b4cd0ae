//! Counts what became of stanzas, for the metrics of the node.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use stanza::Kind;

/// What became of a stanza.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Put into the mailbox of a session of this node.
    Delivered,
    /// Given to another node.
    Relayed,
    /// Taken by an arriving handler: stored, archived or used up.
    Taken,
    /// Answered by the server itself.
    Answered,
    /// Returned to its sender with an error.
    Bounced,
    /// Ended where the RFC says: silently ignore.
    Ignored,
}

impl Fate {
    /// All fates, in the order of their counters.
    pub const ALL: [Fate; 6] =
        [Fate::Delivered, Fate::Relayed, Fate::Taken, Fate::Answered, Fate::Bounced, Fate::Ignored];

    /// The label of the metric.
    pub fn label(self) -> &'static str {
        match self {
            Fate::Delivered => "delivered",
            Fate::Relayed => "relayed",
            Fate::Taken => "taken",
            Fate::Answered => "answered",
            Fate::Bounced => "bounced",
            Fate::Ignored => "ignored",
        }
    }
}

/// Counters since the start of the node; they only grow.
#[derive(Debug, Default)]
pub struct Counters {
    stanzas: [[AtomicU64; 6]; 3],
    /// Handlers that panicked on a stanza, which was then bounced with `internal-server-error`.
    pub panics: AtomicU64,
    /// Stanzas bounced with `resource-constraint` because a queue inside was at its bound.
    pub at_bound: AtomicU64,
    /// Deliveries that were routed anew because their session ended.
    pub rerouted: AtomicU64,
    /// Parcels given to other nodes.
    pub parcels_sent: AtomicU64,
    /// Parcels sent once more after a link broke.
    pub parcels_resent: AtomicU64,
    /// Parcels that came from other nodes, without repeated ones.
    pub parcels_received: AtomicU64,
    /// Parcels that came a second time and were not looked at.
    pub parcels_repeated: AtomicU64,
    /// Streams of other nodes that were refused or ended because one of the two incarnations is over.
    pub fenced: AtomicU64,
    /// Batches given to other nodes.
    pub batches_sent: AtomicU64,
    /// Targets refused by other nodes because their session was not there.
    pub refusals: AtomicU64,
    /// Sessions of lost nodes whose contacts this node told.
    pub lost_told: AtomicU64,
    /// Accounts made at this node.
    pub accounts_created: AtomicU64,
    /// Accounts removed, counted where the removal ended.
    pub accounts_removed: AtomicU64,
    /// Accounts disabled at this node.
    pub accounts_disabled: AtomicU64,
    /// Passwords replaced at this node.
    pub passwords_set: AtomicU64,
    /// New passwords that were refused because too many waited to be turned into keys.
    pub passwords_busy: AtomicU64,
    events: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

impl Counters {
    pub(crate) fn count(&self, kind: Kind, fate: Fate) {
        self.stanzas[kind as usize][fate as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_event(&self, module: &'static str, event: &'static str) {
        *self.events.lock().entry((module, event)).or_default() += 1;
    }

    /// What modules have counted themselves: module, event, how often.
    pub fn events(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.events.lock().iter().map(|((module, event), n)| (*module, *event, *n)).collect()
    }

    /// How many stanzas of that kind had that fate.
    pub fn stanzas(&self, kind: Kind, fate: Fate) -> u64 {
        self.stanzas[kind as usize][fate as usize].load(Ordering::Relaxed)
    }
}

/// Adds one, in any order with everything else: for counters only.
pub(crate) fn one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One lane to another node, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneFacts {
    /// The other node's id.
    pub node: u64,
    /// The incarnation of it that is meant.
    pub incarnation: u64,
    /// The lane.
    pub lane: u32,
    /// Whether the link is up.
    pub connected: bool,
    /// Stanzas that the other node has not confirmed to have: the lag of the relay.
    pub unreceived: usize,
    /// Stanzas that this node still remembers, the unreceived among them.
    pub unsettled: usize,
    /// Bytes of those.
    pub unsettled_bytes: usize,
}
