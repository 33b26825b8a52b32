//! System calls, and the only `unsafe` code of the crate.

#![allow(unsafe_code)]

pub mod clock;

use std::ffi::{CStr, CString};
use std::io::{self, IsTerminal};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

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

/// Flag for opening files: fail if the path is a symbolic link.
pub const NO_FOLLOW: i32 = libc::O_NOFOLLOW;

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

/// Whether the SQLite in this binary was built with an option, named as in `SQLITE_NAME`.
pub fn sqlite_has(option: &CStr) -> bool {
    // SAFETY: a string that ends in zero, which is only looked at; the options are constants of the library.
    unsafe { rusqlite::ffi::sqlite3_compileoption_used(option.as_ptr()) != 0 }
}

/// Fills the buffer with random bytes from the kernel. Waits for entropy where a board has just booted.
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: the pointer and the length describe the live, exclusively borrowed rest of the buffer.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(n) => filled += n,
            Err(_) => match io::Error::last_os_error() {
                err if err.kind() == io::ErrorKind::Interrupted => {}
                err => return Err(err),
            },
        }
    }
    Ok(())
}

/// Prepares the process before its first thread: new files readable by the owner only, small thread stacks, and an
/// allocator that returns freed memory to the system.
pub fn prepare_process() {
    // SAFETY: umask only sets a number of the process.
    unsafe { libc::umask(0o077) };
    // tiny_http starts threads with std's default stack: 2 MiB each would be most of a router's address
    // space. SAFETY: called first thing in main, while there is one thread.
    unsafe { std::env::set_var("RUST_MIN_STACK", "131072") };
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets numbers of the allocator. With one arena and an early trim, the memory of a bulk
    // transfer is freed after it (measured in benches/README.md).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
    }
}

/// The write ends of the sockets that `on_signals` made, by `Signal`; -1 before.
static SIGNAL_PIPES: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT. SIGHUP too if stdin is a terminal: it is sent when the terminal is closed.
    Stop,
    /// SIGHUP, if stdin is no terminal.
    Reload,
}

extern "C" fn wake_stop_pipe(_signal: libc::c_int) {
    wake(Signal::Stop);
}

extern "C" fn wake_reload_pipe(_signal: libc::c_int) {
    wake(Signal::Reload);
}

fn wake(signal: Signal) {
    let byte = 1u8;
    // SAFETY: write(2) is async-signal-safe and the byte lives on this stack.
    unsafe {
        libc::write(SIGNAL_PIPES[signal as usize].load(Ordering::Relaxed), (&raw const byte).cast(), 1)
    };
}

/// Installs handlers that turn these signals into bytes on the returned socket. Call once for each `Signal`. As process 1
/// (in a container) the server needs handlers: the kernel drops signals without one.
pub fn on_signals(signal: Signal) -> io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    writer.set_nonblocking(true)?;
    SIGNAL_PIPES[signal as usize].store(writer.into_raw_fd(), Ordering::Relaxed);
    let has_terminal = io::stdin().is_terminal();
    let (signals, handler): (&[libc::c_int], _) = match signal {
        Signal::Stop if has_terminal => {
            (&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP], wake_stop_pipe as *const ())
        }
        Signal::Stop => (&[libc::SIGTERM, libc::SIGINT], wake_stop_pipe as *const ()),
        Signal::Reload if has_terminal => (&[], wake_reload_pipe as *const ()),
        Signal::Reload => (&[libc::SIGHUP], wake_reload_pipe as *const ()),
    };
    for signal in signals {
        // SAFETY: the handlers only write to a descriptor that stays open for the life of the process.
        if unsafe { libc::signal(*signal, handler as libc::sighandler_t) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(reader)
}

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

/// Errors if this process may not create files in the folder, or the file system is read-only.
pub fn check_writable(dir: &Path) -> io::Result<()> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: the path is a live, NUL-terminated string.
    match unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many file descriptors this process may have open (the soft limit).
pub fn open_files_limit() -> io::Result<usize> {
    Ok(usize::try_from(open_files_rlimit()?.rlim_cur).unwrap_or(usize::MAX))
}

/// Raises the soft limit on file descriptors to `wanted`, or to the hard limit if that is lower.
pub fn raise_open_files_limit(wanted: u32) -> io::Result<()> {
    let mut limit = open_files_rlimit()?;
    let wanted = libc::rlim_t::from(wanted).min(limit.rlim_max);
    if wanted > limit.rlim_cur {
        limit.rlim_cur = wanted;
        // SAFETY: the pointer is to a live rlimit.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn open_files_rlimit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit that nobody else uses.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
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

/// The terminal's echo is off until this is dropped, so that a password is not shown.
pub struct EchoOff {
    fd: OwnedFd,
    before: libc::termios,
}

impl EchoOff {
    /// Switches the echo of a terminal off.
    pub fn on(terminal: &impl AsFd) -> io::Result<EchoOff> {
        let fd = terminal.as_fd().try_clone_to_owned()?;
        // SAFETY: termios is a struct of numbers, for which zeroes are valid.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open and the pointer is to a live termios.
        if unsafe { libc::tcgetattr(fd.as_raw_fd(), &mut before) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut silent = before;
        silent.c_lflag &= !libc::ECHO;
        // SAFETY: as above.
        match unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSAFLUSH, &silent) } {
            0 => Ok(EchoOff { fd, before }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and open. An error means that the terminal is gone.
        unsafe { libc::tcsetattr(self.fd.as_raw_fd(), libc::TCSAFLUSH, &self.before) };
    }
}

/// Free bytes on the file system of a folder, for this process (without what is reserved for root).
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: statvfs is a struct of numbers, for which zeroes are valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a live, NUL-terminated string, and the pointer is to a live statvfs.
    match unsafe { libc::statvfs(path.as_ptr(), &mut stat) } {
        // Their types differ from system to system.
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        0 => Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64)),
        _ => Err(io::Error::last_os_error()),
    }
}
