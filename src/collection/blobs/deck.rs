//! Decks (spec, collection-format.md section 4).

use super::converters;
use super::deck_name::{human_to_native, native_to_human};
use super::field_table::{
    Converter, ERR, Field, Message, OTHER, Pb::*, Value, column, field, hidden, nested, one, or, several,
};
use super::json::{self, MAX_DEPTH, Object, ObjectWriter};
use super::object_codec::{self, Form, encode, other, write_unknown};
use super::proto;
use super::{Refused, whole};

/// Row columns (4.2) and message Common (4.3).
#[rustfmt::skip]
pub(super) const COMMON: &[Field] = &[
    column("id", converters::I64S, ERR, ERR),
    column("mod", converters::I64S, or("0"), ERR),
    column("name", NAME, ERR, ERR),
    column("usn", converters::I32, ERR, ERR),
    column("dyn", DYN, ERR, ERR),
    field(   1, Bool, "collapsed",        converters::BOOL, ERR,         ERR),
    field(   2, Bool, "browserCollapsed", converters::BOOL, or("false"), ERR),
    hidden(DAY, U32),
    field(   4, I32,  "newToday",         TODAY,            ERR,         ERR),
    field(   5, I32,  "revToday",         TODAY,            ERR,         ERR),
    field(   6, I32,  "lrnToday",         TODAY,            ERR,         ERR),
    field(TIME, I32,  "timeToday",        TODAY,            ERR,         ERR),
    // Accepted, discarded, never written.
    nested("return", or("null")),
    hidden(OTHER, Bytes),
];

/// Message Normal (4.4).
#[rustfmt::skip]
pub(super) const NORMAL: &[Field] = &[
    field(CONFIG_ID, I64,          "conf",             converters::I64S,        ERR,         ERR),
    field( 2, U32,                 "extendNew",        converters::COUNT,       or("0"),     or("0")),
    field( 3, U32,                 "extendRev",        converters::COUNT,       or("0"),     or("0")),
    field( 4, Str,                 "desc",             converters::STR,         or("\"\""),  ERR),
    field( 5, Bool,                "md",               converters::BOOL,        or("false"), ERR).emit_if_set(),
    field( 6, U32,                 "reviewLimit",      converters::OPT_U32,     or("null"),  or("null")).presence(),
    field( 7, U32,                 "newLimit",         converters::OPT_U32,     or("null"),  or("null")).presence(),
    field( 8, Embedded(DAY_LIMIT), "reviewLimitToday", OPT_DAY_LIMIT,           or("null"),  or("null")).presence(),
    field( 9, Embedded(DAY_LIMIT), "newLimitToday",    OPT_DAY_LIMIT,           or("null"),  or("null")).presence(),
    field(10, F32,                 "desiredRetention", converters::OPT_PERCENT, or("null"),  or("null")).presence(),
];

/// Message Filtered (4.5).
#[rustfmt::skip]
pub(super) const FILTERED: &[Field] = &[
    field(1, Bool,                  "resched",          converters::ANY_BOOL, ERR,        ERR),
    field(2, Repeated(SEARCH_TERM), "terms",            TERMS,                ERR,        ERR),
    column("separate", ALWAYS_TRUE, or("true"), ERR),
    field(3, F32s,                  "delays",           converters::OPT_F32S, or("null"), or("null")),
    field(4, U32,                   "previewDelay",     converters::U32,      or("0"),    ERR),
    field(7, U32,                   "previewAgainSecs", converters::U32,      or("0"),    ERR),
    field(5, U32,                   "previewHardSecs",  converters::U32,      or("0"),    ERR),
    field(6, U32,                   "previewGoodSecs",  converters::U32,      or("0"),    ERR),
    // Checked but not stored: always written as "".
    column("desc", converters::STR, or("\"\""), ERR),
    column("md", converters::BOOL, or("false"), ERR).not_emitted(),
];

#[rustfmt::skip]
pub(super) const DAY_LIMIT: &[Field] = &[
    field(1, U32, "limit", converters::U32, ERR, ERR),
    field(2, U32, "today", converters::U32, ERR, ERR),
];

#[rustfmt::skip]
pub(super) const SEARCH_TERM: &[Field] = &[
    field(1, Str, "search", converters::STR,     ERR, ERR),
    field(2, U32, "limit",  converters::COUNT_S, ERR, ERR),
    field(3, I32, "order",  converters::I32,     ERR, ERR),
];

/// Number of last_day_studied.
const DAY: u32 = 3;
/// Number of config_id.
const CONFIG_ID: u32 = 1;
/// Number of milliseconds_studied.
const TIME: u32 = 7;

/// Numbers in KindContainer.
const KIND_NORMAL: u32 = 1;
const KIND_FILTERED: u32 = 2;

const NAME: Converter = one(
    "a string",
    |text| Some(Value::Text(human_to_native(&json::string(text)?).into())),
    |value, out| json::put_string(out, &native_to_human(value.text())),
);

/// 1 is a filtered deck, any other value a normal one. Written as 0 or 1.
const DYN: Converter = one(
    "true, false or an integer of 8 bits",
    |text| match text {
        "true" | "1" => Some(Value::Int(1)),
        "false" => Some(Value::Int(0)),
        _ => text.parse::<u8>().is_ok().then_some(Value::Int(0)),
    },
    |value, out| json::put_int(out, value.int()),
);

/// `[day, amount]`. The message has one day for all four keys: the latest of `timeToday`, `newToday` and `revToday`. An
/// amount of another day is stored as 0, except for `timeToday`, which is kept whatever its day (4.3).
const TODAY: Converter = several(
    "an array",
    |object, row, text, message| {
        let (day, amount) = today(text)?;
        let days = ["timeToday", "newToday", "revToday"].map(|key| object.get(key).and_then(today));
        let last_day = days.iter().flatten().map(|(day, _)| *day).max().unwrap_or(0);
        let keep = day == last_day || row.no == TIME;
        message.set(row.no, Value::Int(if keep { amount.into() } else { 0 }));
        message.set(DAY, Value::Int(i64::from(last_day as u32)));
        Some(())
    },
    |message, row, out| {
        let last_day = message.at(DAY).int() as i32;
        json::put_array(out, [i64::from(last_day), message.at(row.no).int()], json::put_int);
    },
);

/// The last two elements of the array. A missing element, or one that is not an integer, is 0.
fn today(text: &str) -> Option<(i32, i32)> {
    let mut last_two = (0, 0);
    json::each(text, |element| {
        let value = element.parse::<i64>().unwrap_or(0) as i32;
        last_two = (last_two.1, value);
        Some(())
    })?;
    Some(last_two)
}

const OPT_DAY_LIMIT: Converter = one(
    "{\"limit\":integer,\"today\":integer} or null",
    |text| match text {
        "null" => Some(Value::Unset),
        _ => Some(Value::Bytes(object_codec::read_embedded(DAY_LIMIT, text)?.into())),
    },
    |value, out| match value {
        Value::Bytes(blob) => object_codec::write_embedded(DAY_LIMIT, Form::Object, blob, out),
        _ => converters::put_null(value, out),
    },
);

const TERMS: Converter = one(
    "an array of [search, limit, order]",
    |text| object_codec::read_all_embedded(SEARCH_TERM, text),
    |value, out| object_codec::write_all_embedded(SEARCH_TERM, Form::Array, value, out),
);

/// An option that clients no longer have: always written as true.
const ALWAYS_TRUE: Converter = converters::BOOL.written(|_, out| json::put_bool(out, true));

/// A row of `decks` (spec section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeckRow {
    /// Deck id; 0 is not refused here.
    pub id: i64,
    /// Native form: levels separated by U+001F (spec 2.2).
    pub name: String,
    /// When it was last changed, in seconds.
    pub mtime_secs: i64,
    /// Update sequence number.
    pub usn: i32,
    /// Message Common (spec 4.3).
    pub common: Vec<u8>,
    /// Message KindContainer: Normal or Filtered (spec 4.4, 4.5).
    pub kind: Vec<u8>,
}

impl DeckRow {
    /// Reads a deck as clients send it (spec section 4).
    pub fn from_json(text: &str) -> Result<DeckRow, Refused> {
        let object = Object::check(text, MAX_DEPTH);
        object.and_then(|object| DeckRow::from_object(&object)).map_err(|err| err.within("deck"))
    }

    fn from_object(object: &Object<'_>) -> Result<DeckRow, Refused> {
        let mut common = Message::from_json(COMMON, object)?;
        let filtered = common.column("dyn").int() == 1;
        let (no, table) = if filtered { (KIND_FILTERED, FILTERED) } else { (KIND_NORMAL, NORMAL) };
        let of_kind = Message::from_json(table, object)?;
        common.set(OTHER, other(|out| write_unknown(object, &[COMMON, table], out)));
        let mut kind = Vec::new();
        proto::put_bytes(&mut kind, no, &encode(&[&of_kind]));
        Ok(DeckRow {
            id: common.column("id").int(),
            name: common.column("name").text().to_owned(),
            mtime_secs: common.column("mod").int(),
            usn: common.column("usn").int() as i32,
            common: encode(&[&common]),
            kind,
        })
    }

    /// Appends the deck as clients expect it (spec 4.6). If the blobs cannot be read, `out` stays as it was.
    pub fn write_json(&self, out: &mut Vec<u8>) -> Result<(), Refused> {
        whole(out, |out| self.write_object(out)).map_err(|err| err.within(format_args!("deck {}", self.id)))
    }

    fn write_object(&self, out: &mut Vec<u8>) -> Result<(), Refused> {
        let mut common = Message::decode(COMMON, &self.common)?;
        let (no, blob) = of_kind(&self.kind)?;
        common.set_columns(self.id, &self.name, self.mtime_secs, self.usn);
        common.set_column("dyn", Value::Int((no == KIND_FILTERED).into()));
        let mut out = ObjectWriter::begin(out);
        common.write_json(&mut out);
        // A filtered deck may have unknown keys with names of normal decks' keys. They are not written either (4.3).
        let reserved: &[&[Field]] = if no == KIND_FILTERED {
            Message::decode(FILTERED, blob)?.write_json(&mut out);
            &[COMMON, FILTERED, NORMAL]
        } else {
            Message::decode(NORMAL, blob)?.write_json(&mut out);
            &[COMMON, NORMAL]
        };
        write_unknown(&common.other(), reserved, &mut out);
        out.end();
        Ok(())
    }

    /// The id of the options that a normal deck uses; `None` for a filtered deck.
    pub fn options_of(kind: &[u8]) -> Result<Option<i64>, Refused> {
        match of_kind(kind)? {
            (KIND_NORMAL, blob) => Ok(Some(Message::decode(NORMAL, blob)?.at(CONFIG_ID).int())),
            _ => Ok(None),
        }
    }
}

/// The field number and bytes of the message in a KindContainer. If there are several, the last counts, as protobuf demands.
fn of_kind(container: &[u8]) -> Result<(u32, &[u8]), Refused> {
    let mut kind = Err(Refused("kind is neither normal nor filtered".into()));
    for field in proto::Fields::new(container) {
        match field {
            Ok((no @ (KIND_NORMAL | KIND_FILTERED), proto::Payload::Bytes(blob))) => kind = Ok((no, blob)),
            Ok((KIND_NORMAL | KIND_FILTERED, _)) | Err(_) => {
                return Err(Refused("kind is not a protobuf message".into()));
            }
            Ok(_) => {}
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::super::field_table::assert_consistent;
    use super::*;

    #[test]
    fn tables_are_consistent() {
        assert_consistent(NORMAL, &[COMMON]);
        assert_consistent(FILTERED, &[COMMON]);
        assert_consistent(COMMON, &[]);
        assert_consistent(DAY_LIMIT, &[]);
        assert_consistent(SEARCH_TERM, &[]);
    }
}
