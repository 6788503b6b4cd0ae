//! How near the process is to the number of files that the system allows it to have open, and room for them.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::{io, thread};

/// Files for which the system makes room at the start: 128 KiB of its memory.
const ROOM: u64 = 16_384;

/// What is kept for everybody but clients.
pub(crate) struct Files {
    /// The first number of a file that a client may not have.
    end: i64,
    limit: u64,
    /// Clients when the bound was met; 0 while it is not.
    met_at: AtomicUsize,
    /// Files for which there is room.
    room: AtomicU64,
}

impl Files {
    /// Keeps `reserve` of the files that this process may have open now, at most a quarter of them. Waits some
    /// milliseconds for room.
    pub(crate) fn new(reserve: u64) -> Files {
        let files = Files::with(limit().unwrap_or(u64::MAX), reserve);
        make_room(files.room.load(Ordering::Relaxed));
        files
    }

    fn with(limit: u64, reserve: u64) -> Files {
        let end = limit - reserve.min(limit / 4);
        Files {
            end: i64::try_from(end).unwrap_or(i64::MAX),
            limit,
            met_at: AtomicUsize::new(0),
            room: AtomicU64::new(ROOM.min(limit)),
        }
    }

    /// Whether a client may have the file with this number, while this many clients have one. The system gives
    /// the lowest number that is free, so all below it are taken.
    pub(crate) fn admits(&self, number: i32, clients: usize) -> bool {
        if i64::from(number) >= self.end {
            self.meet(clients);
            return false;
        }
        self.look(clients);
        if let Some(room) = self.grow(number) {
            // On a thread of its own, once for each doubling. Where there is none, the system makes room when it must.
            let _ = thread::Builder::new().name("files".to_owned()).spawn(move || make_room(room));
        }
        true
    }

    /// For how many files room is to be made, now that this one is open.
    fn grow(&self, number: i32) -> Option<u64> {
        let room = self.room.load(Ordering::Relaxed);
        let more = room.saturating_mul(2).min(self.limit);
        if u64::try_from(number).unwrap_or(0) < room / 2 || more == room {
            return None;
        }
        self.room.compare_exchange(room, more, Ordering::Relaxed, Ordering::Relaxed).ok().map(|_| more)
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

/// Has the system make room for this many files. It does so by itself in the call that opens one too many, and Linux
/// lets that call wait until each core has come by, 10 ms and more: the thread that accepts clients serves others, too.
fn make_room(files: u64) {
    let made = (|| {
        let (any, _other) = UnixStream::pair()?;
        let last = i32::try_from(files.saturating_sub(1)).unwrap_or(i32::MAX);
        // SAFETY: it takes an open file and a number.
        match unsafe { libc::fcntl(any.as_raw_fd(), libc::F_DUPFD_CLOEXEC, last) } {
            -1 => Err(io::Error::last_os_error()),
            made => {
                // SAFETY: it was made just now, and nobody else has its number.
                drop(unsafe { OwnedFd::from_raw_fd(made) });
                Ok(())
            }
        }
    })();
    if let Err(error) = made {
        tracing::debug!(%error, files, "no room was made for open files");
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
    fn room_is_doubled_before_it_is_full_and_ends_at_the_limit() {
        let files = Files::with(50_000, 0);
        let grown: Vec<_> = [8_191, 8_192, 8_193, 16_384, 25_000, 49_999].map(|n| files.grow(n)).into();
        assert_eq!(grown, [None, Some(32_768), None, Some(50_000), None, None]);
        assert_eq!(Files::with(1_024, 0).grow(1_000), None);
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
