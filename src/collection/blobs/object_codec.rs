//! Converts objects in both directions, as described by their tables: JSON object -> [`Message`] -> blob, and back.

use super::Refused;
use super::field_table::{Convert, Emit, Field, Message, OTHER, Otherwise, Pb, Value};
use super::json::{self, Object, ObjectWriter};
use super::proto::{self, Payload};

impl<'a> Message<'a> {
    /// Reads the keys of a table from an object.
    pub fn from_json(table: &'static [Field], object: &Object<'a>) -> Result<Message<'a>, Refused> {
        let mut message = Message::new(table);
        for (i, row) in table.iter().enumerate() {
            let Some(key) = row.key else { continue };
            match object.get(key) {
                None => message
                    .read_other(i, object, row.missing)
                    .ok_or_else(|| Refused(format!("\"{key}\" is missing"))),
                Some(text) => message
                    .read(i, object, text)
                    .or_else(|| message.read_other(i, object, row.invalid))
                    .ok_or_else(|| Refused(format!("\"{key}\" is not {}", row.converter.expects))),
            }?;
        }
        Ok(message)
    }

    /// Reads the row at position `i` of the table.
    fn read(&mut self, i: usize, object: &Object<'a>, text: &'a str) -> Option<()> {
        match self.table[i].converter.convert {
            Convert::One { read, .. } => {
                self.values[i] = read(text)?;
                Some(())
            }
            Convert::Several { read, .. } => read(object, &self.table[i], text, self),
        }
    }

    fn read_other(&mut self, i: usize, object: &Object<'a>, otherwise: Otherwise) -> Option<()> {
        match otherwise {
            Otherwise::Refuse => None,
            Otherwise::Use(text) => self.read(i, object, text),
        }
    }

    /// Writes the keys of the table; unknown keys are left to `write_unknown`.
    pub fn write_json(&self, out: &mut ObjectWriter<'_>) {
        for (row, value) in self.rows() {
            let unset = if row.presence { *value == Value::Unset } else { value.is_default() };
            let Some(key) = row.key else { continue };
            if row.emit == Emit::Never || row.emit == Emit::IfSet && unset {
                continue;
            }
            let out = out.key(key);
            match row.converter.convert {
                Convert::One { write, .. } => write(value, out),
                Convert::Several { write, .. } => write(self, row, out),
            }
        }
    }

    /// Reads the fields of a table from a blob and clamps them (spec 5.3). Other fields are skipped.
    pub fn decode(table: &'static [Field], blob: &'a [u8]) -> Result<Message<'a>, Refused> {
        let mut message = Message::new(table);
        for item in proto::Fields::new(blob) {
            let (no, payload) = item.map_err(|_| Refused("blob: not a protobuf message".into()))?;
            let Some(i) = table.iter().position(|row| row.no == no && row.stored()) else {
                continue;
            };
            decode_field(table[i].pb, payload, &mut message.values[i])
                .ok_or_else(|| Refused(format!("blob: field {no} is damaged")))?;
        }
        for (row, value) in table.iter().zip(&mut message.values) {
            clamp(row, value);
        }
        Ok(message)
    }

    /// The keys in field 255.
    pub fn other(&self) -> Object<'_> {
        Object::from_other(self.at(OTHER).bytes())
    }
}

fn decode_field<'a>(pb: Pb, payload: Payload<'a>, value: &mut Value<'a>) -> Option<()> {
    *value = match (pb, payload) {
        (Pb::Bool, Payload::Varint(v)) => Value::Int((v != 0).into()),
        (Pb::U32, Payload::Varint(v)) => Value::Int(i64::from(v as u32)),
        (Pb::I32, Payload::Varint(v)) => Value::Int(i64::from(v as i32)),
        (Pb::I64, Payload::Varint(v)) => Value::Int(v as i64),
        (Pb::F32, Payload::Fixed32(v)) => Value::Float(f32::from_le_bytes(v)),
        (Pb::Str, Payload::Bytes(v)) => Value::Text(std::str::from_utf8(v).ok()?.into()),
        (Pb::Bytes, Payload::Bytes(v)) => Value::Bytes(v.into()),
        (Pb::F32s, Payload::Fixed32(v)) => {
            let mut values = floats(value);
            values.push(f32::from_le_bytes(v));
            Value::Floats(values)
        }
        (Pb::F32s, Payload::Bytes(v)) => {
            let (packed, []) = v.as_chunks() else { return None };
            let mut values = floats(value);
            values.extend(packed.iter().map(|v| f32::from_le_bytes(*v)));
            Value::Floats(values)
        }
        (Pb::U32s, Payload::Varint(v)) => {
            let mut values = ints(value);
            values.push(v as u32);
            Value::Ints(values)
        }
        (Pb::U32s, Payload::Bytes(mut packed)) => {
            let mut values = ints(value);
            while !packed.is_empty() {
                values.push(proto::read_varint(&mut packed)? as u32);
            }
            Value::Ints(values)
        }
        (Pb::Embedded(table), Payload::Bytes(v)) => {
            Message::decode(table, v).ok()?;
            Value::Bytes(v.into())
        }
        (Pb::Repeated(table), Payload::Bytes(v)) => {
            Message::decode(table, v).ok()?;
            let mut messages = match std::mem::replace(value, Value::Unset) {
                Value::Messages(messages) => messages,
                _ => Vec::new(),
            };
            proto::put_prefixed(&mut messages, v);
            Value::Messages(messages)
        }
        _ => return None,
    };
    Some(())
}

/// Takes the list out of a value, so that the caller can append to it.
fn floats(value: &mut Value<'_>) -> Vec<f32> {
    match value {
        Value::Floats(values) => std::mem::take(values),
        _ => Vec::new(),
    }
}

fn ints(value: &mut Value<'_>) -> Vec<u32> {
    match value {
        Value::Ints(values) => std::mem::take(values),
        _ => Vec::new(),
    }
}

fn clamp(row: &Field, value: &mut Value<'_>) {
    let Some(clamp) = &row.clamp else { return };
    let number = if matches!(row.pb, Pb::F32) { f64::from(value.float()) } else { value.int() as f64 };
    // NaN is in no range.
    if !(f64::from(clamp.min)..=f64::from(clamp.max)).contains(&number) {
        *value = match row.pb {
            Pb::F32 => Value::Float(clamp.default),
            _ => Value::Int(clamp.default as i64),
        };
    }
}

/// The blob of a message whose values are spread over `parts`, fields in ascending order.
pub fn encode(parts: &[&Message<'_>]) -> Vec<u8> {
    let mut rows: Vec<_> =
        parts.iter().flat_map(|part| part.rows()).filter(|(row, _)| row.stored()).collect();
    rows.sort_by_key(|(row, _)| row.no);
    let mut blob = Vec::new();
    for (row, value) in rows {
        if row.presence || !value.is_default() {
            encode_field(row, value, &mut blob);
        }
    }
    blob
}

fn encode_field(row: &Field, value: &Value<'_>, blob: &mut Vec<u8>) {
    match value {
        Value::Unset => {}
        Value::Int(value) => {
            proto::put_tag(blob, row.no, proto::VARINT);
            proto::put_varint(
                blob,
                match row.pb {
                    Pb::U32 => u64::from(*value as u32),
                    Pb::I32 => i64::from(*value as i32) as u64,
                    _ => *value as u64,
                },
            );
        }
        Value::Float(value) => {
            proto::put_tag(blob, row.no, proto::FIXED32);
            blob.extend_from_slice(&value.to_le_bytes());
        }
        Value::Text(text) => proto::put_bytes(blob, row.no, text.as_bytes()),
        Value::Bytes(bytes) => proto::put_bytes(blob, row.no, bytes),
        Value::Floats(values) => {
            proto::put_tag(blob, row.no, proto::BYTES);
            proto::put_varint(blob, 4 * values.len() as u64);
            blob.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Value::Ints(values) => {
            let mut packed = Vec::new();
            values.iter().for_each(|value| proto::put_varint(&mut packed, u64::from(*value)));
            proto::put_bytes(blob, row.no, &packed);
        }
        Value::Messages(_) => {
            for message in messages(value) {
                proto::put_bytes(blob, row.no, message);
            }
        }
    }
}

/// Writes the keys that none of the tables has. Used to store unknown keys in field 255 and to send them again.
pub fn write_unknown(object: &Object<'_>, tables: &[&[Field]], out: &mut ObjectWriter<'_>) {
    let known = |key: &str| tables.iter().any(|table| table.iter().any(|row| row.key == Some(key)));
    for (key, text) in object.iter().filter(|(key, _)| !known(key)) {
        out.key(key).extend_from_slice(text.as_bytes());
    }
}

/// The value of field 255: a JSON object of the keys that `write` adds, or `Unset` if it adds none.
pub fn other(write: impl FnOnce(&mut ObjectWriter<'_>)) -> Value<'static> {
    let mut bytes = Vec::new();
    let mut out = ObjectWriter::begin(&mut bytes);
    write(&mut out);
    let empty = out.is_empty();
    out.end();
    if empty { Value::Unset } else { Value::Bytes(bytes.into()) }
}

/// The JSON form in which a small embedded message is written. Both forms are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Array,
    Object,
}

/// Reads a small embedded message from an object with the keys of the table, or an array in their order.
pub fn read_embedded(table: &'static [Field], text: &str) -> Option<Vec<u8>> {
    let mut message = Message::new(table);
    match Object::parse(text) {
        Some(object) => message = Message::from_json(table, &object).ok()?,
        None => {
            let mut rows = 0..table.len();
            json::each(text, |element| message.read(rows.next()?, &Object::default(), element))?;
            if !rows.is_empty() {
                return None;
            }
        }
    }
    Some(encode(&[&message]))
}

/// Reads an array of small embedded messages.
pub fn read_all_embedded(table: &'static [Field], text: &str) -> Option<Value<'static>> {
    let mut messages = Vec::new();
    json::each(text, |element| {
        proto::put_prefixed(&mut messages, &read_embedded(table, element)?);
        Some(())
    })?;
    Some(Value::Messages(messages))
}

/// Writes a small embedded message of a message that was decoded. Panics if `blob` is damaged, which decoding rules out.
pub fn write_embedded(table: &'static [Field], form: Form, blob: &[u8], out: &mut Vec<u8>) {
    let message = Message::decode(table, blob).expect("read when the message around it was decoded");
    match form {
        Form::Object => {
            let mut out = ObjectWriter::begin(out);
            message.write_json(&mut out);
            out.end();
        }
        Form::Array => {
            json::put_array(out, message.rows(), |out, (row, value)| match row.converter.convert {
                Convert::One { write, .. } => write(value, out),
                Convert::Several { write, .. } => write(&message, row, out),
            })
        }
    }
}

/// Writes an array of small embedded messages.
pub fn write_all_embedded(table: &'static [Field], form: Form, value: &Value<'_>, out: &mut Vec<u8>) {
    json::put_array(out, messages(value), |out, message| write_embedded(table, form, message, out));
}

fn messages<'v>(value: &'v Value<'_>) -> impl Iterator<Item = &'v [u8]> {
    let mut rest = value.bytes();
    std::iter::from_fn(move || {
        let len = proto::read_varint(&mut rest)?;
        proto::take(&mut rest, len)
    })
}
