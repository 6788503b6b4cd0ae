//! The simulated world: hosts with a runtime and a clock of their own each, which run in turns on one thread.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cluster::{Config, Discovery, NodeState, Roles, simulation};
use futures::future::BoxFuture;
use hooks::Store;
use tokio::runtime::{Builder, Runtime};

use crate::{
    chance::Dice,
    disks::Disks,
    history::{Event, History, Life, Process, Route},
    house::{self, House, Place, Start},
    ledger::LedgerDisk,
    network::{Host, Network},
};

/// How long each host runs in a turn, in milliseconds. No message is faster, so that the order in which hosts have
/// their turns decides nothing that their clocks would not allow.
pub const TURN_MS: u64 = 5;
/// Hosts that the world has at most.
pub const HOSTS_MAX: usize = 5;

/// A host, with its process if one runs.
pub struct Node {
    pub roles: Roles,
    pub address: SocketAddr,
    dir: PathBuf,
    ledger: LedgerDisk,
    running: Option<Running>,
    /// Until when its process stands still.
    paused_until: Option<u64>,
    /// Milliseconds by which its clock is behind since it stood still.
    owed: u64,
    /// How fast its clock runs, in thousandths.
    pace: u64,
}

struct Running {
    runtime: Runtime,
    place: Arc<Place>,
    process: Process,
}

/// What the seam of the cluster reaches of the world.
struct Ground {
    dice: RefCell<Dice>,
    network: Arc<Network>,
    disks: RefCell<Disks>,
    at: Cell<Host>,
    snapshot_log_bytes: u64,
}

impl simulation::World for Ground {
    fn random(&self) -> u128 {
        let mut dice = self.dice.borrow_mut();
        u128::from(dice.next()) << 64 | u128::from(dice.next())
    }

    fn listen(&self, at: SocketAddr) -> io::Result<Box<dyn simulation::Listener>> {
        self.network.listen(at)
    }

    fn connect(&self, to: &str) -> BoxFuture<'static, io::Result<Box<dyn simulation::Socket>>> {
        self.network.connect(self.at.get(), to)
    }

    fn write(&self, file: &Path, at: u64, bytes: usize) -> io::Result<()> {
        self.disks.borrow_mut().write(self.at.get(), file, at, bytes)
    }

    fn sync(&self, file: &Path) -> io::Result<()> {
        self.disks.borrow_mut().sync(file);
        Ok(())
    }

    fn sync_takes(&self) -> Duration {
        Duration::from_millis(self.disks.borrow_mut().sync_takes(self.at.get()))
    }

    fn snapshot_log_bytes(&self) -> u64 {
        self.snapshot_log_bytes
    }
}

/// All of it.
pub struct World {
    pub now: u64,
    pub history: History,
    pub network: Arc<Network>,
    pub nodes: Vec<Node>,
    pub store: Store,
    ground: Rc<Ground>,
    dice: Dice,
    processes: Process,
    serves: BTreeMap<u128, bool>,
    /// Lives of nodes that some table has said to be over.
    over: BTreeSet<Life>,
}

impl World {
    /// A world with nobody in it yet; files are kept in `dir`.
    pub fn new(dice: &mut Dice, dir: &Path, roles: &[Roles]) -> World {
        let network = Network::new(dice.split());
        let ground = Rc::new(Ground {
            dice: RefCell::new(dice.split()),
            network: network.clone(),
            disks: RefCell::new(Disks::new(dice.split())),
            at: Cell::new(0),
            // From so little that followers which were away need a snapshot, up to more than is ever written.
            snapshot_log_bytes: dice.pick(&[4 << 10, 32 << 10, 1 << 30]).unwrap_or(1 << 30),
        });
        simulation::enter(ground.clone());
        let nodes = roles.iter().zip(1_u8..).map(|(roles, nth)| {
            let address = SocketAddr::from(([127, 0, 0, nth], 5270));
            network.know(usize::from(nth) - 1, address);
            Node {
                roles: *roles,
                address,
                dir: dir.join(nth.to_string()),
                ledger: LedgerDisk::default(),
                running: None,
                paused_until: None,
                owed: 0,
                pace: dice.between(970, 1_031),
            }
        });
        World {
            now: 0,
            history: History::default(),
            nodes: nodes.collect(),
            network,
            store: Store::memory(),
            ground,
            dice: dice.split(),
            processes: 0,
            serves: BTreeMap::new(),
            over: BTreeSet::new(),
        }
    }

    /// Starts the process of a host.
    pub fn start(&mut self, host: Host) {
        if self.nodes[host].running.is_some() {
            return;
        }
        self.processes += 1;
        let process = self.processes;
        self.network.start(host);
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without sockets can be made");
        let place = Arc::new(Place::default());
        let node = &self.nodes[host];
        let seeds = self.nodes.iter().take(3).map(|node| node.address.to_string()).collect();
        let config = Config {
            listen: Some(node.address),
            plain: true,
            expect: 3,
            discovery: Discovery::Static(seeds),
            ..Config::default()
        };
        let deps =
            cluster::Deps { name: format!("host{host}"), roles: node.roles, data_dir: node.dir.clone() };
        let start = Start {
            process,
            config,
            deps,
            store: self.store.clone(),
            ledger: node.ledger.clone(),
            history: self.history.clone(),
            place: place.clone(),
        };
        self.ground.at.set(host);
        runtime.spawn(house::run(start));
        let node = &mut self.nodes[host];
        node.running = Some(Running { runtime, place, process });
        node.paused_until = None;
        node.owed = 0;
        self.history.push(Event::Started { host, process });
    }

    /// Ends the process of a host at once; with its power, what was not synced may be lost.
    pub fn kill(&mut self, host: Host, power: bool) {
        let Some(running) = self.nodes[host].running.take() else { return };
        self.note_ignored(&running);
        self.history.push(Event::Killed { host, process: running.process, power });
        self.end(host, running, power);
    }

    /// What a process has counted goes with it.
    fn note_ignored(&self, running: &Running) {
        if let Some(house) = running.place.house.lock().as_ref() {
            let messages = house.ignored();
            self.history.push(Event::Ignored { process: running.process, messages });
        }
    }

    fn end(&mut self, host: Host, running: Running, power: bool) {
        self.network.kill(host, power);
        self.ground.at.set(host);
        // From here on what its destructors write reaches nobody.
        *running.place.house.lock() = None;
        drop(running.runtime);
        let mut disks = self.ground.disks.borrow_mut();
        if power {
            self.nodes[host].ledger.lose(&mut self.dice);
            disks.lose(host).expect("the files of the simulated disks can be written");
        } else {
            disks.keep(host);
        }
    }

    pub fn is_running(&self, host: Host) -> bool {
        self.nodes[host].running.is_some()
    }

    pub fn process(&self, host: Host) -> Option<Process> {
        self.nodes[host].running.as_ref().map(|running| running.process)
    }

    /// Whether the process of a host says that it cannot go on.
    pub fn has_failed(&self, host: Host) -> bool {
        self.house(host).is_some_and(|house| house.cluster.failure().is_some())
    }

    pub fn is_paused(&self, host: Host) -> bool {
        self.nodes[host].paused_until.is_some()
    }

    /// The process of a host, once it is built.
    pub fn house(&self, host: Host) -> Option<Arc<House>> {
        let running = self.nodes[host].running.as_ref()?;
        running.place.house.lock().clone()
    }

    /// The process of a host, once it is ready.
    pub fn ready(&self, host: Host) -> Option<Arc<House>> {
        let running = self.nodes[host].running.as_ref()?;
        if running.place.ready.load(Ordering::Acquire) { self.house(host) } else { None }
    }

    /// The process of a host stands still for so many milliseconds.
    pub fn pause(&mut self, host: Host, ms: u64) {
        let until = self.now + ms;
        self.nodes[host].paused_until = Some(until);
    }

    /// The clock of a host jumps ahead.
    pub fn jump(&mut self, host: Host, ms: u64) {
        self.nodes[host].owed += ms;
    }

    pub fn set_full(&self, host: Host, full: bool) {
        self.ground.disks.borrow_mut().set_full(host, full);
    }

    pub fn set_slow(&self, host: Host, slow: bool) {
        self.ground.disks.borrow_mut().set_slow(host, slow);
    }

    /// Does something on the runtime of a host.
    pub fn on<T>(&self, host: Host, what: impl FnOnce() -> T) -> Option<T> {
        let running = self.nodes[host].running.as_ref()?;
        self.ground.at.set(host);
        let _entered = running.runtime.enter();
        Some(what())
    }

    /// Every host has its turn.
    pub fn turn(&mut self) {
        self.now += TURN_MS;
        let now = self.now;
        self.history.set_now(now);
        self.network.deliver(now);
        for host in 0..self.nodes.len() {
            self.turn_of(host);
        }
        self.note_who_serves();
    }

    fn turn_of(&mut self, host: Host) {
        let node = &mut self.nodes[host];
        let Some(running) = &node.running else { return };
        if let Some(until) = node.paused_until {
            node.owed += TURN_MS;
            if self.now < until {
                return;
            }
            node.paused_until = None;
        }
        self.ground.at.set(host);
        let owed = Duration::from_millis(std::mem::take(&mut node.owed));
        // Parts of milliseconds add up in the clock of the runtime.
        let turn = Duration::from_micros(TURN_MS * node.pace);
        running.runtime.block_on(async {
            if !owed.is_zero() {
                tokio::time::advance(owed).await;
            }
            tokio::time::sleep(turn).await;
        });
        let ended = running.place.ended.lock().clone();
        if let Some(why) = ended
            && let Some(running) = self.nodes[host].running.take()
        {
            self.note_ignored(&running);
            self.history.push(Event::Stopped { host, process: running.process, why });
            self.end(host, running, false);
        }
    }

    fn note_who_serves(&mut self) {
        let mut now = BTreeMap::new();
        for host in 0..self.nodes.len() {
            // Who stands still delivers nothing.
            if self.is_paused(host) {
                continue;
            }
            let Some(house) = self.house(host) else { continue };
            let serving = self.on(host, || house.serving_sids()).unwrap_or_default();
            now.extend(serving.into_iter().map(|sid| (sid, true)));
        }
        for sid in self.serves.keys().filter(|sid| !now.contains_key(sid)) {
            self.history.push(Event::Serves { sid: *sid, serves: false });
        }
        for sid in now.keys().filter(|sid| !self.serves.contains_key(sid)) {
            self.history.push(Event::Serves { sid: *sid, serves: true });
        }
        self.serves = now;
    }

    /// Notes the tables of all processes.
    pub fn note_tables(&mut self) {
        for host in 0..self.nodes.len() {
            let Some(house) = self.house(host) else { continue };
            let view = house.cluster.routes();
            if view.index() == 0 {
                continue;
            }
            let mut routes = Vec::new();
            view.each(|row| {
                routes.push(Route {
                    jid: row.jid.to_string(),
                    sid: row.sid.0,
                    life: (row.node.0, row.incarnation.0),
                });
            });
            routes.sort();
            for row in view.nodes() {
                let is_gone = row.state == NodeState::Gone;
                let past = (0..row.incarnation.0).chain(is_gone.then_some(row.incarnation.0));
                for life in past.map(|incarnation| (row.node.0, incarnation)) {
                    if self.over.insert(life) {
                        self.history.push(Event::Over { life });
                    }
                }
            }
            let (process, index) = (house.process, view.index());
            self.history.push(Event::Table { process, index, routes: Arc::new(routes) });
        }
    }

    /// What a host has kept.
    pub fn values(&self, host: Host) -> Vec<u64> {
        self.nodes[host].ledger.values()
    }

    /// Notes, at the end, who lives and what is kept.
    pub fn note_end(&self) {
        let mut living = Vec::new();
        for host in 0..self.nodes.len() {
            let Some(house) = self.house(host) else { continue };
            living.extend(house.living());
            let (process, messages) = (house.process, house.ignored());
            self.history.push(Event::Ignored { process, messages });
            if self.nodes[host].roles.backend {
                let values = Arc::new(self.nodes[host].ledger.values());
                self.history.push(Event::Ledger { process: house.process, values });
            }
        }
        living.sort();
        self.history.push(Event::Living { routes: living });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for host in 0..self.nodes.len() {
            if let Some(running) = self.nodes[host].running.take() {
                self.end(host, running, false);
            }
        }
        simulation::leave();
    }
}
