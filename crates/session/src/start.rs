//! Starts the arbiters and their listeners, and is the handle by which a node watches and stops them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix_rt::{Arbiter, ArbiterHandle, System};
use cluster::{Change, Incarnation, Living, Loss};
use futures::{FutureExt, StreamExt, stream};
use hooks::{AccountState, Accounts, Hold, Registry, Services, SessionEvent, SessionView};
use jid::FullJid;
use parking_lot::Mutex;
use router::Router;
use tokio::sync::{OnceCell, mpsc, watch};

use crate::admission::{Admission, Heart};
use crate::claims::Claims;
use crate::config::Config;
use crate::counters::Counters;
use crate::drain::{self, Pace};
use crate::failures::Failures;
use crate::files::Files;
use crate::gate::Gate;
use crate::listener::{self, Door};
use crate::outliving::{EndedSessions, Sessions};
use crate::passwords::Passwords;
use crate::session::Order;
use crate::supervisor;
use crate::table::{SessionFacts, Table};
use crate::tls::TlsStore;
use crate::world::World;

/// The client side of a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened at; `AddrInUse` means that another process does.
    #[error("failed to listen at `{address}`: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system gives no more threads.
    #[error("failed to start a thread for sessions: {0}")]
    Thread(#[source] io::Error),
}

/// The running client side of a node.
pub struct Listeners {
    world: Arc<World>,
    addresses: Vec<(Door, SocketAddr)>,
    open: watch::Sender<bool>,
    threads: Mutex<Option<Threads>>,
}

/// The threads that own sessions.
struct Threads {
    system: System,
    arbiters: Vec<ArbiterHandle>,
    main: JoinHandle<()>,
}

/// Binds every configured address, starts one arbiter per core (or as configured) and accepts clients on each
/// of them. The arbiters have threads of their own: the caller may be on any runtime or none.
///
/// # Errors
/// [`StartError`] where an address cannot be bound or no thread be had; nothing runs then.
pub fn start(
    config: Config,
    tls: Arc<TlsStore>,
    router: Arc<Router>,
    registry: Arc<Registry>,
    claims: Arc<dyn Claims>,
    accounts: Accounts,
) -> Result<Arc<Listeners>, StartError> {
    let arbiters = match config.c2s.arbiters {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let mut doors = Vec::new();
    for (door, addresses) in
        [(Door::StartTls, &config.c2s.listen), (Door::DirectTls, &config.c2s.direct_tls_listen)]
    {
        for &address in addresses {
            let sockets = listener::bind(address, arbiters, &config.limits)
                .map_err(|source| StartError::Listen { address, source })?;
            doors.push((door, sockets));
        }
    }
    let addresses = doors
        .iter()
        .filter_map(|(door, sockets)| Some((*door, sockets.first()?.local_addr().ok()?)))
        .collect();

    let limits = &config.limits;
    let passwords =
        Passwords::start(limits.password_threads, limits.password_queue).map_err(StartError::Thread)?;
    let (open, is_open) = watch::channel(true);
    let (serving, is_serving) = watch::channel(claims.is_serving());
    // Before the look at the incarnation: a later one is told.
    let changes = claims.changes();
    let (_, Incarnation(incarnation)) = claims.me();
    let world = Arc::new(World {
        tls,
        services: router.clone() as Arc<dyn Services>,
        router,
        registry,
        claims,
        accounts,
        passwords,
        gate: Gate::new(limits, Instant::now()),
        admission: Admission::new(limits, Instant::now()),
        files: Files::new(limits.open_files_reserve),
        failures: Failures::new(limits, Instant::now()),
        counters: Arc::new(Counters::default()),
        table: Table::default(),
        ended: EndedSessions::default(),
        settings: OnceCell::new(),
        serving: is_serving,
        settled: AtomicU64::new(incarnation),
        told: AtomicU64::new(incarnation),
        open: is_open,
        draining: AtomicBool::new(false),
        ending: AtomicBool::new(false),
        config,
    });
    let threads = threads(arbiters, world.clone(), changes, serving)?;
    world.router.yield_to_peers(Arc::new(Sessions(Arc::downgrade(&world))));
    for (door, sockets) in doors {
        for (arbiter, socket) in threads.arbiters.iter().zip(sockets) {
            accept_on(arbiter, door, socket, world.clone());
        }
    }
    Ok(Arc::new(Listeners { world, addresses, open, threads: Mutex::new(Some(threads)) }))
}

fn accept_on(arbiter: &ArbiterHandle, door: Door, socket: TcpListener, world: Arc<World>) {
    arbiter.spawn_fn(move || {
        actix_rt::spawn(async move {
            let open = world.open.clone();
            let admit = |guest| {
                actix_rt::spawn(supervisor::supervise(world.clone(), guest));
            };
            if let Err(error) = listener::accept(socket, door, world.clone(), open, admit).await {
                tracing::error!(%error, ?door, "a listener stopped");
            }
        });
    });
}

/// Starts a thread with an actix system, its arbiters beside it; on the system's own arbiter runs what is
/// told to all sessions.
fn threads(
    count: usize,
    world: Arc<World>,
    changes: mpsc::Receiver<Change>,
    serving: watch::Sender<bool>,
) -> Result<Threads, StartError> {
    let (tell, told) = blocking::channel();
    let run = move || {
        let runner = System::new();
        let arbiters: io::Result<Vec<Arbiter>> = (0..count).map(|_| Arbiter::try_new()).collect();
        let arbiters = match arbiters {
            Ok(arbiters) => arbiters,
            Err(error) => {
                let _ = tell.send(Err(error));
                return;
            }
        };
        let handles: Vec<ArbiterHandle> = arbiters.iter().map(Arbiter::handle).collect();
        let hearts = hearts(&handles);
        let _ = tell.send(Ok((System::current(), handles)));
        runner.runtime().spawn(sweep(world.clone()));
        let admitting = world.clone();
        runner
            .runtime()
            .spawn(async move { admitting.admission.give_out(&hearts, &admitting.counters).await });
        runner.runtime().spawn(follow(world, changes, serving));
        if let Err(error) = runner.run() {
            tracing::error!(%error, "the system of the sessions failed");
        }
        for arbiter in arbiters {
            arbiter.stop();
            let _ = arbiter.join();
        }
    };
    let main = std::thread::Builder::new().name("sessions".into()).spawn(run).map_err(StartError::Thread)?;
    match told.recv() {
        Ok(Ok((system, arbiters))) => Ok(Threads { system, arbiters, main }),
        Ok(Err(error)) => Err(StartError::Thread(error)),
        Err(_) => Err(StartError::Thread(io::Error::other("the thread ended at once"))),
    }
}

/// Has each arbiter tell how late it is.
fn hearts(arbiters: &[ArbiterHandle]) -> Vec<Arc<Heart>> {
    let epoch = Instant::now();
    let begin = |arbiter: &ArbiterHandle| {
        let heart = Heart::new(epoch);
        let listening = heart.clone();
        arbiter.spawn_fn(move || drop(actix_rt::spawn(async move { listening.listen().await })));
        heart
    };
    arbiters.iter().map(begin).collect()
}

/// Turns what the cluster tells into orders to sessions.
async fn follow(world: Arc<World>, mut changes: mpsc::Receiver<Change>, serving: watch::Sender<bool>) {
    // Until when the clients of a fenced node wait for its lease.
    let mut patience: Option<tokio::time::Instant> = None;
    loop {
        if patience.is_some_and(|until| until <= tokio::time::Instant::now()) {
            patience = None;
            let sessions = world.table.cut_off();
            tracing::warn!(sessions, "closed all streams: this node was without its lease for too long");
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
                world.table.order(hooks::Sid(sid.0), order);
            }
            Change::LeaseLost { until } => {
                world.settled.store(0, Ordering::Release);
                serving.send_replace(false);
                patience = Some(until);
                if until > tokio::time::Instant::now() {
                    announce(&world, world.table.views(), SessionEvent::Fenced).await;
                }
            }
            Change::LeaseBack { incarnation } => {
                // In time, however long the rest takes.
                patience = None;
                // Beside this loop: the table may stand still until the changes behind are taken.
                actix_rt::spawn(come_back(world.clone(), incarnation, serving.clone()));
            }
            Change::NodeGone { .. } | Change::NodeUp { .. } | Change::NodeDraining { .. } => {}
        }
    }
}

/// How often the tables of the door are swept.
const SWEEP: Duration = Duration::from_secs(60);

/// Forgets who came and went, so that a crowd or an attack that is over costs nothing.
async fn sweep(world: Arc<World>) {
    let mut due = tokio::time::interval(SWEEP);
    loop {
        due.tick().await;
        let now = Instant::now();
        world.gate.sweep(now);
        world.failures.sweep(now);
        world.files.look(world.gate.open());
    }
}

/// Pause between two attempts to bring the living sessions back.
const AGAIN: Duration = Duration::from_millis(500);

/// Sessions that are told of their return at a time.
const AT_ONCE: usize = 64;

/// The lease is back under a new incarnation, whose table knows none of the sessions that live here: bring
/// them back, and end those whose full JIDs were taken meanwhile.
async fn come_back(world: Arc<World>, incarnation: Incarnation, serving: watch::Sender<bool>) {
    while world.claims.is_serving() && world.claims.me().1 == incarnation {
        world.router.forget_former();
        let views = world.table.returning();
        // From before they can be seen: nothing that is new may overtake what was kept for them meanwhile.
        let takes_messages = |view: &&Arc<SessionView>| view.priority().is_some_and(|priority| priority >= 0);
        let holds: Vec<Hold> =
            views.iter().filter(takes_messages).map(|view| world.services.hold(view.account())).collect();
        match world.claims.resync(views.iter().map(|view| living(view)).collect()).await {
            // The lease was lost and came back once more meanwhile: whoever brings back under it is told the same, and may
            // have done so already.
            Ok(_) if world.claims.me().1 != incarnation => return,
            Ok(taken) => {
                let (taken, back): (Vec<_>, Vec<_>) =
                    views.into_iter().partition(|view| taken.contains(&cluster::Sid(view.sid().0)));
                tracing::info!(back = back.len(), taken = taken.len(), "brought the sessions back");
                for view in taken {
                    // Other nodes have told its contacts, who see the successor by now.
                    view.set_presence(None);
                    world.table.order(view.sid(), Order::Displaced);
                }
                world.settled.fetch_max(incarnation.0, Ordering::AcqRel);
                serving.send_replace(true);
                announce(&world, back, SessionEvent::Returned).await;
                drop(holds);
                world.told.fetch_max(incarnation.0, Ordering::AcqRel);
                serving.send_replace(true);
                return end_locked(world).await;
            }
            Err(error) => {
                tracing::warn!(%error, "failed to bring the sessions back, trying again");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Tells modules the same of many sessions, some at a time.
async fn announce(
    world: &World,
    sessions: Vec<Arc<SessionView>>,
    event: impl Fn(Arc<SessionView>) -> SessionEvent,
) {
    let tell = |session| async {
        let announced = AssertUnwindSafe(world.services.announce(event(session))).catch_unwind();
        if announced.await.is_err() {
            world.counters.panics.add(1);
        }
    };
    stream::iter(sessions).for_each_concurrent(AT_ONCE, tell).await;
}

/// Ends the sessions of accounts that were disabled or removed while this node could not hear of it.
async fn end_locked(world: Arc<World>) {
    for view in world.table.with_keys() {
        match world.accounts.state(view.account().as_str()).await {
            Ok(Some(AccountState::Open)) => {}
            Ok(_) => {
                // Taken back by its end like any other.
                world.table.order(view.sid(), Order::Kick);
            }
            Err(error) => {
                tracing::warn!(session = %view.jid(), %error, "failed to look at an account after the lease came back");
            }
        }
    }
}

pub(crate) fn living(view: &SessionView) -> Living {
    Living {
        jid: view.jid().clone(),
        sid: cluster::Sid(view.sid().0),
        // One that hides is not seen for a moment either: whoever is told of its return hides it again.
        priority: view.priority().filter(|_| !view.is_invisible()),
        detached: false,
    }
}

impl Listeners {
    /// Where clients can connect: what was bound, with the ports that the system chose for port 0.
    pub fn addresses(&self) -> &[(Door, SocketAddr)] {
        &self.addresses
    }

    /// Facts about every bound session of this node.
    pub fn sessions(&self) -> Vec<SessionFacts> {
        let (node, _) = self.world.claims.me();
        self.world.table.facts(node.0, |jid| self.world.router.queue_depth(jid))
    }

    /// How many sessions are bound on this node.
    pub fn session_count(&self) -> usize {
        self.world.table.len()
    }

    /// How many client sockets are open, bound or not.
    pub fn connections(&self) -> usize {
        self.world.gate.open()
    }

    /// How many of them have not logged in.
    pub fn unauthenticated(&self) -> usize {
        self.world.gate.unauthenticated()
    }

    /// How many wait until their login may begin.
    pub fn logins_waiting(&self) -> usize {
        self.world.admission.waiting()
    }

    /// How many logins may begin in a second, as things are; `None` where that is not bounded.
    pub fn login_rate(&self) -> Option<u64> {
        self.world.admission.rate()
    }

    /// What is remembered about addresses, by what it is for: whose sockets are counted, who failed to log in,
    /// at which accounts.
    pub fn remembered(&self) -> [(&'static str, usize); 3] {
        let (addresses, accounts) = self.world.failures.remembered();
        let connected = self.world.gate.addresses();
        [("connected-addresses", connected), ("failed-addresses", addresses), ("failed-accounts", accounts)]
    }

    /// Whether clients are refused because the process has hardly any files left.
    pub fn is_out_of_files(&self) -> bool {
        self.world.files.is_met()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.world.counters
    }

    /// The threads that derive keys, for whoever else has a password to turn into keys.
    pub fn passwords(&self) -> &Passwords {
        &self.world.passwords
    }

    /// Closes the session that has this full JID on this node; false where there is none.
    /// To close one wherever it is, take its route: [`Cluster::kick`](cluster::Cluster::kick).
    pub fn kick(&self, jid: &FullJid) -> bool {
        self.world.table.find(jid).is_some_and(|sid| self.world.table.order(sid, Order::Kick))
    }

    /// Sends whoever comes elsewhere from now on, or no longer.
    pub fn turn_away(&self, draining: bool) {
        self.world.draining.store(draining, Ordering::Relaxed);
    }

    /// This node ends soon: sessions that end wait less for what the other nodes can do for them.
    pub fn hurry(&self) {
        self.world.ending.store(true, Ordering::Relaxed);
    }

    /// How many clients have logged in and have not left; those of sessions that just ended are among them until
    /// their routes are taken back.
    pub fn logged_in(&self) -> usize {
        let connected = self.world.gate.open().saturating_sub(self.world.gate.unauthenticated());
        // Sessions without a connection are in the table alone.
        connected.max(self.world.table.len())
    }

    /// Sends clients elsewhere until none is left, at most `rate` of them in a second and in any order; `tell`
    /// hears how many are left. What waits for a client is written to it first. Dropped in the middle, it leaves
    /// those here that it has not come to.
    pub async fn drain(&self, rate: watch::Receiver<u32>, tell: impl Fn(usize)) {
        self.turn_away(true);
        let mut pace = Pace::new(Instant::now());
        let mut waiting = Vec::new();
        let mut look = tokio::time::interval(drain::LOOK);
        loop {
            look.tick().await;
            if waiting.is_empty() {
                // Those that were bound meanwhile, and those that do not end at once: to be told twice is nothing.
                waiting = self.world.table.sids();
            }
            for _ in 0..pace.due(*rate.borrow(), waiting.len(), Instant::now()) {
                if let Some(sid) = waiting.pop() {
                    self.world.table.order(sid, Order::Move);
                }
            }
            let left = self.logged_in();
            tell(left);
            if left == 0 {
                return;
            }
        }
    }

    /// Accepts nobody any more, closes every stream with `system-shutdown` after what waits for it was
    /// written, and ends the threads. Returns when that is done or `limits.stop_timeout_s` has passed.
    pub async fn stop(&self) {
        self.open.send_replace(false);
        let ended = async {
            let has_mailboxes = || self.world.router.has_mailboxes();
            while self.world.gate.open() > 0 || self.world.table.len() > 0 || has_mailboxes() {
                // Again and again: a session may be bound between two orders.
                self.world.table.order_all(Order::Stop);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(self.world.config.limits.stop(), ended).await.is_err() {
            tracing::warn!(open = self.world.gate.open(), "stopping although connections are open");
        }
        let Some(threads) = self.threads.lock().take() else { return };
        threads.system.stop();
        let joined = tokio::task::spawn_blocking(move || threads.main.join());
        if tokio::time::timeout(self.world.config.limits.stop(), joined).await.is_err() {
            tracing::warn!("a thread of the sessions did not end");
        }
    }
}
