//! The backend's side of one request: the connection to tiny_http, and reading the reply.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use crate::http::body_framing::{Body, ChunkWriter};
use crate::http::request_head;
use crate::http::request_head::BadReply;
use crate::os::{POLL_IN, POLL_OUT};
use crate::server::connections::buffered_socket::{Got, Link, Lost, read_some, write_some};
use crate::server::connections::kept_backends::BackendStream;

/// Limit on a response head in bytes; ours have a few hundred.
const MAX_REPLY_HEAD: usize = 16 << 10;

/// One request on a connection to the backend.
pub struct Backend {
    stream: BackendStream,
    /// What is still to be written: the request's head and body.
    pub upload: ChunkWriter,
}

impl Backend {
    /// Begins a request on this connection.
    pub fn new(stream: BackendStream, upload: ChunkWriter) -> Backend {
        Backend { stream, upload }
    }

    /// For poll.
    pub fn fd(&self) -> RawFd {
        self.stream.socket.as_raw_fd()
    }

    /// Writes as much of the body as the socket takes; `ended` says that the client has sent all of it.
    pub fn send(&mut self, ended: bool) -> Result<(), Lost> {
        loop {
            if self.upload.pending().is_empty() {
                self.upload.seal(ended);
            }
            if self.upload.pending().is_empty() {
                return Ok(());
            }
            match write_some(&self.stream.socket, self.upload.pending())? {
                0 => return Ok(()),
                written => self.upload.advance(written),
            }
        }
    }

    /// Reads once.
    pub fn read(&self, buf: &mut [u8]) -> Got {
        read_some(&self.stream.socket, buf)
    }

    /// The connection, for another request.
    pub fn into_stream(self) -> BackendStream {
        self.stream
    }

    /// Closes the connection. If a chunk is partly written, returns what must be written before the close.
    pub fn close(self) -> Option<PartialChunk> {
        self.upload.is_inside_chunk().then_some(PartialChunk(self))
    }
}

/// A backend connection whose request was given up while a chunk, or a whole body, is partly written. If it were closed inside
/// of that, tiny_http would take the cut body for complete. So it is written to its end before the close. After a chunk tiny_http
/// then reports an error; a body that had arrived whole is what the client sent.
pub struct PartialChunk(Backend);

impl PartialChunk {
    /// For poll.
    pub fn fd(&self) -> RawFd {
        self.0.fd()
    }

    /// What to poll for. The reply is read and thrown away: a backend that blocks on writing it would not read the chunk.
    pub fn events(&self) -> i16 {
        POLL_IN | POLL_OUT
    }

    /// Reads and writes what the socket allows now.
    pub fn step(&mut self, scratch: &mut [u8]) {
        let ended = self.0.read(scratch) == Got::End;
        match write_some(&self.0.stream.socket, self.0.upload.pending()) {
            Ok(written) if !ended => self.0.upload.advance(written),
            Ok(_) | Err(Lost) => self.0.upload.abandon(),
        }
    }

    /// Whether the connection may be closed.
    pub fn is_finished(&self) -> bool {
        !self.0.upload.is_inside_chunk()
    }
}

/// The facts about a request that decide the form of its reply.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts {
    /// It was HEAD.
    pub is_head: bool,
    /// It was HTTP/1.0.
    pub is_http10: bool,
}

/// Why a reply cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardError {
    /// The backend's reply is not valid HTTP.
    Reply,
    /// The client is gone.
    Client,
}

impl From<Lost> for ForwardError {
    fn from(Lost: Lost) -> ForwardError {
        ForwardError::Client
    }
}

impl From<BadReply> for ForwardError {
    fn from(BadReply: BadReply) -> ForwardError {
        ForwardError::Reply
    }
}

/// Forwards one reply from the backend to the client.
pub struct Reply {
    head: Vec<u8>,
    body: Option<Body>,
    dechunk: bool,
    keep_alive: bool,
    /// Its status is 200.
    is_ok: bool,
    /// More came than the reply.
    has_excess: bool,
}

impl Reply {
    /// Nothing received yet.
    pub fn new() -> Reply {
        Reply {
            head: Vec::new(),
            body: None,
            dechunk: false,
            keep_alive: false,
            is_ok: false,
            has_excess: false,
        }
    }

    /// Whether the client got the head of the reply.
    pub fn is_started(&self) -> bool {
        self.body.is_some()
    }

    /// Whether the client got the whole reply.
    pub fn is_done(&self) -> bool {
        self.body.as_ref().is_some_and(Body::is_done)
    }

    /// Whether the reply told the client that the connection stays open.
    pub fn keeps_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the backend's connection may be used for another request: a whole reply of ours, and nothing else, came.
    /// tiny_http's own refusals, after which it closes, never have status 200.
    pub fn allows_another_request(&self) -> bool {
        self.is_done() && self.is_ok && !self.has_excess
    }

    /// Forwards what the backend sent. `keep_alive` matters only in the call that completes the head.
    pub fn feed(
        &mut self,
        data: &[u8],
        asked: RequestFacts,
        keep_alive: bool,
        link: &mut Link,
        now: Instant,
    ) -> Result<(), ForwardError> {
        if self.is_started() {
            return self.feed_body(data, link, now);
        }
        self.head.extend_from_slice(data);
        while let Some(end) = request_head::reply_end(&self.head) {
            let rest = self.head.split_off(end);
            let head = std::mem::replace(&mut self.head, rest);
            if let Some(reply) = request_head::parse_reply(&head, asked.is_head, asked.is_http10, keep_alive)?
            {
                self.body = Some(reply.body);
                self.dechunk = reply.dechunk;
                self.keep_alive = keep_alive;
                self.is_ok = reply.status == 200;
                return self.feed_first(reply.forward, link, now);
            }
        }
        if self.head.len() > MAX_REPLY_HEAD {
            return Err(ForwardError::Reply);
        }
        Ok(())
    }

    /// Sends the head and what came with it in one write, so that a small reply is one packet.
    fn feed_first(
        &mut self,
        mut forward: Vec<u8>,
        link: &mut Link,
        now: Instant,
    ) -> Result<(), ForwardError> {
        let rest = std::mem::take(&mut self.head);
        self.decode(&rest, &mut |part| forward.extend_from_slice(part))?;
        Ok(link.send(&forward, now)?)
    }

    fn feed_body(&mut self, data: &[u8], link: &mut Link, now: Instant) -> Result<(), ForwardError> {
        let mut sent = Ok(());
        self.decode(data, &mut |part| sent = sent.and_then(|()| link.send(part, now)))?;
        Ok(sent?)
    }

    /// Passes to `forward` what the client gets of `data`: decoded for HTTP/1.0, otherwise with its framing.
    fn decode(&mut self, data: &[u8], forward: &mut dyn FnMut(&[u8])) -> Result<(), ForwardError> {
        let Some(body) = &mut self.body else {
            return Ok(());
        };
        let taken = if self.dechunk {
            body.decode(data, forward).map_err(|_| ForwardError::Reply)?
        } else {
            let taken = body.decode(data, &mut |_| ()).map_err(|_| ForwardError::Reply)?;
            forward(&data[..taken]);
            taken
        };
        self.has_excess |= taken < data.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn backend(socket: UnixStream, upload: ChunkWriter) -> Backend {
        Backend::new(BackendStream::for_one_request(socket), upload)
    }

    /// A backend connection with a partly written body, and its other end.
    fn half_sent() -> (Backend, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut upload = ChunkWriter::default();
        upload.push(&vec![b'x'; 8 << 20]);
        let mut backend = backend(ours, upload);
        backend.send(false).unwrap();
        assert!(backend.upload.is_inside_chunk(), "the kernel took 8 MB");
        (backend, theirs)
    }

    #[test]
    fn a_half_written_chunk_is_finished_before_the_end() {
        let (backend, theirs) = half_sent();
        let mut partial = backend.close().unwrap();
        let (mut wire, mut buf) = (Vec::new(), vec![0; 1 << 20]);
        // The backend writes its reply before it reads the rest.
        assert_eq!(write_some(&theirs, b"HTTP/1.1 403"), Ok(12));
        while !partial.is_finished() {
            partial.step(&mut [0; 100]);
            while let Got::Bytes(read) = read_some(&theirs, &mut buf) {
                wire.extend_from_slice(&buf[..read]);
            }
        }
        drop(partial);
        let mut body = Body::chunked();
        assert_eq!(body.decode(&wire, &mut |_| ()), Ok(wire.len()));
        assert!(wire.ends_with(b"\r\n") && !body.is_done());
        assert_eq!(read_some(&theirs, &mut buf), Got::End);
    }

    #[test]
    fn a_backend_that_closes_ends_its_partial_chunk() {
        let (backend, theirs) = half_sent();
        let mut partial = backend.close().unwrap();
        drop(theirs);
        partial.step(&mut [0; 100]);
        assert!(partial.is_finished());
    }

    #[test]
    fn between_chunks_there_is_no_partial_chunk() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut upload = ChunkWriter::default();
        upload.push(b"hello");
        let mut backend = backend(ours, upload);
        backend.send(false).unwrap();
        assert!(backend.close().is_none());
    }
}
