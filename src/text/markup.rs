//! Step B of stripping: markup is deleted (spec, collection-format.md 10.3).
//!
//! Linear in the length of the text: text between a `<` and its end is deleted without a second look, and a search for an
//! end that failed once is not repeated.

use crate::text::caseless::word_end;

/// Elements that are deleted with their content: opening and closing tag.
const ELEMENTS: [(&str, &str); 2] = [("<style", "</style>"), ("<script", "</script>")];

/// Deletes comments, style sheets, scripts and tags. None if there are none.
pub(super) fn remove(text: &str) -> Option<String> {
    let mut kept = String::new();
    let mut copied = 0;
    let mut ends = Ends::default();
    while let Some(open) = find(text, copied, '<') {
        // All markup ends with `>`: if none follows, the rest is text.
        let Some(close) = find(text, open + 1, '>') else {
            break;
        };
        kept.push_str(&text[copied..open]);
        copied = ends.comment(text, open).or_else(|| ends.element(text, open, close)).unwrap_or(close + 1);
    }
    if copied == 0 {
        return None;
    }
    kept.push_str(&text[copied..]);
    Some(kept)
}

/// Remembers which ends do not occur in the rest of the text.
#[derive(Default)]
struct Ends {
    no_comment: bool,
    no_element: [bool; ELEMENTS.len()],
}

impl Ends {
    /// The end of a comment that begins at `open`.
    fn comment(&mut self, text: &str, open: usize) -> Option<usize> {
        if self.no_comment || !text[open..].starts_with("<!--") {
            return None;
        }
        let content = open + 4;
        let end = text[content..].find("-->").map(|at| content + at + 3);
        self.no_comment = end.is_none();
        end
    }

    /// The end of a style sheet or script whose opening tag is `open..=close`.
    fn element(&mut self, text: &str, open: usize, close: usize) -> Option<usize> {
        let kind = ELEMENTS.iter().position(|(begin, _)| word_end(text, open, begin).is_some())?;
        if self.no_element[kind] {
            return None;
        }
        let mut from = close + 1;
        while let Some(at) = find(text, from, '<') {
            if let Some(end) = word_end(text, at, ELEMENTS[kind].1) {
                return Some(end);
            }
            from = at + 1;
        }
        self.no_element[kind] = true;
        None
    }
}

fn find(text: &str, from: usize, c: char) -> Option<usize> {
    text[from..].find(c).map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_deleted() {
        let cases = [
            ("<b>a</b>", "a"),
            ("1 < 2 > 0", "1  0"),
            ("a<>b", "ab"),
            ("a<b<c>d", "ad"),
            ("a<b\nc>d", "ad"),
            ("x<!-- a > b -->y", "xy"),
            ("x<!-->y", "xy"),
            ("x<!-->y-->z", "xz"),
            ("x<!--->y", "xy"),
            ("x<!--y>z", "xz"),
            ("<STYLE type=a>p{}</sTyle>x", "x"),
            ("<\u{17f}tyle>p</style>x", "x"),
            ("<styled>p</style>x", "x"),
            ("<style>p</style >x", "px"),
            ("<style>a<style>b</style>c</style>d", "cd"),
            ("<style></script>a</style>b", "b"),
            ("<script>a</style>b", "ab"),
            ("<script>a</script>b<script>c", "bc"),
            ("<style a</style>b", "b"),
            ("< style>a</style>b", "ab"),
            ("a>b<c", "a>b<c"),
            ("<b>a<", "a<"),
        ];
        for (text, result) in cases {
            assert_eq!(remove(text).as_deref().unwrap_or(text), result, "{text:?}");
        }
        for text in ["", "a", "a > b", "a < b", "<!-- a"] {
            assert_eq!(remove(text), None, "{text:?}");
        }
    }
}
