//! The poll loop: one thread that accepts connections, waits for all sockets and serves those that are ready.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use log::Level;

use super::backend_connection::PartialChunk;
use super::client_socket::Listener;
use super::connection::Conn;
use super::kept_backends::KeptBackends;
use super::policy::Policy;
use super::queue::Queue;
use crate::config::network::network_of;
use crate::limits_and_timeouts::Limits;
use crate::logging::connection_log::Journal;
use crate::os;
use crate::os::{POLL_IN, PollFd};

/// Size of one read, and of one chunk to the backend. Measured on x86-64: 16 KiB are a fifth slower, 64 KiB no faster.
const READ_BYTES: usize = 32 << 10;

/// Most connections accepted before the other sockets are served. Where connections are many, each costs a look at all of them.
const ACCEPTS_PER_TURN: usize = 8;

/// How often slow transfers are looked for while a request is overdue.
const SLOW_CHECK: Duration = Duration::from_millis(500);

/// How long nothing is accepted or forwarded after file descriptors ran out and no connection could be evicted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all connections share.
pub(crate) struct Shared {
    pub(super) limits: Limits,
    pub(super) policy: Box<dyn Policy>,
    pub(super) queue: Queue,
    pub(super) backend: PathBuf,
    pub(super) kept_backends: KeptBackends,
    pub(super) journal: Journal,
    /// Closed requests whose last chunk is not fully written yet. Each still holds a slot.
    pub(super) partial_chunks: Vec<PartialChunk>,
    /// The time after the last poll; one value for the whole turn.
    pub(super) now: Instant,
    /// The deadline of the stop; `None` while the server runs.
    pub(super) stop_at: Option<Instant>,
    /// The backend accepts no connections any more.
    pub(super) backend_ended: bool,
}

impl Shared {
    pub(super) fn is_stopping(&self) -> bool {
        self.stop_at.is_some()
    }

    /// The address that a connection of this peer counts for.
    pub(super) fn address_of(&self, peer: IpAddr) -> Option<IpAddr> {
        (!self.policy.is_proxy(peer)).then(|| network_of(peer))
    }

    pub(super) fn note(&mut self, level: Level, text: fmt::Arguments<'_>) {
        self.journal.note(level, self.now, text);
    }
}

/// The connection layer. Dropping it closes every connection.
pub struct PollLoop {
    listeners: Vec<Listener>,
    stop: UnixStream,
    pub(super) conns: Vec<Conn>,
    /// The limit on file descriptors of this process.
    open_files: usize,
    /// File descriptors ran out: accept nothing before this time.
    paused_until: Option<Instant>,
    /// When there last was a connection, for `idle_exit`.
    busy_at: Instant,
    scratch: Vec<u8>,
    pub(super) shared: Shared,
}

/// What a polled file descriptor belongs to. The numbers are indexes into the connection layer's lists.
#[derive(Clone, Copy)]
enum Source {
    Stop,
    Listener(usize),
    Client(usize),
    Backend(usize),
    PartialChunk(usize),
}

impl PollLoop {
    /// Takes bound listeners. `backend` is the Unix socket on which tiny_http listens. `policy` tells what a request
    /// costs and whose it is. When `stop` becomes readable or closes, the server stops.
    pub fn new(
        listeners: Vec<Listener>,
        backend: PathBuf,
        limits: Limits,
        policy: impl Policy + 'static,
        stop: UnixStream,
    ) -> io::Result<PollLoop> {
        for listener in &listeners {
            listener.set_nonblocking()?;
        }
        let open_files = os::open_files_limit()?;
        Ok(PollLoop {
            listeners,
            stop,
            conns: Vec::new(),
            open_files,
            paused_until: None,
            busy_at: Instant::now(),
            scratch: vec![0; READ_BYTES],
            shared: Shared {
                limits: limits.fit(open_files),
                policy: Box::new(policy),
                queue: Queue::default(),
                backend,
                kept_backends: KeptBackends::default(),
                journal: Journal::default(),
                partial_chunks: Vec::new(),
                now: Instant::now(),
                stop_at: None,
                backend_ended: false,
            },
        })
    }

    /// Serves until `stop`, then waits up to `stop_wait` for the active requests. If the backend has ended, stops by itself
    /// and returns an error: only a restart of the process brings a new one.
    pub fn run(mut self) -> io::Result<()> {
        let (mut fds, mut sources) = (Vec::new(), Vec::new());
        while !self.is_over() {
            self.watch(&mut fds, &mut sources);
            let timeout = self.timeout_ms();
            if let Err(err) = os::poll(&mut fds, timeout) {
                // The only possible error is lack of memory. Free a connection, and sleep so that the loop does not
                // spin.
                self.shared.note(Level::Warn, format_args!("poll: {err}"));
                self.evict(Duration::ZERO);
                std::thread::sleep(ACCEPT_PAUSE);
                fds.clear();
            }
            self.shared.now = Instant::now();
            self.look_at_offers();
            self.dispatch(&fds, &sources);
            self.stop_if_idle();
            self.expire();
            self.enforce_shares();
            self.make_way();
            self.admit();
            while self.look_at_offers() {
                self.admit();
            }
            self.sweep();
            if self.shared.backend_ended && !self.shared.is_stopping() {
                self.begin_stop();
            }
        }
        if self.shared.backend_ended {
            return Err(io::Error::other(
                "tiny_http no longer accepts connections: file descriptors ran out, or another folder took the \
                 place of the data folder",
            ));
        }
        Ok(())
    }

    /// Finishes the requests whose replies went to their clients past this thread. While a request waits for a slot, no reply
    /// may do that, as this thread must see the slot become free. Returns whether there was one.
    fn look_at_offers(&mut self) -> bool {
        let withdraw =
            self.shared.is_stopping() || self.exchanges().any(|(_, exchange)| exchange.place().is_some());
        let PollLoop { conns, shared, .. } = self;
        conns.iter_mut().filter(|conn| conn.is_offered()).fold(false, |any, conn| {
            let is_finished = conn.look_at_offer(withdraw, shared);
            any || is_finished
        })
    }

    fn is_over(&self) -> bool {
        let done = self.conns.is_empty() && self.shared.partial_chunks.is_empty();
        self.shared.stop_at.is_some_and(|at| done || at <= self.shared.now)
    }

    /// Lists what poll waits for. Every entry is an open file descriptor, so the list stays below the limit on them.
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
            let (fd, events) = conn.client_events(self.shared.now);
            add(fd, events, Source::Client(at));
            if let Some((fd, events)) = conn.backend_events(&self.shared.limits) {
                add(fd, events, Source::Backend(at));
            }
        }
        for (at, partial) in self.shared.partial_chunks.iter().enumerate() {
            add(partial.fd(), partial.events(), Source::PartialChunk(at));
        }
    }

    /// Milliseconds to the nearest deadline, rounded up so that it has passed at the wake-up; -1 without any.
    fn timeout_ms(&self) -> i32 {
        let Shared { now, .. } = self.shared;
        let accept = self.accepts_from().max(self.paused_until).filter(|from| *from > now);
        let conns =
            self.conns.iter().flat_map(|conn| [conn.deadline(&self.shared), conn.reads_again(now)]).flatten();
        // While a request is overdue, a transfer that becomes too slow is found soon.
        let overdue =
            self.exchanges().filter_map(|(_, exchange)| exchange.overdue_from(&self.shared.limits)).min();
        let slow_check =
            overdue.and_then(|from| if from > now { Some(from) } else { now.checked_add(SLOW_CHECK) });
        let excess_connections = self.excess_connections().map(|(_, from)| from).min();
        let is_offered = self.conns.iter().any(Conn::is_offered);
        let offer = is_offered.then(|| now.checked_add(self.shared.limits.offer_check)).flatten();
        let others = [
            self.shared.journal.deadline(),
            self.shared.kept_backends.deadline(),
            self.shared.stop_at,
            self.idle_deadline(),
            accept,
            slow_check,
            excess_connections,
            offer,
        ];
        let Some(next) = conns.chain(others.into_iter().flatten()).min() else {
            return -1;
        };
        let wait = next.saturating_duration_since(now).as_micros().div_ceil(1000);
        i32::try_from(wait).unwrap_or(i32::MAX)
    }

    fn dispatch(&mut self, fds: &[PollFd], sources: &[Source]) {
        let PollLoop { conns, scratch, shared, .. } = self;
        let (mut stops, mut ready_listeners) = (false, Vec::new());
        for (fd, source) in fds.iter().zip(sources).filter(|(fd, _)| fd.revents != 0) {
            match *source {
                Source::Stop => stops = true,
                Source::Listener(at) => ready_listeners.push(at),
                Source::Client(at) => conns[at].on_client(fd.revents, shared, scratch),
                Source::Backend(at) => conns[at].on_backend(shared, scratch),
                // New entries are appended, so the indexes of the polled ones stay valid.
                Source::PartialChunk(at) => shared.partial_chunks[at].step(scratch),
            }
        }
        self.sweep();
        if stops {
            self.begin_stop();
        }
        for at in ready_listeners {
            self.accept_from(at);
        }
    }

    pub(super) fn sweep(&mut self) {
        self.conns.retain(|conn| !conn.is_closed());
        self.shared.partial_chunks.retain(|partial| !partial.is_finished());
    }

    fn expire(&mut self) {
        self.shared.journal.tick(self.shared.now);
        self.shared.kept_backends.close_old(self.shared.now);
        for conn in &mut self.conns {
            conn.expire(&mut self.shared);
        }
    }

    /// When to stop because there is no connection. An idle connection prevents the stop: its client cannot repeat a
    /// request that fails because of it.
    fn idle_deadline(&self) -> Option<Instant> {
        let idle_exit = self.shared.limits.idle_exit?;
        let is_idle =
            self.conns.is_empty() && self.shared.partial_chunks.is_empty() && !self.shared.is_stopping();
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
        self.shared.kept_backends.close_unused();
        self.look_at_offers();
        for conn in &mut self.conns {
            conn.stop(&mut self.shared);
        }
    }

    /// Gives free slots to waiting requests: the lightest first, then in order of arrival.
    fn admit(&mut self) {
        while self.next_waiting().is_some() && self.ensure_free_descriptors(1) != FreeDescriptors::TooFew {
            // `ensure_free_descriptors` may have changed the indexes, but never evicts a waiting request.
            if let Some(at) = self.next_waiting() {
                self.conns[at].activate(&mut self.shared);
            }
        }
        if self.exchanges().all(|(_, exchange)| exchange.place().is_none()) {
            self.shared.queue.clear();
        }
    }

    /// Whether so many file descriptors are free. Where the connections come near the limit, asks the kernel, because the rest
    /// of the process opens some, too.
    fn can_open(&self, count: usize) -> bool {
        let active = self.exchanges().filter(|(_, exchange)| exchange.is_active()).count();
        let requests = active + self.shared.partial_chunks.len() + self.shared.kept_backends.unused();
        let ours = self.listeners.len() + self.conns.len() + requests * Limits::FDS_PER_REQUEST;
        if ours + count + Limits::FDS_OF_DATABASES <= self.open_files {
            return true;
        }
        os::can_open_descriptors(count, self.open_files)
    }

    /// Call before `ours` descriptors are opened here. tiny_http's accept loop ends for good if it finds no free
    /// descriptor, so what it may open stays free. Evicts connections until there is enough for a backend that accepts
    /// and duplicates `max_active` connections at once. If no connection can be evicted, it is enough if the unanswered
    /// requests and the next one can open their descriptors: on a busy machine, tiny_http may not have closed the
    /// sockets of earlier requests yet. If even these are not free, logs that and pauses.
    fn ensure_free_descriptors(&mut self, ours: usize) -> FreeDescriptors {
        let of_backend = |requests: usize| requests.saturating_mul(Limits::FDS_PER_REQUEST - 1);
        let wanted = ours + of_backend(self.shared.limits.max_active);
        while !self.can_open(wanted) {
            self.shared.kept_backends.close_unused();
            if self.evict(Duration::ZERO) {
                continue;
            }
            let unanswered = self.exchanges().filter(|(_, exchange)| exchange.is_unanswered()).count();
            let requests = 1 + unanswered + self.shared.partial_chunks.len();
            if self.can_open(ours + of_backend(requests)) {
                return FreeDescriptors::ForOneRequest;
            }
            self.shared.note(
                Level::Warn,
                format_args!("too few free file descriptors; raise the limit on open files"),
            );
            self.pause();
            return FreeDescriptors::TooFew;
        }
        FreeDescriptors::Enough
    }

    fn pause(&mut self) {
        self.paused_until = self.shared.now.checked_add(ACCEPT_PAUSE);
    }

    /// When to accept next: at once below `max_conns`, else when a connection may be evicted. `None` while no connection
    /// may be.
    fn accepts_from(&self) -> Option<Instant> {
        let room = if self.conns.len() < self.shared.limits.max_conns {
            Some(self.shared.now)
        } else {
            let found = self.evictable(&self.counts(|_| 1), |_| true);
            found.and_then(|(_, since)| since.checked_add(self.shared.limits.min_wait))
        };
        room.map(|from| self.paused_until.map_or(from, |paused| paused.max(from)))
    }

    fn accept_from(&mut self, at: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            if self.conns.len() >= self.shared.limits.max_conns && !self.evict(self.shared.limits.min_wait) {
                return;
            }
            // One for the client, and one to forward its request. A client that is not accepted now waits in the backlog.
            let open = self.conns.len();
            let free = self.ensure_free_descriptors(2);
            // Take another connection only in the next turn: there may be none, and then an eviction would be for
            // nothing.
            let is_last = free == FreeDescriptors::ForOneRequest || self.conns.len() < open;
            let Some(listener) = self.listeners.get(at).filter(|_| free != FreeDescriptors::TooFew) else {
                return;
            };
            match listener.accept() {
                Ok((socket, peer)) => {
                    if socket.prepare().is_ok() {
                        let address = self.shared.address_of(peer);
                        self.conns.push(Conn::new(socket, peer, address, self.shared.now));
                        self.read_newest();
                    }
                    if is_last {
                        return;
                    }
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) if is_client_error(&err) => (),
                // Out of file descriptors or memory.
                Err(err) => {
                    self.shared.note(Level::Warn, format_args!("accepting a connection: {err}"));
                    if !self.evict(Duration::ZERO) {
                        self.pause();
                        return;
                    }
                }
            }
        }
    }

    /// Reads from the newest connection at once: if its request is here already, the connection is safe from eviction.
    fn read_newest(&mut self) {
        if let Some(conn) = self.conns.last_mut() {
            conn.on_client(POLL_IN, &mut self.shared, &mut self.scratch);
            if conn.is_closed() {
                self.conns.pop();
            }
        }
    }
}

/// How many file descriptors are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FreeDescriptors {
    /// For all that may be opened.
    Enough,
    /// For the next request.
    ForOneRequest,
    /// Not even for that.
    TooFew,
}

/// Whether accept(2) failed because the client's connection was lost before it was accepted.
fn is_client_error(err: &io::Error) -> bool {
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
