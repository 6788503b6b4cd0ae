//! Batches on their way to the disk: checked against what is there, then written all at once.

use parking_lot::MutexGuard;

use super::{
    blocks,
    disk::{Disk, Fault, failed},
    kept::Kept,
    layer::{Layer, Part, Rest},
    layout,
    records::Records,
    settling::{Gaps, Writer},
};
use crate::engine::{Batch, Committed, Key, Op, StoreError, Table, Version};

/// Changes that become visible together; dropped without [`Writing::finish`] they never were.
///
/// There is one at a time.
pub struct Writing<'a> {
    disk: &'a Disk,
    writer: MutexGuard<'a, Writer>,
    changes: Layer,
}

impl Disk {
    /// Begins a change; waits for the one that is under way.
    pub fn write(&self) -> Result<Writing<'_>, StoreError> {
        self.usable()?;
        Ok(Writing { disk: self, writer: self.writer.lock(), changes: Layer::default() })
    }
}

/// The mark with who keeps the store.
const KEEPER: &[u8] = b"keeper";
/// What stands behind it since there are segments: a version that does not read them must not open the store.
const LATER: &[u8] = b" of a later version, with segments";
/// What stood behind it since there was a journal.
const BEFORE: &[u8] = b" of a later version";

/// Who keeps a store, without what stands behind it.
fn bare(keeper: &[u8]) -> &[u8] {
    keeper.strip_suffix(LATER).or_else(|| keeper.strip_suffix(BEFORE)).unwrap_or(keeper)
}

/// The record of a copy as every version reads it.
pub(super) fn as_copied<'a>(key: &[u8], value: &'a [u8]) -> &'a [u8] {
    if key == layout::mark_key(KEEPER) { bare(value) } else { value }
}

/// The record of a copy as it is kept here.
pub(super) fn as_installed(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    if key == layout::mark_key(KEEPER) {
        value.truncate(bare(&value).len());
        value.extend_from_slice(LATER);
    }
    value
}

impl Disk {
    /// Takes the store for one kind of keeper for good, if it is new.
    ///
    /// Records that a Raft group agreed on and records of a server alone must not be mixed: replicas would
    /// differ from then on.
    ///
    /// # Errors
    /// [`StoreError::Engine`] names the kind of keeper that has it.
    pub fn claim(&self, keeper: &str) -> Result<(), StoreError> {
        match self.mark(KEEPER)? {
            Some(found) if found == [keeper.as_bytes(), LATER].concat() => Ok(()),
            Some(found) if bare(&found) == keeper.as_bytes() => self.keep_for(keeper, &[]),
            Some(found) => {
                let found = String::from_utf8_lossy(bare(&found)).into_owned();
                let reason =
                    format!("store in `{}` belongs to {found}, not to {keeper}", self.path().display());
                Err(StoreError::Engine { reason })
            }
            None => self.keep_for(keeper, &[]),
        }
    }

    /// Gives the store of one kind of keeper to another one, with all of its records, and with marks of the new one
    /// in the same write; whether it was the former's.
    pub fn hand_over(&self, from: &str, to: &str, marks: &[(&[u8], &[u8])]) -> Result<bool, StoreError> {
        let found = self.mark(KEEPER)?;
        if found.as_deref().map(bare) != Some(from.as_bytes()) {
            return Ok(false);
        }
        self.keep_for(to, marks)?;
        Ok(true)
    }

    fn keep_for(&self, keeper: &str, marks: &[(&[u8], &[u8])]) -> Result<(), StoreError> {
        let mut writing = self.write()?;
        writing.mark(KEEPER, Some(&[keeper.as_bytes(), LATER].concat()));
        for (name, bytes) in marks {
            writing.mark(name, Some(bytes));
        }
        writing.finish()?;
        // Where every version looks for it.
        self.settle_all()
    }
}

impl Writing<'_> {
    /// Adds a batch behind those that were added before, if all that it expects holds after them.
    ///
    /// An error concerns this batch alone: nothing of it was added.
    pub fn batch(&mut self, batch: &Batch) -> Result<Committed, StoreError> {
        let prefix = layout::partition_prefix(&batch.partition);
        let records = self.disk.records.read();
        let mut before = Before {
            parts: records.layers().filter_map(|layer| layer.parts.get(&prefix)).collect(),
            records: &records,
            kept: &self.disk.kept,
            gaps: &mut self.writer.gaps,
            gap: None,
            prefix: &prefix,
        };
        before.parts.splice(0..0, self.changes.parts.get(&prefix));
        let mut own = Part::default();
        for (table, key, expect) in &batch.expect {
            let current = before
                .version(&own, *table, &layout::rest(*table, key))?
                .map_err(|reason| layout::corrupt(&batch.partition, *table, key, reason))?;
            if !expect.holds(current) {
                return Ok(Committed::Conflict { table: *table, key: key.clone() });
            }
        }
        own.expect_ops(&batch.ops);
        for op in &*batch.ops {
            match op {
                Op::Put { table, key, value } => {
                    let rest = layout::rest(*table, key);
                    let current = match table.is_unversioned() {
                        true => None,
                        false => before
                            .version(&own, *table, &rest)?
                            .map_err(|reason| layout::corrupt(&batch.partition, *table, key, reason))?,
                    };
                    let version = current.unwrap_or(0).saturating_add(1);
                    own.put(&prefix, rest, table.is_log(), version, value);
                }
                Op::Delete { table, key } => {
                    own.changes.insert(layout::rest(*table, key), None);
                }
                Op::DeletePartition => own = Part { wiped: true, ..Part::default() },
            }
        }
        drop(records);
        self.changes.add(&prefix, own);
        Ok(Committed::Done)
    }

    /// Keeps something of the caller's own in the same atomic write; `None` forgets it.
    pub fn mark(&mut self, name: &[u8], value: Option<&[u8]>) {
        let mut part = Part::default();
        part.changes.insert(Rest::from_slice(name), value.map(<[u8]>::to_vec));
        self.changes.add(layout::MARKS, part);
    }

    /// Writes all of it as one. It is visible afterwards, and durable after the next [`Disk::sync`].
    ///
    /// # Errors
    /// [`StoreError::Full`], with nothing written; any other stops the store.
    pub fn finish(mut self) -> Result<(), StoreError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let (disk, changes) = (self.disk, std::mem::take(&mut self.changes));
        let written = changes.bytes;
        match self.writer.journal.append(&changes) {
            Ok(written) => written?,
            Err(reason) => {
                disk.break_down(reason);
                return disk.usable();
            }
        }
        {
            let mut records = disk.records.write();
            disk.kept.write(&changes);
            records.active.absorb(changes);
        }
        disk.guarded("a write", || disk.age(&mut self.writer, written))
    }
}

/// What a partition holds before a batch.
struct Before<'a> {
    /// What is above sled of it, the newest first.
    parts: Vec<&'a Part>,
    records: &'a Records,
    kept: &'a Kept,
    gaps: &'a mut Gaps,
    /// The last one of them that was of use: what a batch puts into a log is mostly in one.
    gap: Option<(Key, Key)>,
    prefix: &'a [u8],
}

impl Before<'_> {
    /// The version of a key, with what the batch has changed so far; the inner error says that its record is damaged.
    fn version(
        &mut self,
        own: &Part,
        table: Table,
        rest: &[u8],
    ) -> Result<Result<Option<Version>, &'static str>, StoreError> {
        let prefix = self.prefix;
        let open = |bytes: Option<&[u8]>| bytes.map(|b| layout::version(prefix, rest, b)).transpose();
        if let Some(change) = own.get(rest).or_else(|| self.parts.iter().find_map(|part| part.get(rest))) {
            return Ok(open(change));
        }
        if table.is_log() {
            if self.gap.as_ref().is_some_and(|(from, to)| from[..] <= *rest && *rest < to[..]) {
                return Ok(Ok(None));
            }
            if let Some((from, to)) = self.gaps.around(prefix, rest) {
                self.gap = Some((from.clone(), to.clone()));
                return Ok(Ok(None));
            }
            return match blocks::find(&self.records.ground, prefix, rest) {
                Ok((None, gap)) => {
                    self.gaps.note(prefix, gap.clone());
                    self.gap = Some(gap);
                    Ok(Ok(None))
                }
                Ok((found, _)) => Ok(open(found.as_deref())),
                Err(Fault::Block(_, reason)) => Ok(Err(reason)),
                Err(Fault::Sled(e)) => Err(failed("read", e)),
            };
        }
        if let Some(known) = self.kept.version(prefix, rest) {
            return Ok(Ok(known));
        }
        let found = self.records.ground.tree.get([prefix, rest].concat()).map_err(|e| failed("read", e))?;
        Ok(open(found.as_deref()))
    }
}
