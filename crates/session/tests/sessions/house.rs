//! A whole node for session tests, but for the cluster: listeners, router, memory store and modules that misbehave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use cluster::routes::{Command, Effect, Outcome, Routes};
use cluster::{
    BindError, Bound, Change, ConflictPolicy, Incarnation, Living, NodeId, NodeRow, Roles, Row, Sid,
    Unavailable,
};

use futures::future::{BoxFuture, ready};
use hooks::{
    Accounts, Answer, Card, Delivering, Following, Hooks, How, Leaving, Module, Offer, Offering, Passage,
    Registry, Services, SessionEvent, SessionView, Status, Step, Store, Switches, Verdict, Why, Xep,
};
use jid::{BareJid, FullJid, Jid};
use parking_lot::Mutex;
use router::Router;
use session::{Claims, Config, Door, Listeners, TlsStore};
use stanza::Stanza;
use stream::sasl::ScramHash;
use stream::sasl::keys::derive;
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// The password of every account.
pub const PASSWORD: &str = "secret";

/// A cluster of one node: the real route table without a log.
pub struct Town {
    routes: Mutex<(Routes, u64)>,
    listeners: Mutex<Vec<Sender<Change>>>,
    serving: AtomicBool,
    /// The cluster answers no proposal while this is set.
    pub silent: AtomicBool,
    /// While somebody writes here, what was agreed is in the table and who asked for it is not told.
    pub telling: tokio::sync::RwLock<()>,
    /// Another node, to which clients can be sent.
    pub other: Mutex<Option<String>>,
    /// Orders to end a session that were agreed on.
    kicks: AtomicU64,
    node: NodeId,
    incarnation: Mutex<Incarnation>,
    /// The next list of sessions to be brought back is answered when this is ready.
    pub late: Mutex<Option<oneshot::Receiver<()>>>,
}

impl Town {
    fn new() -> Arc<Town> {
        let mut routes = Routes::new();
        let Outcome::Up { node, incarnation } = routes.apply(1, up(1), &mut Vec::new()) else {
            panic!("the node is not up")
        };
        Arc::new(Town {
            routes: Mutex::new((routes, 1)),
            listeners: Mutex::default(),
            serving: AtomicBool::new(true),
            silent: AtomicBool::new(false),
            telling: tokio::sync::RwLock::new(()),
            other: Mutex::default(),
            kicks: AtomicU64::new(0),
            node,
            incarnation: Mutex::new(incarnation),
            late: Mutex::default(),
        })
    }

    fn apply(&self, command: Command) -> Result<(Outcome, u64), Unavailable> {
        if self.silent.load(Ordering::SeqCst) {
            return Err(Unavailable("no quorum".into()));
        }
        let mut routes = self.routes.lock();
        routes.1 += 1;
        let (index, mut effects) = (routes.1, Vec::new());
        if matches!(command, Command::Kick { .. }) {
            self.kicks.fetch_add(1, Ordering::SeqCst);
        }
        let outcome = routes.0.apply(index, command, &mut effects);
        for effect in effects {
            if let Effect::Displaced { jid, sid, loss, .. } = effect {
                self.tell(Change::Displaced { jid, sid, loss });
            }
        }
        Ok((outcome, index))
    }

    fn tell(&self, change: Change) {
        for listener in self.listeners.lock().iter() {
            listener.try_send(change.clone()).expect("the changes are taken");
        }
    }

    fn listen(&self) -> Receiver<Change> {
        let (tell, told) = channel(1024);
        self.listeners.lock().push(tell);
        told
    }

    /// Takes the lease away, for which clients wait so long.
    pub fn fence(&self, patience: Duration) {
        self.serving.store(false, Ordering::SeqCst);
        self.tell(Change::LeaseLost { until: tokio::time::Instant::now() + patience });
    }

    /// Takes the lease away, or gives it back.
    pub fn serve(&self, serving: bool) {
        self.serving.store(serving, Ordering::SeqCst);
        self.tell(match serving {
            false => return self.fence(Duration::from_secs(15)),
            true => Change::LeaseBack { incarnation: self.me().1 },
        });
    }

    /// Gives the lease back under a new incarnation: the rows of the one before are gone.
    pub fn serve_anew(&self) {
        let mut now = self.incarnation.lock();
        let up = up(now.0 + 1);
        let Ok((Outcome::Up { incarnation, .. }, _)) = self.apply(up) else { panic!("the node is not up") };
        *now = incarnation;
        self.serving.store(true, Ordering::SeqCst);
        self.tell(Change::LeaseBack { incarnation });
    }

    /// As an operator does it, on whichever node the session is.
    pub fn kick(&self, jid: &FullJid) {
        self.apply(Command::Kick { jid: jid.clone() }).unwrap();
    }

    /// The full JIDs that are bound.
    pub fn bound(&self) -> Vec<String> {
        let mut bound: Vec<_> = self.routes.lock().0.each().map(|row| row.jid.to_string()).collect();
        bound.sort();
        bound
    }
}

/// The node's start of this number.
fn up(start: u64) -> Command {
    Command::NodeUp {
        key: 1,
        start: start.into(),
        name: "one".into(),
        address: String::new(),
        roles: Roles::default(),
        member: None,
    }
}

impl Claims for Town {
    fn me(&self) -> (NodeId, Incarnation) {
        (self.node, *self.incarnation.lock())
    }

    fn is_serving(&self) -> bool {
        self.serving.load(Ordering::SeqCst)
    }

    fn bind<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        policy: ConflictPolicy,
    ) -> BoxFuture<'a, Result<Bound, BindError>> {
        let (node, incarnation) = self.me();
        let applied = self.apply(Command::Bind { jid: jid.clone(), node, incarnation, sid, policy });
        Box::pin(async move {
            let _told = self.telling.read().await;
            match applied {
                Ok((Outcome::Bound { jid }, index)) => Ok(Bound { jid, index }),
                Ok(_) => Err(BindError::Conflict),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn unbind<'a>(&'a self, jid: &'a FullJid, sid: Sid) -> BoxFuture<'a, Result<(), Unavailable>> {
        Box::pin(ready(self.apply(Command::Unbind { jid: jid.clone(), sid }).map(|_| ())))
    }

    fn attach<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        new_sid: Sid,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        let (node, incarnation) = self.me();
        let applied = self.apply(Command::Attach { jid: jid.clone(), sid, node, incarnation, new_sid });
        Box::pin(ready(applied.map(|(outcome, _)| matches!(outcome, Outcome::Bound { .. }))))
    }

    fn resync(&self, living: Vec<Living>) -> BoxFuture<'_, Result<Vec<Sid>, Unavailable>> {
        let (node, incarnation) = self.me();
        let applied = self.apply(Command::Resync { node, incarnation, living });
        let late = self.late.lock().take();
        Box::pin(async move {
            if let Some(late) = late {
                let _ = late.await;
            }
            applied.map(|(outcome, _)| match outcome {
                Outcome::Resynced { refused } => refused,
                _ => Vec::new(),
            })
        })
    }

    fn kicks(&self) -> u64 {
        self.kicks.load(Ordering::SeqCst)
    }

    fn elsewhere(&self, key: &str, direct_tls: bool) -> Option<String> {
        let port = if direct_tls { 5223 } else { 5222 };
        self.other.lock().as_ref().map(|host| format!("{host}-for-{key}:{port}"))
    }

    fn changes(&self) -> Receiver<Change> {
        self.listen()
    }
}

impl router::Whereabouts for Town {
    fn me(&self) -> (NodeId, Incarnation) {
        (self.node, *self.incarnation.lock())
    }

    fn is_serving(&self) -> bool {
        self.serving.load(Ordering::SeqCst)
    }

    fn users(&self, account: &BareJid) -> Vec<Row> {
        self.routes.lock().0.users(account).cloned().collect()
    }

    fn online(&self, host: &str) -> Vec<BareJid> {
        let routes = self.routes.lock();
        let online =
            routes.0.each().filter(|row| row.priority.is_some() && row.jid.domain().as_str() == host);
        let mut online: Vec<BareJid> = online.map(|row| row.jid.to_bare()).collect();
        online.dedup();
        online
    }

    fn nodes(&self) -> Vec<NodeRow> {
        self.routes.lock().0.nodes().cloned().collect()
    }

    fn is_current(&self, node: NodeId, incarnation: Incarnation) -> bool {
        (node, incarnation) == (self.node, *self.incarnation.lock())
    }

    fn is_here(&self, node: NodeId) -> bool {
        node == self.node
    }

    fn index(&self) -> u64 {
        self.routes.lock().1
    }

    fn wait_index(&self, index: u64, _within: Duration) -> BoxFuture<'_, bool> {
        Box::pin(ready(self.routes.lock().1 >= index))
    }

    fn barrier(&self) -> BoxFuture<'_, Result<u64, Unavailable>> {
        Box::pin(ready(Ok(self.routes.lock().1)))
    }

    fn set_priority<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        let applied = self.apply(Command::SetPriority { jid: jid.clone(), sid, priority });
        Box::pin(ready(applied.map(|_| ())))
    }

    fn hide<'a>(
        &'a self,
        jid: &'a FullJid,
        sid: Sid,
        priority: Option<i8>,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        let applied = self.apply(Command::Hide { jid: jid.clone(), sid, priority });
        Box::pin(ready(applied.map(|_| ())))
    }

    fn kick<'a>(&'a self, jid: &'a FullJid) -> BoxFuture<'a, Result<bool, Unavailable>> {
        let applied = self.apply(Command::Kick { jid: jid.clone() });
        Box::pin(ready(applied.map(|(outcome, _)| outcome == Outcome::Done)))
    }

    fn channel(&self, _node: NodeId) -> Option<tonic::transport::Channel> {
        None
    }

    fn changes(&self) -> Receiver<Change> {
        self.listen()
    }
}

/// A module that breaks when it is asked to, makes sessions wait, and tells a contact of the end of others.
#[derive(Default)]
pub struct Trouble {
    /// Opens for messages with the id `wait`.
    pub gate: Notify,
    /// Sessions that ended, in order, and whether their streams were closed.
    pub ended: Mutex<Vec<(String, bool)>>,
}

const STEPS: [Xep; 3] = [xep(198), xep(386), xep(388)];

const fn xep(number: u16) -> Xep {
    Xep { number, title: "", version: "", status: Status::Stable }
}

impl Module for Trouble {
    fn card(&self) -> Card {
        // So that clients are offered to log in, be bound and resume in one step.
        Card { xeps: &STEPS, ..Card::new("trouble", "Breaks when asked to.") }
    }

    fn plug(self: Arc<Self>, hooks: &mut Hooks) {
        hooks.leaving(Step::Guard, self.clone());
        hooks.delivering(Step::Guard, self.clone());
        hooks.offering(self.clone());
        hooks.following(self);
    }
}

fn has_id(stanza: &Stanza, id: &str) -> bool {
    stanza.head.id.as_deref() == Some(id)
}

impl Leaving for Trouble {
    fn leaving<'a>(&'a self, passage: &'a mut Passage) -> Answer<'a> {
        assert!(!has_id(&passage.stanza, "panic"), "a panic that the test asked for");
        if has_id(&passage.stanza, "wait") {
            return Answer::later(async {
                self.gate.notified().await;
                Verdict::Pass
            });
        }
        if has_id(&passage.stanza, "refuse") {
            let error = stanza::StanzaError::new(stanza::Condition::NotAllowed);
            return Answer::Now(Verdict::Refuse(Box::new(error)));
        }
        Answer::Now(Verdict::Pass)
    }
}

impl Offering for Trouble {
    fn offering(&self, _: &Offer, _: &dyn Services) -> Vec<minidom::Element> {
        vec![stream::management::feature()]
    }
}

impl Delivering for Trouble {
    fn delivering(&self, _session: &SessionView, stanza: &mut Stanza) -> Verdict {
        let is_error = stanza.head.type_.as_deref() == Some("error");
        assert!(is_error || !has_id(stanza, "poison"), "a panic that the test asked for");
        Verdict::Pass
    }
}

impl Following for Trouble {
    fn following<'a>(&'a self, event: &'a SessionEvent, services: &'a Arc<dyn Services>) -> Answer<'a, ()> {
        let SessionEvent::Closed { session, why } = event else { return Answer::Now(()) };
        self.ended.lock().push((session.jid().to_string(), *why == Why::Closed));
        let watcher = FullJid::new("watcher@localhost/desk").unwrap();
        if services.online(&watcher.to_bare()).is_empty() || *session.jid() == watcher {
            return Answer::Now(());
        }
        let gone = Stanza::presence(Some("unavailable")).with_from(session.jid().clone()).with_to(watcher);
        Answer::later(services.route(gone, How::Direct))
    }
}

/// The node under test.
pub struct House {
    pub town: Arc<Town>,
    pub trouble: Arc<Trouble>,
    pub listeners: Arc<Listeners>,
    pub router: Arc<Router>,
    pub accounts: Accounts,
    pub cert: String,
}

impl House {
    /// With the accounts `alice`, `bob` and `watcher` at `localhost`.
    pub async fn new() -> House {
        House::with(|_| {}, |_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config), route: impl FnOnce(&mut router::Config)) -> House {
        House::build(change, route, Vec::new()).await
    }

    pub async fn build(
        change: impl FnOnce(&mut Config),
        route: impl FnOnce(&mut router::Config),
        more: Vec<Arc<dyn Module>>,
    ) -> House {
        House::over(Store::memory(), change, route, more).await
    }

    /// With a store of the test's.
    pub async fn over(
        store: Store,
        change: impl FnOnce(&mut Config),
        route: impl FnOnce(&mut router::Config),
        more: Vec<Arc<dyn Module>>,
    ) -> House {
        let accounts = Accounts::new(store.clone());
        for name in ["alice", "bob", "watcher"] {
            accounts.create(&format!("{name}@localhost"), &credentials()).await.unwrap();
        }
        let town = Town::new();
        let trouble = Arc::new(Trouble::default());
        let mut modules: Vec<Arc<dyn Module>> = vec![trouble.clone()];
        modules.extend(more);
        let registry = Arc::new(Registry::build(modules, &Switches::everywhere()).unwrap());
        let mut routing = router::Config::default();
        route(&mut routing);
        let deps = router::Deps {
            whereabouts: town.clone(),
            registry: registry.clone(),
            store,
            hosts: vec!["localhost".into()],
            admins: Vec::new(),
            about: ("Rookery", "0"),
            clock: SystemTime::now,
            random: |buffer| aws_lc_rs::rand::fill(buffer).unwrap(),
            keys: |_| None,
        };
        let router = Router::start(deps, routing);
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let cert = made.cert.pem();
        let tls = TlsStore::from_pem(&cert, &made.signing_key.serialize_pem()).unwrap();
        let mut config = Config::default();
        config.c2s.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        config.c2s.direct_tls_listen = config.c2s.listen.clone();
        change(&mut config);
        let claims: Arc<dyn Claims> = town.clone();
        let kept = accounts.clone();
        let listeners = session::start(config, tls, router.clone(), registry, claims, accounts).unwrap();
        House { town, trouble, listeners, router, accounts: kept, cert }
    }

    pub fn address(&self, door: Door) -> SocketAddr {
        self.listeners.addresses().iter().find(|(d, _)| *d == door).unwrap().1
    }

    /// Waits until `holds`, which must become true soon.
    pub async fn until(&self, what: &str, holds: impl Fn(&House) -> bool) {
        let wait = async {
            let mut look = tokio::time::interval(Duration::from_millis(5));
            while !holds(self) {
                look.tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

/// Those of everybody who has an account: of [`PASSWORD`].
pub fn credentials() -> store::Credentials {
    let keys = |hash| {
        let keys = derive(PASSWORD, hash, b"0123456789abcdef", 4096).unwrap();
        store::ScramKeys {
            salt: keys.salt,
            iterations: keys.iterations,
            stored_key: keys.stored_key,
            server_key: keys.server_key,
        }
    };
    store::Credentials::new(keys(ScramHash::Sha1), keys(ScramHash::Sha256), keys(ScramHash::Sha512))
}

/// Parses an address of a test.
pub fn jid(text: &str) -> Jid {
    Jid::new(text).unwrap()
}
