//! The one decision on the way of a stanza: here, a peer, a service or another domain; and what sessions call.

use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use hooks::{Accounts, Passage, Registry, Services, SessionView, Store};
use jid::FullJid;
use tokio::runtime::Handle;

use crate::config::Config;
use crate::mailboxes::{Delivery, Mailbox, MailboxLimits, Mailboxes, Waiting};
use crate::metrics::{Counters, LaneFacts};
use crate::whereabouts::SharedWhereabouts;

/// What the router is built from.
pub struct Deps {
    /// Who is where: the cluster.
    pub whereabouts: SharedWhereabouts,
    /// The hook chains.
    pub registry: Arc<Registry>,
    /// What modules keep things in.
    pub store: Store,
    /// The hosts that this server serves, prepared.
    pub hosts: Vec<String>,
    /// Name and version that the server tells about itself (XEP-0092).
    pub about: (&'static str, &'static str),
    /// The clock that modules see.
    pub clock: fn() -> SystemTime,
    /// Fills a buffer with random bytes fit for secrets.
    pub random: fn(&mut [u8]),
}

/// Carries stanzas. Every session of the node, every module and every other node hands them to it.
pub struct Router {
    pub(crate) myself: Weak<Router>,
    pub(crate) whereabouts: SharedWhereabouts,
    pub(crate) registry: Arc<Registry>,
    pub(crate) store: Store,
    pub(crate) accounts: Accounts,
    pub(crate) hosts: Vec<String>,
    pub(crate) about: (&'static str, &'static str),
    pub(crate) clock: fn() -> SystemTime,
    pub(crate) random: fn(&mut [u8]),
    pub(crate) config: Config,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) counters: Counters,
    pub(crate) runtime: Handle,
    pub(crate) since: Instant,
}

impl Router {
    /// Starts the router: it follows the changes of the cluster from now on. Call it on the runtime that is to
    /// carry links and waiting handlers, not on the arbiter of a session.
    pub fn start(deps: Deps, config: Config) -> Arc<Router> {
        let limits = MailboxLimits { stanzas: config.mailbox_stanzas, bytes: config.mailbox_bytes };
        Arc::new_cyclic(|myself| Router {
            myself: myself.clone(),
            whereabouts: deps.whereabouts,
            registry: deps.registry,
            accounts: Accounts::new(deps.store.clone()),
            store: deps.store,
            hosts: deps.hosts,
            about: deps.about,
            clock: deps.clock,
            random: deps.random,
            config,
            mailboxes: Mailboxes::new(limits),
            counters: Counters::default(),
            runtime: Handle::current(),
            since: Instant::now(),
        })
    }

    /// Sends what a session of this node said, after the leaving handlers passed it; `from` is stamped. Never
    /// fails and never waits for another actor or node: what cannot be delivered is stored or bounced. Stanzas
    /// of one session to one receiver keep the order of the calls.
    pub async fn send(&self, passage: Passage) {
        let _ = passage;
    }

    /// Opens the mailbox of a session, right after it was bound. The mailbox goes to the connection's outbound
    /// half.
    pub fn open(&self, view: Arc<SessionView>) -> Mailbox {
        self.mailboxes.open(view)
    }

    /// Closes the mailbox of a session that ended, whatever became of the `Mailbox`; call it after the route
    /// was taken back (or lost). `unwritten` is what was drained and not written; with what still waits it is
    /// routed anew: to another session of the account, to the offline store, or back to its sender.
    pub fn close(&self, view: &SessionView, unwritten: Vec<Delivery>) {
        self.mailboxes.close(view, unwritten);
    }

    /// This router, as modules see it.
    pub fn services(&self) -> Arc<dyn Services> {
        match self.myself.upgrade() {
            Some(router) => router,
            // Whoever calls a method of the router holds it.
            None => unreachable!("the router lives while it is called"),
        }
    }

    /// The gRPC service that other nodes send to; mount it on the cluster's listener, beside the cluster's.
    pub fn relay_service(&self) -> proto::relay::relay_server::RelayServer<crate::relay::RelayService> {
        proto::relay::relay_server::RelayServer::new(crate::relay::RelayService::new(self.myself.clone()))
    }

    /// What became of stanzas so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What waits in the mailboxes of all sessions of this node.
    pub fn waiting(&self) -> &Arc<Waiting> {
        self.mailboxes.waiting()
    }

    /// Stanzas that wait for one session of this node.
    pub fn queue_depth(&self, jid: &FullJid) -> usize {
        let _ = jid;
        0
    }

    /// The lanes to other nodes, as they are now.
    pub fn lanes(&self) -> Vec<LaneFacts> {
        Vec::new()
    }
}
