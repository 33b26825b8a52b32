//! Deck names (spec, collection-format.md 2.2).

use unicode_normalization::UnicodeNormalization;

/// Separates the levels of a name in `decks.name`.
const SEPARATOR: char = '\u{1f}';

/// The name as stored in `decks.name`: levels normalised and joined by U+001F, never empty (spec 2.2).
pub fn human_to_native(human: &str) -> String {
    let mut native = String::with_capacity(human.len());
    for (depth, level) in human.split("::").enumerate() {
        if depth > 0 {
            native.push(SEPARATOR);
        }
        let level: String = level.nfc().filter(|c| !c.is_ascii_control()).collect();
        let level = level.trim_matches(|c: char| c.is_whitespace() || c == ':');
        native.push_str(if level.is_empty() { "blank" } else { level });
    }
    native
}

/// The form of a name in JSON: levels joined by `::` (spec 2.2).
pub fn native_to_human(native: &str) -> String {
    native.replace(SEPARATOR, "::")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_spec() {
        for (human, native) in [
            ("foo::::baz", "foo\u{1f}blank\u{1f}baz"),
            ("foo:::bar", "foo\u{1f}bar"),
            (" a :: \u{1}b\n::", "a\u{1f}b\u{1f}blank"),
            ("", "blank"),
            ("fo\u{1f}o::ba\nr", "foo\u{1f}bar"),
            ("e\u{301}", "\u{e9}"),
            ("\u{3000}x\u{a0}", "x"),
            ("a:b", "a:b"),
            (":::", "blank\u{1f}blank"),
        ] {
            assert_eq!(human_to_native(human), native, "{human:?}");
        }
        assert_eq!(native_to_human("a\u{1f}b\u{1f}c"), "a::b::c");
    }
}
