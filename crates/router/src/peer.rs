//! The sending side of the streams between nodes: what is under way, what may be forgotten, what must go anew.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use cluster::{Incarnation, NodeId, Sid};
use jid::{BareJid, Jid};
use parking_lot::{Mutex, MutexGuard, RwLock};
use proto::relay::{Ack, Batch, Purpose, Refusal, Target};
use stanza::Stanza;
use tokio::sync::Notify;

use crate::config::{Config, HOPS_MAX, LANES};
use crate::envelope;
use crate::link;
use crate::metrics::{Fate, LaneFacts, one};
use crate::queues::Work;
use crate::receipt::Receipt;
use crate::router::Router;
use crate::transit::{Stage, Transit};

/// The nodes that this one has sent to.
pub(crate) struct Peers {
    peers: RwLock<HashMap<(NodeId, Incarnation), Arc<Peer>>>,
    /// Without any, the common path of a single node asks nothing.
    some: AtomicBool,
    /// Index of the table at which the peers were last compared with it.
    seen: AtomicU64,
}

/// One incarnation of another node.
pub(crate) struct Peer {
    pub node: NodeId,
    pub incarnation: Incarnation,
    lanes: Vec<Arc<Lane>>,
}

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
    /// There is something to send, or the peer is gone.
    pub more: Notify,
    /// The other node has received more, or the peer is gone.
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
    connected: bool,
    gone: bool,
}

struct Item {
    parcel: Bytes,
    accounts: Keys,
    /// The one session that it is for, where it is for one.
    sid: Option<Sid>,
    attempts: u8,
    receipt: Receipt,
    settled: bool,
}

/// Hashes of the receiving accounts.
enum Keys {
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
enum Refused {
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

/// Stable for as long as a node runs: only the sender chooses lanes.
pub(crate) fn key(account: &str) -> u64 {
    account
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn lane_of(key: u64) -> usize {
    // The high bits of FNV are the better mixed ones.
    ((key >> 32) % u64::from(LANES)) as usize
}

impl Peers {
    pub(crate) fn new() -> Peers {
        Peers { peers: RwLock::default(), some: AtomicBool::new(false), seen: AtomicU64::new(0) }
    }

    fn get(&self, router: &Arc<Router>, node: NodeId, incarnation: Incarnation) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().get(&(node, incarnation)) {
            return peer.clone();
        }
        let mut peers = self.peers.write();
        let (_, numbering) = router.whereabouts.me();
        let peer = peers.entry((node, incarnation)).or_insert_with(|| {
            let lanes =
                (0..LANES).map(|lane| Arc::new(Lane::new(node, incarnation, numbering, lane))).collect();
            let peer = Arc::new(Peer { node, incarnation, lanes });
            for lane in &peer.lanes {
                router.runtime.spawn(link::carry(Arc::downgrade(router), lane.clone()));
            }
            peer
        });
        self.some.store(true, Ordering::Release);
        peer.clone()
    }

    /// Gives up peers that the table no longer shows, before anything later is decided by that table.
    pub(crate) fn reap(&self, router: &Arc<Router>) {
        if !self.some.load(Ordering::Acquire) {
            return;
        }
        let index = router.whereabouts.index();
        if self.seen.load(Ordering::Acquire) == index {
            return;
        }
        let gone: Vec<Arc<Peer>> = {
            let peers = self.peers.read();
            let is_gone = |peer: &&Arc<Peer>| !router.whereabouts.is_current(peer.node, peer.incarnation);
            peers.values().filter(is_gone).cloned().collect()
        };
        for peer in gone {
            self.expire(router, peer.node, peer.incarnation);
        }
        // After the work: whoever sees the new index sees its consequences.
        self.seen.store(index, Ordering::Release);
    }

    /// A node is gone: what it has not settled is routed anew, before anything later to the same receivers.
    pub(crate) fn expire(&self, router: &Arc<Router>, node: NodeId, incarnation: Incarnation) {
        let peer = {
            let mut peers = self.peers.write();
            let peer = peers.remove(&(node, incarnation));
            self.some.store(!peers.is_empty(), Ordering::Release);
            // Under the lock, so that nobody finds the peer missing and its stanzas not yet in their queues.
            peer.inspect(|peer| peer.lanes.iter().for_each(|lane| lane.expire(router)))
        };
        if peer.is_some() {
            tracing::info!(%node, %incarnation, "a peer is gone, what it had not settled is routed anew");
        }
    }

    /// What is on its way to the account over any node but `except`.
    pub(crate) fn in_flight(&self, account: &BareJid, except: Option<NodeId>) -> Option<InFlight> {
        if !self.some.load(Ordering::Acquire) {
            return None;
        }
        let key = key(account.as_str());
        for peer in self.peers.read().values().filter(|peer| Some(peer.node) != except) {
            let lane = &peer.lanes[lane_of(key)];
            if lane.unreceived.load(Ordering::Acquire) == 0 {
                continue;
            }
            if let Some((_, number)) = lane.state.lock().in_flight.get(&key) {
                return Some(InFlight { lane: lane.clone(), number: *number });
            }
        }
        None
    }

    /// Every lane, for the metrics.
    pub(crate) fn facts(&self) -> Vec<LaneFacts> {
        let peers = self.peers.read();
        let lanes = peers.values().flat_map(|peer| peer.lanes.iter());
        lanes
            .map(|lane| {
                let state = lane.state.lock();
                LaneFacts {
                    node: lane.node.0,
                    incarnation: lane.incarnation.0,
                    lane: lane.lane,
                    connected: state.connected,
                    unreceived: state.unreceived(),
                    unsettled: state.unsettled,
                    unsettled_bytes: state.unsettled_bytes,
                }
            })
            .collect()
    }
}

impl Router {
    /// Gives a stanza to another node: to these sessions, or to the account's there.
    pub(crate) fn relay(
        self: &Arc<Self>,
        account: &BareJid,
        mut transit: Transit,
        node: NodeId,
        incarnation: Incarnation,
        sids: &[Sid],
    ) {
        if transit.hops >= HOPS_MAX {
            // Tables that point at each other: as if the receiver had no session.
            transit.attempts = u8::MAX;
            return self.queues.give_back(self, account, [Work::Stanza(Box::new(transit))]);
        }
        let purpose = match transit.stage {
            Stage::Fresh => Purpose::Arrive,
            Stage::Here => Purpose::Here,
            Stage::Past => Purpose::Deliver,
        };
        let targets = match sids {
            [] => vec![envelope::target(None, None)],
            sids => sids.iter().map(|sid| envelope::target(None, Some(*sid))).collect(),
        };
        let key = key(account.as_str());
        let item = Item {
            parcel: envelope::seal(&transit.stanza, purpose, transit.hops + 1, targets),
            accounts: Keys::One(key),
            sid: if let [sid] = sids { Some(*sid) } else { None },
            attempts: transit.attempts,
            receipt: transit.receipt.clone(),
            settled: false,
        };
        let peer = self.peers.get(self, node, incarnation);
        match peer.lanes[lane_of(key)].submit(item, &self.config) {
            Ok(()) => self.finish(&transit, Fate::Relayed),
            Err(Refused::Full) => self.bounce_at_bound(transit),
            Err(Refused::Gone) => self.queues.give_back(self, account, [Work::Stanza(Box::new(transit))]),
        }
    }

    /// Gives presence to many accounts at another node: one body, one parcel for each lane.
    pub(crate) fn relay_many(
        self: &Arc<Self>,
        stanza: &Stanza,
        node: NodeId,
        incarnation: Incarnation,
        receivers: Vec<(Jid, u64)>,
    ) {
        let peer = self.peers.get(self, node, incarnation);
        let mut lanes: Vec<(Vec<Target>, Vec<u64>)> = vec![Default::default(); LANES as usize];
        for (to, key) in receivers {
            let (targets, keys) = &mut lanes[lane_of(key)];
            targets.push(envelope::target(Some(&to), None));
            keys.push(key);
        }
        for (lane, (targets, keys)) in peer.lanes.iter().zip(lanes) {
            if targets.is_empty() {
                continue;
            }
            let receivers = keys.len();
            let item = Item {
                parcel: envelope::seal(stanza, Purpose::Here, 1, targets),
                accounts: Keys::Many(keys.into()),
                sid: None,
                attempts: 0,
                receipt: Receipt::none(),
                settled: false,
            };
            let fate = match lane.submit(item, &self.config) {
                Ok(()) => Fate::Relayed,
                // Presence is never answered; its receivers ask again when they come back (RFC 6121, 4.3).
                Err(_) => Fate::Ignored,
            };
            for _ in 0..receivers {
                self.counters.count(stanza.head.kind, fate);
            }
        }
    }
}

impl Lane {
    fn new(node: NodeId, incarnation: Incarnation, numbering: Incarnation, lane: u32) -> Lane {
        Lane {
            node,
            incarnation,
            numbering,
            lane,
            state: Mutex::new(LaneState { oldest: 1, ..LaneState::default() }),
            unreceived: AtomicUsize::new(0),
            more: Notify::new(),
            moved: Notify::new(),
        }
    }

    fn submit(&self, item: Item, config: &Config) -> Result<(), Refused> {
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
            state.unreceived_bytes += bytes;
            state.unsettled += 1;
            state.unsettled_bytes += bytes;
            state.items.push_back(item);
            self.unreceived.store(state.unreceived(), Ordering::Release);
        }
        self.more.notify_one();
        Ok(())
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
        state.mark_received(received);
        state.sent = received;
        state.connected = true;
        self.unreceived.store(state.unreceived(), Ordering::Release);
        drop(state);
        self.moved.notify_waiters();
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
        let mut done = Vec::new();
        state.mark_received(ack.received);
        for number in state.oldest..=ack.settled {
            done.extend(state.settle(number));
        }
        for number in ack.settled_also {
            done.extend(state.settle(number));
        }
        state.trim();
        self.unreceived.store(state.unreceived(), Ordering::Release);
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
    fn expire(&self, router: &Arc<Router>) {
        let mut state = self.state.lock();
        state.gone = true;
        state.connected = false;
        let items = std::mem::take(&mut state.items);
        *state = LaneState { oldest: state.next(), gone: true, ..LaneState::default() };
        self.unreceived.store(0, Ordering::Release);
        for item in items.into_iter().filter(|item| !item.settled) {
            let Ok(opened) = envelope::open(item.parcel) else { continue };
            let stage = match opened.purpose {
                Purpose::Arrive => Stage::Fresh,
                Purpose::Deliver => Stage::Past,
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

    fn mark_received(&mut self, received: u64) {
        for number in self.received + 1..=received {
            let Some(at) = number.checked_sub(self.oldest) else { continue };
            let Some(item) = self.items.get(at as usize) else { break };
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
    }

    /// Gives the receipt back if it was not settled before.
    fn settle(&mut self, number: u64) -> Option<Receipt> {
        let at = usize::try_from(number.checked_sub(self.oldest)?).ok()?;
        let item = self.items.get_mut(at).filter(|item| !item.settled)?;
        item.settled = true;
        self.unsettled -= 1;
        self.unsettled_bytes -= item.parcel.len();
        Some(std::mem::take(&mut item.receipt))
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
