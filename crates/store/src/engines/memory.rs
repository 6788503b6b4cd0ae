//! The engine of tests: a map behind a lock, gone with the process.

use std::{collections::BTreeMap, ops::Bound, sync::Arc, time::Instant};

use parking_lot::RwLock;

use crate::engine::{
    Batch, BoxFuture, Committed, Engine, Key, Op, Partition, Range, Record, StoreError, Table, Version,
    check_key, check_partition,
};

type Tables = BTreeMap<Table, BTreeMap<Key, Record>>;

/// Records in memory.
#[derive(Debug, Default)]
pub struct Memory {
    partitions: RwLock<BTreeMap<Partition, Tables>>,
}

impl Memory {
    pub fn new() -> Memory {
        Memory::default()
    }

    fn read(&self, partition: &Partition, table: Table, key: &[u8]) -> Result<Option<Record>, StoreError> {
        check_partition(partition)?;
        check_key(table, key)?;
        let partitions = self.partitions.read();
        Ok(partitions.get(partition).and_then(|tables| tables.get(&table)?.get(key)).cloned())
    }

    fn read_range(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        check_partition(partition)?;
        check_key(table, &[])?;
        let partitions = self.partitions.read();
        let Some(records) = partitions.get(partition).and_then(|tables| tables.get(&table)) else {
            return Ok(Vec::new());
        };
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let limit = range.limit.min(Range::LIMIT_MAX);
        let bounds: (Bound<Key>, Bound<Key>) = (range.from, range.to);
        let copy = |(key, record): (&Key, &Record)| (key.clone(), record.clone());
        let visit = records.range(bounds);
        Ok(if range.reverse {
            visit.rev().take(limit).map(copy).collect()
        } else {
            visit.take(limit).map(copy).collect()
        })
    }

    fn write(&self, batches: Vec<Batch>) -> Result<Vec<Committed>, StoreError> {
        for batch in &batches {
            batch.check()?;
        }
        let mut partitions = self.partitions.write();
        Ok(batches.into_iter().map(|batch| apply(&mut partitions, batch)).collect())
    }
}

fn apply(partitions: &mut BTreeMap<Partition, Tables>, batch: Batch) -> Committed {
    let version = |table: &Table, key: &Key| -> Option<Version> {
        Some(partitions.get(&batch.partition)?.get(table)?.get(key)?.version)
    };
    for (table, key, expect) in &batch.expect {
        if !expect.holds(version(table, key)) {
            return Committed::Conflict { table: *table, key: key.clone() };
        }
    }
    let tables = partitions.entry(batch.partition.clone()).or_default();
    for op in Arc::unwrap_or_clone(batch.ops) {
        match op {
            Op::Put { table, key, value } => {
                let record = tables
                    .entry(table)
                    .or_default()
                    .entry(key)
                    .or_insert(Record { version: 0, value: vec![] });
                record.version = if table.is_unversioned() { 1 } else { record.version + 1 };
                record.value = value;
            }
            Op::Delete { table, key } => {
                if let Some(records) = tables.get_mut(&table) {
                    records.remove(&key);
                }
            }
            Op::DeletePartition => tables.clear(),
        }
    }
    if tables.is_empty() {
        partitions.remove(&batch.partition);
    }
    Committed::Done
}

impl Engine for Memory {
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let found = self.read(partition, table, key);
        Box::pin(async move { found })
    }

    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>> {
        let found = self.read_range(partition, table, range);
        Box::pin(async move { found })
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        Box::pin(async move { self.write(batches) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn memory_keeps_every_promise() {
        crate::conformance::all(&[Arc::new(Memory::new())]).await;
    }
}
