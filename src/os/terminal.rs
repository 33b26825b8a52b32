//! Terminals: typing without echo.

#![allow(unsafe_code)]

use std::io::{self};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

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
