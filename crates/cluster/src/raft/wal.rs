//! The files of a log: checked records in segments, written and synced by a thread of their own.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::seam;

/// First bytes of each segment; the digit is the version of the format. In the first version a record did not
/// say whether it began a group.
const MAGIC: &[u8; 8] = b"RKWAL-2\n";
const MAGIC_V1: &[u8; 8] = b"RKWAL-1\n";
/// Length (4), checksum (4), kind (1).
pub(crate) const HEAD: usize = 9;
/// No record is longer; a longer length is damage.
pub(crate) const RECORD_MAX: usize = 256 << 20;
/// How many writes share one sync at most.
const GROUP_MAX: usize = 1024;
/// How long what nobody waits for gathers before it is written.
const GATHER: Duration = Duration::from_millis(10);
/// A segment is filled with zeros up to a multiple of this, in bytes: a sync that does not change the length of a
/// file spares the file system a transaction.
const FILL: u64 = 256 << 10;
/// Marks, in the byte of the kind and outside of the checksum, the first record after a sync: all in front of it
/// was safe when it was written.
const FIRST: u8 = 0x80;
/// Where the byte of the kind is in a record.
const KIND_AT: usize = 8;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Entry = 1,
    Vote = 2,
    Truncate = 3,
    Purge = 4,
    Committed = 5,
}

impl Kind {
    pub(crate) fn of(byte: u8) -> Option<Kind> {
        [Kind::Entry, Kind::Vote, Kind::Truncate, Kind::Purge, Kind::Committed]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Appends a record to a buffer.
pub(crate) fn put_record(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind as u8]);
    crc.update(payload);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc.finalize().to_le_bytes());
    out.push(kind as u8);
    out.extend_from_slice(payload);
}

/// Reads the record at `at`: its kind, its payload and where the next one begins.
pub(crate) fn record_at(bytes: &[u8], at: usize) -> Option<(Kind, &[u8], usize)> {
    let head = bytes.get(at..at + HEAD)?;
    let len = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let kind = Kind::of(head[KIND_AT] & !FIRST)?;
    if len > RECORD_MAX {
        return None;
    }
    let end = at + HEAD + len;
    let payload = bytes.get(at + HEAD..end)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind as u8]);
    hasher.update(payload);
    (hasher.finalize() == crc).then_some((kind, payload, end))
}

/// Whom to tell that a write is safe.
pub(crate) enum Done {
    /// Nobody; the write need not be synced.
    Nobody,
    /// One who waits.
    Ack(oneshot::Sender<io::Result<()>>),
    /// A function, called on the writing thread.
    Call(Box<dyn FnOnce(io::Result<()>) + Send>),
    /// The same, called once it is written, for it need not be synced.
    Written(Box<dyn FnOnce(io::Result<()>) + Send>),
}

/// What the writing thread is asked to do, in order.
pub(crate) enum Job {
    /// Begins a segment; what follows goes there.
    Begin { segment: u64 },
    /// Appends bytes to the current segment.
    Write { bytes: Vec<u8>, done: Done },
    /// Removes segments that are no longer needed, after a sync.
    Remove { segments: Vec<u64> },
}

/// Where a segment lives.
pub(crate) fn segment_path(dir: &Path, segment: u64) -> PathBuf {
    dir.join(format!("{segment:016}.wal"))
}

/// The segments of a folder, oldest first.
pub(crate) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "wal") {
            found.extend(path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Reads a segment and hands over each record with its offset. In the newest segment a torn tail is cut off;
/// damage before good records, or in an older segment, is an error: what was acknowledged would be lost.
pub(crate) fn read_segment(
    dir: &Path,
    segment: u64,
    newest: bool,
    mut see: impl FnMut(Kind, &[u8], usize) -> io::Result<()>,
) -> io::Result<()> {
    let path = segment_path(dir, segment);
    let mut bytes = Vec::new();
    File::open(&path)?.read_to_end(&mut bytes)?;
    if bytes.len() < MAGIC.len() && newest {
        // The process died while it made the file: nothing in it was acknowledged.
        return fs::remove_file(&path);
    }
    let grouped = match bytes.get(..MAGIC.len()) {
        Some(magic) if magic == MAGIC => true,
        Some(magic) if magic == MAGIC_V1 => false,
        _ => return Err(damaged(&path, 0)),
    };
    let mut at = MAGIC.len();
    while at < bytes.len() {
        match record_at(&bytes, at) {
            Some((kind, payload, next)) => {
                see(kind, payload, at)?;
                at = next;
            }
            None if grouped && bytes[at..].iter().all(|byte| *byte == 0) => break,
            None if newest && !is_damage(&bytes, at, grouped) => {
                tracing::warn!(path = %path.display(), at, lost = bytes.len() - at, "cut off a torn tail of the log");
                break;
            }
            None => return Err(damaged(&path, at)),
        }
    }
    if newest && at < bytes.len() {
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(at as u64)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Whether a good record that was written after a sync follows the broken one, whose length is believed: then what
/// was safe is damaged. Records of the broken one's own group may have reached the disk before it.
fn is_damage(bytes: &[u8], at: usize, grouped: bool) -> bool {
    let Some(len) = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes) else {
        return false;
    };
    if len as usize > RECORD_MAX {
        return false;
    }
    let mut at = at.saturating_add(HEAD).saturating_add(len as usize);
    while let Some((_, _, next)) = record_at(bytes, at) {
        if !grouped || bytes[at + KIND_AT] & FIRST != 0 {
            return true;
        }
        at = next;
    }
    false
}

fn damaged(path: &Path, at: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is damaged at byte {at}", path.display()))
}

/// Reads the payload of one record that was written before.
pub(crate) fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEAD + len];
    file.read_exact_at(&mut bytes, offset)?;
    match record_at(&bytes, 0) {
        Some((Kind::Entry, payload, _)) => Ok(payload.to_vec()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a log record at byte {offset} is damaged"),
        )),
    }
}

/// Size of an empty segment.
pub(crate) const SEGMENT_HEAD: u64 = MAGIC.len() as u64;

/// Where jobs for the writing thread go.
pub(crate) enum Jobs {
    Thread(mpsc::Sender<Job>),
    #[cfg(feature = "simulation")]
    Task(tokio::sync::mpsc::UnboundedSender<Job>),
}

impl Jobs {
    /// `None` if nobody writes any more.
    pub(crate) fn send(&self, job: Job) -> Option<()> {
        match self {
            Jobs::Thread(jobs) => jobs.send(job).ok(),
            #[cfg(feature = "simulation")]
            Jobs::Task(jobs) => jobs.send(job).ok(),
        }
    }
}

/// Starts the thread that writes; it ends when the sender is dropped. `broken` tells at once when a write failed.
pub(crate) fn writer(
    name: &str,
    dir: PathBuf,
    broken: Arc<AtomicBool>,
) -> io::Result<(Jobs, Option<thread::JoinHandle<()>>)> {
    let mut writer = Writer { dir, open: None, failed: None, broken };
    #[cfg(feature = "simulation")]
    if seam::is_simulated() {
        let (jobs, queue) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(write_slowly(writer, queue));
        return Ok((Jobs::Task(jobs), None));
    }
    let (jobs, queue) = mpsc::channel::<Job>();
    let thread = thread::Builder::new().name(format!("log-{name}")).spawn(move || {
        while let Ok(first) = queue.recv() {
            if matches!(first, Job::Write { done: Done::Written(_), .. }) {
                // Nobody waits for it: while this thread sleeps it need not be woken for each of the next.
                thread::sleep(GATHER);
            }
            let mut group = vec![first];
            group.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(GROUP_MAX));
            writer.run(group);
        }
        let ended = writer.end();
        writer.note(ended);
    })?;
    Ok((Jobs::Thread(jobs), Some(thread)))
}

/// What the thread does, as a task of a simulation: there is a time between the writing and its being safe.
#[cfg(feature = "simulation")]
async fn write_slowly(mut writer: Writer, mut queue: tokio::sync::mpsc::UnboundedReceiver<Job>) {
    while let Some(first) = queue.recv().await {
        let mut group = vec![first];
        group.extend(std::iter::from_fn(|| queue.try_recv().ok()).take(GROUP_MAX));
        let waiting = writer.write_all(group);
        tokio::time::sleep(seam::sync_takes()).await;
        writer.settle(waiting);
    }
    let ended = writer.end();
    writer.note(ended);
}

struct Writer {
    dir: PathBuf,
    open: Option<Open>,
    /// After a failed write or sync nothing is known of what the disk holds, so nothing succeeds any more.
    failed: Option<(io::ErrorKind, String)>,
    broken: Arc<AtomicBool>,
}

/// The segment that is written.
struct Open {
    file: File,
    path: PathBuf,
    /// Where the next record goes.
    at: u64,
    /// The file's length; from `at` on it holds zeros.
    filled: u64,
    /// Whether nothing was written since the last sync.
    synced: bool,
}

impl Open {
    fn append(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.synced && bytes.len() > KIND_AT {
            bytes[KIND_AT] |= FIRST;
        }
        seam::write_file(&self.path, &self.file, bytes, self.at)?;
        self.synced = false;
        self.at += bytes.len() as u64;
        if self.at > self.filled {
            let end = self.at.next_multiple_of(FILL);
            seam::write_file(&self.path, &self.file, &vec![0; (end - self.at) as usize], self.at)?;
            self.filled = end;
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        seam::sync_file(&self.path, &self.file)?;
        self.synced = true;
        Ok(())
    }
}

impl Writer {
    fn run(&mut self, group: Vec<Job>) {
        let waiting = self.write_all(group);
        self.settle(waiting);
    }

    /// Does jobs, and says who waits for what they wrote.
    fn write_all(&mut self, group: Vec<Job>) -> Vec<Done> {
        let mut waiting = Vec::new();
        for mut job in group {
            let result = match &self.failed {
                Some(_) => Ok(()),
                None => self.write(&mut job),
            };
            self.note(result);
            if let Job::Write { done, .. } = job {
                waiting.push(done);
            }
        }
        waiting
    }

    /// Makes what was written safe, if somebody waits for that, and tells them.
    fn settle(&mut self, waiting: Vec<Done>) {
        if self.failed.is_none() && waiting.iter().any(|done| matches!(done, Done::Ack(_) | Done::Call(_))) {
            let result = self.sync();
            self.note(result);
        }
        for done in waiting {
            let result = match &self.failed {
                Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
                None => Ok(()),
            };
            match done {
                Done::Nobody => {}
                // Who waited may have gone away.
                Done::Ack(ack) => drop(ack.send(result)),
                Done::Call(call) | Done::Written(call) => call(result),
            }
        }
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(e) = result {
            tracing::error!(dir = %self.dir.display(), error = %e, "failed to write the log");
            self.failed.get_or_insert((e.kind(), e.to_string()));
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    fn write(&mut self, job: &mut Job) -> io::Result<()> {
        match job {
            Job::Begin { segment } => {
                // Before the next segment exists: a torn tail is only looked for in the newest one.
                self.end()?;
                let path = segment_path(&self.dir, *segment);
                let file = OpenOptions::new().create_new(true).write(true).open(&path)?;
                seam::write_file(&path, &file, MAGIC, 0)?;
                seam::sync_file(&path, &file)?;
                File::open(&self.dir)?.sync_all()?;
                self.open = Some(Open { file, path, at: SEGMENT_HEAD, filled: SEGMENT_HEAD, synced: true });
                Ok(())
            }
            Job::Write { bytes, .. } => match &mut self.open {
                Some(open) => open.append(bytes),
                None => Err(io::Error::other("the log has no segment")),
            },
            Job::Remove { segments } => {
                self.sync()?;
                for segment in segments {
                    fs::remove_file(segment_path(&self.dir, *segment))?;
                }
                File::open(&self.dir)?.sync_all()
            }
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.open.as_mut().map_or(Ok(()), Open::sync)
    }

    /// Cuts the zeros off and closes the segment.
    fn end(&mut self) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        open.file.set_len(open.at)?;
        seam::sync_file(&open.path, &open.file)
    }
}
