//! Threads for work that takes milliseconds of CPU (PBKDF2), with a bound on what waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use parking_lot::Mutex;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A few threads and a bounded queue before them, so that no arbiter ever derives a key.
#[derive(Clone)]
pub struct Passwords {
    queue: SyncSender<Job>,
}

/// The queue is full: the client hears `temporary-auth-failure` (RFC 6120, 6.5.10).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many password checks wait")]
pub struct Busy;

impl Passwords {
    /// Starts `threads` threads that share one queue of `waiting` jobs; both are at least one.
    ///
    /// # Errors
    /// Fails when the system gives no thread.
    pub fn start(threads: usize, waiting: usize) -> std::io::Result<Passwords> {
        let (queue, jobs) = sync_channel::<Job>(waiting.max(1));
        let jobs = Arc::new(Mutex::new(jobs));
        for n in 0..threads.max(1) {
            let jobs = jobs.clone();
            std::thread::Builder::new().name(format!("password-{n}")).spawn(move || work(&jobs))?;
        }
        Ok(Passwords { queue })
    }

    /// Runs `job` on one of the threads. A job that panicked counts as `Busy`: the client may try again.
    ///
    /// # Errors
    /// [`Busy`] at the queue's bound, at once and without waiting.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let (tell, told) = oneshot::channel();
        let job = Box::new(move || {
            // The client may be gone by now; then there is nobody to tell.
            let _ = tell.send(job());
        });
        match self.queue.try_send(job) {
            Ok(()) => told.await.map_err(|_| Busy),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Busy),
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        // One thread waits inside `recv` with the lock, the others wait for the lock: either way idle.
        let job = jobs.lock().recv();
        match job {
            Ok(job) => {
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a password check panicked");
                }
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_is_told_at_once() {
        let passwords = Passwords::start(1, 1).unwrap();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let running = tokio::spawn({
            let passwords = passwords.clone();
            async move {
                passwords
                    .run(move || {
                        let _ = started.send(());
                        let _ = gate.recv();
                    })
                    .await
            }
        });
        has_started.await.unwrap();
        let (tell, _told) = oneshot::channel::<()>();
        passwords.queue.try_send(Box::new(move || drop(tell))).unwrap();
        assert_eq!(passwords.run(|| 1).await, Err(Busy));
        open.send(()).unwrap();
        assert_eq!(running.await.unwrap(), Ok(()));
    }

    #[tokio::test]
    async fn a_job_that_panics_leaves_the_thread_alive() {
        let passwords = Passwords::start(1, 4).unwrap();
        assert_eq!(passwords.run(|| panic!("as the test wants")).await, Err::<(), _>(Busy));
        assert_eq!(passwords.run(|| 7).await, Ok(7));
    }
}
