//! Records of one log table in memory, as one piece of bytes with a list of where they are.
//!
//! Most of what is written to a log comes nearly in order and is not read before it is on the disk: it costs little more
//! here than to copy it. An item is the length of its key without the table, that key, the length of its sealed bytes,
//! and those.

use std::{
    cmp::Ordering,
    ops::{Bound, Range},
};

use super::layer::Rest;

/// What an item costs beside its key and its bytes.
pub(super) const ITEM_HEADER: usize = 2 + 4;
/// A run takes no more beyond this, in bytes: places in it are 32 bits wide.
const RUN_MAX: usize = 1 << 31;
/// A record that belongs before more than so many others is not taken: all of them move in the list.
const MOVED_MAX: usize = 4096;

/// Takes an item from the front: its key without the table, its sealed bytes, and what is behind it.
pub(super) fn split_item(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (length, more) = bytes.split_first_chunk()?;
    let (key, more) = more.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let (length, more) = more.split_first_chunk()?;
    let (sealed, more) = more.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    Some((key, sealed, more))
}

/// Adds an item; `seal` adds its sealed bytes.
pub(super) fn push_item(out: &mut Vec<u8>, key: &[u8], seal: impl FnOnce(&mut Vec<u8>)) {
    // Keys and values are bounded far below by the engine.
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.extend_from_slice(key);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    seal(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// What the keys start with, behind the partition.
    table: Rest,
    /// The items in the order in which they came, with those that were overwritten.
    bytes: Vec<u8>,
    /// Where each item begins, in the order of their keys.
    starts: Vec<u32>,
}

impl Run {
    pub(super) fn new(table: &[u8]) -> Run {
        Run { table: Rest::from_slice(table), bytes: Vec::new(), starts: Vec::new() }
    }

    /// Makes room for records of so many bytes in all.
    pub(super) fn reserve(&mut self, records: usize, bytes: usize) {
        self.starts.reserve(records);
        self.bytes.reserve(bytes);
    }

    /// Reads items of a table as they came; `None`: they are damaged.
    pub(super) fn read(table: &[u8], bytes: &[u8]) -> Option<Run> {
        let mut run = Run { bytes: bytes.to_vec(), ..Run::new(table) };
        let mut left = bytes;
        while !left.is_empty() {
            let (key, _, more) = split_item(left)?;
            let start = u32::try_from(bytes.len() - left.len()).ok()?;
            let place = run.place(key);
            run.begin_at(place, start);
            left = more;
        }
        Some(run)
    }

    pub(super) fn table(&self) -> &[u8] {
        &self.table
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.starts.len()
    }

    /// About what it takes in memory.
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + self.starts.len() * size_of::<u32>()
    }

    /// The key of an item without the table, and its sealed bytes.
    pub(super) fn item(&self, number: usize) -> (&[u8], &[u8]) {
        let start = self.starts.get(number).map_or(self.bytes.len(), |start| *start as usize);
        split_item(&self.bytes[start..]).map_or((&[], &[]), |(key, sealed, _)| (key, sealed))
    }

    /// As [`Run::item`], with the table.
    pub(super) fn record(&self, number: usize) -> (Rest, &[u8]) {
        let (key, sealed) = self.item(number);
        // A clone would go byte by byte.
        let mut rest = Rest::from_slice(&self.table);
        rest.extend_from_slice(key);
        (rest, sealed)
    }

    fn compare(&self, number: usize, other: &[u8]) -> Ordering {
        match other.strip_prefix(&self.table[..]) {
            Some(key) => self.item(number).0.cmp(key),
            None => self.table[..].cmp(other),
        }
    }

    /// Where a record belongs by its key without the table, and whether there is one with it.
    fn place(&self, key: &[u8]) -> (usize, bool) {
        let is_before = |number: usize| self.item(number).0 < key;
        // What is new is nearly always behind all that is there.
        if self.starts.is_empty() || is_before(self.len() - 1) {
            return (self.len(), false);
        }
        let number = self.starts_before(is_before);
        (number, self.item(number).0 == key)
    }

    fn begin_at(&mut self, (number, is_there): (usize, bool), start: u32) {
        if is_there { self.starts[number] = start } else { self.starts.insert(number, start) }
    }

    /// Takes a record; whether it does. `seal` adds its sealed bytes.
    pub(super) fn put(&mut self, rest: &[u8], seal: impl FnOnce(&mut Vec<u8>)) -> bool {
        let key = &rest[self.table.len()..];
        let place = self.place(key);
        if self.bytes.len() > RUN_MAX || self.len() - place.0 > MOVED_MAX {
            return false;
        }
        self.begin_at(place, self.bytes.len() as u32);
        push_item(&mut self.bytes, key, seal);
        true
    }

    /// Takes all of another one of the same table, if all of that is behind; whether it does.
    pub(super) fn absorb(&mut self, later: &Run) -> bool {
        let is_behind = later.starts.is_empty() || self.place(later.item(0).0).0 == self.len();
        if !is_behind || self.bytes.len() + later.bytes.len() > RUN_MAX {
            return false;
        }
        let at = self.bytes.len() as u32;
        self.starts.extend(later.starts.iter().map(|start| at + start));
        self.bytes.extend_from_slice(&later.bytes);
        true
    }

    /// The sealed bytes of a record.
    pub(super) fn get(&self, rest: &[u8]) -> Option<&[u8]> {
        let (number, is_there) = self.place(rest.strip_prefix(&self.table[..])?);
        is_there.then(|| self.item(number).1)
    }

    /// The numbers of the items between bounds.
    pub(super) fn range(&self, bounds: (Bound<&[u8]>, Bound<&[u8]>)) -> Range<usize> {
        let from = match bounds.0 {
            Bound::Unbounded => 0,
            Bound::Included(from) => self.starts_before(|n| self.compare(n, from).is_lt()),
            Bound::Excluded(from) => self.starts_before(|n| self.compare(n, from).is_le()),
        };
        let to = match bounds.1 {
            Bound::Unbounded => self.len(),
            Bound::Included(to) => self.starts_before(|n| self.compare(n, to).is_le()),
            Bound::Excluded(to) => self.starts_before(|n| self.compare(n, to).is_lt()),
        };
        from..to.max(from)
    }

    /// How many items are before the first one of which `is_before` is not true.
    fn starts_before(&self, is_before: impl Fn(usize) -> bool) -> usize {
        let (mut from, mut to) = (0, self.len());
        while from < to {
            let middle = from.midpoint(to);
            if is_before(middle) { from = middle + 1 } else { to = middle }
        }
        from
    }
}
