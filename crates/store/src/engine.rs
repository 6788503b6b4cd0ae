//! The contract of a storage engine: partitions, tables, records, batches with preconditions.

use std::{collections::BTreeSet, fmt, future::Future, ops::Bound, pin::Pin, sync::Arc, time::Instant};

use parking_lot::Mutex;

use crate::record::{self, Stored};

/// A future on the heap, as an object-safe trait needs it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A key inside a table; ordered by its bytes.
pub type Key = Vec<u8>;

/// How often a key was put since it was last absent: the first put makes version 1.
///
/// A key that was deleted starts again at 1. Tables without versions ([`Table::is_unversioned`]) stay there.
pub type Version = u64;

/// The longest name of a partition, in bytes (two JID parts of 1023 bytes and the `@`).
pub const PARTITION_NAME_MAX: usize = 2047;
/// The longest key, in bytes.
pub const KEY_SIZE_MAX: usize = 4096;
/// The largest value, in bytes, as the engine sees it.
pub const VALUE_SIZE_MAX: usize = 1024 * 1024;
/// The most operations in one batch.
pub const BATCH_OPS_MAX: usize = 10_000;
/// The longest name of a table, in bytes.
pub const TABLE_NAME_MAX: usize = 64;

/// The unit of storage, of atomicity and of placement: a batch is atomic in one, a scan stays in one.
///
/// Names come prepared (stringprep, case folding) from the caller; two names are the same only if their
/// bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Partition {
    /// What belongs to one account, by its bare JID.
    Account(Box<str>),
    /// What belongs to one room, by its bare JID.
    Room(Box<str>),
    /// What belongs to one host of this server, by its domain.
    Host(Box<str>),
}

impl Partition {
    /// The name without the kind.
    pub fn name(&self) -> &str {
        match self {
            Partition::Account(name) | Partition::Room(name) | Partition::Host(name) => name,
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Partition::Account(_) => "account",
            Partition::Room(_) => "room",
            Partition::Host(_) => "host",
        };
        write!(f, "{kind} {}", self.name())
    }
}

/// A named set of ordered keys inside each partition: `Table("roster")`.
///
/// The name is stored with each record, so a table is never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table(pub &'static str);

impl Table {
    /// The table of a name that arrived from another node or from a log; `None` unless
    /// [`Table::is_name`].
    ///
    /// Each distinct name is kept in memory for the life of the process, so whoever takes names from the
    /// network uses [`Table::bounded`].
    pub fn named(name: &str) -> Option<Table> {
        Self::bounded(name, usize::MAX)
    }

    /// As [`Table::named`], but `None` for a new name once `max` distinct ones are kept.
    pub fn bounded(name: &str, max: usize) -> Option<Table> {
        if !Self::is_name(name) {
            return None;
        }
        let mut names = NAMES.lock();
        if let Some(known) = names.get(name) {
            return Some(Table(known));
        }
        if names.len() >= max {
            return None;
        }
        let leaked: &'static str = Box::leak(name.to_owned().into_boxed_str());
        names.insert(leaked);
        Some(Table(leaked))
    }

    /// Whether it has many small records that are written once, nearly always behind those that are there, so that an
    /// engine does well to keep many of them as one.
    ///
    /// They are named here and not by who writes them, since a backend keeps records of modules that it does not run.
    pub fn is_log(&self) -> bool {
        is_log(self.0)
    }

    /// Whether its records are all of version 1, also those that were put over others: nobody expects one of a version,
    /// so that who puts one need not look for what is there. See [`Table::is_log`] for why they are named here.
    pub fn is_unversioned(&self) -> bool {
        UNVERSIONED.contains(&self.0)
    }

    /// Whether every engine can keep a table of this name: 1 to [`TABLE_NAME_MAX`] bytes of `a-z`, `0-9`,
    /// `_`, `-` and `.`.
    pub fn is_name(name: &str) -> bool {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.');
        (1..=TABLE_NAME_MAX).contains(&name.len()) && name.bytes().all(fits)
    }
}

pub(crate) const LOGS: [&str; 2] = ["archive", "archive_with"];

const UNVERSIONED: [&str; 1] = ["archive_with"];

/// As [`Table::is_log`], by name.
pub(crate) fn is_log(table: &str) -> bool {
    LOGS.contains(&table)
}

static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// A stored value with its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub version: Version,
    pub value: Vec<u8>,
}

/// What must be true of a key for a batch to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key is not there.
    Absent,
    /// The key is there with exactly this version.
    Version(Version),
    /// The key is there, with whatever version.
    Present,
    /// The key may be there or not: always true.
    Any,
}

impl Expect {
    /// Whether a key with `current` (`None`: not there) is as expected.
    pub fn holds(self, current: Option<Version>) -> bool {
        match self {
            Expect::Absent => current.is_none(),
            Expect::Version(version) => current == Some(version),
            Expect::Present => current.is_some(),
            Expect::Any => true,
        }
    }
}

/// One change of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        table: Table,
        key: Key,
        value: Vec<u8>,
    },
    /// Deleting what is not there does nothing.
    Delete {
        table: Table,
        key: Key,
    },
    /// Deletes every record of every table of the batch's partition.
    DeletePartition,
}

impl Op {
    /// A put of a value that [`record::encode_as`] has made bytes of.
    pub fn put_encoded<T: Stored>(key: impl Into<Key>, value: Vec<u8>) -> Op {
        Op::Put { table: T::TABLE, key: key.into(), value }
    }
}

/// Changes of one partition that happen together or not at all, if all that it expects holds.
///
/// Operations take effect in their order; a key that is put twice has grown by two versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub partition: Partition,
    pub expect: Vec<(Table, Key, Expect)>,
    /// Shared, so that who may have to put the batch once more keeps it without a copy.
    pub ops: Arc<Vec<Op>>,
}

impl Batch {
    pub fn new(partition: Partition) -> Batch {
        Batch { partition, expect: Vec::new(), ops: Arc::default() }
    }

    /// Adds a precondition on a key of `T`'s table.
    pub fn expect<T: Stored>(mut self, key: impl Into<Key>, expect: Expect) -> Batch {
        self.expect.push((T::TABLE, key.into(), expect));
        self
    }

    /// Adds a put of a typed value.
    pub fn put<T: Stored>(mut self, key: impl Into<Key>, value: &T) -> Batch {
        self.push(Op::Put { table: T::TABLE, key: key.into(), value: record::encode(value) });
        self
    }

    /// Adds a change behind those that are there.
    pub fn push(&mut self, op: Op) {
        Arc::make_mut(&mut self.ops).push(op);
    }

    /// Adds a delete in `T`'s table.
    pub fn delete<T: Stored>(mut self, key: impl Into<Key>) -> Batch {
        self.push(Op::Delete { table: T::TABLE, key: key.into() });
        self
    }

    /// Adds the end of the whole partition.
    pub fn delete_partition(mut self) -> Batch {
        self.push(Op::DeletePartition);
        self
    }

    /// Checks sizes and names against what every engine can keep.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] names the bound that is passed.
    pub fn check(&self) -> Result<(), StoreError> {
        check_partition(&self.partition)?;
        if self.ops.len() + self.expect.len() > BATCH_OPS_MAX {
            return Err(StoreError::TooLarge { what: "operations in a batch", max: BATCH_OPS_MAX });
        }
        for (table, key, _) in &self.expect {
            check_key(*table, key)?;
        }
        for op in &*self.ops {
            match op {
                Op::Put { table, key, value } => {
                    check_key(*table, key)?;
                    if value.len() > VALUE_SIZE_MAX {
                        return Err(StoreError::TooLarge { what: "value", max: VALUE_SIZE_MAX });
                    }
                }
                Op::Delete { table, key } => check_key(*table, key)?,
                Op::DeletePartition => {}
            }
        }
        Ok(())
    }

    /// About how many bytes the batch holds, for bounds of queues and groups.
    pub fn size(&self) -> usize {
        let op = |op: &Op| match op {
            Op::Put { key, value, .. } => 32 + key.len() + value.len(),
            Op::Delete { key, .. } => 32 + key.len(),
            Op::DeletePartition => 32,
        };
        self.partition.name().len() + self.expect.len() * 64 + self.ops.iter().map(op).sum::<usize>()
    }
}

/// Checks a partition's name against [`PARTITION_NAME_MAX`].
pub fn check_partition(partition: &Partition) -> Result<(), StoreError> {
    if partition.name().len() > PARTITION_NAME_MAX {
        return Err(StoreError::TooLarge { what: "partition name", max: PARTITION_NAME_MAX });
    }
    Ok(())
}

/// Checks a table's name and a key's size.
pub fn check_key(table: Table, key: &[u8]) -> Result<(), StoreError> {
    if !Table::is_name(table.0) {
        return Err(StoreError::TooLarge { what: "table name", max: TABLE_NAME_MAX });
    }
    if key.len() > KEY_SIZE_MAX {
        return Err(StoreError::TooLarge { what: "key", max: KEY_SIZE_MAX });
    }
    Ok(())
}

/// How one batch of a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Applied, durable.
    Done,
    /// Nothing was applied: this key is not as expected (the first such one).
    Conflict { table: Table, key: Key },
}

/// Which keys of a table a scan visits, in which order and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub from: Bound<Key>,
    pub to: Bound<Key>,
    /// From the last key to the first.
    pub reverse: bool,
    /// At most so many records; engines never return more than [`Range::LIMIT_MAX`].
    pub limit: usize,
}

impl Range {
    /// The most records that one scan returns.
    pub const LIMIT_MAX: usize = 10_000;

    /// All keys.
    pub fn all() -> Range {
        Range { from: Bound::Unbounded, to: Bound::Unbounded, reverse: false, limit: Self::LIMIT_MAX }
    }

    /// All keys that start with `prefix`.
    pub fn prefix(prefix: impl Into<Key>) -> Range {
        let from = prefix.into();
        let to = prefix_end(&from).map_or(Bound::Unbounded, Bound::Excluded);
        Range { from: Bound::Included(from), to, ..Range::all() }
    }

    /// All keys behind `key`, without it.
    pub fn after(key: impl Into<Key>) -> Range {
        Range { from: Bound::Excluded(key.into()), ..Range::all() }
    }

    /// All keys before `key`, without it.
    pub fn before(key: impl Into<Key>) -> Range {
        Range { to: Bound::Excluded(key.into()), ..Range::all() }
    }

    /// The same keys, last first.
    pub fn reversed(mut self) -> Range {
        self.reverse = true;
        self
    }

    /// No more than `limit` records.
    pub fn limit(mut self, limit: usize) -> Range {
        self.limit = limit.min(Self::LIMIT_MAX);
        self
    }

    /// Whether no key can be inside, as some maps panic on such bounds.
    pub fn is_empty(&self) -> bool {
        use Bound::{Excluded, Included};
        match (&self.from, &self.to) {
            (Included(a), Included(b)) => a > b,
            (Included(a), Excluded(b)) | (Excluded(a), Included(b)) | (Excluded(a), Excluded(b)) => a >= b,
            _ => false,
        }
    }
}

/// The first key that is behind all keys with this prefix; `None` if there is no such key.
pub fn prefix_end(prefix: &[u8]) -> Option<Key> {
    let last = prefix.iter().rposition(|b| *b != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Why the store could not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No engine answers now: stopped, broken, or a cluster without a quorum. Nothing was applied, unless
    /// the call was a commit that was already on its way.
    #[error("store is unavailable: {reason}")]
    Unavailable { reason: String },
    /// The deadline passed. A commit may still be applied, or may never be.
    #[error("store did not answer before the deadline")]
    Deadline,
    /// The disk is full, or so near to it that nothing more is accepted. Nothing was applied.
    #[error("disk of the store is full")]
    Full,
    /// A record is not what was written, or cannot be read by this version of the server.
    #[error("corrupt record in {partition}, table `{table}`, key {key:?}: {reason}")]
    Corrupt { partition: Partition, table: String, key: Key, reason: String },
    /// A name, key, value or batch passes a bound.
    #[error("{what} is too large, at most {max}")]
    TooLarge { what: &'static str, max: usize },
    /// The account is not there, or no longer: nothing may be kept for it. Nothing was applied.
    #[error("there is no {partition}")]
    Gone { partition: Partition },
    /// A compare-and-set loop met another writer at each of its attempts.
    #[error("gave up after {attempts} conflicts on table `{table}`")]
    Contended { table: &'static str, attempts: usize },
    /// The engine below failed.
    #[error("storage engine failed: {reason}")]
    Engine { reason: String },
}

/// Where records are kept. Every engine passes the suite in `conformance.rs`.
///
/// Every call ends by its deadline, with [`StoreError::Deadline`] at the latest. A commit that was answered
/// is durable and visible to every later read through any handle of the same store.
pub trait Engine: Send + Sync + 'static {
    /// Reads one record.
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>>;

    /// Reads records of one table of one partition in the order of their keys.
    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>>;

    /// Applies batches in their order, each atomic on its own; one outcome per batch.
    ///
    /// An error says nothing about batches of the same call that came first: they may be applied.
    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_elsewhere_are_checked_kept_once_and_bounded() {
        let first = Table::named("engine.test").unwrap();
        let again = Table::bounded("engine.test", 0).unwrap();
        assert!(std::ptr::eq(first.0, again.0));
        assert_eq!(Table::bounded("engine.test.new", 0), None);
        for bad in ["", "No", "a b", "é", &"x".repeat(TABLE_NAME_MAX + 1)] {
            assert_eq!(Table::named(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_of_its_keys() {
        assert_eq!(prefix_end(b"a"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }
}
