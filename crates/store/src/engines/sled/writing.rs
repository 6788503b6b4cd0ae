//! Batches on their way to the disk: checked against what is there, then written all at once.

use std::collections::BTreeMap;

use parking_lot::MutexGuard;

use super::{
    copy::Copies,
    disk::{Disk, failed},
    layout,
};
use crate::engine::{Batch, Committed, Op, StoreError, Version, prefix_end};

/// What becomes of a physical key: a new version and its bytes, or nothing.
type Changes = BTreeMap<Vec<u8>, Option<(Version, Vec<u8>)>>;

/// Changes that become visible together; dropped without [`Writing::finish`] they never were.
///
/// There is one at a time.
pub struct Writing<'a> {
    disk: &'a Disk,
    copies: MutexGuard<'a, Copies>,
    changes: Changes,
}

impl Disk {
    /// Begins a change; waits for the one that is under way.
    pub fn write(&self) -> Result<Writing<'_>, StoreError> {
        self.usable()?;
        Ok(Writing { disk: self, copies: self.writer.lock(), changes: Changes::new() })
    }
}

/// The mark with who keeps the store.
const KEEPER: &[u8] = b"keeper";

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
            Some(found) if found == keeper.as_bytes() => Ok(()),
            Some(found) => {
                let found = String::from_utf8_lossy(&found).into_owned();
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
        if self.mark(KEEPER)?.is_none_or(|found| found != from.as_bytes()) {
            return Ok(false);
        }
        self.keep_for(to, marks)?;
        Ok(true)
    }

    fn keep_for(&self, keeper: &str, marks: &[(&[u8], &[u8])]) -> Result<(), StoreError> {
        let mut writing = self.write()?;
        writing.mark(KEEPER, Some(keeper.as_bytes()));
        for (name, bytes) in marks {
            writing.mark(name, Some(bytes));
        }
        writing.finish()?;
        self.sync()
    }
}

impl Writing<'_> {
    /// Adds a batch behind those that were added before, if all that it expects holds after them.
    ///
    /// An error concerns this batch alone: nothing of it was added.
    pub fn batch(&mut self, batch: &Batch) -> Result<Committed, StoreError> {
        let mut own = Changes::new();
        for (table, key, expect) in &batch.expect {
            let physical = layout::record_key(&batch.partition, *table, key);
            let current = self
                .version(&own, &physical)?
                .map_err(|reason| layout::corrupt(&batch.partition, *table, key, reason))?;
            if !expect.holds(current) {
                return Ok(Committed::Conflict { table: *table, key: key.clone() });
            }
        }
        for op in &batch.ops {
            match op {
                Op::Put { table, key, value } => {
                    let physical = layout::record_key(&batch.partition, *table, key);
                    let current = self
                        .version(&own, &physical)?
                        .map_err(|reason| layout::corrupt(&batch.partition, *table, key, reason))?;
                    let version = current.unwrap_or(0).saturating_add(1);
                    let sealed = layout::seal(&physical, version, value);
                    own.insert(physical, Some((version, sealed)));
                }
                Op::Delete { table, key } => {
                    own.insert(layout::record_key(&batch.partition, *table, key), None);
                }
                Op::DeletePartition => {
                    self.delete_prefix(&mut own, &layout::partition_prefix(&batch.partition))?;
                }
            }
        }
        self.changes.append(&mut own);
        Ok(Committed::Done)
    }

    /// Keeps something of the caller's own in the same atomic write; `None` forgets it.
    pub fn mark(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.changes.insert(layout::mark_key(name), value.map(|bytes| (0, bytes.to_vec())));
    }

    /// Writes all of it as one. It is visible afterwards, and durable after the next [`Disk::sync`].
    pub fn finish(mut self) -> Result<(), StoreError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let disk = self.disk;
        disk.guarded("a write", || {
            let tree = disk.tree.write();
            self.copies.save(&tree, self.changes.keys())?;
            let changes = std::mem::take(&mut self.changes);
            let mut batch = sled::Batch::default();
            for (key, change) in &changes {
                match change {
                    Some((_, bytes)) => batch.insert(&key[..], &bytes[..]),
                    None => batch.remove(&key[..]),
                }
            }
            tree.apply_batch(batch).map_err(|e| {
                let error = failed("write", e);
                // sled refuses all that follows a failed write, so say why rather than guess.
                disk.break_down(error.to_string());
                error
            })?;
            disk.kept.write(changes.iter().map(|(key, change)| {
                let change = change.as_ref();
                (&key[..], change.map(|(version, bytes)| (*version, layout::sealed_value(bytes))))
            }));
            Ok(())
        })
    }

    /// The version of a key after all that was added; the inner error says that its record is damaged.
    fn version(
        &self,
        own: &Changes,
        physical: &[u8],
    ) -> Result<Result<Option<Version>, &'static str>, StoreError> {
        if let Some(change) = own.get(physical).or_else(|| self.changes.get(physical)) {
            return Ok(Ok(change.as_ref().map(|(version, _)| *version)));
        }
        let found = self.disk.tree.read().get(physical).map_err(|e| failed("read", e))?;
        Ok(found.map(|bytes| layout::version(physical, &bytes)).transpose())
    }

    fn delete_prefix(&self, own: &mut Changes, prefix: &[u8]) -> Result<(), StoreError> {
        // No prefix of a partition is all 0xff: it starts with a letter.
        let end = prefix_end(prefix).unwrap_or_default();
        let inside = prefix.to_vec()..end;
        for change in own.range_mut(inside.clone()) {
            *change.1 = None;
        }
        for (key, _) in self.changes.range(inside) {
            own.insert(key.clone(), None);
        }
        for item in self.disk.tree.read().scan_prefix(prefix).keys() {
            own.insert(item.map_err(|e| failed("scan a partition", e))?.to_vec(), None);
        }
        Ok(())
    }
}
