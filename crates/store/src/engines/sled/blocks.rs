//! Many records of one log table as one block: what is small and written once costs little there.
//!
//! A block stands under the key of its first record and ends before the next key of sled. Sled has the place of it in a
//! segment, or the block itself where it is small or of an earlier version. A record by itself is as good as a block:
//! stores of the first versions have only those.

use std::{borrow::Cow, cmp::Ordering, collections::BTreeMap, io, ops::Bound, sync::Arc};

use super::{
    disk::Fault,
    layer::{Bounds, Rest},
    layout,
    run::{ITEM_HEADER, push_item, split_item},
    segments::{self, Appender, Segments},
};
use crate::engine::{Key, prefix_end};

/// The most bytes of a block, but for a single larger record.
const BLOCK_BYTES: usize = 16 * 1024;
/// A block that is smaller takes what comes behind it; a larger one is left as it is.
const FULL_BYTES: usize = 2 * 1024;
/// What is not larger is kept in sled itself, in bytes.
const INLINE_BYTES: usize = 64;

/// What is below the layers: sled, and the segments that it points into.
#[derive(Clone)]
pub(super) struct Ground {
    pub(super) tree: sled::Tree,
    pub(super) segments: Arc<Segments>,
}

impl Ground {
    /// The block, or the record by itself, that sled has under a key or points at from there.
    pub(super) fn block<'a>(&self, rest: &[u8], bytes: Cow<'a, [u8]>) -> Result<Cow<'a, [u8]>, Fault> {
        if bytes.first() != Some(&layout::PLACE) {
            return Ok(bytes);
        }
        let place = segments::Place::read(&bytes).ok_or(Fault::Block(rest.to_vec(), CUT))?;
        self.segments.read(place).map(Cow::Owned).map_err(|error| match error.kind() {
            // It is not where it was: as if it had been damaged.
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => Fault::Block(rest.to_vec(), CUT),
            _ => Fault::Sled(error.into()),
        })
    }
}

const CUT: &str = "block of records is damaged";

/// The sealed bytes of records by what follows the partition in their keys, in order.
pub(super) type Items = Vec<(Key, Vec<u8>)>;

/// Reads a block, or a record by itself, that stands under a key; the key is without its partition.
pub(super) fn read(rest: &[u8], bytes: &[u8]) -> Result<Items, &'static str> {
    read_some(rest, bytes, |_| true)
}

/// As [`read`], only those whose keys are wanted.
fn read_some(rest: &[u8], bytes: &[u8], wanted: impl Fn(&Key) -> bool) -> Result<Items, &'static str> {
    let mut items = Items::new();
    let mut key = Key::new();
    each(rest, bytes, |item, sealed| {
        key.clear();
        key.extend_from_slice(item[0]);
        key.extend_from_slice(item[1]);
        if wanted(&key) {
            items.push((std::mem::take(&mut key), sealed.to_vec()));
        }
    })?;
    Ok(items)
}

/// Looks at each record of a block: the two parts of its key, and its sealed bytes.
fn each<'a>(
    rest: &'a [u8],
    bytes: &'a [u8],
    mut look: impl FnMut([&'a [u8]; 2], &'a [u8]),
) -> Result<(), &'static str> {
    let Some((&layout::BLOCK, mut left)) = bytes.split_first() else {
        look([rest, &[]], bytes);
        return Ok(());
    };
    let (table, first) = rest.split_at(layout::table_end(rest).ok_or(CUT)?);
    let mut before = None;
    while !left.is_empty() {
        let (key, sealed, more) = split_item(left).ok_or(CUT)?;
        if before.map_or(key != first, |before| before >= key) {
            return Err(CUT);
        }
        look([table, key], sealed);
        (left, before) = (more, Some(key));
    }
    before.map(drop).ok_or(CUT)
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
    /// Whether it is full without one more record.
    pub(super) fn is_full_for(&self, rest: &[u8], sealed: &[u8]) -> bool {
        let more = ITEM_HEADER + rest.len() - layout::table_end(rest).unwrap_or(0) + sealed.len();
        self.count > 0 && self.bytes.len() + more > BLOCK_BYTES
    }

    /// Takes a record behind those that are there.
    pub(super) fn push(&mut self, rest: &[u8], sealed: &[u8]) {
        if self.count == 0 {
            self.first.clear();
            self.first.extend_from_slice(rest);
            self.bytes.clear();
            self.bytes.push(layout::BLOCK);
        }
        let key = &rest[layout::table_end(rest).unwrap_or(0)..];
        push_item(&mut self.bytes, key, |out| out.extend_from_slice(sealed));
        if self.count == 0 {
            self.sealed = self.bytes.len() - sealed.len();
        }
        self.count += 1;
    }

    /// Ends it: its key and the bytes that belong there; `None`: there is nothing in it. The next record begins another.
    pub(super) fn end(&mut self) -> Option<(&[u8], &[u8])> {
        let from = if self.count == 1 { self.sealed } else { 0 };
        let is_empty = std::mem::take(&mut self.count) == 0;
        (!is_empty).then(|| (&self.first[..], &self.bytes[from..]))
    }
}

/// Changes of sled that wait until the segments that they point into are synced; `None` removes.
#[derive(Default)]
pub(super) struct Pending {
    changes: BTreeMap<Key, Option<Vec<u8>>>,
    /// Keys of blocks that others take the place of, and the last keys of what was in them: between two writes that part
    /// these changes, some of it would be in no block.
    together: BTreeMap<Key, Key>,
    /// Up to here sled must have all in the write of what was taken last.
    until: Option<Key>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Has sled get all changes from `first` to `last` in one write.
    fn join(&mut self, first: Key, last: Key) {
        let there = self.together.entry(first).or_default();
        *there = last.max(std::mem::take(there));
    }

    /// The next change, in the order of the keys.
    pub(super) fn pop_first(&mut self) -> Option<(Key, Option<Vec<u8>>)> {
        let (key, value) = self.changes.pop_first()?;
        self.until = self.together.remove(&key).max(self.until.take());
        Some((key, value))
    }

    /// Whether sled must have the next change together with the one that was taken last.
    pub(super) fn goes_on(&self) -> bool {
        let next = self.changes.first_key_value();
        next.is_some_and(|(key, _)| self.until.as_ref().is_some_and(|until| key <= until))
    }
}

/// Where in sled a record of a log table is, if it is there.
struct Place {
    /// What sled has there: the key without its partition, and the bytes.
    at: Option<(Key, Vec<u8>)>,
    /// The key of what sled has next; the end of the table if that is the last one.
    next: Key,
}

/// Finds where a record of a log table is or belongs, in sled as it will be.
fn place(tree: &sled::Tree, pending: &Pending, prefix: &[u8], rest: &[u8]) -> Result<Place, Fault> {
    let table = &rest[..layout::table_end(rest).unwrap_or(0)];
    let (start, wanted) = ([prefix, table].concat(), [prefix, rest].concat());
    // No table's start is all 0xff: it begins with a length.
    let end = prefix_end(table).unwrap_or_default();
    let until = [prefix, &end].concat();
    let changes = &pending.changes;
    let stays = |found: &sled::Result<(sled::IVec, sled::IVec)>| {
        found.as_ref().map_or(true, |(key, _)| !changes.contains_key(&key[..]))
    };
    let before = tree.range(start.clone()..=wanted.clone()).rev().find(stays).transpose()?;
    let mut at = before.map(|(key, bytes)| (key.to_vec(), bytes.to_vec()));
    let behind = (Bound::Excluded(wanted.clone()), Bound::Excluded(until.clone()));
    let after = tree.range(behind).find(stays).transpose()?;
    let mut next = after.map(|(key, _)| key.to_vec());
    if !pending.is_empty() {
        let mut earlier = changes.range(start..=wanted.clone()).rev();
        if let Some((key, Some(bytes))) = earlier.find(|(_, bytes)| bytes.is_some())
            && at.as_ref().is_none_or(|(at, _)| at < key)
        {
            at = Some((key.clone(), bytes.clone()));
        }
        let mut later = changes.range((Bound::Excluded(wanted), Bound::Excluded(until)));
        if let Some((key, _)) = later.find(|(_, bytes)| bytes.is_some())
            && next.as_ref().is_none_or(|next| next > key)
        {
            next = Some(key.clone());
        }
    }
    Ok(Place {
        at: at.map(|(mut key, bytes)| (key.split_off(prefix.len()), bytes)),
        next: next.map_or(end, |mut next| next.split_off(prefix.len())),
    })
}

/// The sealed bytes of a record of a log table, and keys around it of which sled has no other one: the first of them and
/// the one behind the last.
pub(super) type Found = (Option<Vec<u8>>, (Key, Key));

/// Looks for a record of a log table.
pub(super) fn find(ground: &Ground, prefix: &[u8], rest: &[u8]) -> Result<Found, Fault> {
    let place = place(&ground.tree, &Pending::default(), prefix, rest)?;
    let table = layout::table_end(rest).unwrap_or(0);
    let (mut from, mut to) = (rest[..table].to_vec(), place.next);
    let Some((key, bytes)) = place.at else { return Ok((None, (from, to))) };
    let bytes = ground.block(&key, Cow::Owned(bytes))?;
    let (mut before, mut behind, mut found) = (None, None, None);
    let name = &rest[table..];
    each(&key, &bytes, |item, sealed| {
        // A record by itself has its whole key in the first part.
        let item = if item[0].len() > table { &item[0][table..] } else { item[1] };
        match item.cmp(name) {
            Ordering::Less => before = Some(item),
            Ordering::Equal => found = Some(sealed),
            Ordering::Greater => behind = behind.or(Some(item)),
        }
    })
    .map_err(|reason| Fault::Block(key.clone(), reason))?;
    if let Some(sealed) = found {
        return Ok((Some(sealed.to_vec()), (rest.to_vec(), rest.to_vec())));
    }
    if let Some(before) = before {
        // The first key behind it.
        from = [&rest[..table], before, &[0]].concat();
    }
    if let Some(behind) = behind {
        to = [&rest[..table], behind].concat();
    }
    Ok((None, (from, to)))
}

/// Puts changes of log tables into blocks.
pub(super) struct Merging<'a> {
    pub(super) ground: &'a Ground,
    pub(super) prefix: &'a [u8],
    pub(super) appender: &'a mut Appender,
    pub(super) pending: &'a mut Pending,
    pub(super) block: &'a mut Block,
}

impl Merging<'_> {
    /// Puts changes of one log table into their blocks, in order; at most about `budget` bytes of them. Gives the key
    /// behind the last that was taken, unless all were.
    pub(super) fn merge<'c>(
        &mut self,
        changes: impl Iterator<Item = (Rest, Option<&'c [u8]>)>,
        mut budget: usize,
    ) -> Result<Option<Key>, Fault> {
        let mut changes = changes.peekable();
        while let Some((first, _)) = changes.peek() {
            if budget == 0 {
                return Ok(Some(first.to_vec()));
            }
            let place = place(&self.ground.tree, self.pending, self.prefix, first)?;
            let mut run = Vec::new();
            while let Some((key, change)) = changes.next_if(|(key, _)| key[..] < place.next[..] && budget > 0)
            {
                budget = budget.saturating_sub(key.len() + change.map_or(0, <[u8]>::len) + ITEM_HEADER);
                run.push((key, change));
            }
            self.merge_run(place.at, run)?;
        }
        Ok(None)
    }

    fn merge_run(
        &mut self,
        at: Option<(Key, Vec<u8>)>,
        run: Vec<(Rest, Option<&[u8]>)>,
    ) -> Result<(), Fault> {
        let mut there = Items::new();
        if let Some((key, bytes)) = at {
            let whole = self.ground.block(&key, Cow::Borrowed(&bytes));
            // One that is damaged is left for its readers to tell of.
            if let Some(items) = self.to_merge(&key, whole, &run)? {
                there = items;
                self.forget(&key, &bytes);
                let under = |rest: &Key| [self.prefix, rest].concat();
                if let Some((last, _)) = there.last() {
                    self.pending.join(under(&key), under(last));
                }
                self.pending.changes.insert(under(&key), None);
            }
        }
        let mut there = there.into_iter().peekable();
        for (key, change) in run {
            while let Some((rest, sealed)) = there.next_if(|(rest, _)| rest[..] < key[..]) {
                self.push(&rest, &sealed)?;
            }
            drop(there.next_if(|(rest, _)| rest[..] == key[..]));
            if let Some(sealed) = change {
                self.push(&key, sealed)?;
            }
        }
        for (rest, sealed) in there {
            self.push(&rest, &sealed)?;
        }
        self.end_block()
    }

    fn push(&mut self, rest: &[u8], sealed: &[u8]) -> Result<(), Fault> {
        if self.block.is_full_for(rest, sealed) {
            self.end_block()?;
        }
        self.block.push(rest, sealed);
        Ok(())
    }

    fn end_block(&mut self) -> Result<(), Fault> {
        let Some((rest, bytes)) = self.block.end() else { return Ok(()) };
        let key = [self.prefix, rest].concat();
        let value = match bytes.len() <= INLINE_BYTES {
            true => bytes.to_vec(),
            false => self.appender.append(&key, bytes).map_err(sled::Error::from)?.to_bytes(),
        };
        self.pending.changes.insert(key, Some(value));
        Ok(())
    }

    /// The records of a block that are to be merged with a run; `None`: it stays as it is.
    fn to_merge(
        &self,
        key: &Key,
        whole: Result<Cow<'_, [u8]>, Fault>,
        run: &[(Rest, Option<&[u8]>)],
    ) -> Result<Option<Items>, Fault> {
        let bytes = match whole {
            Ok(bytes) => bytes,
            Err(Fault::Block(..)) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let mut last = [&key[..], &[]];
        let is_whole = each(key, &bytes, |item, _| last = item).is_ok();
        let is_behind = run.first().is_some_and(|(first, _)| last.concat()[..] < first[..]);
        if !is_whole || (is_behind && bytes.len() >= FULL_BYTES) {
            return Ok(None);
        }
        Ok(read(key, &bytes).ok())
    }

    fn forget(&mut self, rest: &[u8], bytes: &[u8]) {
        if let Some(place) = segments::Place::read(bytes) {
            self.appender.forget(&[self.prefix, rest].concat(), place);
        }
    }
}

/// The records of sled under a partition's keys between bounds, one after the other.
pub(super) struct Walk<'a> {
    iter: sled::Iter,
    ground: &'a Ground,
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
        ground: &'a Ground,
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
            if let Some((key, _)) = place(&ground.tree, &Pending::default(), prefix, first)?.at {
                from = Bound::Included([prefix, &key].concat());
            }
        }
        let iter = ground.tree.range((from, under(&bounds.1, end)));
        Ok(Walk { iter, ground, prefix, bounds, reverse, in_log, items: Items::new(), ended: false })
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
            let block = self.ground.block(rest, Cow::Borrowed(&bytes))?;
            let is_inside = |rest: &Key| std::ops::RangeBounds::contains(self.bounds, rest);
            let items = read_some(rest, &block, is_inside);
            let mut items = items.map_err(|reason| Fault::Block(rest.to_vec(), reason))?;
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
