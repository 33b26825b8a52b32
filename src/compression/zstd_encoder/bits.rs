//! Writes numbers of any width, least significant bit first.

/// Appends bits to bytes.
pub struct BitWriter<'o> {
    out: &'o mut Vec<u8>,
    pending: u64,
    count: u32,
}

impl<'o> BitWriter<'o> {
    /// Continues after the bytes that are there.
    pub fn new(out: &'o mut Vec<u8>) -> BitWriter<'o> {
        BitWriter { out, pending: 0, count: 0 }
    }

    /// Adds the lowest `bits` of `value`; the others must be zero. At most 56 bits may be added between two flushes.
    #[inline(always)]
    pub fn add(&mut self, value: u64, bits: u32) {
        self.pending |= value << self.count;
        self.count += bits;
    }

    /// Moves whole bytes to the output.
    #[inline(always)]
    pub fn flush(&mut self) {
        let bytes = self.count / 8;
        // Always eight bytes, and then back: a copy of fixed length needs no call.
        self.out.extend_from_slice(&self.pending.to_le_bytes());
        self.out.truncate(self.out.len() - 8 + bytes as usize);
        self.pending >>= bytes * 8;
        self.count %= 8;
    }

    /// Fills the last byte with zeros.
    pub fn end(mut self) {
        self.count = self.count.next_multiple_of(8);
        self.flush();
    }

    /// Adds the 1 that marks the end of a stream which is read backwards, and fills the last byte.
    pub fn end_backward(mut self) {
        self.add(1, 1);
        self.end();
    }
}
