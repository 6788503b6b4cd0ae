//! The one decision on the way of a stanza: here, a peer, a service or another domain; and what sessions call.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::SystemTime;

use cluster::{Incarnation, NodeId, Row, Sid};
use hooks::{Accounts, Card, Passage, Registry, Services, SessionView, Store, Underway};
use jid::{BareJid, FullJid, Jid};
use parking_lot::Mutex;
use stanza::{Condition, Kind, PresenceType, Stanza, StanzaError};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::arrival;
use crate::away::Away;
use crate::config::Config;
use crate::decision::{Address, Decision, Receiver, Subject, decide, decide_host, is_doubtful};
use crate::holds::Holds;
use crate::keysmith::{Keysmith, MakeKeys};
use crate::lane::{InFlight, Leaving};
use crate::late::LateEnds;
use crate::lost;
use crate::mailboxes::{Delivery, Mailbox, MailboxLimits, Mailboxes, Slot, Successor, Waiting};
use crate::metrics::{Counters, Fate, LaneFacts};
use crate::peer::{self, Peers};
use crate::queues::{Entered, Line, Queues, Work};
use crate::receipt::Copies;
use crate::relay::LanesIn;
use crate::removal;
use crate::takeover::Yielding;
use crate::transit::{Stage, Transit};
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
    /// Accounts that may administer the server.
    pub admins: Vec<BareJid>,
    /// Name and version that the server tells about itself (XEP-0092).
    pub about: (&'static str, &'static str),
    /// The clock that modules see.
    pub clock: fn() -> SystemTime,
    /// Fills a buffer with random bytes fit for secrets.
    pub random: fn(&mut [u8]),
    /// Makes the keys of a new password.
    pub keys: MakeKeys,
}

/// Carries stanzas. Every session of the node, every module and every other node hands them to it.
pub struct Router {
    pub(crate) myself: Weak<Router>,
    pub(crate) whereabouts: SharedWhereabouts,
    pub(crate) registry: Arc<Registry>,
    pub(crate) store: Store,
    pub(crate) accounts: Accounts,
    pub(crate) hosts: Vec<String>,
    /// Hosts at which a module keeps messages for absent users.
    keepers: Vec<String>,
    pub(crate) admins: Vec<BareJid>,
    pub(crate) about: (&'static str, &'static str),
    pub(crate) clock: fn() -> SystemTime,
    pub(crate) random: fn(&mut [u8]),
    pub(crate) keysmith: Keysmith,
    pub(crate) config: Config,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) queues: Queues,
    pub(crate) holds: Arc<Holds>,
    /// Of stanzas that the store has until they are written.
    pub(crate) copies: Copies,
    /// Until when no read barrier is tried, because the last one failed.
    blind_until: Mutex<Option<Instant>>,
    pub(crate) peers: Peers,
    pub(crate) lanes_in: LanesIn,
    pub(crate) late_ends: LateEnds,
    pub(crate) away: Away,
    pub(crate) counters: Counters,
    /// Who gives sessions of this node away.
    pub(crate) sessions: OnceLock<Arc<dyn Yielding>>,
    pub(crate) runtime: Handle,
    pub(crate) since: Instant,
}

impl Router {
    /// Starts the router: it follows the changes of the cluster from now on. Call it on the runtime that is to
    /// carry links and waiting handlers, not on the arbiter of a session.
    pub fn start(deps: Deps, config: Config) -> Arc<Router> {
        let limits = MailboxLimits { stanzas: config.mailbox_stanzas, bytes: config.mailbox_bytes };
        let keeps = |host: &&String| deps.registry.cards(host).iter().any(keeps_messages);
        let keepers = deps.hosts.iter().filter(keeps).cloned().collect();
        let router = Arc::new_cyclic(|myself: &Weak<Router>| Router {
            myself: myself.clone(),
            whereabouts: deps.whereabouts,
            registry: deps.registry,
            accounts: Accounts::new(deps.store.clone()),
            // Whoever is late keeps nothing for an account that is gone.
            store: deps.store.guarded(),
            keepers,
            hosts: deps.hosts,
            admins: deps.admins,
            about: deps.about,
            clock: deps.clock,
            random: deps.random,
            keysmith: Keysmith::new(deps.keys, config.new_password_queue),
            mailboxes: Mailboxes::new(limits),
            queues: Queues::new(config.account_queue_stanzas, config.account_queues_at_once),
            holds: Arc::default(),
            copies: Copies::default(),
            blind_until: Mutex::new(None),
            peers: Peers::new(),
            lanes_in: LanesIn::default(),
            late_ends: LateEnds::default(),
            away: Away::default(),
            counters: Counters::default(),
            sessions: OnceLock::new(),
            runtime: Handle::current(),
            since: Instant::now(),
            config,
        });
        let back = Arc::downgrade(&router);
        router.mailboxes.return_to(Box::new(move |account, deliveries| {
            if let Some(router) = back.upgrade() {
                router.take_back(account, deliveries);
            }
        }));
        router.runtime.spawn(removal::finish(Arc::downgrade(&router), router.config.unfinished_removal()));
        router.runtime.spawn(lost::follow(Arc::downgrade(&router), router.whereabouts.changes()));
        router
    }

    /// Sends what a session of this node said, after the leaving handlers passed it; `from` is stamped. Never
    /// fails and never waits for another actor or node: what cannot be delivered is stored or bounced. Stanzas
    /// of one session to one receiver keep the order of the calls.
    pub async fn send(&self, passage: Passage) {
        let Passage { stanza, sender, underway, .. } = passage;
        let transit = Transit { sender, underway, ..Transit::new(stanza, Stage::Fresh) };
        self.dispatch(transit);
    }

    /// Opens the mailbox of a session, before it is bound: other nodes send to it as soon as the table shows it,
    /// and a session without a mailbox counts as gone. The mailbox goes to the connection's outbound
    /// half.
    pub fn open(&self, view: Arc<SessionView>) -> Mailbox {
        self.mailboxes.open(view)
    }

    /// Whether a session has a mailbox here: what waits in it goes its way only when that is closed, which may be a while
    /// behind the end of the connection.
    pub fn has_mailboxes(&self) -> bool {
        !self.mailboxes.is_empty()
    }

    /// Closes the mailbox of a session that ended, whatever became of the `Mailbox`; call it after the route
    /// was taken back (or lost). `unwritten` is what was drained and not written; with what still waits it is
    /// routed anew: to another session of the account, to the offline store, or back to its sender.
    pub fn close(&self, view: &SessionView, unwritten: Vec<Delivery>) {
        self.mailboxes.close(view, unwritten);
    }

    /// As [`Router::close`], of a session that goes on at another node as `successor`: what it has not had goes there,
    /// and to nobody else.
    /// Ready when that node has all of it, or will not get it. Call it when the table here shows the successor.
    pub fn close_for(
        &self,
        view: &SessionView,
        unwritten: Vec<Delivery>,
        successor: hooks::Sid,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (last, all_gone) = oneshot::channel::<()>();
        let successor = Successor { sid: Sid(successor.0), underway: Underway::new(last) };
        self.mailboxes.close_for(view, unwritten, Some(&successor));
        async move {
            // Nobody says anything: it is the end of the last holder that is waited for.
            let _ = all_gone.await;
        }
    }

    /// Whether this node holds its lease under this incarnation.
    pub(crate) fn serves_as(&self, incarnation: u64) -> bool {
        self.whereabouts.me().1.0 == incarnation && self.whereabouts.is_serving()
    }

    /// Takes out of all mailboxes what other nodes sent to an earlier incarnation of this one: they saw it end,
    /// and have routed anew what it had not settled. Call it before anything is delivered under the new one.
    pub fn forget_former(&self) {
        let (_, incarnation) = self.whereabouts.me();
        let void = self.mailboxes.take_out(|delivery| delivery.receipt.is_before(incarnation.0));
        if !void.is_empty() {
            tracing::info!(
                stanzas = void.len(),
                "left to their senders what waited for sessions of this node"
            );
        }
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

    /// Counts a stanza that a leaving handler refused, with those that are returned to their senders.
    pub fn note_refused(&self, kind: Kind) {
        self.counters.count(kind, Fate::Bounced);
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
        let account = jid.to_bare();
        let slots = self.mailboxes.slots(&account);
        slots.iter().find(|slot| slot.view.jid() == jid).map_or(0, |slot| slot.len())
    }

    /// The lanes to other nodes, as they are now.
    pub fn lanes(&self) -> Vec<LaneFacts> {
        self.peers.facts()
    }

    /// Errors and results that wait for sessions which went with their node and may come back.
    pub fn answers_waiting(&self) -> usize {
        self.away.waiting()
    }

    /// Accounts for which stanzas wait because one of their handlers awaits the store.
    pub fn account_queues(&self) -> usize {
        self.queues.len()
    }

    /// The one decision: another domain, a host, or an account, and then here or at a peer.
    pub(crate) fn dispatch(&self, transit: Transit) {
        // Whoever calls a method of the router holds it.
        let Some(router) = self.myself.upgrade() else { return };
        let router = &router;
        let Some(to) = &transit.stanza.head.to else { return router.without_address(transit) };
        if !self.is_local_host(to.domain().as_str()) {
            // RFC 6121, 8.3: federation is not there yet.
            return router.bounce(transit, StanzaError::new(Condition::RemoteServerNotFound));
        }
        if to.node().is_none() {
            return router.to_host(transit);
        }
        let account = to.to_bare();
        self.peers.reap(router);
        match self.queues.enter(&account, transit) {
            Entered::Free(transit) if self.is_deep() => {
                self.queues.append(router, &account, [Work::Stanza(Box::new(transit))]);
            }
            Entered::Free(transit) => router.proceed(&account, transit, false),
            Entered::Waits => {}
            Entered::Full(transit) => router.bounce_at_bound(transit),
        }
    }

    /// Sends on what another node had for a session that ended: it is older than what waits here, and than what comes here
    /// while its handlers await something.
    pub(crate) fn dispatch_returned(&self, transit: Transit) {
        let is_ours = |to: &&Jid| to.node().is_some() && self.is_local_host(to.domain().as_str());
        let account = transit.stanza.head.to.as_ref().filter(is_ours).map(Jid::to_bare);
        let (Some(router), Some(account)) = (self.myself.upgrade(), account) else {
            return self.dispatch(transit);
        };
        let is_busy = self.queues.is_busy(&account, transit.stanza.head.from.as_ref());
        if transit.follows || is_busy || self.is_deep() {
            return self.queues.give_back(&router, &account, [Work::Stanza(Box::new(transit))]);
        }
        self.peers.reap(&router);
        router.proceed(&account, transit, true);
    }

    /// Sends what is older than all that waits for its account, past what waits.
    pub(crate) fn dispatch_ahead(&self, transit: Transit) {
        let Some(router) = self.myself.upgrade() else { return };
        let Some(to) = &transit.stanza.head.to else { return router.without_address(transit) };
        if !self.is_local_host(to.domain().as_str()) || to.node().is_none() {
            return self.dispatch(transit);
        }
        let account = to.to_bare();
        self.peers.reap(&router);
        match router.look(&account, &transit) {
            Some((_, _, Place::Peer { node, incarnation, sids })) => {
                router.relay(&account, transit, node, incarnation, &sids);
            }
            Some((subject, rows, Place::Here))
                if router.is_for_somebody(subject, &account, &transit, &rows) =>
            {
                router.begin(&account, subject, transit, rows);
            }
            // Nobody is there after all: it is kept again, before what waits is.
            _ => router.queues.give_back(&router, &account, [Work::Stanza(Box::new(transit))]),
        }
    }

    /// Sends one stanza to many receivers. Presence to accounts, which is nearly all of it, crosses to each node
    /// once, with the list of its receivers there.
    pub(crate) fn dispatch_many(&self, stanza: Stanza, to: Vec<Jid>) {
        let Some(router) = self.myself.upgrade() else { return };
        let (me, _) = self.whereabouts.me();
        let presence = match arrival::subject(&stanza) {
            Ok(Subject::Presence(kind @ (PresenceType::Available | PresenceType::Unavailable))) => Some(kind),
            Ok(Subject::Presence(kind @ PresenceType::Probe)) => Some(kind),
            _ => None,
        };
        self.peers.reap(&router);
        let mut others: HashMap<(NodeId, Incarnation), Vec<(Jid, u64)>> = HashMap::new();
        for to in to {
            let is_account = to.node().is_some() && to.resource().is_none();
            let account = to.to_bare();
            if presence.is_none()
                || !is_account
                || !self.is_local_host(to.domain().as_str())
                || self.queues.is_busy(&account, stanza.head.from.as_ref())
            {
                self.dispatch(Transit::new(stanza.clone().with_to(to), Stage::Fresh));
                continue;
            }
            let rows = self.whereabouts.users(&account);
            if rows.is_empty() && presence != Some(PresenceType::Probe) {
                // RFC 6121, 8.5.2.2.2: ignored.
                self.counters.count(Kind::Presence, Fate::Ignored);
                continue;
            }
            let Place::Each { here, others: nodes } = each(&rows, me) else { continue };
            let key = peer::key(account.as_str());
            for node in nodes {
                others.entry(node).or_default().push((to.clone(), key));
            }
            if here || rows.is_empty() {
                let stage = if here { Stage::Here } else { Stage::Fresh };
                self.dispatch(Transit::new(stanza.clone().with_to(to), stage));
            }
        }
        for ((node, incarnation), receivers) in others {
            router.relay_many(&stanza, node, incarnation, receivers);
        }
    }

    /// RFC 6120, 10.3: what a client sends to nobody is for its own account; presence is a broadcast, which
    /// the handlers of the sender's side have made.
    fn without_address(self: &Arc<Self>, mut transit: Transit) {
        let own = transit.stanza.head.from.as_ref().map(Jid::to_bare);
        match own {
            Some(own) if transit.stanza.head.kind != Kind::Presence => {
                transit.stanza = transit.stanza.with_to(own);
                self.dispatch(transit);
            }
            _ => self.finish(&transit, Fate::Ignored),
        }
    }

    fn to_host(self: &Arc<Self>, transit: Transit) {
        let subject = match arrival::subject(&transit.stanza) {
            Ok(subject) => subject,
            Err(error) => return self.bounce(transit, error),
        };
        let has_resource = transit.stanza.head.to.as_ref().is_some_and(|to| to.resource().is_some());
        match decide_host(subject, has_resource) {
            Decision::Answer => {
                // What waits, waits with the rest of what this sender asked.
                let Some(from) = &transit.stanza.head.from else {
                    return self.finish(&transit, Fate::Ignored);
                };
                let key = from.to_bare();
                let router = self.clone();
                let answer = Box::pin(async move { router.answer(None, transit).await });
                self.begin_future(&key, Line::Own, answer);
            }
            Decision::Bounce(condition) => self.bounce(transit, StanzaError::new(condition)),
            _ => self.finish(&transit, Fate::Ignored),
        }
    }

    /// The visible sessions of an account that may still be tried for this stanza.
    pub(crate) fn rows(&self, account: &BareJid, transit: &Transit) -> Vec<Row> {
        if transit.attempts >= ATTEMPTS_MAX {
            return Vec::new();
        }
        let mut rows = self.whereabouts.users(account);
        if !transit.avoid.is_empty() {
            rows.retain(|row| !transit.avoid.contains(&row.sid));
        }
        if let Some(only) = transit.only
            && rows.iter().any(|row| row.sid == only)
        {
            rows.retain(|row| row.sid == only);
        }
        rows
    }

    /// Whether its session goes on in the one that it is for.
    pub(crate) fn has_successor(&self, account: &BareJid, transit: &Transit) -> bool {
        let Some(only) = transit.only else { return false };
        self.whereabouts.users(account).iter().any(|row| row.sid == only)
    }

    /// Sends a stanza to an account on, when nobody is before it; `is_older`: than all that comes while it waits.
    fn proceed(self: &Arc<Self>, account: &BareJid, transit: Transit, is_older: bool) {
        let Some(looked) = self.look(account, &transit) else {
            return self.refuse_shape(transit);
        };
        // The queue once more, behind the look at the mailboxes: what one of them gave back in this moment is older.
        let waits = self.obstacle(account, &transit, &looked).is_some()
            || self.queues.is_busy(account, transit.stanza.head.from.as_ref());
        if waits {
            let work = [Work::Stanza(Box::new(transit))];
            return match is_older {
                // Where those are that come behind it.
                true => self.queues.give_back(self, account, work),
                false => self.queues.append(self, account, work),
            };
        }
        let (subject, rows, place) = looked;
        match place {
            Place::Here => self.begin(account, subject, transit, rows),
            Place::Peer { node, incarnation, sids } => self.relay(account, transit, node, incarnation, &sids),
            Place::Each { here, others } => {
                let copy = self.to_others(account, transit, here, others);
                if let Some(copy) = copy {
                    self.begin(account, subject, copy, rows);
                }
            }
        }
    }

    /// As [`Router::proceed`], for the stanza at the head of its receiver's queue.
    pub(crate) async fn resume(self: &Arc<Self>, account: &BareJid, mut transit: Transit) {
        // A backlog comes as fast as it can be handed over, which is faster than a client can read. Once for each
        // stanza: a client that does not read at all is let go as ever.
        if transit.stanza.head.kind == Kind::Message
            && let Some(slot) = self.mailboxes.crowded(account)
        {
            slot.room(self.config.backlog_wait()).await;
        }
        let mut turn = None;
        let (subject, rows, place) = loop {
            let Some(looked) = self.look(account, &transit) else {
                return self.refuse_shape(transit);
            };
            let obstacle = self.obstacle(account, &transit, &looked);
            if obstacle.is_none() && turn.is_some() {
                let from = transit.stanza.head.from.as_ref();
                if !transit.came_back && self.queues.has_returned(account, from) {
                    // Older ones came back while this one waited, whatever for.
                    return self.queues.yield_to_returned(self, account, transit);
                }
                break looked;
            }
            // No turn is held while something else is waited for.
            turn = None;
            match obstacle {
                // The semaphore is never closed; without a permit the work is done all the same.
                None => turn = Some(self.queues.turns.acquire().await),
                Some(Obstacle::InFlight(in_flight)) => in_flight.confirmed().await,
                Some(Obstacle::Held) => self.holds.opened(account).await,
                Some(Obstacle::Behind(leaving)) => {
                    if self.waits_behind(account, &mut transit, leaving.settled()).await {
                        return self.queues.yield_to_returned(self, account, transit);
                    }
                }
                Some(Obstacle::Leftover(slot)) => {
                    transit.follows |= slot.leaves();
                    if self.waits_behind(account, &mut transit, self.mailboxes.emptied(&slot)).await {
                        return self.queues.yield_to_returned(self, account, transit);
                    }
                }
                Some(Obstacle::Doubt) => {
                    self.renew_table().await;
                    transit.looked = true;
                }
            }
        };
        match place {
            Place::Here => self.arrive_now(account, subject, transit, rows).await,
            Place::Peer { node, incarnation, sids } => self.relay(account, transit, node, incarnation, &sids),
            Place::Each { here, others } => {
                let copy = self.to_others(account, transit, here, others);
                if let Some(copy) = copy {
                    self.arrive_now(account, subject, copy, rows).await;
                }
            }
        }
    }

    /// Waits until what is older is `over`, at most for the bound; whether something came back that goes first.
    async fn waits_behind(
        &self,
        account: &BareJid,
        transit: &mut Transit,
        over: impl Future<Output = ()>,
    ) -> bool {
        let now = Instant::now();
        let until = *transit.behind_until.get_or_insert(now + self.config.refused_wait());
        let from = transit.stanza.head.from.as_ref();
        let over = async {
            if tokio::time::timeout_at(until, over).await.is_err() {
                self.queues.give_way(account, from);
            }
        };
        // Who came back before keeps its place in front of who does now.
        let came_back = if transit.came_back { None } else { self.queues.came_back(account, from) };
        let Some(came_back) = came_back else {
            over.await;
            return false;
        };
        tokio::select! {
            biased;
            // It comes back to this very queue.
            _ = came_back.notified() => true,
            () = over => false,
        }
    }

    /// What a stanza has to wait for, by what the table said of it.
    fn obstacle(
        &self,
        account: &BareJid,
        transit: &Transit,
        (subject, rows, place): &(Subject, Vec<Row>, Place),
    ) -> Option<Obstacle> {
        // After the table was read: see `Holds`.
        if matches!(subject, Subject::Message(_)) && self.holds.is_held(account) {
            return Some(Obstacle::Held);
        }
        if !transit.looked && transit.stage != Stage::Here {
            let address = transit.stanza.head.to.as_ref().map(|to| arrival::address(to, rows));
            let mut priorities = rows.iter().map(|row| row.priority);
            if address.is_some_and(|address| is_doubtful(*subject, address, &mut priorities)) {
                return Some(Obstacle::Doubt);
            }
        }
        if let Some(in_flight) = self.peers.in_flight(account, place.node()) {
            return Some(Obstacle::InFlight(in_flight));
        }
        if let Some(in_flight) = place.node().and_then(|node| self.peers.on_its_way_back(self, account, node))
        {
            return Some(Obstacle::InFlight(in_flight));
        }
        let may_wait = transit.behind_until.is_none_or(|until| Instant::now() < until);
        if !may_wait || !matches!(subject, Subject::Message(_)) {
            return None;
        }
        // By the table: `rows` has only those that this stanza may go to. Those are asked first, and nearly always suffice.
        let table = LazyCell::new(|| self.whereabouts.users(account));
        let has = |rows: &[Row], sid: hooks::Sid| rows.iter().any(|row| row.sid.0 == sid.0);
        let is_bound = |sid| has(rows, sid) || has(&table, sid);
        let leftover = || {
            let slot = (!transit.came_back).then(|| self.mailboxes.leftover(account, is_bound));
            slot.flatten().map(Obstacle::Leftover)
        };
        // One that has crossed may itself be what is waited for; or it goes with its session, before all that is newer.
        let is_first = transit.hops > 0 || transit.handed_over;
        let behind = || {
            let leaving = (!is_first).then(|| self.peers.leaving(self, account, place.node()));
            leaving.flatten().map(Obstacle::Behind)
        };
        leftover().or_else(behind).filter(|_| !self.queues.gave_way(account, transit))
    }

    /// Whether the last question for a newer table was not answered.
    pub(crate) fn is_blind(&self) -> bool {
        self.blind_until.lock().is_some()
    }

    /// Waits until the table here is as new as the leader's is now, or it takes too long. Those who ask at the
    /// same time share one question; where it was not answered, nobody asks for a while.
    pub(crate) async fn renew_table(&self) {
        if self.blind_until.lock().is_some_and(|until| Instant::now() < until) {
            return;
        }
        let within = self.config.refused_wait();
        let renewed = tokio::time::timeout(within, self.whereabouts.barrier()).await;
        let failed = !matches!(renewed, Ok(Ok(_)));
        if failed {
            tracing::debug!("without a read barrier, the table here has to do");
        }
        *self.blind_until.lock() = failed.then(|| Instant::now() + within);
    }

    fn look(&self, account: &BareJid, transit: &Transit) -> Option<Looked> {
        let subject = arrival::subject(&transit.stanza).ok()?;
        let rows = self.rows(account, transit);
        let (me, _) = self.whereabouts.me();
        let to = transit.stanza.head.to.as_ref()?;
        let place = place(subject, arrival::address(to, &rows), transit.stage, &rows, me);
        Some((subject, rows, place))
    }

    fn refuse_shape(self: &Arc<Self>, transit: Transit) {
        self.bounce(transit, StanzaError::new(Condition::BadRequest));
    }

    /// Gives presence to the other nodes with sessions of the account; what is left to do here.
    fn to_others(
        self: &Arc<Self>,
        account: &BareJid,
        transit: Transit,
        here: bool,
        others: Vec<(NodeId, Incarnation)>,
    ) -> Option<Transit> {
        for (node, incarnation) in others {
            let copy = Transit {
                receipt: transit.receipt.clone(),
                hops: transit.hops,
                ..Transit::new(transit.stanza.clone(), Stage::Here)
            };
            self.relay(account, copy, node, incarnation, &[]);
        }
        here.then(|| Transit { stage: Stage::Here, ..transit })
    }

    /// Whether messages for absent users are kept at this host.
    pub(crate) fn keeps_offline(&self, host: &str) -> bool {
        self.keepers.iter().any(|keeper| keeper == host)
    }
}

/// What the table says of a stanza: what it is, the sessions of its receiver, and where it goes.
type Looked = (Subject, Vec<Row>, Place);

/// What a stanza waits for, with all later ones to its receiver behind it.
enum Obstacle {
    /// What was sent to another node must be confirmed before anything later goes another way.
    InFlight(InFlight),
    /// A session here is getting what was kept for it.
    Held,
    /// Nobody is there for it by the table here, which may be behind.
    Doubt,
    /// Older stanzas are at another node, for a session that has ended, and come back from there.
    Behind(Leaving),
    /// Older stanzas are in the mailbox of a session of this node that is about to end, and come back from there.
    Leftover(Arc<Slot>),
}

/// Where a stanza goes from here.
enum Place {
    /// Its way ends at this node, or this node knows best.
    Here,
    /// To sessions of another node; for a fresh stanza the first is the chosen one.
    Peer { node: NodeId, incarnation: Incarnation, sids: Vec<Sid> },
    /// To every node with a session of the account.
    Each { here: bool, others: Vec<(NodeId, Incarnation)> },
}

impl Place {
    /// The other node to which all of it goes.
    fn node(&self) -> Option<NodeId> {
        match self {
            Place::Peer { node, .. } => Some(*node),
            Place::Each { here: false, others } if others.len() == 1 => Some(others[0].0),
            _ => None,
        }
    }
}

/// Where the arriving handlers of the receiver are to run, or, for what they have seen, where its sessions are.
fn place(subject: Subject, address: Address, stage: Stage, rows: &[Row], me: NodeId) -> Place {
    if stage == Stage::Here || rows.is_empty() || rows.iter().all(|row| row.node == me) {
        return Place::Here;
    }
    let is_full = matches!(address, Address::Full(Some(_)));
    let to_each = matches!(
        subject,
        Subject::Presence(PresenceType::Available | PresenceType::Unavailable | PresenceType::Probe)
    );
    // RFC 6121, 4.3.2: about a session that is nowhere, one node says so.
    let asks_for_none =
        matches!((subject, address), (Subject::Presence(PresenceType::Probe), Address::Full(None)));
    if to_each && !is_full && !asks_for_none && stage == Stage::Fresh {
        return each(rows, me);
    }
    let priorities: Vec<Option<i8>> = rows.iter().map(|row| row.priority).collect();
    // Whether messages are kept only matters for an account that has no sessions.
    let receiver = Receiver { exists: true, priorities: &priorities, keeps_offline: false };
    let chosen = match (subject, address) {
        // RFC 6121, 4.3.2: answered for one session, by the node that knows what it last said.
        (Subject::Presence(PresenceType::Probe), Address::Full(Some(asked))) => vec![asked],
        (Subject::Presence(PresenceType::Probe), Address::Full(None)) => (0..rows.len()).collect(),
        _ => match decide(subject, address, receiver) {
            Decision::Deliver(chosen) => chosen,
            _ => return Place::Here,
        },
    };
    // One node decides for all, so that its handlers see the stanza once; this one if it may.
    if chosen.iter().any(|at| rows[*at].node == me) {
        return Place::Here;
    }
    let Some(first) = chosen.iter().map(|at| &rows[*at]).min_by_key(|row| row.node) else {
        return Place::Here;
    };
    let there = |row: &&Row| row.node == first.node;
    if stage == Stage::Past && !chosen.iter().map(|at| &rows[*at]).all(|row| there(&row)) {
        return Place::Here;
    }
    let sids = match stage {
        Stage::Past => chosen.iter().map(|at| rows[*at].sid).collect(),
        _ => vec![first.sid],
    };
    Place::Peer { node: first.node, incarnation: first.incarnation, sids }
}

fn each(rows: &[Row], me: NodeId) -> Place {
    let mut others: Vec<(NodeId, Incarnation)> = Vec::new();
    for row in rows.iter().filter(|row| row.node != me) {
        if !others.contains(&(row.node, row.incarnation)) {
            others.push((row.node, row.incarnation));
        }
    }
    Place::Each { here: rows.iter().any(|row| row.node == me), others }
}

/// How often a stanza is tried at a session that the table names before it is stored or bounced.
const ATTEMPTS_MAX: u8 = 2;

/// Whether a module keeps messages for absent users (XEP-0160).
fn keeps_messages(card: &Card) -> bool {
    card.xeps.iter().any(|xep| xep.number == 160)
}
