//! Log lines to stderr through simple_logger, which must not be able to stop the server.

use std::panic::catch_unwind;

use log::{Log, Metadata, Record};
use simple_logger::SimpleLogger;

/// simple_logger panics when stderr cannot be written to, as on a full disk; a lost line is better than a lost thread.
struct Unfailing(SimpleLogger);

impl Log for Unfailing {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let _ = catch_unwind(std::panic::AssertUnwindSafe(|| self.0.log(record)));
    }

    fn flush(&self) {}
}

/// Starts logging at this level. No timestamps: journald and syslog add their own.
pub fn start(level: log::LevelFilter) {
    // The level is decided in one place, where it can change.
    let logger = SimpleLogger::new().with_level(log::LevelFilter::Trace);
    if log::set_boxed_logger(Box::new(Unfailing(logger))).is_ok() {
        log::set_max_level(level);
    }
}
