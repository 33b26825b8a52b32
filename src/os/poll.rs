//! Waiting for several file descriptors: poll(2).

#![allow(unsafe_code)]

use std::io::{self};
use std::os::fd::RawFd;

/// One descriptor that `poll` watches; the layout of `struct pollfd`.
pub type PollFd = libc::pollfd;

/// A descriptor to watch for reading.
pub const POLL_IN: i16 = libc::POLLIN;

/// A descriptor to watch for writing.
pub const POLL_OUT: i16 = libc::POLLOUT;

/// Always reported: the connection failed.
pub const POLL_ERR: i16 = libc::POLLERR;

/// Always reported: both directions are closed.
pub const POLL_HUP: i16 = libc::POLLHUP;

/// Builds an entry for `poll`.
pub fn poll_fd(fd: RawFd, events: i16) -> PollFd {
    PollFd { fd, events, revents: 0 }
}

/// Waits until a file descriptor is ready or the timeout has passed; -1 waits forever. Returns how many are ready: 0 also
/// after a signal.
pub fn poll(fds: &mut [PollFd], timeout_ms: i32) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe one live, exclusively borrowed slice of pollfd.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    if ready >= 0 {
        return Ok(ready as usize);
    }
    match io::Error::last_os_error() {
        err if err.kind() == io::ErrorKind::Interrupted => Ok(0),
        err => Err(err),
    }
}
