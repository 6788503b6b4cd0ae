//! A node's process in a simulation: the real cluster and the real router with the real modules, and around them what
//! `session` does for bound sessions, over clients that are simulated. Its runtime is `start_paused`: time passes when
//! the world says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use cluster::{Change, Cluster, ConflictPolicy, Group, Incarnation, Living, Loss};
use futures::{FutureExt, StreamExt, stream};
use hooks::{
    Hold, Passage, Registry, Services, SessionEvent, SessionView, Store, Switches, Verdict, Why, bench::parse,
};
use jid::FullJid;
use parking_lot::Mutex;
use router::{Delivery, Deps, End, Fate, Mailbox, Router};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    history::{Event, History, Life, Process, Route},
    ledger::{Ledger, LedgerDisk},
};

const LOOK: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_millis(500);
const FINISH: Duration = Duration::from_secs(10);
const UNBIND_AGAIN: (u32, Duration) = (60, Duration::from_secs(1));
const LEAVE: Duration = Duration::from_millis(750);
const STRAGGLERS: Duration = Duration::from_millis(100);
const AT_ONCE: usize = 64;

/// What a client says.
#[derive(Clone, Debug)]
pub enum Say {
    Message { id: u64, to: String },
    Available,
    Close,
}

/// The node's end of a client's connection.
pub struct Line {
    pub said: mpsc::UnboundedReceiver<Say>,
    pub state: Arc<LineState>,
}

/// What both ends of a connection know.
#[derive(Debug, Default)]
pub struct LineState {
    pub bound: AtomicBool,
    pub closed: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Displaced,
    Kick,
    CutOff,
    Move,
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Closed,
    Gone,
    Ordered(Order),
    Overflowed,
}

struct Entry {
    view: Arc<SessionView>,
    orders: mpsc::UnboundedSender<Order>,
}

#[derive(Default)]
struct Lines {
    sessions: BTreeMap<u128, Entry>,
    /// Those of them that end.
    finishing: BTreeSet<u128>,
    binding: BTreeMap<u128, Option<Order>>,
    missed: BTreeSet<u128>,
}

/// One process.
pub struct House {
    pub process: Process,
    pub cluster: Arc<Cluster>,
    pub router: Arc<Router>,
    pub data: Option<Group>,
    registry: Arc<Registry>,
    services: Arc<dyn Services>,
    history: History,
    lines: Mutex<Lines>,
    settled: AtomicU64,
    told: AtomicU64,
    draining: AtomicBool,
    /// It was told to end, and takes no order back.
    stopping: AtomicBool,
    left_behind: AtomicBool,
    turn: watch::Sender<()>,
    /// Told to stop, it has done so: a process ends then, whatever others still hold open.
    stopped: Notify,
}

/// What a process is started with.
pub struct Start {
    pub process: Process,
    pub config: cluster::Config,
    pub deps: cluster::Deps,
    pub store: Store,
    pub ledger: LedgerDisk,
    pub history: History,
    /// Where the house is found once it is built, and whether it is ready.
    pub place: Arc<Place>,
}

/// Where the world finds a process.
#[derive(Default)]
pub struct Place {
    pub house: Mutex<Option<Arc<House>>>,
    pub ready: AtomicBool,
    /// Why the process ended by itself.
    pub ended: Mutex<Option<String>>,
}

impl Place {
    fn left_behind(&self) -> bool {
        self.house.lock().as_ref().is_some_and(|house| house.left_behind.load(Ordering::Acquire))
    }
}

/// The process, until it ends.
pub async fn run(start: Start) {
    let place = start.place.clone();
    let ended = match open(start).await {
        Ok(()) if place.left_behind() => "left, with stanzas that it could not hand on".to_owned(),
        Ok(()) => crate::oracle::LEFT.to_owned(),
        Err(error) => error.to_string(),
    };
    *place.ended.lock() = Some(ended);
}

async fn open(start: Start) -> Result<(), cluster::ClusterError> {
    let is_backend = start.deps.roles.backend;
    let cluster = Cluster::start(start.config, start.deps).await?;
    let mut data = None;
    if is_backend {
        data = Some(cluster.open_group("data", Box::new(Ledger::open(start.ledger))).await?);
    }
    let registry = Registry::build(xeps::modules(&xeps::ModulesConfig::default()), &Switches::everywhere());
    let Ok(registry) = registry else { return Err(cluster::ClusterError::Stopped) };
    let registry = Arc::new(registry);
    let router = Router::start(
        Deps {
            whereabouts: cluster.clone(),
            registry: registry.clone(),
            store: start.store,
            hosts: vec!["localhost".into()],
            admins: Vec::new(),
            about: ("Rookery", "simulated"),
            clock: || SystemTime::UNIX_EPOCH,
            random: |buffer| {
                for part in buffer.chunks_mut(16) {
                    let bits = cluster::Sid::random().0.to_le_bytes();
                    part.copy_from_slice(&bits[..part.len()]);
                }
            },
            keys: |_| None,
        },
        router::Config::default(),
    );
    let routes = cluster.grpc_services().add_service(router.relay_service());
    let changes = cluster.changes();
    let house = Arc::new(House {
        process: start.process,
        cluster: cluster.clone(),
        services: router.services(),
        router,
        data,
        registry,
        history: start.history,
        lines: Mutex::default(),
        settled: AtomicU64::new(0),
        told: AtomicU64::new(0),
        draining: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        left_behind: AtomicBool::new(false),
        turn: watch::Sender::new(()),
        stopped: Notify::new(),
    });
    *start.place.house.lock() = Some(house.clone());
    tokio::spawn(follow(house.clone(), changes));
    let ready = async {
        cluster.ready().await?;
        let (_, Incarnation(incarnation)) = cluster.me();
        house.told.store(incarnation, Ordering::Release);
        // Unless a later one came first, which brings back what there is.
        let _ = house.settled.compare_exchange(0, incarnation, Ordering::AcqRel, Ordering::Acquire);
        house.turn.send_replace(());
        start.place.ready.store(true, Ordering::Release);
        Ok(())
    };
    tokio::select! {
        (ready, served) = futures::future::join(ready, cluster.serve(routes)) => ready.and(served),
        () = house.stopped.notified() => Ok(()),
    }
}

impl House {
    /// Lets a client in.
    pub fn admit(self: &Arc<Self>, jid: FullJid, line: Line) {
        tokio::spawn(carry(self.clone(), jid, line));
    }

    /// This node's life as its sessions know it.
    pub fn life(&self) -> Life {
        (self.cluster.me().0.0, self.settled.load(Ordering::Acquire))
    }

    /// The sessions that may deliver now.
    pub fn serving_sids(&self) -> Vec<u128> {
        if !self.is_serving() {
            return Vec::new();
        }
        let lines = self.lines.lock();
        // Who ends takes nothing and gets nothing any more, also while what it had accepted goes its way.
        lines.sessions.keys().copied().filter(|sid| !lines.finishing.contains(sid)).collect()
    }

    /// Every session that is bound here.
    pub fn living(&self) -> Vec<Route> {
        let life = self.life();
        let route =
            |(sid, entry): (&u128, &Entry)| Route { jid: entry.view.jid().to_string(), sid: *sid, life };
        self.lines.lock().sessions.iter().map(route).collect()
    }

    /// How many messages this process dropped as the rules ask: errors for senders that are no more.
    pub fn ignored(&self) -> u64 {
        self.router.counters().stanzas(stanza::Kind::Message, Fate::Ignored)
    }

    /// Whether sessions are being bound at the moment.
    pub fn is_binding(&self) -> bool {
        !self.lines.lock().binding.is_empty()
    }

    /// Whether it takes clients.
    pub fn is_open(&self) -> bool {
        self.is_serving() && !self.draining.load(Ordering::Acquire)
    }

    /// Sends all clients elsewhere and has the table say so, or no longer.
    pub fn drain(self: &Arc<Self>, draining: bool) {
        if self.stopping.load(Ordering::Acquire) {
            return;
        }
        self.draining.store(draining, Ordering::Release);
        let house = self.clone();
        tokio::spawn(async move {
            let _ = if draining { house.cluster.drain().await } else { house.cluster.undrain().await };
            while house.draining.load(Ordering::Acquire) {
                let next = house.lines.lock().sessions.keys().next().copied();
                if let Some(sid) = next {
                    house.order(sid, Order::Move);
                }
                sleep(LOOK).await;
            }
        });
    }

    /// Ends as a process does that is told to.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.draining.store(true, Ordering::Release);
        let _ = timeout(Duration::from_secs(1), self.cluster.drain()).await;
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let sids: Vec<u128> = self.lines.lock().sessions.keys().copied().collect();
            if sids.is_empty() && !self.router.has_mailboxes() || Instant::now() > until {
                break;
            }
            sids.into_iter().for_each(|sid| self.order(sid, Order::Stop));
            sleep(Duration::from_millis(20)).await;
        }
        if !self.router.rest(Duration::from_secs(5)).await || !self.is_serving() {
            // Told to end while it could reach nobody: within the bound of a stop that is as a kill.
            self.left_behind.store(true, Ordering::Release);
        }
        self.cluster.stop(Duration::from_secs(3)).await;
        self.stopped.notify_one();
    }

    fn is_serving(&self) -> bool {
        self.cluster.is_serving() && self.settled.load(Ordering::Acquire) == self.cluster.me().1.0
    }

    async fn serving(&self) {
        self.until(|| self.is_serving()).await;
    }

    async fn hearing(&self) {
        let is_told = || self.told.load(Ordering::Acquire) == self.settled.load(Ordering::Acquire);
        self.until(|| self.is_serving() && is_told()).await;
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        while !is_so() {
            let mut turn = self.turn.subscribe();
            let _ = timeout(LOOK, turn.changed()).await;
        }
    }

    fn order(&self, sid: u128, order: Order) {
        let mut lines = self.lines.lock();
        if let Some(kept) = lines.binding.get_mut(&sid) {
            kept.get_or_insert(order);
        } else if let Some(entry) = lines.sessions.get(&sid) {
            let _ = entry.orders.send(order);
        }
    }

    fn add(&self, sid: u128, entry: Entry) -> bool {
        let mut lines = self.lines.lock();
        let kept = lines.binding.remove(&sid).flatten();
        if let Some(order) = kept {
            let _ = entry.orders.send(order);
        }
        if kept == Some(Order::CutOff) {
            return false;
        }
        let missed = lines.missed.remove(&sid);
        lines.sessions.insert(sid, entry);
        missed
    }

    fn remove(&self, sid: u128) {
        let mut lines = self.lines.lock();
        lines.binding.remove(&sid);
        lines.missed.remove(&sid);
        lines.finishing.remove(&sid);
        lines.sessions.remove(&sid);
    }

    fn returning(&self) -> Vec<Arc<SessionView>> {
        let lines = &mut *self.lines.lock();
        lines.missed.extend(lines.binding.keys());
        lines.sessions.values().map(|entry| entry.view.clone()).collect()
    }

    fn cut_off(&self) {
        let ended = {
            let mut lines = self.lines.lock();
            for kept in lines.binding.values_mut() {
                kept.get_or_insert(Order::CutOff);
            }
            std::mem::take(&mut lines.sessions)
        };
        for entry in ended.values() {
            entry.view.set_presence(None);
            let _ = entry.orders.send(Order::CutOff);
        }
    }
}

/// Turns what the cluster tells into orders to sessions.
async fn follow(house: Arc<House>, mut changes: mpsc::Receiver<Change>) {
    let mut patience: Option<Instant> = None;
    loop {
        if patience.is_some_and(|until| until <= Instant::now()) {
            patience = None;
            house.cut_off();
        }
        let over = async {
            match patience {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let change = tokio::select! {
            biased;
            () = over => continue,
            change = changes.recv() => match change {
                Some(change) => change,
                None => return,
            },
        };
        match change {
            Change::Displaced { sid, loss, .. } => {
                let order = match loss {
                    Loss::Conflict => Order::Displaced,
                    Loss::Kicked => Order::Kick,
                };
                house.order(sid.0, order);
            }
            Change::LeaseLost { until } => {
                house.settled.store(0, Ordering::Release);
                house.turn.send_replace(());
                house.history.push(Event::Fenced { process: house.process });
                patience = Some(until);
                if until > Instant::now() {
                    let views = house.lines.lock().sessions.values().map(|e| e.view.clone()).collect();
                    announce(&house, views, SessionEvent::Fenced).await;
                }
            }
            Change::LeaseBack { incarnation } => {
                patience = None;
                tokio::spawn(come_back(house.clone(), incarnation));
            }
            Change::NodeGone { node, incarnation, .. } => {
                let life = (node.0, incarnation.0);
                house.history.push(Event::Gone { by: house.process, life });
            }
            Change::NodeUp { .. } | Change::NodeDraining { .. } => {}
        }
    }
}

async fn come_back(house: Arc<House>, incarnation: Incarnation) {
    while house.cluster.is_serving() && house.cluster.me().1 == incarnation {
        house.router.forget_former();
        let views = house.returning();
        let takes_messages = |view: &&Arc<SessionView>| view.priority().is_some_and(|priority| priority >= 0);
        let holds: Vec<Hold> =
            views.iter().filter(takes_messages).map(|view| house.services.hold(view.account())).collect();
        let Ok(taken) = house.cluster.resync(views.iter().map(|view| living(view)).collect()).await else {
            sleep(AGAIN).await;
            continue;
        };
        if house.cluster.me().1 != incarnation {
            return;
        }
        let (taken, back): (Vec<_>, Vec<_>) =
            views.into_iter().partition(|view| taken.contains(&cluster::Sid(view.sid().0)));
        for view in taken {
            view.set_presence(None);
            house.order(view.sid().0, Order::Displaced);
        }
        house.settled.fetch_max(incarnation.0, Ordering::AcqRel);
        let life = house.life();
        house.history.push(Event::Back { process: house.process, life });
        for view in &back {
            house.history.push(Event::BroughtBack { sid: view.sid().0, life });
        }
        house.turn.send_replace(());
        announce(&house, back, SessionEvent::Returned).await;
        drop(holds);
        house.told.store(incarnation.0, Ordering::Release);
        house.turn.send_replace(());
        return;
    }
}

async fn announce(
    house: &House,
    sessions: Vec<Arc<SessionView>>,
    event: impl Fn(Arc<SessionView>) -> SessionEvent,
) {
    let tell = |session| async {
        let _ = AssertUnwindSafe(house.services.announce(event(session))).catch_unwind().await;
    };
    stream::iter(sessions).for_each_concurrent(AT_ONCE, tell).await;
}

fn living(view: &SessionView) -> Living {
    Living {
        jid: view.jid().clone(),
        sid: cluster::Sid(view.sid().0),
        priority: view.priority(),
        detached: false,
    }
}

/// A client's connection, from its login to its end.
async fn carry(house: Arc<House>, jid: FullJid, mut line: Line) {
    house.serving().await;
    let sid = cluster::Sid::random();
    house.lines.lock().binding.insert(sid.0, None);
    let view = Arc::new(SessionView::new(jid.clone(), hooks::Sid(sid.0), true));
    let mut mailbox = house.router.open(view.clone());
    let asked = Event::BindAsked { sid: sid.0, jid: jid.to_string(), process: house.process };
    house.history.push(asked);
    let bound = match house.cluster.bind(&jid, sid, ConflictPolicy::Replace).await {
        Ok(bound) => bound,
        Err(_) => {
            house.history.push(Event::BindFailed { sid: sid.0 });
            house.remove(sid.0);
            house.router.close(&view, Vec::new());
            line.state.closed.store(true, Ordering::Release);
            take_route_back(&house, &jid, sid).await;
            return;
        }
    };
    let (orders, mut ordered) = mpsc::unbounded_channel();
    let life = (house.cluster.me().0.0, house.cluster.me().1.0);
    house.history.push(Event::Bound { sid: sid.0, index: bound.index, life });
    if house.add(sid.0, Entry { view: view.clone(), orders }) {
        bring_back(&house, &view).await;
    }
    line.state.bound.store(true, Ordering::Release);
    let mut unwritten = Vec::new();
    let mut freed = false;
    let outcome =
        halves(&house, &view, &mut mailbox, &mut line, &mut ordered, &mut unwritten, &mut freed).await;
    // As the real one: what waits for a session that is displaced goes to its successor.
    let is_lost = matches!(
        outcome,
        Outcome::Overflowed | Outcome::Gone | Outcome::Ordered(Order::Displaced | Order::CutOff)
    );
    if !is_lost && house.is_serving() {
        write(&house, &view, &mut mailbox, &mut unwritten);
    }
    house.history.push(Event::Ended { sid: sid.0, why: format!("{outcome:?}") });
    line.state.closed.store(true, Ordering::Release);
    house.remove(sid.0);
    match outcome {
        Outcome::Ordered(Order::Displaced | Order::CutOff) => {}
        _ if freed => {}
        _ => take_route_back(&house, &jid, sid).await,
    }
    house.router.close(&view, unwritten);
    let displaced = outcome == Outcome::Ordered(Order::Displaced);
    let online = house.services.online(view.account());
    if displaced && online.iter().any(|other| other.jid == *view.jid() && other.priority.is_some()) {
        view.set_presence(None);
    }
    let clean = matches!(outcome, Outcome::Closed | Outcome::Ordered(_));
    let why = if clean { Why::Closed } else { Why::Lost };
    house.services.announce(SessionEvent::Closed { session: view, why }).await;
}

async fn bring_back(house: &House, view: &Arc<SessionView>) {
    house.serving().await;
    match house.cluster.resync(vec![living(view)]).await {
        Ok(taken) if taken.is_empty() => {
            house.history.push(Event::BroughtBack { sid: view.sid().0, life: house.life() });
        }
        Ok(_) => house.order(view.sid().0, Order::Displaced),
        Err(_) => house.order(view.sid().0, Order::Stop),
    }
}

/// Takes a route back; beside the session's end if that does not succeed at once.
async fn take_route_back(house: &Arc<House>, jid: &FullJid, sid: cluster::Sid) {
    house.history.push(Event::UnbindAsked { sid: sid.0 });
    if house.cluster.unbind(jid, sid).await.is_ok() {
        return;
    }
    let (house, jid) = (house.clone(), jid.clone());
    tokio::spawn(async move {
        let (attempts, pause) = UNBIND_AGAIN;
        for _ in 0..attempts {
            sleep(pause).await;
            if !house.cluster.is_serving() || house.cluster.unbind(&jid, sid).await.is_ok() {
                return;
            }
        }
    });
}

/// Runs both halves of a session until one of them or an order ends it.
async fn halves(
    house: &Arc<House>,
    view: &Arc<SessionView>,
    mailbox: &mut Mailbox,
    line: &mut Line,
    ordered: &mut mpsc::UnboundedReceiver<Order>,
    unwritten: &mut Vec<Delivery>,
    freed: &mut bool,
) -> Outcome {
    let busy = AtomicBool::new(false);
    let parted = async {
        let order = ordered.recv().await.unwrap_or(Order::Stop);
        if order == Order::Move {
            let sid = cluster::Sid(view.sid().0);
            house.history.push(Event::UnbindAsked { sid: sid.0 });
            if matches!(timeout(LEAVE, house.cluster.unbind(view.jid(), sid)).await, Ok(Ok(()))) {
                *freed = true;
                sleep(STRAGGLERS).await;
            }
        }
        Outcome::Ordered(order)
    };
    let outbound = async {
        loop {
            mailbox.ready().await;
            house.serving().await;
            write(house, view, mailbox, unwritten);
            match mailbox.end() {
                Some(End::Overflowed) => return Outcome::Overflowed,
                Some(End::Closed | End::Dismissed(_)) => return Outcome::Gone,
                None => {}
            }
        }
    };
    let inbound = inbound(house, view, line, &busy);
    tokio::pin!(inbound);
    let ended = tokio::select! {
        biased;
        outcome = parted => outcome,
        outcome = outbound => outcome,
        outcome = &mut inbound => return outcome,
    };
    house.lines.lock().finishing.insert(view.sid().0);
    // What was read was accepted: it goes its way.
    let finished = poll_fn(|cx| {
        if !busy.load(Ordering::Relaxed) || inbound.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if busy.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(()) }
    });
    let _ = timeout(FINISH, finished).await;
    ended
}

async fn inbound(house: &Arc<House>, view: &Arc<SessionView>, line: &mut Line, busy: &AtomicBool) -> Outcome {
    house.services.announce(SessionEvent::Bound(view.clone())).await;
    loop {
        house.hearing().await;
        let Some(said) = line.said.recv().await else { return Outcome::Gone };
        house.hearing().await;
        busy.store(true, Ordering::Relaxed);
        match said {
            Say::Close => return Outcome::Closed,
            Say::Available => {
                house.history.push(Event::Announced { sid: view.sid().0 });
                hand_on(house, view, "<presence/>").await;
            }
            Say::Message { id, to } => {
                let from = view.sid().0;
                house.history.push(Event::Accepted { id, from, to: to.clone(), process: house.process });
                let xml = format!("<message to='{to}' type='chat' id='{id}'><body>{id}</body></message>");
                hand_on(house, view, &xml).await;
            }
        }
        busy.store(false, Ordering::Relaxed);
    }
}

async fn hand_on(house: &House, view: &Arc<SessionView>, xml: &str) {
    let stanza = parse(xml).with_from(view.jid().clone());
    let mut passage = Passage::new(stanza, house.services.clone())
        .with_sender(view.clone())
        .with_account(view.account().clone());
    if let Verdict::Pass = house.registry.leaving(&mut passage).await {
        house.router.send(passage).await;
    }
}

/// Writes what waits to the client.
fn write(house: &House, view: &SessionView, mailbox: &mut Mailbox, taken: &mut Vec<Delivery>) {
    taken.extend(mailbox.drain(usize::MAX));
    let (life, sid) = (house.life(), view.sid().0);
    for mut delivery in taken.drain(..) {
        if !matches!(house.registry.delivering(view, delivery.stanza_mut()), Verdict::Pass) {
            continue;
        }
        let mut out = BytesMut::new();
        delivery.write(&mut out);
        let head = &delivery.stanza.head;
        let is = |type_: &str| head.type_.as_deref() == Some(type_);
        let id = head.id.as_deref().and_then(|id| id.parse().ok());
        match (head.kind, id) {
            (stanza::Kind::Message, Some(id)) if is("error") => {
                house.history.push(Event::Bounced { id, to: sid });
            }
            (stanza::Kind::Message, Some(id)) => {
                house.history.push(Event::Delivered { id, to: sid, life, process: house.process });
            }
            (stanza::Kind::Presence, _) if head.type_.is_none() || is("unavailable") => {
                let of = head.from.as_ref().map(ToString::to_string).unwrap_or_default();
                house.history.push(Event::Told { to: sid, of, available: head.type_.is_none() });
            }
            _ => {}
        }
    }
}
