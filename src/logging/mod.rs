//! Log lines on stderr, in the form that its reader (terminal, journald, file, pipe) expects; the access log; the log
//! of the connection layer.
//!
//! A failing stderr must not stop the server. Not here: what is logged where an error occurs. Imports `http` (a request,
//! for the access log), `os`, `error`.

pub mod access_log;
pub mod connection_log;

use std::fs::{File, Metadata};
use std::io::{IsTerminal, Write, stderr, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::{Level, Log, Record};
use simple_logger::SimpleLogger;

use crate::os::clock;

/// What a line begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The level: syslog, procd and others read a pipe or a socket and add the time.
    Plain,
    /// The time: a file adds nothing.
    Time,
    /// The priority as `<N>`: journald removes it and adds the time (sd-daemon(3)).
    Priority,
}

struct Logger {
    start: Start,
    /// Whether lines that are neither errors nor warnings go to stdout.
    splits: bool,
}

impl Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let start = match self.start {
            Start::Plain => String::new(),
            Start::Time => format!("{} ", clock::stamp(clock::wall_secs())),
            Start::Priority => format!("<{}>", priority(record.level())),
        };
        let line = format!("{start}{:<5} [{}] {}\n", record.level(), record.target(), record.args());
        // A line that cannot be written, as on a full disk, is lost.
        let _ = if self.splits && record.level() > Level::Warn {
            stdout().write_all(line.as_bytes())
        } else {
            stderr().write_all(line.as_bytes())
        };
    }

    fn flush(&self) {}
}

/// Writes lines with the time to a terminal.
struct TerminalLogger(SimpleLogger);

impl Log for TerminalLogger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        // simple_logger panics when the terminal is gone: the line is lost, the thread goes on.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            // Locked until the line is complete. The logger locks it again, which is allowed in the same thread.
            let mut stderr = stderr().lock();
            let _ = write!(stderr, "{} ", clock::stamp(clock::wall_secs()));
            self.0.log(record);
        }));
    }

    fn flush(&self) {}
}

/// The priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Starts logging at this level. With `splits`, lines that are neither errors nor warnings go to stdout.
pub fn start(level: log::LevelFilter, splits: bool) {
    let metadata =
        stderr().as_fd().try_clone_to_owned().ok().and_then(|stderr| File::from(stderr).metadata().ok());
    let is_file = metadata.as_ref().is_some_and(Metadata::is_file);
    let journal = std::env::var("JOURNAL_STREAM").ok();
    let start = if is_file {
        Start::Time
    } else if metadata.is_some_and(|metadata| is_journal(journal.as_deref(), metadata.dev(), metadata.ino()))
    {
        Start::Priority
    } else {
        Start::Plain
    };
    let logger: Box<dyn Log> = if stderr().is_terminal() && !splits {
        Box::new(TerminalLogger(SimpleLogger::new().with_level(log::LevelFilter::Trace)))
    } else {
        Box::new(Logger { start, splits })
    };
    if log::set_boxed_logger(logger).is_ok() {
        // A reload of the settings changes only this level.
        log::set_max_level(level);
    }
}

/// Whether stderr, a file of this device and inode, is the stream to journald that the variable JOURNAL_STREAM tells.
fn is_journal(variable: Option<&str>, device: u64, inode: u64) -> bool {
    variable == Some(&format!("{device}:{inode}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_journal(Some("9:12"), 9, 12));
        // Another program of the service may have stderr redirected.
        assert!(!is_journal(Some("9:12"), 9, 13) && !is_journal(None, 9, 12) && !is_journal(Some(""), 0, 0));
    }
}
