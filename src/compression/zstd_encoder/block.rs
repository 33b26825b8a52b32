//! The content of one compressed block: literals, then sequences (RFC 8878, 3.1.1.3).

use crate::compression::zstd_encoder::bits::BitWriter;
use crate::compression::zstd_encoder::fse::{Distribution, Table};
use crate::compression::zstd_encoder::huffman::Code;

/// Literals, then a match.
#[derive(Clone, Copy, Debug)]
pub struct Sequence {
    /// Bytes before the match.
    pub literals: u32,
    /// At least 3.
    pub match_bytes: u32,
    /// 1 to 3 for one of the last three distances, otherwise the distance and 3.
    pub offset: u32,
}

impl Sequence {
    /// A match after so many literals.
    #[inline(always)]
    pub fn new(literals: usize, match_bytes: usize, offset: u32) -> Sequence {
        Sequence { literals: literals as u32, match_bytes: match_bytes as u32, offset }
    }
}

/// Appends the block. `literals` are those of all sequences, and what follows the last one.
pub fn write(literals: &[u8], sequences: &[Sequence], out: &mut Vec<u8>) {
    write_literals(literals, out);
    write_sequences(sequences, out);
}

fn write_literals(literals: &[u8], out: &mut Vec<u8>) {
    let at = out.len();
    if literals.len() < 32 || write_coded(literals, out).is_none() {
        out.truncate(at);
        let size = literals.len() as u32;
        match size {
            0..32 => out.push((size << 3) as u8),
            32..4096 => out.extend_from_slice(&(size << 4 | 1 << 2).to_le_bytes()[..2]),
            _ => out.extend_from_slice(&(size << 4 | 3 << 2).to_le_bytes()[..3]),
        }
        out.extend_from_slice(literals);
    }
}

/// Appends literals in Huffman code; `None` if that is not shorter.
fn write_coded(literals: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const CODED: u64 = 2;
    let counts = histogram(literals);
    if counts.iter().filter(|count| **count > 0).count() < 2 {
        // One byte many times is a match.
        return None;
    }
    let code = Code::of(&counts);
    if code.bytes(&counts) + literals.len() / 64 + 16 >= literals.len() {
        return None;
    }
    let size = literals.len();
    let (format, bits, header) = match size {
        0..256 => (0, 10, 3),
        256..1024 => (1, 10, 3),
        1024..16384 => (2, 14, 4),
        _ => (3, 18, 5),
    };
    let at = out.len();
    out.resize(at + header, 0);
    let start = out.len();
    code.write(out)?;
    if format == 0 {
        code.encode(literals, out);
    } else {
        let jumps = out.len();
        out.resize(jumps + 6, 0);
        for (number, part) in literals.chunks(size.div_ceil(4)).enumerate() {
            let begin = out.len();
            code.encode(part, out);
            let bytes = u16::try_from(out.len() - begin).ok()?;
            if number < 3 {
                out[jumps + number * 2..][..2].copy_from_slice(&bytes.to_le_bytes());
            }
        }
    }
    let coded = out.len() - start;
    if coded + header >= size {
        return None;
    }
    let head = CODED | format << 2 | (size as u64) << 4 | (coded as u64) << (4 + bits);
    out[at..start].copy_from_slice(&head.to_le_bytes()[..header]);
    Some(())
}

fn histogram(data: &[u8]) -> [u32; 256] {
    // Two tables, because the same byte twice in a row would wait for itself.
    let mut counts = [[0u32; 256]; 2];
    let pairs = data.chunks_exact(2);
    for byte in pairs.remainder() {
        counts[0][usize::from(*byte)] += 1;
    }
    for pair in pairs {
        counts[0][usize::from(pair[0])] += 1;
        counts[1][usize::from(pair[1])] += 1;
    }
    let [mut sum, other] = counts;
    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    sum
}

/// A symbol, the extra bits and their number.
type Coded = (u8, u32, u32);

#[inline(always)]
fn literals_code(count: u32) -> Coded {
    const SMALL: [u8; 64] = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 16, 17, 17, 18, 18, 19, 19, 20, 20, 20, 20,
        21, 21, 21, 21, 22, 22, 22, 22, 22, 22, 22, 22, 23, 23, 23, 23, 23, 23, 23, 23, 24, 24, 24, 24, 24,
        24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24,
    ];
    const BITS: [u8; 25] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4];
    match count {
        0..64 => {
            let code = SMALL[count as usize];
            let bits = u32::from(BITS[usize::from(code)]);
            (code, count & ((1 << bits) - 1), bits)
        }
        _ => {
            let bits = count.ilog2();
            (bits as u8 + 19, count - (1 << bits), bits)
        }
    }
}

#[inline(always)]
fn match_code(bytes: u32) -> Coded {
    const FIRST: [(u32, u32); 11] =
        [(0, 0), (32, 1), (34, 1), (36, 1), (38, 1), (40, 2), (44, 2), (48, 3), (56, 3), (64, 4), (80, 4)];
    let value = bytes - 3;
    match value {
        0..32 => (value as u8, 0, 0),
        32..96 => {
            let at = match value {
                32..40 => (value - 32) / 2 + 1,
                40..48 => (value - 40) / 4 + 5,
                48..64 => (value - 48) / 8 + 7,
                _ => (value - 64) / 16 + 9,
            };
            let (first, bits) = FIRST[at as usize];
            (at as u8 + 31, value - first, bits)
        }
        96..128 => (42, value - 96, 5),
        _ => {
            let bits = value.ilog2();
            (bits as u8 + 36, value - (1 << bits), bits)
        }
    }
}

#[inline(always)]
fn offset_code(offset: u32) -> Coded {
    let bits = offset.ilog2();
    (bits as u8, offset - (1 << bits), bits)
}

const LITERALS_CELLS: [i16; 36] = [
    4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1,
    -1, -1,
];
const MATCH_CELLS: [i16; 53] = [
    1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
];
const OFFSET_CELLS: [i16; 29] =
    [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1];

/// Chooses the table for symbols that occur so often: the format's own, one symbol, or a described one. Appends the
/// description. Returns the mode for the header.
fn table(counts: &[u32], fixed: &[i16], fixed_log: u32, max_log: u32, out: &mut Vec<u8>) -> (u8, Table) {
    const FIXED: u8 = 0;
    const ONE: u8 = 1;
    const DESCRIBED: u8 = 2;
    let fixed = Distribution::fixed(fixed, fixed_log);
    let last = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    let total: u32 = counts.iter().sum();
    if counts[last] == total {
        if total > 2 || fixed.cost(counts).is_none() {
            out.push(last as u8);
            return (ONE, Table::of_one(last as u8));
        }
        return (FIXED, Table::new(&fixed));
    }
    let own = Distribution::of(&counts[..=last], max_log);
    let at = out.len();
    own.write(out);
    let described = (out.len() - at) as u64 * 8 * 256 + own.cost(counts).unwrap_or(0);
    if fixed.cost(counts).is_some_and(|cost| cost <= described) {
        out.truncate(at);
        return (FIXED, Table::new(&fixed));
    }
    (DESCRIBED, Table::new(&own))
}

fn write_sequences(sequences: &[Sequence], out: &mut Vec<u8>) {
    let count = sequences.len();
    match count {
        0..128 => out.push(count as u8),
        128..0x7f00 => out.extend_from_slice(&[(count >> 8) as u8 | 0x80, count as u8]),
        _ => {
            out.push(255);
            out.extend_from_slice(&((count - 0x7f00) as u16).to_le_bytes());
        }
    }
    let Some((last, before)) = sequences.split_last() else { return };
    let mut counts = [[0u32; 64]; 3];
    for sequence in sequences {
        counts[0][usize::from(literals_code(sequence.literals).0)] += 1;
        counts[1][usize::from(offset_code(sequence.offset).0)] += 1;
        counts[2][usize::from(match_code(sequence.match_bytes).0)] += 1;
    }
    let modes = out.len();
    out.push(0);
    let (mode_l, literals) = table(&counts[0], &LITERALS_CELLS, 6, 9, out);
    let (mode_o, offsets) = table(&counts[1], &OFFSET_CELLS, 5, 8, out);
    let (mode_m, matches) = table(&counts[2], &MATCH_CELLS, 6, 9, out);
    out[modes] = mode_l << 6 | mode_o << 4 | mode_m << 2;
    let mut bits = BitWriter::new(out);
    // From the last one to the first, because a decoder reads backwards.
    let (l, m, o) = (literals_code(last.literals), match_code(last.match_bytes), offset_code(last.offset));
    let (mut l_state, mut m_state, mut o_state) =
        (literals.start(l.0), matches.start(m.0), offsets.start(o.0));
    let extra = |bits: &mut BitWriter<'_>, l: Coded, m: Coded, o: Coded| {
        bits.add(l.1.into(), l.2);
        bits.add(m.1.into(), m.2);
        bits.flush();
        bits.add(o.1.into(), o.2);
        bits.flush();
    };
    extra(&mut bits, l, m, o);
    for sequence in before.iter().rev() {
        let (l, m, o) = (
            literals_code(sequence.literals),
            match_code(sequence.match_bytes),
            offset_code(sequence.offset),
        );
        offsets.push(&mut o_state, o.0, &mut bits);
        matches.push(&mut m_state, m.0, &mut bits);
        literals.push(&mut l_state, l.0, &mut bits);
        bits.flush();
        extra(&mut bits, l, m, o);
    }
    matches.finish(m_state, &mut bits);
    offsets.finish(o_state, &mut bits);
    literals.finish(l_state, &mut bits);
    bits.end_backward();
}
