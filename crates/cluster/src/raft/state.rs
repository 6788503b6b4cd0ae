//! The state machine and the snapshots of one Raft group, as openraft asks for them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use openraft::{
    BasicNode, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError, StoredMembership,
    storage::RaftStateMachine,
};
use parking_lot::Mutex;

use super::{
    machine::{Machine, SnapshotWriter},
    machine_thread::MachineThread,
    types::{DiskError, Entry, LogId, Mark, Meta, Replies, SnapshotBody, SnapshotFile, TypeConfig},
};
use crate::seam::{self, random_bits};

/// First bytes of a snapshot file; the digit is the version of the format.
const MAGIC: &[u8; 8] = b"RKSNAP1\n";
/// Bytes of a snapshot that wait for the disk together at most.
const SLICE: usize = 512 << 10;

/// The machine with its snapshots; clones share them.
#[derive(Clone)]
pub(crate) struct State {
    thread: MachineThread,
    dir: PathBuf,
    durable: bool,
    current: Arc<Mutex<Option<(Meta, SnapshotBody)>>>,
    restored: Arc<Mutex<Mark>>,
}

impl State {
    /// Starts a machine, from its newest snapshot if it keeps nothing itself.
    pub(crate) async fn open(name: &str, dir: &Path, machine: Box<dyn Machine>) -> io::Result<State> {
        fs::create_dir_all(dir)?;
        let durable = machine.is_durable() || machine.mark().is_some();
        let thread = MachineThread::start(name, machine)?;
        let state = State {
            thread,
            dir: dir.into(),
            durable,
            current: Arc::new(Mutex::new(None)),
            restored: Arc::new(Mutex::new(Mark::default())),
        };
        if durable {
            let mark = state.thread.sync().await?;
            if mark.log_id.is_some() {
                let fresh = SnapshotBody::Fresh(state.thread.clone());
                *state.current.lock() = Some((meta_of(&mark), fresh));
            }
            *state.restored.lock() = mark;
        } else if let Some((meta, file)) = newest(dir)? {
            let mark = mark_of(&meta);
            state.thread.install(mark.clone(), file.clone()).await?;
            *state.current.lock() = Some((meta, SnapshotBody::File(file)));
            *state.restored.lock() = mark;
        }
        Ok(state)
    }

    /// How long the newest snapshot is, 0 before the first; `None` for a machine that is its own snapshot.
    pub(crate) fn snapshot_bytes(&self) -> Option<u64> {
        if self.durable {
            return None;
        }
        Some(match &*self.current.lock() {
            Some((_, SnapshotBody::File(file))) => file.end - file.at,
            _ => 0,
        })
    }

    /// The machine's thread.
    pub(crate) fn thread(&self) -> &MachineThread {
        &self.thread
    }

    async fn build(&self) -> io::Result<Snapshot<TypeConfig>> {
        let (meta, body) = if self.durable {
            let mark = self.thread.sync().await?;
            (meta_of(&mark), SnapshotBody::Fresh(self.thread.clone()))
        } else {
            let (mark, writer) = self.thread.freeze().await?;
            let meta = meta_of(&mark);
            let (dir, kept) = (self.dir.clone(), meta.clone());
            (meta, SnapshotBody::File(seam::blocking(move || keep(&dir, &kept, writer)).await??))
        };
        *self.current.lock() = Some((meta.clone(), body.clone()));
        Ok(Snapshot { meta, snapshot: Box::new(body) })
    }

    async fn install(&self, meta: &Meta, body: SnapshotBody) -> io::Result<()> {
        let file = match body {
            SnapshotBody::File(file) => file,
            SnapshotBody::Fresh(thread) => written_out(&thread, &self.dir).await?.1,
            SnapshotBody::Empty => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the snapshot is empty"));
            }
        };
        let mark = mark_of(meta);
        let install = self.thread.install(mark.clone(), file.clone());
        let body = if self.durable {
            install.await?;
            SnapshotBody::Fresh(self.thread.clone())
        } else {
            let (dir, kept) = (self.dir.clone(), meta.clone());
            let copy: SnapshotWriter = Box::new(move |out| io::copy(&mut file.clone(), out).map(drop));
            let keep = seam::blocking(move || keep(&dir, &kept, copy));
            // Neither waits for the other: what a majority agreed on may be kept before it is shown.
            let (installed, kept) = futures::future::join(install, keep).await;
            installed?;
            SnapshotBody::File(kept??)
        };
        *self.current.lock() = Some((meta.clone(), body));
        *self.restored.lock() = mark;
        Ok(())
    }
}

/// Writes a machine's state as it is now to a file without a name.
pub(crate) async fn written_out(thread: &MachineThread, dir: &Path) -> io::Result<(Meta, SnapshotFile)> {
    let (mark, writer) = thread.freeze().await?;
    let dir = dir.to_path_buf();
    let write = seam::blocking(move || {
        let mut out = BufWriter::new(unnamed(&dir)?);
        writer(&mut out)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        let end = file.metadata()?.len();
        Ok::<_, io::Error>(SnapshotFile { file: Arc::new(file), at: 0, end })
    });
    Ok((meta_of(&mark), write.await??))
}

/// A file that is gone once it is closed.
pub(crate) fn unnamed(dir: &Path) -> io::Result<File> {
    let path = dir.join(format!("{:032x}.tmp", random_bits()));
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Writes a snapshot so that it is found again after a restart, and removes the older ones.
pub(super) fn keep(dir: &Path, meta: &Meta, writer: SnapshotWriter) -> io::Result<SnapshotFile> {
    let index = meta.last_log_id.map_or(0, |id| id.index);
    let path = dir.join(format!("{index:020}.snap"));
    let part = dir.join(format!("{:032x}.tmp", random_bits()));
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&part)?;
    let head = postcard::to_stdvec(meta).map_err(io::Error::other)?;
    let out = BufWriter::new(InSlices { file: &file, unsynced: 0 });
    let mut out = Summed { out, crc: crc32fast::Hasher::new(), len: 0 };
    out.write_all(MAGIC)?;
    out.write_all(&(head.len() as u32).to_le_bytes())?;
    out.write_all(&head)?;
    let at = out.len;
    writer(&mut out)?;
    let end = out.len;
    let crc = out.crc.clone().finalize();
    out.write_all(&crc.to_le_bytes())?;
    out.out.flush()?;
    drop(out);
    file.sync_all()?;
    fs::rename(&part, &path)?;
    File::open(dir)?.sync_all()?;
    for older in named(dir, "snap")?.into_iter().filter(|older| *older != path) {
        fs::remove_file(older)?;
    }
    Ok(SnapshotFile { file: Arc::new(file), at, end })
}

/// The newest whole snapshot of a folder; leftovers of interrupted writes are removed.
pub(super) fn newest(dir: &Path) -> io::Result<Option<(Meta, SnapshotFile)>> {
    for leftover in named(dir, "tmp")? {
        fs::remove_file(leftover)?;
    }
    let mut found = named(dir, "snap")?;
    found.sort_unstable();
    let Some(path) = found.pop() else { return Ok(None) };
    // A snapshot gets its name after it is synced: one with a name that is not whole is damage, and the log
    // that it replaced may be gone.
    match whole(&path)? {
        Some(snapshot) => Ok(Some(snapshot)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is damaged", path.display()))),
    }
}

fn whole(path: &Path) -> io::Result<Option<(Meta, SnapshotFile)>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let Some(end) = len.checked_sub(4) else { return Ok(None) };
    let mut crc = crc32fast::Hasher::new();
    let mut block = vec![0; 64 << 10];
    let mut left = end;
    while left > 0 {
        let want = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.read_exact(&mut block[..want])?;
        crc.update(&block[..want]);
        left -= want as u64;
    }
    let mut sum = [0; 4];
    file.read_exact(&mut sum)?;
    let mut head = [0; 12];
    if end < 12 || crc.finalize() != u32::from_le_bytes(sum) {
        return Ok(None);
    }
    file.read_exact_at(&mut head, 0)?;
    let (magic, meta_len) = head.split_at(8);
    let meta_len = u32::from_le_bytes([meta_len[0], meta_len[1], meta_len[2], meta_len[3]]);
    let at = 12 + u64::from(meta_len);
    if magic != MAGIC || at > end {
        return Ok(None);
    }
    let mut meta = vec![0; meta_len as usize];
    file.read_exact_at(&mut meta, 12)?;
    let Ok(meta) = postcard::from_bytes(&meta) else { return Ok(None) };
    Ok(Some((meta, SnapshotFile { file: Arc::new(file), at, end })))
}

fn named(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Has what it wrote reach the disk piece by piece: the log, which is synced meanwhile, waits for one piece at most.
struct InSlices<'a> {
    file: &'a File,
    unsynced: usize,
}

impl Write for InSlices<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unsynced >= SLICE {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        // Nobody waits for a snapshot, and a kernel that does not preempt takes the core away at a tick only.
        thread::yield_now();
        let n = self.file.write(bytes)?;
        self.unsynced += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Summed<'a> {
    out: BufWriter<InSlices<'a>>,
    crc: crc32fast::Hasher,
    len: u64,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.crc.update(&bytes[..n]);
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

pub(super) fn meta_of(mark: &Mark) -> Meta {
    let snapshot_id = format!("{}-{:016x}", mark.index(), random_bits() as u64);
    Meta { last_log_id: mark.log_id, last_membership: mark.membership.clone(), snapshot_id }
}

fn mark_of(meta: &Meta) -> Mark {
    Mark { log_id: meta.last_log_id, membership: meta.last_membership.clone() }
}

impl RaftSnapshotBuilder<TypeConfig> for State {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, DiskError> {
        self.build().await.map_err(|e| StorageIOError::write_state_machine(&e).into())
    }
}

impl RaftStateMachine<TypeConfig> for State {
    type SnapshotBuilder = State;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, StoredMembership<u64, BasicNode>), DiskError> {
        let mark = self.restored.lock().clone();
        Ok((mark.log_id, mark.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Replies>, DiskError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut mark = self.restored.lock();
            for entry in &entries {
                mark.log_id = Some(entry.log_id);
                if let openraft::EntryPayload::Membership(membership) = &entry.payload {
                    mark.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                }
            }
        }
        let replies = self.thread.apply(entries).await;
        let replies = replies.map_err(|e| StorageIOError::write_state_machine(&e))?;
        Ok(replies.into_iter().map(Replies).collect())
    }

    async fn get_snapshot_builder(&mut self) -> State {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotBody>, DiskError> {
        Ok(Box::default())
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: Box<SnapshotBody>) -> Result<(), DiskError> {
        self.install(meta, *snapshot)
            .await
            .map_err(|e| StorageIOError::write_snapshot(Some(meta.signature()), &e).into())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, DiskError> {
        let current = self.current.lock().clone();
        Ok(current.map(|(meta, body)| Snapshot { meta, snapshot: Box::new(body) }))
    }
}
