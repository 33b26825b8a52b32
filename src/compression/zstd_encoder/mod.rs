//! zstd encoder: one frame of blocks, each compressed as hard as the client's link makes worthwhile.
//!
//! Why not another encoder: the one of ruzstd makes 2.48 of what level 3 of the C library, which Anki's server uses, makes
//! 3.35, at a third of its speed (README.md of the benchmark), and the C library does not belong into a static binary for
//! eight architectures. Blocks are written by the format alone (RFC 8878); what is checked are round trips through the C
//! library.
//!
//! Each block is sent at once: only decoded bytes reset the clients' stall timeout (sync-protocol.md 2.1). Memory while
//! blocks are compressed: 384 KiB of tables (`Strong` 512), at most 256 KiB of history, and 0.3 MiB for the literals and
//! sequences of a block; 64 KiB while they are sent raw.

mod bits;
mod block;
mod fse;
mod huffman;
pub mod link_speed;
mod matches;

use std::io::{self, Write};
use std::time::Instant;

use link_speed::LinkSpeed;
pub use matches::Level;
use matches::{Matcher, WINDOW_LOG};

use crate::os::TcpProgress;

/// Size of a block, raw or compressed. 128 KiB, the most that the format allows, make nothing smaller.
const BLOCK_BYTES: usize = 64 * 1024;

/// A reply of up to this size fits into one packet, with its head.
const PACKET_BYTES: usize = 1024;

/// A reply of up to this size is compressed also where the link is fast: fewer packets are lost.
const FEW_PACKETS_BYTES: usize = 4 * 1024;

/// Frame header: magic, no flags (no content size, no checksum), the window.
const FRAME_HEADER: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, ((WINDOW_LOG - 10) << 3) as u8];

/// Compressing a shorter block tells little of longer ones.
const LEAST_MEASURED_BYTES: usize = 8 * 1024;

/// The block types of the format.
const RAW: usize = 0;
const COMPRESSED: usize = 2;

const HEADER_BYTES: usize = 3;

/// How to send a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As it is.
    Raw,
    /// Compressed.
    Packed(Level),
}

/// The connection to a client, as far as the kernel tells of it.
pub trait Link: Send {
    /// What the kernel knows now; `None` if it does not tell.
    fn progress(&self) -> Option<TcpProgress>;

    /// Runs `work` on the estimate of its speed.
    fn with_speed(&self, work: &mut dyn FnMut(&mut LinkSpeed));
}

/// What decides how blocks are sent.
enum Rule {
    Always(Way),
    ByLink(Box<dyn Link>),
}

/// Writes one zstd frame.
pub struct Encoder<W: Write> {
    out: W,
    matcher: Matcher,
    rule: Rule,
    wire: Vec<u8>,
    header_is_sent: bool,
    /// Blocks that will be sent raw, because the last ones did not become smaller.
    skips: u32,
    /// Blocks in a row that did not become smaller.
    failures: u32,
}

impl<W: Write> Encoder<W> {
    /// A frame for this client. Without a link everything is compressed, because the speed is unknown (a proxy takes
    /// replies as fast as it gets them, whatever the client does).
    pub fn new(out: W, link: Option<Box<dyn Link>>) -> Encoder<W> {
        let rule = match link {
            Some(link) => {
                if let Some(progress) = link.progress() {
                    link.with_speed(&mut |speed| speed.begin_reply(progress));
                }
                Rule::ByLink(link)
            }
            None => Rule::Always(Way::Packed(Level::Fast)),
        };
        Encoder::with_rule(out, rule)
    }

    /// An encoder that compresses every block, for data that is stored.
    pub fn packing(out: W) -> Encoder<W> {
        Encoder::with_rule(out, Rule::Always(Way::Packed(Level::Fast)))
    }

    /// An encoder that compresses nothing.
    pub fn raw(out: W) -> Encoder<W> {
        Encoder::with_rule(out, Rule::Always(Way::Raw))
    }

    fn with_rule(out: W, rule: Rule) -> Encoder<W> {
        Encoder {
            out,
            matcher: Matcher::new(),
            rule,
            wire: Vec::new(),
            header_is_sent: false,
            skips: 0,
            failures: 0,
        }
    }

    /// Ends the frame and returns the writer. It is not flushed: the last block may still be in its buffer.
    pub fn finish(mut self) -> io::Result<W> {
        self.make_block(true);
        self.out.write_all(&self.wire)?;
        Ok(self.out)
    }

    fn send_block(&mut self) -> io::Result<()> {
        self.make_block(false);
        self.out.write_all(&self.wire)?;
        self.out.flush()?;
        if let Rule::ByLink(link) = &self.rule {
            link.with_speed(&mut |speed| speed.sent(self.wire.len()));
        }
        // A long reply keeps a core busy: whoever waits for one goes first.
        std::thread::yield_now();
        Ok(())
    }

    /// Decides how to send the block.
    fn choose(&mut self, is_last: bool) -> Way {
        let size = self.matcher.block().len();
        if size <= PACKET_BYTES {
            return Way::Raw;
        }
        if self.skips > 0 {
            self.skips -= 1;
            return Way::Raw;
        }
        let mut way = Way::Packed(Level::Fast);
        match &self.rule {
            Rule::Always(way) => return *way,
            // Fewer packets are lost.
            Rule::ByLink(_) if is_last && !self.header_is_sent && size <= FEW_PACKETS_BYTES => {}
            Rule::ByLink(link) => {
                if let Some(progress) = link.progress() {
                    link.with_speed(&mut |speed| way = speed.choose(progress, size));
                }
            }
        }
        way
    }

    /// Makes the next block, with the header of the frame if it is the first one, in `wire`.
    fn make_block(&mut self, is_last: bool) {
        let way = self.choose(is_last);
        self.wire.clear();
        if !std::mem::replace(&mut self.header_is_sent, true) {
            self.wire.extend_from_slice(&FRAME_HEADER);
        }
        let size = self.matcher.block().len();
        let at = self.wire.len();
        self.wire.extend_from_slice(&[0; HEADER_BYTES]);
        let (kind, bytes) = match way {
            Way::Packed(level) if self.pack_block(level, is_last) => {
                self.matcher.next_block();
                (COMPRESSED, self.wire.len() - at - HEADER_BYTES)
            }
            _ => {
                self.wire.extend_from_slice(self.matcher.block());
                self.matcher.skip_block();
                (RAW, size)
            }
        };
        let header = u32::from(is_last) | (kind << 1 | bytes << 3) as u32;
        self.wire[at..at + HEADER_BYTES].copy_from_slice(&header.to_le_bytes()[..HEADER_BYTES]);
    }

    /// Appends the compressed block if that is shorter. Returns whether it did.
    fn pack_block(&mut self, level: Level, is_last: bool) -> bool {
        let started = Instant::now();
        let (size, at) = (self.matcher.block().len(), self.wire.len());
        let last_distances = self.matcher.last_distances();
        self.matcher.search(level, is_last);
        block::write(&self.matcher.literals, &self.matcher.sequences, &mut self.wire);
        let packed = self.wire.len() - at;
        // What saves less than a sixteenth costs time on both sides.
        if packed + size / 16 >= size {
            self.wire.truncate(at);
            self.matcher.set_last_distances(last_distances);
            self.failures = (self.failures + 1).min(4);
            self.skips = 1 << self.failures;
            return false;
        }
        if let Rule::ByLink(link) = &self.rule
            && size >= LEAST_MEASURED_BYTES
        {
            link.with_speed(&mut |speed| speed.compressed(level, started.elapsed(), size, packed));
        }
        self.failures = 0;
        true
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(BLOCK_BYTES - self.matcher.block().len());
        self.matcher.push(&data[..count]);
        if self.matcher.block().len() == BLOCK_BYTES {
            self.send_block()?;
        }
        Ok(count)
    }

    /// Sends the buffered bytes as a block.
    fn flush(&mut self) -> io::Result<()> {
        if self.matcher.block().is_empty() && self.header_is_sent { Ok(()) } else { self.send_block() }
    }
}

#[cfg(test)]
mod tests;
