//! Case-insensitive words and word boundaries, as the clients' regular expressions have them.

use unicode_normalization::char::is_combining_mark;

/// Where `word` ends, if and only if it stands at `at` in whatever case. `word` is lower-case ASCII without a `k`.
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

/// Whether a character is part of a word (`\w`): Alphabetic, Mark, decimal digit, connector or joiner.
///
/// std knows no general categories, so numbers that are no decimal digits (`\u{b2}`, `\u{bd}`) count as well, though
/// they should not. It takes one that touches a tag's name, or `src=`, to see the difference.
pub(super) fn is_word(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric() || c == '_';
    }
    let connector = matches!(
        c,
        '\u{203f}' | '\u{2040}' | '\u{2054}' | '\u{fe33}' | '\u{fe34}' | '\u{fe4d}'..='\u{fe4f}' | '\u{ff3f}'
    );
    let joiner = matches!(c, '\u{200c}' | '\u{200d}');
    c.is_alphanumeric() || is_combining_mark(c) || connector || joiner
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
        for c in "azAZ09_\u{e9}\u{17f}\u{3042}\u{6f22}\u{301}\u{903}\u{661}\u{203f}\u{ff3f}\u{200d}\u{2160}"
            .chars()
        {
            assert!(is_word(c), "{c:?}");
        }
        for c in " -\"'<>=/.:\n\u{a0}\u{3000}\u{200b}\u{2014}\u{1f600}".chars() {
            assert!(!is_word(c), "{c:?}");
        }
    }
}
