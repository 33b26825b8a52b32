//! Makes choices from the bytes of a fuzzer. After the last byte, every choice is the first one.

/// What is left of the bytes.
pub struct Input<'d>(pub &'d [u8]);

impl<'d> Input<'d> {
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let wide = if limit > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (wide | usize::from(self.byte())) % limit
    }

    pub fn pick<'c, T>(&mut self, choices: &'c [T]) -> &'c T {
        &choices[self.below(choices.len())]
    }

    /// So many bytes, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'d [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// As many bytes as the next one says, or what is left.
    pub fn short(&mut self) -> &'d [u8] {
        let count = self.byte().into();
        self.bytes(count)
    }
}
