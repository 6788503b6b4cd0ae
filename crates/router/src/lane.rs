//! One lane to another node: numbers, window, what may be forgotten, and what must go anew.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cluster::{Incarnation, NodeId, Sid};
use hooks::Underway;
use jid::{BareJid, Jid};
use parking_lot::{Mutex, MutexGuard};
use proto::relay::{Ack, Batch, Purpose, Refusal};
use tokio::sync::Notify;

use crate::config::Config;
use crate::envelope;
use crate::metrics::{LaneFacts, one};
use crate::queues::Work;
use crate::receipt::Receipt;
use crate::router::Router;
use crate::transit::{Stage, Transit};

/// One numbered sequence of parcels to a peer.
pub(crate) struct Lane {
    pub node: NodeId,
    /// The incarnation of the other node that is meant.
    pub incarnation: Incarnation,
    /// The incarnation of this node under which the numbers began.
    pub numbering: Incarnation,
    pub lane: u32,
    state: Mutex<LaneState>,
    unreceived: AtomicUsize,
    unsettled: AtomicUsize,
    /// There is something to send, or the peer is gone.
    pub more: Notify,
    /// The other node has received or settled more, or the peer is gone.
    moved: Notify,
}

#[derive(Default)]
struct LaneState {
    /// From the oldest that is not settled; the numbers have no gap.
    items: VecDeque<Item>,
    /// Number of the first of them.
    oldest: u64,
    /// Highest number given to the stream that is open now.
    sent: u64,
    /// Highest number ever given to a stream.
    ever_sent: u64,
    received: u64,
    unreceived_bytes: usize,
    unsettled: usize,
    unsettled_bytes: usize,
    /// By account: how many are not received, and the number of the last.
    in_flight: HashMap<u64, (u32, u64)>,
    /// By account: the sessions for which something is not settled, and how much.
    unsettled_for: HashMap<u64, Vec<(Sid, u32)>>,
    connected: bool,
    gone: bool,
}

/// A parcel under way.
pub(crate) struct Item {
    pub parcel: Bytes,
    pub accounts: Keys,
    /// The one session that it is for, where it is for one.
    pub sid: Option<Sid>,
    pub attempts: u8,
    pub receipt: Receipt,
    pub settled: bool,
    /// Whose client waits to hear that it is handled: once the other node has it.
    pub underway: Option<Underway>,
    /// Its session went to the other node, and it after it: whoever sent it here may forget it once it is there.
    pub follows: bool,
}

/// Hashes of the receiving accounts.
pub(crate) enum Keys {
    One(u64),
    Many(Box<[u64]>),
}

impl Keys {
    fn as_slice(&self) -> &[u64] {
        match self {
            Keys::One(key) => std::slice::from_ref(key),
            Keys::Many(keys) => keys,
        }
    }
}

/// Why a parcel was not taken.
pub(crate) enum Refused {
    /// The window or what is unsettled is at its bound.
    Full,
    /// The peer is gone: the table says by now where else to go.
    Gone,
}

/// A stanza that is on its way to another node: what goes another way must wait until it is there.
pub(crate) struct InFlight {
    lane: Arc<Lane>,
    number: u64,
}

impl InFlight {
    /// Returns when the other node has it, or is gone.
    pub(crate) async fn confirmed(&self) {
        loop {
            let moved = self.lane.moved.notified();
            let mut moved = std::pin::pin!(moved);
            // Before the look, or a change in between would wake nobody.
            moved.as_mut().enable();
            {
                let state = self.lane.state.lock();
                if state.gone || state.received >= self.number {
                    return;
                }
            }
            moved.await;
        }
    }
}

/// Stanzas at another node for a session that has ended: they come back, and are older than what goes another way.
pub(crate) struct Leaving {
    lane: Arc<Lane>,
    key: u64,
    sid: Sid,
}

impl Leaving {
    /// Returns when all of them were delivered, stored or bounced, or their node is gone.
    pub(crate) async fn settled(&self) {
        loop {
            let mut moved = std::pin::pin!(self.lane.moved.notified());
            // Before the look, or a change in between would wake nobody.
            moved.as_mut().enable();
            let is_left = |waiting: &Vec<(Sid, u32)>| waiting.iter().any(|(sid, _)| *sid == self.sid);
            if !self.lane.state.lock().unsettled_for.get(&self.key).is_some_and(is_left) {
                return;
            }
            moved.await;
        }
    }
}

impl Lane {
    pub(crate) fn new(node: NodeId, incarnation: Incarnation, numbering: Incarnation, lane: u32) -> Lane {
        Lane {
            node,
            incarnation,
            numbering,
            lane,
            state: Mutex::new(LaneState { oldest: 1, ..LaneState::default() }),
            unreceived: AtomicUsize::new(0),
            unsettled: AtomicUsize::new(0),
            more: Notify::new(),
            moved: Notify::new(),
        }
    }

    /// Takes a parcel to be sent, if there is room for it.
    pub(crate) fn submit(&self, item: Item, config: &Config) -> Result<(), Refused> {
        let bytes = item.parcel.len();
        {
            let mut state = self.state.lock();
            if state.gone {
                return Err(Refused::Gone);
            }
            let window = state.unreceived() < config.relay_window_stanzas
                && state.unreceived_bytes + bytes <= config.relay_window_bytes;
            let memory = state.unsettled < config.relay_unsettled_stanzas
                && state.unsettled_bytes + bytes <= config.relay_unsettled_bytes;
            if !window || !memory {
                return Err(Refused::Full);
            }
            let number = state.next();
            for key in item.accounts.as_slice() {
                let entry = state.in_flight.entry(*key).or_default();
                *entry = (entry.0 + 1, number);
            }
            if let (Keys::One(key), Some(sid)) = (&item.accounts, item.sid) {
                let sessions = state.unsettled_for.entry(*key).or_default();
                match sessions.iter_mut().find(|(one, _)| *one == sid) {
                    Some((_, count)) => *count += 1,
                    None => sessions.push((sid, 1)),
                }
            }
            state.unreceived_bytes += bytes;
            state.unsettled += 1;
            state.unsettled_bytes += bytes;
            state.items.push_back(item);
            self.note(&state);
        }
        self.more.notify_one();
        Ok(())
    }

    /// What is on its way to an account, and not confirmed.
    pub(crate) fn in_flight(self: &Arc<Self>, key: u64) -> Option<InFlight> {
        if self.unreceived.load(Ordering::Acquire) == 0 {
            return None;
        }
        let (_, number) = *self.state.lock().in_flight.get(&key)?;
        Some(InFlight { lane: self.clone(), number })
    }

    /// What is unsettled for a session of an account that `is_here` does not know any more.
    pub(crate) fn leaving(self: &Arc<Self>, key: u64, is_here: impl Fn(Sid) -> bool) -> Option<Leaving> {
        if self.unsettled.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.state.lock();
        let (sid, _) = *state.unsettled_for.get(&key)?.iter().find(|(sid, _)| !is_here(*sid))?;
        Some(Leaving { lane: self.clone(), key, sid })
    }

    /// Tells those who ask without the lock.
    fn note(&self, state: &LaneState) {
        self.unreceived.store(state.unreceived(), Ordering::Release);
        self.unsettled.store(state.unsettled, Ordering::Release);
    }

    /// The lane as it is now, for the metrics.
    pub(crate) fn facts(&self) -> LaneFacts {
        let state = self.state.lock();
        LaneFacts {
            node: self.node.0,
            incarnation: self.incarnation.0,
            lane: self.lane,
            connected: state.connected,
            unreceived: state.unreceived(),
            unsettled: state.unsettled,
            unsettled_bytes: state.unsettled_bytes,
        }
    }

    /// Whether the peer is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    /// Whether something waits to be sent on the open stream; on none, whether anything is unsettled.
    pub(crate) fn has_unsent(&self) -> bool {
        let state = self.state.lock();
        state.sent + 1 < state.next()
    }

    /// Whether something is remembered that the other node has not settled.
    pub(crate) fn has_unsettled(&self) -> bool {
        self.state.lock().unsettled > 0
    }

    /// Whether the other node still has to confirm something that was sent.
    pub(crate) fn has_unconfirmed(&self) -> bool {
        let state = self.state.lock();
        state.received < state.sent
    }

    /// Number of the oldest parcel that is remembered.
    pub(crate) fn oldest(&self) -> u64 {
        self.state.lock().oldest
    }

    /// A stream is open and the other node has received so much: all above is sent again.
    pub(crate) fn resume(&self, received: u64) -> bool {
        let mut state = self.state.lock();
        if received < state.received || received >= state.next() {
            return false;
        }
        let done = state.mark_received(received);
        state.sent = received;
        state.connected = true;
        self.note(&state);
        drop(state);
        self.moved.notify_waiters();
        drop(done);
        true
    }

    /// The stream broke.
    pub(crate) fn pause(&self) {
        let mut state = self.state.lock();
        state.connected = false;
        state.sent = state.received;
    }

    /// What is to be sent next, at most so much; nothing if all was sent.
    pub(crate) fn batch(&self, router: &Router) -> Option<Batch> {
        let config = &router.config;
        let mut state = self.state.lock();
        let first = state.sent + 1;
        let from = usize::try_from(first.checked_sub(state.oldest)?).ok()?;
        let mut parcels = Vec::new();
        let mut bytes = 0;
        for item in state.items.range(from.min(state.items.len())..) {
            let full = parcels.len() >= config.relay_batch_stanzas.max(1)
                || bytes + item.parcel.len() > config.relay_batch_bytes;
            if full && !parcels.is_empty() {
                break;
            }
            bytes += item.parcel.len();
            // Settled before it was received: it was taken back, and only its number travels.
            parcels.push(if item.settled { Bytes::new() } else { item.parcel.clone() });
        }
        if parcels.is_empty() {
            return None;
        }
        state.sent += parcels.len() as u64;
        let again = state.ever_sent.saturating_sub(first - 1).min(parcels.len() as u64);
        state.ever_sent = state.ever_sent.max(state.sent);
        router.counters.parcels_sent.fetch_add(parcels.len() as u64 - again, Ordering::Relaxed);
        router.counters.parcels_resent.fetch_add(again, Ordering::Relaxed);
        one(&router.counters.batches_sent);
        Some(Batch { first, parcels, oldest: state.oldest })
    }

    /// The other node has received, settled or refused something; false if it speaks of what was never sent.
    pub(crate) fn acknowledged(&self, router: &Arc<Router>, ack: Ack) -> bool {
        let mut state = self.state.lock();
        if ack.received >= state.next() || ack.settled >= state.next() {
            return false;
        }
        // Refusals before all else: a refused parcel may be among those that the receiver no longer holds.
        for refusal in &ack.refusals {
            self.refused(router, &mut state, refusal);
        }
        let mut done = state.mark_received(ack.received);
        for number in state.oldest..=ack.settled {
            done.extend(state.settle(number));
        }
        for number in ack.settled_also {
            done.extend(state.settle(number));
        }
        state.trim();
        self.note(&state);
        drop(state);
        self.moved.notify_waiters();
        // Outside of the lock: a receipt may tell a third node.
        drop(done);
        true
    }

    /// A session was not there. The stanza and all later ones for that session go back to their account's
    /// queue, in order and before anything that comes later: the lane stays locked meanwhile.
    fn refused(&self, router: &Arc<Router>, state: &mut MutexGuard<'_, LaneState>, refusal: &Refusal) {
        let Some(item) = state.item(refusal.number).filter(|item| !item.settled) else { return };
        one(&router.counters.refusals);
        let sid = item.sid;
        let later = if sid.is_some() { state.next() } else { refusal.number + 1 };
        let mut back: Vec<(BareJid, Work)> = Vec::new();
        for number in refusal.number..later {
            let Some(item) = state.item(number).filter(|item| !item.settled && item.sid == sid) else {
                continue;
            };
            let opened = envelope::open(item.parcel.clone());
            let attempts = item.attempts.saturating_add(1);
            let Ok(opened) = opened else { continue };
            if number == refusal.number && refusal.targets.len() < opened.targets.len() {
                // Other sessions of the account have their copies, and the receiver still settles those.
                continue;
            }
            let receipt = state.settle(number).unwrap_or_default();
            let Some(account) = opened.stanza.head.to.as_ref().map(Jid::to_bare) else { continue };
            let stage = if opened.purpose == Purpose::Arrive { Stage::Fresh } else { Stage::Past };
            let transit = Transit {
                receipt,
                hops: opened.hops.saturating_sub(1),
                attempts,
                avoid: opened.targets.iter().filter_map(|(_, sid)| *sid).collect(),
                wait_index: Some(refusal.index),
                ..Transit::new(opened.stanza, stage)
            };
            back.push((account, Work::Stanza(Box::new(transit))));
        }
        for (account, work) in back {
            router.queues.give_back(router, &account, [work]);
        }
    }

    /// The peer is gone: all that it had not settled goes back to the queues of its receivers, in order.
    pub(crate) fn expire(&self, router: &Arc<Router>) {
        let mut state = self.state.lock();
        state.gone = true;
        state.connected = false;
        let items = std::mem::take(&mut state.items);
        *state = LaneState { oldest: state.next(), gone: true, ..LaneState::default() };
        self.unreceived.store(0, Ordering::Release);
        self.unsettled.store(0, Ordering::Release);
        for item in items.into_iter().filter(|item| !item.settled) {
            let Ok(opened) = envelope::open(item.parcel) else { continue };
            let stage = match opened.purpose {
                Purpose::Arrive => Stage::Fresh,
                Purpose::Deliver | Purpose::HandOver => Stage::Past,
                // Presence for sessions that are gone; every other node has its own copy.
                Purpose::Here | Purpose::Unspecified => continue,
            };
            let Some(account) = opened.stanza.head.to.as_ref().map(Jid::to_bare) else { continue };
            one(&router.counters.rerouted);
            let transit = Transit {
                receipt: item.receipt,
                hops: opened.hops.saturating_sub(1),
                attempts: item.attempts,
                avoid: opened.targets.iter().filter_map(|(_, sid)| *sid).collect(),
                ..Transit::new(opened.stanza, stage)
            };
            router.queues.give_back(router, &account, [Work::Stanza(Box::new(transit))]);
        }
        drop(state);
        self.more.notify_one();
        self.moved.notify_waiters();
    }
}

impl LaneState {
    /// Number that the next parcel gets.
    fn next(&self) -> u64 {
        self.oldest + self.items.len() as u64
    }

    fn unreceived(&self) -> usize {
        (self.next() - 1).saturating_sub(self.received) as usize
    }

    fn item(&self, number: u64) -> Option<&Item> {
        self.items.get(usize::try_from(number.checked_sub(self.oldest)?).ok()?)
    }

    /// Returns receipts that are to be dropped outside of the lock.
    fn mark_received(&mut self, received: u64) -> Vec<Receipt> {
        let mut done = Vec::new();
        for number in self.received + 1..=received {
            let Some(at) = number.checked_sub(self.oldest) else { continue };
            let Some(item) = self.items.get_mut(at as usize) else { break };
            item.underway = None;
            // This node remembers it until it is settled. All that is newer would wait else until the client acknowledges
            // what came this way; a copy in the store stays until then.
            if item.follows && item.receipt.node().is_some() {
                done.push(std::mem::take(&mut item.receipt));
            }
            self.unreceived_bytes -= item.parcel.len();
            for key in item.accounts.as_slice() {
                if let Some((count, _)) = self.in_flight.get_mut(key) {
                    *count -= 1;
                    if *count == 0 {
                        self.in_flight.remove(key);
                    }
                }
            }
        }
        self.received = self.received.max(received);
        done
    }

    /// Gives the receipt back if it was not settled before.
    fn settle(&mut self, number: u64) -> Option<Receipt> {
        let at = usize::try_from(number.checked_sub(self.oldest)?).ok()?;
        let item = self.items.get_mut(at).filter(|item| !item.settled)?;
        item.settled = true;
        item.underway = None;
        self.unsettled -= 1;
        self.unsettled_bytes -= item.parcel.len();
        let receipt = std::mem::take(&mut item.receipt);
        if let (Keys::One(key), Some(sid)) = (&item.accounts, item.sid)
            && let Entry::Occupied(mut entry) = self.unsettled_for.entry(*key)
        {
            let sessions = entry.get_mut();
            if let Some(at) = sessions.iter().position(|(one, _)| *one == sid) {
                sessions[at].1 -= 1;
                if sessions[at].1 == 0 {
                    sessions.swap_remove(at);
                }
            }
            if sessions.is_empty() {
                entry.remove();
            }
        }
        Some(receipt)
    }

    /// Forgets what is settled and received from the oldest on.
    fn trim(&mut self) {
        while self.oldest <= self.received && self.items.front().is_some_and(|item| item.settled) {
            self.items.pop_front();
            self.oldest += 1;
        }
        if self.items.is_empty() && self.items.capacity() > 1024 {
            self.items = VecDeque::new();
        }
    }
}
