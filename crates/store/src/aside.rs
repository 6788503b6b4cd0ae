//! A thread for work that takes long and that nobody else should wait for: it gets the processor when others leave it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        OnceLock,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// How many jobs may wait; at the bound the next ones go to the runtime's own threads.
const WAITING_MAX: usize = 1024;
/// How much the thread gives way (`setpriority`): a thread that serves clients and becomes ready takes the processor
/// from it, and where nobody wants it, it is as fast as any.
const NICE: i32 = 10;

/// Does work on that thread; `None` where it panicked.
pub(crate) async fn run<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Option<R> {
    let (tell, told) = oneshot::channel();
    // Who asked may be gone by then.
    send(Box::new(move || drop(tell.send(work()))));
    told.await.ok()
}

/// Does work on that thread and tells nobody.
pub(crate) fn send(job: Job) {
    let refused = match queue() {
        Some(queue) => match queue.try_send(job) {
            Ok(()) => return,
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
        },
        None => job,
    };
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(refused)),
        Err(_) => refused(),
    }
}

/// The queue of the thread, which is started with the first job; `None` where the system gave no thread.
fn queue() -> Option<&'static SyncSender<Job>> {
    static QUEUE: OnceLock<Option<SyncSender<Job>>> = OnceLock::new();
    let start = || {
        let (queue, jobs) = sync_channel::<Job>(WAITING_MAX);
        let work = move || {
            // SAFETY: it takes numbers and changes nothing but how this thread is scheduled. Where it fails, the thread is
            // one like any other.
            let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            while let Ok(job) = jobs.recv() {
                // Who waits for its outcome sees that there is none.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        };
        thread::Builder::new().name("store-aside".to_owned()).spawn(work).ok().map(|_| queue)
    };
    QUEUE.get_or_init(start).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test: all that run share the thread.
    #[tokio::test]
    async fn work_is_done_on_the_thread_which_outlives_one_that_panics_and_elsewhere_beyond_the_bound() {
        let name = || thread::current().name().map(str::to_owned);
        assert_eq!(run(name).await, Some(Some("store-aside".to_owned())));
        assert_eq!(run(|| panic!("as the test wants")).await, None::<()>);
        assert_eq!(run(|| 7).await, Some(7));

        let (open, opened) = std::sync::mpsc::channel::<()>();
        let held = tokio::spawn(run(move || opened.recv().is_err()));
        let all: Vec<_> = (0..WAITING_MAX + 50).map(|n| tokio::spawn(run(move || n))).collect();
        // Those beyond the bound come back while the thread is held.
        let mut done = 0;
        while done < 40 {
            tokio::task::yield_now().await;
            done = all.iter().filter(|one| one.is_finished()).count();
        }
        drop(open);
        assert_eq!(held.await.unwrap(), Some(true));
        for (n, one) in all.into_iter().enumerate() {
            assert_eq!(one.await.unwrap(), Some(n));
        }
    }
}
