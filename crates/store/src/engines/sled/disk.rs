//! One sled database on disk: opened and repaired, synced for real, watched for free space.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::ffi::OsStrExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Mutex, RwLock};

use super::{
    blocks::Ground,
    copy::Copies,
    journal::{self, Journal, Written},
    kept::Kept,
    layer::Bounds,
    layout,
    records::Records,
    segments::{self, Appender, Extent, Segments},
    settling::{EXTENTS, Gaps, Writer},
};
use crate::engine::{Batch, Key, Op, Partition, Range, Record, StoreError, Table};

/// Where a sled store is and how much it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The folder of the store; made if it is not there.
    pub path: PathBuf,
    /// Memory for cached pages, in bytes; as much as a 32nd of it comes on top for small partitions.
    pub cache_bytes: u64,
    /// Threads that read.
    pub readers: usize,
    /// Calls that wait for a reader or for the writer before further callers wait outside.
    pub queue: usize,
    /// Free space, in bytes, below which nothing more is accepted: sled does not survive a disk that is
    /// really full without being opened anew.
    pub reserve_bytes: u64,
    /// Changes that are gathered in memory and in one file before they go to sled, in bytes; as much again may be on its
    /// way there.
    pub layer_bytes: usize,
}

impl Config {
    pub fn new(path: impl Into<PathBuf>) -> Config {
        Config {
            path: path.into(),
            cache_bytes: 64 * 1024 * 1024,
            readers: 2,
            queue: 1024,
            reserve_bytes: 64 * 1024 * 1024,
            layer_bytes: 16 * 1024 * 1024,
        }
    }
}

/// What the free space of the disk still allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Anything.
    Enough,
    /// Batches that only delete: sled needs room to forget, so the last quarter of the reserve is for them.
    Deletes,
    None,
}

impl Space {
    /// # Errors
    /// [`StoreError::Full`] if the batches need more room than there is.
    pub fn check(self, batches: &[Batch]) -> Result<(), StoreError> {
        let only_deletes =
            || batches.iter().flat_map(|b| b.ops.iter()).all(|op| !matches!(op, Op::Put { .. }));
        match self {
            Space::Enough => Ok(()),
            Space::Deletes if only_deletes() => Ok(()),
            Space::Deletes | Space::None => Err(StoreError::Full),
        }
    }
}

/// The folder inside the store's one where files go that could not be read.
pub const ASIDE: &str = "aside";
/// How long to wait for another process, or an earlier life of this one, to let go of the files.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Small partitions are kept as records in this part of the memory for cached pages.
const KEPT_SHARE: u64 = 32;
/// The tree with the number of the tree that holds the records.
const GENERATION: &[u8] = b"generation";
/// The number of the last journal whose changes are in it.
pub(super) const SETTLED: &[u8] = b"settled";
const RECORDS: &str = "records-";

/// A sled database; its calls block and belong on threads of their own.
pub struct Disk {
    pub(super) db: sled::Db,
    /// Written where many keys change at once, so that a scan sees all or nothing.
    pub(super) records: RwLock<Records>,
    pub(super) writer: Mutex<Writer>,
    /// Changed under the lock of `records` only.
    pub(super) kept: Kept,
    path: PathBuf,
    data: File,
    blobs: Mutex<Blobs>,
    reserve_bytes: u64,
    pub(super) layer_bytes: usize,
    broken: OnceLock<String>,
}

#[derive(Default)]
struct Blobs {
    changed: Option<SystemTime>,
    synced: BTreeSet<OsString>,
}

impl Disk {
    /// Opens a store, or makes it.
    ///
    /// A snapshot file of sled that was torn by a crash is moved to [`ASIDE`]: it only shortens recovery.
    pub fn open(config: &Config) -> Result<Disk, StoreError> {
        fs::create_dir_all(&config.path).map_err(|e| failed_io("create its folder", &e))?;
        move_torn_snapshots(&config.path).map_err(|e| failed_io("move a torn snapshot aside", &e))?;
        let settings = sled::Config::new()
            .path(&config.path)
            .cache_capacity(config.cache_bytes)
            .flush_every_ms(Some(1000))
            .use_compression(false);
        let db = open_unlocked(&settings)?;
        let tree = current_tree(&db)?;
        let generation = generation(&db)?;
        let (segments, found) = Segments::open(&config.path, generation)?;
        let segments = Arc::new(segments);
        let appender = Appender::new(segments.clone(), generation, found, &extents(&db)?);
        let left = journal::read_all(&config.path, generation, number_at(&db, SETTLED)?)?;
        let journal = Journal::begin(&config.path, generation, &left)?;
        let mut records = Records::new(Ground { tree, segments });
        left.layers.into_iter().for_each(|layer| records.frozen.push_front(Arc::new(layer)));
        let data = File::open(config.path.join("db")).map_err(|e| failed_io("open its data file", &e))?;
        let disk = Disk {
            db,
            records: RwLock::new(records),
            writer: Mutex::new(Writer {
                journal,
                gaps: Gaps::default(),
                copies: Copies::default(),
                settling: None,
                appender,
                collecting: None,
            }),
            kept: Kept::new(usize::try_from(config.cache_bytes / KEPT_SHARE).unwrap_or(usize::MAX)),
            path: config.path.clone(),
            data,
            blobs: Mutex::default(),
            reserve_bytes: config.reserve_bytes,
            layer_bytes: config.layer_bytes,
            broken: OnceLock::new(),
        };
        disk.sync_sled()?;
        // The folder's own entries (db, conf) must be there after a power cut, too.
        sync_folder(&disk.path).map_err(|e| failed_io("sync its folder", &e))?;
        Ok(disk)
    }

    /// Makes all that was written survive a power cut.
    ///
    /// An error means that nobody knows what is on the disk: the store accepts nothing more until it is
    /// opened anew.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.usable()?;
        let written = self.writer.lock().journal.written();
        self.sync_journal(&written)
    }

    pub(super) fn sync_journal(&self, written: &Written) -> Result<(), StoreError> {
        let synced = written.sync().map_err(|e| failed_io("sync its journal", &e));
        if let Err(e) = &synced {
            self.break_down(format!("sync failed: {e}"));
        }
        synced
    }

    /// As [`Disk::sync`], of what is in sled.
    pub(super) fn sync_sled(&self) -> Result<(), StoreError> {
        self.usable()?;
        let flushed = self.guarded("flush", || {
            self.db.flush().map_err(|e| failed("flush", e))?;
            // sled's flush ends in `sync_file_range`, which asks nothing of the drive and no metadata.
            self.data.sync_data().map_err(|e| failed_io("sync its data file", &e))?;
            self.sync_blobs().map_err(|e| failed_io("sync its blobs", &e))
        });
        if let Err(e) = &flushed {
            self.break_down(format!("sync failed: {e}"));
        }
        flushed
    }

    /// sled writes what is too large for a page to files of their own and never syncs them.
    fn sync_blobs(&self) -> io::Result<()> {
        let folder = self.path.join("blobs");
        let changed = fs::metadata(&folder)?.modified()?;
        let mut blobs = self.blobs.lock();
        if blobs.changed == Some(changed) {
            return Ok(());
        }
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(&folder)? {
            let name = entry?.file_name();
            if !blobs.synced.contains(&name) {
                match File::open(folder.join(&name)) {
                    Ok(file) => file.sync_data()?,
                    // Collected by sled in the meantime.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                }
            }
            there.insert(name);
        }
        sync_folder(&folder)?;
        blobs.synced = there;
        // A blob that was added while the folder was read made it younger, so the next sync looks again.
        // Within one tick of the file system's clock that may go unseen: then look again as well.
        let settled = changed.elapsed().is_ok_and(|age| age.as_millis() > 100);
        blobs.changed = settled.then_some(changed);
        Ok(())
    }

    /// How much room the disk has.
    pub fn space(&self) -> Result<Space, StoreError> {
        match free_bytes(&self.path) {
            Ok(free) if free < self.reserve_bytes / 4 => Ok(Space::None),
            Ok(free) if free < self.reserve_bytes => Ok(Space::Deletes),
            Ok(_) => Ok(Space::Enough),
            Err(e) => Err(failed_io("ask for free space", &e)),
        }
    }

    pub fn get(&self, partition: &Partition, table: Table, key: &[u8]) -> Result<Option<Record>, StoreError> {
        self.usable()?;
        let (prefix, rest) = (layout::partition_prefix(partition), layout::record_rest(table, key));
        let found = self.records.read().get(&prefix, &rest, table.is_log());
        found
            .map_err(|fault| fault.told(partition, table, key, "read"))?
            .map(|bytes| {
                layout::open(&prefix, &rest, bytes).map_err(|r| layout::corrupt(partition, table, key, r))
            })
            .transpose()
    }

    pub fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: &Range,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.usable()?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let (prefix, start) = (layout::partition_prefix(partition), layout::table_start(table));
        let bounds = layout::bounds(&start, range);
        let limit = range.limit.min(Range::LIMIT_MAX);
        let told = |fault: Fault| fault.told(partition, table, &[], "scan");
        let records = self.records.read();
        let found = records.range(&prefix, &bounds, range.reverse, table.is_log()).map_err(told)?;
        let open = |found: Result<(Key, Vec<u8>), Fault>| {
            let (mut rest, bytes) = found.map_err(told)?;
            let record = layout::open(&prefix, &rest, bytes)
                .map_err(|reason| layout::corrupt(partition, table, &rest[start.len()..], reason))?;
            rest.drain(..start.len());
            Ok((rest, record))
        };
        found.take(limit).map(open).collect()
    }

    /// Reads what [`super::writing::Writing::mark`] kept under a name.
    pub fn mark(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.records.read().get(layout::MARKS, name, false);
        found.map_err(|fault| failed("read a mark", fault.into_sled()))
    }

    /// Reads all marks whose names start with `prefix`, in the order of their names.
    pub fn marks(&self, prefix: &[u8]) -> Result<Vec<(Key, Vec<u8>)>, StoreError> {
        let bounds: Bounds = layout::bounds(prefix, &Range::all());
        let failed = |fault: Fault| failed("read marks", fault.into_sled());
        let records = self.records.read();
        let found = records.range(layout::MARKS, &bounds, false, false).map_err(failed)?;
        found.map(|found| found.map_err(failed)).collect()
    }

    /// The folder of the store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that the store takes on the disk.
    pub fn size_on_disk(&self) -> u64 {
        let beside = [journal::FOLDER, segments::FOLDER].map(|folder| folder_bytes(&self.path.join(folder)));
        self.db.size_on_disk().unwrap_or(0) + beside.iter().sum::<u64>()
    }

    /// Why the store stopped, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    pub(super) fn usable(&self) -> Result<(), StoreError> {
        match self.broken.get() {
            Some(reason) => Err(StoreError::Unavailable { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn break_down(&self, reason: String) {
        tracing::error!(path = %self.path.display(), reason, "store stopped");
        // Only the first reason counts; the later ones follow from it.
        let _ = self.broken.set(reason);
    }

    /// Runs a write; a panic in sled stops the store, as nobody knows what was written.
    pub(super) fn guarded<R>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            self.break_down(format!("sled panicked in {what}"));
            self.usable().and(Err(StoreError::Engine { reason: format!("sled panicked in {what}") }))
        })
    }

    /// Opens an empty tree beside the one in use, for a state that comes from elsewhere.
    pub(super) fn fresh_tree(&self) -> Result<(u64, sled::Tree), StoreError> {
        let number = generation(&self.db)? + 1;
        let name = format!("{RECORDS}{number}");
        // Left over from an installation that was cut short.
        self.db.drop_tree(&name).map_err(|e| failed("drop a stale tree", e))?;
        let tree = self.db.open_tree(&name).map_err(|e| failed("open a tree", e))?;
        Ok((number, tree))
    }

    /// Puts a tree in the place of the one in use; after a crash it is wholly the one or the other.
    pub(super) fn switch_tree(
        &self,
        writer: &mut Writer,
        number: u64,
        tree: sled::Tree,
    ) -> Result<(), StoreError> {
        // All records of the new tree must be on the disk before anything points at it.
        self.sync_sled()?;
        let mut place = self.records.write();
        self.db.insert(GENERATION, &number.to_be_bytes()).map_err(|e| failed("switch trees", e))?;
        self.sync_sled()?;
        // From here on the journals of the tree before count no more.
        let segments = place.ground.segments.clone();
        let before = std::mem::replace(&mut *place, Records::new(Ground { tree, segments }));
        self.kept.clear();
        writer.gaps.clear();
        writer.settling = None;
        writer.collecting = None;
        let begun = writer.journal.begin_anew(number);
        drop(place);
        if let Err(e) = begun {
            let error = failed_io("begin a journal", &e);
            self.break_down(error.to_string());
            return Err(error);
        }
        before.frozen.iter().for_each(|layer| journal::remove(layer));
        writer.appender.begin_anew(number);
        self.db.drop_tree(before.ground.tree.name()).map_err(|e| failed("drop the replaced tree", e))?;
        Ok(())
    }
}

/// Opens sled, waiting a little for whoever had it open and is about to end.
fn open_unlocked(settings: &sled::Config) -> Result<sled::Db, StoreError> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        let opened = catch_unwind(AssertUnwindSafe(|| settings.open()))
            .map_err(|_| StoreError::Engine { reason: "sled panicked while opening".to_owned() })?;
        match opened {
            Ok(db) => return Ok(db),
            // sled has no variant for it.
            Err(e) if e.to_string().contains("could not acquire lock") => {
                if Instant::now() >= until {
                    return Err(StoreError::Engine {
                        reason: "another process has the store open".to_owned(),
                    });
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => return Err(failed("open", e)),
        }
    }
}

fn generation(db: &sled::Db) -> Result<u64, StoreError> {
    number_at(db, GENERATION)
}

fn number_at(db: &sled::Db, key: &[u8]) -> Result<u64, StoreError> {
    let found = db.get(key).map_err(|e| failed("read its generation", e))?;
    let number = found.and_then(|bytes| bytes.as_ref().try_into().ok().map(u64::from_be_bytes));
    Ok(number.unwrap_or(0))
}

/// What is known of the segments, by their numbers.
fn extents(db: &sled::Db) -> Result<HashMap<u64, Extent>, StoreError> {
    let mut extents = HashMap::new();
    for found in db.scan_prefix(EXTENTS) {
        let (key, bytes) = found.map_err(|e| failed("read what its segments hold", e))?;
        let number = key[EXTENTS.len()..].try_into().map(u64::from_be_bytes);
        if let (Ok(number), Some(extent)) = (number, Extent::read(&bytes)) {
            extents.insert(number, extent);
        }
    }
    Ok(extents)
}

fn current_tree(db: &sled::Db) -> Result<sled::Tree, StoreError> {
    let name = format!("{RECORDS}{}", generation(db)?);
    for other in db.tree_names() {
        if other.starts_with(RECORDS.as_bytes()) && other != name.as_bytes() {
            db.drop_tree(other).map_err(|e| failed("drop a stale tree", e))?;
        }
    }
    db.open_tree(name).map_err(|e| failed("open its tree", e))
}

/// Moves snapshot files of sled whose checksum does not match out of its sight.
///
/// sled reads the newest one and refuses to open if that is torn, although every record is in its log.
fn move_torn_snapshots(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_snapshot = name.as_bytes().starts_with(b"snap.") && entry.file_type()?.is_file();
        if !is_snapshot || is_whole_snapshot(&fs::read(entry.path())?) {
            continue;
        }
        let aside = path.join(ASIDE);
        fs::create_dir_all(&aside)?;
        fs::rename(entry.path(), aside.join(&name))?;
        tracing::warn!(file = %entry.path().display(), "moved a torn snapshot aside, recovering from the log");
    }
    Ok(())
}

/// A snapshot of sled 0.34 ends in eight bytes of length and a CRC-32 of what is before both.
fn is_whole_snapshot(bytes: &[u8]) -> bool {
    let Some((body, tail)) = bytes.len().checked_sub(12).map(|at| bytes.split_at(at)) else {
        return false;
    };
    !body.is_empty() && crc32fast::hash(body).to_le_bytes() == tail[8..]
}

/// Bytes of all files of a folder.
fn folder_bytes(path: &Path) -> u64 {
    let Ok(files) = fs::read_dir(path) else { return 0 };
    files.filter_map(|file| file.ok()?.metadata().ok()).map(|facts| facts.len()).sum()
}

/// Removes a journal or a segment that counts no more; where that fails, whoever starts next knows that it does not.
pub(super) fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(file = %path.display(), %error, "failed to remove a file of the store");
    }
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zeroes is a valid value of this plain struct of integers.
    let mut facts: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a NUL and the struct is written, not kept.
    if unsafe { libc::statvfs(path.as_ptr(), &mut facts) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The widths of these fields differ between systems.
    #[allow(clippy::unnecessary_cast)]
    Ok((facts.f_bavail as u64).saturating_mul(facts.f_frsize as u64))
}

/// What can be wrong with what sled has.
#[derive(Debug)]
pub(super) enum Fault {
    Sled(sled::Error),
    /// A block of records under this key, without its partition.
    Block(Key, &'static str),
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Fault {
        Fault::Sled(error)
    }
}

impl Fault {
    /// As an error of a read: a damaged page or block takes the records in it along, no others.
    fn told(self, partition: &Partition, table: Table, key: &[u8], what: &str) -> StoreError {
        match self {
            Fault::Sled(sled::Error::Corruption { .. }) => {
                layout::corrupt(partition, table, key, "its page is damaged")
            }
            Fault::Sled(other) => failed(what, other),
            Fault::Block(rest, reason) => {
                let key = rest.get(layout::table_end(&rest).unwrap_or(0)..).unwrap_or_default();
                layout::corrupt(partition, table, key, reason)
            }
        }
    }

    /// As an error of sled, where no block is read.
    pub(super) fn into_sled(self) -> sled::Error {
        match self {
            Fault::Sled(error) => error,
            Fault::Block(_, reason) => sled::Error::ReportableBug(reason.to_owned()),
        }
    }
}

/// Turns an error of sled into ours.
pub(super) fn failed(what: &str, error: sled::Error) -> StoreError {
    match error {
        sled::Error::Io(e) => failed_io(what, &e),
        other => StoreError::Engine { reason: format!("failed to {what}: {other}") },
    }
}

/// Turns an error of the file system into ours.
pub(super) fn failed_io(what: &str, error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::Engine { reason: format!("failed to {what}: {error}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_full_disk_is_full() {
        for code in [libc::ENOSPC, libc::EDQUOT] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(failed("write", sled::Error::Io(error)), StoreError::Full);
        }
        let other = failed("write", sled::Error::Io(io::Error::from_raw_os_error(libc::EIO)));
        assert!(matches!(other, StoreError::Engine { .. }));
    }

    #[test]
    fn a_panic_in_a_write_stops_the_store_and_not_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(&Config::new(folder.path())).unwrap();
        let broken = disk.guarded::<()>("a test", || panic!("as sled may"));
        assert!(matches!(broken, Err(StoreError::Unavailable { .. })));
        assert!(disk.failure().unwrap().contains("a test"));
        assert!(matches!(disk.sync(), Err(StoreError::Unavailable { .. })));
    }
}
