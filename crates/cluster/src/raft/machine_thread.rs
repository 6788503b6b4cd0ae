//! A machine on a thread of its own, where it may block without holding up anybody.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
};

use bytes::Bytes;
use openraft::EntryPayload;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::{
    machine::{Committed, Machine, SnapshotWriter},
    types::{Entry, Mark, Membership, SnapshotFile},
};
use crate::seam;

/// How many requests may wait: openraft sends one after the other, so this is never reached.
const QUEUE: usize = 64;
/// How many quick payloads are applied without the thread at most.
const QUICK: usize = 64;

/// A handle to the thread; it ends with its last handle.
#[derive(Clone)]
pub struct MachineThread {
    requests: mpsc::SyncSender<Request>,
    worker: Arc<Mutex<Worker>>,
    applied: watch::Receiver<u64>,
}

enum Request {
    Apply(Vec<Entry>, oneshot::Sender<io::Result<Vec<Vec<Bytes>>>>),
    Freeze(oneshot::Sender<io::Result<(Mark, SnapshotWriter)>>),
    Install(Mark, SnapshotFile, oneshot::Sender<io::Result<()>>),
    Sync(oneshot::Sender<io::Result<Mark>>),
}

impl MachineThread {
    /// Moves a machine to a thread.
    pub(crate) fn start(name: &str, machine: Box<dyn Machine>) -> io::Result<MachineThread> {
        let mark = match machine.mark() {
            Some(bytes) => Mark::decode(&bytes)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the machine's mark is damaged"))?,
            None => Mark::default(),
        };
        let (requests, queue) = mpsc::sync_channel(QUEUE);
        let (applied_tx, applied) = watch::channel(mark.index());
        let worker = Arc::new(Mutex::new(Worker { machine, mark, applied: applied_tx }));
        if seam::is_simulated() {
            return Ok(MachineThread { requests, worker, applied });
        }
        let here = worker.clone();
        thread::Builder::new().name(format!("apply-{name}")).spawn(move || {
            while let Ok(request) = queue.recv() {
                here.lock().run(request);
            }
        })?;
        Ok(MachineThread { requests, worker, applied })
    }

    /// The index of the newest entry applied, as it grows.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }

    pub(crate) async fn apply(&self, entries: Vec<Entry>) -> io::Result<Vec<Vec<Bytes>>> {
        match self.apply_here(entries) {
            Ok(applied) => applied,
            Err(entries) => self.ask(|answer| Request::Apply(entries, answer)).await,
        }
    }

    /// Applies entries at once if all of them are quick and the thread is idle; gives them back if not. openraft
    /// waits for each answer before it brings more, so none is overtaken.
    fn apply_here(&self, entries: Vec<Entry>) -> Result<io::Result<Vec<Vec<Bytes>>>, Vec<Entry>> {
        let Some(mut worker) = self.worker.try_lock() else { return Err(entries) };
        let mut payloads = 0;
        let is_quick = entries.iter().all(|entry| match &entry.payload {
            EntryPayload::Normal(all) => {
                payloads += all.0.len();
                payloads <= QUICK && all.0.iter().all(|payload| worker.machine.is_quick(payload))
            }
            EntryPayload::Blank | EntryPayload::Membership(_) => false,
        });
        if is_quick { Ok(worker.caught(|worker| worker.apply(entries))) } else { Err(entries) }
    }

    pub(crate) async fn freeze(&self) -> io::Result<(Mark, SnapshotWriter)> {
        self.ask(Request::Freeze).await
    }

    pub(crate) async fn install(&self, mark: Mark, file: SnapshotFile) -> io::Result<()> {
        self.ask(|answer| Request::Install(mark, file, answer)).await
    }

    /// Makes what was applied safe and says up to where that is.
    pub(crate) async fn sync(&self) -> io::Result<Mark> {
        self.ask(Request::Sync).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<io::Result<T>>) -> Request) -> io::Result<T> {
        let (answer, wait) = oneshot::channel();
        if seam::is_simulated() {
            self.worker.lock().run(request(answer));
        } else {
            self.requests.try_send(request(answer)).map_err(|e| io::Error::other(e.to_string()))?;
        }
        wait.await.unwrap_or_else(|_| Err(io::Error::other("the machine has stopped")))
    }
}

struct Worker {
    machine: Box<dyn Machine>,
    mark: Mark,
    applied: watch::Sender<u64>,
}

impl Worker {
    fn run(&mut self, request: Request) {
        // Whoever asked may have gone away: that is no error.
        match request {
            Request::Apply(entries, answer) => drop(answer.send(self.caught(|w| w.apply(entries)))),
            Request::Freeze(answer) => {
                drop(answer.send(self.caught(|w| Ok((w.mark.clone(), w.machine.snapshot()?)))));
            }
            Request::Install(mark, file, answer) => {
                drop(answer.send(self.caught(|w| w.install(mark, file))));
            }
            Request::Sync(answer) => {
                drop(answer.send(self.caught(|w| w.machine.sync().map(|()| w.mark.clone()))));
            }
        }
    }

    fn caught<T>(&mut self, run: impl FnOnce(&mut Worker) -> io::Result<T>) -> io::Result<T> {
        catch_unwind(AssertUnwindSafe(|| run(self)))
            .unwrap_or_else(|_| Err(io::Error::other("the machine panicked")))
    }

    fn apply(&mut self, entries: Vec<Entry>) -> io::Result<Vec<Vec<Bytes>>> {
        let mut mark = self.mark.clone();
        let mut committed = Vec::with_capacity(entries.len());
        for entry in entries {
            mark.log_id = Some(entry.log_id);
            let payloads = match entry.payload {
                EntryPayload::Normal(payloads) => payloads.0,
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Membership(membership) => {
                    mark.membership = Membership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
            };
            committed.push(Committed { index: entry.log_id.index, mark: mark.encode(), payloads });
        }
        let replies = self.machine.apply(&committed)?;
        let fits = replies.len() == committed.len()
            && replies.iter().zip(&committed).all(|(replies, entry)| replies.len() == entry.payloads.len());
        if !fits {
            return Err(io::Error::other("the machine did not answer each payload"));
        }
        self.moved_to(mark);
        Ok(replies)
    }

    fn install(&mut self, mark: Mark, mut file: SnapshotFile) -> io::Result<()> {
        self.machine.install(mark.encode(), &mut file)?;
        self.moved_to(mark);
        Ok(())
    }

    fn moved_to(&mut self, mark: Mark) {
        self.mark = mark;
        self.applied.send_replace(self.mark.index());
    }
}
