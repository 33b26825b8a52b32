//! Chooses how hard a block is compressed, from how fast the client takes bytes.
//!
//! A write into a socket tells nothing: buffers on the way take hundreds of KB at once. The kernel knows how many bytes the
//! client has acknowledged, and for how long there were bytes that it had not. One divided by the other is the speed of the
//! link, also where the server sends less than the link could take, and however long the client waits between requests.
//!
//! The choice is the way that brings the block to the client first. A block takes the longer of two times: to compress it,
//! which happens while earlier ones are being sent, and to send it.

use std::time::Duration;

use crate::compression::zstd_encoder::Way;
use crate::compression::zstd_encoder::matches::Level;
use crate::os::TcpProgress;

/// After this many bytes the speed is known: until then the buffers of the network may have taken them, and not the client.
const PROOF_BYTES: u64 = 256 * 1024;

/// A reply of one or two packets shows the delay of the network, and not its speed.
const LEAST_BYTES: u64 = 4096;

/// The kernel counts in steps of 1 to 10 ms, and may tell a short time as none. It counts as this at least.
const STEP_MICROS: u64 = 4000;

/// After this many bytes older ones count half.
const MEMORY_BYTES: u64 = 4 << 20;

/// Compressing must save this part of the time of a raw block; it costs processor time.
const LEAST_SAVING: u64 = 5;

/// How much longer `Strong` takes than `Fast`, until it is measured.
const STRONG_FACTOR: u64 = 8;

/// The estimate of one connection's speed. Kept from reply to reply.
#[derive(Debug, Default)]
pub struct LinkSpeed {
    /// The bytes that were acknowledged lately, and how long that took.
    bytes: u64,
    busy_micros: u64,
    before: TcpProgress,
    fast: Measured,
    strong: Measured,
}

/// What compressing a block takes, and what it made of the last one.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    nanos: u64,
    packed_bytes: u64,
    raw_bytes: u64,
}

impl LinkSpeed {
    /// Notes how a block was compressed.
    pub fn compressed(&mut self, level: Level, took: Duration, raw_bytes: usize, packed_bytes: usize) {
        let measured = match level {
            Level::Fast => &mut self.fast,
            Level::Strong => &mut self.strong,
        };
        let raw_bytes = (raw_bytes as u64).max(1);
        let took = took.as_nanos().try_into().unwrap_or(u64::MAX);
        let before = match measured.raw_bytes {
            0 => took,
            bytes => measured.nanos.saturating_mul(raw_bytes) / bytes,
        };
        // Other threads may have run in between, so a longer time counts less.
        let nanos = if took < before { took } else { before + (took - before) / 8 };
        *measured = Measured { nanos, packed_bytes: packed_bytes as u64, raw_bytes };
    }

    /// Begins a reply. What the last one added is counted now, if it tells enough.
    pub fn begin_reply(&mut self, progress: TcpProgress) {
        self.observe(progress);
        self.before = progress;
    }

    /// The way for the next block of `bytes`.
    pub fn choose(&mut self, progress: TcpProgress, bytes: usize) -> Way {
        self.observe(progress);
        let per_sec = (self.bytes.saturating_mul(1_000_000) / self.busy_micros.max(STEP_MICROS)).max(1);
        if self.bytes < PROOF_BYTES || self.fast.raw_bytes == 0 {
            return Way::Packed(Level::Fast);
        }
        let bytes = bytes as u64;
        let send = |bytes: u64| bytes.saturating_mul(1_000_000_000) / per_sec;
        let of_block = |value: u64, measured: &Measured| value.saturating_mul(bytes) / measured.raw_bytes;
        let fast_work = of_block(self.fast.nanos, &self.fast);
        let fast_send = send(of_block(self.fast.packed_bytes, &self.fast));
        let strong_work = if self.strong.raw_bytes == 0 {
            fast_work.saturating_mul(STRONG_FACTOR)
        } else {
            of_block(self.strong.nanos, &self.strong)
        };
        let raw = send(bytes);
        // A fifth more, because reading the block takes time, too.
        if strong_work.saturating_add(strong_work / 5) < fast_send {
            return Way::Packed(Level::Strong);
        }
        let packed = fast_work.max(fast_send);
        if packed.saturating_add(raw / LEAST_SAVING) >= raw {
            // Compressing is tried again some time: it may have been slow for another reason.
            self.fast.nanos -= self.fast.nanos / 256;
            Way::Raw
        } else {
            Way::Packed(Level::Fast)
        }
    }

    fn observe(&mut self, progress: TcpProgress) {
        let bytes = progress.acknowledged.saturating_sub(self.before.acknowledged);
        if bytes < LEAST_BYTES {
            return;
        }
        self.bytes += bytes;
        self.busy_micros += progress.busy_micros.saturating_sub(self.before.busy_micros);
        self.before = progress;
        if self.bytes > MEMORY_BYTES {
            self.bytes /= 2;
            self.busy_micros /= 2;
        }
    }
}
