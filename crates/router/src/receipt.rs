//! Receipts: how the node that sent a stanza learns that it may forget it.

use std::sync::Arc;

/// Held by whoever still answers for a stanza. When the last clone of it is gone, the stanza is *settled*:
/// written to its client, stored, answered, bounced or legally ignored, and the node that relayed it here
/// may forget it. A stanza that came from this node has an empty receipt.
#[derive(Clone, Default)]
pub struct Receipt(Option<Arc<Settling>>);

/// Told when a stanza is settled.
pub(crate) trait Settle: Send + Sync {
    fn settle(&self, number: u64);

    /// The incarnation of this node that the stanza was sent to.
    fn incarnation(&self) -> u64;

    /// The node that sent it.
    fn node(&self) -> u64;
}

struct Settling {
    number: u64,
    told: Arc<dyn Settle>,
}

impl Receipt {
    /// A receipt that nobody waits for.
    pub const fn none() -> Receipt {
        Receipt(None)
    }

    pub(crate) fn new(number: u64, told: Arc<dyn Settle>) -> Receipt {
        Receipt(Some(Arc::new(Settling { number, told })))
    }

    /// Whether another node sent the stanza to an earlier incarnation of this one. That node routes it anew, so
    /// here it is void.
    pub(crate) fn is_before(&self, incarnation: u64) -> bool {
        self.0.as_ref().is_some_and(|settling| settling.told.incarnation() < incarnation)
    }

    /// The node that sent the stanza here; `None`: this one.
    pub(crate) fn node(&self) -> Option<u64> {
        self.0.as_ref().map(|settling| settling.told.node())
    }

    /// This holder is done with the stanza. The same as dropping it; the name says why.
    pub fn settle(self) {}
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.told.settle(self.number);
    }
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(settling) => write!(f, "Receipt({})", settling.number),
            None => f.write_str("Receipt(-)"),
        }
    }
}
