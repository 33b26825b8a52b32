//! Chooses how hard a block is compressed, from how fast the client takes bytes.
//!
//! A write into a socket tells nothing: buffers on the way take hundreds of KB at once. The kernel knows how many bytes the
//! client has acknowledged, and for how long there were bytes that it had not. One divided by the other is the speed of the
//! link, also where the server sends less than the link could take, and however long the client waits between requests.
//!
//! The choice is the way that brings the reply to the client first. While a block is compressed, the link sends what waits for
//! it. Where that is less than it can send in this time, it would stand still, and a raw block comes first: so a link that is
//! faster than `Fast` gets some blocks raw and the others compressed.

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

/// After this many bytes, and this time, older ones count half.
const MEMORY_BYTES: u64 = 4 << 20;
const MEMORY_MICROS: u64 = 200_000;

/// From this speed on, bytes a second, all is sent raw: on a gigabit LAN a reply is over soon, and processor time counts.
const LAN_BYTES_PER_SEC: u64 = 105_000_000;

/// Compressing must save this part of the time of raw blocks; it costs processor time.
const LEAST_SAVING: u64 = 5;

/// A reply that has this many bytes, and goes on, is a long one.
const LONG_BYTES: u64 = 64 * 1024;

/// What HTTP adds to a block: the size of the chunk and two line ends.
const CHUNK_BYTES: u64 = 8;

/// How much longer `Strong` takes than `Fast`, until it is measured.
const STRONG_FACTOR: u64 = 8;

/// The estimate of one connection's speed. Kept from reply to reply.
#[derive(Debug, Default)]
pub struct LinkSpeed {
    /// The bytes that were acknowledged lately, and how long that took.
    bytes: u64,
    busy_micros: u64,
    before: TcpProgress,
    /// How many bytes were acknowledged when the reply began.
    begun: u64,
    /// How many will be, once the client has all of the reply that was sent so far.
    sent: u64,
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
        let nanos = if took < before { took } else { before + (took - before).min(before) / 8 };
        *measured = Measured { nanos, packed_bytes: packed_bytes as u64, raw_bytes };
    }

    /// Begins a reply. What the last one added is counted now, if it tells enough.
    pub fn begin_reply(&mut self, progress: TcpProgress) {
        self.observe(progress);
        self.before = progress;
        self.begun = progress.acknowledged;
        self.sent = self.begun;
    }

    /// Notes that a block was sent, of `bytes` with its header.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64 + CHUNK_BYTES;
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
        // How long the link will be busy with what was sent. Bytes that travel to a far client do not keep it busy.
        let queue = send(self.sent.saturating_sub(progress.acknowledged))
            .saturating_sub(progress.round_trip_micros.saturating_mul(1000));
        if per_sec >= LAN_BYTES_PER_SEC {
            return Way::Raw;
        }
        // Even with so many blocks raw that the link never stands still, compressing would save too little.
        if fast_work / (LEAST_SAVING - 1) > raw.saturating_sub(fast_send) {
            // Compressing is tried again some time: it may have been slow for another reason.
            self.fast.nanos -= self.fast.nanos / 256;
            return Way::Raw;
        }
        // A fifth more, because reading the block takes time, too.
        if strong_work.saturating_add(strong_work / 5) < fast_send && strong_work < queue {
            return Way::Packed(Level::Strong);
        }
        let stands_still = fast_work.saturating_sub(queue);
        // Twice, because buffers on the way may have taken short replies faster than the link is.
        let is_later = stands_still.saturating_add(fast_send) > raw.saturating_mul(2);
        // After some compressed blocks the reply is taken for a long one, in which the time that a raw block gives will be used.
        let is_long = self.sent - self.begun >= LONG_BYTES;
        if is_later || (is_long && fast_work > fast_send && stands_still > 0) {
            self.fast.nanos -= self.fast.nanos / 16;
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
        if self.bytes > MEMORY_BYTES && self.busy_micros > MEMORY_MICROS {
            self.bytes /= 2;
            self.busy_micros /= 2;
        }
    }
}
