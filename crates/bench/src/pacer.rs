//! Waits for a moment more exactly than a runtime's timers, which count in milliseconds: by a timer of the kernel.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Instant,
};

use tokio::io::{Interest, unix::AsyncFd};

/// A timer of the kernel.
pub struct Pacer(AsyncFd<OwnedFd>);

impl Pacer {
    /// A timer that waits for nothing yet.
    ///
    /// # Errors
    /// Where no more files can be opened.
    pub fn new() -> io::Result<Pacer> {
        // SAFETY: takes numbers; the result is a new descriptor that nobody else owns, or an error.
        let timer = unsafe {
            let raw = libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC);
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(raw)
        };
        // SAFETY: an owned descriptor is open and stays the same one as long as the timer lives.
        Ok(Pacer(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?))
    }

    /// Waits until then; not at all where it is over.
    ///
    /// # Errors
    /// Where the kernel refuses its timer.
    pub async fn until(&mut self, moment: Instant) -> io::Result<()> {
        let Some(left) = moment.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
            return Ok(());
        };
        // SAFETY: zeros are a value of this struct of numbers.
        let mut wanted: libc::itimerspec = unsafe { std::mem::zeroed() };
        wanted.it_value.tv_sec = left.as_secs().try_into().unwrap_or(libc::time_t::MAX);
        wanted.it_value.tv_nsec = left.subsec_nanos().into();
        let timer = self.0.get_ref().as_raw_fd();
        // SAFETY: the descriptor is open, the struct lives until the call is over, and no former value is asked for.
        if unsafe { libc::timerfd_settime(timer, 0, &wanted, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        loop {
            let mut ready = self.0.readable().await?;
            let mut fired = 0_u64;
            // SAFETY: the kernel writes the eight bytes of a counter, and that is what is there.
            let read = unsafe { libc::read(timer, (&raw mut fired).cast(), size_of::<u64>()) };
            if read > 0 {
                return Ok(());
            }
            // Set anew, it may have been ready for the time before.
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_waits_as_long_as_it_was_told_and_not_for_what_is_over() {
        let mut pacer = Pacer::new().expect("a timer");
        for us in [0, 200, 1500] {
            let moment = Instant::now() + Duration::from_micros(us);
            pacer.until(moment).await.expect("the timer fires");
            assert!(Instant::now() >= moment);
        }
    }
}
