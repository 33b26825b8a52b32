//! Deflate, taken block by block as it comes; the only user of miniz_oxide. Its state is 43 KB, made on first use.

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// Unpacked bytes are handed on in blocks of at most this size.
const BLOCK_BYTES: usize = 32 * 1024;

/// One deflate stream.
pub struct Inflater {
    state: Box<InflateState>,
    out: Vec<u8>,
    is_ended: bool,
}

impl Inflater {
    /// Nothing read yet.
    pub fn new() -> Inflater {
        Inflater {
            state: InflateState::new_boxed(DataFormat::Raw),
            out: vec![0; BLOCK_BYTES],
            is_ended: false,
        }
    }

    /// Whether the stream's end was seen. Without it, it was cut off.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Unpacks the next bytes of the stream into `sink`. Returns how many of them belong to it: all, unless it ends.
    /// `Err(None)` is a stream that cannot be unpacked; any other error is the sink's.
    pub fn push<E>(
        &mut self,
        packed: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, Option<E>> {
        let mut rest = packed;
        while !self.is_ended {
            let step = inflate(&mut self.state, rest, &mut self.out, MZFlush::None);
            rest = &rest[step.bytes_consumed..];
            sink(&self.out[..step.bytes_written])?;
            match step.status {
                Ok(MZStatus::StreamEnd) => self.is_ended = true,
                // There may be more to come without more input, and a call may do nothing but hand that out.
                Ok(_) if step.bytes_written > 0 || step.bytes_consumed > 0 => {}
                Ok(_) | Err(MZError::Buf) if rest.is_empty() => break,
                _ => return Err(None),
            }
        }
        Ok(packed.len() - rest.len())
    }
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater::new()
    }
}
