//! Request bodies: socket -> limit on wire bytes -> zstd, or form and gzip -> limit on decoded bytes -> consumer, block
//! by block.

use std::cell::RefCell;
use std::io::{self, BufReader, Read, Write};
use std::rc::Rc;

use crate::compression::{gzip, zstd_decoder};
use crate::error::{Error, Result};
use crate::files::spool::Spool;
use crate::http::form::{Fields, Form};

/// How large a body may be.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// As sent, bytes.
    pub wire: u64,
    /// After decompression, bytes.
    pub decoded: u64,
    /// How much of a zstd window is kept at most, bytes; see `Decoder::new`.
    pub window: u64,
    /// The environment variable that raises both limits, if there is one.
    pub raised_by: Option<&'static str>,
}

impl BodyLimits {
    fn exceeded(&self, what: &str, limit: u64) -> Error {
        let advice = self.raised_by.map(|variable| format!("; {variable} raises it")).unwrap_or_default();
        Error::TooLarge(format!("request body {what} is over the limit of {limit} bytes{advice}"))
    }

    /// Errors if the declared Content-Length is over the limit.
    pub fn check_declared(&self, bytes: Option<u64>) -> Result<()> {
        match bytes {
            Some(bytes) if bytes > self.wire => Err(self.exceeded("as sent", self.wire)),
            _ => Ok(()),
        }
    }
}

/// How large a body was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// As sent, bytes.
    pub wire: u64,
    /// After decompression, bytes.
    pub decoded: u64,
}

/// Size of a block from the decoder to the consumer.
const BLOCK_BYTES: usize = 32 * 1024;

/// The same for a body that arrived whole and is no larger: nearly every body of a small sync. Two buffers of `BLOCK_BYTES`,
/// one on each side of the decoder, would be zeroed for 50 bytes.
const SMALL_BLOCK_BYTES: usize = 2 * 1024;

/// How a body of protocol 11 is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Its length in bytes if it has arrived whole, so that reading it waits for nobody.
    pub whole: Option<u64>,
    /// Another one is likely to follow at once.
    pub more_follow: bool,
}

/// The body of an authenticated request, ready to be decoded.
pub struct Body<'r> {
    content: Content<'r>,
    caps: BodyLimits,
}

enum Content<'r> {
    /// Protocol 11: zstd frames, usually one.
    Zstd { body: &'r mut dyn Read, sent: Sent },
    /// Protocols 8 to 10: a form whose data part is read next.
    Form { form: Box<WireForm<'r>>, is_gzip: bool },
    /// Protocols 8 to 10: the data part as it was sent. It was spooled because fields after it had to be read first.
    Spooled { data: Spool, is_gzip: bool, wire_bytes: u64 },
    /// No body.
    Nothing,
}

impl<'r> Body<'r> {
    /// A body of protocol 11.
    pub fn zstd(body: &'r mut dyn Read, sent: Sent, caps: BodyLimits) -> Body<'r> {
        Body { content: Content::Zstd { body, sent }, caps }
    }

    /// No body.
    pub fn nothing(caps: BodyLimits) -> Body<'r> {
        Body { content: Content::Nothing, caps }
    }

    /// Decodes the whole body into `sink`.
    ///
    /// Errors: `TooLarge` over a limit, `BadRequest` if it cannot be decoded, `Disconnected` if the client is gone. Errors
    /// of the sink are converted by `sink_error`.
    pub fn read_into(
        self,
        sink: &mut dyn Write,
        sink_error: impl FnOnce(io::Error) -> Error,
    ) -> Result<Received> {
        let mut sink = LimitedSink { sink, caps: self.caps, bytes: 0, error: Some(sink_error) };
        let wire_bytes = match self.content {
            Content::Zstd { body, sent } => {
                let (mut small, mut large);
                let is_small = sent.whole.is_some_and(|bytes| bytes <= SMALL_BLOCK_BYTES as u64);
                let block: &mut [u8] = if is_small {
                    small = [0; SMALL_BLOCK_BYTES];
                    &mut small
                } else {
                    large = vec![0; BLOCK_BYTES];
                    &mut large
                };
                let (reader, wire) = wire(body, self.caps);
                let reader = BufReader::with_capacity(block.len(), reader);
                let mut frame =
                    zstd_decoder::Decoder::new(reader, self.caps.window).map_err(|err| wire.fault(err))?;
                if sent.whole.is_some() {
                    frame = frame.in_turn();
                }
                pass_on(&mut frame, block, &|err| wire.fault(err), &mut |block| sink.take(block))?;
                frame.keep_for_next(sink.bytes, sent.more_follow);
                wire.bytes()
            }
            Content::Form { mut form, is_gzip } => {
                unpack(&mut form.form, is_gzip, &|err| form.wire.fault(err), &mut sink)?;
                form.read_fields(&mut Fields::default())?;
                form.wire.bytes()
            }
            Content::Spooled { mut data, is_gzip, wire_bytes } => {
                let mut reader = data.reader().map_err(spool_error)?;
                unpack(&mut reader, is_gzip, &spool_error, &mut sink)?;
                wire_bytes
            }
            Content::Nothing => 0,
        };
        Ok(Received { wire: wire_bytes, decoded: sink.bytes })
    }

    /// Returns the spool with the body, if it is spooled already and needs no decoding. Media zips are not compressed
    /// again.
    pub fn take_spool(&mut self) -> Option<(Spool, Received)> {
        match std::mem::replace(&mut self.content, Content::Nothing) {
            Content::Spooled { data, is_gzip: false, wire_bytes } => {
                let decoded = data.len();
                Some((data, Received { wire: wire_bytes, decoded }))
            }
            content => {
                self.content = content;
                None
            }
        }
    }
}

/// A form read from the socket, with the limit on wire bytes.
pub struct WireForm<'r> {
    form: Form<LimitedReader<&'r mut dyn Read>>,
    wire: Wire,
}

impl<'r> WireForm<'r> {
    /// A form of which nothing is read yet.
    pub fn new(body: &'r mut dyn Read, boundary: &str, caps: BodyLimits) -> WireForm<'r> {
        let (reader, wire) = wire(body, caps);
        WireForm { form: Form::new(reader, boundary), wire }
    }

    /// Reads fields up to the data part or the end of the form. Returns whether there is a data part.
    pub fn read_fields(&mut self, fields: &mut Fields) -> Result<bool> {
        self.form.read_fields(fields).map_err(|err| self.wire.fault(err))
    }

    /// The body, read straight from the socket. Call when `read_fields` has returned true and no later field is needed.
    pub fn into_body(self, is_gzip: bool) -> Body<'r> {
        let caps = self.wire.caps;
        Body { content: Content::Form { form: Box::new(self), is_gzip }, caps }
    }

    /// The body, spooled so that the fields after it can be read. Call when `read_fields` has returned true.
    /// `before` is called with the length of each block before it is written, and may refuse it.
    pub fn into_spooled_body(
        mut self,
        fields: &mut Fields,
        mut data: Spool,
        before: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Body<'r>> {
        pass_on(&mut self.form, &mut vec![0; BLOCK_BYTES], &|err| self.wire.fault(err), &mut |block| {
            before(block.len())?;
            data.write_all(block).map_err(spooling_error)
        })?;
        self.read_fields(fields)?;
        let content = Content::Spooled {
            data,
            is_gzip: fields.is_gzip.unwrap_or(false),
            wire_bytes: self.wire.bytes(),
        };
        Ok(Body { content, caps: self.wire.caps })
    }
}

/// Reads the source to its end, in blocks of up to the size of `block`, and passes each to `each`.
fn pass_on(
    source: &mut dyn Read,
    block: &mut [u8],
    source_error: &dyn Fn(io::Error) -> Error,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    loop {
        match source.read(block) {
            Ok(0) => return Ok(()),
            Ok(count) => each(&block[..count])?,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(source_error(err)),
        }
    }
}

/// Decodes the data part of a form into the sink. Empty data are accepted even if they should be gzip.
fn unpack<E: FnOnce(io::Error) -> Error>(
    source: &mut dyn Read,
    is_gzip: bool,
    source_error: &dyn Fn(io::Error) -> Error,
    sink: &mut LimitedSink<E>,
) -> Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    if !is_gzip {
        return pass_on(source, &mut block, source_error, &mut |block| sink.take(block));
    }
    let mut gzip = None;
    pass_on(source, &mut block, source_error, &mut |piece| {
        gzip.get_or_insert_with(gzip::Decoder::new).push(piece, &mut |block| sink.take(block)).map_err(
            |fault| match fault {
                gzip::Fault::Format(why) => undecodable(why),
                gzip::Fault::Sink(err) => err,
            },
        )
    })?;
    gzip.map_or(Ok(()), gzip::Decoder::finish).map_err(undecodable)
}

fn undecodable(why: impl std::fmt::Display) -> Error {
    Error::bad(format!("request body cannot be decoded: {why}"))
}

fn spool_error(err: io::Error) -> Error {
    Error::Io("reading", "spooled request".into(), err)
}

fn spooling_error(err: io::Error) -> Error {
    Error::Io("writing", "spooled request".into(), err)
}

/// Passes decoded bytes to the consumer up to the limit.
struct LimitedSink<'s, E> {
    sink: &'s mut dyn Write,
    caps: BodyLimits,
    bytes: u64,
    /// Converts an error of the sink. Decoding stops at the first one.
    error: Option<E>,
}

impl<E: FnOnce(io::Error) -> Error> LimitedSink<'_, E> {
    fn take(&mut self, block: &[u8]) -> Result<()> {
        self.bytes += block.len() as u64;
        if self.bytes > self.caps.decoded {
            return Err(self.caps.exceeded("when unpacked", self.caps.decoded));
        }
        self.sink.write_all(block).map_err(|err| match self.error.take() {
            Some(error) => error(err),
            None => Error::Disconnected(err),
        })
    }
}

/// Puts the limit on wire bytes on a body.
fn wire(body: &mut dyn Read, caps: BodyLimits) -> (LimitedReader<&mut dyn Read>, Wire) {
    let state = Rc::new(RefCell::new(WireState::default()));
    (LimitedReader { inner: body, left: caps.wire, state: state.clone() }, Wire { state, caps })
}

/// How many bytes were read from the socket, and why reading failed.
struct Wire {
    state: Rc<RefCell<WireState>>,
    caps: BodyLimits,
}

impl Wire {
    fn bytes(&self) -> u64 {
        self.state.borrow().bytes
    }

    /// The error to report when a decoder fails: the error of the socket, or the exceeded limit, or else a bad format.
    fn fault(&self, err: io::Error) -> Error {
        match self.state.borrow_mut().failure.take() {
            Some(WireFailure::OverLimit) => self.caps.exceeded("as sent", self.caps.wire),
            Some(WireFailure::Broken(err)) => Error::Disconnected(err),
            None if err.kind() == io::ErrorKind::FileTooLarge => Error::Window(err.to_string()),
            None if err.kind() == io::ErrorKind::ResourceBusy => Error::Busy(err.to_string()),
            None => undecodable(err),
        }
    }
}

#[derive(Default)]
struct WireState {
    bytes: u64,
    failure: Option<WireFailure>,
}

enum WireFailure {
    OverLimit,
    Broken(io::Error),
}

/// Returns an error, not the end of the body, once more than the limit was read. Stores the cause, because the decoder's
/// errors do not contain the error of its source.
struct LimitedReader<R> {
    inner: R,
    left: u64,
    state: Rc<RefCell<WireState>>,
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let failure = match self.inner.read(buf) {
            Ok(count) if count as u64 <= self.left => {
                self.left -= count as u64;
                self.state.borrow_mut().bytes += count as u64;
                return Ok(count);
            }
            Ok(_) => WireFailure::OverLimit,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => return Err(err),
            Err(err) => WireFailure::Broken(err),
        };
        self.state.borrow_mut().failure = Some(failure);
        Err(io::Error::other("the request body ended early"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits_and_timeouts::ZSTD_WINDOW_BYTES;

    const CAPS: BodyLimits =
        BodyLimits { wire: 1000, decoded: 5000, window: ZSTD_WINDOW_BYTES, raised_by: Some("THE_LIMIT") };

    fn read(body: Body) -> Result<Vec<u8>> {
        let mut sink = Vec::new();
        body.read_into(&mut sink, |_| unreachable!("a Vec takes everything"))?;
        Ok(sink)
    }

    fn received(mut wire: &[u8]) -> Result<Vec<u8>> {
        let sent = Sent { whole: Some(wire.len() as u64), ..Sent::default() };
        read(Body::zstd(&mut wire, sent, CAPS))
    }

    /// Reads a form with these data as if its key came before them, and as if it came after.
    fn received_form(data: &[u8], is_gzip: bool) -> Result<Vec<u8>> {
        let c = u8::from(is_gzip);
        let head = b"--x\r\nContent-Disposition: form-data; name=\"data\"\r\n\r\n";
        let tail = format!("\r\n--x\r\nContent-Disposition: form-data; name=\"c\"\r\n\r\n{c}\r\n--x--\r\n");
        let form = [head, data, tail.as_bytes()].concat();
        let (mut wire, mut again) = (&form[..], &form[..]);
        let dir = tempfile::tempdir().unwrap();
        let mut streamed = WireForm::new(&mut wire, "x", CAPS);
        assert!(streamed.read_fields(&mut Fields::default())?);
        let streamed = read(streamed.into_body(is_gzip));
        let mut fields = Fields::default();
        let mut spooled = WireForm::new(&mut again, "x", CAPS);
        assert!(spooled.read_fields(&mut fields)?);
        let spooled =
            || read(spooled.into_spooled_body(&mut fields, Spool::new(dir.path()), &mut |_| Ok(()))?);
        let spooled = spooled();
        assert_eq!(format!("{streamed:?}"), format!("{spooled:?}"));
        streamed
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        gzip::tests::member(data, 0, b"")
    }

    fn packed(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 3).unwrap()
    }

    #[test]
    fn a_body_is_decoded_whole() {
        for len in [1, 100, 5000] {
            let data = vec![b'x'; len];
            assert_eq!(received(&packed(&data)).unwrap(), data);
        }
    }

    #[test]
    fn the_data_of_a_form_are_unpacked_whole_whatever_comes_first() {
        for len in [0, 1, 100, 700] {
            let data = vec![b'x'; len];
            assert_eq!(received_form(&data, false).unwrap(), data);
            assert_eq!(received_form(&gzip(&data), true).unwrap(), data);
        }
        assert_eq!(received_form(b"", true).unwrap(), b"");
        let gzipped = gzip(b"text");
        for data in
            [&b"text"[..], &gzipped[1..], &gzipped[..gzipped.len() - 1], &[&gzipped[..], b"x"].concat()]
        {
            assert_eq!(received_form(data, true).unwrap_err().status(), 400);
        }
    }

    #[test]
    fn the_caps_hold_for_forms() {
        for (data, is_gzip) in [(vec![b'x'; 1000], false), (gzip(&[b'x'; 5001]), true)] {
            let err = received_form(&data, is_gzip).unwrap_err();
            assert!(err.status() == 413 && err.to_string().contains("THE_LIMIT"), "{err}");
        }
    }

    #[test]
    fn caps_are_errors_that_name_the_variable() {
        let mut noise = [0; 3000];
        fastrand::Rng::with_seed(1).fill(&mut noise);
        for wire in [packed(&noise), packed(&[b'x'; 5001])] {
            let err = received(&wire).unwrap_err();
            assert!(err.status() == 413 && err.to_string().contains("THE_LIMIT"), "{err}");
        }
    }

    #[test]
    fn what_does_not_decode_is_a_bad_request() {
        let whole = packed(b"hello hello hello");
        let and_junk = [&whole[..], b"x"].concat();
        let mut flipped = zstd::encode_all(&[7u8; 300][..], 3).unwrap();
        flipped[4] ^= 0xff;
        for wire in [&b""[..], b"{}", &whole[..whole.len() - 1], &and_junk, &flipped] {
            assert_eq!(received(wire).unwrap_err().status(), 400, "{wire:?}");
        }
    }

    #[test]
    fn a_checksum_that_does_not_fit_is_a_bad_request() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(b"some text").unwrap();
        let mut wire = encoder.finish().unwrap();
        received(&wire).unwrap();
        *wire.last_mut().unwrap() ^= 1;
        assert_eq!(received(&wire).unwrap_err().status(), 400);
    }

    #[test]
    fn a_declared_window_of_any_size_and_several_frames_are_taken() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(b"some text").unwrap();
        let wire = encoder.finish().unwrap();
        assert_eq!(received(&[&wire[..], &wire].concat()).unwrap(), b"some textsome text");
    }

    #[test]
    fn a_broken_connection_is_not_the_clients_format() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let err = read(Body::zstd(&mut Broken, Sent::default(), CAPS)).unwrap_err();
        assert!(matches!(err, Error::Disconnected(_)), "{err}");
        let err = WireForm::new(&mut Broken, "x", CAPS).read_fields(&mut Fields::default()).unwrap_err();
        assert!(matches!(err, Error::Disconnected(_)), "{err}");
    }
}
