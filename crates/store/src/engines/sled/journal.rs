//! Where changes are durable before they are in sled: files that are only appended to, one for each layer.
//!
//! A file begins with the number of the tree that it belongs to. Then comes one entry for each write: its length, a
//! checksum, its number, how many are known to be synced, and the changes by partition. What a crash left behind the
//! last whole entry in a row was never acknowledged, unless a later entry says that it was synced: then it is damaged, and
//! nothing is guessed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    disk::{failed_io, remove_file, sync_folder},
    layer::{Layer, Part, Rest},
    run::Run,
};
use crate::engine::{Key, StoreError};

/// The folder inside the store's one.
pub(super) const FOLDER: &str = "journal";
/// What a file begins with; the last byte is the version of its layout.
const MAGIC: &[u8; 8] = b"rkjrnal\x02";
/// As [`MAGIC`], of files whose entries have no runs.
const WITHOUT_RUNS: &[u8; 8] = b"rkjrnal\x01";
/// What each entry begins with, so that whole ones are found behind a damaged one.
const ENTRY: [u8; 4] = *b"\xf1rke";
/// Mark, length, checksum, number, entries that were synced.
const ENTRY_HEADER: usize = 4 + 4 + 4 + 8 + 8;
const FILE_HEADER: usize = 8 + 8;
/// The length of what is no record but a deletion.
const DELETED: u32 = u32::MAX;
/// A buffer that grew beyond this is not kept.
const BUFFER_KEPT: usize = 1024 * 1024;

/// The file that is written now.
pub(super) struct Journal {
    folder: PathBuf,
    generation: u64,
    file: Arc<File>,
    path: PathBuf,
    number: u64,
    length: u64,
    entry: u64,
    synced: Arc<AtomicU64>,
    buffer: Vec<u8>,
}

/// What was written up to some moment.
pub(super) struct Written {
    file: Arc<File>,
    entries: u64,
    synced: Arc<AtomicU64>,
}

impl Written {
    /// Makes it survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.synced.fetch_max(self.entries, Ordering::Relaxed);
        Ok(())
    }
}

/// What is left of journals: a layer for each file, the oldest first.
pub(super) struct Left {
    pub(super) layers: Vec<Layer>,
    number: u64,
}

impl Journal {
    /// Begins a file behind those that are there.
    pub(super) fn begin(path: &Path, generation: u64, left: &Left) -> Result<Journal, StoreError> {
        Self::create(&path.join(FOLDER), generation, left.number + 1)
            .map_err(|e| failed_io("begin a journal", &e))
    }

    fn create(folder: &Path, generation: u64, number: u64) -> io::Result<Journal> {
        let path = folder.join(format!("{number:012}"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        file.write_all(&[&MAGIC[..], &generation.to_be_bytes()].concat())?;
        file.sync_data()?;
        sync_folder(folder)?;
        let folder = folder.to_owned();
        let length = FILE_HEADER as u64;
        Ok(Journal {
            folder,
            generation,
            file: Arc::new(file),
            path,
            number,
            length,
            entry: 0,
            synced: Arc::default(),
            buffer: Vec::new(),
        })
    }

    /// Writes changes behind those before; they are durable once the file is synced.
    ///
    /// # Errors
    /// [`StoreError::Full`] and others leave the file as it was; the inner error says that not even that is sure.
    pub(super) fn append(&mut self, changes: &Layer) -> Result<Result<(), StoreError>, String> {
        self.buffer.clear();
        self.buffer.resize(ENTRY_HEADER, 0);
        encode(changes, &mut self.buffer);
        let Ok(length) = u32::try_from(self.buffer.len() - ENTRY_HEADER) else {
            return Ok(Err(StoreError::TooLarge { what: "write", max: u32::MAX as usize }));
        };
        self.buffer[..4].copy_from_slice(&ENTRY);
        self.buffer[4..8].copy_from_slice(&length.to_le_bytes());
        self.buffer[12..20].copy_from_slice(&self.entry.to_le_bytes());
        self.buffer[20..28].copy_from_slice(&self.synced.load(Ordering::Relaxed).to_le_bytes());
        let sum = crc32fast::hash(&self.buffer[12..]);
        self.buffer[8..12].copy_from_slice(&sum.to_le_bytes());
        if let Err(e) = (&*self.file).write_all(&self.buffer) {
            let error = failed_io("write its journal", &e);
            let back = self
                .file
                .set_len(self.length)
                .and_then(|()| (&*self.file).seek(SeekFrom::Start(self.length)));
            return match back {
                Ok(_) => Ok(Err(error)),
                Err(e) => Err(format!("{error}, and what was written of it cannot be taken back: {e}")),
            };
        }
        self.length += self.buffer.len() as u64;
        self.entry += 1;
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        Ok(Ok(()))
    }

    /// What is in it now. What was written to the files before is durable since this one was begun.
    pub(super) fn written(&self) -> Written {
        Written { file: self.file.clone(), entries: self.entry, synced: self.synced.clone() }
    }

    /// Begins another file, once all that is in the one before is synced. Gives its number and its path.
    pub(super) fn turn(&mut self) -> io::Result<(u64, PathBuf)> {
        let next = Self::create(&self.folder, self.generation, self.number + 1)?;
        let before = std::mem::replace(self, next);
        Ok((before.number, before.path))
    }

    /// Begins another file for another tree; what is in those before counts no more.
    pub(super) fn begin_anew(&mut self, generation: u64) -> io::Result<()> {
        let next = Self::create(&self.folder, generation, self.number + 1)?;
        remove_file(&std::mem::replace(self, next).path);
        Ok(())
    }
}

/// Removes the journal of a layer that is in sled, or that counts no more.
pub(super) fn remove(layer: &Layer) {
    if let Some((_, path)) = &layer.journal {
        remove_file(path);
    }
}

fn encode(changes: &Layer, out: &mut Vec<u8>) {
    // All of these lengths are bounded far below by the engine.
    let short = |bytes: &[u8], out: &mut Vec<u8>| {
        out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    for (prefix, part) in &changes.parts {
        short(prefix, out);
        out.push(u8::from(part.wiped));
        out.extend_from_slice(&(part.changes.len() as u32).to_le_bytes());
        for (rest, change) in &part.changes {
            short(rest, out);
            match change {
                None => out.extend_from_slice(&DELETED.to_le_bytes()),
                Some(sealed) => {
                    out.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
                    out.extend_from_slice(sealed);
                }
            }
        }
        out.push(part.runs.len() as u8);
        for run in &part.runs {
            short(run.table(), out);
            out.extend_from_slice(&(run.bytes().len() as u32).to_le_bytes());
            out.extend_from_slice(run.bytes());
        }
    }
}

/// Takes bytes from the front of an entry.
struct Entry<'a> {
    left: &'a [u8],
    has_runs: bool,
}

impl<'a> Entry<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.left.split_at_checked(count)?;
        self.left = left;
        Some(taken)
    }

    fn short(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        self.take(usize::from(length))
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn part(&mut self) -> Option<(Key, Part)> {
        let prefix = self.short()?.to_vec();
        let mut part = Part { wiped: self.take(1)? == [1], ..Part::default() };
        for _ in 0..self.number()? {
            let rest = Rest::from_slice(self.short()?);
            let change = match self.number()? {
                DELETED => None,
                length => Some(self.take(usize::try_from(length).ok()?)?.to_vec()),
            };
            part.changes.insert(rest, change);
        }
        let runs = if self.has_runs { self.take(1)?[0] } else { 0 };
        for _ in 0..runs {
            let table = self.short()?;
            let length = usize::try_from(self.number()?).ok()?;
            part.runs.push(Run::read(table, self.take(length)?)?);
        }
        Some((prefix, part))
    }
}

/// Reads the files that belong to a tree and have a later number than the last one that is in it, takes off what a crash
/// cut, and removes the others.
pub(super) fn read_all(path: &Path, generation: u64, settled: u64) -> Result<Left, StoreError> {
    let folder = path.join(FOLDER);
    let failed = |e: io::Error| failed_io("read its journal", &e);
    fs::create_dir_all(&folder).map_err(failed)?;
    sync_folder(path).map_err(failed)?;
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            files.push((number, entry.path()));
        }
    }
    files.sort_unstable();
    let mut left = Left { layers: Vec::new(), number: settled };
    for (number, path) in files {
        left.number = left.number.max(number);
        let layer = if number > settled { read_one(number, &path, generation)? } else { None };
        match layer {
            Some(layer) if !layer.is_empty() => left.layers.push(layer),
            _ => remove_file(&path),
        }
    }
    Ok(left)
}

/// `None`: it belongs to another tree, or was cut before it began.
fn read_one(number: u64, path: &Path, generation: u64) -> Result<Option<Layer>, StoreError> {
    let failed = |e: io::Error| failed_io("read its journal", &e);
    let mut bytes = Vec::new();
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    file.read_to_end(&mut bytes).map_err(failed)?;
    let Some((header, entries)) = bytes.split_at_checked(FILE_HEADER) else { return Ok(None) };
    let has_runs = header[..8] == *MAGIC;
    if !has_runs && header[..8] != *WITHOUT_RUNS {
        let reason = format!("journal `{}` has an unknown format", path.display());
        return Err(StoreError::Engine { reason });
    }
    if header[8..] != generation.to_be_bytes() {
        return Ok(None);
    }
    let mut layer = Layer { journal: Some((number, path.to_owned())), ..Layer::default() };
    let (mut at, mut number) = (0, 0);
    while let Some(payload) = whole_entry(&entries[at..], number) {
        let mut entry = Entry { left: payload, has_runs };
        while !entry.left.is_empty() {
            let Some((prefix, part)) = entry.part() else { return Err(damaged(path)) };
            layer.add(&prefix, part);
        }
        at += ENTRY_HEADER + payload.len();
        number += 1;
    }
    if at < entries.len() {
        let tells = |from: usize| tells_of_sync(&entries[from..], number);
        if (at + 1..entries.len()).any(tells) {
            return Err(damaged(path));
        }
        tracing::warn!(file = %path.display(), bytes = entries.len() - at, "a write was cut by a crash, nobody was told of it");
        let whole = (FILE_HEADER + at) as u64;
        file.set_len(whole).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    Ok(Some(layer))
}

fn damaged(path: &Path) -> StoreError {
    let reason = format!(
        "journal `{}` is damaged before its end: without it the store would lack what was written there",
        path.display()
    );
    StoreError::Engine { reason }
}

/// What is inside the entry at the front, if it is whole and has this number.
fn whole_entry(bytes: &[u8], number: u64) -> Option<&[u8]> {
    let (payload, found, _) = open_entry(bytes)?;
    (found == number).then_some(payload)
}

/// Whether a whole entry is at the front that was written when the one of this number was synced.
fn tells_of_sync(bytes: &[u8], number: u64) -> bool {
    bytes.starts_with(&ENTRY) && open_entry(bytes).is_some_and(|(_, _, synced)| synced > number)
}

/// What is inside the entry at the front, if it is whole, its number, and how many were synced.
fn open_entry(bytes: &[u8]) -> Option<(&[u8], u64, u64)> {
    let (header, rest) = bytes.split_at_checked(ENTRY_HEADER)?;
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?);
    let payload = rest.get(..usize::try_from(length).ok()?)?;
    let sum = crc32fast::hash(&bytes[12..ENTRY_HEADER + payload.len()]);
    let is_whole = header[..4] == ENTRY && header[8..12] == sum.to_le_bytes();
    let number = |at: usize| Some(u64::from_le_bytes(header[at..at + 8].try_into().ok()?));
    Some((payload, number(12)?, number(20)?)).filter(|_| is_whole)
}
