//! Many small questions become few: proposals are batched, and reads that come together share one answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot},
    task::AbortHandle,
    time::{Instant, sleep, timeout_at},
};

use crate::{error::ProposeError, raft::group::Proposed};

/// How many proposals share an entry at most.
const BATCH_MAX: usize = 512;
/// How many bytes share an entry, if one proposal alone is not larger.
const BATCH_BYTES: usize = 1 << 20;
/// The largest single proposal.
pub(crate) const PAYLOAD_MAX: usize = 16 << 20;
/// How long a batch gathers while others are on their way.
const GATHER: Duration = Duration::from_millis(2);
/// As many that came while a batch gathered are a crowd, for which it gathers once more: half as many entries, with
/// their syncs and messages, for twice the pause.
const CROWD: usize = 8;
/// How many batches are on their way at once.
const IN_FLIGHT: usize = 16;
/// How many proposals and reads may wait; at the bound their callers wait until their deadlines.
const QUEUE: usize = 16_384;
/// Pauses between attempts, the last one repeated.
const PAUSES_MS: [u64; 5] = [10, 20, 50, 100, 200];

/// Why an attempt failed.
pub(crate) enum Attempt {
    /// It may work in a moment: no leader, no quorum, no link.
    Again(String),
    /// It will not.
    Never(ProposeError),
}

/// Where batches go.
pub(crate) trait Sink: Send + Sync + 'static {
    /// Has all payloads agreed on, or fails as a whole; what is tried again may be applied twice.
    fn send(&self, payloads: Vec<Bytes>, deadline: Instant) -> BoxFuture<'_, Result<Vec<Proposed>, Attempt>>;

    /// Whether it is decided on this node: then a proposal need not go through a task of its own.
    fn is_near(&self) -> bool {
        false
    }

    /// Asks for the read index.
    fn read_index(&self, deadline: Instant) -> BoxFuture<'_, Result<u64, Attempt>>;
}

struct Proposal {
    payload: Bytes,
    deadline: Instant,
    answer: oneshot::Sender<Result<Proposed, ProposeError>>,
}

struct Read {
    deadline: Instant,
    answer: oneshot::Sender<Result<u64, ProposeError>>,
}

/// The queues in front of a sink; they end with it.
pub(crate) struct Batcher {
    proposals: mpsc::Sender<Proposal>,
    reads: mpsc::Sender<Read>,
    sink: Arc<dyn Sink>,
    /// For the one proposal that may go its own way, from the task of its caller, where nothing else is under
    /// way: two that do so would each cost a sync of the log.
    direct: Arc<Semaphore>,
    /// Proposals in the queue or sent from it.
    queued: AtomicUsize,
    tasks: [AbortHandle; 2],
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Batcher {
    /// Starts the queues; their tasks run on `runtime`.
    pub(crate) fn start(sink: Arc<dyn Sink>, runtime: &Handle) -> Batcher {
        let (proposals, proposal_queue) = mpsc::channel(QUEUE);
        let (reads, read_queue) = mpsc::channel(QUEUE);
        let direct = Arc::new(Semaphore::new(1));
        let write = runtime.spawn(run_proposals(proposal_queue, sink.clone(), direct.clone()));
        let read = runtime.spawn(run_reads(read_queue, sink.clone()));
        let tasks = [write.abort_handle(), read.abort_handle()];
        Batcher { proposals, reads, sink, direct, queued: AtomicUsize::new(0), tasks }
    }

    pub(crate) fn stop(&self) {
        self.direct.close();
        self.tasks.iter().for_each(AbortHandle::abort);
    }

    pub(crate) async fn propose(&self, payload: Bytes, deadline: Instant) -> Result<Proposed, ProposeError> {
        if payload.len() > PAYLOAD_MAX {
            return Err(ProposeError::TooLarge(PAYLOAD_MAX));
        }
        if let Some(answer) = self.propose_directly(&payload, deadline).await {
            return answer;
        }
        let _queued = Counted::one(&self.queued);
        let (answer, wait) = oneshot::channel();
        ask(&self.proposals, Proposal { payload, deadline, answer }, wait, deadline).await
    }

    /// Spares a proposal on a leader that is idle the way through two other tasks; `None`: it is for the
    /// queue, where it is tried again.
    async fn propose_directly(
        &self,
        payload: &Bytes,
        deadline: Instant,
    ) -> Option<Result<Proposed, ProposeError>> {
        let _permit = self.direct.try_acquire().ok()?;
        if self.queued.load(Ordering::Relaxed) > 0 || !self.sink.is_near() {
            return None;
        }
        match self.sink.send(vec![payload.clone()], deadline).await {
            Ok(mut results) if results.len() == 1 => results.pop().map(Ok),
            Err(Attempt::Never(error)) => Some(Err(error)),
            Ok(_) | Err(Attempt::Again(_)) => None,
        }
    }

    pub(crate) async fn read_index(&self, deadline: Instant) -> Result<u64, ProposeError> {
        let (answer, wait) = oneshot::channel();
        ask(&self.reads, Read { deadline, answer }, wait, deadline).await
    }
}

/// Counts while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one(count: &'a AtomicUsize) -> Counted<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn ask<Q, A>(
    queue: &mpsc::Sender<Q>,
    question: Q,
    answer: oneshot::Receiver<Result<A, ProposeError>>,
    deadline: Instant,
) -> Result<A, ProposeError> {
    let stopped = || ProposeError::Stopped("the queue has ended".into());
    let asked = async {
        queue.send(question).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    };
    timeout_at(deadline, asked).await.unwrap_or(Err(ProposeError::Deadline))
}

async fn run_proposals(mut queue: mpsc::Receiver<Proposal>, sink: Arc<dyn Sink>, direct: Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(IN_FLIGHT));
    while let Some(first) = queue.recv().await {
        // A single command on an idle group goes at once; only a busy group gathers.
        let busy = permits.available_permits() < IN_FLIGHT || direct.available_permits() == 0;
        if busy {
            gather(&queue).await;
        }
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let mut bytes = first.payload.len();
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX && bytes < BATCH_BYTES {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.payload.len();
            batch.push(next);
        }
        let sink = sink.clone();
        tokio::spawn(async move {
            send_batch(batch, &*sink).await;
            drop(permit);
        });
    }
}

/// Lets proposals come together. They lie in the queue meanwhile and wake nobody: a turn of this task for each costs more
/// than the rest of its way here.
async fn gather(queue: &mpsc::Receiver<Proposal>) {
    if queue.len() < BATCH_MAX {
        sleep(GATHER).await;
    }
    if (CROWD..BATCH_MAX).contains(&queue.len()) {
        sleep(GATHER).await;
    }
}

async fn send_batch(mut batch: Vec<Proposal>, sink: &dyn Sink) {
    for attempt in 0.. {
        let now = Instant::now();
        // Whoever waits has given up at the deadline.
        batch.retain(|proposal| proposal.deadline > now && !proposal.answer.is_closed());
        let Some(deadline) = batch.iter().map(|proposal| proposal.deadline).max() else { return };
        let payloads = batch.iter().map(|proposal| proposal.payload.clone()).collect();
        match sink.send(payloads, deadline).await {
            Ok(results) if results.len() == batch.len() => {
                for (proposal, result) in batch.into_iter().zip(results) {
                    let _ = proposal.answer.send(Ok(result));
                }
                return;
            }
            Ok(_) => pause(attempt, "an answer was missing").await,
            Err(Attempt::Again(reason)) => pause(attempt, &reason).await,
            Err(Attempt::Never(error)) => {
                for proposal in batch {
                    let _ = proposal.answer.send(Err(error.clone()));
                }
                return;
            }
        }
    }
}

async fn run_reads(mut queue: mpsc::Receiver<Read>, sink: Arc<dyn Sink>) {
    while let Some(first) = queue.recv().await {
        let mut group = vec![first];
        // Only those who came before the question may share its answer.
        while let Ok(next) = queue.try_recv() {
            group.push(next);
        }
        for attempt in 0.. {
            let now = Instant::now();
            group.retain(|read| read.deadline > now && !read.answer.is_closed());
            let Some(deadline) = group.iter().map(|read| read.deadline).max() else { break };
            let result = match sink.read_index(deadline).await {
                Ok(index) => Ok(index),
                Err(Attempt::Again(reason)) => {
                    pause(attempt, &reason).await;
                    continue;
                }
                Err(Attempt::Never(error)) => Err(error),
            };
            for read in group {
                let _ = read.answer.send(result.clone());
            }
            break;
        }
    }
}

async fn pause(attempt: usize, reason: &str) {
    tracing::debug!(attempt, reason, "a proposal or read is tried again");
    sleep(Duration::from_millis(PAUSES_MS[attempt.min(PAUSES_MS.len() - 1)])).await;
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Notes how many payloads came at once; answers when it is told to.
    struct Noting {
        sizes: Mutex<Vec<usize>>,
        near: bool,
        fails: Mutex<usize>,
        open: Semaphore,
    }

    impl Noting {
        fn new(near: bool, fails: usize, answers: usize) -> Arc<Noting> {
            let (sizes, fails) = (Mutex::default(), Mutex::new(fails));
            Arc::new(Noting { sizes, near, fails, open: Semaphore::new(answers) })
        }
    }

    impl Sink for Noting {
        fn is_near(&self) -> bool {
            self.near
        }

        fn send(
            &self,
            payloads: Vec<Bytes>,
            _deadline: Instant,
        ) -> BoxFuture<'_, Result<Vec<Proposed>, Attempt>> {
            Box::pin(async move {
                self.sizes.lock().push(payloads.len());
                let fails = std::mem::replace(&mut *self.fails.lock(), 0);
                if fails > 0 {
                    return Err(Attempt::Again("as the test wants".into()));
                }
                if let Ok(permit) = self.open.acquire().await {
                    permit.forget();
                }
                Ok(payloads.into_iter().map(|reply| Proposed { index: 7, reply }).collect())
            })
        }

        fn read_index(&self, _deadline: Instant) -> BoxFuture<'_, Result<u64, Attempt>> {
            Box::pin(std::future::ready(Ok(7)))
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn a_proposal_that_fails_on_its_direct_way_is_tried_again_from_the_queue() {
        let sink = Noting::new(true, 1, 9);
        let batcher = Batcher::start(sink.clone(), &Handle::current());
        let proposed = batcher.propose(Bytes::from_static(b"a"), soon()).await.unwrap();
        assert_eq!(proposed, Proposed { index: 7, reply: Bytes::from_static(b"a") });
        assert_eq!(*sink.sizes.lock(), [1, 1]);
    }

    #[tokio::test]
    async fn proposals_beside_the_one_that_goes_directly_share_entries() {
        let sink = Noting::new(true, 0, 0);
        let batcher = Batcher::start(sink.clone(), &Handle::current());
        let all = (0..100).map(|_| batcher.propose(Bytes::from_static(b"a"), soon()));
        let open = async {
            // The direct one and the first batch are on their way.
            while sink.sizes.lock().len() < 2 {
                tokio::task::yield_now().await;
            }
            sink.open.add_permits(100);
        };
        let (answers, ()) = futures::future::join(futures::future::join_all(all), open).await;
        assert!(answers.iter().all(Result::is_ok));
        let sizes = sink.sizes.lock();
        assert_eq!(sizes.iter().sum::<usize>(), 100);
        assert_eq!(sizes[0], 1);
        assert!(sizes.len() < 10, "{sizes:?}");
    }

    #[tokio::test]
    async fn a_queue_that_has_stopped_takes_nothing_directly() {
        let sink = Noting::new(true, 0, 9);
        let batcher = Batcher::start(sink.clone(), &Handle::current());
        batcher.stop();
        assert!(batcher.propose(Bytes::from_static(b"a"), soon()).await.is_err());
        assert!(sink.sizes.lock().is_empty());
    }
}
