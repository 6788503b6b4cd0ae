//! The embedded engine: sled on threads of its own, with group commit and a real sync.
//!
//! [`Disk`](disk::Disk) is the blocking half, which the replicated store uses as well; [`Sled`] adds the
//! threads and is an [`Engine`] for a server that stands alone.

mod blocks;
pub mod copy;
pub mod disk;
mod journal;
mod kept;
#[cfg(test)]
mod kept_tests;
mod layer;
mod layout;
pub mod readers;
mod records;
mod run;
mod segments;
mod settling;
#[cfg(test)]
mod settling_tests;
#[cfg(test)]
mod tests;
pub mod writing;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use tokio::sync::{mpsc, oneshot};

use self::readers::{Readers, stopped};
pub use self::{
    copy::Copy,
    disk::{Config, Disk, Space},
};
use crate::engine::{Batch, BoxFuture, Committed, Engine, Key, Partition, Range, Record, StoreError, Table};

/// The most batches that share one sync.
const GROUP_BATCHES: usize = 1024;
/// The most bytes that share one sync.
const GROUP_BYTES: usize = 4 * 1024 * 1024;

/// The name under which a server that stands alone keeps its store.
pub const KEEPER: &str = "a server that stands alone";

/// A sled store with its threads.
pub struct Sled {
    disk: Arc<Disk>,
    readers: Readers,
    writes: mpsc::Sender<Write>,
    writer: JoinHandle<()>,
}

struct Write {
    batches: Vec<Batch>,
    deadline: Instant,
    answer: oneshot::Sender<Result<Vec<Committed>, StoreError>>,
}

impl Sled {
    /// Opens or makes a store; blocks until sled has recovered.
    pub fn open(config: &Config) -> Result<Sled, StoreError> {
        let failed =
            |e: std::io::Error| StoreError::Engine { reason: format!("failed to start a thread: {e}") };
        let disk = Arc::new(Disk::open(config)?);
        disk.claim(KEEPER)?;
        let readers = Readers::start(&disk, config.readers, config.queue).map_err(failed)?;
        let (writes, queue) = mpsc::channel(config.queue.max(1));
        let run = {
            let disk = disk.clone();
            move || serve(&disk, queue)
        };
        let writer = thread::Builder::new().name("store-write".to_owned()).spawn(run).map_err(failed)?;
        Ok(Sled { disk, readers, writes, writer })
    }

    /// The blocking half.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Answers what is under way and releases the files; blocks.
    pub fn close(self) {
        drop(self.writes);
        // Panics of sled are caught where they happen.
        let _ = self.writer.join();
        self.readers.close();
    }
}

/// Takes all that waits, writes it as one, syncs once, then answers.
fn serve(disk: &Disk, mut queue: mpsc::Receiver<Write>) {
    let mut group = Vec::new();
    while let Some(first) = queue.blocking_recv() {
        let (mut batches, mut bytes) = (0, 0);
        let mut next = Some(first);
        while let Some(write) = next {
            batches += write.batches.len();
            bytes += write.batches.iter().map(Batch::size).sum::<usize>();
            group.push(write);
            next = if batches < GROUP_BATCHES && bytes < GROUP_BYTES { queue.try_recv().ok() } else { None };
        }
        let answers = disk.guarded("a commit", || write_group(disk, &group));
        match answers {
            // A caller may have gone meanwhile; its batches are written all the same.
            Ok(answers) => group.drain(..).zip(answers).for_each(|(write, a)| drop(write.answer.send(a))),
            Err(e) => group.drain(..).for_each(|write| drop(write.answer.send(Err(e.clone())))),
        }
    }
}

type Answer = Result<Vec<Committed>, StoreError>;

fn write_group(disk: &Disk, group: &[Write]) -> Result<Vec<Answer>, StoreError> {
    let space = disk.space()?;
    let now = Instant::now();
    let mut writing = disk.write()?;
    let mut answers = Vec::with_capacity(group.len());
    for write in group {
        answers.push(if write.deadline <= now {
            Err(StoreError::Deadline)
        } else if let Err(full) = space.check(&write.batches) {
            Err(full)
        } else {
            write.batches.iter().map(|batch| writing.batch(batch)).collect()
        });
    }
    writing.finish()?;
    disk.sync()?;
    Ok(answers)
}

impl Engine for Sled {
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        self.readers.get(partition, table, key, deadline)
    }

    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>> {
        self.readers.scan(partition, table, range, deadline)
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        Box::pin(async move {
            batches.iter().try_for_each(Batch::check)?;
            let (answer, answered) = oneshot::channel();
            let call = async {
                let write = Write { batches, deadline, answer };
                self.writes.send(write).await.map_err(|_| stopped())?;
                answered.await.map_err(|_| stopped())?
            };
            tokio::time::timeout_at(deadline.into(), call).await.map_err(|_| StoreError::Deadline)?
        })
    }
}
