//! Log lines: to stderr with simple_logger, the access log, the log of the connection layer.
//!
//! A failing stderr must not stop the server. Not here: what is logged where an error occurs. Imports `http` (a request,
//! for the access log), `os`, `error`.

pub mod access_log;
pub mod connection_log;

use std::fs::File;
use std::io::{IsTerminal, Write, stderr};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{Log, Metadata, Record};
use simple_logger::SimpleLogger;

use crate::os::clock;

/// Catches the panic of simple_logger when stderr cannot be written to, as on a full disk: the line is lost, the thread
/// goes on.
struct PanicSafeLogger {
    logger: SimpleLogger,
    /// Whether we write the time before each line.
    is_stamped: bool,
}

impl Log for PanicSafeLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let write = || {
            // Locked until the line is complete. The logger locks it again, which is allowed in the same thread.
            let mut stderr = stderr().lock();
            if self.is_stamped {
                let _ = write!(stderr, "{} ", clock::stamp(clock::now_secs()));
            }
            self.logger.log(record);
        };
        let _ = catch_unwind(AssertUnwindSafe(write));
    }

    fn flush(&self) {}
}

/// Starts logging at this level. Lines to a file or a terminal begin with the time. journald, syslog and others read a pipe
/// or a socket, and add the time themselves.
pub fn start(level: log::LevelFilter) {
    // `log::set_max_level` alone sets the level, so that a reload can change it.
    let logger = SimpleLogger::new().with_level(log::LevelFilter::Trace);
    let is_file = || {
        let file = File::from(stderr().as_fd().try_clone_to_owned().ok()?);
        file.metadata().ok().map(|meta| meta.is_file())
    };
    let is_stamped = stderr().is_terminal() || is_file().unwrap_or(false);
    if log::set_boxed_logger(Box::new(PanicSafeLogger { logger, is_stamped })).is_ok() {
        log::set_max_level(level);
    }
}
