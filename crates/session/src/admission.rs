//! Lets logins begin no faster than the sessions that are there stay in time, the first come first.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::counters::Counters;
use crate::limits::Limits;

/// How often it is looked how late the arbiters are, while somebody waits.
const BEAT: Duration = Duration::from_millis(4);
/// Logins in a second before anything was learned.
const START: f64 = 200.0;
/// Logins that may begin at once after a quiet time: who comes alone never waits.
const BURST: f64 = 8.0;
/// What the rate is multiplied by at a beat in time, and at a late one: it settles where about one beat in thirty is
/// late.
const FASTER: f64 = 1.01;
const SLOWER: f64 = 0.7;

/// The admission of logins of one node.
pub(crate) struct Admission {
    /// `None`: all may begin at once.
    line: Option<Mutex<Line<oneshot::Sender<()>>>>,
    waiting_max: usize,
    /// Somebody waits.
    come: Notify,
    /// Fewer wait than before.
    gone: Notify,
}

impl Admission {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Admission {
        let pace = || Pace::new(limits, now);
        let line = limits.login_lag().map(|lag_max| Line { lag_max, pace: pace(), waiting: VecDeque::new() });
        Admission {
            line: line.map(Mutex::new),
            waiting_max: limits.logins_waiting,
            come: Notify::new(),
            gone: Notify::new(),
        }
    }

    /// Waits until another login may begin.
    pub(crate) async fn turn(&self) {
        let Some(line) = &self.line else { return };
        let turn = {
            let mut line = line.lock();
            if line.is_free(Instant::now()) {
                return;
            }
            let (give, turn) = oneshot::channel();
            line.waiting.push_back(give);
            turn
        };
        self.come.notify_one();
        // Its other end goes away with the node alone.
        let _ = turn.await;
    }

    /// Waits while as many wait as may.
    pub(crate) async fn room(&self) {
        loop {
            let gone = self.gone.notified();
            if self.waiting() < self.waiting_max {
                return;
            }
            gone.await;
        }
    }

    /// Whether as many wait as may.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting() >= self.waiting_max
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.line.as_ref().map_or(0, |line| line.lock().waiting.len())
    }

    /// How many may begin in a second, as things are; `None` where that is not bounded.
    pub(crate) fn rate(&self) -> Option<u64> {
        self.line.as_ref().map(|line| line.lock().pace.rate as u64)
    }

    /// Gives out turns while somebody waits, for as long as the node runs.
    pub(crate) async fn give_out(&self, hearts: &[Arc<Heart>], counters: &Counters) {
        let Some(line) = &self.line else { return };
        loop {
            self.come.notified().await;
            let (begun, before) = (Instant::now(), counters.login_waits.value());
            let mut said = false;
            let mut due = interval(BEAT);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                due.tick().await;
                let now = Instant::now();
                let lag = hearts.iter().map(|heart| heart.beat(now)).max().unwrap_or_default();
                let mut line = line.lock();
                if line.is_late(lag) {
                    counters.login_slowdowns.add(1);
                    if !std::mem::replace(&mut said, true) {
                        let (waiting, lag_us) = (line.waiting.len(), lag.as_micros() as u64);
                        tracing::info!(
                            waiting,
                            lag_us,
                            "logins wait, so that the sessions that are here do not"
                        );
                    }
                }
                for turn in line.beat(lag, now) {
                    // Who has gone meanwhile takes nobody's turn.
                    match turn.send(()) {
                        Ok(()) => counters.login_waits.add(1),
                        Err(()) => line.pace.give_back(),
                    }
                }
                let is_empty = line.waiting.is_empty();
                drop(line);
                self.gone.notify_waiters();
                if is_empty {
                    break;
                }
            }
            if said {
                let waited = counters.login_waits.value() - before;
                tracing::info!(waited, seconds = begun.elapsed().as_secs(), "no login waits any more");
            }
        }
    }
}

/// Those who wait for their turn. The clock is passed in.
struct Line<T> {
    lag_max: Duration,
    pace: Pace,
    waiting: VecDeque<T>,
}

impl<T> Line<T> {
    /// Whether somebody who comes now need not wait; it is their turn then.
    fn is_free(&mut self, now: Instant) -> bool {
        self.waiting.is_empty() && self.pace.begin(now)
    }

    fn is_late(&self, lag: Duration) -> bool {
        lag > self.lag_max
    }

    /// The arbiters are that late: who may go now, in their order.
    fn beat(&mut self, lag: Duration, now: Instant) -> Vec<T> {
        self.pace.learn(self.is_late(lag), now);
        let mut turns = Vec::new();
        while !self.waiting.is_empty() && self.pace.begin(now) {
            turns.extend(self.waiting.pop_front());
        }
        turns
    }
}

/// How many logins may begin in a second: more while the arbiters are in time, fewer while they are late.
struct Pace {
    rate: f64,
    least: f64,
    most: f64,
    credit: f64,
    at: Instant,
}

impl Pace {
    fn new(limits: &Limits, now: Instant) -> Pace {
        let most = f64::from(limits.accepts_per_second);
        let least = f64::from(limits.logins_per_second_min).min(most);
        Pace { rate: START.clamp(least, most), least, most, credit: BURST, at: now }
    }

    fn learn(&mut self, is_late: bool, now: Instant) {
        if is_late {
            // Since the last beat as well: they are late by who has begun already.
            self.refill(self.least, now);
            self.rate = (self.rate * SLOWER).max(self.least);
        } else {
            self.refill(self.rate, now);
            self.rate = (self.rate * FASTER).min(self.most);
        }
    }

    fn begin(&mut self, now: Instant) -> bool {
        self.refill(self.rate, now);
        let may = self.credit >= 1.0;
        if may {
            self.credit -= 1.0;
        }
        may
    }

    fn give_back(&mut self) {
        self.credit = (self.credit + 1.0).min(BURST);
    }

    fn refill(&mut self, rate: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.credit = (self.credit + passed * rate).min(BURST);
        self.at = self.at.max(now);
    }
}

/// Tells how late an arbiter is: how long a word to it takes until it is heard.
pub(crate) struct Heart {
    epoch: Instant,
    /// When the word that is under way was sent, in nanoseconds behind the epoch; 0: none is.
    sent: AtomicU64,
    /// How long the last one took.
    lag: AtomicU64,
    word: Notify,
}

impl Heart {
    pub(crate) fn new(epoch: Instant) -> Arc<Heart> {
        Arc::new(Heart { epoch, sent: AtomicU64::new(0), lag: AtomicU64::new(0), word: Notify::new() })
    }

    /// Hears, on the arbiter, for as long as the node runs.
    pub(crate) async fn listen(&self) {
        loop {
            self.word.notified().await;
            let lag = self.nanos(Instant::now()).saturating_sub(self.sent.load(Ordering::Acquire));
            self.lag.store(lag, Ordering::Release);
            self.sent.store(0, Ordering::Release);
        }
    }

    /// How late it was when it was last asked, or is by now if it has not answered, which else is asked anew.
    fn beat(&self, now: Instant) -> Duration {
        let now = self.nanos(now);
        let nanos = match self.sent.load(Ordering::Acquire) {
            0 => {
                // Taken: what is from before a quiet time says nothing about now.
                let lag = self.lag.swap(0, Ordering::AcqRel);
                self.sent.store(now.max(1), Ordering::Release);
                self.word.notify_one();
                lag
            }
            sent => now.saturating_sub(sent),
        };
        Duration::from_nanos(nanos)
    }

    fn nanos(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_nanos().min(u128::from(u64::MAX)) as u64
    }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
