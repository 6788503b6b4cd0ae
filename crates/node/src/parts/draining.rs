//! How a node becomes empty: not ready first, then known as draining, then its clients are sent elsewhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cluster::{Cluster, Unavailable};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    config::Leaving,
    parts::SharedListeners,
    readiness::{Readiness, Stage},
};

/// How long a node that stops waits for the others to know of it; without a majority they find out later.
const TOLD: Duration = Duration::from_millis(300);

/// How a drain goes.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// When it began.
    pub since: Instant,
    /// Clients that were there then.
    pub total: usize,
    /// Clients that are still there.
    pub left: usize,
    /// Clients that leave in a second, at most.
    pub rate: u32,
    /// Nobody is left.
    pub done: bool,
}

/// Why a node cannot drain, or take what is new again.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    #[error("the node has not started yet")]
    Starting,
    #[error("the node stops already")]
    Stopping,
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Empties this node when it is told to.
pub struct Drainer {
    cluster: Arc<Cluster>,
    listeners: SharedListeners,
    readiness: Arc<Readiness>,
    leaving: Leaving,
    running: Mutex<Option<Running>>,
    /// True asks the process to end.
    ending: watch::Sender<bool>,
}

/// A drain that was begun and not taken back.
struct Running {
    rate: watch::Sender<u32>,
    progress: watch::Receiver<Progress>,
    /// The process ends when nobody is left.
    stop: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Drainer {
    /// For a node that takes what is new.
    pub fn new(
        cluster: Arc<Cluster>,
        listeners: SharedListeners,
        readiness: Arc<Readiness>,
        leaving: Leaving,
    ) -> Arc<Drainer> {
        let ending = watch::Sender::new(false);
        Arc::new(Drainer { cluster, listeners, readiness, leaving, running: Mutex::default(), ending })
    }

    /// Turns true when a drain was to end the process and is done.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// Begins a drain, or changes the one that runs; how it goes. A rate of 0 is that of the config.
    pub fn begin(self: &Arc<Self>, rate: u32, stop: bool) -> Result<watch::Receiver<Progress>, DrainError> {
        let mut running = self.running.lock();
        match self.readiness.stage() {
            Stage::Starting => return Err(DrainError::Starting),
            Stage::Stopping => return Err(DrainError::Stopping),
            Stage::Running | Stage::Draining => {}
        }
        if let Some(running) = &*running {
            if rate > 0 {
                running.rate.send_replace(rate);
            }
            if stop {
                running.stop.store(true, Ordering::SeqCst);
                if running.progress.borrow().done {
                    self.ending.send_replace(true);
                }
            }
            return Ok(running.progress.clone());
        }
        // Before anything else: a load balancer sends nobody any more while the others are told.
        self.readiness.reach(Stage::Draining);
        let (rate, rates) = watch::channel(if rate > 0 { rate } else { self.leaving.drain_rate });
        let total = self.left();
        let begun = Progress { since: Instant::now(), total, left: total, rate: *rate.borrow(), done: false };
        let (tell, progress) = watch::channel(begun);
        let stop = Arc::new(AtomicBool::new(stop));
        let task = tokio::spawn(empty(self.clone(), rates, tell, stop.clone())).abort_handle();
        *running = Some(Running { rate, progress: progress.clone(), stop, task });
        tracing::info!(clients = total, "draining");
        Ok(progress)
    }

    /// Takes what is new again. Who watches the drain sees its end.
    pub async fn undrain(&self) -> Result<(), DrainError> {
        match self.readiness.stage() {
            Stage::Starting => return Err(DrainError::Starting),
            Stage::Stopping => return Err(DrainError::Stopping),
            Stage::Running | Stage::Draining => {}
        }
        self.end_running();
        if let Some(listeners) = self.listeners.get() {
            listeners.turn_away(false);
        }
        self.cluster.undrain().await?;
        // Last: who is sent here finds an open door.
        self.readiness.reach(Stage::Running);
        tracing::info!("takes what is new again");
        Ok(())
    }

    /// Sends the clients of a node that ends to others, as far as that can be done in the time that the config gives;
    /// at once where nobody else could serve them.
    pub async fn leave(&self) {
        let announced = self.readiness.stage() == Stage::Draining;
        self.readiness.reach(Stage::Stopping);
        self.end_running();
        let Some(listeners) = self.listeners.get() else { return };
        listeners.hurry();
        let bound = Duration::from_secs(self.leaving.shutdown_s);
        if bound.is_zero() || !self.cluster.has_other_frontend() {
            return;
        }
        if !matches!(timeout(TOLD, self.cluster.drain()).await, Ok(Ok(()))) {
            tracing::warn!("not all other nodes know that this one leaves");
        }
        if !announced {
            sleep(self.notice()).await;
        }
        let clients = self.left();
        let rate = session::rate_within(clients, bound, self.leaving.drain_rate);
        tracing::info!(clients, rate, "sending clients to other nodes");
        let (_rate, rates) = watch::channel(rate);
        if timeout(bound, listeners.drain(rates, |_| {})).await.is_err() {
            tracing::warn!(clients = self.left(), "ending sessions that could not be moved in time");
        }
    }

    /// What is left of the time that a stopping node has, which began then; none where nobody else serves clients.
    pub fn time_left(&self, since: Instant) -> Duration {
        match self.cluster.has_other_frontend() {
            true => Duration::from_secs(self.leaving.shutdown_s).saturating_sub(since.elapsed()),
            false => Duration::ZERO,
        }
    }

    fn end_running(&self) {
        if let Some(running) = self.running.lock().take() {
            running.task.abort();
        }
    }

    fn left(&self) -> usize {
        self.listeners.get().map_or(0, |listeners| listeners.logged_in())
    }

    fn notice(&self) -> Duration {
        Duration::from_secs(self.leaving.drain_notice_s)
    }
}

async fn empty(
    drainer: Arc<Drainer>,
    rates: watch::Receiver<u32>,
    tell: watch::Sender<Progress>,
    stop: Arc<AtomicBool>,
) {
    while let Err(error) = drainer.cluster.drain().await {
        // Without a majority no other node could take the clients.
        tracing::warn!(%error, "not draining yet");
    }
    sleep(drainer.notice()).await;
    if let Some(listeners) = drainer.listeners.get() {
        let shown = rates.clone();
        let left = |left| tell.send_modify(|now| (now.left, now.rate) = (left, *shown.borrow()));
        listeners.drain(rates, left).await;
    }
    tell.send_modify(|now| (now.left, now.done) = (0, true));
    tracing::info!("drained: no client is left");
    if stop.load(Ordering::SeqCst) {
        drainer.ending.send_replace(true);
    }
    // The drain goes on in that nobody comes: who looks sees that it is done.
    tell.closed().await;
}
