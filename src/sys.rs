//! The few calls into libc, and the only `unsafe` code of the crate.

#![allow(unsafe_code)]

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

/// One descriptor that `poll` watches; the layout of `struct pollfd`.
pub type PollFd = libc::pollfd;

/// A descriptor to watch for reading.
pub const POLL_IN: i16 = libc::POLLIN;
/// A descriptor to watch for writing.
pub const POLL_OUT: i16 = libc::POLLOUT;
/// Reported without being asked for: the connection broke.
pub const POLL_ERR: i16 = libc::POLLERR;
/// Reported without being asked for: both directions are closed.
pub const POLL_HUP: i16 = libc::POLLHUP;

/// Builds an entry for `poll`.
pub fn poll_fd(fd: RawFd, events: i16) -> PollFd {
    PollFd {
        fd,
        events,
        revents: 0,
    }
}

/// Waits until one of the descriptors is ready or the time is over; returns how many are ready. A signal counts as
/// nothing ready.
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

/// How many descriptors this process may have open (the soft limit).
pub fn open_files_limit() -> io::Result<usize> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live rlimit that nobody else uses.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Makes the coming close of this TCP socket a reset, so that the peer sees an error and not an end.
pub fn reset_on_close(socket: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the pointer and the length describe one live linger struct, and the socket is borrowed, hence open.
    // The result does not matter: it fails only where the connection is gone already.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}
