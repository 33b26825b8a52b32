//! SIGTERM and SIGINT (stop) and SIGHUP (reload), as bytes on a socket. What SIGHUP does: `server::reload_on_sighup`.

#![allow(unsafe_code)]

use std::io::{self, IsTerminal};
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicI32, Ordering};

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
