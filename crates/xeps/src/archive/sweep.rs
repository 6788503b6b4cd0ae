//! Removes from an archive what is too old or too much, the oldest first, a slice at a time.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hooks::Services;
use jid::BareJid;
use serde::{Deserialize, Serialize};
use store::{Batch, Committed, Expect, Range, StoreError, Stored, Table, Versioned};

use super::NAME;
use super::entries::{Archived, Id, Unread, with_key};
use super::writer::micros;
use crate::rosters::partition;

/// Messages that are counted or removed in one step.
const SLICE: usize = 500;
/// Steps of one sweep; what is left then goes with the next one.
const SLICES: usize = 50;
/// What is younger than this may not be all that there is of its time: other nodes are about to write some.
pub const SETTLED: Duration = Duration::from_secs(10);

/// What an archive may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub messages: u64,
    pub age: Duration,
}

impl Limits {
    /// What is before this is too old to be shown, removed or not.
    pub fn oldest(self, services: &dyn Services) -> Id {
        let age = u64::try_from(self.age.as_micros()).unwrap_or(u64::MAX);
        Id::first_of(micros(services).saturating_sub(age))
    }
}

/// How much an archive holds: counted as it grows, so that nobody counts all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The messages up to `counted`.
    pub messages: u64,
    /// The id of the last message that was counted.
    pub counted: Vec<u8>,
}

impl Stored for Extent {
    const TABLE: Table = Table("archive_extent");
    const SCHEMA: u8 = 1;
}

/// About how many messages came since an archive was last counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncounted {
    messages: u64,
}

impl Stored for Uncounted {
    const TABLE: Table = Table("archive_uncounted");
    const SCHEMA: u8 = 1;
}

/// The one key of an account's extent, and of what is uncounted.
const KEY: &[u8] = b"";

/// Sweeps an archive beside everything else.
pub fn soon(services: &Arc<dyn Services>, account: BareJid, limits: Limits, came: u64) {
    let swept: BoxFuture<'static, ()> = {
        let services = services.clone();
        Box::pin(async move {
            // What fails is done by the next sweep.
            if let Err(error) = sweep(&*services, &account, limits, came).await {
                tracing::debug!(module = NAME, %account, %error, "failed to sweep an archive");
            }
        })
    };
    services.later(Duration::ZERO, swept);
}

/// Removes what is beyond the limits, up to a number of steps. About so many messages came since the last sweep.
pub async fn sweep(
    services: &dyn Services,
    account: &BareJid,
    limits: Limits,
    came: u64,
) -> Result<(), StoreError> {
    if !may_be_beyond(services, account, limits, came).await? {
        return Ok(());
    }
    for _ in 0..SLICES {
        if !step(services, account, limits).await? {
            return Ok(());
        }
        services.pause().await;
    }
    Ok(())
}

/// Whether an archive may be beyond its limits. Most are far from them, and to count what came is to read all of it.
async fn may_be_beyond(
    services: &dyn Services,
    account: &BareJid,
    limits: Limits,
    came: u64,
) -> Result<bool, StoreError> {
    let (store, partition) = (services.store(), partition(account));
    let extent: Option<Extent> = store.get(&partition, KEY).await?;
    let found: Option<Versioned<Uncounted>> = store.get_versioned(&partition, KEY).await?;
    let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Version(found.version));
    let batch = Batch::new(partition.clone()).expect::<Uncounted>(KEY, expect);
    let messages = found.map_or(0, |found| found.value.messages).saturating_add(came);
    // Twice, as chance decides when an archive is looked at.
    let most = extent.map_or(0, |extent| extent.messages).saturating_add(messages.saturating_mul(2));
    if most >= limits.messages {
        store.commit_one(batch.delete::<Uncounted>(KEY)).await?;
        return Ok(true);
    }
    let oldest = limits.oldest(services).key();
    let first = store.scan::<Unread>(&partition, Range::all().limit(1)).await?;
    if first.first().is_some_and(|(key, _)| *key < oldest) {
        return Ok(true);
    }
    // Another node that was first has counted as much.
    store.commit_one(batch.put(KEY, &Uncounted { messages })).await?;
    Ok(false)
}

/// One step; `false`: nothing is left to do, or another node is at it.
async fn step(services: &dyn Services, account: &BareJid, limits: Limits) -> Result<bool, StoreError> {
    let (store, partition) = (services.store(), partition(account));
    let found: Option<Versioned<Extent>> = store.get_versioned(&partition, KEY).await?;
    let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Version(found.version));
    let mut extent = found.map(|found| found.value).unwrap_or_default();
    let settled = u64::try_from(SETTLED.as_micros()).unwrap_or(u64::MAX);
    let settled = Id::first_of(micros(services).saturating_sub(settled));
    let uncounted = Range { to: Bound::Excluded(settled.key()), ..Range::after(extent.counted.clone()) };
    let new = match uncounted.is_empty() {
        true => Vec::new(),
        false => store.scan::<Unread>(&partition, uncounted.limit(SLICE)).await?,
    };
    let mut more = new.len() == SLICE;
    if let Some((last, _)) = new.last() {
        extent.messages += new.len() as u64;
        extent.counted = last.clone();
    }
    let mut batch = Batch::new(partition.clone()).expect::<Extent>(KEY, expect);
    let oldest = limits.oldest(services).key();
    let excess = usize::try_from(extent.messages.saturating_sub(limits.messages)).unwrap_or(usize::MAX);
    let counted = Range { to: Bound::Included(extent.counted.clone()), ..Range::all() };
    let goes = |at: usize, key: &[u8]| key < oldest.as_slice() || at < excess;
    // Nearly always nothing goes, which the oldest one tells.
    let mut first = store.scan::<Archived>(&partition, counted.clone().limit(1)).await?;
    if first.first().is_some_and(|(key, _)| goes(0, key)) {
        first = store.scan(&partition, counted.limit(SLICE)).await?;
    }
    let gone = first.iter().enumerate().take_while(|(at, (key, _))| goes(*at, key)).map(|(_, found)| found);
    let mut removed = 0;
    for (key, message) in gone {
        batch = batch.delete::<Archived>(key.clone());
        if let Some(id) = Id::of_key(key) {
            batch = batch.delete::<super::entries::With>(with_key(message.with(), id));
        }
        removed += 1;
    }
    more |= removed == SLICE;
    if new.is_empty() && removed == 0 {
        return Ok(false);
    }
    extent.messages = extent.messages.saturating_sub(removed as u64);
    let done = store.commit_one(batch.put(KEY, &extent)).await? == Committed::Done;
    Ok(more && done)
}
