//! Many records of one log table as one record of sled: what is small and written once costs little there.
//!
//! A block stands under the key of its first record and ends before the next key of sled. A record by itself is as
//! good: stores of earlier versions have only those.

use std::ops::Bound;

use super::{disk::Fault, layer::Bounds, layout};
use crate::engine::{Key, prefix_end};

/// The most bytes of a block, but for a single larger record: sled keeps 16 on a page, and writes pages anew.
const BLOCK_BYTES: usize = 6 * 1024;
/// A block that is smaller takes what comes behind it; a larger one is left as it is.
const FULL_BYTES: usize = 2 * 1024;
/// What a record costs in a block beside its key and its bytes.
const ITEM_HEADER: usize = 2 + 4;

/// The sealed bytes of records by what follows the partition in their keys, in order.
pub(super) type Items = Vec<(Key, Vec<u8>)>;

/// Reads what sled has under a key; the key is without its partition.
pub(super) fn read(rest: &[u8], bytes: &[u8]) -> Result<Items, &'static str> {
    const CUT: &str = "block of records is damaged";
    let Some((&layout::BLOCK, mut left)) = bytes.split_first() else {
        return Ok(vec![(rest.to_vec(), bytes.to_vec())]);
    };
    let table = layout::table_end(rest).ok_or(CUT)?;
    let mut items = Items::new();
    while !left.is_empty() {
        let (key_length, more) = left.split_first_chunk().ok_or(CUT)?;
        let (key, more) = more.split_at_checked(usize::from(u16::from_le_bytes(*key_length))).ok_or(CUT)?;
        let (length, more) = more.split_first_chunk().ok_or(CUT)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| CUT)?;
        let (sealed, more) = more.split_at_checked(length).ok_or(CUT)?;
        let key = [&rest[..table], key].concat();
        if items.last().is_some_and(|(last, _)| *last >= key) {
            return Err(CUT);
        }
        items.push((key, sealed.to_vec()));
        left = more;
    }
    if items.first().is_none_or(|(first, _)| first != rest) {
        return Err(CUT);
    }
    Ok(items)
}

/// A block as it is filled.
#[derive(Default)]
pub(super) struct Block {
    first: Key,
    bytes: Vec<u8>,
    count: usize,
    /// Where the sealed bytes of the first record begin.
    sealed: usize,
}

impl Block {
    /// Takes a record behind those that are there; gives the bytes of a block that is full without it.
    pub(super) fn push(&mut self, rest: &[u8], sealed: &[u8]) -> Option<(Key, Vec<u8>)> {
        let key = &rest[layout::table_end(rest).unwrap_or(0)..];
        let more = ITEM_HEADER + key.len() + sealed.len();
        let full = if self.bytes.len() + more > BLOCK_BYTES { self.take() } else { None };
        if self.count == 0 {
            self.first = rest.to_vec();
            self.bytes.reserve(1 + more);
            self.bytes.push(layout::BLOCK);
        }
        // Keys and values are bounded far below by the engine.
        self.bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        if self.count == 0 {
            self.sealed = self.bytes.len();
        }
        self.bytes.extend_from_slice(sealed);
        self.count += 1;
        full
    }

    /// The key of what was taken and the bytes that belong there.
    pub(super) fn take(&mut self) -> Option<(Key, Vec<u8>)> {
        let Block { first, mut bytes, count, sealed } = std::mem::take(self);
        if count == 1 {
            bytes.drain(..sealed);
        }
        (count > 0).then_some((first, bytes))
    }
}

/// Where in sled a record of a log table is, if it is there.
pub(super) struct Place {
    /// What sled has there: the key without its partition, and the bytes.
    pub(super) at: Option<(Key, sled::IVec)>,
    /// The key of what sled has next; the end of the table if that is the last one.
    pub(super) next: Key,
}

/// Finds where a record of a log table is or belongs.
pub(super) fn place(tree: &sled::Tree, prefix: &[u8], rest: &[u8]) -> Result<Place, Fault> {
    let table = &rest[..layout::table_end(rest).unwrap_or(0)];
    let (start, wanted) = ([prefix, table].concat(), [prefix, rest].concat());
    // No table's start is all 0xff: it begins with a length.
    let end = prefix_end(table).unwrap_or_default();
    let before = tree.range(start..=wanted.clone()).next_back().transpose()?;
    let after =
        tree.range((Bound::Excluded(wanted), Bound::Excluded([prefix, &end].concat()))).next().transpose()?;
    Ok(Place {
        at: before.map(|(key, bytes)| (key[prefix.len()..].to_vec(), bytes)),
        next: after.map_or(end, |(key, _)| key[prefix.len()..].to_vec()),
    })
}

/// The sealed bytes of a record of a log table, and keys around it of which sled has no other one: the first of them and
/// the one behind the last.
pub(super) type Found = (Option<Vec<u8>>, (Key, Key));

/// Looks for a record of a log table.
pub(super) fn find(tree: &sled::Tree, prefix: &[u8], rest: &[u8]) -> Result<Found, Fault> {
    let place = place(tree, prefix, rest)?;
    let table = layout::table_end(rest).unwrap_or(0);
    let (mut from, mut to) = (rest[..table].to_vec(), place.next);
    let Some((key, bytes)) = place.at else { return Ok((None, (from, to))) };
    for (key, sealed) in read(&key, &bytes).map_err(|reason| Fault::Block(key.clone(), reason))? {
        match key.as_slice().cmp(rest) {
            std::cmp::Ordering::Less => {
                from = key;
                // The first key behind it.
                from.push(0);
            }
            std::cmp::Ordering::Equal => return Ok((Some(sealed), (rest.to_vec(), rest.to_vec()))),
            std::cmp::Ordering::Greater => {
                to = key;
                break;
            }
        }
    }
    Ok((None, (from, to)))
}

/// Changes of sled that put these changes of one log table into their blocks, in order; at most about `budget` bytes of
/// them. Gives the key behind the last that was taken, unless all were.
pub(super) fn merge<'a>(
    tree: &sled::Tree,
    prefix: &[u8],
    changes: impl Iterator<Item = (&'a [u8], Option<&'a Vec<u8>>)>,
    mut budget: usize,
    batch: &mut sled::Batch,
) -> Result<Option<Key>, Fault> {
    let mut changes = changes.peekable();
    while let Some((first, _)) = changes.peek() {
        if budget == 0 {
            return Ok(Some(first.to_vec()));
        }
        let place = place(tree, prefix, first)?;
        let mut run = Vec::new();
        while let Some((key, change)) = changes.next_if(|(key, _)| *key < &place.next[..] && budget > 0) {
            budget = budget.saturating_sub(key.len() + change.map_or(0, Vec::len) + ITEM_HEADER);
            run.push((key, change));
        }
        merge_run(prefix, place.at, run, batch);
    }
    Ok(None)
}

fn merge_run(
    prefix: &[u8],
    at: Option<(Key, sled::IVec)>,
    run: Vec<(&[u8], Option<&Vec<u8>>)>,
    batch: &mut sled::Batch,
) {
    let mut block = Block::default();
    let mut there = Items::new();
    let mut old = None;
    // One that is damaged is left for its readers to tell of.
    if let Some((key, bytes)) = at
        && let Ok(items) = read(&key, &bytes)
    {
        let is_behind =
            items.last().zip(run.first()).is_some_and(|((last, _), (first, _))| &last[..] < *first);
        if !is_behind || bytes.len() < FULL_BYTES {
            (there, old) = (items, Some(key));
        }
    }
    let mut put = |(rest, bytes): (Key, Vec<u8>)| {
        if old.as_ref() == Some(&rest) {
            old = None;
        }
        batch.insert([prefix, &rest].concat(), bytes);
    };
    let mut there = there.into_iter().peekable();
    for (key, change) in run {
        while let Some((rest, sealed)) = there.next_if(|(rest, _)| &rest[..] < key) {
            block.push(&rest, &sealed).map(&mut put);
        }
        drop(there.next_if(|(rest, _)| rest == key));
        if let Some(sealed) = change {
            block.push(key, sealed).map(&mut put);
        }
    }
    for (rest, sealed) in there {
        block.push(&rest, &sealed).map(&mut put);
    }
    block.take().map(&mut put);
    if let Some(gone) = old {
        batch.remove([prefix, &gone].concat());
    }
}

/// The records of sled under a partition's keys between bounds, one after the other.
pub(super) struct Walk<'a> {
    iter: sled::Iter,
    prefix: &'a [u8],
    bounds: &'a Bounds,
    reverse: bool,
    in_log: bool,
    /// What was read and not given yet, the next one last.
    items: Items,
    ended: bool,
}

impl<'a> Walk<'a> {
    /// `in_log`: the bounds are inside one log table.
    pub(super) fn new(
        tree: &sled::Tree,
        prefix: &'a [u8],
        bounds: &'a Bounds,
        reverse: bool,
        in_log: bool,
    ) -> Result<Walk<'a>, Fault> {
        let under = |rest: &Bound<Key>, open: Bound<Key>| match rest {
            Bound::Included(rest) => Bound::Included([prefix, rest].concat()),
            Bound::Excluded(rest) => Bound::Excluded([prefix, rest].concat()),
            Bound::Unbounded => open,
        };
        let end = prefix_end(prefix).map_or(Bound::Unbounded, Bound::Excluded);
        let mut from = under(&bounds.0, Bound::Included(prefix.to_vec()));
        if in_log && let Bound::Included(first) | Bound::Excluded(first) = &bounds.0 {
            // The block that the first one may be in begins before it.
            if let Some((key, _)) = place(tree, prefix, first)?.at {
                from = Bound::Included([prefix, &key].concat());
            }
        }
        let iter = tree.range((from, under(&bounds.1, end)));
        Ok(Walk { iter, prefix, bounds, reverse, in_log, items: Items::new(), ended: false })
    }

    fn fill(&mut self) -> Result<(), Fault> {
        while self.items.is_empty() && !self.ended {
            let found = if self.reverse { self.iter.next_back() } else { self.iter.next() };
            let Some((key, bytes)) = found.transpose()? else {
                self.ended = true;
                break;
            };
            let rest = &key[self.prefix.len()..];
            if !self.in_log {
                self.items.push((rest.to_vec(), bytes.to_vec()));
                break;
            }
            let mut items = read(rest, &bytes).map_err(|reason| Fault::Block(rest.to_vec(), reason))?;
            items.retain(|(rest, _)| std::ops::RangeBounds::contains(self.bounds, rest));
            if !self.reverse {
                items.reverse();
            }
            self.items = items;
        }
        Ok(())
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<(Key, Vec<u8>), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(fault) = self.fill() {
            self.ended = true;
            return Some(Err(fault));
        }
        self.items.pop().map(Ok)
    }
}
