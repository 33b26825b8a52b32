//! Case-insensitive words and word boundaries, as in the clients' regular expressions.

use unicode_normalization::char::is_combining_mark;

/// The end of `word` if it is found at `at`, in any case; else `None`. `word` must be lower-case ASCII without a `k`.
///
/// Simple Unicode folding adds the long s (U+017F) to the forms of `s`, and would add the Kelvin sign to those of `k`.
pub(super) fn word_end(text: &str, at: usize, word: &str) -> Option<usize> {
    let mut rest = text.as_bytes().get(at..)?;
    for letter in word.bytes() {
        rest = match rest {
            [first, rest @ ..] if first.eq_ignore_ascii_case(&letter) => rest,
            [0xc5, 0xbf, rest @ ..] if letter == b's' => rest,
            _ => return None,
        };
    }
    Some(text.len() - rest.len())
}

/// The zeros of the non-ASCII decimal digits (Unicode 16); the digits 1 to 9 follow each. std has no general categories,
/// and its `is_numeric` includes characters that are not part of a word, such as superscripts and fractions.
#[rustfmt::skip]
const ZEROS: [u32; 75] = [
    0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0,
    0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50,
    0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x10d40, 0x11066,
    0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x116d0, 0x116da, 0x11730,
    0x118e0, 0x11950, 0x11bf0, 0x11c50, 0x11d50, 0x11da0, 0x11f50, 0x16130, 0x16a60, 0x16ac0, 0x16b50,
    0x16d70, 0x1ccf0, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e5f1,
    0x1e950, 0x1fbf0,
];

/// Whether a character is part of a word (`\w`): Alphabetic, Mark, decimal digit, connector or joiner.
///
/// Client 26.9.3 agrees on every character except those added after Unicode 16: std and the table of marks are newer.
pub(super) fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    let connector = matches!(
        c,
        '\u{203f}' | '\u{2040}' | '\u{2054}' | '\u{fe33}' | '\u{fe34}' | '\u{fe4d}'..='\u{fe4f}' | '\u{ff3f}'
    );
    let joiner = matches!(c, '\u{200c}' | '\u{200d}');
    c.is_alphabetic() || is_combining_mark(c) || is_decimal(c) || connector || joiner
}

/// Whether a character beyond ASCII is a decimal digit.
fn is_decimal(c: char) -> bool {
    let following = ZEROS.partition_point(|&zero| zero <= u32::from(c));
    following > 0 && u32::from(c) - ZEROS[following - 1] < 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_match_in_any_case() {
        let cases = [
            ("src=", 0, "src", Some(3)),
            ("SrC", 0, "src", Some(3)),
            ("\u{17f}rc", 0, "src", Some(4)),
            ("<\u{17f}ource>", 1, "source", Some(8)),
            ("sr", 0, "src", None),
            ("", 0, "src", None),
            ("src", 4, "src", None),
            ("</STYLE>", 0, "</style>", Some(8)),
            // Both share one byte with the long s.
            ("\u{17e}rc", 0, "src", None),
            ("\u{1bf}rc", 0, "src", None),
        ];
        for (text, at, word, end) in cases {
            assert_eq!(word_end(text, at, word), end, "{text:?}");
        }
    }

    #[test]
    fn words_are_unicode_words() {
        let words = "azAZ09_\u{e9}\u{17f}\u{3042}\u{6f22}\u{301}\u{903}\u{2160}\u{203f}\u{ff3f}\u{200d}";
        let digits = "\u{660}\u{669}\u{ff15}\u{1d7ff}\u{1fbf9}";
        for c in words.chars().chain(digits.chars()) {
            assert!(is_word(c), "{c:?}");
        }
        for c in " -\"'<>=/.:\n\u{a0}\u{3000}\u{200b}\u{2014}\u{1f600}\u{b2}\u{bd}\u{66a}\u{1fbfa}".chars() {
            assert!(!is_word(c), "{c:?}");
        }
    }

    #[test]
    fn the_zeros_are_sorted_and_numeric() {
        assert!(ZEROS.is_sorted());
        for zero in ZEROS {
            for digit in (zero..zero + 10).filter_map(char::from_u32) {
                assert!(digit.is_numeric() && !digit.is_alphabetic(), "{digit:?}");
            }
        }
    }
}
