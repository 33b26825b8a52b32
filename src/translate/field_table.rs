//! The rows that tables are made of; see the module above for how to read one.

use std::borrow::Cow;

use super::converters::Converter;

/// Number of the field that keeps unknown JSON keys (spec 3.4).
pub const OTHER: u32 = 255;

/// How a field is stored in its message (spec 3.1).
#[derive(Debug, Clone, Copy)]
pub enum Pb {
    Bool,
    U32,
    /// Also every enum: their values are kept whether known or not.
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
    /// Not in the message: a column of the row, or nowhere.
    Unstored,
}

/// What to do when a key is missing or has an invalid value.
#[derive(Debug, Clone, Copy)]
pub enum Otherwise {
    /// Refuse the object; in a section of deck options, replace the section (SEC in the spec).
    Refuse,
    /// Go on as if the key had this JSON text.
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
    /// Never, or by code that is not the engine.
    Never,
}

/// Replaces values outside `min..=max`, and NaN, on the way out (spec 5.3).
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

/// A field of the message that shares the key of another, or has none.
pub const fn hidden(no: u32, pb: Pb) -> Field {
    let row = field(no, pb, "", super::converters::ANY, ERR, ERR);
    Field { key: None, ..row }
}

/// A key that is not in the message: a column of the row, or a key that is checked and forgotten.
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
    column(key, super::converters::ANY, missing, ERR).not_emitted()
}

impl Field {
    /// Whether it is in the message.
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

/// The value of one field, between its two forms.
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

/// What must hold for a table: its numbers are unique, its keys too (also among those of `others`, which share the
/// object), and every default is one that the code of its row accepts.
#[cfg(test)]
pub fn assert_consistent(table: &[Field], others: &[&[Field]]) {
    use super::converters::Convert;
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
