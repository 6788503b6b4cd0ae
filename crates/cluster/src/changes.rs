//! What the rest of the server must hear of: a lost full JID, a lost node, a lost lease.

use jid::FullJid;
use tokio::time::Instant;

use crate::{
    role::{Incarnation, NodeId, Sid},
    routes::Loss,
};

/// A session that died with its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostSession {
    /// Its full JID.
    pub jid: FullJid,
    /// Its life.
    pub sid: Sid,
    /// The priority that it had; `None` if it was not available, or did not show that it was.
    pub priority: Option<i8>,
}

/// One change, in the order of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A session of this node lost its full JID and must close.
    Displaced {
        /// The full JID that it had.
        jid: FullJid,
        /// Its life.
        sid: Sid,
        /// Why.
        loss: Loss,
    },
    /// A node's incarnation ended: killed, restarted, or cut off for too long. Every node hears of it.
    NodeGone {
        /// The node.
        node: NodeId,
        /// The incarnation that ended.
        incarnation: Incarnation,
        /// The sessions that ended with it.
        lost: std::sync::Arc<[LostSession]>,
    },
    /// A node came up, under a new incarnation.
    NodeUp {
        /// The node.
        node: NodeId,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A node takes nothing new from now on.
    NodeDraining {
        /// The node.
        node: NodeId,
    },
    /// This node has fenced itself: it must deliver nothing and bind nothing until [`Change::LeaseBack`].
    LeaseLost {
        /// How long its clients wait for that; without it by then they are to go elsewhere.
        until: Instant,
    },
    /// This node serves again, under a new incarnation; its older sessions are no longer in the table.
    LeaseBack {
        /// The new incarnation.
        incarnation: Incarnation,
    },
}
