//! Gives memory back to the system when a crowd has left: the allocator keeps what it once had, for the next one.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::SharedListeners;

/// How often it is looked at whether enough connections have ended.
const LOOK: Duration = Duration::from_secs(60);
/// Connections that must have ended since the last time: fewer leave little behind.
const ENDED: u64 = 1_000;

static TRIMS: AtomicU64 = AtomicU64::new(0);

/// How often memory was given back.
pub fn trims() -> u64 {
    TRIMS.load(Ordering::Relaxed)
}

/// Looks from time to time, for as long as the node lives.
pub async fn watch(listeners: SharedListeners) {
    let mut look = tokio::time::interval(LOOK);
    let mut before = 0;
    loop {
        look.tick().await;
        let Some(listeners) = listeners.get() else { continue };
        let ended = listeners.counters().accepted.value().saturating_sub(listeners.connections() as u64);
        if ended.saturating_sub(before) >= ENDED {
            before = ended;
            // It walks the whole heap: milliseconds, in which nothing else may have to wait for this thread.
            if tokio::task::spawn_blocking(trim).await.unwrap_or(false) {
                TRIMS.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Whether the allocator can do that.
fn trim() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the call has no conditions; it takes the locks of the allocator as every allocation does.
        unsafe { libc::malloc_trim(0) };
        true
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}
