//! What sessions ask of the cluster: who owns a full JID, and whether this node may serve.

use cluster::{
    BindError, Bound, Change, Cluster, ConflictPolicy, Incarnation, Living, NodeId, Sid, Unavailable,
};
use futures::future::BoxFuture;
use jid::FullJid;
use tokio::sync::mpsc::Receiver;

/// The control plane as sessions see it. [`Cluster`] is the one implementation of a running server; a test may
/// stand in with a map.
pub trait Claims: Send + Sync + 'static {
    /// This node and its incarnation.
    fn me(&self) -> (NodeId, Incarnation);
    /// Whether this node holds its lease; without it nothing is delivered and nothing bound here.
    fn is_serving(&self) -> bool;
    /// Agrees that this node's session `sid` owns `jid`.
    fn bind<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        policy: ConflictPolicy,
    ) -> BoxFuture<'a, Result<Bound, BindError>>;
    /// Takes that back; nothing happens if the session owns it no more.
    fn unbind<'a>(&'a self, jid: &'a FullJid, sid: Sid) -> BoxFuture<'a, Result<(), Unavailable>>;
    /// Goes on here with a session of another node under a new life; false if it is no longer there.
    fn attach<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        successor: Sid,
    ) -> BoxFuture<'a, Result<bool, Unavailable>>;
    /// Claims living sessions again after the lease came back; returns those whose full JIDs are taken.
    fn resync(&self, living: Vec<Living>) -> BoxFuture<'_, Result<Vec<Sid>, Unavailable>>;
    /// Grows with every order to end a session, see [`TableView::kicks`](cluster::TableView::kicks).
    fn kicks(&self) -> u64;
    /// Where a client goes that may not stay here; the same key leads to the same node.
    fn elsewhere(&self, key: &str, direct_tls: bool) -> Option<String>;
    /// What happens from now on.
    fn changes(&self) -> Receiver<Change>;
}

impl Claims for Cluster {
    fn me(&self) -> (NodeId, Incarnation) {
        Cluster::me(self)
    }

    fn is_serving(&self) -> bool {
        Cluster::is_serving(self)
    }

    fn bind<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        policy: ConflictPolicy,
    ) -> BoxFuture<'a, Result<Bound, BindError>> {
        Box::pin(Cluster::bind(self, jid, sid, policy))
    }

    fn unbind<'a>(&'a self, jid: &'a FullJid, sid: Sid) -> BoxFuture<'a, Result<(), Unavailable>> {
        Box::pin(Cluster::unbind(self, jid, sid))
    }

    fn attach<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        successor: Sid,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        Box::pin(Cluster::attach(self, jid, sid, successor))
    }

    fn resync(&self, living: Vec<Living>) -> BoxFuture<'_, Result<Vec<Sid>, Unavailable>> {
        Box::pin(Cluster::resync(self, living))
    }

    fn kicks(&self) -> u64 {
        self.routes().kicks()
    }

    fn elsewhere(&self, key: &str, direct_tls: bool) -> Option<String> {
        Cluster::elsewhere(self, key, direct_tls)
    }

    fn changes(&self) -> Receiver<Change> {
        Cluster::changes(self)
    }
}
