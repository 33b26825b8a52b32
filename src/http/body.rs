//! Request bodies: socket -> cap on wire bytes -> zstd -> cap on decoded bytes -> consumer, block by block.

use std::cell::RefCell;
use std::io::{self, BufReader, Read, Write};
use std::rc::Rc;

use super::encoding;
use crate::error::{Error, Result};

/// How large a body may be.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// As sent, bytes.
    pub wire: u64,
    /// After decompression, bytes.
    pub decoded: u64,
    /// The variable that raises both, if there is one.
    pub raised_by: Option<&'static str>,
}

impl Caps {
    fn exceeded(&self, what: &str, limit: u64) -> Error {
        let advice = self.raised_by.map(|variable| format!("; {variable} raises it")).unwrap_or_default();
        Error::TooLarge(format!("request body {what} is over the limit of {limit} bytes{advice}"))
    }

    /// Refuses a body by the length that the client declared.
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

/// Blocks from the decoder to the consumer.
const BLOCK_BYTES: usize = 32 * 1024;

/// Reads a zstd body to its end into `sink`.
///
/// Errors: `TooLarge` at a cap, `BadRequest` for what does not decode, `Disconnected` if the client went away; errors
/// of the sink come back through `sink_error`.
pub fn receive(
    body: &mut dyn Read,
    caps: Caps,
    sink: &mut dyn Write,
    sink_error: impl FnOnce(io::Error) -> Error,
) -> Result<Received> {
    let wire = Rc::new(RefCell::new(WireState::default()));
    let capped = CappedReader { inner: body, left: caps.wire, state: wire.clone() };
    let fault = |err: io::Error| match wire.borrow_mut().failure.take() {
        Some(WireFailure::OverCap) => caps.exceeded("as sent", caps.wire),
        Some(WireFailure::Broken(err)) => Error::Disconnected(err),
        None => Error::bad(format!("request body cannot be decoded: {err}")),
    };
    let mut decoder = encoding::Decoder::new(BufReader::with_capacity(BLOCK_BYTES, capped)).map_err(fault)?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut decoded = 0;
    loop {
        let count = decoder.read(&mut block).map_err(fault)?;
        if count == 0 {
            let wire = wire.borrow().bytes;
            return Ok(Received { wire, decoded });
        }
        decoded += count as u64;
        if decoded > caps.decoded {
            return Err(caps.exceeded("when unpacked", caps.decoded));
        }
        if let Err(err) = sink.write_all(&block[..count]) {
            return Err(sink_error(err));
        }
    }
}

#[derive(Default)]
struct WireState {
    bytes: u64,
    failure: Option<WireFailure>,
}

enum WireFailure {
    OverCap,
    Broken(io::Error),
}

/// Fails, rather than ending early, once more than the cap was read; remembers why, because the decoder's errors do
/// not tell what its source said.
struct CappedReader<R> {
    inner: R,
    left: u64,
    state: Rc<RefCell<WireState>>,
}

impl<R: Read> Read for CappedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let failure = match self.inner.read(buf) {
            Ok(count) if count as u64 <= self.left => {
                self.left -= count as u64;
                self.state.borrow_mut().bytes += count as u64;
                return Ok(count);
            }
            Ok(_) => WireFailure::OverCap,
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

    const CAPS: Caps = Caps { wire: 1000, decoded: 5000, raised_by: Some("THE_LIMIT") };

    fn received(wire: &[u8]) -> Result<Vec<u8>> {
        let mut sink = Vec::new();
        receive(&mut &*wire, CAPS, &mut sink, |_| unreachable!("a Vec takes everything"))?;
        Ok(sink)
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
    fn caps_are_errors_that_name_the_variable() {
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let noise: Vec<u8> = (0..3000).map(|_| noise()).collect();
        for wire in [packed(&noise), packed(&[b'x'; 5001])] {
            let err = received(&wire).unwrap_err();
            assert!(err.status() == 413 && err.to_string().contains("THE_LIMIT"), "{err}");
        }
    }

    #[test]
    fn what_does_not_decode_is_a_bad_request() {
        let whole = packed(b"hello hello hello");
        let mut twice = whole.clone();
        twice.extend_from_slice(&whole);
        let mut flipped = zstd::encode_all(&[7u8; 300][..], 3).unwrap();
        flipped[4] ^= 0xff;
        for wire in [&b""[..], b"{}", &whole[..whole.len() - 1], &twice, &flipped] {
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
    fn a_window_over_eight_megabytes_is_refused_before_it_is_allocated() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(b"some text").unwrap();
        let wire = encoder.finish().unwrap();
        assert_eq!(received(&wire).unwrap_err().status(), 400);
    }

    #[test]
    fn a_broken_connection_is_not_the_clients_format() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let err = receive(&mut Broken, CAPS, &mut io::sink(), |_| unreachable!()).unwrap_err();
        assert!(matches!(err, Error::Disconnected(_)), "{err}");
    }
}
