//! Deck options (spec, collection-format.md section 5).

use super::converters;
use super::field_table::{
    Converter, ERR, ERR as SEC, Field, Message, OTHER, Pb::*, Value, column, field, hidden, nested, one, or,
    several,
};
use super::json::{self, MAX_DEPTH, Object, ObjectWriter};
use super::object_codec::{encode, other, write_unknown};
use super::proto;
use super::{Refused, whole};

/// Row columns and top-level keys (5.1), ranges from 5.3.
#[rustfmt::skip]
pub(super) const CONFIG: &[Field] = &[
    column("id", converters::I64S, ERR, ERR),
    column("mod", converters::I64S, ERR, ERR),
    column("name", converters::STR, ERR, ERR),
    column("usn", converters::I32, ERR, ERR),
    field(24, U32,  "maxTaken",                converters::COUNT,  ERR,         ERR).clamp(60.0, 1.0, 9999.0),
    field(23, Bool, "autoplay",                converters::NOT,    ERR,         ERR),
    field(25, Bool, "timer",                   converters::FLAG,   ERR,         or("0")),
    field(26, Bool, "replayq",                 converters::NOT,    or("false"), ERR),
    nested("new", ERR),
    nested("rev", ERR),
    nested("lapse", ERR),
    // Always written as false: it is not stored.
    column("dyn", converters::BOOL, or("false"), or("false")),
    field(30, I32,  "newMix",                  converters::I32,    or("0"),     ERR),
    field(35, U32,  "newPerDayMinimum",        converters::U32,    or("0"),     ERR).clamp(0.0, 0.0, 9999.0),
    field(31, I32,  "interdayLearningMix",     converters::I32,    or("0"),     ERR),
    field(33, I32,  "reviewOrder",             converters::I32,    or("0"),     ERR),
    field(32, I32,  "newSortOrder",            converters::I32,    or("0"),     ERR),
    field(34, I32,  "newGatherPriority",       converters::I32,    or("0"),     ERR),
    field(29, Bool, "buryInterdayLearning",    converters::BOOL,   or("false"), ERR),
    field( 3, F32s, "fsrsWeights",             converters::F32S,   or("[]"),    ERR),
    field( 5, F32s, "fsrsParams5",             converters::F32S,   or("[]"),    ERR),
    field( 6, F32s, "fsrsParams6",             converters::F32S,   or("[]"),    ERR),
    field(37, F32,  "desiredRetention",        converters::F32,    or("0"),     ERR).clamp(0.9, 0.7, 0.99),
    field(46, Str,  "ignoreRevlogsBeforeDate", converters::STR,    or("\"\""),  ERR),
    field( 4, F32s, "easyDaysPercentages",     converters::F32S,   or("[]"),    ERR),
    field(38, Bool, "stopTimerOnAnswer",       converters::BOOL,   or("false"), ERR),
    field(41, F32,  "secondsToShowQuestion",   converters::F32,    or("0"),     ERR),
    field(42, F32,  "secondsToShowAnswer",     converters::F32,    or("0"),     ERR),
    field(36, I32,  "questionAction",          converters::ENUM_2, or("0"),     ERR),
    field(43, I32,  "answerAction",            converters::ENUM_5, or("0"),     ERR),
    field(44, Bool, "waitForAudio",            converters::BOOL,   or("true"),  ERR),
    field(40, F32,  "sm2Retention",            converters::F32,    or("0"),     ERR).clamp(0.9, 0.7, 0.97),
    field(45, Str,  "weightSearch",            converters::STR,    or("\"\""),  ERR),
    hidden(OTHER, Bytes),
];

/// Section `new` (5.2).
#[rustfmt::skip]
pub(super) const NEW: &[Field] = &[
    field(  27, Bool, "bury",          converters::BOOL,     or("false"), SEC),
    field(   1, F32s, "delays",        converters::F32S,     SEC,         or("[]")),
    field(EASE, F32,  "initialFactor", converters::PERMILLE, SEC,         SEC).clamp(2.5, 1.31, 5.0),
    field(GOOD, U32,  "ints",          GRADUATING_INTERVALS, SEC,         or("[1,4]")).clamp(1.0, 1.0, 36500.0),
    hidden(EASY, U32).clamp(4.0, 1.0, 36500.0),
    field(  20, I32,  "order",         INSERT_ORDER,         SEC,         or("1")),
    field(   9, U32,  "perDay",        converters::U32,      SEC,         or("0")).clamp(20.0, 0.0, 9999.0),
];

/// Section `rev` (5.2).
#[rustfmt::skip]
pub(super) const REV: &[Field] = &[
    field(28, Bool, "bury",       converters::BOOL, or("false"), SEC),
    field(12, F32,  "ease4",      converters::F32,  SEC,         SEC).clamp(1.3, 1.0, 5.0),
    field(15, F32,  "ivlFct",     converters::F32,  SEC,         SEC).clamp(1.0, 0.5, 2.0),
    field(16, U32,  "maxIvl",     converters::U32,  SEC,         SEC).clamp(36500.0, 1.0, 36500.0),
    field(10, U32,  "perDay",     converters::U32,  SEC,         or("0")).clamp(200.0, 0.0, 9999.0),
    field(13, F32,  "hardFactor", converters::F32,  or("1.2"),   SEC).clamp(1.2, 0.5, 1.3),
];

/// Section `lapse` (5.2).
#[rustfmt::skip]
pub(super) const LAPSE: &[Field] = &[
    field( 2, F32s, "delays",      converters::F32S,   SEC, or("[]")),
    field(21, I32,  "leechAction", converters::ENUM_2, SEC, or("1")),
    field(22, U32,  "leechFails",  converters::U32,    SEC, SEC).clamp(8.0, 1.0, 9999.0),
    field(17, U32,  "minInt",      converters::U32,    SEC, SEC).clamp(1.0, 1.0, 36500.0),
    field(14, F32,  "mult",        converters::F32,    SEC, SEC).clamp(0.0, 0.0, 1.0),
];

/// A nested JSON object whose fields are stored in the same message. One invalid key (SEC) replaces the whole section by
/// its default (5.2).
struct Section {
    key: &'static str,
    table: &'static [Field],
    default: &'static str,
}

const SECTIONS: [Section; 3] = [
    Section {
        key: "new",
        table: NEW,
        default: r#"{"bury":false,"delays":[1,10],"initialFactor":2500,"ints":[1,4],"order":1,"perDay":20}"#,
    },
    Section {
        key: "rev",
        table: REV,
        default: r#"{"bury":false,"ease4":1.3,"ivlFct":1.0,"maxIvl":36500,"perDay":200,"hardFactor":1.2}"#,
    },
    Section {
        key: "lapse",
        table: LAPSE,
        default: r#"{"delays":[10],"leechAction":1,"leechFails":8,"minInt":1,"mult":0.0}"#,
    },
];

/// Number of initial_ease.
const EASE: u32 = 11;

/// Numbers of the two graduating intervals.
const GOOD: u32 = 18;
const EASY: u32 = 19;

/// `[good, easy, unused]`.
const GRADUATING_INTERVALS: Converter = several(
    "at least two integers of 16 bits",
    |_, _, text, message| {
        let (mut first_two, mut count) = ([0, 0], 0);
        json::each(text, |element| {
            let value = element.parse::<u16>().ok()?;
            if let Some(slot) = first_two.get_mut(count) {
                *slot = i64::from(value);
            }
            count += 1;
            Some(())
        })?;
        if count < 2 {
            return None;
        }
        message.set(GOOD, Value::Int(first_two[0]));
        message.set(EASY, Value::Int(first_two[1]));
        Some(())
    },
    |message, _, out| {
        let interval = |no| i64::from(message.at(no).int() as u16);
        json::put_array(out, [interval(GOOD), interval(EASY), 0], json::put_int);
    },
);

/// In JSON 0 is random and 1 is due; in the message it is the reverse.
const INSERT_ORDER: Converter = one(
    "0 or 1",
    |text| match text {
        "0" => Some(Value::Int(1)),
        "1" => Some(Value::Int(0)),
        _ => None,
    },
    |value, out| json::put_int(out, if value.int() == 1 { 0 } else { 1 }),
);

impl Section {
    /// Reads the section. Also returns its JSON object, which has the unknown keys; empty if the default was used.
    fn read<'a>(&self, options: &Object<'a>) -> Result<(Message<'a>, Object<'a>), Refused> {
        if let Some(object) = options.get(self.key).and_then(Object::parse)
            && let Ok(section) = Message::from_json(self.table, &object)
        {
            return Ok((section, object));
        }
        let default = Object::parse(self.default).unwrap_or_default();
        Ok((Message::from_json(self.table, &default)?, Object::default()))
    }
}

/// A row of `deck_config` (spec section 5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeckConfigRow {
    /// Id of the options; 0 is not refused here.
    pub id: i64,
    /// Name, as it arrived.
    pub name: String,
    /// When they were last changed, in seconds.
    pub mtime_secs: i64,
    /// Update sequence number.
    pub usn: i32,
    /// Message Config (spec 5.1, 5.2).
    pub config: Vec<u8>,
}

impl DeckConfigRow {
    /// Reads deck options as clients send them (spec section 5).
    pub fn from_json(text: &str) -> Result<DeckConfigRow, Refused> {
        let object = Object::check(text, MAX_DEPTH);
        object
            .and_then(|object| DeckConfigRow::from_object(&object))
            .map_err(|err| err.within("deck options"))
    }

    fn from_object(object: &Object<'_>) -> Result<DeckConfigRow, Refused> {
        let mut config = Message::from_json(CONFIG, object)?;
        let mut sections = Vec::with_capacity(SECTIONS.len());
        for section in &SECTIONS {
            sections.push(section.read(object)?);
        }
        config.set(
            OTHER,
            other(|out| {
                write_unknown(object, &[CONFIG], out);
                for (section, (_, object)) in SECTIONS.iter().zip(&sections) {
                    if let Value::Bytes(kept) = other(|out| write_unknown(object, &[section.table], out)) {
                        out.key(section.key).extend_from_slice(&kept);
                    }
                }
            }),
        );
        let [new, rev, lapse] = [0, 1, 2].map(|i| &sections[i].0);
        Ok(DeckConfigRow {
            id: config.column("id").int(),
            name: config.column("name").text().to_owned(),
            mtime_secs: config.column("mod").int(),
            usn: config.column("usn").int() as i32,
            config: encode(&[&config, new, rev, lapse]),
        })
    }

    /// Passes the stored ease of new cards through `map`; the rest of the blob stays as it is, byte for byte.
    pub fn map_initial_ease(config: &mut Vec<u8>, map: impl FnOnce(f32) -> f32) -> Result<(), Refused> {
        let mut fields = proto::Fields::new(config);
        let mut found = None;
        while let Some(field) = fields.next() {
            match field {
                Ok((EASE, proto::Payload::Fixed32(bytes))) => {
                    found = Some((config.len() - fields.left() - 4, f32::from_le_bytes(bytes)));
                }
                Ok((EASE, _)) | Err(_) => return Err(Refused("deck options: not a protobuf message".into())),
                Ok(_) => {}
            }
        }
        // A missing field is 0, and a new field may be appended: protobuf fields may be in any order.
        let ease = map(found.map_or(0.0, |(_, ease)| ease)).to_le_bytes();
        match found {
            Some((at, _)) => config[at..at + 4].copy_from_slice(&ease),
            None => {
                proto::put_tag(config, EASE, proto::FIXED32);
                config.extend_from_slice(&ease);
            }
        }
        Ok(())
    }

    /// Appends the options as clients expect them, values out of range replaced (spec 5.3). If the blob cannot be
    /// read, `out` stays as it was.
    pub fn write_json(&self, out: &mut Vec<u8>) -> Result<(), Refused> {
        whole(out, |out| self.write_object(out))
            .map_err(|err| err.within(format_args!("deck options {}", self.id)))
    }

    fn write_object(&self, out: &mut Vec<u8>) -> Result<(), Refused> {
        let mut config = Message::decode(CONFIG, &self.config)?;
        config.set_columns(self.id, &self.name, self.mtime_secs, self.usn);
        let other = config.other();
        let mut out = ObjectWriter::begin(out);
        config.write_json(&mut out);
        for section in &SECTIONS {
            let mut out = ObjectWriter::begin(out.key(section.key));
            Message::decode(section.table, &self.config)?.write_json(&mut out);
            let kept = other.get(section.key).and_then(Object::parse).unwrap_or_default();
            write_unknown(&kept, &[section.table], &mut out);
            out.end();
        }
        write_unknown(&other, &[CONFIG], &mut out);
        out.end();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::field_table::assert_consistent;
    use super::*;

    #[test]
    fn tables_are_consistent() {
        assert_consistent(CONFIG, &[]);
        for section in &SECTIONS {
            assert_consistent(section.table, &[]);
            assert!(CONFIG.iter().any(|row| row.key == Some(section.key)));
            let default = Object::check(section.default, MAX_DEPTH).unwrap();
            assert!(section.table.iter().all(|row| row.key.is_none_or(|key| default.get(key).is_some())));
            Message::from_json(section.table, &default).unwrap();
        }
        let tables = [CONFIG, NEW, REV, LAPSE];
        let numbers = tables.iter().copied().flatten().filter(|row| row.stored()).map(|row| row.no);
        let mut numbers: Vec<u32> = numbers.collect();
        numbers.sort_unstable();
        let reserved = [7, 8, 39];
        assert!(numbers.iter().copied().eq((1..=46).filter(|no| !reserved.contains(no)).chain([OTHER])));
    }
}
