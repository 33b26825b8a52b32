//! One request and its reply, from the end of the request's head to the end of the reply.

use std::io;
use std::time::Instant;

use log::Level;

use crate::http::body_framing::{Body, ChunkWriter};
use crate::http::client_link::Offer;
use crate::http::request_head::{ForwardedBody, Refusal, Request, complete_head};
use crate::limits_and_timeouts::{Limits, SyncStep, Weight};
use crate::os::{POLL_IN, POLL_OUT};
use crate::server::connections::Shared;
use crate::server::connections::backend_connection::{Backend, ForwardError, Reply, RequestFacts};
use crate::server::connections::buffered_socket::{Got, Link};
use crate::server::connections::pace::Pace;
use crate::server::connections::policy::Client;
use crate::server::connections::queue::Place;

/// A bulk transfer is queued for the backend once this much of its body has arrived, or all of it. A single read from a
/// connection whose body no worker takes is no larger than this, which limits the memory of hundreds of them, and the time
/// that others wait for.
pub const FIRST_BYTES: usize = 8 << 10;

/// What the connection does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The exchange goes on.
    Stay,
    /// The client gets this error instead of a reply.
    Refuse(Refusal),
    /// The reply cannot be completed: reset the connection, so that the client does not take it for complete.
    Reset(&'static str),
    /// The client is gone.
    Gone,
    /// The reply is complete, and told the client whether the connection stays open.
    Finished { keep_alive: bool },
}

/// The stage of a request.
enum Stage {
    /// Receiving the body: a small one whole, of a large one the first `FIRST_BYTES`.
    Gathering { upload: ChunkWriter },
    /// Queued until a slot is free.
    Waiting { upload: ChunkWriter, place: Place, since: Instant },
    /// A backend connection is open.
    Active(Active),
}

struct Active {
    backend: Backend,
    reply: Reply,
    /// Whether the backend still reads the body; otherwise no more of it is read from the client.
    takes_body: bool,
    short_way: ShortWay,
    since: Instant,
}

/// Whether the reply goes to the client at once, past this thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ShortWay {
    /// It does not.
    Closed,
    /// It may.
    Offered,
    /// It did.
    Taken,
}

/// One request and its reply.
pub struct Exchange {
    asked: RequestFacts,
    keep_alive: bool,
    /// Its connection to the backend may be kept.
    may_keep_backend: bool,
    weight: Weight,
    /// The client that sent the request.
    client: Client,
    /// What the request is to the client's sync.
    step: Option<SyncStep>,
    /// How much of the body must be here before the request is queued, unless that is all of it.
    first_bytes: usize,
    /// The head for the backend; empty once it is sent.
    head: Vec<u8>,
    body: Body,
    pace: Pace,
    since: Instant,
    stage: Stage,
}

impl Exchange {
    /// Starts with a checked request head of this client.
    pub fn new(request: Request, client: Client, shared: &Shared) -> Exchange {
        let (declared, limits) = (request.body.declared_bytes(), &shared.limits);
        let weight = shared.policy.weight(&request.path);
        let is_long = declared.is_some_and(|bytes| bytes > limits.max_whole_bytes as u64);
        let upload =
            if request.body.is_done() { ChunkWriter::without_body() } else { ChunkWriter::default() };
        Exchange {
            asked: RequestFacts { is_head: request.is_head, is_http10: request.is_http10 },
            keep_alive: request.keep_alive,
            may_keep_backend: shared.policy.replies_tell_their_end(&request.fields),
            weight,
            client,
            step: if client.is_user { shared.policy.sync_step(&request.path) } else { None },
            first_bytes: if is_long { FIRST_BYTES } else { limits.max_whole_bytes },
            head: request.forward,
            body: request.body,
            pace: Pace::new(&shared.limits),
            since: shared.now,
            stage: Stage::Gathering { upload },
        }
    }

    /// Takes bytes that the client sent: the body, and after it perhaps the start of the next request.
    pub fn take(&mut self, data: &[u8], link: &mut Link, shared: &mut Shared) -> Next {
        let mut rest = data;
        if !self.body.is_done() {
            self.pace.received(data.len(), shared.now, &shared.limits);
            link.rate.add(data.len(), shared.now);
            let stage = &mut self.stage;
            let taken = self.body.decode(data, &mut |part| stage.push(part));
            match taken {
                Ok(taken) => rest = &data[taken..],
                Err(_) => return self.fail(Refusal::new(400, "malformed chunk")),
            }
        }
        link.input.extend_from_slice(rest);
        if self.is_login_too_long(&shared.limits) {
            return self.fail(Refusal::new(413, "login too long"));
        }
        self.advance(shared);
        self.update_pace(link, shared);
        Next::Stay
    }

    /// A login is no transfer, as which it would pass by `max_logins`. (One that declares to be longer is refused by a worker,
    /// unread.)
    fn is_login_too_long(&self, limits: &Limits) -> bool {
        let Stage::Gathering { upload } = &self.stage else { return false };
        self.weight == Weight::Login
            && !self.body.is_done()
            && upload.unsealed_bytes() >= limits.max_whole_bytes
    }

    /// Queues the request once enough of it has arrived, or writes to the backend what its socket takes.
    fn advance(&mut self, shared: &mut Shared) {
        match &mut self.stage {
            Stage::Gathering { upload }
                if self.body.is_done() || upload.unsealed_bytes() >= self.first_bytes =>
            {
                // A worker will have to wait for the rest, whatever the request is.
                if !self.body.is_done() {
                    self.weight = Weight::Bulk;
                }
                self.stage = Stage::Waiting {
                    upload: std::mem::take(upload),
                    place: shared.queue.place(self.weight, self.client.id, self.step),
                    since: shared.now,
                };
            }
            Stage::Active(active) => active.send(self.body.is_done()),
            Stage::Gathering { .. } | Stage::Waiting { .. } => (),
        }
    }

    /// Call when the client's socket is ready for reading.
    pub fn on_client(&mut self, link: &mut Link, shared: &mut Shared, scratch: &mut [u8]) -> Next {
        // One read: then the other sockets are served.
        if !self.wants_input(link) {
            return Next::Stay;
        }
        let most = if self.forwards_body() { scratch.len() } else { FIRST_BYTES.min(scratch.len()) };
        match link.read(&mut scratch[..most]) {
            Got::End => Next::Gone,
            Got::Nothing => Next::Stay,
            Got::Bytes(read) => self.take(&scratch[..read], link, shared),
        }
    }

    /// Whether the backend takes more of the body.
    fn forwards_body(&self) -> bool {
        matches!(&self.stage, Stage::Active(active) if active.takes_body && !self.body.is_done())
    }

    /// Call when the backend's socket is ready for reading or writing.
    pub fn on_backend(&mut self, link: &mut Link, shared: &mut Shared, scratch: &mut [u8]) -> Next {
        self.advance(shared);
        self.update_pace(link, shared);
        let received_whole = self.body.is_done();
        let Stage::Active(active) = &mut self.stage else {
            return Next::Stay;
        };
        if !takes_reply(self.weight, link, &shared.limits) {
            return Next::Stay;
        }
        let read = match active.backend.read(scratch) {
            Got::Bytes(read) => read,
            Got::Nothing => return Next::Stay,
            Got::End => return self.fail(Refusal::new(502, "the backend ended early")),
        };
        // After an unread body the next request could not be found, so the client must open a new connection.
        let keep_alive = self.keep_alive && received_whole && !shared.is_stopping();
        match active.reply.feed(&scratch[..read], self.asked, keep_alive, link, shared.now) {
            Ok(()) => (),
            Err(ForwardError::Client) => return Next::Gone,
            Err(ForwardError::Reply) => {
                return self.fail(Refusal::new(502, "malformed reply of the backend"));
            }
        }
        // A reply that has begun here goes on here.
        active.short_way = ShortWay::Closed;
        // The buffer is full: from here on the worker has to wait for the client.
        if link.unsent_bytes() >= shared.limits.max_whole_bytes {
            self.weight = Weight::Bulk;
        }
        if active.reply.is_done() {
            let keep_alive = active.reply.keeps_alive();
            return Next::Finished { keep_alive };
        }
        Next::Stay
    }

    /// Hands the request to the backend.
    pub fn activate(&mut self, link: &Link, shared: &mut Shared) -> Next {
        let Stage::Waiting { upload, place, .. } = &mut self.stage else {
            return Next::Stay;
        };
        shared.queue.started(self.weight, *place);
        let mut upload = std::mem::take(upload);
        let is_whole = self.body.is_done();
        let may_keep = self.may_keep_backend && is_whole && self.weight == Weight::Light;
        let stream = match shared.kept_backends.open(&shared.backend, may_keep) {
            Ok(stream) => stream,
            Err(err) => {
                let socket = shared.backend.display().to_string();
                let note = format_args!("connecting to {socket}: {err}; is the data folder still there?");
                shared.note(Level::Warn, note);
                shared.backend_ended |= err.kind() == io::ErrorKind::ConnectionRefused;
                return Next::Refuse(Refusal::new(502, "no backend"));
            }
        };
        let body = if is_whole {
            ForwardedBody::Whole(upload.seal_whole())
        } else {
            upload.seal(false);
            ForwardedBody::Chunks
        };
        let mut head = std::mem::take(&mut self.head);
        let is_plain = self.keep_alive && !self.asked.is_head && !self.asked.is_http10;
        let number = link.announce(stream.is_kept() && is_plain && !shared.is_stopping());
        complete_head(&mut head, body, number, stream.is_kept());
        upload.prepend(head);
        self.stage = Stage::Active(Active {
            backend: Backend::new(stream, upload),
            reply: Reply::new(),
            takes_body: true,
            short_way: if link.offer() == Offer::None { ShortWay::Closed } else { ShortWay::Offered },
            since: shared.now,
        });
        self.advance(shared);
        self.update_pace(link, shared);
        Next::Stay
    }

    /// Whether its reply may go to the client past this thread; it may have done so since the last look.
    pub fn is_offered(&self) -> bool {
        matches!(&self.stage, Stage::Active(active) if active.short_way == ShortWay::Offered)
    }

    /// Looks whether the reply went to the client. If it did not, and `withdraw` says so, the backend gets it from now on, and
    /// this thread is woken for it.
    pub fn look_at_offer(&mut self, withdraw: bool, link: &Link) -> Next {
        let Stage::Active(active @ Active { short_way: ShortWay::Offered, .. }) = &mut self.stage else {
            return Next::Stay;
        };
        let offer = if withdraw { link.withdraw_offer() } else { link.offer() };
        if offer == Offer::Used {
            active.short_way = ShortWay::Taken;
            return Next::Finished { keep_alive: true };
        }
        if withdraw {
            active.short_way = ShortWay::Closed;
        }
        Next::Stay
    }

    /// An error status if the client has no part of the reply yet, a reset otherwise.
    fn fail(&self, refusal: Refusal) -> Next {
        match &self.stage {
            Stage::Active(active) if active.reply.is_started() => Next::Reset(refusal.reason),
            _ => Next::Refuse(refusal),
        }
    }

    /// What to poll the client's socket for.
    pub fn client_events(&self, link: &Link) -> i16 {
        if self.wants_input(link) { POLL_IN } else { 0 }
    }

    /// Whether to read from the client. Body bytes are read only as fast as they are forwarded. After the body one more
    /// read is allowed: it gets a pipelined request, or notices that the client closed.
    fn wants_input(&self, link: &Link) -> bool {
        if self.body.is_done() {
            return link.input.is_empty();
        }
        match &self.stage {
            Stage::Gathering { .. } => true,
            Stage::Waiting { .. } => false,
            Stage::Active(active) => active.takes_body && active.backend.upload.pending().is_empty(),
        }
    }

    /// The backend's socket and what to poll it for. `None` if there is nothing to read or write: poll would report a
    /// hang-up on every call, and the loop would spin.
    pub fn backend_events(&self, link: &Link, limits: &Limits) -> Option<(i32, i16)> {
        let Stage::Active(active) = &self.stage else {
            return None;
        };
        let reads = if takes_reply(self.weight, link, limits) { POLL_IN } else { 0 };
        let writes = if active.backend.upload.pending().is_empty() { 0 } else { POLL_OUT };
        (reads | writes != 0).then(|| (active.backend.fd(), reads | writes))
    }

    fn update_pace(&mut self, link: &Link, shared: &Shared) {
        let waits = !self.body.is_done() && self.wants_input(link);
        self.pace.set_waiting(waits, shared.now);
    }

    /// When `expire` must be called next.
    pub fn deadline(&self, limits: &Limits) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting { since, .. } => since.checked_add(limits.queue_wait),
            Stage::Gathering { .. } | Stage::Active(_) => self.pace.deadline(),
        }
    }

    /// What to do when the deadline has passed.
    pub fn expire(&self) -> Next {
        match &self.stage {
            Stage::Waiting { .. } => Next::Refuse(Refusal::new(503, "all slots are busy")),
            Stage::Gathering { .. } | Stage::Active(_) => self.fail(Refusal::new(408, "body too slow")),
        }
    }

    /// When this request has been queued for so long that slow transfers must make way for it.
    pub fn overdue_from(&self, limits: &Limits) -> Option<Instant> {
        match (&self.stage, self.weight) {
            (Stage::Waiting { since, .. }, Weight::Light) => since.checked_add(limits.busy_after_light),
            (Stage::Waiting { since, .. }, Weight::Bulk) => since.checked_add(limits.busy_after),
            // Logins wait only for each other, and active requests wait for nothing.
            (Stage::Waiting { .. }, Weight::Login) | (Stage::Gathering { .. } | Stage::Active(_), _) => None,
        }
    }

    /// The rate of a transfer that must make way while another request is overdue: it waits for its client, and moves
    /// less than `busy_rate`.
    pub fn rate_if_slow(&self, link: &mut Link, now: Instant, limits: &Limits) -> Option<u64> {
        let Stage::Active(active) = &self.stage else { return None };
        let waits = !link.is_flushed() || self.pace.is_waiting();
        let has_had_time = now.saturating_duration_since(active.since) >= limits.busy_after;
        if self.weight != Weight::Bulk || !waits || !has_had_time {
            return None;
        }
        Some(link.rate.bytes_per_sec(now)).filter(|rate| *rate < limits.busy_rate)
    }

    /// Ends a slow transfer to free its slot.
    pub fn make_way(&self) -> Next {
        self.fail(Refusal::new(408, "too slow while others wait"))
    }

    /// What to do when the server stops: a request that is not active yet is refused.
    pub fn stop(&self) -> Next {
        match &self.stage {
            Stage::Active(_) => Next::Stay,
            Stage::Gathering { .. } | Stage::Waiting { .. } => Next::Refuse(Refusal::new(503, "stopping")),
        }
    }

    /// What the request costs.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// Whether it holds a slot.
    pub fn is_active(&self) -> bool {
        matches!(self.stage, Stage::Active(_))
    }

    /// Whether it is active, and nothing of the reply has come: the backend may not have accepted the connection yet.
    pub fn is_unanswered(&self) -> bool {
        matches!(&self.stage, Stage::Active(active) if !active.reply.is_started())
    }

    /// The client that sent it.
    pub fn client(&self) -> Client {
        self.client
    }

    /// Its place in the queue, if it waits.
    pub fn place(&self) -> Option<Place> {
        match &self.stage {
            Stage::Waiting { place, .. } => Some(*place),
            Stage::Gathering { .. } | Stage::Active(_) => None,
        }
    }

    /// Since when this exchange may be evicted: until it is active.
    pub fn evictable_since(&self) -> Option<Instant> {
        (!self.is_active()).then_some(self.since)
    }

    /// Memory of its buffers.
    pub fn buffered_bytes(&self) -> usize {
        self.head.capacity()
            + match &self.stage {
                Stage::Gathering { upload } | Stage::Waiting { upload, .. } => upload.buffered_bytes(),
                Stage::Active(active) => active.backend.upload.buffered_bytes(),
            }
    }

    /// Ends the exchange. Keeps the backend connection if all went well; otherwise closes it, after its last chunk where
    /// that is partly written.
    pub fn close(self, shared: &mut Shared) {
        let Stage::Active(active) = self.stage else { return };
        let is_answered = active.short_way == ShortWay::Taken || active.reply.allows_another_request();
        if is_answered && active.is_sent() && !shared.is_stopping() {
            shared.kept_backends.give_back(active.backend.into_stream(), shared.now);
        } else {
            shared.partial_chunks.extend(active.backend.close());
        }
    }
}

/// Whether more of the reply may be read from the backend. That of a small request is read ahead of the client, so that
/// its worker is free; of a transfer no more than the client takes.
fn takes_reply(weight: Weight, link: &Link, limits: &Limits) -> bool {
    match weight {
        Weight::Light | Weight::Login => link.unsent_bytes() < limits.max_whole_bytes,
        Weight::Bulk => link.is_flushed(),
    }
}

impl Stage {
    fn push(&mut self, part: &[u8]) {
        match self {
            Stage::Gathering { upload } | Stage::Waiting { upload, .. } => upload.push(part),
            Stage::Active(active) => active.backend.upload.push(part),
        }
    }
}

impl Active {
    /// Whether the backend got the whole request.
    fn is_sent(&self) -> bool {
        self.takes_body && self.backend.upload.pending().is_empty()
    }

    /// Writes to the backend. If the backend has stopped reading, the rest of the body stays with the client: the backend
    /// has replied, or is about to.
    fn send(&mut self, ended: bool) {
        if self.takes_body && self.backend.send(ended).is_err() {
            self.takes_body = false;
            self.backend.upload.abandon();
        }
    }
}
