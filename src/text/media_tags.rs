//! Step A of stripping: media tags are replaced by their file names (spec, collection-format.md 10.3).
//!
//! Clients use one regular expression. The order in which it tries its alternatives decides which name is kept. The search
//! below tries in the same order, but tries nothing twice, so it is linear in the length of the text:
//!
//! - Inside a tag, all that counts is the position: whether a media tag can be completed from there does not depend on
//!   how it was reached, nor on which `<` began. A position that failed once is remembered, over the whole text.
//! - From one position, the filler goes character by character up to the next `>`. Only a quoted item gets across, and
//!   only one that begins with the last quote of its kind before that `>`: an earlier quote is closed on this side, where
//!   every position has been tried. So a stretch between two `>` leads to at most two positions behind it.
//! - Each search for a closing quote ends at the next quote of the same kind, and begins at a position that is not
//!   tried twice.

use std::ops::Range;

use crate::text::caseless::{is_word, word_end};

const ELEMENTS: [&str; 5] = ["img", "audio", "video", "object", "source"];
const ATTRIBUTES: [&str; 2] = ["src", "data"];

/// Replaces each media tag by its file name between two spaces. None if there is none.
pub(super) fn keep_names(text: &str) -> Option<String> {
    let last = text.rfind('>')?;
    // No tag reaches beyond the last `>`. Without the rest, every position but the end has a `>` at or after it.
    let mut search = Search { text: &text[..=last], failed: Vec::new(), pending: Vec::new() };
    let mut kept = String::new();
    let mut copied = 0;
    let mut from = 0;
    while let Some(at) = search.text[from..].find('<') {
        let open = from + at;
        from = open + 1;
        let Some(filler) = element_end(search.text, from) else {
            continue;
        };
        if let Some(tag) = search.complete(filler) {
            kept.push_str(&text[copied..open]);
            kept.push(' ');
            kept.push_str(&text[tag.name]);
            kept.push(' ');
            copied = tag.end;
            from = tag.end;
        }
    }
    if copied == 0 {
        return None;
    }
    kept.push_str(&text[copied..]);
    Some(kept)
}

struct MediaTag {
    name: Range<usize>,
    end: usize,
}

struct Search<'t> {
    /// Ends with `>`.
    text: &'t str,
    /// One bit per byte of the text: no media tag can be completed from here. Empty until the first tag.
    failed: Vec<u64>,
    /// Positions still to try after the stretches that failed; the last one is tried next.
    pending: Vec<usize>,
}

impl Search<'_> {
    /// The media tag whose element name ends at `filler`.
    ///
    /// The filler has at least one item. This needs no check: the name ends at a word boundary, so no attribute can begin
    /// directly after it.
    fn complete(&mut self, filler: usize) -> Option<MediaTag> {
        if self.failed.is_empty() {
            self.failed = vec![0; self.text.len().div_ceil(64)];
        }
        self.pending.clear();
        self.pending.push(filler);
        while let Some(start) = self.pending.pop() {
            if let Some(tag) = self.try_stretch(start) {
                return Some(tag);
            }
        }
        None
    }

    /// Tries the positions from `start` to the next `>`. If all fail, adds the positions after it to `pending`.
    fn try_stretch(&mut self, start: usize) -> Option<MediaTag> {
        let bytes = self.text.as_bytes();
        let (mut last_double, mut last_single) = (None, None);
        // Going byte by byte is enough: everything searched for begins with an ASCII byte or a leading byte.
        let mut at = start;
        while bytes[at] != b'>' && self.fail(at) {
            if let Some(tag) = attribute_end(self.text, at).and_then(|value| value_at(self.text, value)) {
                return Some(tag);
            }
            match bytes[at] {
                b'"' => last_double = Some(at),
                b'\'' => last_single = Some(at),
                _ => {}
            }
            at += 1;
        }
        // A regular expression backtracks from the end, so the later quote is tried first.
        let (first, second) = (last_double.min(last_single), last_double.max(last_single));
        for quote in [first, second].into_iter().flatten() {
            // A closing quote before the `>` leads to positions that have failed already.
            if let Some(length) = find_byte(&bytes[quote + 1..], bytes[quote]) {
                self.pending.push(quote + 1 + length + 1);
            }
        }
        None
    }

    /// Marks a position as failed; if the attempt made there next succeeds, the search ends. False if it was marked before.
    fn fail(&mut self, at: usize) -> bool {
        let bit = 1 << (at % 64);
        let word = &mut self.failed[at / 64];
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// Where the name of a media element at `at` ends, if a word ends there too.
fn element_end(text: &str, at: usize) -> Option<usize> {
    let end = ELEMENTS.iter().find_map(|name| word_end(text, at, name))?;
    let in_word = text[end..].chars().next().is_some_and(is_word);
    (!in_word).then_some(end)
}

/// Where the value begins, if an attribute that holds a file name stands at `at`.
fn attribute_end(text: &str, at: usize) -> Option<usize> {
    let end = ATTRIBUTES.iter().find_map(|name| word_end(text, at, name))?;
    let in_word = text[..at].chars().next_back().is_some_and(is_word);
    (!in_word && text.as_bytes().get(end) == Some(&b'=')).then_some(end + 1)
}

/// The media tag whose attribute has its value at `at`. `None` only if the value is empty.
fn value_at(text: &str, at: usize) -> Option<MediaTag> {
    let bytes = text.as_bytes();
    let first = *bytes.get(at)?;
    if matches!(first, b'"' | b'\'') {
        let length = find_byte(&bytes[at + 1..], first).filter(|&length| length > 0);
        if let Some(length) = length {
            let name = at + 1..at + 1 + length;
            let rest = find_byte(&bytes[name.end..], b'>')?;
            return Some(MediaTag { end: name.end + rest + 1, name });
        }
    }
    let length = find_byte(&bytes[at..], b'>').filter(|&length| length > 0)?;
    let close = at + length;
    // The first character is part of the name even if it is a space.
    let name_end = find_byte(&bytes[at + 1..close], b' ').map_or(close, |space| at + 1 + space);
    Some(MediaTag { name: at..name_end, end: close + 1 })
}

fn find_byte(bytes: &[u8], byte: u8) -> Option<usize> {
    bytes.iter().position(|&b| b == byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_tags_give_way_to_their_names() {
        let cases = [
            ("<img src=\"a.png\">", " a.png "),
            ("x<IMG class='b' SRC='a b.png' alt=>y", "x a b.png y"),
            ("<audio src=a.mp3 controls>", " a.mp3 "),
            ("<video\nsrc=a.mp4>", " a.mp4 "),
            ("<object data=\"a.swf\"></object>", " a.swf </object>"),
            ("<\u{17f}ource \u{17f}rc=a>", " a "),
            ("<img data-src=a src=b>", " a "),
            ("<img xsrc=a src=b>", " b "),
            ("<img \u{e9}src=a src=b>", " b "),
            ("<img src=\"\">", " \"\" "),
            ("<img src=''\">", " ''\" "),
            ("<img src= foo.jpg>", "  foo.jpg "),
            ("<img src=foo.jpg/>", " foo.jpg/ "),
            ("<img src=\u{e9} b>", " \u{e9} "),
            ("<img src=\"a>b\">", " a>b "),
            ("<img src=\"a>b", " \"a b"),
            ("<img src=\"a\"", "<img src=\"a\""),
            ("<img alt=\"a>b\" src=c>", " c "),
            ("<img alt='a>b' src=c>", " c "),
            ("<img alt=\"src=a\" src=b>", " a\" "),
            ("<img\">\"src=a>", " a "),
            ("<img/src=a>", " a "),
            ("<img src=><img src=a>", "<img src=> a "),
            // Each quote opens a way across; the later one is tried first.
            ("<img \" ' > ' src=a> \" src=b>", " a  \" src=b>"),
            ("<img ' \" > ' src=a> \" src=b>", " b "),
            ("<img ' \" > ' src=a> \" b>", " a  \" b>"),
            // An empty quotation is no item.
            ("<img \"\"> src=a>", "<img \"\"> src=a>"),
            ("<img \"\">\" src=a>", " a "),
            ("<img src=a><img src=b>", " a  b "),
        ];
        for (text, result) in cases {
            assert_eq!(keep_names(text).as_deref().unwrap_or(text), result, "{text:?}");
        }
        let kept = [
            "",
            "a",
            "<b>",
            "<img>",
            "<img >",
            "<imgsrc=a>",
            "<image src=a>",
            "<img\u{301} src=a>",
            "< img src=a>",
            "<img src =a>",
            "<img src=>",
            "<img src=a",
            "<img> src=a>",
            "<img title=\"a>b src=c>",
            "src=a>",
        ];
        for text in kept {
            assert_eq!(keep_names(text), None, "{text:?}");
        }
    }
}
