//! Huffman coding of literals (RFC 8878, 4.2).

use crate::compression::zstd_encoder::bits::BitWriter;
use crate::compression::zstd_encoder::fse::{Distribution, Table};

/// The longest code of the format.
const MAX_BITS: u32 = 11;

/// A code for bytes.
pub struct Code {
    /// Code and its width; width 0 for bytes that do not occur.
    codes: [(u16, u8); 256],
    max_bits: u32,
    last: usize,
}

impl Code {
    /// The best code for bytes that occur so often. At least two different ones must occur.
    pub fn of(counts: &[u32; 256]) -> Code {
        let widths = widths(counts);
        let max_bits = u32::from(*widths.iter().max().expect("256 of them"));
        let last = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
        let mut codes = [(0, 0); 256];
        let mut next = 0u16;
        // The longest codes are the lowest numbers.
        for width in (1..=max_bits as u8).rev() {
            for (byte, _) in widths.iter().enumerate().filter(|(_, own)| **own == width) {
                codes[byte] = (next, width);
                next += 1;
            }
            next >>= 1;
        }
        Code { codes, max_bits, last }
    }

    /// Appends the description; `None` if the format has none for it.
    pub fn write(&self, out: &mut Vec<u8>) -> Option<()> {
        let weight = |(_, width): &(u16, u8)| match width {
            0 => 0,
            width => (self.max_bits + 1) as u8 - width,
        };
        // A decoder finds the weight of the last byte itself.
        let weights: Vec<u8> = self.codes[..self.last].iter().map(weight).collect();
        let at = out.len();
        out.push(0);
        if write_packed(&weights, out).is_some() && out.len() - at - 1 < weights.len().div_ceil(2).min(128) {
            out[at] = (out.len() - at - 1) as u8;
            return Some(());
        }
        out.truncate(at);
        if weights.len() > 128 {
            return None;
        }
        out.push(127 + weights.len() as u8);
        out.extend(weights.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).unwrap_or(&0)));
        Some(())
    }

    /// How many bytes the code makes of bytes that occur so often.
    pub fn bytes(&self, counts: &[u32; 256]) -> usize {
        let bits =
            counts.iter().zip(&self.codes).map(|(count, (_, width))| u64::from(*count) * u64::from(*width));
        (bits.sum::<u64>() / 8) as usize
    }

    /// Appends one stream.
    pub fn encode(&self, data: &[u8], out: &mut Vec<u8>) {
        let mut bits = BitWriter::new(out);
        let chunks = data.rchunks_exact(4);
        let rest = chunks.remainder();
        for chunk in chunks {
            for byte in chunk.iter().rev() {
                let (code, width) = self.codes[usize::from(*byte)];
                bits.add(code.into(), width.into());
            }
            bits.flush();
        }
        for byte in rest.iter().rev() {
            let (code, width) = self.codes[usize::from(*byte)];
            bits.add(code.into(), width.into());
        }
        bits.flush();
        bits.end_backward();
    }
}

/// Code lengths of at most `MAX_BITS`, 0 for what does not occur.
fn widths(counts: &[u32; 256]) -> [u8; 256] {
    let mut leaves: Vec<(u32, usize)> = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(byte, count)| (*count, byte))
        .collect();
    leaves.sort_unstable();
    // Huffman's algorithm on sorted leaves: the inner nodes come out sorted, too.
    let count = leaves.len();
    let mut weights: Vec<u32> = leaves.iter().map(|(count, _)| *count).collect();
    let mut parents = vec![0usize; 2 * count - 1];
    let (mut leaf, mut inner) = (0, count);
    for node in count..2 * count - 1 {
        let mut sum = 0;
        for _ in 0..2 {
            let take_leaf = leaf < count && (inner >= node || weights[leaf] <= weights[inner]);
            let least = if take_leaf { &mut leaf } else { &mut inner };
            sum += weights[*least];
            parents[*least] = node;
            *least += 1;
        }
        weights.push(sum);
    }
    let mut depths = vec![0u32; 2 * count - 1];
    for node in (0..2 * count - 2).rev() {
        depths[node] = depths[parents[node]] + 1;
    }
    depths.truncate(count);
    limit(&mut depths);
    let mut widths = [0; 256];
    for ((_, byte), depth) in leaves.iter().zip(&depths) {
        widths[*byte] = *depth as u8;
    }
    widths
}

/// Shortens what is over `MAX_BITS` at the cost of others. The rarest come first.
fn limit(depths: &mut [u32]) {
    const FULL: u32 = 1 << MAX_BITS;
    let share = |depth: u32| FULL >> depth;
    for depth in depths.iter_mut() {
        *depth = (*depth).min(MAX_BITS);
    }
    let mut sum: u32 = depths.iter().map(|depth| share(*depth)).sum();
    while sum > FULL {
        let deepest = depths.iter_mut().filter(|depth| **depth < MAX_BITS).max_by_key(|depth| **depth);
        let depth = deepest.expect("256 codes of 11 bits are no more than full");
        *depth += 1;
        sum -= share(*depth);
    }
    for depth in depths.iter_mut().rev() {
        while *depth > 1 && sum + share(*depth) <= FULL {
            sum += share(*depth);
            *depth -= 1;
        }
    }
}

/// Appends weights coded with FSE; `None` if that is impossible.
fn write_packed(weights: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut counts = [0u32; MAX_BITS as usize + 1];
    for weight in weights {
        counts[usize::from(*weight)] += 1;
    }
    let used = counts.iter().filter(|count| **count > 0).count();
    if used < 2 || weights.len() < 3 {
        return None;
    }
    let last = counts.iter().rposition(|count| *count > 0)?;
    let distribution = Distribution::of(&counts[..=last], 6);
    distribution.write(out);
    let table = Table::new(&distribution);
    let mut bits = BitWriter::new(out);
    // Two states in turn; the first weight is of the first one.
    let [before @ .., a, b] = weights else { return None };
    let mut states = [0, 0];
    states[(weights.len() - 1) % 2] = table.start(*b);
    states[weights.len() % 2] = table.start(*a);
    for (at, weight) in before.iter().enumerate().rev() {
        table.push(&mut states[at % 2], *weight, &mut bits);
        bits.flush();
    }
    table.finish(states[1], &mut bits);
    table.finish(states[0], &mut bits);
    bits.end_backward();
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A decoder finds the last weight from what is left, so the codes must leave nothing free.
    #[test]
    fn a_code_is_full_also_where_bytes_are_much_rarer_than_others() {
        // Counts that grow by such a factor would get codes of more than `MAX_BITS`.
        for percent in (101..260).step_by(3) {
            for used in 2..=256usize {
                let mut count = 1.0f64;
                let mut counts = [0u32; 256];
                for own in counts.iter_mut().take(used) {
                    *own = count as u32;
                    count = (count * f64::from(percent) / 100.0).min(100_000.0);
                }
                let widths = widths(&counts);
                let sum: u32 = widths.iter().filter(|width| **width > 0).map(|width| 2048 >> width).sum();
                assert_eq!(sum, 2048, "{used} bytes, {percent} %: {widths:?}");
                assert!(widths.iter().all(|width| u32::from(*width) <= MAX_BITS));
            }
        }
    }
}
