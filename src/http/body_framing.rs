//! Body framing: incremental decoders for Content-Length and chunked bodies, and the chunk encoder to the backend.
//!
//! No I/O: bytes in, bytes out, in pieces of any size. The decoder is strict: if the next hop read a body differently,
//! a request could be smuggled inside it. The encoder knows whether a chunk is partly written. tiny_http's chunked
//! reader takes an end *inside* a chunk for the end of the body, and reports only an end between chunks as an error. So
//! a truncated body must end between two chunks.

/// Limit on chunk extensions and trailers of one message, in bytes. No client sends any.
const SPARE_BYTES: u16 = 4096;

/// A malformed chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadChunk;

/// The rest of a body that has not been read yet.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// This many bytes; 0 if the body is complete or there is none.
    Length(u64),
    /// Chunks up to the last one.
    Chunked(Chunked),
}

impl Body {
    /// No body at all.
    pub fn none() -> Body {
        Body::Length(0)
    }

    /// A chunked body, nothing read yet.
    pub fn chunked() -> Body {
        Body::Chunked(Chunked { step: Step::FirstDigit, size: 0, digits: 0, spare: SPARE_BYTES })
    }

    /// Its length, if the head declares one.
    pub fn declared_bytes(&self) -> Option<u64> {
        match self {
            Body::Length(left) => Some(*left),
            Body::Chunked(_) => None,
        }
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        match self {
            Body::Length(left) => *left == 0,
            Body::Chunked(chunked) => chunked.step == Step::Done,
        }
    }

    /// Takes what belongs to this body from the start of `input`, passes the decoded bytes to `sink`, and returns how
    /// many bytes of `input` it took.
    pub fn decode(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<usize, BadChunk> {
        match self {
            Body::Length(left) => {
                let taken = clip(*left, input.len());
                *left -= taken as u64;
                if taken > 0 {
                    sink(&input[..taken]);
                }
                Ok(taken)
            }
            Body::Chunked(chunked) => chunked.decode(input, sink),
        }
    }
}

/// The smaller of both. `left` may exceed usize on 32-bit boards.
fn clip(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}

/// Position in a chunked body.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunked {
    step: Step,
    /// While the size line is read: the size so far. After it: bytes left of the chunk.
    size: u64,
    digits: u8,
    /// Bytes of extensions and trailers that may still come.
    spare: u16,
}

/// What the next byte of a chunked body belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    FirstDigit,
    Digit,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

impl Chunked {
    fn decode(&mut self, input: &[u8], sink: &mut dyn FnMut(&[u8])) -> Result<usize, BadChunk> {
        let mut at = 0;
        while at < input.len() && self.step != Step::Done {
            if self.step == Step::Data {
                let end = at + clip(self.size, input.len() - at);
                sink(&input[at..end]);
                self.size -= (end - at) as u64;
                at = end;
                if self.size == 0 {
                    self.step = Step::DataCr;
                }
            } else {
                self.step = self.next_step(input[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn next_step(&mut self, byte: u8) -> Result<Step, BadChunk> {
        match (self.step, byte) {
            (Step::FirstDigit, _) => {
                self.size = 0;
                self.digits = 0;
                self.digit(byte)
            }
            (Step::Digit, b'\r') | (Step::Extension, b'\r') => Ok(Step::SizeLf),
            (Step::Digit, b';' | b' ' | b'\t') => Ok(Step::Extension),
            (Step::Digit, _) => self.digit(byte),
            (Step::Extension, _) => self.framing_byte(byte, Step::Extension),
            (Step::SizeLf, b'\n') if self.size == 0 => Ok(Step::TrailerStart),
            (Step::SizeLf, b'\n') => Ok(Step::Data),
            (Step::DataCr, b'\r') => Ok(Step::DataLf),
            (Step::DataLf, b'\n') => Ok(Step::FirstDigit),
            (Step::TrailerStart, b'\r') => Ok(Step::EndLf),
            (Step::Trailer, b'\r') => Ok(Step::TrailerLf),
            (Step::TrailerStart | Step::Trailer, _) => self.framing_byte(byte, Step::Trailer),
            (Step::TrailerLf, b'\n') => Ok(Step::TrailerStart),
            (Step::EndLf, b'\n') => Ok(Step::Done),
            _ => Err(BadChunk),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<Step, BadChunk> {
        let value = char::from(byte).to_digit(16).ok_or(BadChunk)?;
        // 16 digits fill a u64.
        if self.digits == 16 {
            return Err(BadChunk);
        }
        self.digits += 1;
        self.size = self.size << 4 | u64::from(value);
        Ok(Step::Digit)
    }

    fn framing_byte(&mut self, byte: u8, step: Step) -> Result<Step, BadChunk> {
        let printable = matches!(byte, b' '..=b'~' | b'\t');
        self.spare = self.spare.checked_sub(1).ok_or(BadChunk)?;
        if printable { Ok(step) } else { Err(BadChunk) }
    }
}

/// Bytes reserved before the body bytes for the size line: 8 hex digits, CR, LF.
const SIZE_LINE: usize = 10;
/// Least growth of the buffer.
const GROWTH_BYTES: usize = 4 << 10;
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Collects body bytes and turns them into one chunk in place. While a chunk is being written nothing may be added: this
/// is the back-pressure on the client.
#[derive(Debug, Default)]
pub struct ChunkWriter {
    buf: Vec<u8>,
    /// `start` is the first byte of the sealed chunk, `at` the next byte to write.
    start: usize,
    at: usize,
    sealed: bool,
    /// The last chunk is sealed, or the request has no body.
    ended: bool,
}

impl ChunkWriter {
    /// A writer for a request without a body: it writes no last chunk.
    pub fn without_body() -> ChunkWriter {
        ChunkWriter { ended: true, ..ChunkWriter::default() }
    }

    /// Adds body bytes. Call only while nothing is pending.
    pub fn push(&mut self, data: &[u8]) {
        debug_assert!(!self.sealed);
        if self.buf.is_empty() {
            self.buf.resize(SIZE_LINE, 0);
        }
        // `extend` alone would double the buffer, and there may be hundreds of them.
        if self.buf.capacity() - self.buf.len() < data.len() {
            self.buf.reserve_exact(data.len().max(GROWTH_BYTES));
        }
        self.buf.extend_from_slice(data);
    }

    /// Memory of the buffer.
    pub fn buffered_bytes(&self) -> usize {
        self.buf.capacity()
    }

    /// Number of body bytes that are not in a sealed chunk yet.
    pub fn unsealed_bytes(&self) -> usize {
        if self.sealed { 0 } else { self.buf.len().saturating_sub(SIZE_LINE) }
    }

    /// Turns the collected bytes into a chunk. `last` appends the last chunk.
    pub fn seal(&mut self, last: bool) {
        if self.sealed || self.ended {
            return;
        }
        let size = self.unsealed_bytes();
        if size > 0 {
            let line = format!("{size:x}\r\n");
            self.start = SIZE_LINE - line.len();
            self.buf[self.start..SIZE_LINE].copy_from_slice(line.as_bytes());
            self.buf.extend_from_slice(b"\r\n");
        } else {
            self.buf.clear();
            self.start = 0;
        }
        if last {
            self.buf.extend_from_slice(LAST_CHUNK);
            self.ended = true;
        }
        self.at = self.start;
        self.sealed = !self.buf.is_empty();
    }

    /// Turns the collected bytes, which are the whole body, into what follows a head with their number. Returns it.
    pub fn seal_whole(&mut self) -> usize {
        let size = self.unsealed_bytes();
        self.start = self.buf.len() - size;
        self.at = self.start;
        self.sealed = size > 0;
        self.ended = true;
        size
    }

    /// Puts the request head before the pending chunk, so that a small request is sent in one write.
    pub fn prepend(&mut self, mut head: Vec<u8>) {
        head.extend_from_slice(self.pending());
        self.buf = head;
        self.start = 0;
        self.at = 0;
        self.sealed = true;
    }

    /// The bytes to write next; empty if there is no sealed chunk.
    pub fn pending(&self) -> &[u8] {
        if self.sealed { &self.buf[self.at..] } else { &[] }
    }

    /// Notes that so many pending bytes were written.
    pub fn advance(&mut self, written: usize) {
        self.at += written;
        if self.at >= self.buf.len() {
            self.buf.clear();
            self.start = 0;
            self.at = 0;
            self.sealed = false;
        }
    }

    /// Whether a chunk, or a whole body, is partly written. If the connection were closed now, tiny_http would take the
    /// body for complete.
    pub fn is_inside_chunk(&self) -> bool {
        self.sealed && self.at > self.start
    }

    /// Discards what was not written, and accepts nothing more.
    pub fn abandon(&mut self) {
        *self = ChunkWriter::without_body();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` cut at `split`; returns the decoded bytes and how many were taken.
    fn decode_split(mut body: Body, input: &[u8], split: usize) -> Result<(Vec<u8>, usize, bool), BadChunk> {
        let mut out = Vec::new();
        let mut taken = 0;
        for part in [&input[..split], &input[split..]] {
            let n = body.decode(part, &mut |data| out.extend_from_slice(data))?;
            taken += n;
            if n < part.len() {
                assert!(body.is_done());
                break;
            }
        }
        Ok((out, taken, body.is_done()))
    }

    #[test]
    fn a_body_of_over_4_gib_is_counted_to_its_last_byte() {
        let bytes = (5 << 30) + 3;
        let mut body = Body::Length(bytes);
        assert_eq!(body.decode(b"some", &mut |_| ()), Ok(4));
        assert_eq!(body, Body::Length(bytes - 4));
        let mut chunked = Body::chunked();
        let start = format!("{bytes:x}\r\nsome");
        assert_eq!(chunked.decode(start.as_bytes(), &mut |_| ()), Ok(start.len()));
        let Body::Chunked(Chunked { size, .. }) = chunked else { unreachable!() };
        assert_eq!(size, bytes - 4);
    }

    #[test]
    fn chunked_bodies_decode_at_every_split() {
        let cases: &[(&[u8], &[u8], usize)] = &[
            (b"0\r\n\r\n", b"", 0),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello", 0),
            (b"5;a=b\r\nhello\r\n0\r\n\r\nGET /", b"hello", 5),
            (b"5 ; x\r\nhello\r\n0\r\n\r\n", b"hello", 0),
            (b"A\r\n0123456789\r\n001\r\n!\r\n00\r\nT: v\r\nU: w\r\n\r\nrest", b"0123456789!", 4),
        ];
        for (input, want, left) in cases {
            for split in 0..=input.len() {
                let (out, taken, done) = decode_split(Body::chunked(), input, split).unwrap();
                assert!(done);
                assert_eq!(&out, want);
                assert_eq!(taken, input.len() - left);
            }
        }
    }

    #[test]
    fn malformed_chunks_fail_at_every_split() {
        let long = [b"1;".to_vec(), vec![b'x'; 5000]].concat();
        let trailers = [b"0\r\n".to_vec(), b"a: b\r\n".repeat(2000)].concat();
        let cases: &[&[u8]] = &[
            b"\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"0x5\r\nhello",
            b" 5\r\nhello",
            b"5\nhello",
            b"5\rhello",
            b"5\r\nhelloX",
            b"5\r\nhello\rX",
            b"5\r\nhello\n",
            b"00000000000000001\r\n",
            b"5;\x00\r\n",
            b"5;\n",
            b"0\r\n\rX",
            b"0\r\nT: v\n",
            &long,
            &trailers,
        ];
        for input in cases {
            for split in 0..=input.len().min(40) {
                assert_eq!(decode_split(Body::chunked(), input, split), Err(BadChunk), "{input:?}");
            }
        }
    }

    #[test]
    fn cut_bodies_are_not_done() {
        let input = b"5\r\nhello\r\n0\r\n\r\n";
        for end in 0..input.len() {
            assert!(!decode_split(Body::chunked(), &input[..end], 0).unwrap().2);
        }
        assert!(!decode_split(Body::Length(6), b"hello", 2).unwrap().2);
    }

    #[test]
    fn lengths_leave_the_next_request() {
        for split in 0..=8 {
            let (out, taken, done) = decode_split(Body::Length(5), b"helloGET", split).unwrap();
            assert_eq!((out.as_slice(), taken, done), (&b"hello"[..], 5, true));
        }
        let mut huge = Body::Length(u64::MAX);
        assert_eq!(huge.decode(b"abc", &mut |_| ()), Ok(3));
        assert_eq!(huge, Body::Length(u64::MAX - 3));
        assert_eq!(Body::none().decode(b"abc", &mut |_| panic!("no data")), Ok(0));
    }

    #[test]
    fn the_largest_chunk_size_is_only_a_number() {
        let mut body = Body::chunked();
        assert_eq!(body.decode(b"ffffffffffffffff\r\nabc", &mut |_| ()), Ok(21));
        assert!(!body.is_done());
    }

    #[test]
    fn written_chunks_decode_to_what_was_pushed() {
        let mut writer = ChunkWriter::default();
        let mut wire = Vec::new();
        for (piece, last) in [(&b"hello"[..], false), (&[b'x'; 70_000], false), (b"", true)] {
            writer.push(piece);
            assert_eq!(writer.unsealed_bytes(), piece.len());
            writer.seal(last);
            while !writer.pending().is_empty() {
                let n = writer.pending().len().min(7);
                wire.extend_from_slice(&writer.pending()[..n]);
                writer.advance(n);
                assert_eq!(writer.is_inside_chunk(), !writer.pending().is_empty());
            }
        }
        let (out, taken, done) = decode_split(Body::chunked(), &wire, 3).unwrap();
        assert_eq!((out.len(), taken, done), (70_005, wire.len(), true));
    }

    #[test]
    fn a_whole_body_follows_its_head_as_it_is() {
        let mut writer = ChunkWriter::default();
        writer.push(b"hel");
        writer.push(b"lo");
        assert_eq!(writer.seal_whole(), 5);
        writer.prepend(b"head".to_vec());
        assert_eq!(writer.pending(), b"headhello");
        writer.advance(1);
        assert!(writer.is_inside_chunk());
        writer.advance(8);
        writer.seal(true);
        assert!(writer.pending().is_empty() && !writer.is_inside_chunk());
        for mut empty in [ChunkWriter::default(), ChunkWriter::without_body()] {
            assert_eq!(empty.seal_whole(), 0);
            empty.prepend(b"head".to_vec());
            assert_eq!(empty.pending(), b"head");
        }
    }

    #[test]
    fn an_empty_writer_seals_nothing_but_the_end() {
        let mut writer = ChunkWriter::default();
        writer.seal(false);
        assert!(writer.pending().is_empty());
        writer.seal(true);
        writer.prepend(b"head".to_vec());
        assert_eq!(writer.pending(), b"head0\r\n\r\n");
        let mut none = ChunkWriter::without_body();
        none.seal(true);
        none.prepend(b"head".to_vec());
        assert_eq!(none.pending(), b"head");
    }
}
