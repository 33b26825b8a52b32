//! Translation between the rows of a schema-18 collection (protobuf blobs) and the JSON objects of the wire and of
//! schema 11: decks, deck options, notetypes (spec, collection-format.md sections 3 to 6).
//!
//! What is translated is data. Each object has tables (`deck.rs`, `deck_config.rs`, `notetype.rs`) that read like those
//! of the spec, one row per field:
//!
//! ```text
//! field(24, U32, "maxTaken", converters::COUNT, ERR, ERR).clamp(60.0, 1.0, 9999.0),
//!       |   |    |           |            |    |    `- on output: default, minimum, maximum
//!       |   |    |           |            |    `- key present with a value that the code does not accept
//!       |   |    |           |            `- key missing
//!       |   |    |           `- what JSON is accepted, and how it is converted both ways (`converters.rs`)
//!       |   |    `- JSON key
//!       |   `- protobuf type
//!       `- protobuf field number
//! ```
//!
//! `ERR` refuses the object; `or("...")` goes on as if the key had that JSON text. One engine (`object_codec.rs`) reads the
//! tables in both directions. **When Anki grows a field**, add its row to the table of its message; if no code
//! converts it as Anki does, add one to `converters.rs` (or beside the table, if only that object needs it).
//!
//! What no table knows survives: unknown JSON keys are kept, as the text in which they arrived, in field 255 of the
//! message and come out again (spec 3.4), except where a table has a row of that name, so that no key is ever
//! written twice. Unknown protobuf fields are skipped; the blob is not touched until a client replaces the object.
//!
//! Every text and blob comes from a client, so nothing here trusts any. A text is validated once, without recursion
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

/// Why an object cannot be taken from a client, or a stored row cannot be sent: which key or field, and what was
/// expected of it. It holds names of keys, never what the user wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

impl Refused {
    /// Says where in the object it happened.
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

/// A JSON text from outside without the white space between its parts, if every client can read it.
pub fn compact_json(text: &str) -> Result<Vec<u8>, Refused> {
    json::compact(text).map_err(|what| Refused(what.into()))
}

/// The name in an object's JSON, as it was before any normalisation.
pub fn name_in_json(text: &str) -> Option<String> {
    let object = json::Object::parse(text)?;
    json::string(object.get("name")?).map(|name| name.into_owned())
}

/// Leaves `out` as it was if `write` fails, so that half an object never reaches a client.
fn whole(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), Refused>) -> Result<(), Refused> {
    let start = out.len();
    let result = write(out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}
