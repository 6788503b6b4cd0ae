//! Holds: while what was kept for an account is handed over, later messages to it wait behind.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jid::BareJid;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The accounts whose messages are held at this node.
///
/// A hold begins before the table shows the session that it is for, so whoever looks in this order sees it:
/// first the table, then the holds. Who finds no hold after the table may deliver by what the table said.
#[derive(Default)]
pub(crate) struct Holds {
    accounts: Mutex<HashMap<BareJid, Held>>,
    /// How many accounts: what passes while there are none asks no map.
    count: AtomicUsize,
}

struct Held {
    /// Sessions that hold it.
    holders: usize,
    opened: Arc<Notify>,
}

/// Ends one hold when it is dropped.
struct Guard {
    holds: Arc<Holds>,
    account: BareJid,
}

impl Holds {
    /// Begins a hold; it ends when what is returned is dropped.
    pub(crate) fn begin(self: &Arc<Self>, account: &BareJid) -> impl Any + Send + Sync + use<> {
        let mut accounts = self.accounts.lock();
        let fresh = || Held { holders: 0, opened: Arc::new(Notify::new()) };
        accounts.entry(account.clone()).or_insert_with(fresh).holders += 1;
        self.count.store(accounts.len(), Ordering::Release);
        Guard { holds: self.clone(), account: account.clone() }
    }

    /// Whether messages to the account have to wait.
    pub(crate) fn is_held(&self, account: &BareJid) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.accounts.lock().contains_key(account)
    }

    /// Returns when nobody holds the account.
    pub(crate) async fn opened(&self, account: &BareJid) {
        loop {
            let Some(opened) = self.accounts.lock().get(account).map(|held| held.opened.clone()) else {
                return;
            };
            let mut notified = std::pin::pin!(opened.notified());
            // Before the second look, or an end in between would wake nobody.
            notified.as_mut().enable();
            let same = |held: &Held| Arc::ptr_eq(&held.opened, &opened);
            if self.accounts.lock().get(account).is_some_and(same) {
                notified.await;
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut accounts = self.holds.accounts.lock();
        let Some(held) = accounts.get_mut(&self.account) else { return };
        held.holders -= 1;
        if held.holders == 0 {
            held.opened.notify_waiters();
            accounts.remove(&self.account);
            self.holds.count.store(accounts.len(), Ordering::Release);
        }
    }
}
