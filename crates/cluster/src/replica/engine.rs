//! The store of a backend: a commit is a proposal to the group `data`, a read waits behind a read index.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;
use proto::store as wire;
use store::{
    Batch, BoxFuture, Committed, Engine, Key, Partition, Range, Record, StoreError, Table,
    engines::sled::{Disk, Space, readers::Readers},
};
use tokio::task::AbortHandle;

use super::wire::{command, read_commit_reply, read_id};
use crate::{
    error::ProposeError,
    raft::group::{Group, Proposed},
    seam::{self, random_bits},
};

/// The largest command, in bytes; a commit of several batches is cut between them.
const COMMAND_MAX: usize = 8 * 1024 * 1024;
/// How often the free space of the disk is looked at.
const SPACE_EVERY: Duration = Duration::from_secs(1);

/// What a replica needs of the group `data`; another one stands in for it in tests.
pub(super) trait Agreement: Send + Sync + 'static {
    fn propose(&self, payload: Bytes, deadline: Instant) -> BoxFuture<'_, Result<Proposed, ProposeError>>;
    /// Returns once the machine here has applied all that was acknowledged anywhere before the call.
    fn catch_up(&self, deadline: Instant) -> BoxFuture<'_, Result<(), ProposeError>>;
}

impl Agreement for Group {
    fn propose(&self, payload: Bytes, deadline: Instant) -> BoxFuture<'_, Result<Proposed, ProposeError>> {
        Box::pin(Group::propose(self, payload, deadline.into()))
    }

    fn catch_up(&self, deadline: Instant) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async move {
            let index = self.read_index(deadline.into()).await?;
            self.wait_applied(index, deadline.into()).await
        })
    }
}

/// The replicated store on a backend.
pub struct Replica {
    group: Box<dyn Agreement>,
    disk: Arc<Disk>,
    readers: Readers,
    space: Arc<AtomicU8>,
    watch: AbortHandle,
}

impl Replica {
    pub(super) fn new(group: Box<dyn Agreement>, disk: Arc<Disk>, readers: Readers) -> Replica {
        let space = Arc::new(AtomicU8::new(Space::Enough as u8));
        let watch = tokio::spawn(watch_space(disk.clone(), space.clone())).abort_handle();
        Replica { group, disk, readers, space, watch }
    }

    /// The sled store below, for facts and exports.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Commits under an id that was drawn elsewhere, so that a commit that is tried again at another backend
    /// happens once.
    pub(super) async fn commit_command(
        &self,
        command: &wire::Command,
        deadline: Instant,
    ) -> Result<wire::CommitReply, StoreError> {
        read_id(&command.id)?;
        let payload = Bytes::from(command.encode_to_vec());
        if payload.len() > COMMAND_MAX {
            return Err(StoreError::TooLarge { what: "commit", max: COMMAND_MAX });
        }
        let proposed = self.group.propose(payload, deadline).await.map_err(|e| refused(e, deadline))?;
        wire::CommitReply::decode(proposed.reply)
            .map_err(|_| StoreError::Engine { reason: "answer to a commit is damaged".to_owned() })
    }

    /// Whether there is room for these batches on the disk of this backend.
    pub(super) fn check_space(&self, batches: &[Batch]) -> Result<(), StoreError> {
        let space = [Space::Enough, Space::Deletes, Space::None]
            .into_iter()
            .find(|space| *space as u8 == self.space.load(Relaxed));
        space.unwrap_or(Space::None).check(batches)
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

async fn watch_space(disk: Arc<Disk>, space: Arc<AtomicU8>) {
    let mut ticks = tokio::time::interval(SPACE_EVERY);
    loop {
        ticks.tick().await;
        let disk = disk.clone();
        // It asks the file system, which may be one that hangs.
        if let Ok(Ok(now)) = seam::blocking(move || disk.space()).await {
            space.store(now as u8, Relaxed);
        }
    }
}

fn refused(error: ProposeError, deadline: Instant) -> StoreError {
    match error {
        // A call that ran out of time may be told so in other words.
        _ if Instant::now() >= deadline => StoreError::Deadline,
        ProposeError::Deadline => StoreError::Deadline,
        ProposeError::TooLarge(max) => StoreError::TooLarge { what: "commit", max },
        other => StoreError::Unavailable { reason: other.to_string() },
    }
}

/// Cuts batches into commands that fit a log entry; each keeps at least one.
pub(super) fn split(batches: Vec<Batch>) -> Vec<Vec<Batch>> {
    let mut parts: Vec<Vec<Batch>> = Vec::new();
    let mut size = usize::MAX;
    for batch in batches {
        let more = batch.size();
        if size.saturating_add(more) > COMMAND_MAX / 2 {
            parts.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(part) = parts.last_mut() {
            part.push(batch);
        }
    }
    parts
}

impl Engine for Replica {
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let read = self.readers.get(partition, table, key, deadline);
        Box::pin(async move {
            self.group.catch_up(deadline).await.map_err(|e| refused(e, deadline))?;
            read.await
        })
    }

    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>> {
        let read = self.readers.scan(partition, table, range, deadline);
        Box::pin(async move {
            self.group.catch_up(deadline).await.map_err(|e| refused(e, deadline))?;
            read.await
        })
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        Box::pin(async move {
            batches.iter().try_for_each(Batch::check)?;
            self.check_space(&batches)?;
            let mut outcomes = Vec::with_capacity(batches.len());
            for part in split(batches) {
                let command = command(random_bits(), part);
                outcomes.extend(read_commit_reply(self.commit_command(&command, deadline).await?)?);
            }
            Ok(outcomes)
        })
    }
}
