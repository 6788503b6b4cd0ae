//! Queues of accounts: what waits, in order, while a handler of its receiver awaits the store.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use jid::BareJid;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::peer::key;
use crate::router::Router;
use crate::transit::Transit;

/// A piece of work for one account.
pub(crate) enum Work {
    /// A stanza that has not begun to arrive.
    Stanza(Box<Transit>),
    /// A stanza whose arrival has begun and awaits something.
    Begun(BoxFuture<'static, ()>),
}

/// The queue of one account; it exists while somebody works on it.
#[derive(Default)]
struct Queue {
    /// What was on its way already and came back: older than all that waits.
    returned: VecDeque<Work>,
    waiting: VecDeque<Work>,
}

/// The queues of all accounts that have one now.
pub(crate) struct Queues {
    shards: Vec<Mutex<HashMap<BareJid, Queue>>>,
    /// How many there are; zero on a server whose handlers await nothing, so the common path asks no map.
    count: AtomicUsize,
    bound: usize,
    /// One for each queue that is worked on.
    pub turns: Semaphore,
}

/// Locks that the queues are spread over.
const SHARDS: usize = 16;

/// What became of a stanza at the door of its receiver's queue.
pub(crate) enum Entered {
    /// Nobody is before it.
    Free(Transit),
    /// It waits for its turn.
    Waits,
    /// The queue is at its bound.
    Full(Transit),
}

impl Queues {
    pub(crate) fn new(bound: usize, at_once: usize) -> Queues {
        Queues {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            count: AtomicUsize::new(0),
            bound,
            turns: Semaphore::new(at_once.max(1)),
        }
    }

    fn shard(&self, account: &BareJid) -> &Mutex<HashMap<BareJid, Queue>> {
        &self.shards[key(account.as_str()) as usize % SHARDS]
    }

    /// Queues of accounts that exist now.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether something waits for the account.
    pub(crate) fn is_busy(&self, account: &BareJid) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.shard(account).lock().contains_key(account)
    }

    /// Lets a stanza pass, or puts it behind what waits for the same account.
    pub(crate) fn enter(&self, account: &BareJid, transit: Transit) -> Entered {
        if self.count.load(Ordering::Acquire) == 0 {
            return Entered::Free(transit);
        }
        match self.shard(account).lock().get_mut(account) {
            None => Entered::Free(transit),
            Some(queue) if queue.waiting.len() >= self.bound => Entered::Full(transit),
            Some(queue) => {
                queue.waiting.push_back(Work::Stanza(Box::new(transit)));
                Entered::Waits
            }
        }
    }

    /// Puts work behind all that waits. Not bounded: callers bring what was counted elsewhere.
    pub(crate) fn append(
        &self,
        router: &Arc<Router>,
        account: &BareJid,
        work: impl IntoIterator<Item = Work>,
    ) {
        self.push(router, account, work, false);
    }

    /// Puts back what was on its way already, before all that waits. Not bounded here: it was counted in a
    /// mailbox or a window.
    pub(crate) fn give_back(
        &self,
        router: &Arc<Router>,
        account: &BareJid,
        work: impl IntoIterator<Item = Work>,
    ) {
        self.push(router, account, work, true);
    }

    fn push(
        &self,
        router: &Arc<Router>,
        account: &BareJid,
        work: impl IntoIterator<Item = Work>,
        returned: bool,
    ) {
        let mut work = work.into_iter().peekable();
        if work.peek().is_none() {
            return;
        }
        let mut shard = self.shard(account).lock();
        let begin = !shard.contains_key(account);
        if begin {
            self.count.fetch_add(1, Ordering::AcqRel);
        }
        let queue = shard.entry(account.clone()).or_default();
        if returned {
            queue.returned.extend(work)
        } else {
            queue.waiting.extend(work)
        }
        drop(shard);
        if begin {
            let router = router.clone();
            let account = account.clone();
            router.runtime.clone().spawn(async move { run(router, account).await });
        }
    }

    /// The oldest work of an account; without any the queue is gone and later stanzas pass freely.
    fn next(&self, account: &BareJid) -> Option<Work> {
        let mut shard = self.shard(account).lock();
        let Entry::Occupied(mut entry) = shard.entry(account.clone()) else { return None };
        let queue = entry.get_mut();
        let work = queue.returned.pop_front().or_else(|| queue.waiting.pop_front());
        if work.is_none() {
            entry.remove();
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        work
    }
}

/// Works on the queue of one account until it is empty, one piece after the other.
async fn run(router: Arc<Router>, account: BareJid) {
    while let Some(work) = router.queues.next(&account) {
        // Caught, or the queue would stand for ever: what a handler does is caught where it is called, with
        // its stanza in hand; only a mistake of the router itself comes here.
        if AssertUnwindSafe(one(&router, &account, work)).catch_unwind().await.is_err() {
            tracing::error!(%account, "the router panicked on a stanza, which is lost");
        }
    }
}

async fn one(router: &Arc<Router>, account: &BareJid, work: Work) {
    match work {
        Work::Stanza(mut transit) => {
            if let Some(index) = transit.wait_index.take() {
                // Late or not: what the table says then is what counts.
                router.whereabouts.wait_index(index, router.config.refused_wait()).await;
            }
            router.resume(account, *transit).await;
        }
        Work::Begun(arrival) => {
            let _turn = router.queues.turns.acquire().await;
            arrival.await;
        }
    }
}
