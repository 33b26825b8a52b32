//! The client's side of a connection: socket, unread input, unsent output.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Instant;

use crate::http::client_link::Offer;
use crate::server::connections::client_socket::Socket;
use crate::server::connections::pace::Rate;

/// The peer is gone; nothing can be sent any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// What a read from a nonblocking socket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Got {
    /// This many bytes.
    Bytes(usize),
    /// No bytes available now.
    Nothing,
    /// End of the stream, or an error.
    End,
}

/// Reads once from a nonblocking socket.
pub fn read_some(mut socket: impl Read, buf: &mut [u8]) -> Got {
    match socket.read(buf) {
        Ok(0) => Got::End,
        Ok(read) => Got::Bytes(read),
        Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Got::Nothing,
        Err(_) => Got::End,
    }
}

/// Writes once to a nonblocking socket; returns 0 if it takes nothing now.
pub fn write_some(mut socket: impl Write, data: &[u8]) -> Result<usize, Lost> {
    match socket.write(data) {
        Ok(written) => Ok(written),
        Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        Err(_) => Err(Lost),
    }
}

/// A client's socket and buffers. An idle connection holds no buffer.
pub struct Link {
    socket: Socket,
    /// The client's address.
    pub peer: IpAddr,
    /// Bytes read but not used yet: an incomplete head, or a pipelined request.
    pub input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// When the client last took a byte, or when output began to wait.
    progress: Instant,
    /// How fast the client sends and takes bytes.
    pub rate: Rate,
}

/// Output that was sent is dropped from the buffer in blocks of at least this size.
const DROP_SENT_BYTES: usize = 32 << 10;

impl Link {
    /// Wraps a nonblocking socket.
    pub fn new(socket: Socket, peer: IpAddr, now: Instant) -> Link {
        Link {
            socket,
            peer,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            progress: now,
            rate: Rate::new(now),
        }
    }

    /// For poll.
    pub fn fd(&self) -> RawFd {
        self.socket.fd()
    }

    /// Reads once.
    pub fn read(&self, buf: &mut [u8]) -> Got {
        read_some(&self.socket, buf)
    }

    /// Sends what the socket takes now and keeps the rest for `flush`.
    pub fn send(&mut self, data: &[u8], now: Instant) -> Result<(), Lost> {
        let mut rest = data;
        if self.is_flushed() {
            self.progress = now;
            let written = write_some(&self.socket, data)?;
            self.rate.add(written, now);
            rest = &data[written..];
        }
        if self.sent >= DROP_SENT_BYTES {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        // `extend` alone would double the buffer, and there may be hundreds of them.
        self.output.reserve_exact(rest.len());
        self.output.extend_from_slice(rest);
        Ok(())
    }

    /// Sends more of what `send` kept.
    pub fn flush(&mut self, now: Instant) -> Result<(), Lost> {
        while !self.is_flushed() {
            let written = write_some(&self.socket, &self.output[self.sent..])?;
            if written == 0 {
                return Ok(());
            }
            self.sent += written;
            self.progress = now;
            self.rate.add(written, now);
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }

    /// Whether the socket took everything.
    pub fn is_flushed(&self) -> bool {
        self.sent == self.output.len()
    }

    /// Bytes that wait for the client to read.
    pub fn unsent_bytes(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Memory of the buffers.
    pub fn buffered_bytes(&self) -> usize {
        self.input.capacity() + self.output.capacity()
    }

    /// Since when the client has taken no byte; `None` if no output waits.
    pub fn blocked_since(&self) -> Option<Instant> {
        (!self.is_flushed()).then_some(self.progress)
    }

    /// Frees the memory of empty buffers.
    pub fn release_buffers(&mut self) {
        if self.is_flushed() {
            self.output = Vec::new();
            self.sent = 0;
        }
        if self.input.is_empty() {
            self.input = Vec::new();
        }
    }

    /// Shuts down our direction: the client sees the end of the stream.
    pub fn end_output(&self) {
        self.socket.end_output();
    }

    /// A number for the reply of the next request, by which it finds this connection (`http::client_link`). With `offers` it may
    /// go to the client at once, if nothing is in its way.
    pub fn announce(&self, offers: bool) -> Option<u64> {
        let is_free = self.is_flushed() && self.input.is_empty();
        self.socket.link().map(|link| link.announce(offers && is_free))
    }

    /// What has become of that offer.
    pub fn offer(&self) -> Offer {
        self.socket.link().map_or(Offer::None, |link| link.offer())
    }

    /// Takes it back. Returns what it was.
    pub fn withdraw_offer(&self) -> Offer {
        self.socket.link().map_or(Offer::None, |link| link.withdraw_offer())
    }

    /// Makes the close a reset, which the client sees as an error.
    pub fn reset_on_close(&self) {
        self.socket.reset_on_close();
    }
}
