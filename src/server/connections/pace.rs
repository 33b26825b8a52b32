//! How fast a client sends and reads: its time budget, and its rate over the last seconds.

use std::time::{Duration, Instant};

use crate::limits_and_timeouts::Limits;

/// Time budget of a client that sends a body. Waiting for the client spends it, every byte adds to it, up to `body_idle`.
///
/// This one number enforces both `body_idle` and `body_rate`. It is spent only while the connection layer waits for the client, not
/// while the backend is slow. Its end is known in advance, so no periodic timer is needed.
#[derive(Debug)]
pub(super) struct Pace {
    left: Duration,
    waiting: Option<Instant>,
}

impl Pace {
    pub(super) fn new(limits: &Limits) -> Pace {
        Pace { left: limits.body_grace, waiting: None }
    }

    /// Notes whether the connection layer waits for body bytes from now on.
    pub(super) fn set_waiting(&mut self, waits: bool, now: Instant) {
        self.spend(now);
        self.waiting = waits.then_some(now);
    }

    /// Notes that bytes arrived.
    pub(super) fn received(&mut self, bytes: usize, now: Instant, limits: &Limits) {
        self.spend(now);
        let earned = Duration::from_millis(bytes as u64 * 1000 / limits.body_rate.max(1));
        let most = limits.body_idle.max(limits.body_grace);
        self.left = self.left.saturating_add(earned).min(most);
    }

    /// Whether the connection layer waits for body bytes.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// When the budget ends, if it is being spent.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting?.checked_add(self.left)
    }

    fn spend(&mut self, now: Instant) {
        if let Some(since) = self.waiting {
            self.left = self.left.saturating_sub(now.saturating_duration_since(since));
            self.waiting = Some(now);
        }
    }
}

/// Bytes a second that moved to and from a client within the last seconds. What it did before does not count: a burst
/// at the start buys no time.
#[derive(Debug)]
pub(super) struct Rate {
    /// Bytes of the window before `since`, and of the one that begins then.
    before: u64,
    current: u64,
    since: Instant,
}

impl Rate {
    /// Two windows of this length are looked at.
    const WINDOW: Duration = Duration::from_secs(3);

    pub(super) fn new(now: Instant) -> Rate {
        Rate { before: 0, current: 0, since: now }
    }

    /// Notes bytes that moved.
    pub(super) fn add(&mut self, bytes: usize, now: Instant) {
        self.turn(now);
        self.current += bytes as u64;
    }

    /// The rate over the last one or two windows.
    pub(super) fn bytes_per_sec(&mut self, now: Instant) -> u64 {
        self.turn(now);
        let millis = (Rate::WINDOW + now.saturating_duration_since(self.since)).as_millis() as u64;
        (self.before + self.current).saturating_mul(1000) / millis.max(1)
    }

    fn turn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= 2 * Rate::WINDOW {
            (self.before, self.current, self.since) = (0, 0, now);
        } else if elapsed >= Rate::WINDOW {
            (self.before, self.current, self.since) = (self.current, 0, self.since + Rate::WINDOW);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_body_runs_out_and_a_steady_one_does_not() {
        let limits = Limits::default();
        let start = Instant::now();
        let second = |n: u64| start + Duration::from_secs(n);
        let mut pace = Pace::new(&limits);
        assert_eq!(pace.deadline(), None);
        pace.set_waiting(true, start);
        assert_eq!(pace.deadline(), Some(second(10)));
        // 50 bytes a second: each second costs one and earns half.
        for n in 1..=5 {
            pace.received(50, second(n), &limits);
        }
        assert_eq!(pace.deadline(), Some(second(10) + Duration::from_millis(2500)));
        // A burst earns no more than body_idle.
        pace.received(1 << 20, second(6), &limits);
        assert_eq!(pace.deadline(), Some(second(66)));
        // The backend's slowness costs nothing.
        pace.set_waiting(false, second(7));
        assert_eq!(pace.deadline(), None);
        pace.set_waiting(true, second(1007));
        assert_eq!(pace.deadline(), Some(second(1007 + 59)));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let after = |millis: u64| start + Duration::from_millis(millis);
        let mut rate = Rate::new(start);
        // A burst counts while it is young, and then no more.
        rate.add(40 << 20, after(100));
        assert!(rate.bytes_per_sec(after(2000)) > 1 << 20);
        assert!(rate.bytes_per_sec(after(5900)) > 1 << 20);
        assert_eq!(rate.bytes_per_sec(after(6100)), 0);
        // Steadily 100 bytes every 100 ms.
        for n in 0..200 {
            rate.add(100, after(10_000 + 100 * n));
        }
        let steady = rate.bytes_per_sec(after(30_000));
        assert!((900..=1100).contains(&steady), "{steady}");
        // A client that has just begun is judged by at least a window.
        assert_eq!(Rate::new(start).bytes_per_sec(after(1)), 0);
    }
}
