//! Chooses how hard a block is compressed, from how fast the client takes bytes.
//!
//! A write into a socket tells nothing: buffers on the way take hundreds of KB at once. The kernel knows how many bytes the
//! client has acknowledged and how many still wait to be sent. While bytes wait, what is acknowledged is the speed of the
//! link. While none wait, the link could take more: the estimate doubles with each block until some do, up to four times
//! what the client took on average. One burst into an empty buffer is no speed.
//!
//! The choice is the way that brings the block to the client first. A block takes the longer of two times: to compress it,
//! which happens while earlier ones are being sent, and to send it.

use std::time::{Duration, Instant};

use crate::compression::zstd_encoder::Way;
use crate::compression::zstd_encoder::matches::Level;
use crate::os::TcpProgress;

/// A connection fast enough for raw blocks has taken this much before: until then the buffers of the network may have
/// taken it, and not the client.
const PROOF_BYTES: u64 = 256 * 1024;

/// A time of sending after which older times count half.
const MEMORY: Duration = Duration::from_secs(1);

/// How much a doubled estimate counts: as if it had been measured for so long.
const GUESS: Duration = Duration::from_millis(4);

/// The first guess.
const FIRST_BYTES_PER_SEC: u64 = 1_000_000;

/// How much more than it took on average a client may take at most. A reply that becomes a third by compressing, as fast
/// as that can be done, must be able to show that raw blocks would be quicker.
const MOST_FACTOR: u64 = 4;

/// The average is over twice this time at most, and over this time at least.
const AVERAGE: Duration = Duration::from_millis(200);
const LEAST_AVERAGE: Duration = Duration::from_millis(20);

/// More than any link, so that the estimate does not overflow.
const MOST_BYTES_PER_SEC: u64 = 1 << 32;

/// Compressing must save this part of the time of a raw block; it costs processor time.
const LEAST_SAVING: u64 = 5;

/// How much longer `Strong` takes than `Fast`, until it is measured.
const STRONG_FACTOR: u64 = 8;

/// The estimate of one connection's speed. Kept from reply to reply.
#[derive(Debug, Default)]
pub struct LinkSpeed {
    /// Bytes a second; 0 if nothing is known.
    estimate: u64,
    /// Bytes acknowledged while others waited, and how long that took.
    bytes: u64,
    busy: Duration,
    /// Bytes acknowledged and the time of it, whether others waited or not.
    all_bytes: u64,
    all_time: Duration,
    before: Option<Observed>,
    /// Acknowledged bytes that are not of this reply.
    earlier: u64,
    fast: Measured,
    strong: Measured,
}

#[derive(Clone, Copy, Debug)]
struct Observed {
    at: Instant,
    acknowledged: u64,
    is_busy: bool,
}

/// What compressing a block takes, and what it made of the last one.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    nanos: u64,
    packed_bytes: u64,
    raw_bytes: u64,
}

impl LinkSpeed {
    /// Begins a reply: the time since the last one says nothing.
    pub fn begin_reply(&mut self) {
        self.before = None;
    }

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

    /// The way for the next block of `bytes`. So far `written` bytes of the reply were sent.
    pub fn choose(&mut self, progress: TcpProgress, written: u64, now: Instant, bytes: usize) -> Way {
        self.observe(progress, written, now);
        if self.estimate == 0 || self.fast.raw_bytes == 0 {
            return Way::Packed(Level::Fast);
        }
        let bytes = bytes as u64;
        let send = |bytes: u64| bytes.saturating_mul(1_000_000_000) / self.estimate;
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
        if progress.acknowledged >= PROOF_BYTES && packed.saturating_add(raw / LEAST_SAVING) >= raw {
            // Compressing is tried again some time: it may have been slow for another reason.
            self.fast.nanos -= self.fast.nanos / 256;
            Way::Raw
        } else {
            Way::Packed(Level::Fast)
        }
    }

    fn observe(&mut self, progress: TcpProgress, written: u64, now: Instant) {
        let TcpProgress { acknowledged, queued, unsent } = progress;
        let in_kernel = (acknowledged + queued).saturating_sub(self.earlier);
        // What did not reach the kernel waits for it.
        let is_busy = unsent > 0 || (self.before.is_some() && written > in_kernel);
        let Some(before) = self.before.replace(Observed { at: now, acknowledged, is_busy }) else {
            self.earlier = acknowledged + queued;
            return;
        };
        let (taken, took) =
            (acknowledged.saturating_sub(before.acknowledged), now.saturating_duration_since(before.at));
        self.all_bytes += taken;
        self.all_time += took;
        if self.all_time > AVERAGE * 2 {
            self.all_bytes /= 2;
            self.all_time /= 2;
        }
        if !is_busy {
            let most = per_second(self.all_bytes, self.all_time.max(LEAST_AVERAGE)) * MOST_FACTOR;
            let double = self.estimate.max(FIRST_BYTES_PER_SEC) * 2;
            self.estimate = self.estimate.max(double.min(most)).clamp(1, MOST_BYTES_PER_SEC);
            self.busy = GUESS;
            self.bytes = self.estimate / (1000 / GUESS.as_millis() as u64);
        } else if before.is_busy {
            self.bytes += taken;
            self.busy += took;
            self.estimate = per_second(self.bytes, self.busy).clamp(1, MOST_BYTES_PER_SEC);
            if self.busy > MEMORY {
                self.bytes /= 2;
                self.busy /= 2;
            }
        }
    }
}

fn per_second(bytes: u64, took: Duration) -> u64 {
    let micros = took.as_micros().try_into().unwrap_or(u64::MAX).max(1);
    (bytes.saturating_mul(1_000_000) / micros).min(MOST_BYTES_PER_SEC)
}
