//! Log lines of the connection layer: limited in number, and without anything that a client sent.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use log::Level;

use crate::http::request_head::Refusal;

const WINDOW: Duration = Duration::from_secs(1);
const LINES_PER_WINDOW: u32 = 5;

/// Writes at most five lines a second, then the number of lines left out: a flood must not fill the log's disk.
#[derive(Debug, Default)]
pub struct Journal {
    since: Option<Instant>,
    lines: u32,
    left_out: u32,
}

impl Journal {
    /// Logs a refused request.
    pub fn refused(&mut self, peer: IpAddr, refusal: Refusal, now: Instant) {
        let level = if refusal.status >= 502 && refusal.status != 505 { Level::Warn } else { Level::Info };
        let Refusal { status, reason } = refusal;
        self.note(level, now, format_args!("refused {peer}: {status} {reason}"));
    }

    /// Writes a line, or counts it if this second already has five.
    pub fn note(&mut self, level: Level, now: Instant, text: fmt::Arguments<'_>) {
        self.tick(now);
        self.since.get_or_insert(now);
        if self.lines < LINES_PER_WINDOW {
            self.lines += 1;
            log::log!(level, "{text}");
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    /// Logs how many lines were left out, once the second is over.
    pub fn tick(&mut self, now: Instant) {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) < WINDOW) {
            return;
        }
        if self.left_out > 0 {
            log::info!("and {} more", self.left_out);
        }
        *self = Journal::default();
    }

    /// When `tick` must be called: when lines were left out, the end of the second.
    pub fn deadline(&self) -> Option<Instant> {
        self.since.filter(|_| self.left_out > 0).map(|since| since + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_counted_and_told_once() {
        let mut journal = Journal::default();
        let start = Instant::now();
        for _ in 0..8 {
            journal.note(Level::Info, start, format_args!("line"));
        }
        assert_eq!((journal.lines, journal.left_out), (5, 3));
        assert_eq!(journal.deadline(), Some(start + WINDOW));
        journal.tick(start + WINDOW);
        assert_eq!((journal.lines, journal.left_out, journal.deadline()), (0, 0, None));
    }
}
