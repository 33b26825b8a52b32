//! Sockets that the service manager hands over, and closing a connection with a reset.

#![allow(unsafe_code)]

use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The listening sockets that the parent process passed to this one (LISTEN_PID, LISTEN_FDS, from file descriptor 3 on:
/// sd_listen_fds(3)). Call once: the caller owns them.
pub fn handed_over_sockets() -> Vec<OwnedFd> {
    const FIRST: RawFd = 3;
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(64) as RawFd;
    let is_socket = |fd: &RawFd| {
        // SAFETY: stat is a struct of numbers, for which zeroes are valid, and fstat fails for what is not open.
        let (mut stat, fd) = (unsafe { std::mem::zeroed::<libc::stat>() }, *fd);
        // SAFETY: the pointer is to a live stat.
        unsafe { libc::fstat(fd, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFSOCK }
    };
    // SAFETY: they are open, LISTEN_PID says that they are ours, and nothing else in this process uses them.
    (FIRST..FIRST + count).filter(is_socket).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// Whether the kernel does not know this kind of address at all, as one without IPv6.
pub fn is_unknown_address_family(err: &std::io::Error) -> bool {
    err.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Makes the close of this TCP socket a reset, so that the peer sees an error and not the end of the stream.
pub fn reset_on_close(socket: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
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

/// Whether the peer of a TCP socket has acknowledged all that was written to it: then the kernel's buffer is empty. False where
/// the kernel does not tell.
pub fn is_all_acknowledged(socket: &TcpStream) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request, which is also called SIOCOUTQ, writes one number to the live pointer.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } == 0;
    told && bytes == 0
}

/// What the kernel knows of a TCP connection's output.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpProgress {
    /// Bytes that the peer has acknowledged since the connection began.
    pub acknowledged: u64,
    /// Microseconds in which there were others that it had not acknowledged yet, in steps of a few thousand.
    pub busy_micros: u64,
    /// The least time from a byte to its acknowledgement lately, microseconds.
    pub round_trip_micros: u64,
}

/// Asks the kernel; `None` if it does not tell (before Linux 4.10).
pub fn tcp_progress(socket: &TcpStream) -> Option<TcpProgress> {
    /// `struct tcp_info` up to `tcpi_busy_time`; the kernel only ever appends fields.
    const ACKNOWLEDGED: usize = 120;
    const MIN_ROUND_TRIP: usize = 148;
    const BUSY: usize = 168;
    const END: usize = BUSY + 8;
    #[repr(align(8))]
    struct Info([u8; END]);
    let mut info = Info([0; END]);
    let mut length = END as libc::socklen_t;
    // SAFETY: the pointer and the length describe one live buffer, and the socket is borrowed, hence open.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info.0).cast(),
            &raw mut length,
        )
    };
    if outcome != 0 || (length as usize) < END {
        return None;
    }
    let number = |at: usize| info.0[at..].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    let round_trip = info.0[MIN_ROUND_TRIP..].first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
    Some(TcpProgress {
        acknowledged: number(ACKNOWLEDGED)?,
        busy_micros: number(BUSY)?,
        round_trip_micros: round_trip.into(),
    })
}
