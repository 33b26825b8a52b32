//! The limits and timeouts that the connection layer enforces.

use std::time::{Duration, Instant};

use crate::server::connections::FDS_PER_REQUEST;

/// Every limit of the connection layer. The defaults fit a board with 64 MB of RAM and the timeouts of the known clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum open client connections. Lowered at start if the limit on file descriptors requires it.
    pub max_conns: usize,
    /// Maximum active requests: the number of the backend's worker threads.
    pub max_active: usize,
    /// Maximum active bulk transfers, by their path or as large forms. Kept below `max_active`, so that small requests
    /// always find a worker.
    pub max_bulk: usize,
    /// Maximum active logins. Each takes about a second of CPU (PBKDF2); the rest queue here without holding a worker.
    pub max_logins: usize,
    /// Maximum bytes of a request head.
    pub max_head_bytes: usize,
    /// Maximum header lines of a request head.
    pub max_headers: usize,
    /// Maximum bytes of a request body on the wire, without chunk framing.
    pub max_body_bytes: u64,
    /// Timeout for the first byte of a new connection.
    pub first_byte: Duration,
    /// Timeout for the whole head, from its first byte.
    pub head: Duration,
    /// Idle timeout for the next request. Clients keep pooled connections for 90 s and do not retry a request that fails
    /// because the server closed one, so the server must wait longer.
    pub keep_alive: Duration,
    /// Timeout for the next byte of a body, once it flows.
    pub body_idle: Duration,
    /// How long a body may be slower than `body_rate` at its start.
    pub body_grace: Duration,
    /// Minimum average rate of a body, in bytes a second.
    pub body_rate: u64,
    /// A bulk transfer that has been queued for this long is overdue. Then a form that has held a slot for as long must
    /// have averaged `busy_rate`, or it is ended.
    pub busy_after: Duration,
    /// Minimum rate of a form while a bulk transfer is overdue, in bytes a second. A bad telephone line is faster.
    pub busy_rate: u64,
    /// Timeout for the client to take a byte of its reply.
    pub write_idle: Duration,
    /// How long a request may be queued for a free slot before it gets 503.
    pub queue_wait: Duration,
    /// How long a connection stays open after the last reply if the client still sends, so that the client can read the
    /// reply.
    pub linger: Duration,
    /// Maximum bytes that are read and thrown away from a client that still sends after its reply.
    pub linger_bytes: usize,
    /// Connections that have been idle for less than this are not evicted, so that in a flood each can send its request.
    pub min_wait: Duration,
    /// How long a stop waits for active requests.
    pub stop_wait: Duration,
    /// The server stops by itself after this time without any connection; `None` for never.
    pub idle_exit: Option<Duration>,
}

/// What a request costs, which decides how many of its kind may be active. The cheapest are started first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Takes milliseconds.
    Light,
    /// A login: about a second of CPU.
    Login,
    /// A transfer that may take minutes.
    Bulk,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_conns: 512,
            max_active: 4,
            max_bulk: 2,
            max_logins: 1,
            max_head_bytes: 16 << 10,
            max_headers: 64,
            max_body_bytes: 100 << 20,
            first_byte: Duration::from_secs(60),
            head: Duration::from_secs(20),
            keep_alive: Duration::from_secs(150),
            body_idle: Duration::from_secs(60),
            body_grace: Duration::from_secs(10),
            body_rate: 100,
            busy_after: Duration::from_secs(8),
            busy_rate: 4 << 10,
            write_idle: Duration::from_secs(60),
            queue_wait: Duration::from_secs(20),
            linger: Duration::from_secs(5),
            linger_bytes: 1 << 20,
            min_wait: Duration::from_millis(250),
            stop_wait: Duration::from_secs(9),
            idle_exit: None,
        }
    }
}

impl Limits {
    /// File descriptors reserved for listeners, databases and files.
    const SPARE_FDS: usize = 16;

    /// How many requests of this weight may be active.
    pub(super) fn max_of(&self, weight: Weight) -> usize {
        match weight {
            Weight::Light => self.max_active,
            Weight::Login => self.max_logins,
            Weight::Bulk => self.max_bulk,
        }
    }

    /// These limits, made consistent with each other and with the limit on file descriptors, so that running out of
    /// descriptors is rare.
    pub(super) fn fit(mut self, open_files: usize) -> Limits {
        self.max_active = self.max_active.max(1);
        self.max_bulk = self.max_bulk.clamp(1, (self.max_active - 1).max(1));
        self.max_logins = self.max_logins.clamp(1, (self.max_active - 1).max(1));
        let spare = self.max_active.saturating_mul(FDS_PER_REQUEST).saturating_add(Limits::SPARE_FDS);
        self.max_conns = self.max_conns.min(open_files.saturating_sub(spare)).max(1);
        self
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_the_descriptors() {
        let limits = Limits::default();
        assert_eq!(limits.clone().fit(20_000).max_conns, 512);
        assert_eq!(limits.clone().fit(128).max_conns, 128 - 12 - 16);
        assert_eq!(limits.clone().fit(4).max_conns, 1);
        let one = Limits { max_active: 1, max_bulk: 9, ..limits };
        assert_eq!(one.fit(1024).max_bulk, 1);
    }

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
}
