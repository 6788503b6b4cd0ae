//! [`Store`]: typed access to tables, with a default deadline, compare-and-set and latencies.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    accounts, aside,
    engine::{Batch, Committed, Engine, Expect, Key, Op, Partition, Range, StoreError, Table, Version},
    engines::memory::Memory,
    facts::{Call, Facts},
    record::{self, Stored},
};

/// How long a call may take unless [`Store::with_deadline`] says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// A record of this many bytes or more is decoded on a thread of its own: a contact in a roster is some 60 bytes, and
/// a thousand of them take a quarter of a millisecond.
const LARGE: usize = 64 * 1024;
/// How often [`Store::update`] starts anew when another writer was first.
pub const UPDATE_ATTEMPTS: usize = 32;

/// A value with the version of its record, for a later [`Expect::Version`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<T> {
    pub version: Version,
    pub value: T,
}

/// A handle to what is kept; clones share the engine and the facts.
#[derive(Clone)]
pub struct Store {
    engine: Arc<dyn Engine>,
    facts: Arc<Facts>,
    deadline: Duration,
    guarded: bool,
}

impl Store {
    pub fn new(engine: Arc<dyn Engine>) -> Store {
        Store { engine, facts: Arc::default(), deadline: DEADLINE, guarded: false }
    }

    /// A store in memory, for tests.
    pub fn memory() -> Store {
        Store::new(Arc::new(Memory::new()))
    }

    /// The same store with another time for each call.
    pub fn with_deadline(&self, deadline: Duration) -> Store {
        Store { deadline, ..self.clone() }
    }

    /// The same store, which keeps nothing for an account that is not there: what would put something into its
    /// partition fails with [`StoreError::Gone`] and does nothing, so that nobody who comes late brings a
    /// removed account's data back.
    pub fn guarded(&self) -> Store {
        Store { guarded: true, ..self.clone() }
    }

    /// The engine below, for what is not typed.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Counters and latencies of all calls through this store and its clones.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.facts
    }

    /// Reads a value.
    pub async fn get<T: Stored>(
        &self,
        partition: &Partition,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.get_versioned(partition, key).await?.map(|v| v.value))
    }

    /// Reads a value and its version.
    pub async fn get_versioned<T: Stored>(
        &self,
        partition: &Partition,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<Versioned<T>>, StoreError> {
        let key = key.as_ref();
        self.facts.read(T::TABLE);
        let call = self.engine.get(partition, T::TABLE, key, self.until());
        match self.timed(Call::Get, call).await? {
            None => Ok(None),
            Some(found) => {
                let (version, bytes) = (found.version, found.value);
                let value = decode_aside(partition, key, bytes).await?;
                Ok(Some(Versioned { version, value }))
            }
        }
    }

    /// Whether a key is there, without reading its value as anything.
    pub async fn contains<T: Stored>(
        &self,
        partition: &Partition,
        key: impl AsRef<[u8]>,
    ) -> Result<bool, StoreError> {
        self.facts.read(T::TABLE);
        let call = self.engine.get(partition, T::TABLE, key.as_ref(), self.until());
        Ok(self.timed(Call::Get, call).await?.is_some())
    }

    /// Reads the values of a range of keys.
    ///
    /// # Errors
    /// One unreadable record fails the scan with [`StoreError::Corrupt`], which names it.
    pub async fn scan<T: Stored>(
        &self,
        partition: &Partition,
        range: Range,
    ) -> Result<Vec<(Key, T)>, StoreError> {
        let all = self.scan_versioned(partition, range).await?;
        Ok(all.into_iter().map(|(key, v)| (key, v.value)).collect())
    }

    /// Reads the values and versions of a range of keys.
    pub async fn scan_versioned<T: Stored>(
        &self,
        partition: &Partition,
        range: Range,
    ) -> Result<Vec<(Key, Versioned<T>)>, StoreError> {
        self.facts.read(T::TABLE);
        let call = self.engine.scan(partition, T::TABLE, range, self.until());
        let mut values = Vec::new();
        for (key, found) in self.timed(Call::Scan, call).await? {
            let (version, bytes) = (found.version, found.value);
            let value = decode_aside(partition, &key, bytes).await?;
            values.push((key, Versioned { version, value }));
        }
        Ok(values)
    }

    /// Writes a value whatever was there.
    pub async fn put<T: Stored>(
        &self,
        partition: &Partition,
        key: impl Into<Key>,
        value: &T,
    ) -> Result<(), StoreError> {
        self.commit_one(Batch::new(partition.clone()).put(key, value)).await.map(drop)
    }

    /// Writes a value only if nothing is there; `false` if something is.
    pub async fn insert<T: Stored>(
        &self,
        partition: &Partition,
        key: impl Into<Key>,
        value: &T,
    ) -> Result<bool, StoreError> {
        let key = key.into();
        let batch = Batch::new(partition.clone()).expect::<T>(key.clone(), Expect::Absent).put(key, value);
        Ok(self.commit_one(batch).await? == Committed::Done)
    }

    /// Deletes a value, if it is there.
    pub async fn delete<T: Stored>(
        &self,
        partition: &Partition,
        key: impl Into<Key>,
    ) -> Result<(), StoreError> {
        self.commit_one(Batch::new(partition.clone()).delete::<T>(key)).await.map(drop)
    }

    /// Deletes all that a partition holds.
    pub async fn delete_partition(&self, partition: &Partition) -> Result<(), StoreError> {
        self.commit_one(Batch::new(partition.clone()).delete_partition()).await.map(drop)
    }

    /// Reads, changes and writes a value so that no other writer comes between; returns what is stored now.
    ///
    /// `change` gets the value that is there and returns the one that shall be (`None`: delete). It runs
    /// again, up to [`UPDATE_ATTEMPTS`] times, when another writer was faster.
    pub async fn update<T: Stored>(
        &self,
        partition: &Partition,
        key: impl Into<Key>,
        mut change: impl FnMut(Option<T>) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        let key = key.into();
        for _ in 0..UPDATE_ATTEMPTS {
            let (expect, old) = match self.get_versioned::<T>(partition, &key).await? {
                Some(found) => (Expect::Version(found.version), Some(found.value)),
                None => (Expect::Absent, None),
            };
            let absent = old.is_none();
            let new = change(old);
            let batch = Batch::new(partition.clone()).expect::<T>(key.clone(), expect);
            let batch = match &new {
                Some(value) => batch.put(key.clone(), value),
                None if absent => return Ok(None),
                None => batch.delete::<T>(key.clone()),
            };
            if self.commit_one(batch).await? == Committed::Done {
                return Ok(new);
            }
        }
        Err(StoreError::Contended { table: T::TABLE.0, attempts: UPDATE_ATTEMPTS })
    }

    /// Applies one batch.
    pub async fn commit_one(&self, batch: Batch) -> Result<Committed, StoreError> {
        let outcomes = self.commit(vec![batch]).await?;
        outcomes
            .into_iter()
            .next()
            .ok_or_else(|| StoreError::Engine { reason: "commit without an outcome".to_owned() })
    }

    /// Applies batches in their order, each atomic on its own; one outcome per batch.
    ///
    /// # Errors
    /// Beside those of the engine, [`StoreError::Gone`] where the store is [guarded](Store::guarded); other
    /// batches of the call may be applied.
    pub async fn commit(&self, mut batches: Vec<Batch>) -> Result<Vec<Committed>, StoreError> {
        let mut guarded = Vec::new();
        if self.guarded {
            for (at, batch) in batches.iter_mut().enumerate() {
                if accounts::guard(batch) {
                    guarded.push((at, batch.partition.clone()));
                }
            }
        }
        let call = self.engine.commit(batches, self.until());
        let outcomes = self.timed(Call::Commit, call).await?;
        for (at, partition) in guarded {
            if outcomes.get(at).is_some_and(accounts::is_stopped_by_guard) {
                return Err(StoreError::Gone { partition });
            }
        }
        Ok(outcomes)
    }

    fn until(&self) -> Instant {
        Instant::now() + self.deadline
    }

    async fn timed<R>(
        &self,
        call: Call,
        work: impl Future<Output = Result<R, StoreError>>,
    ) -> Result<R, StoreError> {
        let start = Instant::now();
        let result = work.await;
        self.facts.record(call, start.elapsed(), result.as_ref().err());
        result
    }
}

/// Decodes a record, on a thread of its own where it takes long: whoever reads shares its thread with others.
async fn decode_aside<T: Stored>(partition: &Partition, key: &[u8], bytes: Vec<u8>) -> Result<T, StoreError> {
    if bytes.len() < LARGE {
        return decode(partition, key, &bytes);
    }
    let (partition, key) = (partition.clone(), key.to_vec());
    let decoded = aside::run(move || decode(&partition, &key, &bytes)).await;
    decoded.unwrap_or_else(|| Err(StoreError::Engine { reason: "a decoder panicked".to_owned() }))
}

/// Frees what consists of many small pieces on a thread of its own: whoever lets go of it shares its thread with others.
pub fn discard<T: Send + 'static>(value: T) {
    aside::send(Box::new(move || drop(value)));
}

fn decode<T: Stored>(partition: &Partition, key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    record::decode(bytes).map_err(|e| StoreError::Corrupt {
        partition: partition.clone(),
        table: T::TABLE.0.to_owned(),
        key: key.to_vec(),
        reason: e.to_string(),
    })
}

/// The raw put of a value that is not typed, for engines' tests and tools.
pub fn raw_put(table: Table, key: impl Into<Key>, value: impl Into<Vec<u8>>) -> Op {
    Op::Put { table, key: key.into(), value: value.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize, serde::Deserialize)]
    struct Long(Vec<String>);

    impl Stored for Long {
        const TABLE: Table = Table("long");
        const SCHEMA: u8 = 1;
    }

    #[tokio::test]
    async fn what_is_long_is_decoded_aside_and_its_damage_is_named_all_the_same() {
        let store = Store::memory();
        let partition = Partition::Host("localhost".into());
        let long = Long((0..20_000).map(|n| format!("line {n}")).collect());
        store.put(&partition, "a", &long).await.unwrap();
        let read: Long = store.get(&partition, "a").await.unwrap().unwrap();
        assert_eq!(read.0, long.0);
        assert_eq!(store.scan::<Long>(&partition, Range::all()).await.unwrap()[0].1.0, long.0);
        let damaged = Batch {
            ops: Arc::new(vec![raw_put(Long::TABLE, "b", vec![1; LARGE])]),
            ..Batch::new(partition.clone())
        };
        store.commit_one(damaged).await.unwrap();
        let error = store.get::<Long>(&partition, "b").await.err().unwrap();
        assert!(matches!(error, StoreError::Corrupt { ref key, .. } if key == b"b"), "{error}");
    }
}
