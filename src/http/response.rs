//! Replies. The guard in front gives the connection its framing; a reply that fails on its way is left unfinished,
//! which the guard turns into a reset, so that no client takes it for whole.

use std::io::{self, Write};

use crate::compression::zstd::Encoder;
use crate::error::{Error, Result};

type Wire = Box<dyn Write + Send>;

/// How the content of a reply is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Protocol 11: one zstd frame, and its size beforehand.
    Zstd,
    /// Protocols 8 to 10: as it is.
    Plain,
}

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

    /// Begins a 200 whose content has this length, before it is packed. The head leaves with the first content.
    pub fn stream(self, packing: Packing, bytes: u64) -> ReplyStream {
        match packing {
            Packing::Zstd => self.begin(packing, &size_header(bytes), Framing::Chunked),
            // What old clients are used to, and make their progress bars of.
            Packing::Plain => {
                self.begin(packing, &format!("Content-Length: {bytes}\r\n"), Framing::Length { left: bytes })
            }
        }
    }

    /// As `stream`, where the length is not known yet. Clients use it for progress and do not verify it.
    pub fn stream_of_unknown_length(self, packing: Packing) -> ReplyStream {
        let size = match packing {
            Packing::Zstd => size_header(1),
            Packing::Plain => String::new(),
        };
        self.begin(packing, &size, Framing::Chunked)
    }

    fn begin(self, packing: Packing, size: &str, framing: Framing) -> ReplyStream {
        let chunked = match framing {
            Framing::Chunked => "Transfer-Encoding: chunked\r\n",
            Framing::Length { .. } => "",
        };
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{size}{chunked}\r\n");
        let framed = FramedWriter { out: self.out, framing, pending: head.into_bytes(), bytes: 0 };
        ReplyStream(match packing {
            Packing::Zstd => Content::Zstd(Encoder::new(framed)),
            Packing::Plain => Content::Plain(framed),
        })
    }
}

fn size_header(bytes: u64) -> String {
    format!("anki-original-size: {bytes}\r\n")
}

/// A reply on its way.
pub struct ReplyStream(Content);

enum Content {
    /// What is written goes out in blocks of one frame.
    Zstd(Encoder<FramedWriter>),
    /// What is written goes out as it is.
    Plain(FramedWriter),
}

impl ReplyStream {
    /// Ends the reply; returns its length on the wire. Without this the client sees a broken connection.
    ///
    /// The last block and the end of the reply leave in one piece: clients stop reading at the end of the frame, and
    /// close a connection whose reply has not ended then.
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
        framed.flush().map_err(Error::Disconnected)?;
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

/// How much a reply holds back at the most: a block of the zstd encoder stays below it.
const PENDING_BYTES: usize = 128 * 1024;

/// How the end of a reply is told.
#[derive(Clone, Copy)]
enum Framing {
    /// Each write is one HTTP chunk.
    Chunked,
    /// The head told the length.
    Length { left: u64 },
}

/// What is written leaves (with the head before it) with the next flush, or when enough has come together.
struct FramedWriter {
    out: Wire,
    framing: Framing,
    pending: Vec<u8>,
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
                // The next reply would begin with the rest.
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
        507 => "Insufficient Storage",
        _ => "Internal Server Error",
    }
}
