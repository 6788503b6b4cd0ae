//! What a handler may ask of the server; the server implements it, and so does the bench.

use std::any::Any;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use jid::{BareJid, FullJid, Jid};
use stanza::{Stanza, StreamError};
use store::{AccountError, AccountState, Store, StoreError};

use crate::card::Card;
use crate::module::SessionEvent;
use crate::passage::Passage;
use crate::session::{SessionView, Sid};

/// Whether a stanza that a module sends passes the arriving handlers of its receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Like a stanza from a client that has left: arriving handlers run, then RFC 6121, section 8.
    Normal,
    /// Straight to the sessions: no arriving handlers. Delivering handlers run in any case.
    Direct,
    /// As `Direct`, and before all that waits for the account, held or not: for what is older than that.
    Ahead,
}

/// A copy in the store of a stanza that is on its way to a session ([`Services::route_kept`]). One of the two is called,
/// once, unless this node dies before: then the copy is what is left of it.
pub trait Kept: Send + Sync + 'static {
    /// The stanza was written to its client, or answered with an error: the copy is no longer needed.
    fn written(&self) -> BoxFuture<'static, ()>;

    /// No session has written it, and none will: it is for whoever kept it to say what becomes of it.
    fn returned(&self) -> BoxFuture<'static, ()>;
}

/// While it lives, messages to one account wait at this node (see [`Services::hold`]).
#[must_use = "a hold ends when it is dropped"]
pub struct Hold {
    _guard: Box<dyn Any + Send + Sync>,
}

impl Hold {
    /// A hold that ends when `guard` is dropped.
    pub fn new(guard: impl Any + Send + Sync) -> Hold {
        Hold { _guard: Box::new(guard) }
    }
}

/// What is done again and again ([`Services::repeat`]).
pub trait Repeated: Send + Sync + 'static {
    /// Does it once.
    fn once<'a>(&'a self, services: &'a Arc<dyn Services>) -> BoxFuture<'a, ()>;
}

/// A removal of an account that has begun and goes on by itself.
pub struct Removal {
    end: BoxFuture<'static, Result<u32, AccountError>>,
}

impl Removal {
    /// A removal that ends when `end` does.
    pub fn new(end: impl Future<Output = Result<u32, AccountError>> + Send + 'static) -> Removal {
        Removal { end: Box::pin(end) }
    }

    /// Waits for the end; how many sessions were ended with the account. Nobody has to wait.
    ///
    /// # Errors
    /// What could not be done; the account is locked all the same, and the rest is tried again later.
    pub async fn end(self) -> Result<u32, AccountError> {
        self.end.await
    }
}

/// A session of an account, wherever in the cluster it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub jid: FullJid,
    pub sid: Sid,
    /// `None`: bound, but not available, or not to be seen to be so (XEP-0186).
    pub priority: Option<i8>,
    /// The priority for what is sent to it: the same, but that a session has it which is not to be seen. Nothing that
    /// others hear may follow from it.
    pub takes: Option<i8>,
    /// Its session is on this node.
    pub here: bool,
}

/// What the server says about itself (XEP-0092).
#[derive(Debug, Clone)]
pub struct About {
    pub name: &'static str,
    pub version: &'static str,
    /// How long this node has been up.
    pub uptime: Duration,
}

/// The server, as handlers see it.
///
/// Calls that write to the cluster or the store have deadlines of their own and fail with a
/// `StoreError`; calls that send never fail: what cannot be delivered is stored or bounced.
pub trait Services: Send + Sync + 'static {
    fn store(&self) -> &Store;

    /// Sends a stanza on its way; `from` and `to` must be set. Returns when it was handed on.
    fn route(&self, stanza: Stanza, how: How) -> BoxFuture<'_, ()>;

    /// Sends a stanza in the name of the session whose own is at hand on leaving, in its place or as one of several: that
    /// one counts as handled for its client (XEP-0198) once this one is too. Returns when it was handed on.
    fn pass_on<'a>(&'a self, passage: &'a Passage, stanza: Stanza) -> BoxFuture<'a, ()>;

    /// Sends a stanza of which the store has a copy to one session of the account in its `to`, as [`How::Ahead`] does, and
    /// says what became of it: where that session has gone it counts as returned. So nothing is lost with a node that
    /// hands over what was kept. Returns when it was handed on.
    fn route_kept(&self, stanza: Stanza, session: Sid, kept: Arc<dyn Kept>) -> BoxFuture<'_, ()>;

    /// Sends one stanza to many receivers: one body, one envelope per node. Arriving handlers
    /// run, and `to` of the stanza given is ignored.
    fn fan_out(&self, stanza: Stanza, to: Vec<Jid>) -> BoxFuture<'_, ()>;

    /// Puts a stanza into the mailbox of one session of this node, whatever its `to` says (RFC 6121, 8.5.2.1:
    /// the `to` of what was sent to an account is not rewritten); delivering handlers run. Where the session
    /// has ended, or ends before it has written the stanza, nobody gets it.
    fn hand(&self, session: &SessionView, stanza: Stanza);

    /// Ends a session of this node: its client is told `error` and its stream is closed. What waits for it goes on to
    /// another session, or is kept. Returns when that is ordered: what was read of its client by then may still come.
    fn dismiss<'a>(&'a self, session: &'a SessionView, error: StreamError) -> BoxFuture<'a, ()>;

    /// Every session of the account in the cluster, as this node knows it; awaits nothing.
    fn online(&self, account: &BareJid) -> Vec<Resource>;

    /// Whether [`Services::online`] has no session but this one, or none at all: most messages need to know no more.
    fn has_only(&self, account: &BareJid, sid: Option<Sid>) -> bool {
        let online = self.online(account);
        match sid {
            Some(sid) => online.iter().all(|other| other.sid == sid),
            None => online.len() < 2,
        }
    }

    /// Whether sessions may lately have gone without a word, with their node or because it was not heard: what is told of
    /// them may come twice, and what they said themselves late.
    fn may_sessions_be_away(&self) -> bool;

    /// The account's sessions on this node.
    fn local_sessions(&self, account: &BareJid) -> Vec<Arc<SessionView>>;

    /// Agrees in the cluster on the priority of a session, and notes it in the view. `None`: not
    /// available. When it returns, `online` on this node knows it. A session that was hidden is seen from then on.
    fn set_priority<'a>(
        &'a self,
        session: &'a SessionView,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// As `set_priority`, of a session that nobody is to see at any node (XEP-0186).
    fn hide<'a>(
        &'a self,
        session: &'a SessionView,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Lets messages to the account wait at this node, in their order, until the hold is dropped; what is
    /// sent with [`How::Ahead`] passes. A session that is about to be shown to the cluster as one that takes
    /// messages begins it before, and ends it when it has what was kept for it, so that nothing newer
    /// overtakes that.
    fn hold(&self, account: &BareJid) -> Hold;

    /// When it returns, `online` is at least as new as the cluster was at the time of the call.
    fn read_barrier(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    fn account_exists<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Whether the operators have named the account as one that may administer the server.
    fn is_admin(&self, account: &BareJid) -> bool;

    /// Makes an account, with keys that are made of the password off this thread.
    fn create_account<'a>(
        &'a self,
        account: &'a BareJid,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), AccountError>>;

    /// Replaces the password of an account, with keys that are made of it off this thread. From its return every
    /// login at every node needs the new one; sessions go on.
    fn set_password<'a>(
        &'a self,
        account: &'a BareJid,
        password: &'a str,
    ) -> BoxFuture<'a, Result<(), AccountError>>;

    /// Begins to remove an account; when it returns, the account is there for nobody any more. Then `last` is
    /// given to the session that it is for, the sessions of the account end at every node, modules are told
    /// (`Forgetting`), and all that its partition holds is erased.
    fn remove_account<'a>(
        &'a self,
        account: &'a BareJid,
        last: Option<Stanza>,
    ) -> BoxFuture<'a, Result<Removal, AccountError>>;

    /// Lets nobody log in to an account and ends its sessions everywhere; how many. All that is kept for it stays.
    fn disable_account<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<u32, AccountError>>;

    /// Lets the owner of a disabled account log in again.
    fn enable_account<'a>(&'a self, account: &'a BareJid) -> BoxFuture<'a, Result<(), AccountError>>;

    /// Ends the session that has a full JID, or all of an account, at whatever nodes; how many.
    fn end_sessions<'a>(&'a self, jid: &'a Jid) -> BoxFuture<'a, Result<u32, StoreError>>;

    /// The accounts of a host behind a bare JID, by their names, with their states; at most `limit`.
    fn accounts<'a>(
        &'a self,
        host: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<(String, AccountState)>, StoreError>>;

    /// The accounts of a host with an available session somewhere, as this node knows it. Goes through all sessions
    /// of the cluster: for operators.
    fn users_online(&self, host: &str) -> Vec<BareJid>;

    /// Tells every `Following` module; awaits them one after the other.
    fn announce(&self, event: SessionEvent) -> BoxFuture<'_, ()>;

    /// The hosts that this server serves.
    fn hosts(&self) -> &[String];

    fn is_local_host(&self, domain: &str) -> bool {
        self.hosts().iter().any(|host| host == domain)
    }

    /// Lets all others have their turn: for work that is long, between its slices.
    fn pause(&self) -> BoxFuture<'_, ()>;

    /// Does something after a while, unless the node stops before: to try again what a store or a cluster that is not
    /// whole did not do. Whoever asks for it bounds how often.
    fn later(&self, after: Duration, what: BoxFuture<'static, ()>);

    /// Does something again and again, with that much time between the end of one and the beginning of the next, until the
    /// node stops. `what` gets the server each time, and must not hold it.
    fn repeat(&self, every: Duration, what: Box<dyn Repeated>);

    /// Adds one to what the metrics of this node say of a module: `event` is one of a few words that it has.
    fn count(&self, module: &'static str, event: &'static str);

    fn now(&self) -> SystemTime;

    /// Fills `buffer` with random bytes fit for secrets.
    fn random(&self, buffer: &mut [u8]);

    fn about(&self) -> About;

    /// The cards of all modules that are on for `host`, in their order.
    fn cards(&self, host: &str) -> Vec<Card>;
}
