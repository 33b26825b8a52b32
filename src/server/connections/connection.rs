//! One client connection: idle, in an exchange (request and reply), or closing.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use log::Level;

use crate::http::request_head;
use crate::http::request_head::{Refusal, Scan};
use crate::limits_and_timeouts::Limits;
use crate::os::{POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT};
use crate::server::connections::Shared;
use crate::server::connections::buffered_socket::{Got, Link};
use crate::server::connections::client_socket::Socket;
use crate::server::connections::forwarding::{Exchange, FIRST_BYTES, Next};

/// The same as `Limits::linger` while the server stops: a client that does not close must not delay the stop for long.
const LINGER_WHILE_STOPPING: Duration = Duration::from_secs(1);

/// A client connection.
pub struct Conn {
    link: Link,
    state: State,
    /// The client address whose share it uses; none for an idle connection of a proxy.
    address: Option<IpAddr>,
}

/// What the client loses if its connection is evicted; the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EvictionCost {
    /// Nothing: no complete request has arrived yet, or the last one was answered.
    Unproven,
    /// A connection that it may use for its next request.
    Idle,
    /// A request that waits for a worker.
    Queued,
}

enum State {
    /// Waits for a request head.
    Idle(Idle),
    Exchange(Box<Exchange>),
    /// The last reply is being sent; what the client still sends is thrown away.
    Closing(Closing),
    Closed,
}

struct Idle {
    scan: Scan,
    since: Instant,
    /// When the head began to arrive.
    head_since: Option<Instant>,
    /// No request has arrived yet on this connection.
    is_new: bool,
}

impl Idle {
    fn new(now: Instant, is_new: bool) -> Idle {
        Idle { scan: Scan::default(), since: now, head_since: None, is_new }
    }

    fn deadline(&self, limits: &Limits) -> Option<Instant> {
        match self.head_since {
            Some(since) => since.checked_add(limits.head),
            None if self.is_new => self.since.checked_add(limits.first_byte),
            None => self.since.checked_add(limits.keep_alive),
        }
    }
}

/// Lingering close. Closing while the client still sends would reset the connection and lose a reply that the client has
/// not read. So we shut down our direction first and read up to `linger_bytes` from the client, with pauses: those who
/// send much that nobody wants would else keep this thread busy. Then we stop reading but keep the connection open for
/// `linger`, so that the client's writes block and do not fail. (A proxy written in Go answers 502 when its write fails,
/// even if the reply is there.)
struct Closing {
    /// When our direction was shut down, after everything was sent.
    shut_at: Option<Instant>,
    /// How many more bytes are read from the client.
    left_bytes: usize,
    /// When the next of them are read.
    reads_from: Instant,
}

impl Closing {
    fn reads(&self, now: Instant) -> bool {
        self.left_bytes > 0 && self.reads_from <= now
    }
}

impl Conn {
    /// A new connection, that counts for this address; the socket must be nonblocking.
    pub fn new(socket: Socket, peer: IpAddr, address: Option<IpAddr>, now: Instant) -> Conn {
        Conn { link: Link::new(socket, peer, now), state: State::Idle(Idle::new(now, true)), address }
    }

    /// The client address that it counts for, if it counts for one.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Memory of its buffers.
    pub fn buffered_bytes(&self) -> usize {
        self.link.buffered_bytes() + self.exchange().map_or(0, Exchange::buffered_bytes)
    }

    /// The client's socket and what to poll it for. It is always polled, so that a reset is seen at once.
    pub fn client_events(&self, now: Instant) -> (RawFd, i16) {
        let reads = match &self.state {
            State::Idle(_) if self.link.is_flushed() => POLL_IN,
            State::Exchange(exchange) => exchange.client_events(&self.link),
            State::Closing(closing) if closing.reads(now) => POLL_IN,
            State::Idle(_) | State::Closing(_) | State::Closed => 0,
        };
        let writes = if self.link.is_flushed() { 0 } else { POLL_OUT };
        (self.link.fd(), reads | writes)
    }

    /// The backend's socket, if it is to be polled, and what for.
    pub fn backend_events(&self, limits: &Limits) -> Option<(RawFd, i16)> {
        match &self.state {
            State::Exchange(exchange) => exchange.backend_events(&self.link, limits),
            State::Idle(_) | State::Closing(_) | State::Closed => None,
        }
    }

    /// The client's socket is ready.
    pub fn on_client(&mut self, events: i16, shared: &mut Shared, scratch: &mut [u8]) {
        let hung_up = events & POLL_ERR != 0
            // POLLHUP before our shutdown means that the client cannot read the reply. After it, POLLHUP is the
            // expected end, and the client's last bytes are still to be read.
            || (events & POLL_HUP != 0
                && !matches!(&self.state, State::Closing(closing) if closing.left_bytes > 0));
        if hung_up || self.link.flush(shared.now).is_err() {
            return self.apply(Next::Gone, shared);
        }
        match &mut self.state {
            State::Idle(_) => self.read_head(shared, scratch),
            State::Exchange(exchange) => {
                let next = exchange.on_client(&mut self.link, shared, scratch);
                self.apply(next, shared);
            }
            // The client has ended: poll tells that again and again until all is read, and not much is left.
            State::Closing(_) => self.drain(events & POLL_HUP != 0, shared, scratch),
            State::Closed => (),
        }
    }

    /// The backend's socket is ready.
    pub fn on_backend(&mut self, shared: &mut Shared, scratch: &mut [u8]) {
        if let State::Exchange(exchange) = &mut self.state {
            let next = exchange.on_backend(&mut self.link, shared, scratch);
            self.apply(next, shared);
        }
    }

    /// Hands the waiting request to the backend.
    pub fn activate(&mut self, shared: &mut Shared) {
        if let State::Exchange(exchange) = &mut self.state {
            let next = exchange.activate(&self.link, shared);
            self.apply(next, shared);
        }
    }

    /// Whether the reply may go to the client past this thread; it may have done so since the last look.
    pub fn is_offered(&self) -> bool {
        self.exchange().is_some_and(Exchange::is_offered)
    }

    /// Finishes the exchange if its reply went to the client past this thread. Otherwise takes the offer back if that is to be
    /// (`withdraw`), or if the next request is here already. Returns whether it was finished.
    pub fn look_at_offer(&mut self, withdraw: bool, shared: &mut Shared) -> bool {
        let State::Exchange(exchange) = &mut self.state else { return false };
        let next = exchange.look_at_offer(withdraw || !self.link.input.is_empty(), &self.link);
        self.apply(next, shared);
        next != Next::Stay
    }

    fn read_head(&mut self, shared: &mut Shared, scratch: &mut [u8]) {
        if self.link.is_flushed() {
            let most = FIRST_BYTES.min(scratch.len());
            match self.link.read(&mut scratch[..most]) {
                Got::End => return self.apply(Next::Gone, shared),
                Got::Nothing => (),
                Got::Bytes(read) => self.link.input.extend_from_slice(&scratch[..read]),
            }
        }
        self.parse_head(shared);
    }

    /// Looks for a request head in the input, but not before the last reply is fully sent.
    fn parse_head(&mut self, shared: &mut Shared) {
        let State::Idle(idle) = &mut self.state else {
            return;
        };
        if !self.link.is_flushed() {
            return;
        }
        let limits = &shared.limits;
        match idle.scan.advance(&self.link.input, limits.max_head_bytes, limits.max_headers) {
            Ok(Some((start, end))) => {
                if let Err(refusal) = self.begin(start, end, shared) {
                    self.apply(Next::Refuse(refusal), shared);
                }
            }
            Ok(None) => {
                if idle.scan.has_begun(&self.link.input) {
                    idle.head_since.get_or_insert(shared.now);
                }
                self.link.release_buffers();
            }
            Err(refusal) => self.apply(Next::Refuse(refusal), shared),
        }
    }

    /// Begins the exchange for the head at `start..end` of the input.
    fn begin(&mut self, start: usize, end: usize, shared: &mut Shared) -> Result<(), Refusal> {
        let rest = self.link.input.split_off(end);
        let head = std::mem::take(&mut self.link.input);
        let request = request_head::parse_request(&head[start..], self.link.peer)?;
        let client = shared.policy.client(self.link.peer, &request.fields);
        self.address = Some(client.address);
        // A client that has sent a part of its body does not wait for `100 Continue`.
        let must_send_continue = request.expects_continue && rest.is_empty() && !request.body.is_done();
        let mut exchange = Box::new(Exchange::new(request, client, shared));
        let mut next = exchange.take(&rest, &mut self.link, shared);
        if must_send_continue && self.link.send(b"HTTP/1.1 100 Continue\r\n\r\n", shared.now).is_err() {
            next = Next::Gone;
        }
        self.state = State::Exchange(exchange);
        self.apply(next, shared);
        Ok(())
    }

    /// Moves the connection to the state that the exchange asks for.
    fn apply(&mut self, next: Next, shared: &mut Shared) {
        if next == Next::Stay {
            return;
        }
        if let State::Exchange(exchange) = std::mem::replace(&mut self.state, State::Closed) {
            // A worker may still be at it.
            self.link.withdraw_offer();
            exchange.close(shared);
        }
        match next {
            Next::Stay | Next::Gone => (),
            Next::Refuse(refusal) => self.refuse(refusal, shared),
            Next::Reset(reason) => {
                shared.note(Level::Warn, format_args!("reset {}: {reason}", self.link.peer));
                self.link.reset_on_close();
            }
            Next::Finished { keep_alive } if keep_alive && !shared.is_stopping() => {
                self.state = State::Idle(Idle::new(shared.now, false));
                self.address = shared.address_of(self.link.peer);
                self.parse_head(shared);
            }
            Next::Finished { .. } => self.end(shared),
        }
    }

    fn refuse(&mut self, refusal: Refusal, shared: &mut Shared) {
        shared.journal.refused(self.link.peer, refusal, shared.now);
        if self.link.send(refusal.response().as_bytes(), shared.now).is_ok() {
            self.end(shared);
        }
    }

    /// Starts the close: what is in the output is still sent, then nothing more.
    fn end(&mut self, shared: &Shared) {
        self.link.input = Vec::new();
        let left_bytes = shared.limits.linger_bytes;
        self.state = State::Closing(Closing { shut_at: None, left_bytes, reads_from: shared.now });
        self.shut_when_flushed(shared);
    }

    fn shut_when_flushed(&mut self, shared: &Shared) {
        if let State::Closing(closing) = &mut self.state
            && closing.shut_at.is_none()
            && self.link.is_flushed()
        {
            self.link.end_output();
            self.link.release_buffers();
            closing.shut_at = Some(shared.now);
        }
    }

    fn drain(&mut self, at_once: bool, shared: &Shared, scratch: &mut [u8]) {
        self.shut_when_flushed(shared);
        let State::Closing(closing) = &mut self.state else {
            return;
        };
        if at_once || closing.reads(shared.now) {
            let most = FIRST_BYTES.min(scratch.len());
            match self.link.read(&mut scratch[..most]) {
                Got::End => self.state = State::Closed,
                Got::Nothing => (),
                Got::Bytes(read) => {
                    closing.left_bytes = closing.left_bytes.saturating_sub(read);
                    closing.reads_from = shared.now + shared.limits.linger_pause;
                }
            }
        }
    }

    /// When the client's socket is polled for reading again, after a pause.
    pub fn reads_again(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            State::Closing(closing) => {
                (closing.left_bytes > 0 && closing.reads_from > now).then_some(closing.reads_from)
            }
            State::Idle(_) | State::Exchange(_) | State::Closed => None,
        }
    }

    /// When `expire` must be called next.
    pub fn deadline(&self, shared: &Shared) -> Option<Instant> {
        let limits = &shared.limits;
        let stuck = self.link.blocked_since().and_then(|since| since.checked_add(limits.write_idle));
        let own = match &self.state {
            // The timeout for the next request starts when the last reply is fully sent.
            State::Idle(idle) => idle.deadline(limits).filter(|_| stuck.is_none()),
            State::Exchange(exchange) => exchange.deadline(limits),
            State::Closing(closing) => closing.shut_at.and_then(|at| at.checked_add(linger(shared))),
            State::Closed => None,
        };
        stuck.into_iter().chain(own).min()
    }

    /// Ends the connection, or its request, if the deadline has passed.
    pub fn expire(&mut self, shared: &mut Shared) {
        if self.deadline(shared).is_none_or(|deadline| deadline > shared.now) {
            return;
        }
        let stuck = self.link.blocked_since().and_then(|since| since.checked_add(shared.limits.write_idle));
        let next = match &self.state {
            _ if stuck.is_some_and(|deadline| deadline <= shared.now) => {
                Next::Reset("takes no byte of its reply")
            }
            State::Idle(idle) if idle.head_since.is_some() => {
                Next::Refuse(Refusal::new(408, "head too slow"))
            }
            State::Exchange(exchange) => exchange.expire(),
            State::Idle(_) | State::Closing(_) | State::Closed => Next::Gone,
        };
        self.apply(next, shared);
    }

    /// The rate of a transfer that must make way while another request is overdue, if this is one.
    pub fn rate_if_slow(&mut self, shared: &Shared) -> Option<u64> {
        match &self.state {
            State::Exchange(exchange) => exchange.rate_if_slow(&mut self.link, shared.now, &shared.limits),
            State::Idle(_) | State::Closing(_) | State::Closed => None,
        }
    }

    /// Ends a slow transfer.
    pub fn make_way(&mut self, shared: &mut Shared) {
        if let State::Exchange(exchange) = &self.state {
            let next = exchange.make_way();
            self.apply(next, shared);
        }
    }

    /// Ends the connection because its client holds too much memory.
    pub fn close_for_memory(&mut self, shared: &mut Shared) {
        let next = match &self.state {
            State::Exchange(exchange) if !exchange.is_active() => {
                Next::Refuse(Refusal::new(503, "too many requests of this client at once"))
            }
            _ => Next::Reset("its client holds too much memory"),
        };
        self.apply(next, shared);
    }

    /// Ends what may end when the server stops: everything but an active request.
    pub fn stop(&mut self, shared: &mut Shared) {
        match &self.state {
            State::Exchange(exchange) => {
                let next = exchange.stop();
                self.apply(next, shared);
            }
            State::Idle(_) if self.link.is_flushed() => self.state = State::Closed,
            State::Idle(_) => self.end(shared),
            State::Closing(_) | State::Closed => (),
        }
    }

    /// The cost of evicting this connection, and since when it has been waiting. `None` if a request is active.
    pub fn evictable(&self) -> Option<(EvictionCost, Instant)> {
        let is_sent = self.link.is_flushed();
        match &self.state {
            State::Idle(idle) if idle.is_new || idle.head_since.is_some() => {
                Some((EvictionCost::Unproven, idle.head_since.unwrap_or(idle.since)))
            }
            State::Idle(idle) if is_sent => Some((EvictionCost::Idle, idle.since)),
            State::Exchange(exchange) if exchange.place().is_some() => {
                Some((EvictionCost::Queued, exchange.evictable_since()?))
            }
            State::Exchange(exchange) => Some((EvictionCost::Unproven, exchange.evictable_since()?)),
            State::Closing(closing) => Some((EvictionCost::Unproven, closing.shut_at?)),
            State::Idle(_) | State::Closed => None,
        }
    }

    /// The exchange in progress.
    pub fn exchange(&self) -> Option<&Exchange> {
        match &self.state {
            State::Exchange(exchange) => Some(exchange),
            State::Idle(_) | State::Closing(_) | State::Closed => None,
        }
    }

    /// Whether the connection may be dropped.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }
}

fn linger(shared: &Shared) -> Duration {
    if shared.is_stopping() { shared.limits.linger.min(LINGER_WHILE_STOPPING) } else { shared.limits.linger }
}
