//! Changes on their way from the layers above sled into it, a piece with each write.

use std::{collections::HashMap, ops::Bound, sync::Arc};

use super::{
    blocks::{Block, Merging, Pending},
    copy::Copies,
    disk::{Disk, SETTLED, failed},
    journal::{self, Journal},
    layer::{Layer, Part},
    layout,
    segments::{Appender, Collecting, Place},
};
use crate::engine::{Key, StoreError};

/// Layers that wait; beyond it a write takes as long as it takes to put one into sled.
const FROZEN_MAX: usize = 4;
/// What goes to sled with each write, beside twice what was written, in bytes.
const PIECE: usize = 64 * 1024;
/// Records that are removed at a time where a partition ends.
const REMOVED: usize = 512;
/// Blocks to whose new places sled is pointed at a time.
const MOVED: usize = if cfg!(test) { 3 } else { 256 };
/// What it counts for to point sled at a block, in bytes.
const POINTED: usize = if cfg!(test) { 16 * 1024 } else { 256 };
/// Ranges without a record that are remembered.
const GAPS_MAX: usize = 65_536;

/// Held by whoever changes records.
pub(super) struct Writer {
    pub(super) journal: Journal,
    pub(super) gaps: Gaps,
    pub(super) copies: Copies,
    pub(super) settling: Option<Settling>,
    pub(super) appender: Appender,
    pub(super) collecting: Option<Collecting>,
}

/// How far the oldest layer is.
pub(super) struct Settling {
    /// The partitions that are left, the next one last.
    order: Vec<Vec<u8>>,
    /// What was in sled of the next one is removed, where that is asked for.
    wiped: bool,
    /// Where the next one goes on.
    from: Key,
    /// What sled is to be given once all partitions are in their blocks and these are synced.
    pending: Pending,
    /// Its memory serves all blocks.
    block: Block,
}

/// Ranges of log tables of which it is known that sled has no record in them.
#[derive(Default)]
pub(super) struct Gaps {
    /// By partition: the first key and the one behind the last.
    known: HashMap<Vec<u8>, std::collections::BTreeMap<Key, Key>>,
    count: usize,
}

impl Gaps {
    /// The one that a key is in.
    pub(super) fn around(&self, prefix: &[u8], rest: &[u8]) -> Option<(&Key, &Key)> {
        let before = (Bound::Unbounded, Bound::Included(rest));
        let last = self.known.get(prefix)?.range::<[u8], _>(before).next_back();
        last.filter(|(_, to)| rest < to.as_slice())
    }

    pub(super) fn note(&mut self, prefix: &[u8], (from, to): (Key, Key)) {
        if self.count >= GAPS_MAX {
            self.clear();
        }
        self.count += 1;
        self.known.entry(prefix.to_vec()).or_default().insert(from, to);
    }

    fn forget(&mut self, prefix: &[u8]) {
        let forgotten = self.known.remove(prefix).map_or(0, |known| known.len());
        self.count = self.count.saturating_sub(forgotten);
    }

    pub(super) fn clear(&mut self) {
        *self = Gaps::default();
    }
}

impl Disk {
    /// What comes behind a write of so many bytes.
    pub(super) fn age(&self, writer: &mut Writer, written: usize) -> Result<(), StoreError> {
        if self.records.read().active.bytes >= self.layer_bytes {
            self.freeze(writer)?;
        }
        let waiting: usize = self.records.read().frozen.iter().map(|layer| layer.bytes).sum();
        if !writer.copies.may_go_on(waiting) {
            return Ok(());
        }
        if self.records.read().frozen.is_empty() {
            return self.collect(writer);
        }
        self.settle(writer, PIECE + written.saturating_mul(2))?;
        while self.records.read().frozen.len() > FROZEN_MAX {
            self.settle(writer, usize::MAX)?;
        }
        Ok(())
    }

    /// Puts all that was written so far into sled.
    pub(super) fn settle_all(&self) -> Result<(), StoreError> {
        self.usable()?;
        let mut writer = self.writer.lock();
        self.guarded("a write", || {
            self.freeze(&mut writer)?;
            while !self.records.read().frozen.is_empty() {
                self.settle(&mut writer, usize::MAX)?;
            }
            Ok(())
        })
    }

    /// Puts about so many bytes into sled, of what takes no more changes.
    #[cfg(test)]
    pub(super) fn settle_some(&self, budget: usize) -> Result<(), StoreError> {
        self.settle(&mut self.writer.lock(), budget)
    }

    /// Lets the layer that takes changes take no more, and begins another one with another journal.
    pub(super) fn freeze(&self, writer: &mut Writer) -> Result<(), StoreError> {
        if self.records.read().active.is_empty() {
            return Ok(());
        }
        // Sled must not have what the journal may have lost after a crash.
        self.sync_journal(&writer.journal.written())?;
        let journal = match writer.journal.turn() {
            Ok(journal) => journal,
            Err(error) => {
                tracing::warn!(path = %self.path().display(), %error, "failed to begin a journal, the one before goes on");
                return Ok(());
            }
        };
        let mut records = self.records.write();
        let mut layer = std::mem::take(&mut records.active);
        layer.journal = Some(journal);
        records.frozen.push_front(Arc::new(layer));
        Ok(())
    }

    /// Puts about so many bytes of the oldest layer into sled, and lets go of it with the last of them.
    fn settle(&self, writer: &mut Writer, budget: usize) -> Result<(), StoreError> {
        let Some(layer) = self.records.read().frozen.back().cloned() else { return Ok(()) };
        let mut settling = writer.settling.take().unwrap_or_else(|| {
            let mut order = layer.order();
            order.reverse();
            Settling {
                order,
                wiped: false,
                from: Key::new(),
                pending: Pending::default(),
                block: Block::default(),
            }
        });
        let is_poured = settling.order.is_empty();
        let mut batch = sled::Batch::default();
        let mut left = budget;
        while left > 0
            && let Some(prefix) = settling.order.last().cloned()
        {
            let Some(part) = layer.parts.get(&prefix) else {
                settling.order.pop();
                continue;
            };
            if part.wiped && !settling.wiped {
                // The blocks of what comes then are looked for in sled as it is afterwards.
                settling.wiped = self.wipe(&prefix, &mut writer.appender, &mut batch)?;
                break;
            }
            match self.pour(&prefix, part, &mut settling, &mut writer.appender, &mut left, &mut batch)? {
                Some(from) => settling.from = from,
                None => {
                    settling.order.pop();
                    settling.wiped = false;
                    settling.from.clear();
                }
            }
        }
        if settling.order.is_empty() && !settling.pending.is_empty() {
            if !is_poured {
                self.sync_segments(writer)?;
            }
            while (left > 0 || settling.pending.goes_on())
                && let Some((key, value)) = settling.pending.pop_first()
            {
                left = left.saturating_sub(POINTED);
                writer.gaps.forget(&key[..layout::partition_end(&key).unwrap_or(0)]);
                match value {
                    Some(value) => batch.insert(key, value),
                    None => batch.remove(key),
                }
            }
        }
        let is_done = settling.order.is_empty() && settling.pending.is_empty();
        self.records.write().ground.tree.apply_batch(batch).map_err(|e| self.broken("write", e))?;
        if !is_done {
            writer.settling = Some(settling);
            return Ok(());
        }
        if let Some((number, _)) = &layer.journal {
            // A journal whose file stays behind would bring old values back once later ones are gone.
            self.db.insert(SETTLED, &number.to_be_bytes()).map_err(|e| self.broken("write", e))?;
        }
        self.sync_sled()?;
        self.records.write().frozen.pop_back();
        journal::remove(&layer);
        Ok(())
    }

    /// Moves what lives in a segment that is half dead to the end of the newest one, a piece at a time, and removes it.
    fn collect(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let Writer { collecting, appender, .. } = writer;
        if collecting.is_none() {
            *collecting = appender.collect();
        }
        let Some(segment) = collecting else { return Ok(()) };
        let ground = self.records.read().ground.clone();
        let found = match segment.look(&ground.segments) {
            Ok(found) => found,
            Err(error) => {
                let path = self.path().display();
                tracing::warn!(%path, segment = segment.number, %error, "a segment is damaged, it stays as it is");
                appender.leave(segment.number);
                *collecting = None;
                return Ok(());
            }
        };
        let lives = |key: &[u8], place| {
            let there = ground.tree.get(key).map_err(|e| self.broken("look for a block", e))?;
            Ok(there.and_then(|bytes| Place::read(&bytes)) == Some(place))
        };
        let is_looked_through = found.is_empty();
        for block in found {
            if lives(&block.key, block.place)? {
                let moved = appender.append(&block.key, &block.block);
                let moved = moved.map_err(|e| self.broken("move a block", e.into()))?;
                segment.moved.push((block.key, block.place, moved));
            }
        }
        if !is_looked_through {
            return Ok(());
        }
        let left = segment.moved.len().saturating_sub(MOVED);
        let moved = segment.moved.split_off(left);
        let number = segment.number;
        if !std::mem::replace(&mut segment.is_synced, true) {
            self.sync_segments(writer)?;
        }
        let mut batch = sled::Batch::default();
        for (key, before, now) in moved {
            // It may have been written anew since it was looked at.
            if lives(&key, before)? {
                batch.insert(key, now.to_bytes());
            } else {
                writer.appender.forget(&key, now);
            }
        }
        self.records.write().ground.tree.apply_batch(batch).map_err(|e| self.broken("write", e))?;
        if left > 0 {
            return Ok(());
        }
        writer.collecting = None;
        self.sync_sled()?;
        writer.appender.remove(number);
        self.note_extents(writer)
    }

    /// Makes all blocks durable, and then tells sled how far the segments go: it points at nothing behind that.
    fn sync_segments(&self, writer: &mut Writer) -> Result<(), StoreError> {
        writer.appender.sync().map_err(|e| self.broken("sync a segment", e.into()))?;
        self.note_extents(writer)
    }

    fn note_extents(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (number, extent) in writer.appender.take_changed() {
            let key = extent_key(number);
            match extent {
                Some(extent) => batch.insert(key, &extent.to_bytes()),
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(|e| self.broken("write", e))
    }

    /// Removes some of what sled has of a partition; whether that is all.
    fn wipe(
        &self,
        prefix: &[u8],
        appender: &mut Appender,
        batch: &mut sled::Batch,
    ) -> Result<bool, StoreError> {
        let mut count = 0;
        for found in self.records.read().ground.tree.scan_prefix(prefix).take(REMOVED) {
            let (key, bytes) = found.map_err(|e| self.broken("scan a partition", e))?;
            if let Some(place) = Place::read(&bytes) {
                appender.forget(&key, place);
            }
            batch.remove(key);
            count += 1;
        }
        Ok(count < REMOVED)
    }

    /// Adds changes of a partition to what sled is to be given; where to go on, unless that is all.
    fn pour(
        &self,
        prefix: &[u8],
        part: &Part,
        settling: &mut Settling,
        appender: &mut Appender,
        left: &mut usize,
        batch: &mut sled::Batch,
    ) -> Result<Option<Key>, StoreError> {
        let ground = self.records.read().ground.clone();
        let Settling { pending, block, .. } = settling;
        let mut merging = Merging { ground: &ground, prefix, appender, pending, block };
        let mut changes = part.changes_from(&settling.from).peekable();
        while let Some((rest, change)) = changes.peek() {
            if *left == 0 {
                return Ok(Some(rest.to_vec()));
            }
            if !layout::is_in_log(prefix, rest) {
                let key = [prefix, rest].concat();
                *left = left.saturating_sub(key.len() + change.map_or(0, <[u8]>::len));
                match *change {
                    Some(sealed) => batch.insert(key, sealed),
                    None => batch.remove(key),
                }
                changes.next();
                continue;
            }
            let table = rest[..layout::table_end(rest).unwrap_or(0)].to_vec();
            let mut taken = 0;
            let of_table = std::iter::from_fn(|| {
                let (rest, change) = changes.next_if(|(rest, _)| rest.starts_with(&table))?;
                taken += rest.len() + change.map_or(0, <[u8]>::len);
                Some((rest, change))
            });
            let more = merging.merge(of_table, *left);
            *left = left.saturating_sub(taken);
            if let Some(from) = more.map_err(|fault| self.broken("settle", fault.into_sled()))? {
                return Ok(Some(from));
            }
        }
        Ok(None)
    }

    /// Sled refuses all that follows a failed write, so say why rather than guess.
    fn broken(&self, what: &str, error: sled::Error) -> StoreError {
        let error = failed(what, error);
        self.break_down(error.to_string());
        error
    }
}

/// All changes of layers, the newest first, as one.
pub(super) fn as_one<'a>(layers: impl DoubleEndedIterator<Item = &'a Layer>) -> Layer {
    let mut all = Layer::default();
    layers.rev().for_each(|layer| all.absorb(layer.clone()));
    all
}

/// The record outside the tree with the extent of a segment.
pub(super) fn extent_key(number: u64) -> Vec<u8> {
    [EXTENTS, &number.to_be_bytes()].concat()
}

/// What the keys of extents start with.
pub(super) const EXTENTS: &[u8] = b"segment/";
