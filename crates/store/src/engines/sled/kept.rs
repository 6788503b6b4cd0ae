//! Small partitions in memory, each as a whole, so that what a login asks for needs one trip to a reader.
//!
//! A partition that is kept answers for all of its tables, also that nothing is there. Tables that are too
//! large for it are left out by name and stay on the disk. Whoever changes the tree changes what is kept
//! under the same lock, so that both always say the same.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    disk::{Disk, Fault, failed},
    layer::{Layer, Part},
    layout,
};
use crate::engine::{Key, Partition, Range, Record, StoreError, Table, Version, prefix_end};

/// A table of more bytes than this is not kept.
const TABLE_BYTES: usize = 8 * 1024;
/// What is kept of one partition at most, in bytes.
const PARTITION_BYTES: usize = 32 * 1024;
/// What a record costs beside its key and value, about.
const RECORD_COST: usize = 64;
/// What a partition costs beside its name and records, about.
const PARTITION_COST: usize = 192;

/// The partitions that are kept, by what their physical keys start with.
pub(super) struct Kept {
    limit: usize,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    partitions: HashMap<Arc<[u8]>, Whole>,
    /// Who is next to go, by number.
    order: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
    bytes: usize,
}

/// One partition; keys are physical ones without the start that all of its keys share.
#[derive(Default)]
struct Whole {
    records: Sorted,
    /// The starts of the keys of tables that are left out, beside logs, of which most are large.
    left_out: Vec<Key>,
    bytes: usize,
    number: u64,
    /// Asked for since it was last spared.
    used: bool,
}

/// A few records in the order of their keys. One for each account: the smallest tree takes twelve times the room of a
/// record.
#[derive(Default)]
struct Sorted(Vec<(Key, Record)>);

impl Sorted {
    /// Records up to which there is room for no more than there are.
    const TIGHT: usize = 16;

    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other[..].cmp(key))
    }

    fn get(&self, key: &[u8]) -> Option<&Record> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    /// Gives the record that was there.
    fn insert(&mut self, key: &[u8], record: Record) -> Option<Record> {
        match self.find(key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, record)),
            Err(at) => {
                if self.0.len() < Self::TIGHT {
                    self.0.reserve_exact(1);
                }
                self.0.insert(at, (key.to_vec(), record));
                None
            }
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<Record> {
        let at = self.find(key).ok()?;
        Some(self.0.remove(at).1)
    }

    /// The records between bounds.
    fn range(&self, (from, to): (Bound<&[u8]>, Bound<&[u8]>)) -> &[(Key, Record)] {
        let before = |is_before: &dyn Fn(&[u8]) -> bool| self.0.partition_point(|(key, _)| is_before(key));
        let first = match from {
            Bound::Unbounded => 0,
            Bound::Included(from) => before(&|key| key < from),
            Bound::Excluded(from) => before(&|key| key <= from),
        };
        let end = match to {
            Bound::Unbounded => self.0.len(),
            Bound::Included(to) => before(&|key| key <= to),
            Bound::Excluded(to) => before(&|key| key < to),
        };
        &self.0[first..end.max(first)]
    }

    /// The records whose keys start with `prefix`.
    fn under(&self, prefix: &[u8]) -> &[(Key, Record)] {
        let behind = self.range((Bound::Included(prefix), Bound::Unbounded));
        &behind[..behind.partition_point(|(key, _)| key.starts_with(prefix))]
    }
}

impl Kept {
    pub(super) fn new(limit: usize) -> Kept {
        Kept { limit, all: Mutex::default() }
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        *self.all.lock() = All::default();
    }

    /// Notes what was just written, as one: who looks sees all of it or nothing. The caller keeps readers out of
    /// the records meanwhile.
    pub(super) fn write(&self, changes: &Layer) {
        let mut all = self.all.lock();
        for (prefix, part) in &changes.parts {
            all.write(prefix, part);
        }
        self.evict(&mut all);
    }

    /// The version of a record of a partition that is kept.
    pub(super) fn version(&self, prefix: &[u8], rest: &[u8]) -> Option<Option<Version>> {
        self.look(prefix, rest, |whole| whole.records.get(rest).map(|record| record.version))
    }

    fn insert(&self, prefix: Vec<u8>, mut whole: Whole) {
        whole.bytes += prefix.len() * 2 + PARTITION_COST;
        if whole.bytes > self.limit {
            return;
        }
        let prefix: Arc<[u8]> = prefix.into();
        let mut all = self.all.lock();
        all.forget(&prefix);
        whole.number = all.next;
        all.next += 1;
        all.bytes += whole.bytes;
        all.order.insert(whole.number, prefix.clone());
        all.partitions.insert(prefix, whole);
        self.evict(&mut all);
    }

    fn evict(&self, all: &mut All) {
        while all.bytes > self.limit
            && let Some((_, prefix)) = all.order.pop_first()
        {
            let number = all.next;
            match all.partitions.get_mut(&prefix) {
                // Spared once: each turn takes the mark away, so this ends.
                Some(whole) if whole.used => {
                    whole.used = false;
                    whole.number = number;
                    all.next += 1;
                    all.order.insert(number, prefix);
                }
                _ => all.forget(&prefix),
            }
        }
    }

    /// Looks into a partition, if it is kept with this table.
    fn look<T>(&self, prefix: &[u8], table: &[u8], look: impl FnOnce(&Whole) -> T) -> Option<T> {
        let mut all = self.all.lock();
        let whole = all.partitions.get_mut(prefix)?;
        whole.used = true;
        (!whole.leaves_out(table)).then(|| look(whole))
    }
}

impl All {
    fn write(&mut self, prefix: &[u8], part: &Part) {
        let Some(whole) = self.partitions.get_mut(prefix) else { return };
        let before = whole.bytes;
        if part.wiped {
            whole.clear();
        }
        let mut too_large = false;
        for (rest, change) in &part.changes {
            if whole.leaves_out(rest) {
                continue;
            }
            let record = change.as_ref().map(|sealed| {
                let (version, value) = layout::sealed(sealed);
                Record { version, value: value.to_vec() }
            });
            whole.put(rest, record);
            too_large |= whole.table_bytes(rest) > TABLE_BYTES;
        }
        let after = whole.bytes;
        self.bytes = self.bytes - before + after;
        if too_large || after > PARTITION_BYTES {
            // The next reader keeps the rest of it.
            self.forget(prefix);
        }
    }

    fn forget(&mut self, prefix: &[u8]) {
        if let Some(whole) = self.partitions.remove(prefix) {
            self.order.remove(&whole.number);
            self.bytes -= whole.bytes;
        }
    }
}

impl Whole {
    /// Empties it.
    fn clear(&mut self) {
        let gone: usize = self.records.0.iter().map(|(key, record)| cost(key, record)).sum();
        self.bytes -= gone + self.left_out.iter().map(Vec::len).sum::<usize>();
        self.records = Sorted::default();
        self.left_out.clear();
    }

    fn leaves_out(&self, key: &[u8]) -> bool {
        layout::is_in_log(&[], key) || self.left_out.iter().any(|table| key.starts_with(table))
    }

    fn put(&mut self, key: &[u8], record: Option<Record>) {
        let old = match record {
            Some(record) => {
                self.bytes += cost(key, &record);
                self.records.insert(key, record)
            }
            None => self.records.remove(key),
        };
        self.bytes -= old.map_or(0, |old| cost(key, &old));
    }

    /// The bytes of the table that a key belongs to.
    fn table_bytes(&self, key: &[u8]) -> usize {
        let table = layout::table_end(key).map_or(key, |end| &key[..end]);
        self.records.under(table).iter().map(|(key, record)| cost(key, record)).sum()
    }

    fn leave_out(&mut self, table: &[u8]) {
        if self.leaves_out(table) {
            return;
        }
        let there: Vec<Key> = self.records.under(table).iter().map(|(key, _)| key.clone()).collect();
        for key in there {
            self.put(&key, None);
        }
        self.left_out.push(table.to_vec());
        self.bytes += table.len();
    }
}

fn cost(key: &[u8], record: &Record) -> usize {
    key.len() + record.value.len() + RECORD_COST
}

impl Disk {
    /// The answer to a `get`, if it is kept; blocks no longer than it takes to look.
    pub(super) fn kept_get(&self, partition: &Partition, table: Table, key: &[u8]) -> Option<Option<Record>> {
        self.usable().ok()?;
        let prefix = layout::partition_prefix(partition);
        let rest = &layout::record_rest(table, key)[..];
        self.kept.look(&prefix, rest, |whole| whole.records.get(rest).cloned())
    }

    /// The answer to a `scan`, if it is kept; blocks no longer than it takes to look.
    pub(super) fn kept_scan(
        &self,
        partition: &Partition,
        table: Table,
        range: &Range,
    ) -> Option<Vec<(Key, Record)>> {
        self.usable().ok()?;
        if range.is_empty() {
            return Some(Vec::new());
        }
        let prefix = layout::partition_prefix(partition);
        let table = &layout::table_start(table)[..];
        let limit = range.limit.min(Range::LIMIT_MAX);
        self.kept.look(&prefix, table, |whole| {
            let (from, to) = layout::bounds(table, range);
            let bounds = (from.as_ref().map(Key::as_slice), to.as_ref().map(Key::as_slice));
            let found = whole.records.range(bounds).iter();
            let own = |(key, record): &(Key, Record)| (key[table.len()..].to_vec(), record.clone());
            if range.reverse {
                found.rev().take(limit).map(own).collect()
            } else {
                found.take(limit).map(own).collect()
            }
        })
    }

    /// Keeps a partition from now on, if it is not kept already and can be read. What is wrong with it shows
    /// where it is read for somebody.
    pub(super) fn keep(&self, partition: &Partition) {
        let kept = catch_unwind(AssertUnwindSafe(|| self.try_keep(partition)));
        if !matches!(kept, Ok(Ok(()))) {
            tracing::debug!(?partition, "failed to keep a partition in memory");
        }
    }

    fn try_keep(&self, partition: &Partition) -> Result<(), StoreError> {
        let prefix = layout::partition_prefix(partition);
        if self.kept.all.lock().partitions.contains_key(&prefix[..]) {
            return Ok(());
        }
        let mut whole = Whole::default();
        // Held until the partition is in its place: no writer comes between.
        let records = self.records.read();
        let mut from = Key::new();
        'tables: loop {
            let mut table = Key::new();
            let mut table_bytes = 0;
            let bounds = (Bound::Included(from.clone()), Bound::Unbounded);
            let failed = |fault: Fault| failed("keep a partition", fault.into_sled());
            for item in records.range(&prefix, &bounds, false, false).map_err(failed)? {
                let (rest, bytes) = item.map_err(failed)?;
                let Some(table_end) = layout::table_end(&rest) else { return Ok(()) };
                if rest[..table_end] != table[..] {
                    table = rest[..table_end].to_vec();
                    table_bytes = 0;
                }
                let bytes_more = rest.len() + bytes.len() + RECORD_COST;
                table_bytes += bytes_more;
                // One that is damaged is for the disk to tell of.
                let record = layout::open(&prefix, &rest, bytes);
                let is_small = !whole.leaves_out(&rest)
                    && table_bytes <= TABLE_BYTES
                    && whole.bytes + bytes_more <= PARTITION_BYTES;
                if let (Ok(record), true) = (record, is_small) {
                    whole.put(&rest, Some(record));
                    continue;
                }
                whole.leave_out(&table);
                // Over the rest of the table, however long it is.
                let Some(next) = prefix_end(&table) else { return Ok(()) };
                from = next;
                continue 'tables;
            }
            break;
        }
        self.kept.insert(prefix, whole);
        Ok(())
    }
}
