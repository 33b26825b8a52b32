//! Translation between the rows of a schema-18 collection (protobuf blobs) and the JSON objects of the wire and of
//! schema 11: decks, deck options, notetypes (spec, collection-format.md sections 3 to 6).
//!
//! The translation is described by tables, not code. Each object has tables (`deck.rs`, `deck_config.rs`, `notetype.rs`)
//! in the form of those in the spec, one row per field:
//!
//! ```text
//! field(24, U32, "maxTaken", converters::COUNT, ERR, ERR).clamp(60.0, 1.0, 9999.0),
//!       |   |    |           |                  |    |    `- on output: default, minimum, maximum
//!       |   |    |           |                  |    `- key present with a value that the converter does not accept
//!       |   |    |           |                  `- key missing
//!       |   |    |           `- what JSON is accepted, and how it is converted both ways (`converters.rs`)
//!       |   |    `- JSON key
//!       |   `- protobuf type
//!       `- protobuf field number
//! ```
//!
//! `ERR` refuses the object; `or("...")` uses that JSON text as the value. One codec (`object_codec.rs`) reads the
//! tables in both directions. **When Anki adds a field**, add its row to the table of its message; if no converter
//! does what Anki does, add one to `converters.rs` (or beside the table, if only that object needs it).
//!
//! Unknown keys survive: they are stored in field 255 of the message, as the text in which they arrived, and are sent
//! again (spec 3.4), except where a table has a row of that name, so that no key is ever written twice. Unknown
//! protobuf fields are skipped; the blob does not change until a client replaces the object.
//!
//! Every text and blob comes from a client and is not trusted. A text is validated once, without recursion
//! (`json.rs`), and then read in place: no tree of it is ever built. Nothing here does I/O, and nothing creates ids or
//! times. Deliberately absent: refusing id 0, unique names, merging. They belong to the collection.

mod converters;
mod deck;
mod deck_config;
pub mod deck_name;
mod field_table;
mod json;
mod notetype;
mod object_codec;
pub(crate) mod proto;
#[cfg(test)]
mod table_properties;

use std::fmt;

pub use deck::DeckRow;
pub use deck_config::DeckConfigRow;
pub use notetype::{FieldRow, NotetypeRow, TemplateRow, notetype_sort_field};

/// Why an object of a client is refused, or a stored row cannot be sent: which key or field, and what was expected. The
/// text holds names of keys, never the user's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

impl Refused {
    /// Puts the place in the object before the text.
    fn within(self, place: impl fmt::Display) -> Refused {
        Refused(format!("{place}: {}", self.0))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Removes the white space between the parts of a JSON text from outside. `Refused` if some client cannot read the text.
pub fn compact_json(text: &str) -> Result<Vec<u8>, Refused> {
    json::compact(text).map_err(|what| Refused(what.into()))
}

/// The value of `name` in an object's JSON, not normalised.
pub fn name_in_json(text: &str) -> Option<String> {
    let object = json::Object::parse(text)?;
    json::string(object.get("name")?).map(|name| name.into_owned())
}

/// Runs `write`. If it fails, `out` is truncated to its old length, so that no client gets half an object.
fn whole(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), Refused>) -> Result<(), Refused> {
    let start = out.len();
    let result = write(out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}
