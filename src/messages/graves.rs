//! JSON of deletions: `{"cards":[id],"notes":[id],"decks":[id]}` (collection-format.md 11).

use serde::de::{Error as _, MapAccess};

use crate::error::{Error, Result};
use crate::messages::StartRequest;
use crate::messages::integers::Int;
use crate::messages::json_stream::{Envelope, Keys, Parsed, Source, Value, parse};

/// The kind of a deleted object, with its number in the `graves` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraveKind {
    /// A card.
    Card = 0,
    /// A note.
    Note = 1,
    /// A deck.
    Deck = 2,
}

impl GraveKind {
    /// All kinds with their JSON keys.
    pub const ALL: [(GraveKind, &'static str); 3] =
        [(GraveKind::Card, "cards"), (GraveKind::Note, "notes"), (GraveKind::Deck, "decks")];

    fn of_key(key: &str) -> Option<GraveKind> {
        GraveKind::ALL.iter().find(|(_, name)| *name == key).map(|(kind, _)| *kind)
    }
}

/// Limit of one element. Elements are short integers; the limit is there to refuse endless ones.
const MAX_ELEMENT_BYTES: u64 = 64 * 1024;

/// Checks that `read_chunk` will accept this body.
pub fn check_chunk<'s>(input: impl Into<Source<'s>>) -> Result<()> {
    read_chunk(input, |_, _| Ok(()))
}

/// Reads the body of `applyGraves`: `{"chunk": graves}`. Each id goes to `each`.
pub fn read_chunk<'s>(
    input: impl Into<Source<'s>>,
    mut each: impl FnMut(GraveKind, i64) -> Result<()>,
) -> Result<()> {
    parse(input.into(), MAX_ELEMENT_BYTES, &mut Envelope::new("chunk", &mut Graves::new(&mut each, false)))
}

/// Reads the body of `start`. Old clients send their graves in it; other clients omit them or send null.
pub fn read_start<'s>(
    input: impl Into<Source<'s>>,
    mut each: impl FnMut(GraveKind, i64) -> Result<()>,
) -> Result<StartRequest> {
    let mut start = Start { client_usn: None, client_is_newer: None, graves: Graves::new(&mut each, true) };
    parse(input.into(), MAX_ELEMENT_BYTES, &mut start)?;
    match (start.client_usn, start.client_is_newer) {
        (Some(client_usn), Some(client_is_newer)) => Ok(StartRequest { client_usn, client_is_newer }),
        _ => Err(Error::bad("start without minUsn or lnewer")),
    }
}

struct Start<'e> {
    client_usn: Option<i32>,
    client_is_newer: Option<bool>,
    graves: Graves<'e>,
}

impl Keys for Start<'_> {
    const WHAT: &'static str = "an object with minUsn and lnewer";

    fn value<'de, A: MapAccess<'de>>(&mut self, key: &str, value: Value<'_, A>) -> Parsed<bool, A::Error> {
        match key {
            "minUsn" => {
                let usn = value.read::<Int>()?.0;
                let usn = i32::try_from(usn).map_err(|_| A::Error::custom("minUsn is out of range"))?;
                self.client_usn = Some(usn);
            }
            "lnewer" => self.client_is_newer = Some(value.read()?),
            "graves" => value.object(&mut self.graves)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// The object of three lists.
struct Graves<'e> {
    each: &'e mut dyn FnMut(GraveKind, i64) -> Result<()>,
    may_be_null: bool,
    missing: Vec<&'static str>,
}

impl<'e> Graves<'e> {
    fn new(each: &'e mut dyn FnMut(GraveKind, i64) -> Result<()>, may_be_null: bool) -> Graves<'e> {
        Graves { each, may_be_null, missing: GraveKind::ALL.map(|(_, key)| key).to_vec() }
    }
}

impl Keys for Graves<'_> {
    const WHAT: &'static str = "an object with lists of deleted cards, notes and decks";

    fn may_be_null(&self) -> bool {
        self.may_be_null
    }

    fn value<'de, A: MapAccess<'de>>(&mut self, key: &str, value: Value<'_, A>) -> Parsed<bool, A::Error> {
        let Some(kind) = GraveKind::of_key(key) else { return Ok(false) };
        self.missing.retain(|missing| *missing != key);
        value.list(|id: Int| (self.each)(kind, id.0)).map(|()| true)
    }

    fn missing(&self) -> Option<&'static str> {
        self.missing.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graves(text: &str) -> Result<Vec<(GraveKind, i64)>> {
        let mut found = Vec::new();
        read_chunk(text, |kind, id| {
            found.push((kind, id));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn ids_come_as_numbers_or_strings_in_any_order() {
        let found = graves(r#"{"x":[1],"chunk":{"decks":["7"],"notes":[],"cards":[1,2],"new":{}}}"#).unwrap();
        assert_eq!(found, [(GraveKind::Deck, 7), (GraveKind::Card, 1), (GraveKind::Card, 2)]);
    }

    #[test]
    fn other_shapes_are_bad_requests() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"chunk":null}"#,
            r#"{"chunk":{"cards":[]}}"#,
            r#"{"chunk":{"cards":[{}],"notes":[],"decks":[]}}"#,
            r#"{"chunk":{"cards":[],"notes":[],"decks":[]}} x"#,
        ] {
            assert_eq!(graves(text).unwrap_err().status(), 400, "{text}");
        }
    }

    #[test]
    fn start_may_lack_graves() {
        for text in [r#"{"lnewer":true,"minUsn":1}"#, r#"{"minUsn":1.0,"lnewer":true,"graves":null}"#] {
            let request = read_start(text, |_, _| panic!("no grave was sent")).unwrap();
            assert_eq!((request.client_usn, request.client_is_newer), (1, true));
        }
        for text in [r#"{"minUsn":1}"#, r#"{"minUsn":1,"lnewer":true,"graves":[]}"#] {
            assert_eq!(read_start(text, |_, _| Ok(())).err().map(|err| err.status()), Some(400));
        }
    }

    #[test]
    fn an_endless_text_is_refused_in_bounded_memory() {
        let long = "1".repeat(1 << 20);
        assert_eq!(graves(&format!(r#"{{"chunk":{{"cards":["{long}"]}}}}"#)).unwrap_err().status(), 413);
        for text in [format!(r#"{{"minUsn":"{long}"}}"#), format!(r#"{{"{long}"#)] {
            assert_eq!(read_start(&*text, |_, _| Ok(())).err().map(|err| err.status()), Some(413));
        }
    }
}
