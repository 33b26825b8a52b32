//! gzip decoder for request bodies of protocols 8 to 10: one member, checked by its length and checksum.

use crc32fast::Hasher as Crc32;

use crate::compression::inflate::Inflater;

/// Limit on the header with name, comment and extra field. Clients send none of these.
const MAX_HEADER_BYTES: usize = 1024;

const TRAILER_BYTES: usize = 8;

/// Why a body cannot be unpacked.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault<E> {
    /// It is not exactly one complete gzip member; the text says why.
    Format(&'static str),
    /// The sink returned an error.
    Sink(E),
}

/// Unpacks one member that comes in pieces of any size.
pub struct Decoder {
    header: Vec<u8>,
    header_is_read: bool,
    inflater: Inflater,
    trailer: Vec<u8>,
    crc: Crc32,
    /// Decoded bytes modulo 2^32, like the length in the trailer.
    bytes: u32,
}

impl Decoder {
    /// Nothing read yet.
    pub fn new() -> Decoder {
        Decoder {
            header: Vec::new(),
            header_is_read: false,
            inflater: Inflater::new(),
            trailer: Vec::new(),
            crc: Crc32::new(),
            bytes: 0,
        }
    }

    /// Unpacks the next piece into `sink`.
    pub fn push<E>(
        &mut self,
        piece: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), Fault<E>> {
        let mut rest = self.skip_header(piece).map_err(Fault::Format)?;
        if rest.is_empty() {
            return Ok(());
        }
        let (crc, bytes) = (&mut self.crc, &mut self.bytes);
        let taken = self.inflater.push(rest, &mut |block| {
            crc.update(block);
            *bytes = bytes.wrapping_add(block.len() as u32);
            sink(block)
        });
        rest = match taken {
            Ok(taken) => &rest[taken..],
            Err(None) => return Err(Fault::Format("the gzip data are damaged")),
            Err(Some(err)) => return Err(Fault::Sink(err)),
        };
        self.trailer.extend_from_slice(&rest[..rest.len().min(TRAILER_BYTES + 1)]);
        match self.trailer.len() {
            ..=TRAILER_BYTES => Ok(()),
            _ => Err(Fault::Format("something follows the gzip data")),
        }
    }

    /// Checks that the member was complete, and its checksum and length.
    pub fn finish(self) -> Result<(), &'static str> {
        let Ok(trailer) = <[u8; TRAILER_BYTES]>::try_from(self.trailer) else {
            return Err("the gzip data are cut off");
        };
        let [crc @ .., b0, b1, b2, b3] = trailer;
        let expected = (u32::from_le_bytes(crc), u32::from_le_bytes([b0, b1, b2, b3]));
        if (self.crc.clone().finalize(), self.bytes) == expected {
            Ok(())
        } else {
            Err("the gzip data do not match their checksum")
        }
    }

    /// Takes what belongs to the header from a piece.
    fn skip_header<'p>(&mut self, piece: &'p [u8]) -> Result<&'p [u8], &'static str> {
        if self.header_is_read {
            return Ok(piece);
        }
        let before = self.header.len();
        self.header.extend_from_slice(&piece[..piece.len().min(MAX_HEADER_BYTES - before)]);
        match header_bytes(&self.header)? {
            Some(length) => {
                self.header_is_read = true;
                // The header ends in this piece, so `length` is over `before`.
                Ok(&piece[length - before..])
            }
            None if self.header.len() == MAX_HEADER_BYTES => Err("the gzip header is too long"),
            None => Ok(&[]),
        }
    }
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

/// The length of a gzip header; `None` if it is incomplete.
fn header_bytes(data: &[u8]) -> Result<Option<usize>, &'static str> {
    const HEADER_CHECKSUM: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    const FIXED_BYTES: usize = 10;

    let deflate = [0x1f, 0x8b, 8];
    let known = data.len().min(deflate.len());
    if data[..known] != deflate[..known] {
        return Err("it is not gzip");
    }
    let Some(&flags) = data.get(3) else { return Ok(None) };
    let mut length = FIXED_BYTES;
    if flags & EXTRA != 0 {
        let Some(size) = data.get(length..length + 2) else { return Ok(None) };
        length += 2 + usize::from(u16::from_le_bytes([size[0], size[1]]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let Some(end) = data.get(length..).and_then(|text| text.iter().position(|byte| *byte == 0))
            else {
                return Ok(None);
            };
            length += end + 1;
        }
    }
    if flags & HEADER_CHECKSUM != 0 {
        length += 2;
    }
    Ok((data.len() >= length).then_some(length))
}

#[cfg(test)]
pub(crate) mod tests {
    use miniz_oxide::deflate::compress_to_vec;

    use super::*;

    /// One member with these flags and what they announce.
    pub fn member(data: &[u8], flags: u8, fields: &[u8]) -> Vec<u8> {
        let head = [0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 2, 255];
        let length = (data.len() as u32).to_le_bytes();
        [&head[..], fields, &compress_to_vec(data, 6), &crc32fast::hash(data).to_le_bytes(), &length].concat()
    }

    fn unpack(packed: &[u8], piece_bytes: usize) -> Result<Vec<u8>, &'static str> {
        let mut decoder = Decoder::new();
        let mut unpacked = Vec::new();
        for piece in packed.chunks(piece_bytes) {
            let taken = decoder.push::<()>(piece, &mut |block| {
                unpacked.extend_from_slice(block);
                Ok(())
            });
            match taken {
                Ok(()) => {}
                Err(Fault::Format(why)) => return Err(why),
                Err(Fault::Sink(())) => unreachable!("a Vec takes everything"),
            }
        }
        decoder.finish().map(|()| unpacked)
    }

    #[test]
    fn members_with_any_header_are_unpacked_from_pieces_of_any_size() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
        let headers: [(u8, &[u8]); 5] = [
            (0, b""),
            (1 << 3, b"name\0"),
            (1 << 2 | 1 << 4, b"\x03\0abc\0"),
            (1 << 1, b"xy"),
            (1 << 1 | 1 << 2 | 1 << 3 | 1 << 4, b"\0\0n\0c\0xy"),
        ];
        for (flags, fields) in headers {
            for data in [&data[..], &b"{}"[..], b""] {
                let packed = member(data, flags, fields);
                for piece_bytes in [1, 2, 7, 4096, packed.len()] {
                    assert!(unpack(&packed, piece_bytes).unwrap() == data, "{flags} by {piece_bytes}");
                }
            }
        }
    }

    #[test]
    fn anything_but_one_whole_member_is_refused() {
        let good = member(b"some text, some text", 0, b"");
        for end in 0..good.len() {
            assert!(unpack(&good[..end], 5).is_err(), "cut at {end}");
        }
        for at in [0, 1, 2, good.len() - 8, good.len() - 1] {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            assert!(unpack(&flipped, 5).is_err(), "byte {at}");
        }
        let long_name = member(b"x", 1 << 3, &[b'n'; 5000]);
        for bad in [&b"{}"[..], &[&good[..], &good].concat(), &[&good[..], b"\0"].concat(), &long_name] {
            for piece_bytes in [1, 100, bad.len()] {
                assert!(unpack(bad, piece_bytes).is_err());
            }
        }
    }

    #[test]
    fn what_the_sink_says_comes_through() {
        let mut decoder = Decoder::new();
        let taken = decoder.push(&member(b"text", 0, b""), &mut |_| Err("full"));
        assert_eq!(taken, Err(Fault::Sink("full")));
    }
}
