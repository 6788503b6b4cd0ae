//! Mailboxes: what waits to be written to each session of this node, bounded in stanzas and bytes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use dashmap::DashMap;
use hooks::{SessionView, Sid, Underway};
use jid::{BareJid, Jid};
use parking_lot::Mutex;
use stanza::{Stanza, StreamError};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::receipt::Receipt;

/// One stanza for one session.
#[derive(Debug)]
pub struct Delivery {
    /// Shared between all receivers of the same stanza.
    pub stanza: Arc<Stanza>,
    /// Takes the place of the stanza's `to` for this receiver.
    pub to: Option<Jid>,
    /// Dropped or settled once the stanza was written, or acknowledged by a client that does so.
    pub receipt: Receipt,
    /// Other sessions of the account got a copy too, so this one need not be routed anew while they live.
    pub(crate) one_of_several: bool,
    /// Node boundaries that it has crossed.
    pub(crate) hops: u8,
    /// How often it has already failed to reach the session that was chosen for it.
    pub(crate) attempts: u8,
    /// What its own session has become at another node, if it is to go there.
    pub(crate) successor: Option<Successor>,
}

impl Delivery {
    /// A delivery with the stanza's own `to`, that nobody waits to see settled.
    pub fn new(stanza: Arc<Stanza>) -> Delivery {
        Delivery {
            stanza,
            to: None,
            receipt: Receipt::none(),
            one_of_several: false,
            hops: 0,
            attempts: 0,
            successor: None,
        }
    }

    /// The stanza for the delivering hooks, with this receiver's `to`. Copies the head (never the body) if
    /// other receivers share it.
    pub fn stanza_mut(&mut self) -> &mut Stanza {
        let to = self.to.take();
        let stanza = Arc::make_mut(&mut self.stanza);
        if to.is_some() {
            stanza.head.to = to;
        }
        stanza
    }

    /// Writes the stanza with this receiver's `to` and the body's bytes as they are.
    pub fn write(&self, out: &mut BytesMut) {
        match &self.to {
            Some(to) => self.stanza.write_to(out, Some(to)),
            None => self.stanza.write(out),
        }
    }

    /// Where it is for.
    pub fn address(&self) -> Option<&Jid> {
        self.to.as_ref().or(self.stanza.head.to.as_ref())
    }

    /// The node that sent it here; `None`: this one.
    pub(crate) fn sent_by(&self) -> Option<u64> {
        self.receipt.node()
    }

    /// Bytes that this delivery counts for in a mailbox.
    pub fn cost(&self) -> usize {
        self.stanza.wire_len()
    }
}

/// A session at another node in which one of this node goes on.
#[derive(Debug, Clone)]
pub(crate) struct Successor {
    pub sid: cluster::Sid,
    /// Held until that node has what is for it.
    pub underway: Underway,
}

/// Bounds of one mailbox.
#[derive(Debug, Clone, Copy)]
pub struct MailboxLimits {
    /// Stanzas that may wait.
    pub stanzas: usize,
    /// Bytes that may wait.
    pub bytes: usize,
}

/// Who takes what a mailbox could not keep: called with the receiver's account, in the order of the queue,
/// while the queue is locked, so that nothing that is sent later overtakes it.
pub(crate) type Returns = Box<dyn Fn(&BareJid, Vec<Delivery>) + Send + Sync>;

/// All mailboxes of this node.
pub struct Mailboxes {
    slots: DashMap<BareJid, Vec<Arc<Slot>>>,
    limits: MailboxLimits,
    returns: OnceLock<Returns>,
    waiting: Arc<Waiting>,
}

/// What waits in all mailboxes together, for the metrics.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Stanzas in mailboxes.
    pub stanzas: AtomicU64,
    /// Bytes in mailboxes.
    pub bytes: AtomicU64,
    /// Mailboxes that are open.
    pub mailboxes: AtomicU64,
    /// Sessions that were closed because they did not read.
    pub slow_consumers: AtomicU64,
}

/// A session of this node, as the router sees it.
pub(crate) struct Slot {
    pub view: Arc<SessionView>,
    queue: Mutex<Queue>,
    /// The mailbox is not crowded any more, or has ended.
    room: Notify,
    /// Something was written that the client has not acknowledged.
    owes: AtomicBool,
    /// Its session is being given to another node.
    leaves: AtomicBool,
    /// Its session came from another node.
    came_over: AtomicBool,
}

impl Slot {
    /// Whether something in it is not written yet, or may come back although it was.
    fn holds_something(&self) -> bool {
        let queue = self.queue.lock();
        !queue.items.is_empty() || queue.is_writing || self.owes.load(Ordering::Acquire)
    }

    /// Whether its session is being given to another node.
    pub(crate) fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Acquire)
    }

    /// Whether its session came from another node.
    pub(crate) fn came_over(&self) -> bool {
        self.came_over.load(Ordering::Acquire)
    }

    /// Stanzas that wait.
    pub(crate) fn len(&self) -> usize {
        self.queue.lock().items.len()
    }

    /// Returns once less than half of the bound waits in the mailbox, or it has ended, or more has waited in it for
    /// all of `patience`: for whoever brings a backlog faster than any client could read.
    pub(crate) async fn room(&self, patience: Duration) {
        loop {
            let mut room = pin!(self.room.notified());
            // Before the look, or a change in between would wake nobody.
            room.as_mut().enable();
            let Some(since) = self.queue.lock().crowded_since else { return };
            if timeout_at(since + patience, room).await.is_err() {
                return;
            }
        }
    }
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Delivery>,
    bytes: usize,
    end: Option<End>,
    waker: Option<Waker>,
    /// What was drained last may not be written yet: nobody has asked for more since.
    is_writing: bool,
    /// Since when half of the bound or more waits.
    crowded_since: Option<Instant>,
}

impl Queue {
    fn is_crowded(&self, limits: &MailboxLimits) -> bool {
        self.items.len() * 2 >= limits.stanzas || self.bytes * 2 >= limits.bytes
    }

    /// Notes that something was taken out; whether that ended a crowd.
    fn is_relieved(&mut self, limits: &MailboxLimits) -> bool {
        let is_relieved = self.crowded_since.is_some() && !self.is_crowded(limits);
        if is_relieved {
            self.crowded_since = None;
        }
        is_relieved
    }
}

/// Why a mailbox takes no more.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// The session closed it.
    Closed,
    /// The client did not read: the session must end with the stream error `resource-constraint`. What
    /// waited has been routed anew.
    Overflowed,
    /// A module ended the session, which must end with this error. What waited has been routed anew.
    Dismissed(Box<StreamError>),
}

/// The session's half: belongs to the connection's outbound half on its arbiter.
pub struct Mailbox {
    slot: Arc<Slot>,
    limits: MailboxLimits,
    waiting: Arc<Waiting>,
}

impl Mailboxes {
    pub(crate) fn new(limits: MailboxLimits) -> Mailboxes {
        Mailboxes {
            slots: DashMap::new(),
            limits,
            returns: OnceLock::new(),
            waiting: Arc::new(Waiting::default()),
        }
    }

    /// Names who takes what a mailbox could not keep; once, at start.
    pub(crate) fn return_to(&self, returns: Returns) {
        let _ = self.returns.set(returns);
    }

    /// Opens the mailbox of a session that is about to be bound.
    pub(crate) fn open(&self, view: Arc<SessionView>) -> Mailbox {
        let account = view.account().clone();
        let slot = Arc::new(Slot {
            view,
            queue: Mutex::default(),
            room: Notify::new(),
            owes: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
            came_over: AtomicBool::new(false),
        });
        self.slots.entry(account).or_default().push(slot.clone());
        self.waiting.mailboxes.fetch_add(1, Ordering::Relaxed);
        Mailbox { slot, limits: self.limits, waiting: self.waiting.clone() }
    }

    /// Takes the mailbox away. What waited in it, and before that `unwritten`, is routed anew. Closing
    /// twice is no error.
    pub(crate) fn close(&self, view: &SessionView, unwritten: Vec<Delivery>) {
        self.close_for(view, unwritten, None);
    }

    /// As [`Mailboxes::close`]; with a successor, all of it is for that session, which this one has become.
    pub(crate) fn close_for(
        &self,
        view: &SessionView,
        mut unwritten: Vec<Delivery>,
        successor: Option<&Successor>,
    ) {
        unwritten.iter_mut().for_each(|delivery| delivery.successor = successor.cloned());
        let Some(slot) = self.find(view.account(), view.sid()) else {
            self.give_back(view.account(), unwritten);
            return;
        };
        {
            let mut queue = slot.queue.lock();
            queue.is_writing = false;
            queue.items.iter_mut().for_each(|delivery| delivery.successor = successor.cloned());
            self.end(&mut queue, End::Closed, view.account(), unwritten, None);
        }
        // Behind that: whoever does not find it finds what was in it in the queue of its account.
        let mut removed = false;
        if let Some(mut slots) = self.slots.get_mut(view.account()) {
            let before = slots.len();
            slots.retain(|slot| slot.view.sid() != view.sid());
            removed = slots.len() < before;
        }
        self.slots.remove_if(view.account(), |_, slots| slots.is_empty());
        if removed {
            self.waiting.mailboxes.fetch_sub(1, Ordering::Relaxed);
        }
        slot.room.notify_waiters();
    }

    /// A mailbox of the account whose session has lost its route and has not closed it yet, and that is not empty: what
    /// is in it comes back, and is older than what goes to another session.
    pub(crate) fn leftover(&self, account: &BareJid, is_bound: impl Fn(Sid) -> bool) -> Option<Arc<Slot>> {
        let slots = self.slots.get(account)?;
        slots.iter().find(|slot| !is_bound(slot.view.sid()) && slot.holds_something()).cloned()
    }

    /// Returns when nothing is left in such a mailbox.
    pub(crate) async fn emptied(&self, slot: &Slot) {
        loop {
            let mut room = pin!(slot.room.notified());
            // Before the look, or a change in between would wake nobody.
            room.as_mut().enable();
            if self.find(slot.view.account(), slot.view.sid()).is_none() {
                return;
            }
            room.await;
        }
    }

    /// Takes out of every mailbox what is void.
    pub(crate) fn take_out(&self, is_void: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
        let mut out = Vec::new();
        for slots in &self.slots {
            for slot in slots.value() {
                let mut queue = slot.queue.lock();
                let before = out.len();
                let items = std::mem::take(&mut queue.items);
                for delivery in items {
                    if is_void(&delivery) { out.push(delivery) } else { queue.items.push_back(delivery) }
                }
                let bytes: usize = out[before..].iter().map(Delivery::cost).sum();
                queue.bytes -= bytes;
                if queue.is_relieved(&self.limits) {
                    slot.room.notify_waiters();
                }
                self.waiting.stanzas.fetch_sub((out.len() - before) as u64, Ordering::Relaxed);
                self.waiting.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
            }
        }
        out
    }

    /// Puts a delivery into the mailbox; gives it back if the mailbox has ended. At the bound the mailbox
    /// ends and all that waits in it, with this one, is routed anew.
    ///
    /// Gives the stanza as well where the session waits for its client.
    pub(crate) fn deliver(&self, slot: &Slot, delivery: Delivery) -> Result<Option<Arc<Stanza>>, Delivery> {
        let cost = delivery.cost();
        let mut queue = slot.queue.lock();
        if queue.end.is_some() {
            return Err(delivery);
        }
        if queue.items.len() >= self.limits.stanzas || queue.bytes + cost > self.limits.bytes {
            self.waiting.slow_consumers.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(session = %slot.view.jid(), "a client does not read, its session ends");
            self.end(&mut queue, End::Overflowed, slot.view.account(), Vec::new(), Some(delivery));
            slot.room.notify_waiters();
            return Ok(None);
        }
        // With the queue locked: or neither we nor who begins to wait would see that it is missed.
        let missed = slot.view.is_waiting().then(|| delivery.stanza.clone());
        queue.items.push_back(delivery);
        queue.bytes += cost;
        if queue.crowded_since.is_none() && queue.is_crowded(&self.limits) {
            queue.crowded_since = Some(Instant::now());
        }
        self.waiting.stanzas.fetch_add(1, Ordering::Relaxed);
        self.waiting.bytes.fetch_add(cost as u64, Ordering::Relaxed);
        // Only the first delivery after the session ran dry finds a waker: the rest costs no wake-up.
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(missed)
    }

    /// Ends a session with this error, and its mailbox at once: what waits in it is routed anew.
    pub(crate) fn dismiss(&self, slot: &Slot, error: StreamError) {
        let mut queue = slot.queue.lock();
        self.end(&mut queue, End::Dismissed(Box::new(error)), slot.view.account(), Vec::new(), None);
        drop(queue);
        slot.room.notify_waiters();
    }

    /// The session of this account with this sid, if it is here.
    pub(crate) fn find(&self, account: &BareJid, sid: Sid) -> Option<Arc<Slot>> {
        self.slots.get(account)?.iter().find(|slot| slot.view.sid() == sid).cloned()
    }

    /// A session of the account here for which more waits than should be added to in one go.
    pub(crate) fn crowded(&self, account: &BareJid) -> Option<Arc<Slot>> {
        let is_crowded = |slot: &&Arc<Slot>| slot.queue.lock().crowded_since.is_some();
        self.slots.get(account)?.iter().find(is_crowded).cloned()
    }

    /// Whether the account has a session here.
    pub(crate) fn has(&self, account: &BareJid) -> bool {
        self.slots.contains_key(account)
    }

    /// The sessions of the account that are here, as modules see them.
    pub(crate) fn views(&self, account: &BareJid) -> Vec<Arc<SessionView>> {
        let views = |slots: &Vec<Arc<Slot>>| slots.iter().map(|slot| slot.view.clone()).collect();
        self.slots.get(account).map(|slots| views(&slots)).unwrap_or_default()
    }

    /// The sessions of the account that are here.
    pub(crate) fn slots(&self, account: &BareJid) -> Vec<Arc<Slot>> {
        self.slots.get(account).map(|slots| slots.clone()).unwrap_or_default()
    }

    /// Whether no session has one.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What waits in all mailboxes together.
    pub fn waiting(&self) -> &Arc<Waiting> {
        &self.waiting
    }

    fn end(
        &self,
        queue: &mut Queue,
        end: End,
        account: &BareJid,
        mut back: Vec<Delivery>,
        last: Option<Delivery>,
    ) {
        // An overflow that the session has not noticed yet stays one.
        queue.end.get_or_insert(end);
        self.waiting.stanzas.fetch_sub(queue.items.len() as u64, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(queue.bytes as u64, Ordering::Relaxed);
        queue.bytes = 0;
        queue.crowded_since = None;
        back.extend(std::mem::take(&mut queue.items));
        back.extend(last);
        // Under the lock of the queue: whoever finds it ended comes after these.
        self.give_back(account, back);
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    fn give_back(&self, account: &BareJid, back: Vec<Delivery>) {
        if back.is_empty() {
            return;
        }
        if let Some(returns) = self.returns.get() {
            returns(account, back);
        }
    }
}

impl Mailbox {
    /// Says whether something was written that the client has not acknowledged: it comes back when the session ends.
    pub fn owe(&self, owes: bool) {
        self.slot.owes.store(owes, Ordering::Release);
    }

    /// The session is about to be given to another node.
    pub fn leave(&self) {
        self.slot.leaves.store(true, Ordering::Release);
    }

    /// The session came from another node.
    pub fn come_over(&self) {
        self.slot.came_over.store(true, Ordering::Release);
    }

    /// Returns when there is something to drain or the mailbox has ended.
    pub async fn ready(&self) {
        poll_fn(|context| self.poll_ready(context)).await
    }

    /// As [`Mailbox::ready`], for a hand-written future or actor. One waker is kept.
    pub fn poll_ready(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.slot.queue.lock();
        queue.is_writing = false;
        if !queue.items.is_empty() || queue.end.is_some() {
            return Poll::Ready(());
        }
        match &mut queue.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Puts what another node sent before all else that waits, in its order: that node had a session before, and hands
    /// over what it had for it.
    pub fn bring_forward(&mut self, node: u64) {
        let mut queue = self.slot.queue.lock();
        let items = std::mem::take(&mut queue.items);
        let (first, rest): (Vec<_>, Vec<_>) =
            items.into_iter().partition(|delivery| delivery.sent_by() == Some(node));
        queue.items = first.into_iter().chain(rest).collect();
    }

    /// As [`Mailbox::ended`], for a hand-written future: ready once the mailbox has ended.
    pub fn poll_ended(&self, context: &mut Context<'_>) -> Poll<End> {
        let mut queue = self.slot.queue.lock();
        if let Some(end) = &queue.end {
            return Poll::Ready(end.clone());
        }
        queue.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Returns when the mailbox has ended, whatever waits in it: for a session that is held up by a client that
    /// does not read. Takes the place of [`Mailbox::ready`] as who is woken.
    pub async fn ended(&self) -> End {
        poll_fn(|context| self.poll_ended(context)).await
    }

    /// From now on the session waits for its client: what is here already that it misses. What comes later is shown to
    /// modules by who brings it.
    pub fn begin_waiting(&self) -> Vec<Arc<Stanza>> {
        let queue = self.slot.queue.lock();
        self.slot.view.set_waiting(true);
        queue.items.iter().map(|delivery| delivery.stanza.clone()).collect()
    }

    /// Takes deliveries in their order until `bytes_max` is reached; at least one, if one waits.
    pub fn drain(&mut self, bytes_max: usize) -> Vec<Delivery> {
        let mut queue = self.slot.queue.lock();
        let mut taken = 0;
        let mut count = 0;
        for delivery in &queue.items {
            let cost = delivery.cost();
            if count > 0 && taken + cost > bytes_max {
                break;
            }
            taken += cost;
            count += 1;
        }
        queue.bytes -= taken;
        queue.is_writing = count > 0;
        let batch: Vec<Delivery> = queue.items.drain(..count).collect();
        if queue.items.is_empty() && queue.items.capacity() > 64 {
            // An idle session keeps no scratch from its busiest moment.
            queue.items = VecDeque::new();
        }
        let has_room = queue.is_relieved(&self.limits);
        drop(queue);
        if has_room {
            self.slot.room.notify_waiters();
        }
        self.waiting.stanzas.fetch_sub(batch.len() as u64, Ordering::Relaxed);
        self.waiting.bytes.fetch_sub(taken as u64, Ordering::Relaxed);
        batch
    }

    /// Why nothing more comes, if nothing more comes.
    pub fn end(&self) -> Option<End> {
        self.slot.queue.lock().end.clone()
    }

    /// Stanzas that wait.
    pub fn len(&self) -> usize {
        self.slot.queue.lock().items.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The session whose mailbox this is.
    pub fn view(&self) -> &Arc<SessionView> {
        &self.slot.view
    }
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").field("session", &self.slot.view.jid().as_str()).finish_non_exhaustive()
    }
}
