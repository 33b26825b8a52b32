//! Step C of stripping: HTML entities (spec, collection-format.md 10.3).
//!
//! `htmlescape` 0.3.1 decodes as the spec says, checked in its source: the 252 names of HTML 4.01 in a sorted table,
//! `x` in lower case only, numbers parsed as u32 (so leading zeros are free, and too large is an error), U+0000
//! allowed, surrogates refused, and any error fails the whole text. It reads the text once and holds at most one
//! more copy of it (a name that never ends); every byte that it writes comes from a `char`, so its unwrap of UTF-8
//! holds.

/// Decodes all entities and turns no-break spaces into spaces. `None` if the text has no `&`, or an `&` that does not
/// begin an entity: then the text stays as it is, no-break spaces included.
pub(super) fn decode(text: &str) -> Option<String> {
    if !text.contains('&') {
        return None;
    }
    let decoded = htmlescape::decode_html(text).ok()?;
    if decoded.contains('\u{a0}') { Some(decoded.replace('\u{a0}', " ")) } else { Some(decoded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entities_are_decoded_once_and_all_or_none() {
        let decoded = [
            ("&lt;b&gt; &amp;lt;", "<b> &lt;"),
            ("&#65;&#x42;&#x6a;&#x6A;", "ABjj"),
            ("&#0000000000000000000065;", "A"),
            ("&#0;", "\0"),
            ("&#x10ffff;", "\u{10ffff}"),
            ("\u{a0}&nbsp;&#160;&#xa0;x", "    x"),
            ("&Eacute;&eacute;&thetasym;&zwnj;", "\u{c9}\u{e9}\u{3d1}\u{200c}"),
            ("\u{65e5}&quot;\u{1f600}", "\u{65e5}\"\u{1f600}"),
        ];
        for (text, result) in decoded {
            assert_eq!(decode(text).as_deref(), Some(result), "{text:?}");
        }
        let kept = [
            "",
            "\u{a0}",
            "AT&T",
            "a & b; c",
            "&",
            "&;",
            "&#;",
            "&#x;",
            "&#X41;",
            "&#4a;",
            "&#x4g;",
            "&#+5;",
            "&# 5;",
            "&#xd800;",
            "&#x110000;",
            "&#4294967361;",
            "&#x100000041;",
            "&apos;",
            "&AMP;",
            "&amp",
            "&amp; &nosuch;",
            "&amp; &",
            "&&amp;",
            "&\u{e9};",
            "&NotEqualTilde;",
        ];
        for text in kept {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }
}
