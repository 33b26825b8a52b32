//! Replies. If a reply fails midway, it is left incomplete. The connection layer then resets the client's connection, so that no
//! client takes it for complete. It sees that by the end of the backend connection, or, where that is kept for the next
//! request, by bytes that cannot follow (`Wire`).

use std::io::{self, Write};

use crate::compression::zstd_encoder::{Encoder, Link};
use crate::error::{Error, Result};
use crate::http::client_link::ReplyLink;
use crate::http::request_head;

/// The backend connection of one reply.
struct Wire {
    out: Box<dyn Write + Send>,
    /// It stays open after the reply.
    is_kept: bool,
    /// The reply was sent to its end.
    is_complete: bool,
    /// The client's connection, which may take a small reply at once.
    client: Option<ReplyLink>,
}

/// No head, and no chunk, begins so.
const BROKEN_REPLY: &[u8] = b"\r\n\r\n";

impl Wire {
    fn send(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.write_all(data).and_then(|()| self.out.flush())
    }

    /// Sends a whole reply that tells its end: to the client at once, where the connection layer has offered that.
    fn send_whole(&mut self, reply: &[u8]) -> io::Result<()> {
        // As the connection layer would forward it.
        let (head, body) = reply.split_at(request_head::reply_end(reply).map_or(0, |end| end - 2));
        match &self.client {
            Some(client) if client.send_whole(head, request_head::KEPT_CLIENT, body) => Ok(()),
            _ => self.send(reply),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.is_kept && !self.is_complete {
            // An error means that the connection has ended, which tells the same.
            let _ = self.send(BROKEN_REPLY);
        }
    }
}

/// How the content of a reply is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Protocol 11: one zstd frame, and a header with the uncompressed size.
    Zstd,
    /// Protocols 8 to 10: not compressed.
    Plain,
}

/// Sends the reply to one request.
pub struct Responder {
    out: Wire,
    head_only: bool,
    /// Header lines for every reply, each ended by CRLF.
    headers: String,
    /// Tells the speed of the connection; `None` if it is unknown.
    link: Option<ReplyLink>,
}

impl Responder {
    pub(crate) fn new(out: Box<dyn Write + Send>, head_only: bool, headers: String) -> Responder {
        let out = Wire { out, is_kept: false, is_complete: false, client: None };
        Responder { out, head_only, headers, link: None }
    }

    /// Sends it over a backend connection that is kept for the next request, or to `client` at once where that is offered.
    pub(super) fn on_kept_connection(mut self, is_kept: bool, client: Option<ReplyLink>) -> Responder {
        self.out.is_kept = is_kept;
        self.out.client = client;
        self
    }

    /// Sends it over this connection, whose speed decides how it is compressed.
    pub(super) fn with_link(self, link: Option<ReplyLink>) -> Responder {
        Responder { link, ..self }
    }

    /// Answers the question of a browser whether a page may send a request here.
    pub fn preflight(self) -> Result<()> {
        self.whole(
            200,
            "Access-Control-Allow-Methods: POST, GET, HEAD\r\nAccess-Control-Allow-Headers: anki-sync, content-type\r\n\
             Access-Control-Max-Age: 86400\r\n",
            "",
        )
    }

    /// Answers with a text of known length.
    pub fn text(self, status: u16, content_type: &str, body: &str) -> Result<()> {
        self.whole(status, &format!("Content-Type: {content_type}\r\n"), body)
    }

    /// Answers a monitor, and tells what the clock of this machine says, in seconds since 1970.
    pub fn health(self, status: u16, body: &str, now: i64) -> Result<()> {
        self.whole(status, &format!("Content-Type: text/plain\r\nAnkipi-Time: {now}\r\n"), body)
    }

    /// Answers 405; `allow` lists the methods of the path.
    pub fn method_not_allowed(self, allow: &str) -> Result<()> {
        self.whole(405, &format!("Allow: {allow}\r\nContent-Type: text/plain\r\n"), "405\n")
    }

    fn whole(mut self, status: u16, headers: &str, body: &str) -> Result<()> {
        let head = format!(
            "HTTP/1.1 {status} {}\r\n{headers}{}Content-Length: {}\r\n\r\n",
            reason(status),
            self.headers,
            body.len()
        );
        let body = if self.head_only { "" } else { body };
        self.out.send(&[head.as_bytes(), body.as_bytes()].concat()).map_err(Error::Disconnected)?;
        self.out.is_complete = true;
        Ok(())
    }

    /// Begins a reply with status 200. `bytes` is the length before compression. The head is sent with the first content.
    pub fn stream(self, packing: Packing, bytes: u64) -> ReplyStream {
        match packing {
            Packing::Zstd => self.begin(packing, &size_header(bytes), Framing::Chunked),
            // An incomplete one would not be noticed on a connection that stays open.
            Packing::Plain if self.out.is_kept => self.begin(packing, "", Framing::Chunked),
            // Old clients use Content-Length for their progress bars.
            Packing::Plain => {
                self.begin(packing, &format!("Content-Length: {bytes}\r\n"), Framing::Length { left: bytes })
            }
        }
    }

    /// As `stream`, where the length is not known yet: announces `likely_bytes`. Anki's own clients use the size for
    /// progress only, and need some number.
    pub fn stream_of_unknown_length(self, packing: Packing, likely_bytes: u64) -> ReplyStream {
        let size = match packing {
            Packing::Zstd => size_header(likely_bytes),
            Packing::Plain => String::new(),
        };
        self.begin(packing, &size, Framing::Chunked)
    }

    fn begin(self, packing: Packing, size: &str, framing: Framing) -> ReplyStream {
        let chunked = match framing {
            Framing::Chunked => "Transfer-Encoding: chunked\r\n",
            Framing::Length { .. } => "",
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{}{size}{chunked}\r\n",
            self.headers
        );
        let pending = head.into_bytes();
        let framed = FramedWriter { out: self.out, framing, pending, is_begun: false, bytes: 0 };
        ReplyStream(match packing {
            Packing::Zstd => {
                let link = self.link.map(|link| Box::new(link) as Box<dyn Link>);
                Content::Zstd(Box::new(Encoder::new(framed, link)))
            }
            Packing::Plain => Content::Plain(framed),
        })
    }
}

fn size_header(bytes: u64) -> String {
    format!("anki-original-size: {bytes}\r\n")
}

/// A reply that is being sent.
pub struct ReplyStream(Content);

enum Content {
    /// Compressed as blocks of one frame.
    Zstd(Box<Encoder<FramedWriter>>),
    /// Sent as it is.
    Plain(FramedWriter),
}

impl ReplyStream {
    /// Ends the reply; returns its length on the wire. Without this the client sees a broken connection.
    ///
    /// The last block and the last chunk are sent in one write: clients stop reading at the end of the frame, and close
    /// the connection if the reply is not complete by then.
    pub fn finish(self) -> Result<u64> {
        let mut framed = match self.0 {
            Content::Zstd(frame) => frame.finish().map_err(Error::Disconnected)?,
            Content::Plain(framed) => framed,
        };
        match framed.framing {
            Framing::Chunked => framed.pending.extend_from_slice(b"0\r\n\r\n"),
            Framing::Length { left: 0 } => {}
            Framing::Length { left } => return Err(Error::Broken(format!("a reply lacks {left} bytes"))),
        }
        let FramedWriter { out, pending, is_begun, .. } = &mut framed;
        let sent = if *is_begun { out.send(pending) } else { out.send_whole(pending) };
        sent.map_err(Error::Disconnected)?;
        out.is_complete = true;
        Ok(framed.bytes)
    }
}

impl Write for ReplyStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Content::Zstd(frame) => frame.write(data),
            Content::Plain(framed) => framed.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Content::Zstd(frame) => frame.flush(),
            Content::Plain(framed) => framed.flush(),
        }
    }
}

/// Bytes of a reply after which the buffer is sent.
const PENDING_BYTES: usize = 128 * 1024;

/// How the client finds the end of a reply.
#[derive(Clone, Copy)]
enum Framing {
    /// Each write is one HTTP chunk.
    Chunked,
    /// The head has the Content-Length.
    Length { left: u64 },
}

/// Buffers what is written, after the head, until the next flush or until `PENDING_BYTES` are buffered.
struct FramedWriter {
    out: Wire,
    framing: Framing,
    pending: Vec<u8>,
    /// A part of the reply was sent.
    is_begun: bool,
    bytes: u64,
}

impl Write for FramedWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.framing {
            Framing::Chunked if data.is_empty() => {}
            Framing::Chunked => {
                write!(self.pending, "{:x}\r\n", data.len())?;
                self.pending.extend_from_slice(data);
                self.pending.extend_from_slice(b"\r\n");
            }
            Framing::Length { left } => {
                // The client would take the excess for the start of the next reply.
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or_else(|| io::Error::other("a reply is longer than was announced"))?;
                self.pending.extend_from_slice(data);
            }
        }
        self.bytes += data.len() as u64;
        if self.pending.len() >= PENDING_BYTES {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.is_begun = true;
        self.out.send(&self.pending)?;
        self.pending.clear();
        Ok(())
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_wire::Wire;

    /// What is sent by `work`, on a connection that is kept or not.
    fn sent(is_kept: bool, work: impl FnOnce(Responder)) -> String {
        let wire = Wire::default();
        work(wire.responder().on_kept_connection(is_kept, None));
        wire.text()
    }

    #[test]
    fn a_reply_that_ends_early_cannot_be_taken_for_whole() {
        let begun = |responder: Responder| {
            let mut stream = responder.stream(Packing::Plain, 9);
            stream.write_all(b"five").unwrap();
            stream.flush().unwrap();
            drop(stream);
        };
        assert_eq!(sent(true, drop), "\r\n\r\n");
        assert!(sent(true, begun).ends_with("chunked\r\n\r\n4\r\nfive\r\n\r\n\r\n"));
        // Where the end of the connection tells it, nothing may be added: it could be taken for content.
        assert_eq!(sent(false, drop), "");
        assert!(sent(false, begun).ends_with("Content-Length: 9\r\n\r\nfive"));
    }

    #[test]
    fn nothing_follows_a_whole_reply() {
        for is_kept in [false, true] {
            let text = |responder: Responder| responder.text(200, "text/plain", "pong").unwrap();
            assert!(sent(is_kept, text).ends_with("Content-Length: 4\r\n\r\npong"));
            let streamed = |responder: Responder| {
                let mut stream = responder.stream(Packing::Plain, 4);
                stream.write_all(b"pong").unwrap();
                stream.finish().unwrap();
            };
            let end = if is_kept { "4\r\npong\r\n0\r\n\r\n" } else { "Content-Length: 4\r\n\r\npong" };
            assert!(sent(is_kept, streamed).ends_with(end));
        }
    }
}
