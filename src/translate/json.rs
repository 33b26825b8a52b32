//! JSON read in place and written piece by piece.
//!
//! [`Object::check`] validates a text from outside once. After that, every part of it is known to be JSON that any client
//! can read, and is handled as text (`&str`) or as a list of keys and texts.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Refused;

/// How deep an object may nest. Clients parse whole requests and replies with a limit of 128 levels, of which the
/// envelope takes up to four; a text beyond it, once stored, would break every later sync of its collection.
pub const MAX_DEPTH: usize = 120;

/// The same for the unknown keys kept with a row: those of fields and templates sit two levels down in a notetype.
const MAX_DEPTH_OTHER: usize = MAX_DEPTH - 4;

/// The keys of a JSON object, in order, with the texts of their values. If a key is repeated, only its last entry is kept.
#[derive(Debug, Default)]
pub struct Object<'a> {
    entries: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'a> Object<'a> {
    /// Reads a text from outside.
    pub fn check(text: &'a str, max_depth: usize) -> Result<Object<'a>, Refused> {
        check_limits(text, max_depth)
            .and_then(|()| serde_json::from_str::<&RawValue>(text).map_err(|_| "not JSON"))
            .and_then(|_| Object::parse(text).ok_or("not an object"))
            .map_err(|what| Refused(what.into()))
    }

    /// Reads a part of a checked text; `None` if it is not an object.
    pub fn parse(text: &'a str) -> Option<Object<'a>> {
        serde_json::from_str(text).ok()
    }

    /// The unknown keys stored with a row. Empty if the bytes are not a JSON object that clients can read (spec 3.4).
    pub fn from_other(bytes: &'a [u8]) -> Object<'a> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty());
        text.and_then(|text| Object::check(text, MAX_DEPTH_OTHER).ok()).unwrap_or_default()
    }

    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, text)| text)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.entries.iter().map(|(key, text)| (key.as_ref(), *text))
    }

    fn drop_superseded(&mut self) {
        let key = |i: usize| &*self.entries[i].0;
        let mut order: Vec<usize> = (0..self.entries.len()).collect();
        order.sort_unstable_by(|&a, &b| key(a).cmp(key(b)).then(a.cmp(&b)));
        let superseded = |pair: &[usize]| (key(pair[0]) == key(pair[1])).then_some(pair[0]);
        let mut superseded: Vec<usize> = order.windows(2).filter_map(superseded).collect();
        if superseded.is_empty() {
            return;
        }
        superseded.sort_unstable();
        let mut i = 0;
        self.entries.retain(|_| {
            i += 1;
            superseded.binary_search(&(i - 1)).is_err()
        });
    }
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut object = Object::default();
                while let Some((Text(key), value)) = map.next_entry::<Text<'de>, &RawValue>()? {
                    object.entries.push((key, value.get()));
                }
                object.drop_superseded();
                Ok(object)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A string, borrowed unless it has escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrow;
        impl<'de> Visitor<'de> for Borrow {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Borrow)
    }
}

/// The value of a part of a checked text; `None` if it is not a string.
pub fn string(text: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text>(text).ok().map(|text| text.0)
}

/// Hands the elements of an array to `element` until it returns `None`; `None` also if the text is not an array.
pub fn each<'a>(text: &'a str, element: impl FnMut(&'a str) -> Option<()>) -> Option<()> {
    struct Elements<'a, F>(F, PhantomData<&'a str>);
    impl<'a, F: FnMut(&'a str) -> Option<()>> Visitor<'a> for Elements<'a, F> {
        type Value = Option<()>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'a>>(mut self, mut seq: A) -> Result<Option<()>, A::Error> {
            while let Some(value) = seq.next_element::<&RawValue>()? {
                if self.0(value.get()).is_none() {
                    while seq.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(None);
                }
            }
            Ok(Some(()))
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_seq(Elements(element, PhantomData)).ok().flatten()
}

/// Validates a text from outside like `Object::check`, but accepts any JSON value, and removes the white space between its
/// parts.
pub fn compact(text: &str) -> Result<Vec<u8>, &'static str> {
    check_limits(text, MAX_DEPTH)?;
    serde_json::from_str::<&RawValue>(text).map_err(|_| "not JSON")?;
    let (bytes, mut at) = (text.as_bytes(), 0);
    let mut compact = Vec::with_capacity(bytes.len());
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at = if byte == b'"' { string_end(bytes, at + 1)? } else { at + 1 };
        if !byte.is_ascii_whitespace() {
            compact.extend_from_slice(&bytes[start..at]);
        }
    }
    Ok(compact)
}

/// Refuses valid JSON that the parsers of clients refuse: too deep nesting, numbers beyond a double, halves of surrogate
/// pairs. Call it before the grammar check, which needs memory for each level.
fn check_limits(text: &str, max_depth: usize) -> Result<(), &'static str> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > max_depth {
                    return Err("nested too deep");
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = string_end(bytes, at)?,
            b'-' | b'0'..=b'9' => {
                at += bytes[at..].iter().take_while(|b| b"0123456789+-.eE".contains(b)).count();
                if text[start..at].parse().is_ok_and(f64::is_infinite) {
                    return Err("a number out of range");
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where the string that begins at `at` (behind its quote) ends.
fn string_end(bytes: &[u8], mut at: usize) -> Result<usize, &'static str> {
    let mut half = false;
    loop {
        let unit = unit_escape(&bytes[at.min(bytes.len())..]);
        if half != unit.is_some_and(|unit| (0xdc00..0xe000).contains(&unit)) {
            return Err("half a surrogate pair");
        }
        half = unit.is_some_and(|unit| (0xd800..0xdc00).contains(&unit));
        at += match (unit, bytes.get(at)) {
            (Some(_), _) => 6,
            (None, None) => return Err("not JSON"),
            (None, Some(b'"')) => return Ok(at + 1),
            (None, Some(b'\\')) => 2,
            (None, Some(_)) => 1,
        };
    }
}

/// The UTF-16 unit of an escape like `\u00e9` at the start of `bytes`.
fn unit_escape(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.first_chunk::<4>()?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)? as u16))
}

/// Writes an object key by key.
pub struct ObjectWriter<'o> {
    out: &'o mut Vec<u8>,
    empty: bool,
}

impl<'o> ObjectWriter<'o> {
    pub fn begin(out: &'o mut Vec<u8>) -> ObjectWriter<'o> {
        out.push(b'{');
        ObjectWriter { out, empty: true }
    }

    /// Writes the key; the caller must write the value next.
    pub fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        put_string(self.out, key);
        self.out.push(b':');
        self.out
    }

    /// Whether nothing was written into it.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    pub fn end(self) {
        self.out.push(b'}');
    }
}

/// Writes `[a,b,c]`.
pub fn put_array<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut put: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        put(out, item);
    }
    out.push(b']');
}

pub fn put_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a str is always JSON, and a Vec takes every write");
}

pub fn put_int(out: &mut Vec<u8>, value: i64) {
    put_display(out, format_args!("{value}"));
}

/// The shortest text that parses to the same f32; 0 for NaN and infinity, which JSON does not have (spec 3.3).
pub fn put_f32(out: &mut Vec<u8>, value: f32) {
    put_display(out, format_args!("{:?}", if value.is_finite() { value } else { 0.0 }));
}

pub fn put_bool(out: &mut Vec<u8>, value: bool) {
    put_display(out, format_args!("{value}"));
}

fn put_display(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    use std::io::Write;
    out.write_fmt(text).expect("a Vec takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_repeated_keys_counts() {
        let object = Object::check(r#"{"b":1,"a":2,"\u0062":[3],"c":4,"b": {"b":5} }"#, 9).unwrap();
        let entries: Vec<_> = object.iter().collect();
        assert_eq!(entries, [("a", "2"), ("c", "4"), ("b", r#"{"b":5}"#)]);
        assert_eq!(object.get("b"), Some(r#"{"b":5}"#));
        assert_eq!(object.get("d"), None);
    }

    #[test]
    fn white_space_goes_only_where_it_means_nothing() {
        let compacted = compact(" { \"a b\\\" \" : [ 1.50 ,\tnull ] ,\r\n\"c\":\" \"} ").unwrap();
        assert_eq!(compacted, br#"{"a b\" ":[1.50,null],"c":" "}"#);
        for (text, why) in [("", "not JSON"), ("1 2", "not JSON"), (r#""\ud800""#, "half a surrogate pair")] {
            assert_eq!(compact(text), Err(why), "{text}");
        }
    }

    #[test]
    fn texts_that_some_client_could_not_read() {
        let deep = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(Object::check(&deep(MAX_DEPTH), MAX_DEPTH).is_ok());
        let too_deep = deep(MAX_DEPTH + 1);
        for (text, why) in [
            (too_deep.as_str(), "nested too deep"),
            ("", "not JSON"),
            ("{", "not JSON"),
            (r#"{"a"#, "not JSON"),
            (r#"{"a\"#, "not JSON"),
            (r#"{"a\u12"#, "not JSON"),
            (r#"{"a":1}}"#, "not JSON"),
            (r#"{"a":1,}"#, "not JSON"),
            (r#"{"a":01}"#, "not JSON"),
            (r#"{"a":"\x"}"#, "not JSON"),
            ("{\"a\":\"\n\"}", "not JSON"),
            ("[]", "not an object"),
            ("null", "not an object"),
            (r#"{"a":1e999}"#, "a number out of range"),
            (r#"{"a":[-1.5e+400]}"#, "a number out of range"),
            (r#"{"a":"\ud800"}"#, "half a surrogate pair"),
            (r#"{"a":"\ud800x"}"#, "half a surrogate pair"),
            (r#"{"a":"\ud800\u0041"}"#, "half a surrogate pair"),
            (r#"{"\udc00":1}"#, "half a surrogate pair"),
        ] {
            assert_eq!(Object::check(text, MAX_DEPTH).unwrap_err().0, why, "{text}");
        }
        for text in [r#"{"a":"\ud83d\ude00\\u\"[{"}"#, r#"{"a":0e999,"b":1e-999}"#, " { } "] {
            assert!(Object::check(text, MAX_DEPTH).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_megabyte_of_brackets_is_an_error_not_a_stack_overflow() {
        for text in
            ["[".repeat(1 << 20), format!("{{\"a\":{}", "[".repeat(1 << 20)), "{\"a\":".repeat(1 << 18)]
        {
            assert_eq!(Object::check(&text, MAX_DEPTH).unwrap_err().0, "nested too deep");
        }
    }

    #[test]
    fn bytes_kept_with_a_row_are_not_trusted() {
        assert_eq!(Object::from_other(br#"{"a":1}"#).get("a"), Some("1"));
        for bytes in [&b""[..], b"{", b"[1]", b"null", b"{\"a\":\"\xff\"}"] {
            assert_eq!(Object::from_other(bytes).iter().count(), 0);
        }
    }

    #[test]
    fn elements_of_arrays() {
        let collect = |text| {
            let mut elements = Vec::new();
            each(text, |element| {
                elements.push(element);
                Some(())
            })
            .map(|()| elements)
        };
        assert_eq!(collect(r#"[ 1, [2, 3] ,"x"]"#), Some(vec!["1", "[2, 3]", "\"x\""]));
        assert_eq!(collect("[]"), Some(vec![]));
        assert_eq!(collect("{}"), None);
        assert_eq!(each("[1,2,3]", |element| (element != "2").then_some(())), None);
    }

    #[test]
    fn singles_as_text() {
        let text = |value| {
            let mut out = Vec::new();
            put_f32(&mut out, value);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(1.3), "1.3");
        assert_eq!(text(20.0), "20.0");
        assert_eq!(text(f32::NAN), "0.0");
        assert_eq!(text(f32::INFINITY), "0.0");
        for value in [f32::MIN_POSITIVE, f32::MAX, 1e-45, -0.1] {
            assert_eq!(serde_json::from_str::<f64>(&text(value)).unwrap() as f32, value);
        }
    }
}
