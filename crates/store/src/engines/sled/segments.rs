//! Blocks of log tables in files of their own: sled keeps only where each of them is.
//!
//! Sled writes a page anew for each change of it, and so wrote what is written once some four times. A segment is
//! appended to until it is large enough, and then never changed. A block that sled does not point at any more is dead;
//! once half of a segment is, what lives of it moves to the end of the newest one, and the file goes.
//!
//! In front of each block: the length of its key, its length, a checksum of all of it, and its key with the partition.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    disk::{failed_io, remove_file, sync_folder},
    layout,
};
use crate::engine::StoreError;

/// The folder inside the store's one.
pub(super) const FOLDER: &str = "segments";
/// What a file begins with; the last byte is the version of its layout.
const MAGIC: &[u8; 8] = b"rksegmt\x01";
const FILE_HEADER: u64 = 8 + 8;
/// In front of a block and its key: the lengths of the two and the checksum.
const HEADER: usize = 2 + 4 + 4;
/// A file takes no more blocks beyond this, in bytes.
const SEGMENT_BYTES: u64 = if cfg!(test) { 64 * 1024 } else { 32 * 1024 * 1024 };
/// A buffer that grew beyond this is not kept.
const BUFFER_KEPT: usize = 64 * 1024;
/// Files that are kept open to read from them.
const OPEN_MAX: usize = 128;
/// Bytes of a segment that are looked at for what lives in one go.
const LOOK_BYTES: u64 = if cfg!(test) { 20 * 1024 } else { 512 * 1024 };
const LOOK_BLOCKS: usize = 256;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    offset: u32,
    length: u32,
}

impl Place {
    /// As sled has it.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let Place { segment, offset, length } = self;
        let mut bytes = vec![layout::PLACE];
        bytes.extend_from_slice(&segment.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes
    }

    /// `None`: that is no place.
    pub(super) fn read(bytes: &[u8]) -> Option<Place> {
        let more = bytes.strip_prefix(&[layout::PLACE])?;
        let (segment, more) = more.split_first_chunk()?;
        let (offset, more) = more.split_first_chunk()?;
        let length = more.try_into().ok()?;
        Some(Place {
            segment: u64::from_le_bytes(*segment),
            offset: u32::from_le_bytes(*offset),
            length: u32::from_le_bytes(length),
        })
    }
}

/// The files, to read from.
pub(super) struct Segments {
    folder: PathBuf,
    open: Mutex<HashMap<u64, Arc<File>>>,
}

impl Segments {
    /// Finds those of a tree, and removes others; gives their numbers as well.
    pub(super) fn open(path: &Path, generation: u64) -> Result<(Segments, BTreeSet<u64>), StoreError> {
        let folder = path.join(FOLDER);
        let failed = |e: io::Error| failed_io("look through its segments", &e);
        fs::create_dir_all(&folder).map_err(failed)?;
        sync_folder(path).map_err(failed)?;
        let mut numbers = BTreeSet::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            let file = File::open(entry.path()).map_err(failed)?;
            let mut head = [0; 16];
            let has_head = file.read_exact_at(&mut head, 0).is_ok();
            if has_head && head[..8] != *MAGIC {
                let reason = format!("segment `{}` has an unknown format", entry.path().display());
                return Err(StoreError::Engine { reason });
            }
            if has_head && head[8..] == generation.to_be_bytes() {
                numbers.insert(number);
            } else {
                remove_file(&entry.path());
            }
        }
        Ok((Segments { folder, open: Mutex::default() }, numbers))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:012}"))
    }

    fn file(&self, number: u64) -> io::Result<Arc<File>> {
        let mut open = self.open.lock();
        if let Some(file) = open.get(&number) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(self.path(number))?);
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(number, file.clone());
        Ok(file)
    }

    /// The bytes of a block.
    pub(super) fn read(&self, place: Place) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; place.length as usize];
        self.file(place.segment)?.read_exact_at(&mut bytes, u64::from(place.offset))?;
        Ok(bytes)
    }

    /// Removes a segment in which nothing lives.
    pub(super) fn remove(&self, number: u64) {
        self.open.lock().remove(&number);
        remove_file(&self.path(number));
    }
}

/// How much is in a segment, and how much of that is dead, in bytes.
///
/// Sled is told of it before it points there: it points at nothing behind `length`, which is what a crash left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    length: u64,
    dead: u64,
}

impl Extent {
    /// As sled has it.
    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..].copy_from_slice(&self.dead.to_le_bytes());
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Extent> {
        let (length, dead) = bytes.split_first_chunk()?;
        Some(Extent { length: u64::from_le_bytes(*length), dead: u64::from_le_bytes(dead.try_into().ok()?) })
    }
}

/// Appends blocks, and knows how much of each segment is dead.
pub(super) struct Appender {
    segments: Arc<Segments>,
    generation: u64,
    next: u64,
    current: Option<Current>,
    extents: HashMap<u64, Extent>,
    /// Whose extents are not as sled has them.
    changed: BTreeSet<u64>,
    buffer: Vec<u8>,
}

struct Current {
    number: u64,
    file: Arc<File>,
    /// How far it survives a power cut.
    synced: u64,
}

impl Appender {
    /// `found`: the segments that are there; `known`: what sled knows of them.
    pub(super) fn new(
        segments: Arc<Segments>,
        generation: u64,
        found: BTreeSet<u64>,
        known: &HashMap<u64, Extent>,
    ) -> Appender {
        let next = found.last().map_or(1, |last| last + 1);
        let unknown = Extent { length: FILE_HEADER, dead: FILE_HEADER };
        let extent = |number| (number, known.get(&number).copied().unwrap_or(unknown));
        let extents = found.into_iter().map(extent).collect();
        Appender {
            segments,
            generation,
            next,
            current: None,
            extents,
            changed: BTreeSet::new(),
            buffer: Vec::new(),
        }
    }

    /// Writes a block; it is durable after [`Appender::sync`], before which sled must not point at it.
    pub(super) fn append(&mut self, key: &[u8], block: &[u8]) -> io::Result<Place> {
        if self.current.as_ref().is_some_and(|current| self.length(current.number) >= SEGMENT_BYTES) {
            self.sync()?;
            self.current = None;
        }
        let (number, file) = match &self.current {
            Some(current) => (current.number, current.file.clone()),
            None => self.begin()?,
        };
        let before = self.length(number);
        let bytes = &mut self.buffer;
        bytes.clear();
        // Both are bounded far below by the engine.
        bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&(block.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&sum(key, block).to_le_bytes());
        bytes.extend_from_slice(key);
        let offset = before + bytes.len() as u64;
        bytes.extend_from_slice(block);
        file.write_all_at(bytes, before)?;
        self.extents.entry(number).or_default().length += bytes.len() as u64;
        bytes.shrink_to(BUFFER_KEPT);
        self.changed.insert(number);
        Ok(Place { segment: number, offset: offset as u32, length: block.len() as u32 })
    }

    fn length(&self, number: u64) -> u64 {
        self.extents.get(&number).map_or(0, |extent| extent.length)
    }

    fn begin(&mut self) -> io::Result<(u64, Arc<File>)> {
        let number = self.next;
        let path = self.segments.path(number);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.write_all_at(&[&MAGIC[..], &self.generation.to_be_bytes()].concat(), 0)?;
        file.sync_data()?;
        sync_folder(&self.segments.folder)?;
        self.next += 1;
        self.extents.insert(number, Extent { length: FILE_HEADER, dead: 0 });
        let file = Arc::new(file);
        self.current = Some(Current { number, file: file.clone(), synced: FILE_HEADER });
        Ok((number, file))
    }

    /// Makes all blocks survive a power cut.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let length = self.current.as_ref().map_or(0, |current| self.length(current.number));
        if let Some(current) = self.current.as_mut().filter(|current| current.synced < length) {
            current.file.sync_data()?;
            current.synced = length;
        }
        Ok(())
    }

    /// The file that is written, and how far it survives a power cut.
    #[cfg(test)]
    pub(super) fn synced(&self) -> Option<(PathBuf, u64)> {
        self.current.as_ref().map(|current| (self.segments.path(current.number), current.synced))
    }

    /// Notes that sled points at a block no more.
    pub(super) fn forget(&mut self, key: &[u8], place: Place) {
        if let Some(extent) = self.extents.get_mut(&place.segment) {
            extent.dead += u64::from(place.length) + (HEADER + key.len()) as u64;
            self.changed.insert(place.segment);
        }
    }

    /// What sled is to know: the extents of segments, `None` of those that are gone.
    pub(super) fn take_changed(&mut self) -> Vec<(u64, Option<Extent>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|number| (number, self.extents.get(&number).copied())).collect()
    }

    /// Begins to look for what lives in the segment of which the largest part is dead, if that is half of it or more.
    pub(super) fn collect(&self) -> Option<Collecting> {
        let current = self.current.as_ref().map(|current| current.number);
        let dead = self.extents.iter().filter(|(number, extent)| {
            Some(**number) != current && extent.dead.saturating_mul(2) >= extent.length
        });
        let share = |extent: &Extent| extent.dead.saturating_mul(1_000) / extent.length.max(1);
        let (number, extent) = dead.max_by_key(|(number, extent)| (share(extent), **number))?;
        Some(Collecting {
            number: *number,
            at: FILE_HEADER,
            length: extent.length,
            moved: Vec::new(),
            is_synced: false,
        })
    }

    /// Removes a segment from which all that lived has moved.
    pub(super) fn remove(&mut self, number: u64) {
        self.segments.remove(number);
        self.extents.remove(&number);
        self.changed.insert(number);
    }

    /// Looks for nothing in a damaged segment any more, which stays as it is.
    pub(super) fn leave(&mut self, number: u64) {
        self.extents.remove(&number);
    }

    /// Begins anew for another tree, which points at none of the segments.
    pub(super) fn begin_anew(&mut self, generation: u64) {
        self.current = None;
        for (number, _) in self.extents.drain() {
            self.segments.remove(number);
            self.changed.insert(number);
        }
        self.generation = generation;
    }
}

fn sum(key: &[u8], block: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(key);
    sum.update(block);
    sum.finalize()
}

/// A segment that is looked through for what lives.
pub(super) struct Collecting {
    pub(super) number: u64,
    at: u64,
    length: u64,
    /// The keys of what lives, where it was and where it is now.
    pub(super) moved: Vec<(Vec<u8>, Place, Place)>,
    /// Whether what moved is durable.
    pub(super) is_synced: bool,
}

/// A block of a segment, whether it lives or not.
pub(super) struct Found {
    pub(super) key: Vec<u8>,
    pub(super) place: Place,
    pub(super) block: Vec<u8>,
}

impl Collecting {
    /// The next blocks; none are left where it gives none.
    ///
    /// # Errors
    /// Also where the segment is damaged.
    pub(super) fn look(&mut self, segments: &Segments) -> io::Result<Vec<Found>> {
        let file = segments.file(self.number)?;
        let mut found = Vec::new();
        let begun = self.at;
        while self.at < self.length && self.at - begun < LOOK_BYTES && found.len() < LOOK_BLOCKS {
            let mut head = [0; HEADER];
            file.read_exact_at(&mut head, self.at)?;
            let [k0, k1, b0, b1, b2, b3, s0, s1, s2, s3] = head;
            let key_length = usize::from(u16::from_le_bytes([k0, k1]));
            let length = u32::from_le_bytes([b0, b1, b2, b3]);
            let at = self.at + HEADER as u64;
            if at + key_length as u64 + u64::from(length) > self.length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut key = vec![0; key_length + length as usize];
            file.read_exact_at(&mut key, at)?;
            let block = key.split_off(key_length);
            if sum(&key, &block) != u32::from_le_bytes([s0, s1, s2, s3]) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "checksum of a block does not match"));
            }
            let offset = (at + key_length as u64) as u32;
            self.at = at + key_length as u64 + u64::from(length);
            found.push(Found { key, place: Place { segment: self.number, offset, length }, block });
        }
        Ok(found)
    }
}
