//! The engine of a frontend: asks a backend, and turns to the next when that one dies or stalls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use proto::store::{self as wire, store_client::StoreClient};
use store::{
    Batch, BoxFuture, Committed, Engine, Key, Partition, Range, Record, StoreError, Table,
    engine::{check_key, check_partition},
};
use tonic::{Status, transport::Channel};

use super::{
    engine::split,
    wire::{
        MESSAGE_MAX, bound, command, partition, read_commit_reply, read_get_reply, read_scan_reply,
        timeout_ms,
    },
};
use crate::{role::NodeId, seam::random_bits};

/// How long one backend may take before the next is asked; a whole election fits.
const ATTEMPT: Duration = Duration::from_millis(2500);
/// How long to wait when every backend has failed, before the first is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Links to the backends as they are known now.
type Backends = Box<dyn Fn() -> Vec<(NodeId, Channel)> + Send + Sync>;

/// The replicated store as a node sees it that keeps none of it.
pub struct Remote {
    backends: Backends,
    /// Which backend is asked, modulo their number; moves on when one fails.
    current: Arc<AtomicUsize>,
}

/// What one attempt came to.
enum Attempt<R> {
    Answered(Result<R, StoreError>),
    /// Another backend may do better.
    Failed(String),
}

impl Remote {
    /// An engine over whichever backends `backends` gives at each call.
    pub fn new(backends: impl Fn() -> Vec<(NodeId, Channel)> + Send + Sync + 'static) -> Remote {
        // Frontends begin at different backends.
        let first = (random_bits() as u16) as usize;
        Remote { backends: Box::new(backends), current: Arc::new(AtomicUsize::new(first)) }
    }

    /// Whether somebody is left when one backend fails.
    pub(super) fn knows_several(&self) -> bool {
        (self.backends)().len() > 1
    }

    /// Commits under one id at whichever backends it takes: it happens once.
    pub(super) async fn commit_command(
        &self,
        command: &wire::Command,
        deadline: Instant,
    ) -> Result<Vec<Committed>, StoreError> {
        self.ask(deadline, |mut client, timeout_ms| {
            let request = wire::CommitRequest { command: Some(command.clone()), timeout_ms };
            async move { Ok(read_commit_reply(client.commit(request).await?.into_inner())) }
        })
        .await
    }

    /// Asks backend after backend until one answers or the deadline passes.
    async fn ask<R, F: Future<Output = Result<Result<R, StoreError>, Status>>>(
        &self,
        deadline: Instant,
        call: impl Fn(StoreClient<Channel>, u64) -> F,
    ) -> Result<R, StoreError> {
        let mut why = "no backend is known".to_owned();
        let mut failed = 0;
        loop {
            let backends = (self.backends)();
            let turn = self.current.load(Relaxed);
            if let Some((node, channel)) = backends.get(turn % backends.len().max(1)) {
                match self.attempt(channel.clone(), deadline, &call).await {
                    Attempt::Answered(answer) => return answer,
                    Attempt::Failed(reason) => {
                        tracing::debug!(%node, reason, "backend failed, turning to the next");
                        why = reason;
                    }
                }
                // Only the first of many calls that failed together moves on.
                let _ = self.current.compare_exchange(turn, turn.wrapping_add(1), Relaxed, Relaxed);
                failed += 1;
            }
            if failed % backends.len().max(1) == 0 {
                let pause = PAUSE.min(deadline.saturating_duration_since(Instant::now()));
                tokio::time::sleep(pause).await;
            }
            if Instant::now() >= deadline {
                tracing::warn!(reason = why, "no backend answered before the deadline");
                return Err(StoreError::Deadline);
            }
        }
    }

    async fn attempt<R, F: Future<Output = Result<Result<R, StoreError>, Status>>>(
        &self,
        channel: Channel,
        deadline: Instant,
        call: &impl Fn(StoreClient<Channel>, u64) -> F,
    ) -> Attempt<R> {
        let until = deadline.min(Instant::now() + ATTEMPT);
        let client = StoreClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        match tokio::time::timeout_at(until.into(), call(client, timeout_ms(until))).await {
            Err(_) | Ok(Ok(Err(StoreError::Deadline))) => Attempt::Failed("no answer in time".to_owned()),
            Ok(Ok(Err(StoreError::Unavailable { reason }))) => Attempt::Failed(reason),
            Ok(Ok(answer)) => Attempt::Answered(answer),
            // The same answer would be too large for any link.
            Ok(Err(status)) if status.code() == tonic::Code::OutOfRange => {
                Attempt::Answered(Err(StoreError::TooLarge { what: "answer", max: MESSAGE_MAX }))
            }
            Ok(Err(status)) => Attempt::Failed(status.to_string()),
        }
    }
}

impl Engine for Remote {
    fn get(
        &self,
        at: &Partition,
        table: Table,
        key: &[u8],
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Option<Record>, StoreError>> {
        let checked = check_partition(at).and_then(|()| check_key(table, key));
        let request = wire::GetRequest {
            partition: Some(partition(at)),
            table: table.0.to_owned(),
            key: key.to_vec().into(),
            timeout_ms: 0,
        };
        Box::pin(async move {
            checked?;
            self.ask(deadline, |mut client, timeout_ms| {
                let request = wire::GetRequest { timeout_ms, ..request.clone() };
                async move { Ok(read_get_reply(client.get(request).await?.into_inner())) }
            })
            .await
        })
    }

    fn scan(
        &self,
        at: &Partition,
        table: Table,
        range: Range,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<(Key, Record)>, StoreError>> {
        let checked = check_partition(at).and_then(|()| check_key(table, &[]));
        let request = wire::ScanRequest {
            partition: Some(partition(at)),
            table: table.0.to_owned(),
            reverse: range.reverse,
            // No more than `LIMIT_MAX`, which fits.
            limit: range.limit.min(Range::LIMIT_MAX) as u32,
            from: bound(range.from),
            to: bound(range.to),
            timeout_ms: 0,
        };
        Box::pin(async move {
            checked?;
            self.ask(deadline, |mut client, timeout_ms| {
                let request = wire::ScanRequest { timeout_ms, ..request.clone() };
                async move { Ok(read_scan_reply(client.scan(request).await?.into_inner())) }
            })
            .await
        })
    }

    fn commit(
        &self,
        batches: Vec<Batch>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<Committed>, StoreError>> {
        Box::pin(async move {
            batches.iter().try_for_each(Batch::check)?;
            let mut outcomes = Vec::with_capacity(batches.len());
            for part in split(batches) {
                outcomes.extend(self.commit_command(&command(random_bits(), part), deadline).await?);
            }
            Ok(outcomes)
        })
    }
}
