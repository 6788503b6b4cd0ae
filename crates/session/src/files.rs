//! How near the process is to the number of files that the system allows it to have open.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is kept for everybody but clients.
pub(crate) struct Files {
    /// The first number of a file that a client may not have.
    end: i64,
    limit: u64,
    /// Clients when the bound was met; 0 while it is not.
    met_at: AtomicUsize,
}

impl Files {
    /// Keeps `reserve` of the files that this process may have open now, at most a quarter of them.
    pub(crate) fn new(reserve: u64) -> Files {
        Files::with(limit().unwrap_or(u64::MAX), reserve)
    }

    fn with(limit: u64, reserve: u64) -> Files {
        let end = limit - reserve.min(limit / 4);
        Files { end: i64::try_from(end).unwrap_or(i64::MAX), limit, met_at: AtomicUsize::new(0) }
    }

    /// Whether a client may have the file with this number, while this many clients have one. The system gives
    /// the lowest number that is free, so all below it are taken.
    pub(crate) fn admits(&self, number: i32, clients: usize) -> bool {
        if i64::from(number) >= self.end {
            self.meet(clients);
            return false;
        }
        self.look(clients);
        true
    }

    /// Says that the bound is no longer met, when it is not.
    pub(crate) fn look(&self, clients: usize) {
        let met_at = self.met_at.load(Ordering::Relaxed);
        // Only a few percent below is it over: said at each client that comes and goes, it would fill the log.
        if met_at == 0 || clients + met_at.div_ceil(16) > met_at {
            return;
        }
        let was = self.met_at.compare_exchange(met_at, 0, Ordering::Relaxed, Ordering::Relaxed);
        if was.is_ok() {
            tracing::info!(clients, "clients are accepted again: enough files are free");
        }
    }

    /// The bound is met, or the system gave no file at all.
    pub(crate) fn meet(&self, clients: usize) {
        let met = self.met_at.compare_exchange(0, clients.max(1), Ordering::Relaxed, Ordering::Relaxed);
        if met.is_ok() {
            let limit = self.limit;
            tracing::error!(
                clients,
                limit,
                "no more clients are accepted: nearly all files that the process may open are open"
            );
        }
    }

    /// Whether clients are refused for want of files.
    pub(crate) fn is_met(&self) -> bool {
        self.met_at.load(Ordering::Relaxed) != 0
    }
}

/// How many files this process may have open.
fn limit() -> io::Result<u64> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limits` is a valid place for the answer, and lives as long as the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits) } {
        0 => Ok(limits.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_files_are_not_for_clients() {
        for (limit, reserve, first_refused) in
            [(1_024, 256, 768), (256, 256, 192), (1_024, 0, 1_024), (u64::MAX, 256, i32::MAX)]
        {
            let files = Files::with(limit, reserve);
            assert!(files.admits(first_refused - 1, 10), "{limit}");
            assert_eq!(files.admits(first_refused, 10), limit == u64::MAX, "{limit}");
        }
    }

    #[test]
    fn it_is_over_only_when_some_have_left() {
        let files = Files::with(1_024, 256);
        assert!(!files.admits(768, 700) && files.is_met());
        // One left, and another one came in its place.
        assert!(files.admits(37, 699) && files.is_met());
        assert!(files.admits(37, 600) && !files.is_met());
        assert!(!files.admits(900, 690) && files.is_met());
    }
}
