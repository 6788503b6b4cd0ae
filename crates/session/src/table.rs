//! The sessions of this node: facts about each for operators, and the address of its actor.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use actix::Addr;
use hooks::{SessionView, Sid};
use jid::FullJid;
use parking_lot::Mutex;
use stream::sasl::MechanismName;

use crate::outliving::{Taker, Yield};
use crate::session::{Order, Session};

/// What an operator may know about a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// Whose it is.
    pub jid: FullJid,
    /// The random name of this life of the session.
    pub sid: u128,
    /// The node that owns it.
    pub node: u64,
    /// Where the client is connected from.
    pub peer: SocketAddr,
    /// When it was bound.
    pub since: SystemTime,
    /// The version of TLS, `None` in the clear.
    pub tls: Option<&'static str>,
    /// The SASL mechanism that it logged in with.
    pub mechanism: &'static str,
    /// The priority of its presence; `None` where it is not available.
    pub priority: Option<i8>,
    /// Stanzas that wait to be written to it.
    pub queued: usize,
}

/// One line of the table.
pub(crate) struct Entry {
    pub view: Arc<SessionView>,
    pub actor: Addr<Session>,
    pub peer: SocketAddr,
    pub since: SystemTime,
    pub tls: Option<&'static str>,
    pub mechanism: &'static str,
    /// How it is given to another connection.
    pub yielding: Arc<Yield>,
}

/// Every bound session of this node.
#[derive(Default)]
pub(crate) struct Table(Mutex<Lines>);

#[derive(Default)]
struct Lines {
    sessions: HashMap<Sid, Entry>,
    /// Sessions that are being bound, with the order that came before their actor was there.
    binding: HashMap<Sid, Option<Order>>,
    /// Those among them that were not brought back with the others, since they had no actor.
    missed: HashSet<Sid>,
}

impl Table {
    /// A session is about to be bound: from now on, orders to it are kept.
    pub(crate) fn begin(&self, sid: Sid) {
        self.0.lock().binding.insert(sid, None);
    }

    /// It has an actor now, which gets the order that was kept for it. Whether the others were brought back
    /// without it since it began.
    pub(crate) fn add(&self, entry: Entry) -> bool {
        let mut lines = self.0.lock();
        let kept = lines.binding.remove(&entry.view.sid()).flatten();
        if let Some(order) = kept {
            let _ = entry.actor.try_send(order);
        }
        if kept == Some(Order::CutOff) {
            // It must not be brought back.
            return false;
        }
        let missed = lines.missed.remove(&entry.view.sid());
        lines.sessions.insert(entry.view.sid(), entry);
        missed
    }

    /// It has ended, or was never bound.
    pub(crate) fn remove(&self, sid: Sid) {
        let mut lines = self.0.lock();
        lines.binding.remove(&sid);
        lines.missed.remove(&sid);
        lines.sessions.remove(&sid);
        let (len, capacity) = (lines.sessions.len(), lines.sessions.capacity());
        if capacity > 1024 && len * 4 < capacity {
            lines.sessions.shrink_to(len * 2);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().sessions.len()
    }

    /// Facts about all of them; `queued` tells how much waits for one.
    pub(crate) fn facts(&self, node: u64, queued: impl Fn(&FullJid) -> usize) -> Vec<SessionFacts> {
        let facts = |entry: &Entry| SessionFacts {
            jid: entry.view.jid().clone(),
            sid: entry.view.sid().0,
            node,
            peer: entry.peer,
            since: entry.since,
            tls: entry.tls,
            mechanism: entry.mechanism,
            priority: entry.view.priority(),
            queued: 0,
        };
        let mut all: Vec<_> = self.0.lock().sessions.values().map(facts).collect();
        // Not under the lock: the mailboxes have locks of their own.
        all.iter_mut().for_each(|facts| facts.queued = queued(&facts.jid));
        all
    }

    pub(crate) fn views(&self) -> Vec<Arc<SessionView>> {
        self.0.lock().sessions.values().map(|entry| entry.view.clone()).collect()
    }

    /// The sessions of accounts that the store knows; guests have none.
    pub(crate) fn with_keys(&self) -> Vec<Arc<SessionView>> {
        let lines = self.0.lock();
        let known =
            lines.sessions.values().filter(|entry| entry.mechanism != MechanismName::Anonymous.as_str());
        known.map(|entry| entry.view.clone()).collect()
    }

    /// Gives an order to one session; false where it is not here (any more).
    pub(crate) fn order(&self, sid: Sid, order: Order) -> bool {
        let mut lines = self.0.lock();
        if let Some(kept) = lines.binding.get_mut(&sid) {
            kept.get_or_insert(order);
            return true;
        }
        // A full mailbox holds an order that ends the session already.
        lines.sessions.get(&sid).is_some_and(|entry| entry.actor.try_send(order).is_ok())
    }

    /// Orders a session that can be resumed to go to `taker`. False where there is no such session, or somebody else was
    /// quicker.
    pub(crate) fn take(&self, sid: Sid, taker: Taker) -> bool {
        let mut lines = self.0.lock();
        let Some(entry) = lines.sessions.get(&sid) else { return false };
        let is_here = matches!(taker, Taker::Here(_));
        if !entry.yielding.offer(taker) || entry.actor.try_send(Order::Yield).is_err() {
            return false;
        }
        if is_here {
            // Orders are kept until it has an actor again.
            lines.binding.insert(sid, None);
            lines.sessions.remove(&sid);
        }
        true
    }

    /// All that are bound.
    pub(crate) fn sids(&self) -> Vec<Sid> {
        self.0.lock().sessions.keys().copied().collect()
    }

    pub(crate) fn order_all(&self, order: Order) {
        for entry in self.0.lock().sessions.values() {
            let _ = entry.actor.try_send(order);
        }
    }

    /// The sessions that are to be brought back into the cluster's table. Those that are being bound learn it
    /// when they are added.
    pub(crate) fn returning(&self) -> Vec<Arc<SessionView>> {
        let lines = &mut *self.0.lock();
        lines.missed.extend(lines.binding.keys());
        lines.sessions.values().map(|entry| entry.view.clone()).collect()
    }

    /// Ends all sessions, so that none of them can be brought back; how many. Their contacts were told by
    /// other nodes.
    pub(crate) fn cut_off(&self) -> usize {
        let mut lines = self.0.lock();
        for kept in lines.binding.values_mut() {
            kept.get_or_insert(Order::CutOff);
        }
        let ended = std::mem::take(&mut lines.sessions);
        for entry in ended.values() {
            entry.view.set_presence(None);
            let _ = entry.actor.try_send(Order::CutOff);
        }
        ended.len()
    }

    pub(crate) fn find(&self, jid: &FullJid) -> Option<Sid> {
        let lines = self.0.lock();
        lines.sessions.iter().find(|(_, entry)| entry.view.jid() == jid).map(|(sid, _)| *sid)
    }
}
