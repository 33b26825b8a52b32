//! Log lines to stderr through simple_logger, which must not be able to stop the server.

pub mod access_log;
pub mod connection_log;

use std::fs::File;
use std::io::{IsTerminal, Write, stderr};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{Log, Metadata, Record};
use simple_logger::SimpleLogger;

use crate::os::clock;

/// simple_logger panics when stderr cannot be written to, as on a full disk; a lost line is better than a lost thread.
struct Unfailing {
    logger: SimpleLogger,
    /// Nobody else says when a line was written.
    is_stamped: bool,
}

impl Log for Unfailing {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let write = || {
            // Held until the line is whole; the logger's own use of it is in the same thread.
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

/// Starts logging at this level. Lines are stamped in a file and on a terminal; journald, syslog and the like, which read
/// a pipe or a socket, add their own time.
pub fn start(level: log::LevelFilter) {
    // The level is decided in one place, where it can change.
    let logger = SimpleLogger::new().with_level(log::LevelFilter::Trace);
    let is_file = || {
        let file = File::from(stderr().as_fd().try_clone_to_owned().ok()?);
        file.metadata().ok().map(|meta| meta.is_file())
    };
    let is_stamped = stderr().is_terminal() || is_file().unwrap_or(false);
    if log::set_boxed_logger(Box::new(Unfailing { logger, is_stamped })).is_ok() {
        log::set_max_level(level);
    }
}
