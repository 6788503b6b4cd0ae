//! The sessions of this node: facts about each for operators, and the address of its actor.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use actix::Addr;
use hooks::{SessionView, Sid};
use jid::FullJid;
use parking_lot::Mutex;

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
    pub mechanism: Box<str>,
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
    pub mechanism: Box<str>,
    /// Kept by the outbound half, so that nobody asks an actor.
    pub queued: Arc<AtomicUsize>,
}

/// Every bound session of this node.
#[derive(Default)]
pub(crate) struct Table(Mutex<HashMap<Sid, Entry>>);

impl Table {
    pub(crate) fn add(&self, entry: Entry) {
        self.0.lock().insert(entry.view.sid(), entry);
    }

    pub(crate) fn remove(&self, sid: Sid) {
        let mut table = self.0.lock();
        table.remove(&sid);
        if table.capacity() > 1024 && table.len() * 4 < table.capacity() {
            let keep = table.len() * 2;
            table.shrink_to(keep);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    pub(crate) fn facts(&self, node: u64) -> Vec<SessionFacts> {
        let table = self.0.lock();
        let facts = |entry: &Entry| SessionFacts {
            jid: entry.view.jid().clone(),
            sid: entry.view.sid().0,
            node,
            peer: entry.peer,
            since: entry.since,
            tls: entry.tls,
            mechanism: entry.mechanism.clone(),
            priority: entry.view.priority(),
            queued: entry.queued.load(Ordering::Relaxed),
        };
        table.values().map(facts).collect()
    }

    pub(crate) fn views(&self) -> Vec<Arc<SessionView>> {
        self.0.lock().values().map(|entry| entry.view.clone()).collect()
    }

    /// Gives an order to one session; false where it is not here (any more).
    pub(crate) fn order(&self, sid: Sid, order: Order) -> bool {
        let actor = self.0.lock().get(&sid).map(|entry| entry.actor.clone());
        // A full mailbox holds an order that ends the session already.
        actor.is_some_and(|actor| actor.try_send(order).is_ok())
    }

    pub(crate) fn order_all(&self, order: Order) {
        let actors: Vec<_> = self.0.lock().values().map(|entry| entry.actor.clone()).collect();
        for actor in actors {
            let _ = actor.try_send(order);
        }
    }

    pub(crate) fn find(&self, jid: &FullJid) -> Option<Sid> {
        self.0.lock().iter().find(|(_, entry)| entry.view.jid() == jid).map(|(sid, _)| *sid)
    }
}
