//! The guard: one poll(2) thread that owns every client socket and stands between the network and tiny_http.
//!
//! tiny_http serves well-meant requests well, but does not survive the network. Measured on 0.12:
//!
//! - One declared length of 100 GB aborts the process, because unread bodies are drained through one allocation. A
//!   negative or oversized length, or two of them, hide a request in a body. The guard checks lengths, and hands
//!   every body on as chunks, which are never drained.
//! - An unread body, or a client that does not read, holds a worker for as long as the client likes; there is no
//!   timer at all. The guard hands a request on when it can make progress, and times every wait for a client.
//! - One failed accept() or dup() ends it for good, silently. The guard accepts itself, outlives every accept error,
//!   and hands nothing on without descriptors to spare.
//! - `HTTP/2.0` in a request line deadlocks a thread and leaks it. The guard refuses it.
//! - Each connection, also an idle one, holds a thread, and a burst of them starves busy ones. The guard holds idle
//!   connections in a few hundred bytes, and opens one backend connection per request.
//! - Heads of any size are read, and pipelined requests are read ahead, without bound. The guard bounds the head, and
//!   looks at the next request when the last is answered.
//! - `Connection: upgrade`, which nginx set-ups send with every request, makes it hand over the raw socket. The guard
//!   drops hop-by-hop headers.
//! - A cut body ends like a whole one: with a declared length always, chunked if the cut is inside a chunk. The guard
//!   cuts between chunks only, which tiny_http reports as an error.
//! - A reply whose source fails ends like a whole one, or leaves the client waiting. The guard resets the client
//!   unless the reply came to its end.
//! - It sets no TCP_NODELAY, so that small chunked replies take 44 ms. The guard does.
//!
//! A connection is, in turn, idle, *gathering* a request's body, *waiting* for a slot, *active* (a backend connection
//! is open), and idle again or *closing*. Invariants:
//!
//! - The backend sees one checked request per connection, and at most `max_active` connections.
//! - Neither side ever sees a clean end of a body that was cut.
//! - Memory per connection is bounded: the head while it arrives, 16 KiB of body while it waits, 32 KiB per direction
//!   while it is active, nothing while it is idle.
//! - No wait for a client is without a deadline, and poll sleeps until the nearest one: an idle server does not wake
//!   up.
//! - Nothing a client sends can panic this thread or reach the log.
//!
//! Not here: paths, authentication, and everything inside bodies.

mod backend_connection;
mod buffered_socket;
mod client_socket;
mod connection;
mod forwarding;
#[doc(hidden)]
pub mod fuzz_entry;
mod limits_and_timeouts;

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use log::Level;

use crate::logging::connection_log::Journal;
use crate::os;
use crate::os::{POLL_IN, PollFd};
use backend_connection::Tail;
pub use client_socket::Listener;
use connection::Conn;
use forwarding::Exchange;
pub use limits_and_timeouts::{Limits, Weight};

/// One read, and one chunk towards the backend. Measured on x86-64: 16 KiB are a fifth slower, 64 KiB no faster.
const READ_BYTES: usize = 32 << 10;

/// Connections accepted before the others get their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Descriptors of an active request: one here, two in tiny_http, which duplicates its socket.
const FDS_PER_REQUEST: usize = 3;

/// How often forms are looked at while somebody waits for them.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// How long nothing is accepted or handed over when descriptors are short and no connection can be evicted.
const REST: Duration = Duration::from_millis(100);

/// What all connections share.
struct Shared {
    limits: Limits,
    weigh: fn(&str) -> Weight,
    backend: PathBuf,
    journal: Journal,
    /// Backend connections whose last chunk must be finished. Each still holds a slot.
    tails: Vec<Tail>,
    tickets: u64,
    /// The time of this turn.
    now: Instant,
    /// Set once the server stops: when it does so at the latest.
    stop_at: Option<Instant>,
}

impl Shared {
    fn is_stopping(&self) -> bool {
        self.stop_at.is_some()
    }

    fn next_ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    fn note(&mut self, level: Level, text: fmt::Arguments<'_>) {
        self.journal.note(level, self.now, text);
    }
}

/// The guard. Dropping it closes every connection.
pub struct Guard {
    listeners: Vec<Listener>,
    stop: UnixStream,
    conns: Vec<Conn>,
    /// Until then nothing is accepted: descriptors are short.
    rest_until: Option<Instant>,
    /// When there last was a connection.
    busy_at: Instant,
    scratch: Vec<u8>,
    shared: Shared,
}

/// Whose descriptor an entry for poll is; the numbers are places in the lists of the guard.
#[derive(Clone, Copy)]
enum Source {
    Stop,
    Listener(usize),
    Client(usize),
    Backend(usize),
    Tail(usize),
}

impl Guard {
    /// Takes over bound listeners. `backend` is the Unix socket on which tiny_http listens, `weigh` tells by its
    /// path what a request costs, and `stop` becomes readable, or closes, when the server is to stop.
    pub fn new(
        listeners: Vec<Listener>,
        backend: PathBuf,
        limits: Limits,
        weigh: fn(&str) -> Weight,
        stop: UnixStream,
    ) -> io::Result<Guard> {
        for listener in &listeners {
            listener.set_nonblocking()?;
        }
        Ok(Guard {
            listeners,
            stop,
            conns: Vec::new(),
            rest_until: None,
            busy_at: Instant::now(),
            scratch: vec![0; READ_BYTES],
            shared: Shared {
                limits: limits.fit(os::open_files_limit()?),
                weigh,
                backend,
                journal: Journal::default(),
                tails: Vec::new(),
                tickets: 0,
                now: Instant::now(),
                stop_at: None,
            },
        })
    }

    /// Serves until `stop`; then waits for the active requests, but no longer than `stop_wait`.
    pub fn run(mut self) {
        let (mut fds, mut sources) = (Vec::new(), Vec::new());
        while !self.is_over() {
            self.watch(&mut fds, &mut sources);
            let timeout = self.timeout_ms();
            if let Err(err) = os::poll(&mut fds, timeout) {
                // Out of memory, the only error left: give something back and do not spin.
                self.shared.note(Level::Warn, format_args!("poll: {err}"));
                self.evict(Duration::ZERO);
                std::thread::sleep(REST);
                fds.clear();
            }
            self.shared.now = Instant::now();
            self.dispatch(&fds, &sources);
            self.stop_if_idle();
            self.expire();
            self.make_way();
            self.admit();
            self.sweep();
        }
    }

    fn is_over(&self) -> bool {
        let done = self.conns.is_empty() && self.shared.tails.is_empty();
        self.shared.stop_at.is_some_and(|at| done || at <= self.shared.now)
    }

    /// Lists what poll is to wait for: real descriptors only, and hence no more than there may be.
    fn watch(&self, fds: &mut Vec<PollFd>, sources: &mut Vec<Source>) {
        fds.clear();
        sources.clear();
        let mut add = |fd, events, source| {
            fds.push(os::poll_fd(fd, events));
            sources.push(source);
        };
        if !self.shared.is_stopping() {
            add(self.stop.as_raw_fd(), POLL_IN, Source::Stop);
        }
        if self.accepts_from().is_some_and(|from| from <= self.shared.now) {
            for (at, listener) in self.listeners.iter().enumerate() {
                add(listener.fd(), POLL_IN, Source::Listener(at));
            }
        }
        for (at, conn) in self.conns.iter().enumerate() {
            let (fd, events) = conn.client_events(&self.shared.limits);
            add(fd, events, Source::Client(at));
            if let Some((fd, events)) = conn.backend_events() {
                add(fd, events, Source::Backend(at));
            }
        }
        for (at, tail) in self.shared.tails.iter().enumerate() {
            add(tail.fd(), tail.events(), Source::Tail(at));
        }
    }

    /// Milliseconds to the nearest deadline, rounded up so that it is over then; -1 without any.
    fn timeout_ms(&self) -> i32 {
        let Shared { now, .. } = self.shared;
        let accept = self.accepts_from().max(self.rest_until).filter(|from| *from > now);
        let conns = self.conns.iter().filter_map(|conn| conn.deadline(&self.shared));
        // While somebody waits impatiently, whoever becomes too slow is found within a second.
        let impatience = self.impatient_from().and_then(|from| Some(from.max(now.checked_add(IMPATIENCE)?)));
        let others =
            [self.shared.journal.deadline(), self.shared.stop_at, self.idle_deadline(), accept, impatience];
        let Some(next) = conns.chain(others.into_iter().flatten()).min() else {
            return -1;
        };
        let wait = next.saturating_duration_since(now).as_micros().div_ceil(1000);
        i32::try_from(wait).unwrap_or(i32::MAX)
    }

    fn dispatch(&mut self, fds: &[PollFd], sources: &[Source]) {
        let Guard { conns, scratch, shared, .. } = self;
        let (mut stops, mut knocks) = (false, Vec::new());
        for (fd, source) in fds.iter().zip(sources).filter(|(fd, _)| fd.revents != 0) {
            match *source {
                Source::Stop => stops = true,
                Source::Listener(at) => knocks.push(at),
                Source::Client(at) => conns[at].on_client(fd.revents, shared, scratch),
                Source::Backend(at) => conns[at].on_backend(shared, scratch),
                // New tails join behind those that were polled, so the places hold.
                Source::Tail(at) => shared.tails[at].step(scratch),
            }
        }
        self.sweep();
        if stops {
            self.begin_stop();
        }
        for at in knocks {
            self.accept_from(at);
        }
    }

    fn sweep(&mut self) {
        self.conns.retain(|conn| !conn.is_closed());
        self.shared.tails.retain(|tail| !tail.is_finished());
    }

    fn expire(&mut self) {
        self.shared.journal.tick(self.shared.now);
        for conn in &mut self.conns {
            conn.expire(&mut self.shared);
        }
    }

    /// When the first of the bulk transfers that wait becomes impatient.
    fn impatient_from(&self) -> Option<Instant> {
        let exchanges = self.conns.iter().filter_map(Conn::exchange);
        exchanges.filter_map(|exchange| exchange.impatient_from(&self.shared.limits)).min()
    }

    /// Ends forms that are too slow while bulk transfers wait.
    fn make_way(&mut self) {
        if self.impatient_from().is_some_and(|from| from <= self.shared.now) {
            self.conns.iter_mut().for_each(|conn| conn.make_way(&mut self.shared));
            self.sweep();
        }
    }

    /// When to stop for want of connections. Idle ones count as work: a client cannot send its next request again.
    fn idle_deadline(&self) -> Option<Instant> {
        let idle_exit = self.shared.limits.idle_exit?;
        let is_idle = self.conns.is_empty() && self.shared.tails.is_empty() && !self.shared.is_stopping();
        is_idle.then(|| self.busy_at.checked_add(idle_exit)).flatten()
    }

    fn stop_if_idle(&mut self) {
        if !self.conns.is_empty() {
            self.busy_at = self.shared.now;
        }
        if self.idle_deadline().is_some_and(|at| at <= self.shared.now) {
            self.begin_stop();
        }
    }

    fn begin_stop(&mut self) {
        let stop_at = self.shared.now.checked_add(self.shared.limits.stop_wait);
        self.shared.stop_at = Some(stop_at.unwrap_or(self.shared.now));
        self.listeners.clear();
        for conn in &mut self.conns {
            conn.stop(&mut self.shared);
        }
    }

    /// Gives free slots to waiting requests: small ones first, then in the order in which they came.
    fn admit(&mut self) {
        while self.next_waiting().is_some() && self.make_headroom() {
            // Evictions move places, but never take a waiting request.
            if let Some(at) = self.next_waiting() {
                self.conns[at].activate(&mut self.shared);
            }
        }
    }

    /// Whether there are descriptors for one more of ours, and for all that tiny_http may be about to take. Its
    /// acceptor dies for good when it finds none, so this is asked before a request is handed over and after each
    /// accept, whatever the rest of the process has open.
    fn has_headroom(&self) -> bool {
        let wanted = 1 + self.shared.limits.max_active * (FDS_PER_REQUEST - 1);
        let tries: io::Result<Vec<_>> = (0..wanted).map(|_| self.stop.try_clone()).collect();
        tries.is_ok()
    }

    /// Evicts connections until there is headroom; says so in the log where that does not help.
    fn make_headroom(&mut self) -> bool {
        while !self.has_headroom() {
            if !self.evict(Duration::ZERO) {
                self.shared.note(Level::Warn, format_args!("too few descriptors"));
                self.rest();
                return false;
            }
        }
        true
    }

    fn rest(&mut self) {
        self.rest_until = self.shared.now.checked_add(REST);
    }

    fn next_waiting(&self) -> Option<usize> {
        let limits = &self.shared.limits;
        let exchanges =
            || self.conns.iter().enumerate().filter_map(|(at, conn)| Some((at, conn.exchange()?)));
        let active = exchanges().filter(|(_, exchange)| exchange.is_active());
        let weights: Vec<Weight> = active.map(|(_, exchange)| exchange.weight()).collect();
        if self.shared.tails.len() + weights.len() >= limits.max_active {
            return None;
        }
        let may_start = |exchange: &Exchange| {
            let alike = weights.iter().filter(|weight| **weight == exchange.weight()).count();
            alike < limits.max_of(exchange.weight())
        };
        exchanges()
            .filter(|(_, exchange)| may_start(exchange))
            .filter_map(|(at, exchange)| Some((exchange.weight(), exchange.ticket()?, at)))
            .min()
            .map(|(_, _, at)| at)
    }

    /// When the listeners may be asked: at once while there is room, else when a connection may be evicted; `None`
    /// while all are at work.
    fn accepts_from(&self) -> Option<Instant> {
        let room = if self.conns.len() < self.shared.limits.max_conns {
            Some(self.shared.now)
        } else {
            self.oldest().and_then(|(since, _)| since.checked_add(self.shared.limits.min_wait))
        };
        room.map(|from| self.rest_until.map_or(from, |rest| rest.max(from)))
    }

    fn accept_from(&mut self, at: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.conns.len() >= self.shared.limits.max_conns && !self.evict(self.shared.limits.min_wait) {
                return;
            }
            let Some(listener) = self.listeners.get(at) else {
                return;
            };
            match listener.accept() {
                Ok((socket, peer)) => {
                    if !self.make_headroom() {
                        return;
                    }
                    if socket.prepare().is_ok() {
                        self.conns.push(Conn::new(socket, peer, self.shared.now));
                        self.greet();
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) if is_of_the_client(&err) => (),
                // Descriptors or memory are short.
                Err(err) => {
                    self.shared.note(Level::Warn, format_args!("accepting a connection: {err}"));
                    if !self.evict(Duration::ZERO) {
                        self.rest();
                        return;
                    }
                }
            }
        }
    }

    /// The newest connection may have sent its request already; read, it is at work and safe from eviction.
    fn greet(&mut self) {
        if let Some(conn) = self.conns.last_mut() {
            conn.on_client(POLL_IN, &mut self.shared, &mut self.scratch);
            if conn.is_closed() {
                self.conns.pop();
            }
        }
    }

    /// The connection that has waited longest, without being at work, and since when.
    fn oldest(&self) -> Option<(Instant, usize)> {
        let waiting = self.conns.iter().enumerate();
        waiting.filter_map(|(at, conn)| Some((conn.evictable_since()?, at))).min()
    }

    /// Closes that connection if it has waited for so long.
    fn evict(&mut self, min_wait: Duration) -> bool {
        match self.oldest() {
            Some((since, at)) if self.shared.now.saturating_duration_since(since) >= min_wait => {
                drop(self.conns.swap_remove(at));
                true
            }
            _ => false,
        }
    }
}

/// Errors of a connection that was gone before it was accepted; accept(2) names them.
fn is_of_the_client(err: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        PermissionDenied, TimedOut,
    };
    matches!(
        err.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
            | TimedOut
    )
}
