//! Replies. The guard in front gives the connection its framing; a reply that fails on its way is left unfinished,
//! which the guard turns into a reset, so that no client takes it for whole.

use std::io::{self, Write};

use super::encoding::Encoder;
use crate::error::{Error, Result};

type Wire = Box<dyn Write + Send>;

/// The way to answer one request.
pub struct Responder {
    out: Wire,
    head_only: bool,
}

impl Responder {
    pub(super) fn new(out: Wire, head_only: bool) -> Responder {
        Responder { out, head_only }
    }

    /// Answers with a text of known length.
    pub fn text(self, status: u16, content_type: &str, body: &str) -> Result<()> {
        self.whole(status, &format!("Content-Type: {content_type}\r\n"), body)
    }

    /// Answers that the path takes other verbs.
    pub fn method_not_allowed(self, allow: &str) -> Result<()> {
        self.whole(405, &format!("Allow: {allow}\r\nContent-Type: text/plain\r\n"), "405\n")
    }

    fn whole(mut self, status: u16, headers: &str, body: &str) -> Result<()> {
        let head = format!(
            "HTTP/1.1 {status} {}\r\n{headers}Content-Length: {}\r\n\r\n",
            reason(status),
            body.len()
        );
        self.out.write_all(head.as_bytes()).map_err(Error::Disconnected)?;
        if !self.head_only {
            self.out.write_all(body.as_bytes()).map_err(Error::Disconnected)?;
        }
        self.out.flush().map_err(Error::Disconnected)
    }

    /// Begins a 200 of protocol 11. Clients use the size for progress and do not verify it.
    pub fn stream(mut self, original_bytes: u64) -> Result<ReplyStream> {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nanki-original-size: {original_bytes}\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        self.out.write_all(head.as_bytes()).and_then(|()| self.out.flush()).map_err(Error::Disconnected)?;
        Ok(ReplyStream {
            frame: Encoder::new(ChunkedWriter { out: self.out, pending: Vec::new(), bytes: 0 }),
        })
    }
}

/// A reply on its way: what is written goes out in zstd blocks.
pub struct ReplyStream {
    frame: Encoder<ChunkedWriter>,
}

impl ReplyStream {
    /// Ends the reply; returns its length on the wire. Without this the client sees a broken connection.
    ///
    /// The last block and the end of the reply leave in one piece: clients stop reading at the end of the frame, and
    /// close a connection whose reply has not ended then.
    pub fn finish(self) -> Result<u64> {
        let mut chunks = self.frame.finish().map_err(Error::Disconnected)?;
        chunks.pending.extend_from_slice(b"0\r\n\r\n");
        chunks.flush().map_err(Error::Disconnected)?;
        Ok(chunks.bytes)
    }
}

impl Write for ReplyStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.frame.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.frame.flush()
    }
}

/// Each write is one HTTP chunk, which leaves with the next flush.
struct ChunkedWriter {
    out: Wire,
    pending: Vec<u8>,
    bytes: u64,
}

impl Write for ChunkedWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if !data.is_empty() {
            write!(self.pending, "{:x}\r\n", data.len())?;
            self.pending.extend_from_slice(data);
            self.pending.extend_from_slice(b"\r\n");
            self.bytes += data.len() as u64;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.pending)?;
        self.pending.clear();
        self.out.flush()
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
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}
