//! Ends this process when the one that started it has ended, in whatever way that came about.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    thread,
};

/// Watches the parent on a thread of its own.
///
/// A process descriptor rather than `PR_SET_PDEATHSIG`: that fires when the *thread* that started us ends.
pub fn end_with() -> io::Result<()> {
    let parent = std::os::unix::process::parent_id();
    // SAFETY: a system call without pointers; what it returns is a new descriptor or an error.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, parent as libc::pid_t, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and belongs to nobody else.
    let parent_fd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
    // it may have ended before it was opened, and its number be another's by now
    if std::os::unix::process::parent_id() != parent {
        std::process::exit(1);
    }
    let watch = move || {
        let mut poll = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&parent_fd),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, which lives on this stack.
        while unsafe { libc::poll(&mut poll, 1, -1) } != 1 {}
        eprintln!("rookery: the process that started this node has ended: ending as well");
        std::process::exit(1);
    };
    thread::Builder::new().name("parent".into()).spawn(watch)?;
    Ok(())
}
