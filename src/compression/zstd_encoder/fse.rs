//! FSE (tANS) tables: normalised distributions, their description in the stream, and coding (RFC 8878, 4.1).

use crate::compression::zstd_encoder::bits::BitWriter;

/// How often each symbol stands in a table of `1 << log` cells. -1 is "less than one cell", which takes one cell.
#[derive(Clone, Debug)]
pub struct Distribution {
    cells: Vec<i16>,
    log: u32,
}

impl Distribution {
    /// Scales counts to a table of at most `1 << max_log` cells. At least two symbols must occur.
    pub fn of(counts: &[u32], max_log: u32) -> Distribution {
        let total: u32 = counts.iter().sum();
        let used = counts.iter().filter(|count| **count > 0).count() as u32;
        // Small inputs do not pay for large tables.
        let log = (total.ilog2().saturating_sub(1)).max(used.ilog2() + 1).clamp(5, max_log);
        let size = 1i32 << log;
        let mut cells = vec![0i16; counts.len()];
        let mut left = size;
        for (cell, count) in cells.iter_mut().zip(counts) {
            if *count > 0 {
                let exact = u64::from(*count) << log;
                let whole = ((exact + u64::from(total) / 2) / u64::from(total)) as i16;
                *cell = if whole == 0 { -1 } else { whole };
                left -= i32::from(whole.max(1));
            }
        }
        // Rounding is corrected where it changes the least.
        while left != 0 {
            let largest = cells.iter_mut().max_by_key(|cell| **cell).expect("there are symbols");
            let change = left.max(-i32::from(*largest / 2)).clamp(-i32::from(i16::MAX), i32::from(i16::MAX));
            *largest += change as i16;
            left -= change;
        }
        Distribution { cells, log }
    }

    /// A distribution of the format itself.
    pub fn fixed(cells: &[i16], log: u32) -> Distribution {
        Distribution { cells: cells.to_vec(), log }
    }

    /// About how many 256ths of a bit symbols with these counts take; `None` if one of them has no cell.
    pub fn cost(&self, counts: &[u32]) -> Option<u64> {
        let mut sum = 0;
        for (symbol, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            match self.cells.get(symbol) {
                None | Some(0) => return None,
                Some(cells) => {
                    sum += u64::from(*count) * u64::from(self.log * 256 - log2(cells.unsigned_abs().into()));
                }
            }
        }
        Some(sum)
    }

    /// Appends the description.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut bits = BitWriter::new(out);
        bits.add(u64::from(self.log - 5), 4);
        let mut left = 1u32 << self.log;
        let mut cells = self.cells.iter().copied().peekable();
        while left > 0 {
            let Some(cell) = cells.next() else { break };
            // Values up to `most`; the lowest ones take a bit less.
            let (value, most) = ((cell + 1) as u32, left + 1);
            let width = most.ilog2() + 1;
            let short = (1 << width) - 1 - most;
            if value < short {
                bits.add(value.into(), width - 1);
            } else if value < 1 << (width - 1) {
                bits.add(value.into(), width);
            } else {
                bits.add((value + short).into(), width);
            }
            left -= u32::from(cell.unsigned_abs());
            if cell == 0 {
                let mut zeros = 0;
                while cells.next_if_eq(&0).is_some() {
                    zeros += 1;
                    if zeros == 3 {
                        bits.add(3, 2);
                        bits.flush();
                        zeros = 0;
                    }
                }
                bits.add(zeros, 2);
            }
            bits.flush();
        }
        bits.end();
    }
}

/// The binary logarithm in 256ths, within a tenth.
pub fn log2(value: u32) -> u32 {
    let whole = value.ilog2();
    whole * 256 + (((u64::from(value) << 8) >> whole) as u32 - 256)
}

#[derive(Clone, Copy, Default)]
struct Step {
    bits: u32,
    find: i32,
}

/// Encodes symbols of one distribution.
pub struct Table {
    steps: Vec<Step>,
    states: Vec<u16>,
    log: u32,
}

impl Table {
    /// From a distribution.
    pub fn new(distribution: &Distribution) -> Table {
        let Distribution { cells, log } = distribution;
        let size = 1usize << log;
        let mut spread = vec![0u8; size];
        let (mut starts, mut start, mut high) = (Vec::with_capacity(cells.len()), 0usize, size);
        for (symbol, cell) in cells.iter().enumerate() {
            starts.push(start);
            start += usize::from(cell.unsigned_abs());
            if *cell == -1 {
                high -= 1;
                spread[high] = symbol as u8;
            }
        }
        let (step, mask, mut at) = ((size >> 1) + (size >> 3) + 3, size - 1, 0);
        for (symbol, cell) in cells.iter().enumerate() {
            for _ in 0..(*cell).max(0) {
                spread[at] = symbol as u8;
                at = (at + step) & mask;
                while at >= high {
                    at = (at + step) & mask;
                }
            }
        }
        let mut states = vec![0u16; size];
        for (cell, symbol) in spread.iter().enumerate() {
            let start = &mut starts[usize::from(*symbol)];
            states[*start] = (size + cell) as u16;
            *start += 1;
        }
        let mut total = 0i32;
        let steps = cells.iter().map(|cell| {
            let count = i32::from(cell.unsigned_abs());
            let step = match count {
                0 => Step::default(),
                1 => Step { bits: (log << 16).wrapping_sub(1 << log), find: total - 1 },
                _ => {
                    let out = log - (count - 1).ilog2();
                    Step { bits: (out << 16).wrapping_sub((count as u32) << out), find: total - count }
                }
            };
            total += count;
            step
        });
        let steps = steps.collect();
        Table { steps, states, log: *log }
    }

    /// A table of one symbol, which takes no bits.
    pub fn of_one(symbol: u8) -> Table {
        let mut steps = vec![Step::default(); usize::from(symbol)];
        steps.push(Step { bits: u32::MAX, find: -1 });
        Table { steps, states: vec![1], log: 0 }
    }

    /// The state that stands for the last symbol.
    #[inline(always)]
    pub fn start(&self, symbol: u8) -> u32 {
        let Step { bits, find } = self.steps[usize::from(symbol)];
        let out = bits.wrapping_add(1 << 15) >> 16;
        let value = (out << 16).wrapping_sub(bits);
        self.state((value >> out) as i32 + find)
    }

    /// Adds a symbol before those that are coded already.
    #[inline(always)]
    pub fn push(&self, state: &mut u32, symbol: u8, bits: &mut BitWriter<'_>) {
        let step = self.steps[usize::from(symbol)];
        let out = state.wrapping_add(step.bits) >> 16;
        bits.add(u64::from(*state & ((1 << out) - 1)), out);
        *state = self.state((*state >> out) as i32 + step.find);
    }

    /// Writes the last state, which is the first one that a decoder reads.
    pub fn finish(&self, state: u32, bits: &mut BitWriter<'_>) {
        bits.add(u64::from(state & ((1 << self.log) - 1)), self.log);
        bits.flush();
    }

    #[inline(always)]
    fn state(&self, at: i32) -> u32 {
        self.states[at as usize].into()
    }
}
