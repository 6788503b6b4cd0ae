//! Appends to the archives of all accounts of a node, many at a time, beside the messages themselves.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use futures::future::BoxFuture;
use hooks::{Services, Underway};
use jid::BareJid;
use parking_lot::Mutex;
use store::{Batch, StoreError};

use super::NAME;
use super::entries::{Entry, Id};
use super::retraction::{Retraction, Retractions};
use super::sweep;
use crate::rosters::partition;

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

/// What waits to be written to one archive, in the order of the messages.
struct Group {
    account: BareJid,
    batch: Batch,
    messages: usize,
    bytes: usize,
    /// The senders' clients hear that their messages are handled once this is gone (XEP-0198, 4).
    underway: Vec<Underway>,
    retractions: Vec<Retraction>,
    /// The archive is to be looked at for what is to go.
    is_swept: bool,
}

impl Group {
    fn new(account: &BareJid) -> Group {
        Group {
            account: account.clone(),
            batch: Batch::new(partition(account)),
            messages: 0,
            bytes: 0,
            underway: Vec::new(),
            retractions: Vec::new(),
            is_swept: false,
        }
    }

    fn push(&mut self, entry: Entry) {
        self.messages += 1;
        self.bytes += entry.size;
        let message = entry.retracts;
        self.retractions.extend(message.map(|message| Retraction { id: entry.id, message }));
        self.underway.extend(entry.underway);
        entry.ops.into_iter().for_each(|op| self.batch.push(op));
    }
}

/// What waits to be written.
#[derive(Default)]
struct Pending {
    /// Of each account one, or several that become full one after the other.
    groups: VecDeque<Group>,
    /// The last one of each account.
    last: HashMap<BareJid, usize>,
    messages: usize,
    bytes: usize,
    /// What somebody writes just now, and would wait again.
    being_written: usize,
    /// Somebody is about to write it.
    runs: bool,
}

impl Pending {
    fn push(&mut self, account: &BareJid, entry: Entry, is_swept: bool) {
        self.messages += 1;
        self.bytes += entry.size;
        let last = self.last.get(account).and_then(|at| self.groups.get_mut(*at));
        let group = match last.filter(|group| group.bytes + entry.size <= BATCH_BYTES) {
            Some(group) => group,
            None => {
                self.last.insert(account.clone(), self.groups.len());
                self.groups.push_back(Group::new(account));
                let last = self.groups.len() - 1;
                &mut self.groups[last]
            }
        };
        group.is_swept |= is_swept;
        group.push(entry);
    }

    /// Takes all that waits.
    fn take(&mut self) -> VecDeque<Group> {
        self.last.clear();
        self.messages = 0;
        self.being_written += std::mem::take(&mut self.bytes);
        std::mem::take(&mut self.groups)
    }

    /// Has what was taken wait again, before all that has come since.
    fn put_back(&mut self, mut taken: VecDeque<Group>) {
        let bytes = taken.iter().map(|group| group.bytes).sum();
        self.messages += taken.iter().map(|group| group.messages).sum::<usize>();
        self.bytes += bytes;
        self.being_written = self.being_written.saturating_sub(bytes);
        taken.append(&mut self.groups);
        self.groups = taken;
        let numbered = self.groups.iter().enumerate();
        self.last = numbered.map(|(at, group)| (group.account.clone(), at)).collect();
    }

    /// Bytes that the store does not have yet.
    fn unwritten(&self) -> usize {
        self.bytes + self.being_written
    }

    /// Whether there is no need to wait for more.
    fn fills_a_write(&self) -> bool {
        self.messages >= BATCH || self.bytes >= BATCH_BYTES
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

    /// Has a message of an account written soon; `false`: too many wait, since the store is slow or fails.
    pub fn append(self: &Arc<Self>, services: &Arc<dyn Services>, account: &BareJid, entry: Entry) -> bool {
        let is_swept = u64::from(entry.id.chance()).is_multiple_of(self.sweep_every());
        let begins = {
            let mut pending = self.pending.lock();
            if pending.unwritten() + entry.size > PENDING_BYTES_MAX {
                drop(pending);
                self.lose(1, "too much waits for the store");
                return false;
            }
            pending.push(account, entry, is_swept);
            !std::mem::replace(&mut pending.runs, true)
        };
        if begins {
            services.later(GATHERED, self.clone().drain(services.clone(), 0));
        }
        true
    }

    /// Whether so much waits for a store that works that who sends is to wait for it too.
    pub fn is_crowded(&self) -> bool {
        self.pending.lock().unwritten() >= CROWDED && !self.fails.load(Ordering::Relaxed)
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
        self.write(services).await.map(drop)
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
                        pending.runs = pending.messages > 0;
                        if !pending.runs {
                            return;
                        }
                    }
                    Ok(_) => gathers = !self.pending.lock().fills_a_write(),
                    Err(error) => {
                        let waits = self.pending.lock().messages;
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
            let being_written = pending.being_written;
            let lost: usize = pending.take().iter().map(|group| group.messages).sum();
            pending.being_written = being_written;
            lost
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

    /// Writes what waits now, some of it at a time; how many messages. One at a time does so.
    async fn write(&self, services: &dyn Services) -> Result<usize, StoreError> {
        let mut taken = Taken { writer: self, groups: self.pending.lock().take() };
        let mut count = 0;
        while !taken.groups.is_empty() {
            let piece = taken.piece();
            let batches = taken.groups.range(..piece).map(|group| group.batch.clone()).collect();
            let written = services.store().commit(batches).await;
            self.fails.store(written.is_err(), Ordering::Relaxed);
            match written {
                Ok(_) => count += taken.is_written(piece),
                // Nobody asks for it any more; the others are put once more, which changes nothing.
                Err(StoreError::Gone { partition }) => {
                    if !taken.forget(partition.name()) {
                        return Err(StoreError::Gone { partition });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}

/// Microseconds since 1970.
pub fn micros(services: &dyn Services) -> u64 {
    let since = services.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// What is being written: it waits again where that comes to nothing.
struct Taken<'a> {
    writer: &'a Writer,
    groups: VecDeque<Group>,
}

impl Taken<'_> {
    /// How many groups are written next.
    fn piece(&self) -> usize {
        let (mut messages, mut bytes) = (0, 0);
        let fits = self.groups.iter().take_while(|group| {
            messages += group.messages;
            bytes += group.bytes;
            messages <= BATCH && bytes <= BATCH_BYTES
        });
        fits.count().max(1)
    }

    /// Lets go of the first groups, which are in their archives now; how many messages that are.
    fn is_written(&mut self, groups: usize) -> usize {
        let (mut messages, mut bytes) = (0, 0);
        for group in self.groups.drain(..groups) {
            messages += group.messages;
            bytes += group.bytes;
            self.writer.retractions.note(&group.account, group.retractions);
            if group.is_swept {
                self.writer.swept.lock().push(group.account);
            }
        }
        self.end(bytes);
        messages
    }

    /// Lets go of what is for an account that is no more; whether there was something.
    fn forget(&mut self, account: &str) -> bool {
        let mut bytes = 0;
        let before = self.groups.len();
        self.groups.retain(|group| {
            let stays = group.account.as_str() != account;
            bytes += if stays { 0 } else { group.bytes };
            stays
        });
        self.end(bytes);
        self.groups.len() < before
    }

    fn end(&self, bytes: usize) {
        let mut pending = self.writer.pending.lock();
        pending.being_written = pending.being_written.saturating_sub(bytes);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.groups.is_empty() {
            self.writer.pending.lock().put_back(std::mem::take(&mut self.groups));
        }
    }
}
