//! The parts of a field table: rows, values and converters, and the message that a table describes. `mod.rs` explains
//! how to read a row.

use std::borrow::Cow;

use super::json::Object;

/// Number of the field that keeps unknown JSON keys (spec 3.4).
pub const OTHER: u32 = 255;

/// How a field is stored in its message (spec 3.1).
#[derive(Debug, Clone, Copy)]
pub enum Pb {
    Bool,
    U32,
    /// Also every enum. Unknown enum values are kept.
    I32,
    I64,
    F32,
    Str,
    Bytes,
    /// A packed list.
    F32s,
    /// A packed list.
    U32s,
    /// An embedded message with a table of its own.
    Embedded(&'static [Field]),
    /// A list of embedded messages.
    Repeated(&'static [Field]),
    /// Not in the message: a column of the database row, or not stored at all.
    Unstored,
}

/// What to do when a key is missing or has an invalid value.
#[derive(Debug, Clone, Copy)]
pub enum Otherwise {
    /// Refuse the object; in a section of deck options, replace the section (SEC in the spec).
    Refuse,
    /// Use this JSON text as the value of the key.
    Use(&'static str),
}

/// Short for the tables.
pub const ERR: Otherwise = Otherwise::Refuse;

/// Short for the tables.
pub const fn or(text: &'static str) -> Otherwise {
    Otherwise::Use(text)
}

/// When a key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    Always,
    /// Only if it has a value other than the default (or, with presence, any).
    IfSet,
    /// Never by `object_codec.rs`; other code may write it.
    Never,
}

/// Replaces stored values outside `min..=max`, and NaN, by `default` when JSON is written (spec 5.3).
#[derive(Debug, Clone, Copy)]
pub struct Clamp {
    pub default: f32,
    pub min: f32,
    pub max: f32,
}

/// One row of a table.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub no: u32,
    pub pb: Pb,
    pub key: Option<&'static str>,
    pub converter: Converter,
    pub missing: Otherwise,
    pub invalid: Otherwise,
    /// Written to the message whenever it is set, even to 0.
    pub presence: bool,
    pub emit: Emit,
    pub clamp: Option<Clamp>,
}

/// A field of the message that has a key of its own.
pub const fn field(
    no: u32,
    pb: Pb,
    key: &'static str,
    converter: Converter,
    missing: Otherwise,
    invalid: Otherwise,
) -> Field {
    Field {
        no,
        pb,
        key: Some(key),
        converter,
        missing,
        invalid,
        presence: false,
        emit: Emit::Always,
        clamp: None,
    }
}

/// A field of the message without a key of its own: it shares the key of another row, or has none.
pub const fn hidden(no: u32, pb: Pb) -> Field {
    let row = field(no, pb, "", ANY, ERR, ERR);
    Field { key: None, ..row }
}

/// A key that is not in the message: a column of the database row, or a key that is checked but not stored.
pub const fn column(
    key: &'static str,
    converter: Converter,
    missing: Otherwise,
    invalid: Otherwise,
) -> Field {
    field(0, Pb::Unstored, key, converter, missing, invalid)
}

/// A key whose value other code reads and writes.
pub const fn nested(key: &'static str, missing: Otherwise) -> Field {
    column(key, ANY, missing, ERR).not_emitted()
}

impl Field {
    /// Whether the field is stored in the message.
    pub const fn stored(&self) -> bool {
        !matches!(self.pb, Pb::Unstored)
    }

    /// Marks a field that is written to the message whenever it is set, even to 0.
    pub const fn presence(self) -> Field {
        Field { presence: true, ..self }
    }

    /// Writes the key only if it is set.
    pub const fn emit_if_set(self) -> Field {
        Field { emit: Emit::IfSet, ..self }
    }

    /// Never writes the key.
    pub const fn not_emitted(self) -> Field {
        Field { emit: Emit::Never, ..self }
    }

    pub const fn clamp(self, default: f32, min: f32, max: f32) -> Field {
        Field { clamp: Some(Clamp { default, min, max }), ..self }
    }
}

/// The value of one field, independent of JSON and protobuf.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Not set; without presence, the same as the default.
    Unset,
    /// Any integer, enum or bool.
    Int(i64),
    Float(f32),
    Text(Cow<'a, str>),
    /// Bytes, or one embedded message.
    Bytes(Cow<'a, [u8]>),
    Floats(Vec<f32>),
    Ints(Vec<u32>),
    /// Embedded messages one after another, each behind its length. A list of them would let a blob of empty messages
    /// grow many times over.
    Messages(Vec<u8>),
}

impl Value<'_> {
    /// Whether proto3 leaves it out of a message (without presence).
    pub fn is_default(&self) -> bool {
        match self {
            Value::Unset => true,
            Value::Int(value) => *value == 0,
            Value::Float(value) => *value == 0.0,
            Value::Text(value) => value.is_empty(),
            Value::Bytes(value) => value.is_empty(),
            Value::Floats(values) => values.is_empty(),
            Value::Ints(values) => values.is_empty(),
            Value::Messages(values) => values.is_empty(),
        }
    }

    /// The integer, enum or bool; 0 if unset.
    pub fn int(&self) -> i64 {
        match self {
            Value::Int(value) => *value,
            _ => 0,
        }
    }

    /// The number; 0 if unset.
    pub fn float(&self) -> f32 {
        match self {
            Value::Float(value) => *value,
            _ => 0.0,
        }
    }

    /// The string; "" if unset.
    pub fn text(&self) -> &str {
        match self {
            Value::Text(value) => value,
            _ => "",
        }
    }

    /// The bytes; none if unset.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Value::Bytes(value) => value,
            Value::Messages(values) => values,
            _ => &[],
        }
    }
}

/// Converts between the JSON text of a key and the value of a field.
#[derive(Debug, Clone, Copy)]
pub struct Converter {
    /// For the error text.
    pub expects: &'static str,
    pub convert: Convert,
}

/// Reads one value: `None` if the text is not acceptable.
type Read = for<'a> fn(&'a str) -> Option<Value<'a>>;
type Write = fn(&Value<'_>, &mut Vec<u8>);
/// Reads one key into the message; the converter may look at the other keys of the object.
type ReadSeveral = for<'a> fn(&Object<'a>, &Field, &'a str, &mut Message<'a>) -> Option<()>;
type WriteSeveral = fn(&Message<'_>, &Field, &mut Vec<u8>);

#[derive(Debug, Clone, Copy)]
pub enum Convert {
    /// One key, one field.
    One { read: Read, write: Write },
    /// One key that depends on several fields, or one field that depends on several keys.
    Several { read: ReadSeveral, write: WriteSeveral },
}

pub const fn one(expects: &'static str, read: Read, write: Write) -> Converter {
    Converter { expects, convert: Convert::One { read, write } }
}

pub const fn several(expects: &'static str, read: ReadSeveral, write: WriteSeveral) -> Converter {
    Converter { expects, convert: Convert::Several { read, write } }
}

impl Converter {
    /// The same JSON is accepted, but the value is written in another way.
    pub const fn written(self, write: Write) -> Converter {
        match self.convert {
            Convert::One { read, .. } => one(self.expects, read, write),
            Convert::Several { .. } => panic!("has no single value to write"),
        }
    }
}

/// Accepts anything and stores nothing.
const ANY: Converter = one("anything", |_| Some(Value::Unset), |_, out| out.extend_from_slice(b"null"));

/// The values of one message, or of a part of one: those fields that `table` has.
#[derive(Debug)]
pub struct Message<'a> {
    pub(super) table: &'static [Field],
    /// In the order of the table.
    pub(super) values: Vec<Value<'a>>,
}

impl<'a> Message<'a> {
    pub fn new(table: &'static [Field]) -> Message<'a> {
        Message { table, values: vec![Value::Unset; table.len()] }
    }

    /// The value of the field with this number.
    pub fn at(&self, no: u32) -> &Value<'a> {
        &self.values[self.position(no)]
    }

    pub fn set(&mut self, no: u32, value: Value<'a>) {
        let position = self.position(no);
        self.values[position] = value;
    }

    /// The value of the row with this key: for columns, which have no number.
    pub fn column(&self, key: &str) -> &Value<'a> {
        &self.values[self.position_of(key)]
    }

    pub fn set_column(&mut self, key: &str, value: Value<'a>) {
        let position = self.position_of(key);
        self.values[position] = value;
    }

    /// Sets the columns that every row has.
    pub fn set_columns(&mut self, id: i64, name: &'a str, mtime_secs: i64, usn: i32) {
        self.set_column("id", Value::Int(id));
        self.set_column("name", Value::Text(name.into()));
        self.set_column("mod", Value::Int(mtime_secs));
        self.set_column("usn", Value::Int(usn.into()));
    }

    fn position(&self, no: u32) -> usize {
        let row = self.table.iter().position(|row| row.no == no && row.stored());
        row.expect("numbers are constants, of rows in the same file as the table")
    }

    fn position_of(&self, key: &str) -> usize {
        let row = self.table.iter().position(|row| row.key == Some(key));
        row.expect("keys are constants, of rows in the same file as the table")
    }

    /// The rows of the table with their values.
    pub fn rows(&self) -> impl Iterator<Item = (&'static Field, &Value<'a>)> {
        self.table.iter().zip(&self.values)
    }
}

/// Checks a table: field numbers are unique, keys are unique (also among `others`, tables of the same JSON object), and
/// each row's converter accepts its defaults.
#[cfg(test)]
pub fn assert_consistent(table: &[Field], others: &[&[Field]]) {
    use std::collections::HashSet;

    let mut numbers = HashSet::new();
    for row in table.iter().filter(|row| row.stored()) {
        assert!(numbers.insert(row.no), "field {} twice", row.no);
    }
    let mut keys = HashSet::new();
    for row in table.iter().chain(others.iter().copied().flatten()) {
        let Some(key) = row.key else { continue };
        assert!(keys.insert(key), "{key:?} twice");
        for otherwise in [row.missing, row.invalid] {
            if let (Otherwise::Use(text), Convert::One { read, .. }) = (otherwise, row.converter.convert) {
                assert!(read(text).is_some(), "{key:?} cannot be {text}");
            }
        }
    }
}
