//! The durable vote and log of one Raft group, as openraft asks for them.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    fs::{self, File},
    io,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use openraft::{
    LogState, OptionalSend, RaftLogId, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use super::{
    types::{DiskError, Entry, LogId, TypeConfig, Vote},
    wal::{self, Done, Job, Jobs, Kind},
};
use crate::seam;

/// A segment is closed when it is this large.
const SEGMENT_MAX: u64 = 8 << 20;
/// How many bytes of the newest entries stay in memory, with what they cost there.
const CACHE_MAX: usize = 2 << 20;
/// What an entry costs in memory beside its bytes, about: most are small, and this is the larger part.
const ENTRY_COST: usize = 320;
/// How many bytes of entries one read for a follower may bring, at least one entry.
const READ_MAX: usize = 1 << 20;

/// The log of one group; clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    /// The newest index that can be read from disk; entries above it must stay in memory.
    flushed: Arc<AtomicU64>,
    /// Whether entries are acknowledged before they are on disk: see [`Log::open_alone`].
    alone: bool,
    /// A write failed behind its acknowledgement: nothing is taken any more.
    broken: Arc<AtomicBool>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

struct State {
    jobs: Option<Jobs>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// The commit index is newer than the one that was given to the thread.
    committed_waits: bool,
    purged: Option<LogId>,
    /// Index of the first of `places`.
    first: u64,
    places: VecDeque<Place>,
    /// The newest entries; the last is the last of `places`.
    cache: VecDeque<Entry>,
    cached: usize,
    segment: u64,
    segment_len: u64,
    /// Older segments and the newest index in each.
    older: BTreeMap<u64, u64>,
    files: BTreeMap<u64, Arc<File>>,
    /// Bytes of entries appended since the log was opened.
    appended: u64,
    /// Bytes of the entries that are kept.
    kept: u64,
}

#[derive(Clone, Copy)]
struct Place {
    segment: u64,
    offset: u64,
    len: u32,
    id: LogId,
}

impl Place {
    /// What the entry costs while it is cached.
    fn cost(&self) -> usize {
        self.len as usize + ENTRY_COST
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let mut bytes = Vec::new();
        state.put_committed(&mut bytes);
        if !bytes.is_empty() {
            // A thread that ended has said why.
            let _ = state.send(bytes, Done::Nobody);
        }
        state.jobs = None;
        if let Some(thread) = self.thread.get_mut().take()
            && thread.join().is_err()
        {
            tracing::error!(dir = %self.dir.display(), "the thread of the log panicked");
        }
    }
}

impl Log {
    /// Opens the log of a folder, or makes it.
    pub(crate) fn open(name: &str, dir: &Path) -> io::Result<Log> {
        Log::open_as(name, dir, false)
    }

    /// As [`Log::open`], for the routes of a node that no other node can reach. Its votes are synced, its entries are
    /// written and not waited for: they tell of sessions that end with this process, and nobody else has seen them.
    pub(crate) fn open_alone(name: &str, dir: &Path) -> io::Result<Log> {
        Log::open_as(name, dir, true)
    }

    fn open_as(name: &str, dir: &Path, alone: bool) -> io::Result<Log> {
        fs::create_dir_all(dir)?;
        let mut state = State::blank();
        let segments = wal::segments(dir)?;
        for (nth, segment) in segments.iter().enumerate() {
            let newest = nth + 1 == segments.len();
            wal::read_segment(dir, *segment, newest, |kind, payload, at| {
                state.replay(*segment, kind, payload, at as u64)
            })?;
            if wal::segment_path(dir, *segment).exists() {
                state.older.insert(*segment, state.last_index());
            }
            state.segment = *segment;
        }
        let broken = Arc::new(AtomicBool::new(false));
        let (jobs, thread) = wal::writer(name, dir.to_path_buf(), broken.clone())?;
        state.jobs = Some(jobs);
        let flushed = Arc::new(AtomicU64::new(state.last_index()));
        state.begin_segment()?;
        let (state, thread) = (Mutex::new(state), Mutex::new(thread));
        let shared = Shared { dir: dir.into(), state, flushed, alone, broken, thread };
        Ok(Log { shared: Arc::new(shared) })
    }

    /// Whether nothing was ever written here.
    pub(crate) fn is_blank(&self) -> bool {
        let state = self.shared.state.lock();
        state.vote.is_none() && state.places.is_empty() && state.purged.is_none()
    }

    /// Bytes of entries appended since the log was opened.
    pub(crate) fn appended(&self) -> u64 {
        self.shared.state.lock().appended
    }

    /// Bytes of the entries that are kept.
    pub(crate) fn kept(&self) -> u64 {
        self.shared.state.lock().kept
    }

    /// The newest index up to which the log may be purged so that about `bytes` of it stay.
    pub(crate) fn purgeable(&self, bytes: u64) -> Option<u64> {
        let state = self.shared.state.lock();
        let mut kept = 0;
        for (nth, place) in state.places.iter().enumerate().rev() {
            kept += u64::from(place.len);
            if kept > bytes {
                return Some(state.first + nth as u64);
            }
        }
        None
    }

    async fn write(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let answer = {
            let mut state = self.shared.state.lock();
            let mut bytes = Vec::with_capacity(wal::HEAD + payload.len());
            wal::put_record(&mut bytes, kind, payload);
            let (ack, answer) = oneshot::channel();
            state.send(bytes, Done::Ack(ack))?;
            answer
        };
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let (mut places, tail) = {
            let mut state = self.shared.state.lock();
            let to = to.min(state.last_index().saturating_add(1));
            let from = from.max(state.first);
            if state.places.is_empty() || from >= to {
                return Ok(Vec::new());
            }
            let cached_from = state.first + (state.places.len() - state.cache.len()) as u64;
            let mut places = Vec::new();
            for index in from..to.min(cached_from) {
                let place = state.places[(index - state.first) as usize];
                places.push((state.file(&self.shared.dir, place.segment)?, place));
            }
            let skip = from.saturating_sub(cached_from) as usize;
            let take = to.saturating_sub(from.max(cached_from)) as usize;
            let tail: Vec<Entry> = state.cache.iter().skip(skip).take(take).cloned().collect();
            (places, tail)
        };
        let mut sum = 0;
        let mut found = Vec::new();
        for (file, place) in places.drain(..) {
            sum += place.len as usize;
            if sum > bytes_max && !found.is_empty() {
                return Ok(found);
            }
            found.push(decode(&wal::read_at(&file, place.offset, place.len as usize)?)?);
        }
        for entry in tail {
            sum += weight(&entry);
            if sum > bytes_max && !found.is_empty() {
                return Ok(found);
            }
            found.push(entry);
        }
        Ok(found)
    }

    async fn read_blocking(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, DiskError> {
        let in_memory = {
            let state = self.shared.state.lock();
            from >= state.first + (state.places.len() - state.cache.len()) as u64
        };
        let read = if in_memory {
            self.read(from, to, bytes_max)
        } else {
            let log = self.clone();
            seam::blocking(move || log.read(from, to, bytes_max)).await.unwrap_or_else(|_| Err(stopped()))
        };
        read.map_err(|e| StorageIOError::read_logs(&e).into())
    }
}

/// Reads records one after the other, as a log does when it is opened; how many it took before one was refused.
pub(crate) fn replay<'a>(records: impl Iterator<Item = (Kind, &'a [u8])>) -> usize {
    let mut state = State::blank();
    let taken = records.take_while(|(kind, payload)| state.replay(0, *kind, payload, 0).is_ok());
    taken.count()
}

impl State {
    fn blank() -> State {
        State {
            jobs: None,
            vote: None,
            committed: None,
            committed_waits: false,
            purged: None,
            first: 0,
            places: VecDeque::new(),
            cache: VecDeque::new(),
            cached: 0,
            segment: 0,
            segment_len: 0,
            older: BTreeMap::new(),
            files: BTreeMap::new(),
            appended: 0,
            kept: 0,
        }
    }

    fn last_index(&self) -> u64 {
        match self.places.back() {
            Some(place) => place.id.index,
            None => self.purged.map_or(0, |id| id.index),
        }
    }

    fn last_id(&self) -> Option<LogId> {
        self.places.back().map(|place| place.id).or(self.purged)
    }

    fn replay(&mut self, segment: u64, kind: Kind, payload: &[u8], offset: u64) -> io::Result<()> {
        match kind {
            Kind::Vote => self.vote = Some(decode(payload)?),
            Kind::Committed => self.committed = decode(payload)?,
            Kind::Truncate => self.truncate(decode(payload)?),
            Kind::Purge => self.purge(decode(payload)?),
            Kind::Entry => {
                let entry: Entry = decode(payload)?;
                let id = *entry.get_log_id();
                if self.purged.is_some_and(|purged| id.index <= purged.index) {
                    return Ok(());
                }
                self.truncate(id.index);
                let place = Place { segment, offset, len: payload.len() as u32, id };
                self.push(place, entry, payload.len())?;
            }
        }
        Ok(())
    }

    fn push(&mut self, place: Place, entry: Entry, weight: usize) -> io::Result<()> {
        let index = place.id.index;
        if self.places.is_empty() {
            self.first = index;
        } else if index != self.first + self.places.len() as u64 {
            let text = format!("the log has a hole before entry {index}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        self.kept += u64::from(place.len);
        self.places.push_back(place);
        self.cache.push_back(entry);
        self.cached += weight + ENTRY_COST;
        self.appended += weight as u64;
        Ok(())
    }

    /// Lets the oldest cached entries go that are safe on disk.
    fn trim(&mut self, flushed: u64) {
        while self.cached > CACHE_MAX
            && let Some(oldest) = self.cache.front()
            && oldest.log_id.index <= flushed
        {
            let place = self.places[self.places.len() - self.cache.len()];
            self.cached = self.cached.saturating_sub(place.cost());
            self.cache.pop_front();
        }
    }

    /// Forgets entries from `index` on.
    fn truncate(&mut self, index: u64) {
        while self.places.back().is_some_and(|place| place.id.index >= index) {
            let place = self.places.pop_back();
            self.kept -= place.map_or(0, |place| u64::from(place.len));
            if self.cache.pop_back().is_some() {
                self.cached = self.cached.saturating_sub(place.map_or(0, |place| place.cost()));
            }
        }
    }

    /// Forgets entries up to `id`.
    fn purge(&mut self, id: LogId) {
        while self.places.front().is_some_and(|place| place.id.index <= id.index) {
            if self.cache.len() == self.places.len() && self.cache.pop_front().is_some() {
                let cost = self.places.front().map_or(0, Place::cost);
                self.cached = self.cached.saturating_sub(cost);
            }
            let place = self.places.pop_front();
            self.kept -= place.map_or(0, |place| u64::from(place.len));
            self.first += 1;
        }
        self.purged = self.purged.max(Some(id));
    }

    fn send(&mut self, bytes: Vec<u8>, done: Done) -> io::Result<()> {
        self.segment_len += bytes.len() as u64;
        self.job(Job::Write { bytes, done })
    }

    /// Adds the commit index to what is written next, if it has moved.
    fn put_committed(&mut self, bytes: &mut Vec<u8>) {
        if std::mem::take(&mut self.committed_waits) {
            wal::put_record(bytes, Kind::Committed, &encode(&self.committed));
        }
    }

    fn job(&mut self, job: Job) -> io::Result<()> {
        let jobs = self.jobs.as_ref().ok_or_else(stopped)?;
        jobs.send(job).ok_or_else(stopped)
    }

    /// Begins a segment with all that the older ones say beside entries, so that they can go.
    fn begin_segment(&mut self) -> io::Result<()> {
        if self.segment_len > 0 {
            let last = self.last_index();
            self.older.insert(self.segment, last);
        }
        self.segment += 1;
        self.segment_len = wal::SEGMENT_HEAD;
        self.job(Job::Begin { segment: self.segment })?;
        let mut bytes = Vec::new();
        if let Some(vote) = &self.vote {
            wal::put_record(&mut bytes, Kind::Vote, &encode(vote));
        }
        if let Some(purged) = &self.purged {
            wal::put_record(&mut bytes, Kind::Purge, &encode(purged));
        }
        if self.committed.is_some() {
            wal::put_record(&mut bytes, Kind::Committed, &encode(&self.committed));
        }
        self.committed_waits = false;
        // The next synced write covers this one: a segment is only removed after a sync.
        self.send(bytes, Done::Nobody)
    }

    fn file(&mut self, dir: &Path, segment: u64) -> io::Result<Arc<File>> {
        if let Some(file) = self.files.get(&segment) {
            return Ok(file.clone());
        }
        let file = Arc::new(File::open(wal::segment_path(dir, segment))?);
        self.files.insert(segment, file.clone());
        Ok(file)
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, DiskError> {
        let from = match range.start_bound() {
            Bound::Included(n) => *n,
            Bound::Excluded(n) => n + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(n) => n + 1,
            Bound::Excluded(n) => *n,
            Bound::Unbounded => u64::MAX,
        };
        self.read_blocking(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, DiskError> {
        self.read_blocking(start, end, READ_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, DiskError> {
        let state = self.shared.state.lock();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last_id() })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), DiskError> {
        self.shared.state.lock().vote = Some(*vote);
        self.write(Kind::Vote, &encode(vote)).await.map_err(|e| StorageIOError::write_vote(&e).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, DiskError> {
        Ok(self.shared.state.lock().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), DiskError> {
        // Written with the next entries: an older value only means that less is applied at once after a restart,
        // and the rest when the group has a leader.
        let mut state = self.shared.state.lock();
        state.committed = committed;
        state.committed_waits = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, DiskError> {
        let state = self.shared.state.lock();
        // The commit index may have been written after entries that a torn tail took away.
        Ok(state.committed.filter(|id| id.index <= state.last_index()))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), DiskError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let flushed = self.shared.flushed.clone();
        let mut state = self.shared.state.lock();
        let mut bytes = Vec::new();
        state.put_committed(&mut bytes);
        for entry in entries {
            let payload = encode(&entry);
            let id = entry.log_id;
            let offset = state.segment_len + bytes.len() as u64;
            let place = Place { segment: state.segment, offset, len: payload.len() as u32, id };
            wal::put_record(&mut bytes, Kind::Entry, &payload);
            state.push(place, entry, payload.len()).map_err(|e| StorageIOError::write_logs(&e))?;
        }
        let last = state.last_index();
        // Entries above this are not let go from memory; a truncation may have lowered the end of the log.
        flushed.fetch_min(last, Ordering::Relaxed);
        let reached = move |result: &io::Result<()>| {
            if result.is_ok() {
                flushed.fetch_max(last, Ordering::Relaxed);
            }
        };
        let done = if self.shared.alone {
            if self.shared.broken.load(Ordering::Relaxed) {
                return Err(StorageIOError::write_logs(&stopped()).into());
            }
            callback.log_io_completed(Ok(()));
            Done::Written(Box::new(move |result| reached(&result)))
        } else {
            Done::Call(Box::new(move |result| {
                reached(&result);
                callback.log_io_completed(result);
            }))
        };
        state.send(bytes, done).map_err(|e| StorageIOError::write_logs(&e))?;
        if state.segment_len > SEGMENT_MAX {
            state.begin_segment().map_err(|e| StorageIOError::write_logs(&e))?;
        }
        let flushed = self.shared.flushed.load(Ordering::Relaxed);
        state.trim(flushed);
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), DiskError> {
        {
            let mut state = self.shared.state.lock();
            state.truncate(log_id.index);
            self.shared.flushed.fetch_min(state.last_index(), Ordering::Relaxed);
        }
        let index = encode(&log_id.index);
        self.write(Kind::Truncate, &index).await.map_err(|e| StorageIOError::write_logs(&e).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), DiskError> {
        let removable = {
            let mut state = self.shared.state.lock();
            state.purge(log_id);
            let mut removable = Vec::new();
            // Oldest first and no gap: a younger segment may undo what an older one says.
            while let Some((segment, last)) = state.older.first_key_value().map(|(s, l)| (*s, *l))
                && last <= log_id.index
            {
                state.older.remove(&segment);
                state.files.remove(&segment);
                removable.push(segment);
            }
            removable
        };
        let id = encode(&log_id);
        self.write(Kind::Purge, &id).await.map_err(|e| StorageIOError::write_logs(&e))?;
        if !removable.is_empty() {
            let mut state = self.shared.state.lock();
            state.job(Job::Remove { segments: removable }).map_err(|e| StorageIOError::write_logs(&e))?;
        }
        Ok(())
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Raft's own types are plain structs: writing them to memory cannot fail.
    postcard::to_stdvec(value).expect("a log record can be written to memory")
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(payloads) => payloads.0.iter().map(|p| p.len() + 4).sum(),
        _ => 64,
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log has stopped")
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use bytes::Bytes;
    use openraft::{
        CommittedLeaderId, EntryPayload,
        storage::RaftLogStorageExt,
        testing::{StoreBuilder, Suite},
    };

    use super::*;
    use crate::raft::{
        machine::{Committed, Machine, SnapshotWriter},
        state::State as Machinery,
        types::Payloads,
    };

    /// Keeps nothing but the number of payloads.
    struct Counter {
        seen: u64,
        durable: bool,
    }

    impl Machine for Counter {
        fn is_durable(&self) -> bool {
            self.durable
        }

        fn apply(&mut self, entries: &[Committed]) -> io::Result<Vec<Vec<Bytes>>> {
            self.seen += entries.iter().map(|e| e.payloads.len() as u64).sum::<u64>();
            Ok(entries.iter().map(|e| vec![Bytes::new(); e.payloads.len()]).collect())
        }

        fn snapshot(&mut self) -> io::Result<SnapshotWriter> {
            let seen = self.seen;
            Ok(Box::new(move |out| out.write_all(&seen.to_le_bytes())))
        }

        fn install(&mut self, _mark: Bytes, snapshot: &mut dyn io::Read) -> io::Result<()> {
            let mut seen = [0; 8];
            snapshot.read_exact(&mut seen)?;
            self.seen = u64::from_le_bytes(seen);
            Ok(())
        }
    }

    #[derive(Default)]
    struct Builder {
        durable: bool,
        alone: bool,
    }

    impl StoreBuilder<TypeConfig, Log, Machinery, tempfile::TempDir> for Builder {
        async fn build(&self) -> Result<(tempfile::TempDir, Log, Machinery), DiskError> {
            let dir = tempfile::tempdir().unwrap();
            let log = Log::open_as("suite", &dir.path().join("log"), self.alone).unwrap();
            let machine = Box::new(Counter { seen: 0, durable: self.durable });
            let state = Machinery::open("suite", &dir.path().join("state"), machine).await.unwrap();
            Ok((dir, log, state))
        }
    }

    #[test]
    fn openraft_accepts_the_log_under_a_machine_that_keeps_nothing() {
        Suite::test_all(Builder::default()).unwrap();
    }

    #[test]
    fn openraft_accepts_the_log_of_a_node_that_is_alone() {
        Suite::test_all(Builder { alone: true, ..Builder::default() }).unwrap();
    }

    #[test]
    fn openraft_accepts_the_log_under_a_durable_machine() {
        Suite::test_all(Builder { durable: true, ..Builder::default() }).unwrap();
    }

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term, 7), index)
    }

    fn entry(term: u64, index: u64, size: usize) -> Entry {
        let payload = Payloads(vec![Bytes::from(vec![index as u8; size])]);
        Entry { log_id: id(term, index), payload: EntryPayload::Normal(payload) }
    }

    fn newest_segment(dir: &Path) -> PathBuf {
        // The very newest holds only its head: an open log begins a new one.
        let segments = wal::segments(dir).unwrap();
        wal::segment_path(dir, segments[segments.len() - 1])
    }

    async fn indexes(log: &mut Log) -> Vec<u64> {
        log.try_get_log_entries(..).await.unwrap().iter().map(|e| e.log_id.index).collect()
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..3_u64 {
            let mut log = Log::open("t", dir.path()).unwrap();
            assert_eq!(indexes(&mut log).await, (1..=round * 10).collect::<Vec<_>>());
            let entries: Vec<Entry> = (1..=10).map(|n| entry(1, round * 10 + n, 100)).collect();
            log.blocking_append(entries).await.unwrap();
            log.save_vote(&Vote::new(round + 1, 7)).await.unwrap();
        }
        let mut log = Log::open("t", dir.path()).unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 7)));
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(1, 30)));
    }

    #[tokio::test]
    async fn a_node_that_is_alone_finds_its_log_again_and_may_have_company_later() {
        let dir = tempfile::tempdir().unwrap();
        {
            let mut log = Log::open_alone("t", dir.path()).unwrap();
            log.save_vote(&Vote::new(4, 7)).await.unwrap();
            log.blocking_append((1..=200).map(|n| entry(4, n, 50_000))).await.unwrap();
            log.blocking_append([entry(4, 201, 10)]).await.unwrap();
            assert_eq!(indexes(&mut log).await, (1..=201).collect::<Vec<_>>(), "also what memory let go");
        }
        let mut log = Log::open("t", dir.path()).unwrap();
        assert_eq!(indexes(&mut log).await, (1..=201).collect::<Vec<_>>());
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(4, 7)));
    }

    #[tokio::test]
    async fn a_log_that_could_not_be_written_takes_nothing_more_though_it_answers_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open_alone("t", dir.path()).unwrap();
        log.blocking_append([entry(1, 1, 10)]).await.unwrap();
        // The next segment finds its place taken.
        fs::create_dir(wal::segment_path(dir.path(), 2)).unwrap();
        log.blocking_append((2..=200).map(|n| entry(1, n, 50_000))).await.unwrap();
        // A vote waits for the disk, and so for what was written before it.
        assert!(log.save_vote(&Vote::new(2, 7)).await.is_err());
        assert!(log.blocking_append([entry(1, 201, 10)]).await.is_err());
    }

    #[tokio::test]
    async fn a_truncated_end_and_a_purged_start_stay_so_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        {
            let mut log = Log::open("t", dir.path()).unwrap();
            log.blocking_append((1..=20).map(|n| entry(1, n, 10))).await.unwrap();
            log.truncate(id(1, 15)).await.unwrap();
            log.blocking_append([entry(2, 15, 10)]).await.unwrap();
            log.purge(id(1, 4)).await.unwrap();
        }
        let mut log = Log::open("t", dir.path()).unwrap();
        assert_eq!(indexes(&mut log).await, (5..=15).collect::<Vec<_>>());
        let state = log.get_log_state().await.unwrap();
        assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 4)), Some(id(2, 15))));
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_off_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = {
            let mut log = Log::open("t", dir.path()).unwrap();
            log.blocking_append([entry(1, 1, 50), entry(1, 2, 50)]).await.unwrap();
            newest_segment(dir.path())
        };
        let whole = fs::read(&path).unwrap();
        let (_, _, second) = wal::record_at(&whole, wal::SEGMENT_HEAD as usize).unwrap();
        for cut in 0..whole.len() {
            let torn = tempfile::tempdir().unwrap();
            fs::write(wal::segment_path(torn.path(), 1), &whole[..cut]).unwrap();
            let mut log = Log::open("t", torn.path()).unwrap();
            let expected: Vec<u64> = if cut < second { vec![] } else { vec![1] };
            assert_eq!(indexes(&mut log).await, expected, "cut at {cut}");
            log.blocking_append([entry(1, expected.len() as u64 + 1, 5)]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn damage_before_good_records_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = {
            let mut log = Log::open("t", dir.path()).unwrap();
            log.blocking_append((1..=5).map(|n| entry(1, n, 50))).await.unwrap();
            log.blocking_append([entry(1, 6, 50)]).await.unwrap();
            newest_segment(dir.path())
        };
        let mut bytes = fs::read(&path).unwrap();
        bytes[60] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = Log::open("t", dir.path()).err().unwrap();
        assert!(error.to_string().contains("is damaged at byte"), "{error}");
    }

    #[tokio::test]
    async fn a_group_of_which_only_later_parts_reached_the_disk_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = {
            let mut log = Log::open("t", dir.path()).unwrap();
            log.blocking_append([entry(1, 1, 50)]).await.unwrap();
            log.blocking_append((2..=5).map(|n| entry(1, n, 50))).await.unwrap();
            newest_segment(dir.path())
        };
        let mut bytes = fs::read(&path).unwrap();
        let (_, _, second) = wal::record_at(&bytes, wal::SEGMENT_HEAD as usize).unwrap();
        bytes[second + 20..second + 40].fill(0);
        // A process that was killed leaves the zeros behind what it wrote.
        bytes.extend([0; 1000]);
        fs::write(&path, &bytes).unwrap();
        let mut log = Log::open("t", dir.path()).unwrap();
        assert_eq!(indexes(&mut log).await, [1]);
    }

    #[tokio::test]
    async fn zeros_behind_the_records_are_no_damage_in_any_segment() {
        let dir = tempfile::tempdir().unwrap();
        {
            let mut log = Log::open("t", dir.path()).unwrap();
            log.blocking_append([entry(1, 1, 50)]).await.unwrap();
            let length = fs::metadata(newest_segment(dir.path())).unwrap().len();
            assert_eq!(length % (256 << 10), 0, "the open segment is filled up");
        }
        let path = newest_segment(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        assert!(bytes.len() < 1000, "a closed segment is cut");
        bytes.extend([0; 1000]);
        fs::write(&path, &bytes).unwrap();
        drop(Log::open("t", dir.path()).unwrap());
        fs::write(&path, &bytes).unwrap();
        let mut log = Log::open("t", dir.path()).unwrap();
        assert_eq!(indexes(&mut log).await, [1]);
    }

    #[tokio::test]
    async fn a_segment_of_the_first_version_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = {
            let mut log = Log::open("t", dir.path()).unwrap();
            log.blocking_append([entry(1, 1, 50), entry(1, 2, 50)]).await.unwrap();
            newest_segment(dir.path())
        };
        let mut bytes = fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(b"RKWAL-1\n");
        bytes[16] &= 0x7f;
        fs::write(&path, &bytes).unwrap();
        let mut log = Log::open("t", dir.path()).unwrap();
        assert_eq!(indexes(&mut log).await, [1, 2]);
    }

    #[tokio::test]
    async fn segments_go_when_all_in_them_is_purged_and_the_vote_stays() {
        let dir = tempfile::tempdir().unwrap();
        {
            let mut log = Log::open("t", dir.path()).unwrap();
            log.save_vote(&Vote::new(9, 7)).await.unwrap();
            for n in 1..=40 {
                log.blocking_append([entry(1, n, 1 << 20)]).await.unwrap();
            }
            assert!(wal::segments(dir.path()).unwrap().len() >= 4);
            // Most of it is no longer in memory and comes from the files.
            assert_eq!(indexes(&mut log).await, (1..=40).collect::<Vec<_>>());
            assert!(log.limited_get_log_entries(1, 41).await.unwrap().len() <= 2);
            log.purge(id(1, 39)).await.unwrap();
            log.save_vote(&Vote::new(10, 7)).await.unwrap();
        }
        assert!(wal::segments(dir.path()).unwrap().len() <= 2);
        let mut log = Log::open("t", dir.path()).unwrap();
        assert_eq!(indexes(&mut log).await, [40]);
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(10, 7)));
    }

    #[tokio::test]
    async fn a_full_disk_is_reported_to_everyone_who_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open("t", dir.path()).unwrap();
        log.save_vote(&Vote::new(1, 7)).await.unwrap();
        // The next segment cannot be made, so from then on nothing may be called safe.
        let next = wal::segments(dir.path()).unwrap().len() as u64 + 1;
        OpenOptions::new().create_new(true).write(true).open(wal::segment_path(dir.path(), next)).unwrap();
        log.shared.state.lock().begin_segment().unwrap();
        assert!(log.save_vote(&Vote::new(2, 7)).await.is_err());
        assert!(log.blocking_append([entry(1, 1, 5)]).await.is_err());
    }
}
