//! zstd decoder for request bodies of protocol 11; the only user of ruzstd. The encoder is `compression::zstd_encoder`.

use std::io::{self, BufRead, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::limits_and_timeouts::at_most::{AtMost, Permit};
use crate::limits_and_timeouts::{
    UNPACKING_AT_ONCE, UNPACKING_FREE_BLOCKS, ZSTD_LARGE_WINDOW_BYTES, ZSTD_WINDOW_BYTES,
};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Maximum frames of one body. Parallel encoders make one for each few MiB.
const MAX_FRAMES: u32 = 1000;

/// Decodes a body of zstd frames, as RFC 8878 defines it: one after the other, skippable ones passed over. Checks the
/// length and the checksum of those that have them.
pub struct Decoder<R: BufRead> {
    source: R,
    frames: Frames,
}

/// What is the same for all sources, so that the program holds it once.
struct Frames {
    decoder: FrameDecoder,
    /// The most that a body was unpacked to with this decoder, in bytes: how much of its buffers was touched.
    most_unpacked: u64,
    /// How much of a window it may keep, in bytes: a power of two.
    most: u64,
    /// Taken while it keeps a large window.
    large: Option<Permit>,
    /// The window of this frame in bytes, if it is larger than what is kept.
    cut_window: Option<u64>,
    /// How many more blocks are decoded before it takes a turn; `None` if it takes none.
    free_blocks: Option<u32>,
    /// Its turn, once it has one.
    turn: Option<Permit>,
    /// Decoded of this frame.
    bytes: u64,
    /// How many frames have begun.
    begun: u32,
    ended: bool,
}

/// Held by the one decoder that keeps more than `ZSTD_WINDOW_BYTES`.
static LARGE_WINDOW: AtMost = AtMost::new(1);

/// Held while a body that is here whole is unpacked to much.
static UNPACKING: AtMost = AtMost::new(UNPACKING_AT_ONCE);

/// The last decoder, reused for the next body, and the most that a body was unpacked to with it. A sync sends many chunks in a
/// row; allocating new pages for each took a fifth of its time. A new decoder for a small body is 20 allocations.
static KEPT: Mutex<Option<(FrameDecoder, u64)>> = Mutex::new(None);

/// A decoder that has unpacked no larger body is kept, unless a window was large.
const SMALL_BYTES: u64 = 64 * 1024;

/// One that has unpacked more is never kept: its buffers may have grown too large.
const MAX_KEPT_BYTES: u64 = 2 * 1024 * 1024;

fn kept() -> MutexGuard<'static, Option<(FrameDecoder, u64)>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the decoder that is kept. Call it when no more requests are expected.
pub fn release_kept() {
    *kept() = None;
}

impl<R: BufRead> Decoder<R> {
    /// Reads the first frame's header. Of a window larger than `ZSTD_WINDOW_BYTES` one decoder at a time keeps up to `most`
    /// bytes, a power of two.
    ///
    /// Errors, here and while reading: of the source; `FileTooLarge` if a block refers farther back than what is kept, or
    /// `ResourceBusy` if another decoder keeps a large window; `InvalidData` if the data is not zstd.
    pub fn new(mut source: R, most: u64) -> io::Result<Decoder<R>> {
        let (mut decoder, most_unpacked) = kept().take().unwrap_or_default();
        decoder.set_max_window_size(ZSTD_LARGE_WINDOW_BYTES);
        let mut frames = Frames {
            decoder,
            most_unpacked,
            most,
            large: None,
            cut_window: None,
            free_blocks: None,
            turn: None,
            bytes: 0,
            begun: 0,
            ended: false,
        };
        if frames.begin(&mut source)? {
            Ok(Decoder { source, frames })
        } else {
            Err(invalid("no zstd frame"))
        }
    }

    /// For a source that is here whole. If it is unpacked to much, it waits for others of which the same holds, so that
    /// few of them have a window in memory.
    pub fn in_turn(mut self) -> Decoder<R> {
        self.frames.free_blocks = Some(UNPACKING_FREE_BLOCKS);
        self
    }

    /// Call after a body that was unpacked to so many bytes: keeps the buffers for the next one, if they are small or if more
    /// bodies are likely to follow at once.
    pub fn keep_for_next(mut self, unpacked: u64, more_follow: bool) {
        self.frames.most_unpacked = self.frames.most_unpacked.max(unpacked);
        if self.frames.is_worth_keeping(more_follow) {
            *kept() = Some((self.frames.decoder, self.frames.most_unpacked));
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.frames.read(&mut self.source, buf)
    }
}

impl Frames {
    fn is_worth_keeping(&self, more_follow: bool) -> bool {
        // The next body would use all of a large window, without the permit for it.
        self.large.is_none() && self.most_unpacked <= if more_follow { MAX_KEPT_BYTES } else { SMALL_BYTES }
    }

    fn read(&mut self, source: &mut dyn BufRead, buf: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !buf.is_empty() {
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decode_block(source)?;
            }
            let count = self.decoder.read(buf)?;
            if count > 0 {
                self.bytes += count as u64;
                return Ok(count);
            }
            self.check_end()?;
            self.ended = !self.begin(source)?;
        }
        Ok(0)
    }

    /// Reads the header of the next frame that is not skippable; false if there is none.
    fn begin(&mut self, source: &mut dyn BufRead) -> io::Result<bool> {
        while !source.fill_buf()?.is_empty() {
            self.begun += 1;
            if self.begun > MAX_FRAMES {
                return Err(invalid("more than 1000 zstd frames"));
            }
            let mut magic = [0; 4];
            source.read_exact(&mut magic)?;
            if matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
                skip_frame(source)?;
                continue;
            }
            let mut header = magic.to_vec();
            let Frames { large, most, .. } = self;
            self.cut_window = read_header(source, &mut header, |window| {
                if window > ZSTD_WINDOW_BYTES && *most > ZSTD_WINDOW_BYTES && large.is_none() {
                    *large = LARGE_WINDOW.try_take();
                }
                if large.is_some() { *most } else { ZSTD_WINDOW_BYTES }
            })?;
            self.decoder.init(&header[..]).map_err(|_| invalid("the header of its zstd frame is wrong"))?;
            self.bytes = 0;
            return Ok(true);
        }
        Ok(false)
    }

    fn decode_block(&mut self, source: &mut dyn BufRead) -> io::Result<()> {
        match &mut self.free_blocks {
            Some(0) if self.turn.is_none() => self.turn = Some(UNPACKING.take()),
            // Whoever waits for a core goes first.
            Some(0) => std::thread::yield_now(),
            None => {}
            Some(blocks) => *blocks -= 1,
        }
        let mut source = KeepError { source, error: None };
        let decoded = self.decoder.decode_blocks(&mut source, BlockDecodingStrategy::UptoBlocks(1));
        // What ruzstd says of damaged data helps nobody, and the texts take 30 KB of the program.
        let Err(_) = decoded else { return Ok(()) };
        if let Some(err) = source.error {
            return Err(err);
        }
        let is_busy = self.large.is_none() && self.most > ZSTD_WINDOW_BYTES;
        Err(match self.cut_window {
            Some(bytes) if is_busy => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("its window has {bytes} bytes, and another upload uses a large one right now"),
            ),
            Some(bytes) => io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "it was compressed with a window of {} MiB, and refers farther back than the {} MiB that this \
                     server keeps in memory",
                    bytes.div_ceil(1 << 20),
                    self.kept_bytes() >> 20
                ),
            ),
            None => invalid("its zstd data is damaged"),
        })
    }

    /// How much of the window of a frame is kept at most.
    fn kept_bytes(&self) -> u64 {
        if self.large.is_some() { self.most } else { ZSTD_WINDOW_BYTES }
    }

    fn check_end(&self) -> io::Result<()> {
        // ruzstd does not check the declared length, as the C library does. 0 also means that none is declared.
        let declared = self.decoder.content_size();
        if declared != 0 && declared != self.bytes {
            return Err(invalid("the frame is not as long as it says"));
        }
        let sent = self.decoder.get_checksum_from_data();
        if sent.is_some() && sent != self.decoder.get_calculated_checksum() {
            return Err(invalid("checksum mismatch"));
        }
        Ok(())
    }
}

/// Remembers an error of the source, of which ruzstd would make one of its own.
struct KeepError<'a> {
    source: &'a mut dyn BufRead,
    error: Option<io::Error>,
}

impl Read for KeepError<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.source.read(buf).map_err(|err| {
            let kind = err.kind();
            // The other kind is tried again.
            if kind != io::ErrorKind::Interrupted {
                self.error = Some(err);
            }
            kind.into()
        })
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn skip_frame(source: &mut dyn BufRead) -> io::Result<()> {
    let mut length = [0; 4];
    source.read_exact(&mut length)?;
    let length = u64::from(u32::from_le_bytes(length));
    let skipped = io::copy(&mut source.take(length), &mut io::sink())?;
    if skipped == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads a frame header after its magic number, and appends it to `header`. `keep` tells how much of such a window is kept.
/// If the frame declares a larger one, returns that, and `header` declares the one that is kept (RFC 8878 3.1.1.1).
fn read_header(
    source: &mut dyn BufRead,
    header: &mut Vec<u8>,
    keep: impl FnOnce(u64) -> u64,
) -> io::Result<Option<u64>> {
    const SINGLE_SEGMENT: u8 = 1 << 5;
    let mut byte = [0];
    source.read_exact(&mut byte)?;
    let [flags] = byte;
    let is_single = flags & SINGLE_SEGMENT != 0;
    let mut window = None;
    if !is_single {
        source.read_exact(&mut byte)?;
        window = Some(byte[0]);
    }
    let id_bytes = [0, 1, 2, 4][usize::from(flags & 3)];
    let size_bytes = [usize::from(is_single), 2, 4, 8][usize::from(flags >> 6)];
    let mut rest = [0; 12];
    let rest = &mut rest[..id_bytes + size_bytes];
    source.read_exact(rest)?;
    let window_bytes = match window {
        Some(byte) => {
            let base = 1u64 << (10 + (byte >> 3));
            base + base / 8 * u64::from(byte & 7)
        }
        None => rest[id_bytes..].iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte)),
    };
    let kept = keep(window_bytes);
    if window_bytes <= kept {
        header.push(flags);
        header.extend(window);
        header.extend_from_slice(rest);
        return Ok(None);
    }
    // A content size of so many bytes has the same form in a frame with a window.
    // The byte of a window is an exponent above 10, and a mantissa of 0.
    let exponent = u8::try_from(kept.ilog2() - 10).unwrap_or_default();
    header.extend([flags & !SINGLE_SEGMENT, exponent << 3]);
    header.extend_from_slice(rest);
    Ok(Some(window_bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Found by fuzzing: a sequence of 256 bytes in a frame of 260.
    #[test]
    fn a_frame_of_another_length_than_it_says_is_refused() {
        let frame = b"\x28\xb5\x2f\xfd\x60\x04\x00\xa5\x00\x00\x68{\"_pad\":null}\x01\x00\x70\xa0\xe6\x17";
        assert!(zstd::decode_all(&frame[..]).is_err());
        let err = Decoder::new(&frame[..], ZSTD_LARGE_WINDOW_BYTES)
            .unwrap()
            .read_to_end(&mut Vec::new())
            .unwrap_err();
        assert!(err.to_string().contains("as long as it says"), "{err}");
        let mut whole = Vec::new();
        Decoder::new(&zstd::encode_all(&[7; 260][..], 1).unwrap()[..], ZSTD_WINDOW_BYTES)
            .unwrap()
            .read_to_end(&mut whole)
            .unwrap();
        assert_eq!(whole, [7; 260]);
    }

    #[test]
    fn buffers_of_one_body_serve_the_next() {
        for text in ["a chunk of rows; ".repeat(50_000), "another; ".repeat(9)] {
            let wire = zstd::encode_all(text.as_bytes(), 3).unwrap();
            let mut decoder = Decoder::new(&wire[..], ZSTD_WINDOW_BYTES).unwrap();
            let mut decoded = String::new();
            decoder.read_to_string(&mut decoded).unwrap();
            assert!(decoded == text);
            decoder.keep_for_next(text.len() as u64, true);
        }
    }

    #[test]
    fn large_buffers_are_kept_in_a_series_alone_and_the_largest_never() {
        static ONE: AtMost = AtMost::new(1);
        let wire = zstd::encode_all(&b"a"[..], 3).unwrap();
        let mut frames = Decoder::new(&wire[..], ZSTD_WINDOW_BYTES).unwrap().frames;
        for (bytes, always, in_series) in [
            (0, true, true),
            (SMALL_BYTES, true, true),
            (SMALL_BYTES + 1, false, true),
            (MAX_KEPT_BYTES, false, true),
            (MAX_KEPT_BYTES + 1, false, false),
        ] {
            frames.most_unpacked = bytes;
            let kept = (frames.is_worth_keeping(false), frames.is_worth_keeping(true));
            assert_eq!(kept, (always, in_series), "{bytes}");
        }
        // Whatever it was unpacked to: its window was large.
        (frames.most_unpacked, frames.large) = (0, ONE.try_take());
        assert!(!frames.is_worth_keeping(true));
    }

    fn decoded(wire: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        Decoder::new(wire, ZSTD_LARGE_WINDOW_BYTES)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    fn encoded(window_log: u32, data: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Bytes that do not compress.
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn a_larger_window_is_served_unless_its_far_end_is_used() {
        let far = noise(9 << 20);
        let (near, rest) = far.split_at(3 << 20);
        let repeated = [near, near, rest].concat();
        for window_log in [24, 27] {
            assert!(decoded(&encoded(window_log, &repeated)).unwrap() == repeated);
        }
        let wire = encoded(27, &[&far[..], &far].concat());
        assert!(wire.len() < far.len() * 3 / 2, "the encoder did not refer back");
        let err = decoded(&wire).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::FileTooLarge);
        assert!(err.to_string().contains("window of 128 MiB"), "{err}");
        // Only one at a time keeps as much as that.
        let wire = encoded(24, &repeated);
        let mut first = Decoder::new(&wire[..], ZSTD_LARGE_WINDOW_BYTES).unwrap();
        first.read_exact(&mut vec![0; 1 << 20]).unwrap();
        assert_eq!(decoded(&wire).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        let usual = Decoder::new(&wire[..], ZSTD_WINDOW_BYTES).unwrap().read_to_end(&mut Vec::new());
        assert_eq!(usual.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // A frame that is its own window, as encoders make it if they know the length.
        assert!(decoded(&zstd::bulk::compress(&repeated, 19).unwrap()).unwrap() == repeated);
    }

    /// Ends with an error of a disk.
    struct Failing<'a>(&'a [u8]);

    impl Read for Failing<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() { Err(io::Error::from_raw_os_error(5)) } else { self.0.read(buf) }
        }
    }

    #[test]
    fn an_error_of_the_source_is_told_as_it_is_and_damage_as_damage() {
        let data = noise(300_000);
        let wire = encoded(20, &data);
        let read = |source: &mut dyn Read| {
            let mut plain = Vec::new();
            let mut decoder = Decoder::new(io::BufReader::new(source), ZSTD_WINDOW_BYTES)?;
            decoder.read_to_end(&mut plain)
        };
        for cut in [2, 5, 1000, 200_000] {
            let err = read(&mut Failing(&wire[..cut])).unwrap_err();
            assert_eq!(err.raw_os_error(), Some(5), "{cut}: {err}");
        }
        // The type of the first block, of which 3 is none.
        let mut damaged = wire.clone();
        let header =
            if damaged[4] >> 6 == 0 { 6 } else { 4 + 2 + [1, 2, 4, 8][usize::from(damaged[4] >> 6)] };
        damaged[header] |= 6;
        assert_eq!(read(&mut &damaged[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn several_and_skippable_frames_are_one_body() {
        let frame = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
        let skippable =
            |len: u32| [&b"\x5a\x2a\x4d\x18"[..], &len.to_le_bytes(), &[7; 300][..len as usize]].concat();
        let wire =
            [skippable(0), frame("one, "), skippable(300), frame(""), frame("two"), skippable(4)].concat();
        assert_eq!(decoded(&wire).unwrap(), b"one, two");
        assert!(decoded(&skippable(9)).is_err(), "no data");
        for cut in 1..wire.len() {
            let whole = [8, 8 + frame("one, ").len()].contains(&cut);
            if let Ok(text) = decoded(&wire[..cut]) {
                assert!(whole || b"one, two".starts_with(&text), "{cut}");
                assert_eq!(zstd::decode_all(&wire[..cut]).ok(), Some(text), "{cut}");
            }
        }
        assert!(decoded(&[frame("x"), b"junk".to_vec()].concat()).is_err());
        assert!(decoded(&skippable(0).repeat(1001)).is_err());
    }
}
