//! What a node starts, in order, by its roles; and how it ends.

mod draining;
pub mod files;
pub mod folder;
mod notify;
mod parent;
mod ports;
pub mod storage;
mod told;

use std::{
    error::Error,
    future::Future,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use cluster::{Cluster, Roles};
use hooks::Registry;
use proto::{sessions::sessions_server::SessionsServer, sight::sight_server::SightServer};
use router::Router;
use session::{Listeners, TlsStore};
use store::Accounts;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{
    admin, certificate,
    config::{Modules, Settings},
    http, logs, metrics, password,
    readiness::{Readiness, Stage},
};

/// How often the certificate files are looked at: two questions to the file system.
const CERTIFICATE: Duration = Duration::from_secs(2);
/// How long the cluster may take to end, and then the store, after the sessions have. Half of it is for telling
/// the others, who may all be stopping too.
const GRACE: Duration = Duration::from_secs(2);
/// How long what is on its way through a node may take at least to come where it goes, once the sessions have ended.
const REST: Duration = Duration::from_millis(700);
/// How long a node waits for others before it says so, and between saying so again.
const PATIENCE: Duration = Duration::from_secs(5);

pub use draining::{DrainError, Drainer, Progress};
pub use told::SharedListeners;

/// What stops a node from starting or makes it end, in words for an operator.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Runs a node until it is told to stop, or until the process that started it has ended.
pub fn run(settings: Settings, with_parent: bool) -> Result<(), Failure> {
    logs::start(&settings.log)?;
    files::raise();
    if with_parent {
        parent::end_with()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("node").build()?;
    let leaving = settings.node.leaving;
    let moving = Duration::from_secs(leaving.drain_notice_s + leaving.shutdown_s);
    let bound = moving + Duration::from_secs(settings.session.limits.stop_timeout_s) * 2 + REST + GRACE * 2;
    let ended = runtime.block_on(async {
        let mut stop = Stop::listen()?;
        let mut node = tokio::select! {
            started = start(settings) => started?,
            name = stop.asked() => {
                notify::tell("STOPPING=1");
                tracing::info!(signal = name, "stopped before the start was complete");
                return Ok(());
            }
        };
        let mut drained = node.drainer.ending();
        let failure = tokio::select! {
            failure = node.failures.recv() => failure,
            // the node holds the other end for as long as it lives
            _ = drained.wait_for(|ending| *ending) => {
                tracing::info!("stopping, as the drain was told to");
                None
            }
            name = stop.asked() => {
                tracing::info!(signal = name, "stopping");
                None
            }
        };
        tokio::select! {
            ended = tokio::time::timeout(bound, node.stop()) => match ended {
                Ok(()) => tracing::info!("stopped"),
                Err(_) => tracing::warn!("stopped before all had ended in order"),
            },
            _ = stop.asked() => tracing::warn!("asked to stop twice: not waiting any longer"),
        }
        failure.map_or(Ok(()), Err)
    });
    // what still runs are tasks that nobody waits for
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

/// A running node.
struct Node {
    drainer: Arc<Drainer>,
    router: Arc<Router>,
    cluster: Arc<Cluster>,
    listeners: Option<Arc<Listeners>>,
    storage: storage::Storage,
    /// True ends the admin service and the metrics port.
    stopping: watch::Sender<bool>,
    /// Parts that ended although nobody asked them to.
    failures: mpsc::Receiver<Failure>,
    /// Keeps a second node away from the data.
    _folder: folder::Lock,
}

async fn start(settings: Settings) -> Result<Node, Failure> {
    let frontend = settings.node.frontend;
    let ports = ports::bind(&settings).await?;
    let folder = folder::Lock::take(&settings.node.data_dir)?;
    let (session, made) = certified(&settings)?;
    let tls = if frontend { Some(TlsStore::load(&session.tls)?) } else { None };
    let Modules { list, switches } = settings.modules();
    let registry = Arc::new(Registry::build(list, &switches)?);

    told::links(&settings);
    let roles = Roles { frontend, backend: settings.node.backend };
    let (name, data_dir) = (settings.node.name.clone(), settings.node.data_dir.clone());
    let cluster = Cluster::start(settings.cluster.clone(), cluster::Deps { name, roles, data_dir }).await?;
    let storage = storage::open(&settings, &cluster).await?;
    let accounts = Accounts::new(storage.store.clone());
    let router =
        Router::start(router_deps(&settings, &cluster, &registry, &storage), settings.router.clone());

    notify::tell("READY=1\nSTATUS=waiting for the other nodes");
    let (failed, failures) = mpsc::channel(4);
    let (stopping, stop) = watch::channel(false);
    let listeners: SharedListeners = Arc::new(OnceLock::new());
    let readiness = Readiness::new(cluster.clone(), listeners.clone());
    let drainer = Drainer::new(cluster.clone(), listeners.clone(), readiness.clone(), settings.node.leaving);
    let local = told::local_sessions(listeners.clone());
    let peers = admin::Peers { cluster: cluster.clone(), local: local.clone(), drainer: drainer.clone() };
    let links = cluster.grpc_services().add_service(router.relay_service());
    let sight =
        admin::Sight { cluster: cluster.clone(), router: router.clone(), listeners: listeners.clone() };
    let links = links.add_service(SessionsServer::new(peers)).add_service(SightServer::new(sight.clone()));
    let links = storage.mount(links);
    let serving = cluster.clone();
    part(&failed, "links between nodes", async move { serving.serve(links).await });

    let service = admin::Admin {
        cluster: cluster.clone(),
        accounts: accounts.clone(),
        hosts: settings.hosts.clone(),
        router: router.clone(),
        groups: admin::KeptGroups {
            groups: settings.groups(),
            store: storage.store.clone(),
            hosts: settings.hosts.clone(),
        },
        local,
        drainer: drainer.clone(),
        readiness: readiness.clone(),
        watching: admin::Watching::new(sight.clone(), settings.hosts.clone(), stop.clone()),
        sight,
    };
    // before the cluster is ready: an operator wants to see what it waits for
    let asked = admin::serve(service, readiness.clone(), ports.admin, until(stop.clone()));
    part(&failed, "admin service", asked);
    if let Some(port) = ports.metrics {
        let (cluster, store, router) = (cluster.clone(), storage.store.clone(), router.clone());
        let readiness = readiness.clone();
        let sources = metrics::Sources { cluster, store, router, listeners: listeners.clone(), readiness };
        tokio::spawn(http::serve(port, pages(sources), until(stop)));
    }

    ready(&cluster, settings.cluster.expect).await?;
    let started = match tls {
        Some(tls) => {
            tls.watch(CERTIFICATE)?;
            tokio::spawn(read_again(signal(SignalKind::hangup())?, tls.clone()));
            let doors = doors(&session.c2s);
            let started =
                session::start(session, tls, router.clone(), registry, cluster.clone(), accounts.clone())?;
            let _ = listeners.set(started.clone());
            cluster.open_doors(doors);
            Some(started)
        }
        None => None,
    };
    readiness.reach(Stage::Running);
    notify::tell("STATUS=serving");
    told::announce(&settings, made.as_deref(), &accounts).await;
    Ok(Node { drainer, router, cluster, listeners: started, storage, stopping, failures, _folder: folder })
}

impl Node {
    /// Ends all parts, those that take work first.
    async fn stop(self) {
        notify::tell("STOPPING=1\nSTATUS=sending clients to other nodes");
        let since = Instant::now();
        self.drainer.leave().await;
        if let Some(listeners) = &self.listeners {
            listeners.stop().await;
        }
        // Nobody has another copy of what the clients of this node said, and what waits here for the store or for a
        // peer: as long as there are others to take it, it is given time.
        if !self.router.rest(self.drainer.time_left(since).max(REST)).await {
            tracing::warn!("some stanzas are still on their way through this node: others take them over");
        }
        self.stopping.send_replace(true);
        self.cluster.stop(GRACE).await;
        self.storage.close(GRACE).await;
    }
}

/// The settings of the client side with a certificate, made now if none was given; what was made, if so.
fn certified(settings: &Settings) -> Result<(session::Config, Option<std::path::PathBuf>), Failure> {
    let mut config = settings.session.clone();
    if !settings.node.frontend || !config.tls.files.cert.as_os_str().is_empty() {
        return Ok((config, None));
    }
    let (files, _) = certificate::self_signed(&settings.node.data_dir, &settings.hosts)?;
    let made = files.cert.clone();
    config.tls.files = files;
    Ok((config, Some(made)))
}

/// Where clients reach this node.
fn doors(c2s: &session::C2s) -> cluster::Doors {
    let door = |address: &Option<String>| address.clone().unwrap_or_default();
    cluster::Doors { starttls: door(&c2s.advertise), direct_tls: door(&c2s.advertise_direct_tls) }
}

/// What the metrics port answers.
fn pages(sources: metrics::Sources) -> http::Pages {
    let (ready, live) = (sources.readiness.clone(), sources.readiness.clone());
    http::Pages {
        metrics: metrics::page(sources),
        ready: Arc::new(move || ready.not_ready().into_iter().map(str::to_owned).collect()),
        live: Arc::new(move || live.not_live()),
    }
}

/// Reads the certificates again at each SIGHUP, for those who do not want to wait for the next look.
async fn read_again(mut asked: Signal, tls: Arc<TlsStore>) {
    while asked.recv().await.is_some() {
        let tls = tls.clone();
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(true)) => tracing::info!("asked to read the certificates again: serving a new one"),
            Ok(Ok(false)) => tracing::info!("asked to read the certificates again: they have not changed"),
            Ok(Err(error)) => tracing::error!(%error, "keeping the old certificate"),
            Err(error) => tracing::error!(%error, "failed to read the certificates again"),
        }
    }
}

fn router_deps(
    settings: &Settings,
    cluster: &Arc<Cluster>,
    registry: &Arc<Registry>,
    storage: &storage::Storage,
) -> router::Deps {
    router::Deps {
        whereabouts: cluster.clone(),
        registry: registry.clone(),
        store: storage.store.clone(),
        hosts: settings.hosts.clone(),
        admins: settings.admins.clone(),
        about: ("Rookery", env!("CARGO_PKG_VERSION")),
        clock: SystemTime::now,
        random: |buffer| {
            // the operating system's generator does not fail once it is seeded
            assert!(aws_lc_rs::rand::fill(buffer).is_ok(), "the random generator works");
        },
        keys: |password| password::keys(password).ok(),
    }
}

/// Runs a part that the node cannot be without.
fn part<E: Into<Failure>>(
    failed: &mpsc::Sender<Failure>,
    name: &'static str,
    work: impl Future<Output = Result<(), E>> + Send + 'static,
) {
    let failed = failed.clone();
    tokio::spawn(async move {
        if let Err(error) = work.await {
            let error: Failure = error.into();
            // a full queue holds failures enough to end the node
            let _ = failed.try_send(format!("failed to go on with {name}: {error}").into());
        }
    });
}

/// Waits for the cluster, saying from time to time what it waits for.
async fn ready(cluster: &Cluster, expect: usize) -> Result<(), Failure> {
    let mut ready = std::pin::pin!(cluster.ready());
    loop {
        tokio::select! {
            ready = &mut ready => return Ok(ready?),
            () = tokio::time::sleep(PATIENCE) => {
                let status = cluster.status();
                let (formed, seeds) = (status.cluster.is_some(), status.seeds.join(", "));
                tracing::warn!(formed, expect, seeds, "waiting for the other nodes");
            }
        }
    }
}

async fn until(mut stop: watch::Receiver<bool>) {
    // without its sender the node has ended
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The signals that end a node.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Stop> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Stop { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them; its name.
    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
