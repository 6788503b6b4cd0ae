//! How many files the process may have open: as many as the system gives, from the start on.

use std::io;

/// The soft and the hard limit.
pub fn limits() -> io::Result<(u64, u64)> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limits` is a valid place for the answer, and lives as long as the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limits) } {
        0 => Ok((limits.rlim_cur, limits.rlim_max)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the soft limit to the hard one, and says so. Every client is an open file, and systems begin with as few
/// as 1,024 for programs that use `select`, which none of ours does.
pub fn raise() {
    let raised = limits().and_then(|(before, most)| {
        let wanted = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: `wanted` is a valid value, and lives as long as the call.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } {
            0 => Ok((before, most)),
            _ => Err(io::Error::last_os_error()),
        }
    });
    match raised {
        Ok((before, now)) => tracing::info!(before, now, "open files: raised the limit as far as it goes"),
        Err(error) => tracing::warn!(%error, "failed to raise the limit of open files"),
    }
}

/// How many files are open now; `None` where the system does not tell.
pub fn open() -> Option<u64> {
    // One of them is the folder that is being read.
    std::fs::read_dir("/proc/self/fd").ok().map(|files| (files.count() as u64).saturating_sub(1))
}
