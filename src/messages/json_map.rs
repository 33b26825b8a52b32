//! JSON objects that are maps: the JSON columns of schema 11, from ids or names to values.

use serde::de::MapAccess;
use serde_json::value::RawValue;

use crate::error::Result;
use crate::messages::json_stream::{Keys, Parsed, Source, Value, parse};

/// Passes each key, with the JSON text of its value, to `each`. One entry at a time is in memory, of at most
/// `max_entry_bytes`. Errors as those of `json_stream::parse`.
pub fn each_entry<'s>(
    input: impl Into<Source<'s>>,
    max_entry_bytes: u64,
    mut each: impl FnMut(&str, &str) -> Result<()>,
) -> Result<()> {
    parse(input.into(), max_entry_bytes, &mut Entries(&mut each))
}

struct Entries<'e>(&'e mut dyn FnMut(&str, &str) -> Result<()>);

impl Keys for Entries<'_> {
    const WHAT: &'static str = "an object";

    fn value<'de, A: MapAccess<'de>>(&mut self, key: &str, value: Value<'_, A>) -> Parsed<bool, A::Error> {
        value.pass(|json: Box<RawValue>| (self.0)(key, json.get())).map(|()| true)
    }
}
