//! Queues of accounts: what waits, in order, while a handler of its receiver awaits the store.
//!
//! An account has two of them, as stanzas of one sender to one receiver keep their order and others need not: what
//! it says to itself, and what the server answers it, does not wait behind what others sent. So a login is not slower
//! for the messages that wait for it. Only what a session leaves to its successor goes in one.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use jid::{BareJid, Jid};
use parking_lot::Mutex;
use stanza::address::same_account;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::peer::key;
use crate::router::Router;
use crate::transit::Transit;

/// A piece of work for one account.
pub(crate) enum Work {
    /// A stanza that has not begun to arrive.
    Stanza(Box<Transit>),
    /// A stanza whose arrival has begun and awaits something.
    Begun(Line, BoxFuture<'static, ()>),
}

/// Which of the two queues of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// From the account itself, or from a host that answers it.
    Own,
    /// From anybody else.
    Others,
}

impl Line {
    pub(crate) fn of(account: &BareJid, from: Option<&Jid>) -> Line {
        let own = from.is_none_or(|from| from.node().is_none() || same_account(from, account));
        if own { Line::Own } else { Line::Others }
    }
}

/// The queues of one account that somebody works on.
#[derive(Default)]
struct Lines {
    own: Option<Queue>,
    others: Option<Queue>,
}

impl Lines {
    fn line(&mut self, line: Line) -> &mut Option<Queue> {
        match line {
            Line::Own => &mut self.own,
            Line::Others => &mut self.others,
        }
    }

    /// The line in which stanzas of `from` wait now.
    fn of(&self, account: &BareJid, from: Option<&Jid>) -> Line {
        match Line::of(account, from) {
            Line::Own if self.others.as_ref().is_some_and(|queue| queue.has_both) => Line::Others,
            line => line,
        }
    }

    /// The queue in which stanzas of `from` wait now, if there is one.
    fn queue_of(&mut self, account: &BareJid, from: Option<&Jid>) -> Option<&mut Queue> {
        self.line(self.of(account, from)).as_mut()
    }

    /// The line for a piece of work. What a session leaves to its successor goes in one of them, in the order in which its
    /// client was to have it: a copy of a message is the account's own, and stands before what came behind that message.
    /// And whether that line is for both from then on.
    fn of_work(&self, account: &BareJid, work: &Work) -> (Line, bool) {
        let transit = match work {
            Work::Begun(line, _) => return (*line, false),
            Work::Stanza(transit) => transit,
        };
        match self.of(account, transit.stanza.head.from.as_ref()) {
            Line::Own if transit.handed_over && self.own.is_none() => (Line::Others, true),
            line => (line, false),
        }
    }
}

/// One queue of an account; it exists while somebody works on it.
#[derive(Default)]
struct Queue {
    /// What was on its way already and came back: older than all that waits.
    returned: VecDeque<Work>,
    waiting: VecDeque<Work>,
    /// Told when something came back, for the stanza at the head that waits for it.
    came_back: Arc<Notify>,
    /// When the stanza at the head last went on without what it had waited for.
    gave_way: Option<Instant>,
    /// What the account says to itself waits here too, for as long as there is the queue.
    has_both: bool,
}

/// The queues of all accounts that have one now.
pub(crate) struct Queues {
    shards: Vec<Mutex<HashMap<BareJid, Lines>>>,
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

    fn shard(&self, account: &BareJid) -> &Mutex<HashMap<BareJid, Lines>> {
        &self.shards[key(account.as_str()) as usize % SHARDS]
    }

    /// Does something with the queue in which stanzas of `from` wait, if there is one.
    fn queue<R>(
        &self,
        account: &BareJid,
        from: Option<&Jid>,
        work: impl FnOnce(&mut Queue) -> R,
    ) -> Option<R> {
        let mut shard = self.shard(account).lock();
        shard.get_mut(account)?.queue_of(account, from).map(work)
    }

    /// Queues of accounts that exist now.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether something waits for the account before what `from` sends it.
    pub(crate) fn is_busy(&self, account: &BareJid, from: Option<&Jid>) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.queue(account, from, |_| ()).is_some()
    }

    /// Lets a stanza pass, or puts it behind what waits for the same account.
    pub(crate) fn enter(&self, account: &BareJid, mut transit: Transit) -> Entered {
        if self.count.load(Ordering::Acquire) == 0 {
            return Entered::Free(transit);
        }
        let mut shard = self.shard(account).lock();
        let from = transit.stanza.head.from.as_ref();
        match shard.get_mut(account).and_then(|lines| lines.queue_of(account, from)) {
            None => Entered::Free(transit),
            Some(queue) if queue.waiting.len() >= self.bound => Entered::Full(transit),
            Some(queue) => {
                transit.queued.get_or_insert_with(Instant::now);
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

    /// Puts the stanza that was at the head there again, behind what came back meanwhile.
    pub(crate) fn yield_to_returned(&self, router: &Arc<Router>, account: &BareJid, transit: Transit) {
        self.push_first(router, account, transit, false);
    }

    /// Puts the oldest of what came back before the rest of it again.
    pub(crate) fn give_back_first(&self, router: &Arc<Router>, account: &BareJid, mut transit: Transit) {
        transit.came_back = true;
        self.push_first(router, account, transit, true);
    }

    fn push_first(&self, router: &Arc<Router>, account: &BareJid, transit: Transit, returned: bool) {
        let work = Work::Stanza(Box::new(transit));
        let mut shard = self.shard(account).lock();
        let queue = shard.get_mut(account).and_then(|lines| {
            let (line, for_both) = lines.of_work(account, &work);
            let queue = lines.line(line).as_mut()?;
            queue.has_both |= for_both;
            Some(queue)
        });
        match queue {
            Some(queue) if returned => queue.returned.push_front(work),
            Some(queue) => queue.waiting.push_front(work),
            None => {
                drop(shard);
                self.push(router, account, [work], returned);
            }
        }
    }

    /// Whether something came back that is older than all that waits.
    pub(crate) fn has_returned(&self, account: &BareJid, from: Option<&Jid>) -> bool {
        self.queue(account, from, |queue| !queue.returned.is_empty()).unwrap_or(false)
    }

    /// What tells the worker of a queue that something came back.
    pub(crate) fn came_back(&self, account: &BareJid, from: Option<&Jid>) -> Option<Arc<Notify>> {
        self.queue(account, from, |queue| queue.came_back.clone())
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

    /// Notes that the stanza at the head goes on without what it has waited for. Those that wait behind it have waited
    /// as long by then: if each of them began anew, the last of a hundred would come minutes late.
    pub(crate) fn give_way(&self, account: &BareJid, from: Option<&Jid>) {
        self.queue(account, from, |queue| queue.gave_way = Some(Instant::now()));
    }

    /// Whether a stanza was behind another one that went on without what it had waited for.
    pub(crate) fn gave_way(&self, account: &BareJid, transit: &Transit) -> bool {
        let Some(queued) = transit.queued else { return false };
        let gave_way = self.queue(account, transit.stanza.head.from.as_ref(), |queue| queue.gave_way);
        gave_way.flatten().is_some_and(|gave_way| queued <= gave_way)
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
        let mut begun = Vec::new();
        {
            let mut shard = self.shard(account).lock();
            let lines = shard.entry(account.clone()).or_default();
            for mut work in work {
                let (line, for_both) = lines.of_work(account, &work);
                if let Work::Stanza(transit) = &mut work {
                    transit.came_back |= returned;
                    transit.queued.get_or_insert_with(Instant::now);
                }
                let queue = lines.line(line).get_or_insert_with(|| {
                    begun.push(line);
                    Queue::default()
                });
                queue.has_both |= for_both;
                if returned {
                    queue.returned.push_back(work);
                    queue.came_back.notify_one();
                } else {
                    queue.waiting.push_back(work);
                }
            }
            self.count.fetch_add(begun.len(), Ordering::AcqRel);
        }
        for line in begun {
            let router = router.clone();
            let account = account.clone();
            router.runtime.clone().spawn(async move { run(router, account, line).await });
        }
    }

    /// The oldest work in a queue; without any the queue is gone and later stanzas pass freely.
    fn next(&self, account: &BareJid, line: Line) -> Option<Work> {
        let mut shard = self.shard(account).lock();
        let Entry::Occupied(mut entry) = shard.entry(account.clone()) else { return None };
        let queue = entry.get_mut().line(line);
        let work = queue.as_mut().and_then(|queue| {
            let Queue { returned, waiting, .. } = queue;
            returned.pop_front().or_else(|| waiting.pop_front())
        });
        if work.is_none() && queue.take().is_some() {
            self.count.fetch_sub(1, Ordering::AcqRel);
            if matches!(entry.get(), Lines { own: None, others: None }) {
                entry.remove();
            }
        }
        work
    }
}

/// Works on one queue of an account until it is empty, one piece after the other.
async fn run(router: Arc<Router>, account: BareJid, line: Line) {
    while let Some(work) = router.queues.next(&account, line) {
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
            // Another session may have a copy of its own, which counts.
            if transit.came_back
                && !transit.one_of_several
                && !(transit.handed_over && router.has_successor(account, &transit))
                && let Some(returned) = transit.receipt.returned()
            {
                return returned.await;
            }
            if let Some(index) = transit.wait_index.take() {
                // Late or not: what the table says then is what counts.
                router.whereabouts.wait_index(index, router.config.refused_wait()).await;
            }
            router.resume(account, *transit).await;
        }
        Work::Begun(_, arrival) => {
            let _turn = router.queues.turns.acquire().await;
            arrival.await;
        }
    }
}
