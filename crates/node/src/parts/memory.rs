//! Gives memory back to the system when a crowd has left, or a large table has come or gone: the allocator keeps what it
//! once had, for the next time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cluster::Cluster;

use super::SharedListeners;

/// How often it is looked at whether enough connections have ended.
const LOOK: Duration = Duration::from_secs(60);
/// Connections that must have ended since the last time: fewer leave little behind.
const ENDED: u64 = 1_000;
/// Sessions by which the table must have grown or shrunk since then: while it is learned, and whenever a part of it
/// grows, there is twice as much of it for a moment.
const SESSIONS: u64 = 50_000;

static TRIMS: AtomicU64 = AtomicU64::new(0);

/// How often memory was given back.
pub fn trims() -> u64 {
    TRIMS.load(Ordering::Relaxed)
}

/// What there was when memory was given back last.
#[derive(Default)]
struct Before {
    ended: u64,
    sessions: u64,
}

impl Before {
    /// Whether so much has gone or come since that it is time again.
    fn is_over(&mut self, ended: u64, sessions: u64) -> bool {
        let due = ended.saturating_sub(self.ended) >= ENDED || sessions.abs_diff(self.sessions) >= SESSIONS;
        if due {
            *self = Before { ended, sessions };
        }
        due
    }
}

/// Looks from time to time, for as long as the node lives.
pub async fn watch(listeners: SharedListeners, cluster: Arc<Cluster>) {
    let mut look = tokio::time::interval(LOOK);
    let mut before = Before::default();
    loop {
        look.tick().await;
        let ended = listeners.get().map_or(0, |listeners| {
            listeners.counters().accepted.value().saturating_sub(listeners.connections() as u64)
        });
        // It walks the whole heap: milliseconds, in which nothing else may have to wait for this thread.
        if before.is_over(ended, cluster.routes().len() as u64)
            && tokio::task::spawn_blocking(trim).await.unwrap_or(false)
        {
            TRIMS.fetch_add(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_when_a_crowd_has_left_or_a_large_table_came_or_went() {
        let mut before = Before::default();
        let looks = [
            (999, 0, false),
            (1_000, 0, true),
            (1_500, 49_999, false),
            (1_500, 50_000, true),
            (1_500, 50_000, false),
            (1_500, 1_000_000, true),
            (2_000, 950_001, false),
            (2_000, 950_000, true),
        ];
        for (ended, sessions, due) in looks {
            assert_eq!(before.is_over(ended, sessions), due, "{ended} ended, {sessions} in the table");
        }
    }
}
