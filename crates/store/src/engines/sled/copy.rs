//! A consistent copy of all records, made piece by piece while writes go on.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read, Write},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::MutexGuard;

use super::{
    disk::{Disk, failed},
    layout,
};
use crate::engine::StoreError;

/// What a copy starts with; the last byte is the version of its layout.
const MAGIC: &[u8; 8] = b"rookery\x01";
/// A length that no key has: the end of the records.
const END: u32 = u32::MAX;
/// How much is read while a writer waits, in bytes.
const PIECE: usize = 256 * 1024;
/// For how long it is read while a writer waits, and one page more: a disk may take milliseconds for each.
const PIECE_TIME: Duration = Duration::from_millis(5);
/// The most that is kept aside for one copy, in bytes; a copy that needs more is given up.
const SAVED_MAX: usize = 256 * 1024 * 1024;
/// The longest key or value that is believed, in bytes.
const ITEM_MAX: usize = 16 * 1024 * 1024;

/// What running copies still need of what was overwritten since they began.
#[derive(Default)]
pub(super) struct Copies {
    next: u64,
    running: HashMap<u64, Progress>,
}

struct Progress {
    /// All keys before this one are copied.
    cursor: Vec<u8>,
    /// What keys behind the cursor held when the copy began, for those that changed since.
    saved: BTreeMap<Vec<u8>, Option<sled::IVec>>,
    saved_bytes: usize,
}

impl Copies {
    /// Keeps what these keys hold now for the copies that have not come to them.
    pub(super) fn save<'k>(
        &mut self,
        tree: &sled::Tree,
        keys: impl Iterator<Item = &'k Vec<u8>>,
    ) -> Result<(), StoreError> {
        if self.running.is_empty() {
            return Ok(());
        }
        for key in keys {
            for progress in self.running.values_mut() {
                if *key < progress.cursor || progress.saved.contains_key(key) {
                    continue;
                }
                let old = tree.get(key).map_err(|e| failed("read", e))?;
                progress.saved_bytes += 64 + key.len() + old.as_ref().map_or(0, |v| v.len());
                progress.saved.insert(key.clone(), old);
            }
        }
        self.running.retain(|_, progress| progress.saved_bytes <= SAVED_MAX);
        Ok(())
    }
}

/// The records as they were when it was made, though writes go on.
pub struct Copy {
    disk: Arc<Disk>,
    number: u64,
    /// The tree of that moment: an installed state puts another in its place.
    tree: sled::Tree,
}

type Piece = Vec<(Vec<u8>, sled::IVec)>;

impl Disk {
    /// Freezes the records as they are now; reading them out is up to [`Copy::write_to`].
    pub fn copy(self: &Arc<Disk>) -> Copy {
        let mut copies = self.writer.lock();
        copies.next += 1;
        let number = copies.next;
        let progress = Progress { cursor: Vec::new(), saved: BTreeMap::new(), saved_bytes: 0 };
        copies.running.insert(number, progress);
        Copy { disk: self.clone(), number, tree: self.tree.read().clone() }
    }

    /// Replaces all records by those of a copy, and sets a mark in the same step.
    ///
    /// A copy that is cut short or damaged changes nothing, and so does a crash on the way.
    pub fn install(&self, copy: &mut dyn Read, mark: (&[u8], &[u8])) -> io::Result<()> {
        self.usable().map_err(io::Error::other)?;
        let mut copies = self.writer.lock();
        let (number, tree) = self.fresh_tree().map_err(io::Error::other)?;
        let filled = self.guarded("an installation", || {
            fill(&tree, copy)?;
            tree.insert(layout::mark_key(mark.0), mark.1).map_err(|e| failed("write a mark", e))?;
            self.switch_tree(number, tree.clone())
        });
        if filled.is_ok() {
            // What they copied from is gone.
            copies.running.clear();
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
    let mut batch = sled::Batch::default();
    let mut size = 0;
    loop {
        let length = read_u32(&mut input).map_err(unreadable)?;
        if length == END {
            break;
        }
        let key = read_bytes(&mut input, length).map_err(unreadable)?;
        let length = read_u32(&mut input).map_err(unreadable)?;
        let value = read_bytes(&mut input, length).map_err(unreadable)?;
        size += key.len() + value.len();
        batch.insert(key, value);
        if size > PIECE {
            tree.apply_batch(std::mem::take(&mut batch)).map_err(|e| failed("write a copy", e))?;
            size = 0;
        }
    }
    let sum = input.sum.clone().finalize();
    if read_u32(&mut input).map_err(unreadable)? != sum {
        return Err(StoreError::Engine { reason: "checksum of a copy does not match".to_owned() });
    }
    tree.apply_batch(batch).map_err(|e| failed("write a copy", e))
}

impl Copy {
    /// Writes the copy out, holding up writers for one small piece at a time.
    pub fn write_to(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let mut out = Summed { inner: out, sum: crc32fast::Hasher::new() };
        out.write_all(MAGIC)?;
        while let Some(piece) = self.next_piece().map_err(io::Error::other)? {
            for (key, value) in piece {
                write_bytes(&mut out, &key)?;
                write_bytes(&mut out, &value)?;
            }
        }
        out.write_all(&END.to_le_bytes())?;
        let sum = out.sum.clone().finalize();
        out.write_all(&sum.to_le_bytes())
    }

    fn next_piece(&mut self) -> Result<Option<Piece>, StoreError> {
        let mut copies = self.disk.writer.lock();
        let begun = Instant::now();
        let Some(progress) = copies.running.get_mut(&self.number) else {
            return Err(StoreError::Unavailable {
                reason: "copy was overtaken by too many writes".to_owned(),
            });
        };
        let mut piece = BTreeMap::new();
        let (mut size, mut end) = (0, None);
        for item in self.tree.range(progress.cursor.clone()..) {
            let (key, value) = item.map_err(|e| failed("copy", e))?;
            if size > PIECE || (size > 0 && begun.elapsed() > PIECE_TIME) {
                end = Some(key.to_vec());
                break;
            }
            size += key.len() + value.len();
            piece.insert(key.to_vec(), Some(value));
        }
        // Keys that changed since the copy began, also those that are no longer there.
        let later = end.as_ref().map_or_else(BTreeMap::new, |end| progress.saved.split_off(end));
        let changed = std::mem::replace(&mut progress.saved, later);
        progress.saved_bytes -=
            changed.iter().map(|(k, v)| 64 + k.len() + v.as_ref().map_or(0, |v| v.len())).sum::<usize>();
        piece.extend(changed);
        if end.is_none() && piece.is_empty() {
            return Ok(None);
        }
        // Behind every key: nothing is left to copy, and nothing to save.
        progress.cursor = end.unwrap_or_else(|| vec![0xff; 8]);
        // To a writer that waits: the next piece is asked for at once, and would have the lock before it.
        MutexGuard::unlock_fair(copies);
        Ok(Some(piece.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.disk.writer.lock().running.remove(&self.number);
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
