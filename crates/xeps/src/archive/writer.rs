//! Appends to the archives of all accounts of a node, many at a time, beside the messages themselves.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use futures::future::BoxFuture;
use hooks::Services;
use jid::BareJid;
use parking_lot::Mutex;
use store::{Batch, StoreError};

use super::NAME;
use super::entries::{Entry, Id};
use super::retraction::Retractions;
use super::sweep;

/// The most messages that are written at a time.
const BATCH: usize = 2048;
/// The most bytes that are written at a time, but for a single larger message: in a cluster it is one entry of a log.
const BATCH_BYTES: usize = 512 * 1024;
/// How long the first of those that are written together waits for the others: each write costs a sync of the disk, and
/// in a cluster a round among the backends.
const GATHERED: Duration = Duration::from_millis(20);
/// The most bytes that wait to be written at one node; further messages are delivered and not archived.
const PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes that wait at which who sends waits with them, unless the store fails: what is sent faster than the store writes
/// would be delivered and not archived.
const CROWDED: usize = 8 * 1024 * 1024;
/// Bytes of chance that are asked for at a time: asking costs as much for one id as for many.
const CHANCE: usize = 512;
/// Of so many messages one has its archive looked at for what is to go: the most, the least, and how many times as many
/// an archive may hold.
const SWEEP_EVERY: (u64, u64, u64) = (1024, 16, 64);

/// What waits to be written.
#[derive(Default)]
struct Pending {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Somebody is about to write it.
    runs: bool,
}

impl Pending {
    /// Whether there is no need to wait for more.
    fn fills_a_write(&self) -> bool {
        self.entries.len() >= BATCH || self.bytes >= BATCH_BYTES
    }
}

/// What the next id is made of.
struct Next {
    /// The moment of the last id, so that ids of this node keep the order of the messages.
    last: u64,
    chance: [u8; CHANCE],
    used: usize,
}

impl Next {
    fn id(&mut self, now: u64, services: &dyn Services) -> Id {
        self.last = now.max(self.last + 1);
        if self.used == CHANCE {
            services.random(&mut self.chance);
            self.used = 0;
        }
        let mut chance = [0; 8];
        chance.copy_from_slice(&self.chance[self.used..self.used + 8]);
        self.used += 8;
        Id::new(self.last, chance)
    }
}

/// Appends to archives.
pub struct Writer {
    pending: Mutex<Pending>,
    /// Held by who writes, so that who has had it knows that all that waited before is written.
    writing: futures::lock::Mutex<()>,
    next: Mutex<Next>,
    lost: AtomicU64,
    /// The last write failed.
    fails: AtomicBool,
    /// Accounts whose archives are to be looked at for what is to go.
    swept: Mutex<Vec<BareJid>>,
    limits: sweep::Limits,
    retractions: Retractions,
}

impl Writer {
    pub fn new(limits: sweep::Limits) -> Writer {
        Writer {
            pending: Mutex::default(),
            writing: futures::lock::Mutex::new(()),
            next: Mutex::new(Next { last: 0, chance: [0; CHANCE], used: CHANCE }),
            lost: AtomicU64::new(0),
            fails: AtomicBool::new(false),
            swept: Mutex::default(),
            limits,
            retractions: Retractions::default(),
        }
    }

    pub fn limits(&self) -> sweep::Limits {
        self.limits
    }

    fn sweep_every(&self) -> u64 {
        let (most, least, share) = SWEEP_EVERY;
        (self.limits.messages / share).clamp(least, most)
    }

    /// The id of a message that has come just now.
    pub fn id(&self, services: &dyn Services) -> Id {
        self.next.lock().id(micros(services), services)
    }

    /// Has a message written soon; `false`: too many wait, since the store is slow or fails.
    pub fn append(self: &Arc<Self>, services: &Arc<dyn Services>, entry: Entry) -> bool {
        let begins = {
            let mut pending = self.pending.lock();
            if pending.bytes + entry.size() > PENDING_BYTES_MAX {
                drop(pending);
                self.lose(1, "too much waits for the store");
                return false;
            }
            pending.bytes += entry.size();
            pending.entries.push_back(entry);
            !std::mem::replace(&mut pending.runs, true)
        };
        if begins {
            services.later(GATHERED, self.clone().drain(services.clone(), 0));
        }
        true
    }

    /// Whether so much waits for a store that works that who sends is to wait for it too.
    pub fn is_crowded(&self) -> bool {
        self.pending.lock().bytes >= CROWDED && !self.fails.load(Ordering::Relaxed)
    }

    /// As [`Writer::flush`], and what an account has been told to take back is taken back: its archive as this node
    /// knows it.
    ///
    /// # Errors
    /// As of [`Writer::flush`].
    pub async fn settle(&self, services: &Arc<dyn Services>, account: &BareJid) -> Result<(), StoreError> {
        self.flush(&**services).await?;
        self.retractions.settle(services, account).await;
        Ok(())
    }

    /// Writes all that waits now.
    ///
    /// # Errors
    /// The store's; what waits is tried again later.
    pub async fn flush(&self, services: &dyn Services) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let mut left = self.pending.lock().entries.len();
        while left > 0 {
            let written = self.write(services).await?;
            if written == 0 {
                break;
            }
            left = left.saturating_sub(written);
        }
        Ok(())
    }

    fn drain(self: Arc<Self>, services: Arc<dyn Services>, tried: u32) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let written = {
                    let _writing = self.writing.lock().await;
                    self.write(&*services).await
                };
                let mut gathers = false;
                match written {
                    Ok(0) => {
                        let mut pending = self.pending.lock();
                        pending.runs = !pending.entries.is_empty();
                        if !pending.runs {
                            return;
                        }
                    }
                    Ok(_) => gathers = !self.pending.lock().fills_a_write(),
                    Err(error) => {
                        let waits = self.pending.lock().entries.len();
                        tracing::warn!(module = NAME, %error, waits, "failed to write to archives");
                        let Some(pause) = crate::offline::again(tried) else {
                            return self.give_up();
                        };
                        services.later(pause, self.clone().drain(services.clone(), tried + 1));
                        return;
                    }
                }
                let swept = std::mem::take(&mut *self.swept.lock());
                for account in swept {
                    sweep::soon(&services, account, self.limits, self.sweep_every());
                }
                if self.retractions.begin() {
                    services.later(Duration::ZERO, self.clone().retract(services.clone()));
                }
                if gathers {
                    services.later(GATHERED, self.clone().drain(services.clone(), 0));
                    return;
                }
            }
        })
    }

    /// Takes back what is to be taken back, one account after the other.
    fn retract(self: Arc<Self>, services: Arc<dyn Services>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            while let Some(account) = self.retractions.next() {
                self.retractions.settle(&services, &account).await;
                services.pause().await;
            }
        })
    }

    /// What waited through all attempts is lost to its archives.
    fn give_up(&self) {
        let lost = {
            let mut pending = self.pending.lock();
            pending.runs = false;
            pending.bytes = 0;
            std::mem::take(&mut pending.entries).len()
        };
        self.lose(lost, "the store failed for too long");
    }

    fn lose(&self, count: usize, why: &str) {
        let before = self.lost.fetch_add(count as u64, Ordering::Relaxed);
        let lost = before + count as u64;
        // Not a line for each of thousands.
        if count > 1 || lost.is_power_of_two() {
            tracing::error!(module = NAME, lost, why, "messages were delivered and not archived");
        }
    }

    /// Writes some of what waits; how many.
    async fn write(&self, services: &dyn Services) -> Result<usize, StoreError> {
        let mut taken = Taken { writer: self, entries: Vec::new() };
        {
            let mut pending = self.pending.lock();
            let mut bytes = 0;
            while let Some(size) = pending.entries.front().map(Entry::size) {
                let is_full = taken.entries.len() == BATCH || bytes + size > BATCH_BYTES;
                if is_full && !taken.entries.is_empty() {
                    break;
                }
                bytes += size;
                taken.entries.extend(pending.entries.pop_front());
            }
            pending.bytes = pending.bytes.saturating_sub(bytes);
        }
        let count = taken.entries.len();
        while !taken.entries.is_empty() {
            let written = services.store().commit(batches(&taken.entries)).await;
            self.fails.store(written.is_err(), Ordering::Relaxed);
            match written {
                Ok(_) => {
                    self.retractions.note(taken.entries.iter());
                    let every = self.sweep_every();
                    let is_swept = |entry: &Entry| u64::from(entry.id.chance()).is_multiple_of(every);
                    self.swept
                        .lock()
                        .extend(taken.entries.drain(..).filter(is_swept).map(|entry| entry.account));
                }
                // Nobody asks for it any more; the others are put once more, which changes nothing.
                Err(StoreError::Gone { partition }) => {
                    let before = taken.entries.len();
                    taken.entries.retain(|entry| entry.account.as_str() != partition.name());
                    if taken.entries.len() == before {
                        return Err(StoreError::Gone { partition });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

fn batches(entries: &[Entry]) -> Vec<Batch> {
    let mut at: HashMap<&BareJid, usize> = HashMap::new();
    let mut batches: Vec<Batch> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    let numbers: Vec<usize> = entries
        .iter()
        .map(|entry| {
            let at = *at.entry(&entry.account).or_insert_with(|| {
                batches.push(entry.batch());
                counts.push(0);
                counts.len() - 1
            });
            counts[at] += 1;
            at
        })
        .collect();
    for (batch, count) in batches.iter_mut().zip(counts) {
        batch.ops.reserve_exact(2 * count);
    }
    for (entry, at) in entries.iter().zip(numbers) {
        entry.put(&mut batches[at]);
    }
    batches
}

/// Microseconds since 1970.
pub fn micros(services: &dyn Services) -> u64 {
    let since = services.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// What is being written: it waits again where that comes to nothing.
struct Taken<'a> {
    writer: &'a Writer,
    entries: Vec<Entry>,
}

impl Taken<'_> {
    fn bytes(&self) -> usize {
        self.entries.iter().map(Entry::size).sum()
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        let mut pending = self.writer.pending.lock();
        pending.bytes += self.bytes();
        for entry in self.entries.drain(..).rev() {
            pending.entries.push_front(entry);
        }
    }
}
