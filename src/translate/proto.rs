//! Reads and writes the protobuf wire format (spec, collection-format.md 3.1).

/// The four wire types in use. The other two (groups) do not exist in proto3.
pub const VARINT: u8 = 0;
const FIXED64: u8 = 1;
pub const BYTES: u8 = 2;
pub const FIXED32: u8 = 5;

/// The payload of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Payload<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Fixed64,
    Bytes(&'a [u8]),
}

/// Iterates over the fields of a message in the order of the blob. Ends after the first error.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(blob: &'a [u8]) -> Fields<'a> {
        Fields { rest: blob }
    }

    /// Bytes not yet read.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    fn field(&mut self) -> Option<(u32, Payload<'a>)> {
        let tag = u32::try_from(read_varint(&mut self.rest)?).ok()?;
        let payload = match (tag & 7) as u8 {
            VARINT => Payload::Varint(read_varint(&mut self.rest)?),
            FIXED64 => {
                take(&mut self.rest, 8)?;
                Payload::Fixed64
            }
            BYTES => {
                let len = read_varint(&mut self.rest)?;
                Payload::Bytes(take(&mut self.rest, len)?)
            }
            FIXED32 => {
                let bytes = take(&mut self.rest, 4)?;
                Payload::Fixed32([bytes[0], bytes[1], bytes[2], bytes[3]])
            }
            _ => return None,
        };
        let no = tag >> 3;
        (no > 0).then_some((no, payload))
    }
}

/// The bytes are cut short, or are not a protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Payload<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

/// Reads one varint off the front of `rest`.
pub fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (i, &byte) in rest.iter().take(10).enumerate() {
        // The tenth byte holds bit 63 alone.
        if i == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            *rest = &rest[i + 1..];
            return Some(value);
        }
    }
    None
}

/// Takes `len` bytes off the front of `rest`. A client chose `len`, so it may exceed `usize` on 32-bit boards.
pub fn take<'a>(rest: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    let (bytes, after) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    *rest = after;
    Some(bytes)
}

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_tag(out: &mut Vec<u8>, no: u32, wire_type: u8) {
    put_varint(out, u64::from(no) << 3 | u64::from(wire_type));
}

/// A string, bytes, a packed list or an embedded message.
pub fn put_bytes(out: &mut Vec<u8>, no: u32, bytes: &[u8]) {
    put_tag(out, no, BYTES);
    put_prefixed(out, bytes);
}

/// Writes the length of `bytes`, then `bytes`.
pub fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(blob: &[u8]) -> Result<Vec<(u32, Payload<'_>)>, Malformed> {
        Fields::new(blob).collect()
    }

    #[test]
    fn varints_survive() {
        for value in [0, 1, 127, 128, 300, 1 << 32, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = &bytes[..];
            assert_eq!(read_varint(&mut rest), Some(value));
            assert!(rest.is_empty());
        }
        assert_eq!(read_varint(&mut &[0xff; 10][..]), None, "11 bytes or more");
        assert_eq!(read_varint(&mut &[0x80][..]), None, "cut short");
    }

    #[test]
    fn fields_of_every_wire_type() {
        let mut blob = Vec::new();
        put_tag(&mut blob, 1, VARINT);
        put_varint(&mut blob, 300);
        put_tag(&mut blob, 2, FIXED64);
        blob.extend([0; 8]);
        put_bytes(&mut blob, 255, b"other");
        put_tag(&mut blob, 4, FIXED32);
        blob.extend([1, 2, 3, 4]);
        let fields = vec![
            (1, Payload::Varint(300)),
            (2, Payload::Fixed64),
            (255, Payload::Bytes(b"other")),
            (4, Payload::Fixed32([1, 2, 3, 4])),
        ];
        assert_eq!(read(&blob), Ok(fields));
        for end in 1..blob.len() {
            // Cutting between two fields leaves a valid message, anywhere else does not.
            let whole = [3, 12, 20].contains(&end);
            assert_eq!(read(&blob[..end]).is_ok(), whole, "first {end} bytes");
        }
    }

    #[test]
    fn what_is_no_message() {
        for blob in [
            &b"\x00\x01"[..],                                // field number 0
            b"\x0b\x0c",                                     // a group
            b"\x0f",                                         // wire type 7
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", // a length of 2^64 - 1
            b"\x80\x80\x80\x80\x80\x01\x00",                 // a tag above 32 bits
        ] {
            assert_eq!(read(blob), Err(Malformed), "{blob:x?}");
        }
    }
}
