//! What the router asks of the cluster: who is where, and how to reach another node.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Change, Cluster, Incarnation, NodeId, NodeRow, Row, Sid, Unavailable};
use futures::future::BoxFuture;
use jid::{BareJid, FullJid};
use stanza::address::same_account;
use tokio::sync::mpsc::Receiver;
use tokio::time::Instant;
use tonic::transport::Channel;

/// The control plane as the data plane sees it. [`Cluster`] is the one implementation of a running server; a
/// test may stand in with a map.
pub trait Whereabouts: Send + Sync + 'static {
    /// This node and its incarnation.
    fn me(&self) -> (NodeId, Incarnation);
    /// Whether this node holds its lease; without it nothing is delivered here.
    fn is_serving(&self) -> bool;
    /// The visible sessions of an account, by this node's copy of the table.
    fn users(&self, account: &BareJid) -> Vec<Row>;
    /// Whether the account has no session but that one; without one, whether it has one at most.
    fn has_only(&self, account: &BareJid, sid: Option<Sid>) -> bool {
        let rows = self.users(account);
        sid.map_or(rows.len() < 2, |sid| rows.iter().all(|row| row.sid == sid))
    }
    /// The accounts of a host with an available session, each once, by this node's copy of the table; for operators.
    fn online(&self, host: &str) -> Vec<BareJid>;
    /// Every node.
    fn nodes(&self) -> Vec<NodeRow>;
    /// Whether a node is here under that incarnation.
    fn is_current(&self, node: NodeId, incarnation: Incarnation) -> bool;
    /// Whether a node is here, under whatever incarnation.
    fn is_here(&self, node: NodeId) -> bool;
    /// Index of the newest entry in this node's table.
    fn index(&self) -> u64;
    /// Waits for an index, until the deadline at most; whether it came.
    fn wait_index(&self, index: u64, within: Duration) -> BoxFuture<'_, bool>;
    /// Waits until the table here is as new as the leader's at the call.
    fn barrier(&self) -> BoxFuture<'_, Result<u64, Unavailable>>;
    /// Agrees on the priority of a session of this node.
    fn set_priority<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), Unavailable>>;
    /// As `set_priority`, of a session that is shown to nobody (XEP-0186), until that is called for it.
    fn hide<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), Unavailable>>;
    /// Takes a full JID from whoever has it, whose session ends with that; whether somebody had it.
    fn kick<'a>(&'a self, jid: &'a FullJid) -> BoxFuture<'a, Result<bool, Unavailable>>;
    /// A link to another node, if its address is known.
    fn channel(&self, node: NodeId) -> Option<Channel>;
    /// What happens from now on.
    fn changes(&self) -> Receiver<Change>;
}

impl Whereabouts for Cluster {
    fn me(&self) -> (NodeId, Incarnation) {
        Cluster::me(self)
    }

    fn is_serving(&self) -> bool {
        Cluster::is_serving(self)
    }

    fn users(&self, account: &BareJid) -> Vec<Row> {
        self.routes().users(account)
    }

    fn has_only(&self, account: &BareJid, sid: Option<Sid>) -> bool {
        self.routes().with_users(account, |mut rows| match sid {
            Some(sid) => (&mut rows).all(|row| row.sid == sid),
            None => rows.nth(1).is_none(),
        })
    }

    fn online(&self, host: &str) -> Vec<BareJid> {
        let mut online: Vec<BareJid> = Vec::new();
        self.routes().each(|row| {
            let is_online = row.priority.is_some() && row.jid.domain().as_str() == host;
            // The sessions of an account come one after the other.
            if is_online && !online.last().is_some_and(|last| same_account(&row.jid, last)) {
                online.push(row.jid.to_bare());
            }
        });
        online
    }

    fn nodes(&self) -> Vec<NodeRow> {
        self.routes().nodes()
    }

    fn is_current(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.routes().is_current(node, incarnation)
    }

    fn is_here(&self, node: NodeId) -> bool {
        self.routes().is_here(node)
    }

    fn index(&self) -> u64 {
        self.routes().index()
    }

    fn wait_index(&self, index: u64, within: Duration) -> BoxFuture<'_, bool> {
        Box::pin(Cluster::wait_index(self, index, Instant::now() + within))
    }

    fn barrier(&self) -> BoxFuture<'_, Result<u64, Unavailable>> {
        Box::pin(Cluster::barrier(self))
    }

    fn set_priority<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        Box::pin(Cluster::set_priority(self, jid, sid, priority))
    }

    fn hide<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        Box::pin(Cluster::hide(self, jid, sid, priority))
    }

    fn kick<'a>(&'a self, jid: &'a FullJid) -> BoxFuture<'a, Result<bool, Unavailable>> {
        Box::pin(Cluster::kick(self, jid))
    }

    fn channel(&self, node: NodeId) -> Option<Channel> {
        self.peer_channel(node)
    }

    fn changes(&self) -> Receiver<Change> {
        Cluster::changes(self)
    }
}

/// A shared [`Whereabouts`].
pub type SharedWhereabouts = Arc<dyn Whereabouts>;
