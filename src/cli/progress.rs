//! Progress on a terminal, for work that takes more than a moment.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// Shorter work shows no progress.
const SHOW_AFTER: Duration = Duration::from_secs(2);

/// A line of standard error that is overwritten with each update. Nothing is shown if that is not a terminal.
pub struct Progress {
    started: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// Starts the clock.
    pub fn start() -> Progress {
        Progress { started: Instant::now(), shown: None }
    }

    /// Shows the progress, unless it was shown a moment ago.
    pub fn show(&mut self, what: &str) {
        let is_due = match self.shown {
            Some(last) => last.elapsed() > SHOW_AFTER / 10,
            None => self.started.elapsed() > SHOW_AFTER,
        };
        if is_due {
            self.show_at_once(what);
        }
    }

    /// Shows the progress at once.
    pub fn show_at_once(&mut self, what: &str) {
        if stderr().is_terminal() {
            eprint!("\r\x1b[K{what}");
            let _ = stderr().flush();
            self.shown = Some(Instant::now());
        }
    }

    /// Clears the line for other text.
    pub fn clear(&mut self) {
        if self.shown.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

/// The line goes also where an error ends the work.
impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
