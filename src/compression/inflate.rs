//! Streaming deflate decoder; the only user of miniz_oxide. Its state takes 43 KB, allocated when a decoder is made.

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// Maximum size of a decoded block.
const BLOCK_BYTES: usize = 32 * 1024;

/// One deflate stream.
pub struct Inflater {
    state: Box<InflateState>,
    out: Vec<u8>,
    is_ended: bool,
}

impl Inflater {
    /// A decoder that has read nothing yet.
    pub fn new() -> Inflater {
        Inflater {
            state: InflateState::new_boxed(DataFormat::Raw),
            out: vec![0; BLOCK_BYTES],
            is_ended: false,
        }
    }

    /// Whether the end of the stream was read. If not, the stream is truncated.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Decodes the next bytes into `sink`. Returns how many of them belong to the stream: all, unless it ends in them.
    /// `Err(None)` means damaged data; `Err(Some(_))` is the sink's error.
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
                // More output may come without more input, and a call may only write output.
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
