//! JSON of unchunked changes (sync-protocol.md 6.5):
//! `{"changes":{"models":[..],"decks":[[decks],[options]],"tags":[..],"conf":{..},"crt":n}}`.
//!
//! Objects are passed on as JSON text; `collection::blobs` parses them.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::Result;
use crate::messages::integers::Int;
use crate::messages::json_stream::{
    Context, Each, Envelope, Keys, List, Parsed, Source, Value, end_of_row, parse,
};

/// Receives the changes as they are parsed.
pub trait ChangeSink {
    /// A notetype, in schema-11 JSON.
    fn notetype(&mut self, json: &str) -> Result<()>;
    /// A deck, in schema-11 JSON.
    fn deck(&mut self, json: &str) -> Result<()>;
    /// Deck options, in schema-11 JSON.
    fn deck_config(&mut self, json: &str) -> Result<()>;
    /// The name of a tag.
    fn tag(&mut self, name: &str) -> Result<()>;
    /// The client's complete config follows: delete the stored one.
    fn replace_config(&mut self) -> Result<()>;
    /// An entry of the client's config.
    fn config_entry(&mut self, key: &str, json: &str) -> Result<()>;
    /// The collection's creation stamp, seconds.
    fn created(&mut self, stamp: i64) -> Result<()>;
}

/// Discards the changes.
impl ChangeSink for () {
    fn notetype(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn deck(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn deck_config(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn tag(&mut self, _: &str) -> Result<()> {
        Ok(())
    }

    fn replace_config(&mut self) -> Result<()> {
        Ok(())
    }

    fn config_entry(&mut self, _: &str, _: &str) -> Result<()> {
        Ok(())
    }

    fn created(&mut self, _: i64) -> Result<()> {
        Ok(())
    }
}

/// Checks that `read` will accept this body.
pub fn check<'s>(input: impl Into<Source<'s>>, max_object_bytes: u64) -> Result<()> {
    read(input, max_object_bytes, &mut ())
}

/// Reads the body of `applyChanges`. One object at a time is in memory, of at most `max_object_bytes`.
pub fn read<'s>(
    input: impl Into<Source<'s>>,
    max_object_bytes: u64,
    sink: &mut dyn ChangeSink,
) -> Result<()> {
    parse(
        input.into(),
        max_object_bytes,
        &mut Envelope::new("changes", &mut Changes { sink, missing: REQUIRED.to_vec() }),
    )
}

const REQUIRED: [&str; 3] = ["models", "decks", "tags"];

struct Changes<'s> {
    sink: &'s mut dyn ChangeSink,
    missing: Vec<&'static str>,
}

impl Keys for Changes<'_> {
    const WHAT: &'static str = "an object with models, decks and tags";

    fn value<'de, A: MapAccess<'de>>(&mut self, key: &str, value: Value<'_, A>) -> Parsed<bool, A::Error> {
        self.missing.retain(|missing| *missing != key);
        let sink = &mut *self.sink;
        match key {
            "models" => value.list(|json: Box<RawValue>| sink.notetype(json.get()))?,
            "decks" => value.seeded(|context| Decks { context, sink })?,
            "tags" => value.list(|name: String| sink.tag(&name))?,
            "conf" => value.object(&mut Config { sink })?,
            "crt" => value.pass(|stamp: Option<Int>| stamp.map_or(Ok(()), |stamp| sink.created(stamp.0)))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn missing(&self) -> Option<&'static str> {
        self.missing.first().copied()
    }
}

struct Config<'s> {
    sink: &'s mut dyn ChangeSink,
}

impl Keys for Config<'_> {
    const WHAT: &'static str = "an object of config entries";

    fn may_be_null(&self) -> bool {
        true
    }

    fn begin(&mut self) -> Result<()> {
        self.sink.replace_config()
    }

    fn value<'de, A: MapAccess<'de>>(&mut self, key: &str, value: Value<'_, A>) -> Parsed<bool, A::Error> {
        value.pass(|json: Box<RawValue>| self.sink.config_entry(key, json.get())).map(|()| true)
    }
}

struct Decks<'a> {
    context: &'a Context,
    sink: &'a mut dyn ChangeSink,
}

impl<'de> DeserializeSeed<'de> for Decks<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Parsed<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Decks<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pair of lists: decks and options")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Parsed<(), A::Error> {
        let (context, sink) = (self.context, self.sink);
        let decks = Each::new(|json: Box<RawValue>| sink.deck(json.get()));
        let decks = pair.next_element_seed(List::new(context, decks))?;
        let configs = Each::new(|json: Box<RawValue>| sink.deck_config(json.get()));
        let configs = pair.next_element_seed(List::new(context, configs))?;
        if decks.is_none() || configs.is_none() {
            return Err(A::Error::custom("decks need a list of decks and a list of options"));
        }
        end_of_row(&mut pair)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<String>);

    impl ChangeSink for Seen {
        fn notetype(&mut self, json: &str) -> Result<()> {
            self.0.push(format!("notetype {json}"));
            Ok(())
        }
        fn deck(&mut self, json: &str) -> Result<()> {
            self.0.push(format!("deck {json}"));
            Ok(())
        }
        fn deck_config(&mut self, json: &str) -> Result<()> {
            self.0.push(format!("options {json}"));
            Ok(())
        }
        fn tag(&mut self, name: &str) -> Result<()> {
            self.0.push(format!("tag {name}"));
            Ok(())
        }
        fn replace_config(&mut self) -> Result<()> {
            self.0.push("config".to_owned());
            Ok(())
        }
        fn config_entry(&mut self, key: &str, json: &str) -> Result<()> {
            self.0.push(format!("{key} = {json}"));
            Ok(())
        }
        fn created(&mut self, stamp: i64) -> Result<()> {
            self.0.push(format!("crt {stamp}"));
            Ok(())
        }
    }

    fn seen(body: &str) -> Result<Vec<String>> {
        let mut sink = Seen::default();
        read(body, 1 << 20, &mut sink)?;
        Ok(sink.0)
    }

    #[test]
    fn objects_are_passed_on_as_the_received_text() {
        let body = r#"{"changes":{"models":[{"id":1.50}],"decks":[[{"a":1}],[{"b":2}]],"tags":["x::y"],
            "conf":{"k":[1,2.50],"n":null},"crt":7,"new":1}}"#;
        let expected = [
            r#"notetype {"id":1.50}"#,
            r#"deck {"a":1}"#,
            r#"options {"b":2}"#,
            "tag x::y",
            "config",
            "k = [1,2.50]",
            "n = null",
            "crt 7",
        ];
        assert_eq!(seen(body).unwrap(), expected);
    }

    #[test]
    fn config_and_stamp_may_be_null_or_missing() {
        let body = r#"{"changes":{"models":[],"decks":[[],[]],"tags":[],"conf":null,"crt":null}}"#;
        assert!(seen(body).unwrap().is_empty());
    }

    #[test]
    fn other_shapes_are_bad_requests() {
        for body in [
            "{}",
            r#"{"changes":{}}"#,
            r#"{"changes":{"models":[],"decks":[[]],"tags":[]}}"#,
            r#"{"changes":{"models":[],"decks":[[],[],[]],"tags":[]}}"#,
            r#"{"changes":{"models":{},"decks":[[],[]],"tags":[]}}"#,
            r#"{"changes":{"models":[],"decks":[[],[]],"tags":[1]}}"#,
            r#"{"changes":{"models":[],"decks":[[],[]],"tags":[],"conf":[]}}"#,
        ] {
            assert_eq!(seen(body).unwrap_err().status(), 400, "{body}");
        }
    }
}
