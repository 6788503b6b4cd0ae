//! This node's copy of the route table: lookups that never wait, applied entries, and what they set off.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jid::{BareJid, FullJid};
use parking_lot::RwLock;

use crate::{
    role::{Incarnation, NodeId},
    routes::{NodeRow, NodeState, Routes, Row},
};

/// A view of the route table as this node has applied it; lookups are local and never wait.
#[derive(Debug, Default)]
pub struct TableView {
    // One shard today. The key is the bare JID, so that there can be more of them.
    pub(crate) routes: RwLock<Routes>,
    kicks: AtomicU64,
}

impl TableView {
    /// The visible sessions of an account.
    pub fn users(&self, account: &BareJid) -> Vec<Row> {
        self.routes.read().users(account).cloned().collect()
    }

    /// Looks at the visible sessions of an account without a copy. The table is locked meanwhile: do not await
    /// or look up anything else inside.
    pub fn with_users<T>(
        &self,
        account: &BareJid,
        look: impl FnOnce(&mut dyn Iterator<Item = &Row>) -> T,
    ) -> T {
        let routes = self.routes.read();
        let mut rows = routes.users(account);
        look(&mut rows)
    }

    /// The visible session that has a full JID.
    pub fn full(&self, jid: &FullJid) -> Option<Row> {
        self.routes.read().full(jid).cloned()
    }

    /// Every node that was not forgotten.
    pub fn nodes(&self) -> Vec<NodeRow> {
        self.routes.read().nodes().cloned().collect()
    }

    /// One node.
    pub fn node(&self, node: NodeId) -> Option<NodeRow> {
        self.routes.read().node(node).cloned()
    }

    /// Whether a node is here under that incarnation.
    pub fn is_current(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let here = |row: &NodeRow| row.incarnation == incarnation && row.state != NodeState::Gone;
        self.routes.read().node(node).is_some_and(here)
    }

    /// Whether a node is here, under whatever incarnation.
    pub fn is_here(&self, node: NodeId) -> bool {
        self.routes.read().node(node).is_some_and(|row| row.state != NodeState::Gone)
    }

    /// Grows with every session that was ordered to end, whether there was one or not, before anything agreed later
    /// can be seen; and where it is not known what was ordered. For this node alone: others count otherwise.
    pub fn kicks(&self) -> u64 {
        self.kicks.load(Ordering::Acquire)
    }

    pub(crate) fn note_kick(&self) {
        self.kicks.fetch_add(1, Ordering::Release);
    }

    /// The index of the newest entry applied here.
    pub fn index(&self) -> u64 {
        self.routes.read().index()
    }

    /// Shows every visible session, for operators: it reads the whole table, so keep `look` small.
    pub fn each(&self, look: impl FnMut(&Row)) {
        self.routes.read().each().for_each(look);
    }

    /// How many sessions are visible.
    pub fn len(&self) -> usize {
        self.routes.read().sessions()
    }

    /// How many sessions each node has that has some.
    pub fn sessions_by_node(&self) -> HashMap<NodeId, u64> {
        self.routes.read().sessions_by_node().map(|(node, sessions)| (node, sessions as u64)).collect()
    }

    /// Whether no session is visible.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Shared by whoever looks up routes.
pub type SharedTable = Arc<TableView>;
