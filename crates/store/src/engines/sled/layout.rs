//! How partitions, tables and keys become ordered bytes, and how a record guards itself against the disk.

use std::ops::Bound;

use super::layer::Rest;
use crate::engine::{Key, Partition, Range, Record, StoreError, Table, Version, is_log, prefix_end};

/// What a physical record starts with; another number is another layout.
pub(super) const FORMAT: u8 = 1;
/// What a block of records starts with, see `blocks`.
pub(super) const BLOCK: u8 = 2;
/// What the place of a block in a segment starts with, see `segments`.
pub(super) const PLACE: u8 = 3;
/// What the keys of marks start with, in the place of a partition.
pub(super) const MARKS: &[u8] = b"\0";
/// Format, version, checksum of both and of the key, checksum of the value.
pub(super) const HEADER: usize = 1 + 8 + 4 + 4;

/// Keys that belong to the engine's user rather than to a partition sort before all partitions.
pub(super) fn mark_key(name: &[u8]) -> Vec<u8> {
    [MARKS, name].concat()
}

/// What all keys of a partition start with. The length in front of the name keeps `a@h` and `a@host` apart.
pub(super) fn partition_prefix(partition: &Partition) -> Vec<u8> {
    let kind = match partition {
        Partition::Account(_) => b'a',
        Partition::Host(_) => b'h',
        Partition::Room(_) => b'r',
    };
    let name = partition.name().as_bytes();
    // Bounded by `PARTITION_NAME_MAX`, which fits 16 bits.
    let length = (name.len() as u16).to_be_bytes();
    let mut bytes = Vec::with_capacity(64 + name.len());
    bytes.push(kind);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(name);
    bytes
}

/// What follows the partition's part in all keys of a table.
pub(super) fn table_start(table: Table) -> Vec<u8> {
    record_rest(table, b"")
}

/// What follows the partition's part in the key of a record.
pub(super) fn record_rest(table: Table, key: &[u8]) -> Vec<u8> {
    rest(table, key).into_vec()
}

/// As [`record_rest`], as layers have it.
pub(super) fn rest(table: Table, key: &[u8]) -> Rest {
    let mut bytes = Rest::new();
    // Bounded by `TABLE_NAME_MAX`, which fits 8 bits.
    bytes.push(table.0.len() as u8);
    bytes.extend_from_slice(table.0.as_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// Where the part of a physical key ends that its partition shares, or that all marks share.
pub(super) fn partition_end(key: &[u8]) -> Option<usize> {
    let [b'a' | b'h' | b'r', high, low, ..] = key else {
        return key.starts_with(MARKS).then_some(MARKS.len());
    };
    let end = 3 + usize::from(u16::from_be_bytes([*high, *low]));
    (end <= key.len()).then_some(end)
}

/// Where the name of the table ends in what follows the partition's part of a physical key.
pub(super) fn table_end(rest: &[u8]) -> Option<usize> {
    let end = 1 + usize::from(*rest.first()?);
    (end <= rest.len()).then_some(end)
}

/// Whether a key belongs to a log table.
pub(super) fn is_in_log(prefix: &[u8], rest: &[u8]) -> bool {
    let name = table_end(rest).and_then(|end| rest.get(1..end));
    prefix != MARKS && name.and_then(|name| std::str::from_utf8(name).ok()).is_some_and(is_log)
}

/// The record inside bytes that [`seal`] has just made.
pub(super) fn sealed(bytes: &[u8]) -> (Version, &[u8]) {
    let version = bytes.get(1..9).and_then(|version| version.try_into().ok());
    (version.map_or(0, Version::from_le_bytes), bytes.get(HEADER..).unwrap_or_default())
}

/// The bounds of a range inside the order of physical keys.
pub(super) fn bounds(prefix: &[u8], range: &Range) -> (Bound<Key>, Bound<Key>) {
    let under = |key: &Key| [prefix, key].concat();
    let from = match &range.from {
        Bound::Unbounded => Bound::Included(prefix.to_vec()),
        Bound::Included(key) => Bound::Included(under(key)),
        Bound::Excluded(key) => Bound::Excluded(under(key)),
    };
    let to = match &range.to {
        Bound::Unbounded => prefix_end(prefix).map_or(Bound::Unbounded, Bound::Excluded),
        Bound::Included(key) => Bound::Included(under(key)),
        Bound::Excluded(key) => Bound::Excluded(under(key)),
    };
    (from, to)
}

/// The bytes of a record under a key, which is that of its partition and the rest. The version has a checksum of its
/// own, so that a damaged value can still be overwritten with the version that every replica expects.
pub(super) fn seal(prefix: &[u8], rest: &[u8], version: Version, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + value.len());
    seal_into(&mut bytes, prefix, rest, version, value);
    bytes
}

/// As [`seal`], behind what is there.
pub(super) fn seal_into(out: &mut Vec<u8>, prefix: &[u8], rest: &[u8], version: Version, value: &[u8]) {
    let mut head = [FORMAT; 9];
    head[1..].copy_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(&head_sum(prefix, rest, &head).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(value).to_le_bytes());
    out.extend_from_slice(value);
}

/// The version of a record, whatever became of its value.
pub(super) fn version(prefix: &[u8], rest: &[u8], bytes: &[u8]) -> Result<Version, &'static str> {
    let Some((head, _)) = bytes.split_at_checked(HEADER) else {
        return Err("record is too short");
    };
    if head[0] != FORMAT {
        return Err("record has an unknown format");
    }
    if head[9..13] != head_sum(prefix, rest, &head[..9]).to_le_bytes() {
        return Err("checksum of the head does not match");
    }
    let mut version = [0; 8];
    version.copy_from_slice(&head[1..9]);
    Ok(Version::from_le_bytes(version))
}

/// The record inside the bytes, if both checksums match.
pub(super) fn open(prefix: &[u8], rest: &[u8], mut bytes: Vec<u8>) -> Result<Record, &'static str> {
    let version = version(prefix, rest, &bytes)?;
    let (head, value) = bytes.split_at(HEADER);
    if head[13..17] != crc32fast::hash(value).to_le_bytes() {
        return Err("checksum of the value does not match");
    }
    bytes.drain(..HEADER);
    Ok(Record { version, value: bytes })
}

fn head_sum(prefix: &[u8], rest: &[u8], head: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(prefix);
    sum.update(rest);
    sum.update(head);
    sum.finalize()
}

pub(super) fn corrupt(partition: &Partition, table: Table, key: &[u8], reason: &str) -> StoreError {
    StoreError::Corrupt {
        partition: partition.clone(),
        table: table.0.to_owned(),
        key: key.to_vec(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let sealed = seal(b"k", b"ey", 7, b"value");
        assert_eq!(
            open(b"ke", b"y", sealed.clone()).unwrap(),
            Record { version: 7, value: b"value".to_vec() }
        );
        for bit in 0..sealed.len() * 8 {
            let mut torn = sealed.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(open(b"k", b"ey", torn).is_err(), "bit {bit}");
        }
        assert!(open(b"other", b"", sealed.clone()).is_err(), "a record under another key");
        assert!(open(b"key", b"", sealed[..10].to_vec()).is_err());
    }

    #[test]
    fn the_bytes_of_format_1_stay_readable() {
        let bytes = [1, 2, 0, 0, 0, 0, 0, 0, 0, 0xcf, 0x84, 0xd3, 0x9f, 0x43, 0xbe, 0xb7, 0xe8, b'a'];
        assert_eq!(seal(b"k", b"", 2, b"a"), bytes);
    }

    #[test]
    fn a_damaged_value_keeps_its_version() {
        let mut sealed = seal(b"k", b"ey", 7, b"value");
        sealed[HEADER] ^= 1;
        assert_eq!(version(b"key", b"", &sealed), Ok(7));
    }

    #[test]
    fn no_partition_or_table_is_the_prefix_of_another() {
        let table_prefix =
            |partition: &Partition, table| [partition_prefix(partition), table_start(table)].concat();
        let a = table_prefix(&Partition::Account("a@h".into()), Table("t"));
        for (partition, table) in [
            (Partition::Account("a@host".into()), "t"),
            (Partition::Account("a@h".into()), "tt"),
            (Partition::Room("a@h".into()), "t"),
        ] {
            let b = table_prefix(&partition, Table(table));
            assert!(!a.starts_with(&b) && !b.starts_with(&a));
        }
    }
}
