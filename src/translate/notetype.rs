//! Notetypes, their fields and templates (spec, collection-format.md section 6).

use super::converters;
use super::field_table::{
    Converter, ERR, Field, Message, OTHER, Pb::*, Value, column, field, hidden, nested, one, or,
};
use super::json::{self, MAX_DEPTH, Object, ObjectWriter};
use super::object_codec::{Form, encode, other, read_all_embedded, write_all_embedded, write_unknown};
use super::{Refused, whole};

/// Row columns and message Config of notetypes (6.1).
#[rustfmt::skip]
pub(super) const NOTETYPE: &[Field] = &[
    column("id", converters::I64S, ERR, ERR),
    column("name", converters::STR, ERR, ERR),
    field(   1, I32,                   "type",              converters::ENUM_2,  ERR,         ERR),
    column("mod", converters::I64, ERR, ERR),
    column("usn", converters::I32, ERR, ERR),
    field(SORT, U32,                   "sortf",             converters::U16,     ERR,         ERR),
    field(   4, I64,                   "did",               OPT_ID,              ERR,         or("null")),
    nested("tmpls", ERR),
    nested("flds", ERR),
    field(   3, Str,                   "css",               converters::STR,     ERR,         or("\"\"")),
    field(   5, Str,                   "latexPre",          converters::STR,     or("\"\""),  ERR),
    field(   6, Str,                   "latexPost",         converters::STR,     or("\"\""),  ERR),
    field(   7, Bool,                  "latexsvg",          converters::BOOL,    or("false"), or("false")),
    field(   8, Repeated(REQUIREMENT), "req",               REQUIREMENTS,        or("[]"),    or("[]")),
    field(   9, I32,                   "originalStockKind", converters::I32,     or("0"),     ERR).emit_if_set(),
    field(  10, I64,                   "originalId",        converters::OPT_I64, or("null"),  ERR).presence().emit_if_set(),
    hidden(OTHER, Bytes),
];

/// Row columns and message Config of fields (6.2).
#[rustfmt::skip]
pub(super) const FIELD: &[Field] = &[
    column("name", converters::STR, ERR, ERR),
    // Checked but ignored: the position in the array counts.
    column("ord", converters::OPT_U16, or("null"), ERR),
    field( 1, Bool, "sticky",            converters::ANY_BOOL, ERR,         ERR),
    field( 2, Bool, "rtl",               converters::ANY_BOOL, ERR,         ERR),
    field( 3, Str,  "font",              converters::STR,      ERR,         ERR),
    field( 4, U32,  "size",              converters::U16,      ERR,         ERR),
    field( 5, Str,  "description",       converters::STR,      or("\"\""),  or("\"\"")),
    field( 6, Bool, "plainText",         converters::BOOL,     or("false"), or("false")),
    field( 7, Bool, "collapsed",         converters::BOOL,     or("false"), or("false")),
    field( 8, Bool, "excludeFromSearch", converters::BOOL,     or("false"), or("false")),
    field( 9, I64,  "id",                converters::OPT_I64,  or("null"),  or("null")).presence(),
    field(10, U32,  "tag",               converters::OPT_U32,  or("null"),  or("null")).presence(),
    field(11, Bool, "preventDeletion",   converters::BOOL,     or("false"), or("false")),
    hidden(OTHER, Bytes),
];

/// Row columns and message Config of templates (6.3).
#[rustfmt::skip]
pub(super) const TEMPLATE: &[Field] = &[
    column("name", converters::STR, ERR, ERR),
    column("ord", converters::OPT_U16, or("null"), ERR),
    field(1, Str, "qfmt",  converters::STR,     ERR,        ERR),
    field(2, Str, "afmt",  converters::STR,     or("\"\""), ERR),
    field(3, Str, "bqfmt", converters::STR,     or("\"\""), ERR),
    field(4, Str, "bafmt", converters::STR,     or("\"\""), ERR),
    field(5, I64, "did",   OPT_DECK,            or("null"), or("null")),
    field(6, Str, "bfont", converters::STR,     or("\"\""), or("\"\"")),
    field(7, U32, "bsize", converters::U8,      or("0"),    or("0")),
    field(8, I64, "id",    converters::OPT_I64, or("null"), or("null")).presence(),
    hidden(OTHER, Bytes),
];

#[rustfmt::skip]
pub(super) const REQUIREMENT: &[Field] = &[
    field(1, U32,  "card_ord",   converters::U16,  ERR, ERR),
    field(2, I32,  "kind",       REQUIREMENT_KIND, ERR, ERR),
    field(3, U32s, "field_ords", U16S,             ERR, ERR),
];

/// Number of sort_field_idx.
const SORT: u32 = 2;

/// An optional deck id: "no deck" is `null` in JSON and 0 in the message.
const OPT_ID: Converter = converters::OPT_I64.written(|value, out| match value.int() {
    0 => converters::put_null(value, out),
    id => json::put_int(out, id),
});

/// As `OPT_ID`, but negative ids are also written as `null`.
const OPT_DECK: Converter = converters::OPT_I64.written(|value, out| match value.int() {
    id if id > 0 => json::put_int(out, id),
    _ => converters::put_null(value, out),
});

/// Which fields must be filled for a card to exist. Only old clients use it; a server stores what it gets.
const REQUIREMENTS: Converter = one(
    "an array of [card, kind, fields]",
    |text| read_all_embedded(REQUIREMENT, text),
    |value, out| write_all_embedded(REQUIREMENT, Form::Array, value, out),
);

const REQUIREMENT_KIND: Converter = one(
    "\"none\", \"any\" or \"all\"",
    |text| {
        Some(Value::Int(KINDS.iter().position(|kind| json::string(text).as_deref() == Some(kind))? as i64))
    },
    |value, out| {
        let kind = usize::try_from(value.int()).ok().and_then(|kind| KINDS.get(kind));
        json::put_string(out, kind.unwrap_or(&KINDS[0]));
    },
);

const KINDS: [&str; 3] = ["none", "any", "all"];

const U16S: Converter = one(
    "integers of 16 bits",
    |text| {
        let mut values = Vec::new();
        json::each(text, |element| {
            values.push(element.parse::<u16>().ok()?.into());
            Some(())
        })?;
        Some(Value::Ints(values))
    },
    |value, out| {
        let values: &[u32] = if let Value::Ints(values) = value { values } else { &[] };
        json::put_array(out, values, |out, value| json::put_int(out, (*value as u16).into()));
    },
);

/// A row of `notetypes` with its rows of `fields` and `templates` (spec section 6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotetypeRow {
    /// Notetype id; 0 is not refused here.
    pub id: i64,
    /// Name, as it arrived.
    pub name: String,
    /// When it was last changed, in seconds.
    pub mtime_secs: i64,
    /// Update sequence number.
    pub usn: i32,
    /// Message Config of notetypes (spec 6.1).
    pub config: Vec<u8>,
    /// In the order of their `ord`, which is the position in this list (spec 6.4).
    pub fields: Vec<FieldRow>,
    /// In the order of their `ord`, which is the position in this list (spec 6.4).
    pub templates: Vec<TemplateRow>,
}

/// A row of `fields` (spec 6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldRow {
    /// Name, as it arrived; may be empty.
    pub name: String,
    /// Message Config of fields.
    pub config: Vec<u8>,
}

/// A row of `templates` (spec 6.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRow {
    /// Name, as it arrived; may be empty.
    pub name: String,
    /// 0 when it comes from JSON, which has no such key.
    pub mtime_secs: i64,
    /// 0 when it comes from JSON, which has no such key.
    pub usn: i32,
    /// Message Config of templates.
    pub config: Vec<u8>,
}

/// The index of the sort field among a note's fields: `sort_field_idx` of `notetypes.config` (spec 6.1), all 32 bits.
pub fn notetype_sort_field(config: &[u8]) -> Result<u32, Refused> {
    let message = Message::decode(NOTETYPE, config).map_err(|err| err.within("notetype"))?;
    Ok(message.at(SORT).int() as u32)
}

impl NotetypeRow {
    /// Reads a notetype as clients send it (spec section 6).
    pub fn from_json(text: &str) -> Result<NotetypeRow, Refused> {
        let object = Object::check(text, MAX_DEPTH);
        object.and_then(|object| NotetypeRow::from_object(&object)).map_err(|err| err.within("notetype"))
    }

    fn from_object(object: &Object<'_>) -> Result<NotetypeRow, Refused> {
        let mut notetype = Message::from_json(NOTETYPE, object)?;
        notetype.set(OTHER, other(|out| write_unknown(object, &[NOTETYPE], out)));
        Ok(NotetypeRow {
            id: notetype.column("id").int(),
            name: notetype.column("name").text().to_owned(),
            mtime_secs: notetype.column("mod").int(),
            usn: notetype.column("usn").int() as i32,
            config: encode(&[&notetype]),
            fields: read_parts(FIELD, object, "flds", |name, config| FieldRow { name, config })?,
            templates: read_parts(TEMPLATE, object, "tmpls", |name, config| TemplateRow {
                name,
                mtime_secs: 0,
                usn: 0,
                config,
            })?,
        })
    }

    /// Appends the notetype as clients expect it (spec section 6). If a blob cannot be read, `out` stays as it was.
    pub fn write_json(&self, out: &mut Vec<u8>) -> Result<(), Refused> {
        whole(out, |out| self.write_object(out))
            .map_err(|err| err.within(format_args!("notetype {}", self.id)))
    }

    fn write_object(&self, out: &mut Vec<u8>) -> Result<(), Refused> {
        let mut notetype = Message::decode(NOTETYPE, &self.config)?;
        notetype.set_columns(self.id, &self.name, self.mtime_secs, self.usn);
        let mut out = ObjectWriter::begin(out);
        notetype.write_json(&mut out);
        let fields = self.fields.iter().map(|row| (&*row.name, &*row.config));
        write_parts(FIELD, fields, out.key("flds")).map_err(|err| err.within("flds"))?;
        let templates = self.templates.iter().map(|row| (&*row.name, &*row.config));
        write_parts(TEMPLATE, templates, out.key("tmpls")).map_err(|err| err.within("tmpls"))?;
        write_unknown(&notetype.other(), &[NOTETYPE], &mut out);
        out.end();
        Ok(())
    }
}

/// Reads the fields or templates of a notetype; `row` makes a row of name and config.
fn read_parts<T>(
    table: &'static [Field],
    notetype: &Object<'_>,
    key: &str,
    row: impl Fn(String, Vec<u8>) -> T,
) -> Result<Vec<T>, Refused> {
    let mut rows = Vec::new();
    let mut refused = None;
    let read = json::each(notetype.get(key).unwrap_or_default(), |text| {
        let part = Object::parse(text).ok_or_else(|| Refused("not an object".into()));
        match part.and_then(|part| read_part(table, &part)) {
            Ok((name, config)) => rows.push(row(name, config)),
            Err(err) => {
                refused = Some(err.within(format_args!("{key}[{}]", rows.len())));
                return None;
            }
        }
        Some(())
    });
    match (read, refused) {
        (Some(()), _) => Ok(rows),
        (None, Some(err)) => Err(err),
        (None, None) => Err(Refused(format!("\"{key}\" is not an array"))),
    }
}

fn read_part(table: &'static [Field], object: &Object<'_>) -> Result<(String, Vec<u8>), Refused> {
    let mut part = Message::from_json(table, object)?;
    part.set(OTHER, other(|out| write_unknown(object, &[table], out)));
    Ok((part.column("name").text().to_owned(), encode(&[&part])))
}

fn write_parts<'r>(
    table: &'static [Field],
    rows: impl Iterator<Item = (&'r str, &'r [u8])>,
    out: &mut Vec<u8>,
) -> Result<(), Refused> {
    let mut written = Ok(());
    json::put_array(out, rows.enumerate(), |out, (ord, (name, config))| {
        if written.is_ok() {
            written = write_part(table, ord, name, config, out);
        }
    });
    written
}

fn write_part(
    table: &'static [Field],
    ord: usize,
    name: &str,
    config: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Refused> {
    let mut part = Message::decode(table, config)?;
    part.set_column("name", Value::Text(name.into()));
    part.set_column("ord", Value::Int(ord as i64));
    let mut out = ObjectWriter::begin(out);
    part.write_json(&mut out);
    write_unknown(&part.other(), &[table], &mut out);
    out.end();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::field_table::assert_consistent;
    use super::*;

    #[test]
    fn tables_are_consistent() {
        for table in [NOTETYPE, FIELD, TEMPLATE, REQUIREMENT] {
            assert_consistent(table, &[]);
        }
    }
}
