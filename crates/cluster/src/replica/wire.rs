//! Values of the store as messages of `proto/store.proto`, and back, with nothing believed unseen.

use std::{
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;
use proto::store as wire;
use store::{Batch, Committed, Expect, Key, Op, Partition, Range, Record, StoreError, Table};

/// Version of the meaning of a command in the log.
pub(super) const FORMAT: u32 = 1;
/// Distinct table names that are believed when they come from another node.
const TABLES_MAX: usize = 4096;
/// The largest message of the service, in bytes.
pub(super) const MESSAGE_MAX: usize = 64 * 1024 * 1024;
/// The longest time that an asker may claim to wait.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// A message that no version of the server writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

impl From<Malformed> for StoreError {
    fn from(malformed: Malformed) -> StoreError {
        StoreError::Engine { reason: format!("malformed message: {}", malformed.0) }
    }
}

pub(super) fn partition(p: &Partition) -> wire::Partition {
    let kind = match p {
        Partition::Account(_) => wire::PartitionKind::Account,
        Partition::Room(_) => wire::PartitionKind::Room,
        Partition::Host(_) => wire::PartitionKind::Host,
    };
    wire::Partition { kind: kind.into(), name: p.name().to_owned() }
}

pub(super) fn read_partition(p: Option<wire::Partition>) -> Result<Partition, Malformed> {
    let p = p.ok_or(Malformed("no partition"))?;
    let name = p.name.as_str().into();
    match wire::PartitionKind::try_from(p.kind) {
        Ok(wire::PartitionKind::Account) => Ok(Partition::Account(name)),
        Ok(wire::PartitionKind::Room) => Ok(Partition::Room(name)),
        Ok(wire::PartitionKind::Host) => Ok(Partition::Host(name)),
        Ok(wire::PartitionKind::Unspecified) | Err(_) => Err(Malformed("unknown kind of partition")),
    }
}

/// The table of a name that another node sent.
pub(super) fn read_table(name: &str) -> Result<Table, Malformed> {
    Table::named(name).ok_or(Malformed("not a table's name"))
}

/// Refuses names beyond what any version of the server uses, before they are kept for good.
pub(super) fn check_tables<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), Malformed> {
    for name in names {
        Table::bounded(name, TABLES_MAX).ok_or(Malformed("not a table's name, or too many tables"))?;
    }
    Ok(())
}

/// All table names of a command.
pub(super) fn tables(command: &wire::Command) -> impl Iterator<Item = &str> {
    command.batches.iter().flat_map(|batch| {
        let expected = batch.expect.iter().map(|e| e.table.as_str());
        let changed = batch.changes.iter().filter_map(|change| match &change.what {
            Some(wire::change::What::Put(put)) => Some(put.table.as_str()),
            Some(wire::change::What::Delete(delete)) => Some(delete.table.as_str()),
            Some(wire::change::What::DeletePartition(_)) | None => None,
        });
        expected.chain(changed)
    })
}

pub(super) fn batch(batch: Batch) -> wire::Batch {
    let expect = batch.expect.into_iter().map(|(table, key, expect)| wire::Expectation {
        table: table.0.to_owned(),
        key: key.into(),
        state: match expect {
            Expect::Absent => Some(wire::expectation::State::Absent(true)),
            Expect::Version(version) => Some(wire::expectation::State::Version(version)),
            Expect::Present => Some(wire::expectation::State::Present(true)),
            Expect::Any => None,
        },
    });
    let changes = Arc::unwrap_or_clone(batch.ops).into_iter().map(|op| {
        let what = match op {
            Op::Put { table, key, value } => wire::change::What::Put(wire::Put {
                table: table.0.to_owned(),
                key: key.into(),
                value: value.into(),
            }),
            Op::Delete { table, key } => {
                wire::change::What::Delete(wire::Delete { table: table.0.to_owned(), key: key.into() })
            }
            Op::DeletePartition => wire::change::What::DeletePartition(wire::DeletePartition {}),
        };
        wire::Change { what: Some(what) }
    });
    wire::Batch {
        partition: Some(partition(&batch.partition)),
        expect: expect.collect(),
        changes: changes.collect(),
    }
}

pub(super) fn read_batch(batch: wire::Batch) -> Result<Batch, Malformed> {
    let mut read = Batch::new(read_partition(batch.partition)?);
    for e in batch.expect {
        let expect = match e.state {
            Some(wire::expectation::State::Absent(_)) => Expect::Absent,
            Some(wire::expectation::State::Version(version)) => Expect::Version(version),
            Some(wire::expectation::State::Present(_)) => Expect::Present,
            None => Expect::Any,
        };
        read.expect.push((read_table(&e.table)?, e.key.into(), expect));
    }
    for change in batch.changes {
        read.push(match change.what.ok_or(Malformed("empty change"))? {
            wire::change::What::Put(put) => {
                Op::Put { table: read_table(&put.table)?, key: put.key.into(), value: put.value.into() }
            }
            wire::change::What::Delete(delete) => {
                Op::Delete { table: read_table(&delete.table)?, key: delete.key.into() }
            }
            wire::change::What::DeletePartition(_) => Op::DeletePartition,
        });
    }
    Ok(read)
}

pub(super) fn command(id: u128, batches: Vec<Batch>) -> wire::Command {
    wire::Command {
        format: FORMAT,
        id: Bytes::copy_from_slice(&id.to_be_bytes()),
        batches: batches.into_iter().map(batch).collect(),
    }
}

pub(super) fn read_id(id: &[u8]) -> Result<u128, Malformed> {
    let id = id.try_into().map_err(|_| Malformed("an id has 16 bytes"))?;
    Ok(u128::from_be_bytes(id))
}

pub(super) fn commit_reply(result: Result<Vec<Committed>, StoreError>) -> wire::CommitReply {
    match result {
        Err(e) => wire::CommitReply { outcomes: Vec::new(), failure: Some(failure(e)) },
        Ok(outcomes) => {
            let outcomes = outcomes.into_iter().map(|outcome| wire::Outcome {
                conflict: match outcome {
                    Committed::Done => None,
                    Committed::Conflict { table, key } => {
                        Some(wire::Conflict { table: table.0.to_owned(), key: key.into() })
                    }
                },
            });
            wire::CommitReply { outcomes: outcomes.collect(), failure: None }
        }
    }
}

pub(super) fn read_commit_reply(reply: wire::CommitReply) -> Result<Vec<Committed>, StoreError> {
    if let Some(failure) = reply.failure {
        return Err(read_failure(failure));
    }
    let outcome = |outcome: wire::Outcome| match outcome.conflict {
        None => Ok(Committed::Done),
        Some(c) => Ok(Committed::Conflict { table: read_table(&c.table)?, key: c.key.into() }),
    };
    reply.outcomes.into_iter().map(outcome).collect()
}

pub(super) fn record(record: Record) -> wire::Record {
    wire::Record { version: record.version, value: record.value.into() }
}

pub(super) fn read_record(record: wire::Record) -> Record {
    Record { version: record.version, value: record.value.into() }
}

pub(super) fn get_reply(result: Result<Option<Record>, StoreError>) -> wire::GetReply {
    match result {
        Ok(found) => wire::GetReply { record: found.map(record), failure: None },
        Err(e) => wire::GetReply { record: None, failure: Some(failure(e)) },
    }
}

pub(super) fn read_get_reply(reply: wire::GetReply) -> Result<Option<Record>, StoreError> {
    match reply.failure {
        Some(failure) => Err(read_failure(failure)),
        None => Ok(reply.record.map(read_record)),
    }
}

pub(super) fn scan_reply(result: Result<Vec<(Key, Record)>, StoreError>) -> wire::ScanReply {
    match result {
        Ok(found) => {
            let entry = |(key, r): (Key, Record)| wire::Entry { key: key.into(), record: Some(record(r)) };
            wire::ScanReply { entries: found.into_iter().map(entry).collect(), failure: None }
        }
        Err(e) => wire::ScanReply { entries: Vec::new(), failure: Some(failure(e)) },
    }
}

pub(super) fn read_scan_reply(reply: wire::ScanReply) -> Result<Vec<(Key, Record)>, StoreError> {
    if let Some(failure) = reply.failure {
        return Err(read_failure(failure));
    }
    let entry = |entry: wire::Entry| {
        let record = entry.record.ok_or(Malformed("entry without a record"))?;
        Ok((entry.key.into(), read_record(record)))
    };
    reply.entries.into_iter().map(entry).collect()
}

pub(super) fn bound(bound: Bound<Key>) -> Option<wire::Bound> {
    let end = match bound {
        Bound::Unbounded => return None,
        Bound::Included(key) => wire::bound::End::Included(key.into()),
        Bound::Excluded(key) => wire::bound::End::Excluded(key.into()),
    };
    Some(wire::Bound { end: Some(end) })
}

pub(super) fn read_range(request: &wire::ScanRequest) -> Range {
    let read = |bound: &Option<wire::Bound>| match bound.as_ref().and_then(|b| b.end.clone()) {
        None => Bound::Unbounded,
        Some(wire::bound::End::Included(key)) => Bound::Included(key.into()),
        Some(wire::bound::End::Excluded(key)) => Bound::Excluded(key.into()),
    };
    Range { from: read(&request.from), to: read(&request.to), reverse: request.reverse, limit: 0 }
        .limit(request.limit as usize)
}

pub(super) fn failure(error: StoreError) -> wire::Failure {
    use wire::FailureKind as Kind;
    let mut failure = wire::Failure::default();
    let (kind, reason) = match error {
        StoreError::Unavailable { reason } => (Kind::Unavailable, reason),
        StoreError::Deadline => (Kind::Deadline, String::new()),
        StoreError::Full => (Kind::Full, String::new()),
        StoreError::Corrupt { partition: at, table, key, reason } => {
            failure.partition = Some(partition(&at));
            failure.table = table;
            failure.key = key.into();
            (Kind::Corrupt, reason)
        }
        StoreError::TooLarge { what, max } => {
            failure.max = max as u64;
            (Kind::TooLarge, what.to_owned())
        }
        // Both are made above the engines.
        StoreError::Contended { .. } | StoreError::Gone { .. } => (Kind::Engine, error.to_string()),
        StoreError::Engine { reason } => (Kind::Engine, reason),
    };
    failure.kind = kind.into();
    failure.reason = reason;
    failure
}

pub(super) fn read_failure(failure: wire::Failure) -> StoreError {
    use wire::FailureKind as Kind;
    let reason = failure.reason;
    match Kind::try_from(failure.kind) {
        Ok(Kind::Unavailable) => StoreError::Unavailable { reason },
        Ok(Kind::Deadline) => StoreError::Deadline,
        Ok(Kind::Full) => StoreError::Full,
        Ok(Kind::Corrupt) => match read_partition(failure.partition) {
            Ok(partition) => {
                StoreError::Corrupt { partition, table: failure.table, key: failure.key.into(), reason }
            }
            Err(_) => StoreError::Engine { reason },
        },
        Ok(Kind::TooLarge) => {
            // The words are for people, and the error wants them for the life of the process.
            let what = ["value", "key", "table name", "partition name", "operations in a batch", "commit"];
            let what = what.into_iter().find(|known| *known == reason).unwrap_or("request");
            StoreError::TooLarge { what, max: usize::try_from(failure.max).unwrap_or(usize::MAX) }
        }
        Ok(Kind::Engine | Kind::Unspecified) | Err(_) => StoreError::Engine { reason },
    }
}

/// Reads bytes as each of the messages that come from the log and from other nodes.
pub(crate) fn read_messages(body: &[u8]) {
    if let Ok(command) = wire::Command::decode(body)
        && check_tables(tables(&command)).is_ok()
    {
        let _ = read_id(&command.id);
        for batch in command.batches {
            let _ = read_batch(batch).map(|batch| batch.check());
        }
    }
    let _ = wire::GetReply::decode(body).map(read_get_reply);
    let _ = wire::ScanReply::decode(body).map(read_scan_reply);
    let _ = wire::ScanRequest::decode(body).map(|request| read_range(&request));
    if let Ok(reply) = wire::CommitReply::decode(body) {
        let conflicts = reply.outcomes.iter().filter_map(|outcome| outcome.conflict.as_ref());
        if check_tables(conflicts.map(|conflict| conflict.table.as_str())).is_ok() {
            let _ = read_commit_reply(reply);
        }
    }
}

/// Refuses bytes that are no command of the format that is known here, with batches that can be written. One of a
/// greater format would stop every backend that does not know it.
pub(super) fn check_command(bytes: &[u8]) -> Result<(), StoreError> {
    let command = wire::Command::decode(bytes).map_err(|_| Malformed("not a command"))?;
    if command.format != FORMAT {
        return Err(Malformed("unknown format of a command").into());
    }
    check_tables(tables(&command))?;
    read_id(&command.id)?;
    command.batches.into_iter().try_for_each(|batch| read_batch(batch)?.check())
}

/// Milliseconds from now to the deadline.
pub(super) fn timeout_ms(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}

/// The deadline of an asker who waits so long.
pub(super) fn read_timeout(timeout_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(timeout_ms).min(TIMEOUT_MAX)
}
