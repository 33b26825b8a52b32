//! Request bodies: zstd, gzip, and forms.

use std::io::{self, Read, Write};

use ankipi::compression::gzip::Decoder;
use ankipi::files::spool::Spool;
use ankipi::http::body::{Body, BodyLimits, Sent, WireForm};
use ankipi::http::form;
use ankipi::http::form::Fields;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::choice;
use super::input::Input;

const CAPS: BodyLimits = BodyLimits { wire: 1 << 20, decoded: 64 << 10, window: 8 << 20, raised_by: None };

/// A whole body, with the blocks of a large one, after which the decoder is kept.
const KEPT: Sent = Sent { whole: Some(CAPS.wire), more_follow: true };

/// A reader that gives so many bytes at once.
struct Pieces<'d>(&'d [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.1.max(1).min(buf.len()).min(self.0.len());
        buf[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

/// Fails if more comes than the cap allows.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(data);
        assert!(self.0.len() as u64 <= CAPS.decoded);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(body: Body) -> Option<Vec<u8>> {
    let mut sink = Capped(Vec::new());
    body.read_into(&mut sink, |_| unreachable!("it takes everything")).ok()?;
    Some(sink.0)
}

/// Reads it whole and in pieces, which must come to the same.
fn both<T: PartialEq + std::fmt::Debug>(data: &[u8], choice: usize, read: impl Fn(&mut dyn Read) -> T) -> T {
    let piece = [1, 7, 100, 1 << 20][choice % 4];
    let whole = read(&mut &data[..]);
    assert_eq!(whole, read(&mut Pieces(data, piece)));
    whole
}

/// A body of protocol 11: bounded, the same in pieces of any size, whatever the buffers held before, and what the C library
/// makes of it.
pub fn body(data: &[u8]) {
    let (choice, data) = choice(data);
    match choice % 4 {
        0 | 2 => {
            let ours = both(data, choice / 4, |wire| read(Body::zstd(wire, KEPT, CAPS)));
            // Newer releases of the C library refuse frames with reserved bits, which older ones and ruzstd ignore.
            if let Some(theirs) = one_frame(data) {
                assert!(ours == Some(theirs));
            }
        }
        _ if data.len() as u64 <= CAPS.decoded => {
            let packed = zstd::encode_all(data, 1).unwrap();
            let sent = Sent { whole: Some(packed.len() as u64), ..KEPT };
            assert_eq!(read(Body::zstd(&mut &packed[..], sent, CAPS)).as_deref(), Some(data));
        }
        _ => {}
    }
}

/// What the C library makes of exactly one frame that is within our bounds.
fn one_frame(data: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = zstd::Decoder::with_buffer(data).unwrap().single_frame();
    decoder.window_log_max(23).unwrap();
    let mut plain = Vec::new();
    (&mut decoder).take(CAPS.decoded + 1).read_to_end(&mut plain).ok()?;
    let is_whole = decoder.finish().is_empty() && plain.len() as u64 <= CAPS.decoded;
    let is_frame = data.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    (is_whole && is_frame).then_some(plain)
}

/// gzip: the same in pieces of any size, what deflate at once makes of it, and nothing but with the right checksum.
pub fn gzip(data: &[u8]) {
    let (choice, data) = choice(data);
    let piece = [1, 7, 100, 1 << 20][choice / 4 % 4];
    if choice % 4 == 0 {
        assert_eq!(unpack(data, piece), unpack(data, usize::MAX));
        return;
    }
    let mut input = Input(data);
    let (flags, header) = (input.byte() & 0x1f, input.short());
    let (deflated, plain) = match choice % 4 {
        1 => (miniz_oxide::deflate::compress_to_vec(input.0, 6), Some(input.0.to_vec())),
        _ => (input.0.to_vec(), inflated(input.0)),
    };
    let body = plain.clone().unwrap_or_default();
    let good = member(flags, header, &deflated, &body);
    // The header's own parts were built right, so it is the data that decide.
    let expected = plain.filter(|plain| plain.len() as u64 <= CAPS.decoded);
    assert_eq!(unpack(&good, piece).as_ref(), expected.as_ref());
    assert_eq!(unpack(&good, usize::MAX), expected);
    if expected.is_none() {
        // A byte more or less might make it whole.
        return;
    }
    assert_eq!(unpack(&good[..good.len() - 1], piece), None);
    assert_eq!(unpack(&[&good[..], b"\0"].concat(), piece), None);
    let mut bad = good.clone();
    let trailer = good.len() - 1 - choice / 16 % 8;
    bad[trailer] ^= 1 << (choice / 4 % 8);
    assert_eq!(unpack(&bad, piece), None);
}

fn unpack(data: &[u8], piece: usize) -> Option<Vec<u8>> {
    let mut decoder = Decoder::new();
    let mut plain = Vec::new();
    for piece in data.chunks(piece.min(data.len()).max(1)) {
        let taken = decoder.push(piece, &mut |block| {
            plain.extend_from_slice(block);
            if plain.len() as u64 <= CAPS.decoded { Ok(()) } else { Err(()) }
        });
        taken.ok()?;
    }
    decoder.finish().ok()?;
    Some(plain)
}

/// What a whole stream holds, all at once.
fn inflated(data: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; CAPS.decoded as usize + 1];
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, taken, written) = decompress(&mut DecompressorOxide::new(), data, &mut out, 0, flags);
    out.truncate(written);
    (status == TINFLStatus::Done && taken == data.len()).then_some(out)
}

/// One member. `header` is cut up into what the flags announce.
pub fn member(flags: u8, header: &[u8], deflated: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut input = Input(header);
    let mut out = vec![0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 3];
    if flags & 4 != 0 {
        let extra = input.short();
        out.extend_from_slice(&(extra.len() as u16).to_le_bytes());
        out.extend_from_slice(extra);
    }
    for text in [8, 16] {
        if flags & text != 0 {
            out.extend(input.short().iter().filter(|byte| **byte != 0));
            out.push(0);
        }
    }
    if flags & 2 != 0 {
        out.extend_from_slice(&[input.byte(), input.byte()]);
    }
    out.extend_from_slice(deflated);
    out.extend_from_slice(&crc32fast::hash(plain).to_le_bytes());
    out.extend_from_slice(&(plain.len() as u32).to_le_bytes());
    out
}

/// gzip as clients make it.
pub fn gzipped(plain: &[u8]) -> Vec<u8> {
    member(0, b"", &miniz_oxide::deflate::compress_to_vec(plain, 1), plain)
}

const BOUNDARIES: [&str; 4] =
    ["Anki-sync-boundary", "7bd1437e7cb02c73-f37523cd864475f6-dc113439299534f5-a118f7cceae88ef8", "b", "-"];

/// Forms: read alike in pieces of any size, whether the data are streamed or spooled; one that was built right gives
/// back what went in, in any order of its parts.
pub fn form(data: &[u8]) {
    let (choice, data) = choice(data);
    let mut input = Input(data);
    let boundary = *input.pick(&BOUNDARIES);
    if choice % 4 == 0 {
        read_form(input.0, boundary, choice);
        if let Some(boundary) = form::boundary(&String::from_utf8_lossy(input.0)) {
            assert!((1..=70).contains(&boundary.len()) && boundary.len() < input.0.len());
        }
        return;
    }
    let built = Built::of(&mut input, boundary);
    let whole = read_form(&built.form, boundary, choice);
    assert_eq!(whole, built.expected);
    let cut = input.below(built.form.len() + 1);
    // A form may end within a text, such as that which says what the data are, but never within its data.
    if let (Some(cut), Some(whole)) = (read_form(&built.form[..cut], boundary, choice), whole)
        && cut.is_gzip == whole.is_gzip
    {
        assert!(cut.plain.is_none() || cut.plain == whole.plain);
    }
    let mut spoilt = built.form;
    let at = input.below(spoilt.len());
    let end = (at + input.below(8)).min(spoilt.len());
    spoilt.splice(at..end, input.short().iter().copied());
    read_form(&spoilt, boundary, choice);
}

/// What came out of a form.
#[derive(Clone, Debug, Default, PartialEq)]
struct Contents {
    /// hkey, skey, client.
    texts: [Option<String>; 3],
    is_gzip: Option<bool>,
    plain: Option<Vec<u8>>,
}

fn read_form(form: &[u8], boundary: &str, choice: usize) -> Option<Contents> {
    let spooled = both(form, choice / 4, |wire| read_spooled(wire, boundary));
    let streamed = both(form, choice / 4, |wire| read_streamed(wire, boundary));
    if let (Some(spooled), Some(streamed)) = (&spooled, streamed) {
        assert_eq!(streamed, spooled.plain);
    }
    spooled
}

/// As where a field that matters may follow the data.
fn read_spooled(wire: &mut dyn Read, boundary: &str) -> Option<Contents> {
    let mut fields = Fields::default();
    let mut form = WireForm::new(wire, boundary, CAPS);
    let plain = if form.read_fields(&mut fields).ok()? {
        let body =
            form.into_spooled_body(&mut fields, Spool::new(&std::env::temp_dir()), &mut |_| Ok(())).ok()?;
        Some(read(body)?)
    } else {
        None
    };
    let Fields { hkey, skey, client, is_gzip } = fields;
    Some(Contents { texts: [hkey, skey, client], is_gzip, plain })
}

/// As where everything that matters comes before the data. None if it does not, or cannot be read.
fn read_streamed(wire: &mut dyn Read, boundary: &str) -> Option<Option<Vec<u8>>> {
    let mut fields = Fields::default();
    let mut form = WireForm::new(wire, boundary, CAPS);
    if form.read_fields(&mut fields).ok()? {
        Some(Some(read(form.into_body(fields.is_gzip?))?))
    } else {
        Some(None)
    }
}

/// A form that was built right, and what must come out of it.
struct Built {
    form: Vec<u8>,
    expected: Option<Contents>,
}

impl Built {
    fn of(input: &mut Input, boundary: &str) -> Built {
        let mut parts: Vec<(&str, Vec<u8>)> = Vec::new();
        for _ in 0..input.below(8) {
            let name = *input.pick(&["k", "s", "v", "c", "data", "sk", "other", ""]);
            let contents = match (name, input.byte() % 4) {
                ("c", digit) => digit.to_string().into_bytes(),
                ("data", 1) => gzipped(input.short()),
                ("data", 2) => [b"\r\n--", &boundary.as_bytes()[1..], input.short()].concat(),
                _ => input.short().to_vec(),
            };
            let delimiter = format!("\r\n--{boundary}").into_bytes();
            let is_cut = contents.windows(delimiter.len()).any(|window| window == delimiter);
            let contents = if is_cut { Vec::new() } else { contents };
            parts.push((name, contents));
        }
        let mut form = Vec::new();
        for (name, contents) in &parts {
            let (before, quote, after) = *input.pick(&[
                ("Content-Disposition: form-data; name=", "\"", ""),
                ("Content-Disposition: form-data; name=", "\"", "; filename=\"data\"\r\nContent-Type: a/b"),
                ("X: name=\"s\"\r\ncontent-disposition:x;filename=\";name=s\";Name=", "", ""),
                ("CONTENT-DISPOSITION: form-data ;\tname = ", "\"", "; x"),
            ]);
            form.extend(format!("--{boundary}\r\n{before}{quote}{name}{quote}{after}\r\n\r\n").into_bytes());
            form.extend_from_slice(contents);
            form.extend_from_slice(b"\r\n");
        }
        form.extend(format!("--{boundary}--").into_bytes());
        form.extend_from_slice(input.pick::<&[u8]>(&[&b""[..], b"\r\n", b"\r\nmore", b"x"]));
        Built { form, expected: expected(&parts) }
    }
}

fn expected(parts: &[(&str, Vec<u8>)]) -> Option<Contents> {
    let (mut contents, mut packed) = (Contents::default(), None);
    for (name, value) in parts {
        let text = || String::from_utf8(value.clone()).ok().filter(|text| !text.contains("\r\n"));
        let is_new = match *name {
            "k" | "sk" => contents.texts[0].replace(text()?).is_none(),
            "s" => contents.texts[1].replace(text()?).is_none(),
            "v" => contents.texts[2].replace(text()?).is_none(),
            "c" => contents.is_gzip.replace(text()? != "0").is_none(),
            "data" => packed.replace(value).is_none(),
            _ => true,
        };
        is_new.then_some(())?;
    }
    contents.plain = match packed {
        Some(packed) if contents.is_gzip == Some(true) && !packed.is_empty() => {
            Some(unpack(packed, usize::MAX)?)
        }
        other => other.cloned(),
    };
    Some(contents)
}
