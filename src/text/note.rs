//! Derives columns from the text of a note that arrives by sync (spec, collection-format.md 10).
//!
//! The input may be a megabyte of hostile text, so every step is linear in its length.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use memchr::memchr_iter;
use sha1::{Digest, Sha1};

use crate::text::counted::counted;
use crate::text::{entities, markup, media_tags, tag};

/// Separates the fields of a note.
const FIELD_SEPARATOR: char = '\u{1f}';

/// The text of a field without its markup (spec 10.3, steps A, B and C). Borrowed if nothing changes.
pub fn strip(field: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(field);
    for step in [media_tags::keep_names, markup::remove, entities::decode] {
        if let Some(changed) = step(&text) {
            text = Cow::Owned(changed);
        }
    }
    text
}

/// The checksum of a stripped first field, by which clients find duplicates (spec 10.3).
pub fn checksum(stripped: &str) -> u32 {
    let digest = Sha1::digest(stripped.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// The fields of a note without ASCII control characters, except newline, tab and the field separator (spec 10.2).
pub fn clean(fields: &str) -> Cow<'_, str> {
    let dropped =
        |byte: u8| byte.is_ascii_control() && byte != b'\n' && byte != b'\t' && byte != FIELD_SEPARATOR as u8;
    // Bytes below 128 are never part of another character. Control characters are rare, so whole machine words without
    // one are skipped.
    let (words, rest) = fields.as_bytes().as_chunks();
    let mut suspects = words.iter().filter(|word| has_control(usize::from_ne_bytes(**word)));
    if suspects.any(|word| word.iter().copied().any(dropped)) || rest.iter().copied().any(dropped) {
        Cow::Owned(fields.replace(|c: char| c.is_ascii() && dropped(c as u8), ""))
    } else {
        Cow::Borrowed(fields)
    }
}

/// Whether one of the bytes is below 0x20 (space), or 0x7f (delete).
fn has_control(word: usize) -> bool {
    const EACH: usize = usize::MAX / 255;
    // The subtraction sets the top bit of the lowest byte that is below the bound, and perhaps of bytes above it.
    let less_than = |word: usize, bound: usize| word.wrapping_sub(EACH * bound) & !word & (EACH << 7);
    less_than(word, 0x20) | less_than(word ^ (EACH * 0x7f), 1) != 0
}

/// The tags of a note in their stored form: a space before each tag and after the last, or "" without tags (spec 10.1).
///
/// Clients have already sorted them and matched them with the `tags` table; the server must not.
pub fn normalize_tags(tags: &str) -> String {
    let mut normal = String::with_capacity(tags.len() + 2);
    for tag in tags.split(tag::is_separator).filter(|tag| !tag.is_empty()) {
        normal.push(' ');
        normal.push_str(tag);
    }
    if !normal.is_empty() {
        normal.push(' ');
    }
    normal
}

/// The columns of a note that follow from its fields (spec 10.2 to 10.5).
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared<'f> {
    /// Column `flds`.
    pub fields: Cow<'f, str>,
    /// Column `sfld`. Bind it as text: SQLite converts text that looks like a number.
    pub sort_field: String,
    /// Column `csum`.
    pub checksum: u32,
}

/// A note that does not have as many fields as its notetype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongFieldCount {
    /// How many the note has.
    pub found: usize,
    /// How many its notetype has, at least 1.
    pub expected: usize,
}

impl fmt::Display for WrongFieldCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "note has {}, its notetype {}", counted(self.found, "field"), self.expected)
    }
}

impl Error for WrongFieldCount {}

/// Checks and cleans the fields of a note, and derives its sort field and checksum (spec 10.2 to 10.5).
///
/// `field_count` and `sort_field` are the notetype's. If there is no such field, the sort field is "".
pub fn prepare(fields: &str, field_count: usize, sort_field: u32) -> Result<Prepared<'_>, WrongFieldCount> {
    let fields = clean(fields);
    let (found, expected) =
        (1 + memchr_iter(FIELD_SEPARATOR as u8, fields.as_bytes()).count(), field_count.max(1));
    if found != expected {
        return Err(WrongFieldCount { found, expected });
    }
    let mut each = fields.split(FIELD_SEPARATOR);
    let first = strip(each.next().unwrap_or_default());
    let checksum = checksum(&first);
    let sort_field = match sort_field {
        0 => first.into_owned(),
        later => each.nth(later as usize - 1).map(|field| strip(field).into_owned()).unwrap_or_default(),
    };
    Ok(Prepared { fields, sort_field, checksum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripping_takes_its_steps_in_order() {
        let cases = [
            ("", ""),
            ("<b>a</b>&nbsp;<img src=\"a&amp;b.png\">", "a  a&b.png "),
            // Decoding comes last: its result is not stripped again.
            ("&lt;b&gt;", "<b>"),
            ("&lt;img src=a&gt;", "<img src=a>"),
            // Markup in a name is removed.
            ("<img src='a<b>c'>", " ac "),
            // Comments and scripts do not hide media tags.
            ("<!-- <img src=a.png> -->", ""),
            ("<!-- <img src=\"-->\"> -->", "  -->"),
            // Sounds, clozes and blanks stay.
            (" [sound:a.mp3] {{c1::b}} ", " [sound:a.mp3] {{c1::b}} "),
            ("\u{a0}", "\u{a0}"),
            ("\u{a0}&amp;", " &"),
            ("e\u{301}", "e\u{301}"),
        ];
        for (field, stripped) in cases {
            assert_eq!(strip(field), stripped, "{field:?}");
        }
    }

    #[test]
    fn plain_text_is_not_copied() {
        for field in ["", "plain", "a > b; \"c\" \u{e9}\u{a0}", "1\n2"] {
            assert!(matches!(strip(field), Cow::Borrowed(_)), "{field:?}");
            assert!(matches!(clean(field), Cow::Borrowed(_)), "{field:?}");
        }
    }

    #[test]
    fn control_characters_go_except_newline_and_tab() {
        assert_eq!(
            clean("\0a\r\nb\tc\u{1b}\u{1f}\u{7f}\u{80}\u{85}\u{2028}"),
            "a\nb\tc\u{1f}\u{80}\u{85}\u{2028}"
        );
        // At each position in a machine word, beside each kind of character.
        for (letter, at) in [' ', '\u{7e}', '\u{80}', '\u{ffff}', '\n']
            .into_iter()
            .flat_map(|letter| (0..20).map(move |at| (letter, at)))
        {
            for control in ('\0'..='\u{90}').filter(char::is_ascii_control) {
                let text: String = (0..20).map(|i| if i == at { control } else { letter }).collect();
                let kept = matches!(control, '\n' | '\t' | '\u{1f}');
                assert_eq!(clean(&text) == text, kept, "{text:?}");
            }
        }
    }

    #[test]
    fn tags_are_parted_by_two_kinds_of_space_only() {
        let cases = [
            ("", ""),
            (" \u{3000} ", ""),
            ("a", " a "),
            ("  b   a\u{3000}b ", " b a b "),
            ("a\tb \u{a0}", " a\tb \u{a0} "),
        ];
        for (tags, normal) in cases {
            assert_eq!(normalize_tags(tags), normal, "{tags:?}");
        }
    }

    #[test]
    fn fields_are_counted_and_cleaned() {
        let wrong = [("a", 2, 1, 2), ("a\u{1f}b", 1, 2, 1), ("a\u{1f}b", 0, 2, 1), ("\u{1f}\u{1f}", 2, 3, 2)];
        for (fields, count, found, expected) in wrong {
            assert_eq!(prepare(fields, count, 0), Err(WrongFieldCount { found, expected }), "{fields:?}");
        }
        let first = checksum("a");
        let cases = [
            ("<b>a\u{1f}\rb", 2, 0, "<b>a\u{1f}b", "a", first),
            ("a\u{1f}<b>b", 2, 1, "a\u{1f}<b>b", "b", first),
            ("a\u{1f}b", 2, 2, "a\u{1f}b", "", first),
            ("a\u{1f}b", 2, u32::MAX, "a\u{1f}b", "", first),
            // Control characters are removed first, which may produce a tag.
            ("<\0b>a", 0, 0, "<b>a", "a", first),
            ("", 1, 0, "", "", 0xda39a3ee),
            ("\u{1f}", 2, 1, "\u{1f}", "", 0xda39a3ee),
        ];
        for (fields, count, sort, stored, sort_field, checksum) in cases {
            let expected = Prepared { fields: stored.into(), sort_field: sort_field.to_owned(), checksum };
            assert_eq!(prepare(fields, count, sort), Ok(expected), "{fields:?}");
        }
    }

    /// A step with quadratic time on any of these would take minutes to hours instead of a tenth of a second.
    #[test]
    fn a_megabyte_of_hostile_text_is_stripped_promptly() {
        let pieces = [
            "<",
            "<>",
            "&",
            "&#x0",
            "&amp;",
            "\"'>",
            "<!--",
            "<img ",
            "<img src",
            "<img src=>",
            "<img src=\"",
            "<img src='\">",
            "<img \"'>",
            "<img '>\">",
            "<img \"> ' > \" ",
            "src=",
            "src=>",
            "<style",
            "<style>",
            "<script><style>",
            "<style></script",
            "</styl",
        ];
        // Without a `>` the search stops at once; with one at the very end, all of the text is searched.
        for (prefix, suffix) in [("", ">"), ("<img \"'", "'>")] {
            for piece in pieces {
                let text = format!("{prefix}{}{suffix}", piece.repeat((1 << 20) / piece.len()));
                assert!(strip(&text).len() <= text.len(), "{piece:?}");
            }
        }
    }
}
