//! One request and its reply, from the end of the request's head to the end of the reply.

use std::time::Instant;

use log::Level;

use crate::http::body_framing::{Body, ChunkWriter};
use crate::http::request_head::{Refusal, Request};
use crate::os::{POLL_IN, POLL_OUT};
use crate::server::connections::Shared;
use crate::server::connections::backend_connection::{Asked, Backend, Broken, Reply};
use crate::server::connections::buffered_socket::{Got, Link};
use crate::server::connections::limits_and_timeouts::{Limits, Pace, Weight};

/// A request is queued for the backend once this much of its body has arrived, or all of it. So a small body that
/// arrives slowly holds no worker. Until then a single read is no larger than this, which limits the memory of hundreds
/// of waiting requests.
pub const FIRST_BYTES: usize = 8 << 10;

/// Most reads from one socket before the other sockets are served.
const READS_PER_TURN: usize = 4;

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
    /// Receiving the first `FIRST_BYTES` of the body.
    Gathering { upload: ChunkWriter },
    /// Queued until a slot is free.
    Waiting { upload: ChunkWriter, ticket: u64, since: Instant },
    /// A backend connection is open.
    Active(Active),
}

struct Active {
    backend: Backend,
    reply: Reply,
    /// Whether the backend still reads the body; otherwise its bytes are thrown away.
    takes_body: bool,
    thrown_away: usize,
    since: Instant,
}

/// One request and its reply.
pub struct Exchange {
    asked: Asked,
    keep_alive: bool,
    weight: Weight,
    is_form: bool,
    /// The head for the backend; empty once it is sent.
    head: Vec<u8>,
    body: Body,
    body_bytes: u64,
    pace: Pace,
    since: Instant,
    stage: Stage,
}

impl Exchange {
    /// Starts with a checked request head.
    pub fn new(request: Request, shared: &Shared) -> Exchange {
        let upload =
            if request.body.is_done() { ChunkWriter::without_body() } else { ChunkWriter::default() };
        Exchange {
            asked: Asked { is_head: request.is_head, is_http10: request.is_http10 },
            keep_alive: request.keep_alive,
            weight: (shared.weigh)(&request.path),
            is_form: request.is_form,
            head: request.forward,
            body: request.body,
            body_bytes: 0,
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
            let (stage, body_bytes) = (&mut self.stage, &mut self.body_bytes);
            let taken = self.body.decode(data, &mut |part| {
                *body_bytes += part.len() as u64;
                stage.push(part);
            });
            match taken {
                Ok(taken) => rest = &data[taken..],
                Err(_) => return self.fail(Refusal::new(400, "malformed chunk")),
            }
            if self.body_bytes > shared.limits.max_body_bytes {
                return self.fail(Refusal::new(413, "body too large"));
            }
        }
        link.input.extend_from_slice(rest);
        self.advance(shared);
        self.update_pace(link, shared);
        Next::Stay
    }

    /// Queues the request once enough of it has arrived, or writes to the backend what its socket takes.
    fn advance(&mut self, shared: &mut Shared) {
        match &mut self.stage {
            Stage::Gathering { upload } if self.body.is_done() || upload.gathered() >= FIRST_BYTES => {
                // The host key may be the last field of a form. Until then an unknown client could hold a worker,
                // so a form that has not fully arrived counts as a bulk transfer.
                if self.is_form && !self.body.is_done() {
                    self.weight = Weight::Bulk;
                }
                self.stage = Stage::Waiting {
                    upload: std::mem::take(upload),
                    ticket: shared.next_ticket(),
                    since: shared.now,
                };
            }
            Stage::Active(active) => active.send(self.body.is_done()),
            Stage::Gathering { .. } | Stage::Waiting { .. } => (),
        }
    }

    /// Call when the client's socket is ready for reading.
    pub fn on_client(&mut self, link: &mut Link, shared: &mut Shared, scratch: &mut [u8]) -> Next {
        for _ in 0..READS_PER_TURN {
            if !self.wants_input(link, &shared.limits) {
                break;
            }
            let most = if self.is_active() && !self.body.is_done() {
                scratch.len()
            } else {
                FIRST_BYTES.min(scratch.len())
            };
            match link.read(&mut scratch[..most]) {
                Got::End => return Next::Gone,
                Got::Nothing => break,
                Got::Bytes(read) => {
                    let next = self.take(&scratch[..read], link, shared);
                    if next != Next::Stay || read < most {
                        return next;
                    }
                }
            }
        }
        Next::Stay
    }

    /// Call when the backend's socket is ready for reading or writing.
    pub fn on_backend(&mut self, link: &mut Link, shared: &mut Shared, scratch: &mut [u8]) -> Next {
        self.advance(shared);
        self.update_pace(link, shared);
        let received_whole = self.body.is_done();
        let Stage::Active(active) = &mut self.stage else {
            return Next::Stay;
        };
        for _ in 0..READS_PER_TURN {
            if !link.is_flushed() {
                break;
            }
            let read = match active.backend.read(scratch) {
                Got::Bytes(read) => read,
                Got::Nothing => break,
                Got::End => return self.fail(Refusal::new(502, "the backend ended early")),
            };
            // After an unread body the next request could not be found, so the client must open a new connection.
            let keep_alive = self.keep_alive && received_whole && !shared.is_stopping();
            match active.reply.feed(&scratch[..read], self.asked, keep_alive, link, shared.now) {
                Ok(()) => (),
                Err(Broken::Client) => return Next::Gone,
                Err(Broken::Reply) => return self.fail(Refusal::new(502, "malformed reply of the backend")),
            }
            if active.reply.is_done() {
                let keep_alive = active.reply.keeps_alive();
                return Next::Finished { keep_alive };
            }
            if read < scratch.len() {
                break;
            }
        }
        Next::Stay
    }

    /// Hands the request to the backend.
    pub fn activate(&mut self, link: &Link, shared: &mut Shared) -> Next {
        let Stage::Waiting { upload, .. } = &mut self.stage else {
            return Next::Stay;
        };
        let mut upload = std::mem::take(upload);
        upload.seal(self.body.is_done());
        upload.prepend(std::mem::take(&mut self.head));
        let backend = match Backend::connect(&shared.backend, upload) {
            Ok(backend) => backend,
            Err(err) => {
                let socket = shared.backend.display().to_string();
                let note = format_args!("connecting to {socket}: {err}; is the data folder still there?");
                shared.note(Level::Warn, note);
                return Next::Refuse(Refusal::new(502, "no backend"));
            }
        };
        self.stage = Stage::Active(Active {
            backend,
            reply: Reply::new(),
            takes_body: true,
            thrown_away: 0,
            since: shared.now,
        });
        self.advance(shared);
        self.update_pace(link, shared);
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
    pub fn client_events(&self, link: &Link, limits: &Limits) -> i16 {
        if self.wants_input(link, limits) { POLL_IN } else { 0 }
    }

    /// Whether to read from the client. Body bytes are read only as fast as they are forwarded. After the body one more
    /// read is allowed: it gets a pipelined request, or notices that the client closed.
    fn wants_input(&self, link: &Link, limits: &Limits) -> bool {
        if self.body.is_done() {
            return link.input.is_empty();
        }
        match &self.stage {
            Stage::Gathering { .. } => true,
            Stage::Waiting { .. } => false,
            Stage::Active(active) if active.takes_body => active.backend.upload.pending().is_empty(),
            Stage::Active(active) => active.thrown_away < limits.linger_bytes,
        }
    }

    /// The backend's socket and what to poll it for. `None` if there is nothing to read or write: poll would report a
    /// hang-up on every call, and the loop would spin.
    pub fn backend_events(&self, link: &Link) -> Option<(i32, i16)> {
        let Stage::Active(active) = &self.stage else {
            return None;
        };
        let reads = if link.is_flushed() { POLL_IN } else { 0 };
        let writes = if active.backend.upload.pending().is_empty() { 0 } else { POLL_OUT };
        (reads | writes != 0).then(|| (active.backend.fd(), reads | writes))
    }

    fn update_pace(&mut self, link: &Link, shared: &Shared) {
        let wanted = match &self.stage {
            Stage::Active(active) => active.takes_body,
            Stage::Gathering { .. } | Stage::Waiting { .. } => true,
        };
        let waits = wanted && !self.body.is_done() && self.wants_input(link, &shared.limits);
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

    /// When this request is overdue: a queued bulk transfer that has waited for `busy_after`. Slow forms are ended then.
    pub fn overdue_from(&self, limits: &Limits) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting { since, .. } if self.weight == Weight::Bulk => {
                since.checked_add(limits.busy_after)
            }
            _ => None,
        }
    }

    /// Whether this is a form that holds a slot and is slower than `busy_rate`. The host key may be the last field of a
    /// form, so two slow forms from unknown clients would hold all bulk slots. A client that sends its key in the head is
    /// known, and may be slow.
    pub fn is_too_slow_form(&self, now: Instant, limits: &Limits) -> bool {
        match &self.stage {
            Stage::Active(active) if self.is_form && !self.body.is_done() => {
                let held = now.saturating_duration_since(active.since);
                held >= limits.busy_after && self.body_bytes < limits.busy_rate.saturating_mul(held.as_secs())
            }
            _ => false,
        }
    }

    /// Ends a slow form to free its slot.
    pub fn end_slow_form(&self) -> Next {
        self.fail(Refusal::new(408, "form too slow while others wait"))
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

    /// Its place in the queue, if it waits.
    pub fn ticket(&self) -> Option<u64> {
        match &self.stage {
            Stage::Waiting { ticket, .. } => Some(*ticket),
            Stage::Gathering { .. } | Stage::Active(_) => None,
        }
    }

    /// Since when this exchange may be evicted: only while it receives the start of the body.
    pub fn evictable_since(&self) -> Option<Instant> {
        matches!(self.stage, Stage::Gathering { .. }).then_some(self.since)
    }

    /// Ends the exchange and closes the backend connection, after its last chunk where that is partly written.
    pub fn close(self, shared: &mut Shared) {
        if let Stage::Active(active) = self.stage {
            shared.partial_chunks.extend(active.backend.close());
        }
    }
}

impl Stage {
    fn push(&mut self, part: &[u8]) {
        match self {
            Stage::Gathering { upload } | Stage::Waiting { upload, .. } => upload.push(part),
            Stage::Active(active) if active.takes_body => active.backend.upload.push(part),
            Stage::Active(active) => active.thrown_away += part.len(),
        }
    }
}

impl Active {
    /// Writes to the backend. If the backend has stopped reading, the rest of the body is thrown away: the backend
    /// replies without it.
    fn send(&mut self, ended: bool) {
        if self.takes_body && self.backend.send(ended).is_err() {
            self.takes_body = false;
            self.backend.upload.abandon();
        }
    }
}
