//! The nodes that this one sends to: which lane takes what, and what is done when a node is gone.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cluster::{Incarnation, NodeId, Sid};
use jid::{BareJid, Jid};
use parking_lot::RwLock;
use proto::relay::{Purpose, Target};
use stanza::Stanza;

use crate::config::{HOPS_MAX, LANES};
use crate::envelope;
use crate::lane::{InFlight, Item, Keys, Lane, Leaving, Refused};
use crate::link;
use crate::metrics::{Fate, LaneFacts};
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

    /// The peer, made at its first stanza; `None` if it is gone by now, whatever the sender saw before.
    fn get(&self, router: &Arc<Router>, node: NodeId, incarnation: Incarnation) -> Option<Arc<Peer>> {
        if let Some(peer) = self.peers.read().get(&(node, incarnation)) {
            return Some(peer.clone());
        }
        let mut peers = self.peers.write();
        // Under the lock that its end takes, which comes after the table has shown it: a peer that is made later
        // would keep what it is given for ever, and all that comes behind it.
        if !router.whereabouts.is_current(node, incarnation) {
            return None;
        }
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
        Some(peer.clone())
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
            // Under the lock, so that nobody finds the peer missing and its stanzas not yet in their queues.
            peer.iter().flat_map(|peer| &peer.lanes).for_each(|lane| lane.expire(router));
            // Behind that: whoever reads that there is no peer asks for no lock.
            self.some.store(!peers.is_empty(), Ordering::Release);
            peer
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
            if let Some(in_flight) = lane.in_flight(key) {
                return Some(in_flight);
            }
        }
        None
    }

    /// What is on its way to `node` for a session of the account that has ended: it will be refused there, and is older
    /// than what goes to the same node for another session.
    pub(crate) fn on_its_way_back(
        &self,
        router: &Router,
        account: &BareJid,
        node: NodeId,
    ) -> Option<InFlight> {
        if !self.some.load(Ordering::Acquire) {
            return None;
        }
        let key = key(account.as_str());
        let rows = LazyCell::new(|| router.whereabouts.users(account));
        let is_here = |sid| rows.iter().any(|row| row.sid == sid);
        let peers = self.peers.read();
        let lanes = peers.values().filter(|peer| peer.node == node).map(|peer| &peer.lanes[lane_of(key)]);
        lanes.into_iter().find_map(|lane| {
            // In this order: nearly always nothing is on its way.
            let in_flight = lane.in_flight(key)?;
            lane.leaving(key, is_here).map(|_| in_flight)
        })
    }

    /// What a node other than `except` still has for a session of the account that has ended.
    pub(crate) fn leaving(
        &self,
        router: &Router,
        account: &BareJid,
        except: Option<NodeId>,
    ) -> Option<Leaving> {
        if !self.some.load(Ordering::Acquire) {
            return None;
        }
        let key = key(account.as_str());
        // Looked up once, and only where something is unsettled.
        let rows = LazyCell::new(|| router.whereabouts.users(account));
        let peers = self.peers.read();
        let others = peers.values().filter(|peer| Some(peer.node) != except);
        others
            .map(|peer| &peer.lanes[lane_of(key)])
            .find_map(|lane| lane.leaving(key, |sid| rows.iter().any(|row| row.sid == sid)))
    }

    /// Every lane, for the metrics.
    pub(crate) fn facts(&self) -> Vec<LaneFacts> {
        let peers = self.peers.read();
        peers.values().flat_map(|peer| peer.lanes.iter()).map(|lane| lane.facts()).collect()
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
            Stage::Past if transit.handed_over => Purpose::HandOver,
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
            underway: transit.underway.clone(),
            follows: transit.handed_over || transit.follows,
        };
        let submitted = match self.peers.get(self, node, incarnation) {
            Some(peer) => peer.lanes[lane_of(key)].submit(item, &self.config),
            None => Err(Refused::Gone),
        };
        match submitted {
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
        let Some(peer) = self.peers.get(self, node, incarnation) else {
            // Its sessions are gone, and presence is never answered.
            receivers.iter().for_each(|_| self.counters.count(stanza.head.kind, Fate::Ignored));
            return;
        };
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
                underway: None,
                follows: false,
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
