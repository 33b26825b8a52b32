//! Signs of life on a terminal, for work that takes more than a moment.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// Work that is done sooner shows none.
const AFTER: Duration = Duration::from_secs(2);

/// One line of standard error that is written over and over, if that is a terminal.
pub struct Progress {
    started: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// The work begins.
    pub fn start() -> Progress {
        Progress { started: Instant::now(), shown: None }
    }

    /// Says how far it is, if that has not been said a moment ago.
    pub fn show(&mut self, what: &str) {
        let is_due = match self.shown {
            Some(last) => last.elapsed() > AFTER / 10,
            None => self.started.elapsed() > AFTER,
        };
        if is_due {
            self.show_at_once(what);
        }
    }

    /// Says it in any case.
    pub fn show_at_once(&mut self, what: &str) {
        if stderr().is_terminal() {
            eprint!("\r\x1b[K{what}");
            let _ = stderr().flush();
            self.shown = Some(Instant::now());
        }
    }

    /// Makes room for other text.
    pub fn clear(&mut self) {
        if self.shown.take().is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
