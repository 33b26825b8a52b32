//! Deletions on the wire: `{"cards":[id],"notes":[id],"decks":[id]}` (collection-format.md 11).

use std::fmt;
use std::io::Read;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::StartRequest;
use super::int::Int;
use super::stream::{Context, List, parse};
use crate::error::Result;

/// What was deleted; the numbers are those of the `graves` table.
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
    /// The kinds with their keys.
    pub const ALL: [(GraveKind, &'static str); 3] =
        [(GraveKind::Card, "cards"), (GraveKind::Note, "notes"), (GraveKind::Deck, "decks")];

    fn of_key(key: &str) -> Option<GraveKind> {
        GraveKind::ALL.iter().find(|(_, name)| *name == key).map(|(kind, _)| *kind)
    }
}

/// A list of deletions is short for each element; the bound only has to stop endless numbers.
const MAX_ELEMENT_BYTES: u64 = 64 * 1024;

/// Checks that `read_chunk` will not fail.
pub fn check_chunk(input: impl Read) -> Result<()> {
    read_chunk(input, |_, _| Ok(()))
}

/// Reads the body of `applyGraves`: `{"chunk": graves}`. Each id goes to `each`.
pub fn read_chunk(input: impl Read, mut each: impl FnMut(GraveKind, i64) -> Result<()>) -> Result<()> {
    parse(input, MAX_ELEMENT_BYTES, |context| Envelope { context, each: &mut each })
}

/// Reads the body of `start`. Old clients put their graves there; they may be missing or null.
pub fn read_start(
    input: impl Read,
    mut each: impl FnMut(GraveKind, i64) -> Result<()>,
) -> Result<StartRequest> {
    parse(input, MAX_ELEMENT_BYTES, |context| Start { context, each: &mut each })
}

struct Start<'a, F> {
    context: Context,
    each: &'a mut F,
}

impl<'de, F: FnMut(GraveKind, i64) -> Result<()>> DeserializeSeed<'de> for Start<'_, F> {
    type Value = StartRequest;

    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<StartRequest, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(GraveKind, i64) -> Result<()>> Visitor<'de> for Start<'_, F> {
    type Value = StartRequest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with minUsn and lnewer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<StartRequest, A::Error> {
        let (mut client_usn, mut client_is_newer) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "minUsn" => client_usn = Some(map.next_value()?),
                "lnewer" => client_is_newer = Some(map.next_value()?),
                "graves" => map.next_value_seed(Graves {
                    context: &self.context,
                    required: false,
                    each: &mut *self.each,
                })?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
            self.context.element_done();
        }
        Ok(StartRequest {
            client_usn: client_usn.ok_or_else(|| A::Error::missing_field("minUsn"))?,
            client_is_newer: client_is_newer.ok_or_else(|| A::Error::missing_field("lnewer"))?,
        })
    }
}

struct Envelope<'a, F> {
    context: Context,
    each: &'a mut F,
}

impl<'de, F: FnMut(GraveKind, i64) -> Result<()>> DeserializeSeed<'de> for Envelope<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(GraveKind, i64) -> Result<()>> Visitor<'de> for Envelope<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with chunk")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let mut found = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "chunk" {
                found = true;
                map.next_value_seed(Graves {
                    context: &self.context,
                    required: true,
                    each: &mut *self.each,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            self.context.element_done();
        }
        match found {
            true => Ok(()),
            false => Err(A::Error::missing_field("chunk")),
        }
    }
}

struct Graves<'a, F> {
    context: &'a Context,
    required: bool,
    each: &'a mut F,
}

impl<'de, F: FnMut(GraveKind, i64) -> Result<()>> DeserializeSeed<'de> for Graves<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(GraveKind, i64) -> Result<()>> Visitor<'de> for Graves<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("lists of deleted cards, notes and decks")
    }

    fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<(), E> {
        match self.required {
            true => Err(E::custom("no graves")),
            false => Ok(()),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let each = self.each;
        let mut lists = 0;
        while let Some(key) = map.next_key::<String>()? {
            match GraveKind::of_key(&key) {
                Some(kind) => {
                    lists += 1;
                    map.next_value_seed(List::new(self.context, |id: Int| each(kind, id.0)))?;
                }
                None => drop(map.next_value::<IgnoredAny>()?),
            }
            self.context.element_done();
        }
        match lists >= GraveKind::ALL.len() {
            true => Ok(()),
            false => Err(A::Error::custom("graves need cards, notes and decks")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graves(text: &str) -> Result<Vec<(GraveKind, i64)>> {
        let mut found = Vec::new();
        read_chunk(text.as_bytes(), |kind, id| {
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
        for text in [r#"{"lnewer":true,"minUsn":1}"#, r#"{"minUsn":1,"lnewer":true,"graves":null}"#] {
            let request = read_start(text.as_bytes(), |_, _| panic!("no grave was sent")).unwrap();
            assert_eq!((request.client_usn, request.client_is_newer), (1, true));
        }
        for text in [r#"{"minUsn":1}"#, r#"{"minUsn":1,"lnewer":true,"graves":[]}"#] {
            assert_eq!(read_start(text.as_bytes(), |_, _| Ok(())).err().map(|err| err.status()), Some(400));
        }
    }

    #[test]
    fn an_endless_text_is_refused_in_bounded_memory() {
        let long = "1".repeat(1 << 20);
        assert_eq!(graves(&format!(r#"{{"chunk":{{"cards":["{long}"]}}}}"#)).unwrap_err().status(), 413);
        for text in [format!(r#"{{"minUsn":"{long}"}}"#), format!(r#"{{"{long}"#)] {
            assert_eq!(read_start(text.as_bytes(), |_, _| Ok(())).err().map(|err| err.status()), Some(413));
        }
    }
}
