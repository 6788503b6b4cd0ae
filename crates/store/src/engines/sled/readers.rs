//! Threads that read from a disk for callers that must not block.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use tokio::sync::{mpsc, oneshot};

use super::disk::Disk;
use crate::engine::{
    BoxFuture, Key, Partition, Range, Record, StoreError, Table, check_key, check_partition,
};

type Job = Box<dyn FnOnce(&Disk) + Send>;

/// A few threads that answer reads; dropped, they end with the call that they are at.
pub struct Readers {
    disk: Arc<Disk>,
    queues: Vec<mpsc::Sender<Job>>,
    next: AtomicUsize,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Starts `count` threads, each with a queue of `queue` calls.
    pub fn start(disk: &Arc<Disk>, count: usize, queue: usize) -> io::Result<Readers> {
        let mut readers = Readers {
            disk: disk.clone(),
            queues: Vec::new(),
            next: AtomicUsize::new(0),
            threads: Vec::new(),
        };
        for number in 0..count.max(1) {
            let (sender, jobs) = mpsc::channel(queue.max(1));
            let disk = disk.clone();
            let run = move || serve(&disk, jobs);
            readers.threads.push(thread::Builder::new().name(format!("store-read-{number}")).spawn(run)?);
            readers.queues.push(sender);
        }
        Ok(readers)
    }

    pub fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let checked = check_partition(partition).and_then(|()| check_key(table, key));
        let (partition, key) = (partition.clone(), key.to_vec());
        Box::pin(async move {
            checked?;
            in_time(deadline)?;
            // Not before it is polled: the caller may wait for something first.
            if let Some(found) = self.disk.kept_get(&partition, table, &key) {
                return Ok(found);
            }
            let read = move |disk: &Disk| {
                disk.keep(&partition);
                disk.get(&partition, table, &key)
            };
            self.run(deadline, read).await
        })
    }

    pub fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>> {
        let checked = check_partition(partition).and_then(|()| check_key(table, &[]));
        let partition = partition.clone();
        Box::pin(async move {
            checked?;
            in_time(deadline)?;
            if let Some(found) = self.disk.kept_scan(&partition, table, &range) {
                return Ok(found);
            }
            let read = move |disk: &Disk| {
                disk.keep(&partition);
                disk.scan(&partition, table, &range)
            };
            self.run(deadline, read).await
        })
    }

    /// Ends the threads and waits for them; blocks.
    pub fn close(mut self) {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            // A thread catches the panics of its jobs, so there is nothing to learn from its end.
            let _ = thread.join();
        }
    }

    async fn run<R: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&Disk) -> Result<R, StoreError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let (sender, answer) = oneshot::channel();
        let job: Job = Box::new(move |disk| {
            // Nobody waits any more: do not add to the work of a slow disk.
            let late = Instant::now() >= deadline || sender.is_closed();
            // The caller may have gone meanwhile.
            let _ = sender.send(if late { Err(StoreError::Deadline) } else { work(disk) });
        });
        let queue = &self.queues[self.next.fetch_add(1, Relaxed) % self.queues.len()];
        let call = async {
            queue.send(job).await.map_err(|_| stopped())?;
            answer.await.map_err(|_| StoreError::Engine { reason: "read was cut short".to_owned() })?
        };
        tokio::time::timeout_at(deadline.into(), call).await.map_err(|_| StoreError::Deadline)?
    }
}

fn in_time(deadline: Instant) -> Result<(), StoreError> {
    if Instant::now() >= deadline { Err(StoreError::Deadline) } else { Ok(()) }
}

pub(super) fn stopped() -> StoreError {
    StoreError::Unavailable { reason: "store is stopped".to_owned() }
}

fn serve(disk: &Disk, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        if catch_unwind(AssertUnwindSafe(|| job(disk))).is_err() {
            tracing::error!("store panicked in a read");
        }
    }
}
