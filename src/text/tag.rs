//! Names of tags in the `tags` table.

use unicode_normalization::UnicodeNormalization;

/// The name under which a tag is registered (spec, collection-format.md 12.4).
///
/// Each part between `::` is normalised to NFC, stripped of control characters and tag separators, and trimmed. An empty
/// part becomes `blank`.
pub fn normalize_name(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for (index, part) in name.split("::").enumerate() {
        if index > 0 {
            normal.push_str("::");
        }
        let part: String = part.nfc().filter(|&c| !(c.is_ascii_control() || is_separator(c))).collect();
        match part.trim() {
            "" => normal.push_str("blank"),
            part => normal.push_str(part),
        }
    }
    normal
}

/// Whether a character separates two tags of a note: the space and the ideographic space U+3000 (spec 10.1).
pub(super) fn is_separator(c: char) -> bool {
    matches!(c, ' ' | '\u{3000}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_part_by_part() {
        let cases = [
            ("a", "a"),
            ("", "blank"),
            (" ", "blank"),
            ("::", "blank::blank"),
            ("foo::", "foo::blank"),
            ("::foo", "blank::foo"),
            ("a:::b", "a:::b"),
            ("a::::b", "a::blank::b"),
            ("e\u{301}", "\u{e9}"),
            ("\u{fa47}", "\u{6f22}"),
            ("one two\u{3000}three", "onetwothree"),
            ("\u{a0}a\u{a0}b\u{2003}", "a\u{a0}b"),
            ("a\tb\r\nc\u{7f}\u{1f}d", "abcd"),
            // Only ASCII control characters go, but U+0085 is white space at an edge.
            ("\u{85}a\u{85}b", "a\u{85}b"),
            (" a :: b ", "a::b"),
            ("A::a", "A::a"),
            ("a : : b", "a::b"),
        ];
        for (name, normal) in cases {
            assert_eq!(normalize_name(name), normal, "{name:?}");
        }
    }
}
