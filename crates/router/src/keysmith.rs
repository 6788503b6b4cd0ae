//! Turns new passwords into keys on threads that may be slow, as many at a time as two cores bear.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hooks::{AccountError, Credentials};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// The keys of a password; `None` for one that cannot be used. Slow on purpose.
pub type MakeKeys = fn(&str) -> Option<Credentials>;

/// Keys that are made at the same time.
const AT_ONCE: usize = 2;

/// Makes keys; passwords beyond the bound are refused at once.
pub(crate) struct Keysmith {
    make: MakeKeys,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
}

/// A place among those who wait, given back when it is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Keysmith {
    pub(crate) fn new(make: MakeKeys, waiting_max: usize) -> Keysmith {
        Keysmith { make, turns: Arc::new(Semaphore::new(AT_ONCE)), waiting: AtomicUsize::new(0), waiting_max }
    }

    /// The keys of a password, made on a thread of `runtime` that may block.
    ///
    /// # Errors
    /// [`AccountError::Busy`] at the bound, at once; [`AccountError::BadPassword`] for one that cannot be used.
    pub(crate) async fn keys(&self, runtime: &Handle, password: &str) -> Result<Credentials, AccountError> {
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let _place = Place(&self.waiting);
        if before >= self.waiting_max {
            return Err(AccountError::Busy);
        }
        // The turn goes along with the work: a caller who leaves does not let one more begin.
        let Ok(turn) = self.turns.clone().acquire_owned().await else { return Err(AccountError::Busy) };
        let (make, password) = (self.make, password.to_owned());
        let made = runtime.spawn_blocking(move || {
            let keys = make(&password);
            drop(turn);
            keys
        });
        // Without an answer the runtime stops.
        made.await.map_err(|_| AccountError::Busy)?.ok_or(AccountError::BadPassword)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    static OPEN: AtomicBool = AtomicBool::new(false);

    fn slow(password: &str) -> Option<Credentials> {
        while password == "slow" && !OPEN.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        None
    }

    #[tokio::test]
    async fn who_comes_beyond_the_bound_is_told_at_once() {
        let smith = Arc::new(Keysmith::new(slow, 3));
        let (runtime, waits) = (Handle::current(), |smith: &Keysmith| smith.waiting.load(Ordering::Acquire));
        let made: Vec<_> = (0..3)
            .map(|_| {
                let (smith, runtime) = (smith.clone(), runtime.clone());
                tokio::spawn(async move { smith.keys(&runtime, "slow").await })
            })
            .collect();
        while waits(&smith) < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(smith.keys(&runtime, "quick").await, Err(AccountError::Busy));
        OPEN.store(true, Ordering::Release);
        for made in made {
            assert_eq!(made.await.unwrap(), Err(AccountError::BadPassword));
        }
        assert_eq!(smith.keys(&runtime, "quick").await, Err(AccountError::BadPassword));
        assert_eq!(waits(&smith), 0);
    }
}
