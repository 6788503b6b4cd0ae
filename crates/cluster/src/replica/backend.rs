//! The engine that a backend's own sessions use: the replica here, or another backend's if this one failed.

use std::{sync::Arc, time::Instant};

use store::{Batch, BoxFuture, Committed, Engine, Key, Partition, Range, Record, StoreError, Table};

use super::{
    engine::{Replica, split},
    remote::Remote,
    wire::{command, read_commit_reply},
};
use crate::seam::random_bits;

/// A replica whose disk may fail without taking the sessions of its node along.
pub(super) struct Backend {
    near: Arc<Replica>,
    far: Remote,
}

impl Backend {
    pub(super) fn new(near: Arc<Replica>, far: Remote) -> Backend {
        Backend { near, far }
    }

    /// The answer of the replica here, unless it takes no part any more and there is somebody else.
    fn settled<R>(&self, answer: Result<R, StoreError>) -> Option<Result<R, StoreError>> {
        match answer {
            Err(StoreError::Unavailable { reason }) if self.far.knows_several() => {
                tracing::debug!(reason, "store of this backend failed, asking the others");
                None
            }
            answer => Some(answer),
        }
    }
}

impl Engine for Backend {
    fn get(
        &self,
        partition: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let near = self.near.get(partition, table, key, deadline);
        let (partition, key) = (partition.clone(), key.to_vec());
        Box::pin(async move {
            match self.settled(near.await) {
                Some(answer) => answer,
                None => self.far.get(&partition, table, &key, deadline).await,
            }
        })
    }

    fn scan(
        &self,
        partition: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>> {
        let near = self.near.scan(partition, table, range.clone(), deadline);
        let partition = partition.clone();
        Box::pin(async move {
            match self.settled(near.await) {
                Some(answer) => answer,
                None => self.far.scan(&partition, table, range, deadline).await,
            }
        })
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        Box::pin(async move {
            batches.iter().try_for_each(Batch::check)?;
            self.near.check_space(&batches)?;
            let mut outcomes = Vec::with_capacity(batches.len());
            for part in split(batches) {
                // One id for both: what the replica here still proposed happens once.
                let command = command(random_bits(), part);
                let near = self.near.commit_command(&command, deadline).await;
                outcomes.extend(match self.settled(near.and_then(read_commit_reply)) {
                    Some(answer) => answer?,
                    None => self.far.commit_command(&command, deadline).await?,
                });
            }
            Ok(outcomes)
        })
    }
}
