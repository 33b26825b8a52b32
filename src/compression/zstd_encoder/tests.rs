use std::io::Read;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;

use super::*;
use crate::compression::zstd_decoder::Decoder;

/// Both decoders must make the same of it.
fn decoded(wire: &[u8], expected: &[u8]) {
    assert!(zstd::decode_all(wire).unwrap() == expected, "the C library reads another text");
    let mut ours = Vec::new();
    Decoder::new(wire, crate::limits_and_timeouts::ZSTD_WINDOW_BYTES)
        .unwrap()
        .read_to_end(&mut ours)
        .unwrap();
    assert!(ours == expected);
}

fn frame(data: &[u8], way: Way, piece: usize) -> Vec<u8> {
    let mut encoder = Encoder::with_rule(Vec::new(), Rule::Always(way));
    for piece in data.chunks(piece) {
        encoder.write_all(piece).unwrap();
    }
    encoder.finish().unwrap()
}

const WAYS: [Way; 3] = [Way::Raw, Way::Packed(Level::Fast), Way::Packed(Level::Strong)];

fn rows(count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|i| format!("row {i} of many, {:x}; ", i.wrapping_mul(2_654_435_761)).into_bytes())
        .collect()
}

/// Noise, runs, text, repetitions from near and far, and alphabets of a few bytes.
fn random_data(random: &mut Rng, text: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    let most = 1 << random.usize(..20);
    let size = random.usize(..most);
    while data.len() < size {
        let count = 1 << random.usize(..14);
        match random.usize(..6) {
            0 => (0..count.min(300)).for_each(|_| data.push(random.u8(..))),
            1 => data.resize(data.len() + count * 8, random.u8(..)),
            2 | 3 => {
                let at = random.usize(..text.len());
                data.extend_from_slice(&text[at..(at + count).min(text.len())]);
            }
            4 if !data.is_empty() => {
                let at = random.usize(..data.len());
                (at..at + count).for_each(|at| data.push(data[at]));
            }
            _ => {
                let symbols = random.u8(1..=7);
                (0..count).for_each(|_| data.push(random.u8(..symbols) * 37));
            }
        }
    }
    data
}

#[test]
fn frames_of_any_length_are_read_by_the_clients_library() {
    let data = rows(40_000);
    for len in [0, 1, 31, 1024, 1025, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 1_000_000] {
        for way in WAYS {
            let wire = frame(&data[..len], way, 10_000);
            decoded(&wire, &data[..len]);
            assert!(
                len < 2000 || way == Way::Raw || wire.len() * 2 < len,
                "{len} by {way:?}: {}",
                wire.len()
            );
        }
    }
}

#[test]
fn anything_comes_back_from_every_level() {
    let text = rows(20_000);
    let mut random = Rng::with_seed(1);
    for _ in 0..if cfg!(debug_assertions) { 20 } else { 2000 } {
        let data = random_data(&mut random, &text);
        for way in WAYS {
            decoded(&frame(&data, way, 1 << random.usize(..18)), &data);
        }
    }
}

#[test]
fn levels_may_change_from_block_to_block() {
    let data = rows(60_000);
    let mut encoder = Encoder::packing(Vec::new());
    for (number, piece) in data.chunks(70_000).enumerate() {
        encoder.write_all(piece).unwrap();
        encoder.rule = Rule::Always(WAYS[number % 3]);
        if number % 4 == 3 {
            encoder.flush().unwrap();
        }
    }
    decoded(&encoder.finish().unwrap(), &data);
}

#[test]
fn noise_is_not_tried_again_and_again() {
    let mut random = Rng::with_seed(2);
    let noise: Vec<u8> = (0..3_000_000).map(|_| random.u8(..)).collect();
    let wire = frame(&noise, Way::Packed(Level::Fast), 100_000);
    decoded(&wire, &noise);
    assert!(wire.len() < noise.len() + 300);
}

#[test]
fn a_flush_sends_what_there_is() {
    let mut encoder = Encoder::packing(Vec::new());
    encoder.write_all(b"O").unwrap();
    encoder.flush().unwrap();
    assert!(encoder.out.ends_with(b"O"));
    encoder.write_all(b"K").unwrap();
    assert_eq!(zstd::decode_all(&encoder.finish().unwrap()[..]).unwrap(), b"OK");
}

/// A connection whose client takes so many bytes a second, on a clock that only writing moves.
#[derive(Default)]
struct Simulated {
    bytes_per_sec: u64,
    written: u64,
    now: Duration,
    waiting: f64,
    busy: Duration,
}

impl Simulated {
    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.busy += time.min(Duration::from_secs_f64(self.waiting / self.bytes_per_sec as f64));
        self.waiting = (self.waiting - self.bytes_per_sec as f64 * time.as_secs_f64()).max(0.0);
    }

    fn progress(&self) -> TcpProgress {
        let step = 4000;
        TcpProgress {
            acknowledged: self.written - self.waiting as u64,
            busy_micros: self.busy.as_micros() as u64 / step * step,
            ..TcpProgress::default()
        }
    }

    /// Writes; waits while more than 500 KB are on the way.
    fn write(&mut self, bytes: u64) {
        self.written += bytes;
        self.waiting += bytes as f64;
        let above = self.waiting - 500e3;
        if above > 0.0 {
            self.pass(Duration::from_secs_f64(above / self.bytes_per_sec as f64));
        }
    }
}

/// What a client gets, bytes and seconds, of data that shrinks to a third: at so many bytes a second, where `Fast` makes 100
/// MB a second and `Strong` 15.
fn simulate(bytes_per_sec: u64, blocks: u32) -> (u64, Duration, u32) {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    let mut link = Simulated { bytes_per_sec, ..Simulated::default() };
    let mut speed = LinkSpeed::default();
    speed.begin_reply(link.progress());
    let mut packed = 0;
    for _ in 0..blocks {
        link.pass(Duration::from_micros(150));
        let way = speed.choose(link.progress(), BLOCK_BYTES);
        let (work, bytes) = match way {
            Way::Raw => (Duration::ZERO, BLOCK),
            Way::Packed(Level::Fast) => (Duration::from_micros(650), BLOCK / 3),
            Way::Packed(Level::Strong) => (Duration::from_micros(4350), BLOCK * 3 / 10),
        };
        if let Way::Packed(level) = way {
            packed += 1;
            speed.compressed(level, work, BLOCK_BYTES, bytes as usize);
        }
        link.pass(work);
        link.write(bytes);
        speed.sent(bytes as usize);
    }
    let rest = Duration::from_secs_f64(link.waiting / bytes_per_sec as f64);
    (link.written, link.now + rest, packed)
}

#[test]
fn a_slow_link_gets_few_bytes_from_the_first_block_on() {
    for megabytes in [1, 2, 8] {
        for blocks in [8, 50, 700] {
            let (bytes, _, packed) = simulate(megabytes * 1_000_000 / 2, blocks);
            assert!(packed >= blocks - blocks / 50, "{megabytes}/2 MB/s: {packed} of {blocks} blocks");
            assert!(bytes * 2 < u64::from(blocks) * BLOCK_BYTES as u64);
        }
    }
}

#[test]
fn at_every_speed_a_reply_ends_about_as_early_as_the_best_way() {
    for megabytes in [1, 4, 10, 20, 50, 100, 200, 1000] {
        let (_, took, _) = simulate(megabytes * 1_000_000, 1000);
        let raw_bytes = 1000.0 * BLOCK_BYTES as f64;
        let send = |bytes: f64| bytes / (megabytes as f64 * 1e6);
        let packed = (1000.0 * 0.0008f64).max(send(raw_bytes / 3.0));
        let best = packed.min(send(raw_bytes).max(0.15));
        assert!(took.as_secs_f64() < best * 1.3, "{megabytes} MB/s: {took:?}, at best {best}");
    }
}

/// Also where all bytes of a reply fit into buffers on the way, so that none wait in the server, and long after the last one.
#[test]
fn short_replies_with_pauses_show_the_speed_of_the_link() {
    for (megabytes, is_packed) in [(2, true), (8, true), (500, false)] {
        let mut link = Simulated { bytes_per_sec: megabytes * 1_000_000, ..Simulated::default() };
        let mut speed = LinkSpeed::default();
        speed.compressed(Level::Fast, Duration::from_micros(650), BLOCK_BYTES, BLOCK_BYTES / 3);
        let mut packed = 0;
        for _ in 0..200 {
            speed.begin_reply(link.progress());
            let way = speed.choose(link.progress(), 13_000);
            link.write(if way == Way::Raw { 13_000 } else { 4_300 });
            packed += u32::from(way != Way::Raw);
            link.pass(Duration::from_millis(30));
        }
        assert_eq!(packed > 100, is_packed, "{megabytes} MB/s: {packed} of 200");
        assert!(!is_packed || packed == 200, "{megabytes} MB/s: {packed} of 200");
    }
}

/// Each of these is on its way for 30 ms, whatever the link could take.
#[test]
fn the_delay_of_small_replies_is_no_speed() {
    let mut speed = LinkSpeed::default();
    speed.compressed(Level::Fast, Duration::from_micros(650), BLOCK_BYTES, BLOCK_BYTES / 3);
    let mut progress = TcpProgress::default();
    for _ in 0..1000 {
        progress = TcpProgress {
            acknowledged: progress.acknowledged + 500,
            busy_micros: progress.busy_micros + 30_000,
            ..progress
        };
        speed.begin_reply(progress);
        assert_eq!(speed.choose(progress, BLOCK_BYTES), Way::Packed(Level::Fast));
    }
    // Then a long one, at 500 MB/s.
    let mut raw = 0;
    for _ in 0..20 {
        raw += u32::from(speed.choose(progress, BLOCK_BYTES) == Way::Raw);
        progress = TcpProgress {
            acknowledged: progress.acknowledged + BLOCK_BYTES as u64,
            busy_micros: progress.busy_micros + 130,
            ..progress
        };
    }
    assert!(raw >= 10, "{raw} of 20 blocks");
}

#[test]
fn a_link_that_is_faster_than_the_encoder_is_kept_busy_by_some_raw_blocks() {
    for megabytes in [50, 75, 95] {
        let (_, took, packed) = simulate(megabytes * 1_000_000, 1000);
        let all_raw = 1000.0 * BLOCK_BYTES as f64 / (megabytes as f64 * 1e6);
        let all_packed = 1000.0 * 0.0008f64;
        let best = all_raw.min(all_packed);
        assert!(
            took.as_secs_f64() < best * 0.9,
            "{megabytes} MB/s: {took:?}, {packed} packed, not mixed {best}"
        );
    }
}

#[test]
fn a_lan_gets_raw_blocks() {
    for megabytes in [115, 2000] {
        let (_, _, packed) = simulate(megabytes * 1_000_000, 1000);
        assert!(packed < 100, "{megabytes} MB/s: {packed} of 1000 blocks");
    }
}

/// An estimate for a link of so many MB a second, where `Fast` takes so many microseconds for a block and makes a third of it.
fn estimate(megabytes: u64, fast_micros: u64) -> (LinkSpeed, TcpProgress) {
    let mut speed = LinkSpeed::default();
    speed.compressed(Level::Fast, Duration::from_micros(fast_micros), BLOCK_BYTES, BLOCK_BYTES / 3);
    let acknowledged = megabytes * 1_000_000;
    let progress = TcpProgress { acknowledged, busy_micros: 1_000_000, ..TcpProgress::default() };
    speed.begin_reply(progress);
    (speed, progress)
}

#[test]
fn what_is_on_its_way_to_a_far_client_keeps_no_link_busy() {
    let (mut speed, near) = estimate(50, 3000);
    speed.sent(200_000);
    assert_eq!(speed.choose(near, BLOCK_BYTES), Way::Packed(Level::Fast));
    let far = TcpProgress { round_trip_micros: 4000, ..near };
    assert_eq!(speed.choose(far, BLOCK_BYTES), Way::Raw);
}

#[test]
fn compressing_hard_delays_no_block_that_the_link_waits_for() {
    let (mut speed, progress) = estimate(1, 600);
    assert_eq!(speed.choose(progress, BLOCK_BYTES), Way::Packed(Level::Fast));
    speed.sent(30_000);
    assert_eq!(speed.choose(progress, BLOCK_BYTES), Way::Packed(Level::Strong));
}

#[test]
fn a_pause_while_a_block_was_compressed_makes_no_raw_replies() {
    let (mut speed, progress) = estimate(80, 600);
    speed.compressed(Level::Fast, Duration::from_millis(20), BLOCK_BYTES, BLOCK_BYTES / 3);
    assert_eq!(speed.choose(progress, 13_000), Way::Packed(Level::Fast));
}

#[test]
fn a_raw_block_does_not_hide_what_was_before_it() {
    let data = rows(5000);
    let (first, second) = (&data[..BLOCK_BYTES], &data[BLOCK_BYTES..2 * BLOCK_BYTES]);
    let mut encoder = Encoder::packing(Vec::new());
    encoder.write_all(first).unwrap();
    encoder.rule = Rule::Always(Way::Raw);
    encoder.write_all(second).unwrap();
    encoder.rule = Rule::Always(Way::Packed(Level::Fast));
    let before = encoder.out.len();
    encoder.write_all(first).unwrap();
    let again = encoder.out.len() - before;
    decoded(&encoder.finish().unwrap(), &[first, second, first].concat());
    assert!(again < 1000, "{again} bytes for the same again");
}

/// A link that the kernel knows, always with the same answer.
struct Known(TcpProgress, Arc<Mutex<LinkSpeed>>);

impl Link for Known {
    fn progress(&self) -> Option<TcpProgress> {
        Some(self.0)
    }

    fn with_speed(&self, work: &mut dyn FnMut(&mut LinkSpeed)) {
        work(&mut self.1.lock().unwrap());
    }
}

#[test]
fn a_small_reply_is_packed_where_that_saves_a_packet() {
    let (speed, _) = estimate(500, 600);
    let speed = Arc::new(Mutex::new(speed));
    let fast = TcpProgress { acknowledged: 1 << 30, ..TcpProgress::default() };
    for (bytes, is_packed) in [(700, false), (4000, true), (13_000, false), (50_000, false)] {
        let data = &rows(5000)[..bytes];
        let mut encoder = Encoder::new(Vec::new(), Some(Box::new(Known(fast, speed.clone()))));
        encoder.write_all(data).unwrap();
        let wire = encoder.finish().unwrap();
        decoded(&wire, data);
        assert_eq!(wire.len() < bytes, is_packed, "{bytes}: {}", wire.len());
    }
}
