//! A consistent copy of all records, made piece by piece while writes go on.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    sync::Arc,
};

use super::{
    blocks::{self, Block, Ground, Items},
    disk::{Disk, Fault, failed},
    layer::Layer,
    layout,
    settling::as_one,
    writing::{as_copied, as_installed},
};
use crate::engine::{Key, StoreError};

/// What a copy starts with; the last byte is the version of its layout.
const MAGIC: &[u8; 8] = b"rookery\x01";
/// A length that no key has: the end of the records.
const END: u32 = u32::MAX;
/// How much is written to a fresh tree at a time, in bytes.
const PIECE: usize = 256 * 1024;
/// Records between two looks at whether the copy may go on.
const LOOK: usize = 256;
/// The most changes that wait above sled while a copy runs, in bytes; beyond it copies are given up.
const WAITING_MAX: usize = 256 * 1024 * 1024;
/// What stands for a block that cannot be read: one without records, as no version makes one.
const DAMAGED: [u8; 1] = [layout::BLOCK];
/// The longest key or value that is believed, in bytes.
const ITEM_MAX: usize = 16 * 1024 * 1024;

/// The copies that run: sled stays as it is meanwhile, and changes wait above it.
#[derive(Default)]
pub(super) struct Copies {
    next: u64,
    running: BTreeSet<u64>,
}

impl Copies {
    /// Whether sled may be changed, with so many bytes of changes that wait for it.
    pub(super) fn may_go_on(&mut self, waiting: usize) -> bool {
        if waiting > WAITING_MAX {
            self.running.clear();
        }
        self.running.is_empty()
    }
}

/// The records as they were when it was made, though writes go on.
pub struct Copy {
    disk: Arc<Disk>,
    number: u64,
    /// What was there at that moment: an installed state puts another in its place.
    ground: Ground,
    /// What was above it, the newest first.
    layers: Vec<Arc<Layer>>,
}

impl Disk {
    /// Freezes the records as they are now; reading them out is up to [`Copy::write_to`].
    pub fn copy(self: &Arc<Disk>) -> Copy {
        let mut writer = self.writer.lock();
        let copies = &mut writer.copies;
        copies.next += 1;
        let number = copies.next;
        copies.running.insert(number);
        let records = self.records.read();
        let layers = std::iter::once(Arc::new(records.active.clone())).chain(records.frozen.iter().cloned());
        Copy { disk: self.clone(), number, ground: records.ground.clone(), layers: layers.collect() }
    }

    /// Replaces all records by those of a copy, and sets a mark in the same step.
    ///
    /// A copy that is cut short or damaged changes nothing, and so does a crash on the way.
    pub fn install(&self, copy: &mut dyn Read, mark: (&[u8], &[u8])) -> io::Result<()> {
        self.usable().map_err(io::Error::other)?;
        let mut writer = self.writer.lock();
        let (number, tree) = self.fresh_tree().map_err(io::Error::other)?;
        let filled = self.guarded("an installation", || {
            fill(&tree, copy)?;
            tree.insert(layout::mark_key(mark.0), mark.1).map_err(|e| failed("write a mark", e))?;
            self.switch_tree(&mut writer, number, tree.clone())
        });
        if filled.is_ok() {
            // What they copied from is gone.
            writer.copies.running.clear();
        }
        filled.map_err(io::Error::other)
    }
}

fn fill(tree: &sled::Tree, copy: &mut dyn Read) -> Result<(), StoreError> {
    let unreadable = |e: io::Error| StoreError::Engine { reason: format!("failed to read a copy: {e}") };
    let mut input = Summed { inner: copy, sum: crc32fast::Hasher::new() };
    let mut magic = [0; 8];
    input.read_exact(&mut magic).map_err(unreadable)?;
    if magic != *MAGIC {
        return Err(StoreError::Engine { reason: "copy has an unknown format".to_owned() });
    }
    let mut fresh =
        Fresh { tree, batch: sled::Batch::default(), size: 0, start: Key::new(), block: Block::default() };
    loop {
        let length = read_u32(&mut input).map_err(unreadable)?;
        if length == END {
            break;
        }
        let key = read_bytes(&mut input, length).map_err(unreadable)?;
        let length = read_u32(&mut input).map_err(unreadable)?;
        let value = read_bytes(&mut input, length).map_err(unreadable)?;
        let value = as_installed(&key, value);
        fresh.push(key, value)?;
    }
    let sum = input.sum.clone().finalize();
    if read_u32(&mut input).map_err(unreadable)? != sum {
        return Err(StoreError::Engine { reason: "checksum of a copy does not match".to_owned() });
    }
    fresh.end()
}

/// A tree that is filled with records in the order of their keys.
struct Fresh<'a> {
    tree: &'a sled::Tree,
    batch: sled::Batch,
    size: usize,
    /// What the keys of the block begin with: its partition and its table.
    start: Key,
    block: Block,
}

impl Fresh<'_> {
    fn push(&mut self, key: Key, mut value: Vec<u8>) -> Result<(), StoreError> {
        self.size += key.len() + value.len();
        let prefix = layout::partition_end(&key).unwrap_or(0);
        let (partition, rest) = key.split_at(prefix);
        if !layout::is_in_log(partition, rest) {
            self.close_block();
            self.batch.insert(key, value);
        } else {
            if value.first() == Some(&layout::PLACE) {
                // Wherever it comes from, it would point into the segments of this store.
                value = DAMAGED.to_vec();
            }
            let start = &key[..prefix + layout::table_end(rest).unwrap_or(0)];
            if start != self.start {
                self.close_block();
                self.start = start.to_vec();
            }
            if self.block.is_full_for(rest, &value) {
                self.close_block();
            }
            self.block.push(rest, &value);
        }
        if self.size > PIECE { self.write() } else { Ok(()) }
    }

    fn close_block(&mut self) {
        if let Some((rest, bytes)) = self.block.end() {
            let prefix = layout::partition_end(&self.start).unwrap_or(0);
            self.batch.insert([&self.start[..prefix], rest].concat(), bytes);
        }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.size = 0;
        self.tree.apply_batch(std::mem::take(&mut self.batch)).map_err(|e| failed("write a copy", e))
    }

    fn end(mut self) -> Result<(), StoreError> {
        self.close_block();
        self.write()
    }
}

impl Copy {
    /// Writes the copy out, one record after the other, as versions without blocks read it.
    pub fn write_to(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = Summed { inner: out, sum: crc32fast::Hasher::new() };
        out.write_all(MAGIC)?;
        let above = as_one(self.layers.iter().map(Arc::as_ref));
        self.layers.clear();
        let mut count = 0;
        let mut put = |key: &[u8], value: &[u8]| {
            if count % LOOK == 0 {
                self.look()?;
            }
            count += 1;
            write_bytes(&mut out, key)?;
            write_bytes(&mut out, as_copied(key, value))
        };
        let order = above.order();
        let mut above_it = order
            .iter()
            .flat_map(|prefix| {
                above.parts[prefix].changes_from(&[]).map(move |(rest, change)| (prefix, rest, change))
            })
            .peekable();
        for item in self.ground.tree.iter() {
            let (key, bytes) = item.map_err(|e| io::Error::other(failed("copy", e)))?;
            let (prefix, rest) = key.split_at(layout::partition_end(&key).unwrap_or(0));
            let items = match layout::is_in_log(prefix, rest) {
                true => self.items(rest, &bytes)?,
                false => vec![(rest.to_vec(), bytes.to_vec())],
            };
            let is_wiped = above.parts.get(prefix).is_some_and(|part| part.wiped);
            for (rest, sealed) in items {
                let here = (prefix, &rest[..]);
                while let Some((prefix, rest, change)) = above_it.next_if(|(p, r, _)| (&p[..], &r[..]) < here)
                {
                    if let Some(sealed) = change {
                        put(&[&prefix[..], &rest].concat(), sealed)?;
                    }
                }
                let is_changed = above_it.peek().is_some_and(|(p, r, _)| (&p[..], &r[..]) == here);
                if !is_wiped && !is_changed {
                    put(&[prefix, &rest].concat(), &sealed)?;
                }
            }
        }
        for (prefix, rest, change) in above_it {
            if let Some(sealed) = change {
                put(&[&prefix[..], &rest].concat(), sealed)?;
            }
        }
        // A tree that was replaced meanwhile may have ended early.
        self.look()?;
        out.write_all(&END.to_le_bytes())?;
        let sum = out.sum.clone().finalize();
        out.write_all(&sum.to_le_bytes())
    }

    /// The records of a block; one that is damaged goes along as one record that nobody can read.
    fn items(&self, rest: &[u8], bytes: &[u8]) -> io::Result<Items> {
        match self.ground.block(rest, bytes.into()) {
            Ok(block) => {
                Ok(blocks::read(rest, &block).unwrap_or_else(|_| vec![(rest.to_vec(), DAMAGED.to_vec())]))
            }
            Err(Fault::Block(..)) => Ok(vec![(rest.to_vec(), DAMAGED.to_vec())]),
            Err(Fault::Sled(e)) => Err(io::Error::other(failed("copy", e))),
        }
    }

    /// Whether it may go on.
    fn look(&self) -> io::Result<()> {
        self.disk.usable().map_err(io::Error::other)?;
        if self.disk.writer.lock().copies.running.contains(&self.number) {
            return Ok(());
        }
        let reason = "copy was overtaken by too many writes".to_owned();
        Err(io::Error::other(StoreError::Unavailable { reason }))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.disk.writer.lock().copies.running.remove(&self.number);
    }
}

/// Sums what passes.
struct Summed<T> {
    inner: T,
    sum: crc32fast::Hasher,
}

impl Write for Summed<&mut dyn Write> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Read for Summed<&mut dyn Read> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.sum.update(&bytes[..read]);
        Ok(read)
    }
}

fn write_bytes(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    // Keys and values are bounded far below 4 GiB by the engine.
    out.write_all(&(bytes.len() as u32).to_le_bytes())?;
    out.write_all(bytes)
}

fn read_u32(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_bytes(input: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let length = length as usize;
    if length > ITEM_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "item is too long"));
    }
    let mut bytes = vec![0; length];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}
