//! Receipts: how the node that sent a stanza learns that it may forget it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use hooks::Kept;
use parking_lot::Mutex;
use tokio::runtime::Handle;

/// Held by whoever still answers for a stanza. When the last clone of it is gone, the stanza is *settled*:
/// written to its client, stored, answered, bounced or legally ignored, and the node that relayed it here
/// may forget it. A stanza that came from this node has an empty receipt, or one that tells who has a copy of it in the
/// store.
#[derive(Clone, Default)]
pub struct Receipt(Option<Arc<Settling>>);

/// Told when a stanza is settled.
pub(crate) trait Settle: Send + Sync {
    fn settle(&self, number: u64);

    /// The incarnation of this node that another node sent the stanza to.
    fn incarnation(&self) -> Option<u64>;

    /// The node that sent it; `None`: this one.
    fn node(&self) -> Option<u64>;

    /// What is to be done in place of routing the stanza anew, if the store has a copy of it: then it counts as settled.
    fn returned(&self) -> Option<BoxFuture<'static, ()>> {
        None
    }
}

/// Copies in the store of stanzas that are on their way: a node has come to rest once there are none.
#[derive(Clone, Default)]
pub(crate) struct Copies(Arc<AtomicUsize>);

impl Copies {
    pub(crate) fn len(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// The receipt of a stanza that the store has a copy of; what is to be done then is done on `runtime`.
    pub(crate) fn receipt(&self, kept: Arc<dyn Kept>, runtime: Handle) -> Receipt {
        self.0.fetch_add(1, Ordering::AcqRel);
        let counted = Counted(self.0.clone());
        Receipt::new(0, Arc::new(Copy { kept, runtime, untold: Mutex::new(Some(counted)) }))
    }
}

/// One of them.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Tells whoever has a copy in the store what became of the stanza.
struct Copy {
    kept: Arc<dyn Kept>,
    runtime: Handle,
    /// Until it was told.
    untold: Mutex<Option<Counted>>,
}

impl Settle for Copy {
    fn settle(&self, _: u64) {
        let Some(counted) = self.untold.lock().take() else { return };
        let written = self.kept.written();
        self.runtime.spawn(async move {
            written.await;
            drop(counted);
        });
    }

    fn incarnation(&self) -> Option<u64> {
        None
    }

    fn node(&self) -> Option<u64> {
        None
    }

    fn returned(&self) -> Option<BoxFuture<'static, ()>> {
        let counted = self.untold.lock().take()?;
        let returned = self.kept.returned();
        Some(Box::pin(async move {
            returned.await;
            drop(counted);
        }))
    }
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

    /// What is to be done in place of routing the stanza anew, where the store has a copy of it.
    pub(crate) fn returned(&self) -> Option<BoxFuture<'static, ()>> {
        self.0.as_ref()?.told.returned()
    }

    /// Whether another node sent the stanza to an earlier incarnation of this one. That node routes it anew, so
    /// here it is void.
    pub(crate) fn is_before(&self, incarnation: u64) -> bool {
        self.0
            .as_ref()
            .and_then(|settling| settling.told.incarnation())
            .is_some_and(|sent| sent < incarnation)
    }

    /// The node that sent the stanza here; `None`: this one.
    pub(crate) fn node(&self) -> Option<u64> {
        self.0.as_ref().and_then(|settling| settling.told.node())
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
