//! Property tests for every row of every table, with random values. The seed is fixed; ROUNDS sets the number of rounds.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::field_table::{Convert, Emit, Field, Message, OTHER, Otherwise, Pb, Value};
use super::json::{MAX_DEPTH, Object};
use super::object_codec::encode;
use super::{
    DeckConfigRow, DeckRow, FieldRow, NotetypeRow, Refused, TemplateRow, deck, deck_config, notetype, proto,
};

/// Per table: its object in `tolerance_matrix.json`, the path of its keys in that object, the table.
const TABLES: [(&str, &str, &[Field]); 11] = [
    ("deck_normal", "", deck::COMMON),
    ("deck_normal", "", deck::NORMAL),
    ("deck_filtered", "", deck::COMMON),
    ("deck_filtered", "", deck::FILTERED),
    ("config", "", deck_config::CONFIG),
    ("config", "new", deck_config::NEW),
    ("config", "rev", deck_config::REV),
    ("config", "lapse", deck_config::LAPSE),
    ("notetype", "", notetype::NOTETYPE),
    ("notetype", "tmpls.0", notetype::TEMPLATE),
    ("notetype", "flds.0", notetype::FIELD),
];

/// Keys in percent or permille, stored as f32: each conversion may lower the value by one (4.4, 5.2).
const INEXACT: [&str; 2] = ["desiredRetention", "initialFactor"];

fn rounds() -> usize {
    std::env::var("ROUNDS").map_or(300, |rounds| rounds.parse().unwrap())
}

fn matrix() -> Json {
    serde_json::from_str(include_str!("../../../tests/vectors/tolerance_matrix.json")).unwrap()
}

/// JSON to database row and back to JSON.
fn round_trip(object: &str, text: &str) -> Result<String, Refused> {
    let mut out = Vec::new();
    match object {
        "config" => DeckConfigRow::from_json(text)?.write_json(&mut out)?,
        "notetype" => NotetypeRow::from_json(text)?.write_json(&mut out)?,
        _ => DeckRow::from_json(text)?.write_json(&mut out)?,
    }
    Ok(String::from_utf8(out).unwrap())
}

fn at<'j>(object: &'j mut Json, place: &str) -> &'j mut Json {
    place.split('.').filter(|step| !step.is_empty()).fold(object, |at, step| match step.parse::<usize>() {
        Ok(n) => &mut at[n],
        Err(_) => &mut at[step],
    })
}

/// The same object with another text as the value of a key, or without the key.
fn with(object: &Json, place: &str, key: &str, text: Option<&str>) -> String {
    let mut object = object.clone();
    let part = at(&mut object, place).as_object_mut().unwrap();
    part.remove(key);
    if text.is_some() {
        part.insert(key.to_owned(), Json::from("the text"));
    }
    object.to_string().replace("\"the text\"", text.unwrap_or_default())
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Any number of bits.
    fn bits(&mut self) -> u64 {
        self.next() >> self.below(64)
    }

    fn float(&mut self) -> f32 {
        match self.below(4) {
            0 => self.pick(&[0.0, -0.0, 0.9, 1.3, 2.5, 1e-30, f32::MAX, f32::NAN, f32::INFINITY]),
            1 => self.below(1000) as f32 / 100.0,
            2 => self.below(100_000) as f32,
            _ => f32::from_bits(self.next() as u32),
        }
    }

    fn text(&mut self) -> String {
        let parts =
            ["a", "\u{e9}", "e\u{301}", "::", "\u{1f}", "\\", "\"", "\n", "\u{0}", "\u{1f600}", "<br>"];
        (0..self.below(5)).map(|_| self.pick(&parts)).collect()
    }

    fn floats(&mut self) -> Vec<f32> {
        (0..self.below(4)).map(|_| self.float()).collect()
    }

    /// Any value that clients can store in this row.
    fn value(&mut self, row: &Field) -> Value<'static> {
        match row.pb {
            Pb::Bool => Value::Int(self.below(2) as i64),
            // Signed in JSON: no client makes it larger (3.2).
            Pb::U32 if row.converter.expects.starts_with("an integer of 32 bits") => {
                Value::Int(self.bits() as i64 & 0x7fff_ffff)
            }
            Pb::U32 => Value::Int(i64::from(self.bits() as u32)),
            Pb::I32 => Value::Int(i64::from(self.bits() as i32)),
            Pb::I64 => Value::Int(self.bits() as i64),
            Pb::F32 => Value::Float(self.float()),
            Pb::Str => Value::Text(self.text().into()),
            Pb::Bytes if row.no == OTHER => {
                Value::Bytes(format!("{{\"x{}\":[1.50,{{}}],\"\":\"y\"}}", self.below(9)).into_bytes().into())
            }
            Pb::Bytes => Value::Bytes(self.text().into_bytes().into()),
            Pb::F32s => Value::Floats(self.floats()),
            Pb::U32s => Value::Ints((0..self.below(4)).map(|_| self.bits() as u32).collect()),
            Pb::Embedded(table) => Value::Bytes(self.message(table).into()),
            Pb::Repeated(table) => {
                let mut messages = Vec::new();
                (0..self.below(3)).for_each(|_| proto::put_prefixed(&mut messages, &self.message(table)));
                Value::Messages(messages)
            }
            Pb::Unstored => Value::Unset,
        }
    }

    /// A blob with most fields of a table.
    fn message(&mut self, table: &'static [Field]) -> Vec<u8> {
        let mut message = Message::new(table);
        for row in table.iter().filter(|row| row.stored()) {
            if self.below(4) > 0 {
                message.set(row.no, self.value(row));
            }
        }
        encode(&[&message])
    }

    /// A row of this kind with random blobs, as the JSON that it is sent as.
    fn sent(&mut self, object: &str) -> Result<String, Refused> {
        let mut out = Vec::new();
        let (id, name, mtime_secs, usn) = (1 + self.below(9) as i64, "n".to_owned(), self.bits() as i64, 7);
        match object {
            "config" => {
                // One message, in the tables of four.
                let tables = [deck_config::CONFIG, deck_config::NEW, deck_config::REV, deck_config::LAPSE];
                let config = tables.map(|table| self.message(table)).concat();
                DeckConfigRow { id, name, mtime_secs, usn, config }.write_json(&mut out)?;
            }
            "notetype" => {
                let config = self.message(notetype::NOTETYPE);
                let fields = (0..1 + self.below(3))
                    .map(|n| FieldRow { name: format!("f{n}"), config: self.message(notetype::FIELD) })
                    .collect();
                let templates = (0..1 + self.below(3))
                    .map(|n| TemplateRow {
                        name: format!("t{n}"),
                        mtime_secs: 0,
                        usn: 0,
                        config: self.message(notetype::TEMPLATE),
                    })
                    .collect();
                NotetypeRow { id, name, mtime_secs, usn, config, fields, templates }.write_json(&mut out)?;
            }
            _ => {
                let (no, table) = match object {
                    "deck_normal" => (1, deck::NORMAL),
                    _ => (2, deck::FILTERED),
                };
                let mut kind = Vec::new();
                proto::put_bytes(&mut kind, no, &self.message(table));
                let common = self.message(deck::COMMON);
                DeckRow { id, name, mtime_secs, usn, common, kind }.write_json(&mut out)?;
            }
        }
        Ok(String::from_utf8(out).unwrap())
    }
}

#[test]
fn every_key_of_the_tables_was_probed_at_the_real_server() {
    let matrix = matrix();
    let mut rows = 0;
    for (object, place, table) in TABLES {
        let probed = matrix[object]["keys"].as_object().unwrap();
        for key in table.iter().filter_map(|row| row.key) {
            let path = if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") };
            // `return` is discarded, whatever its value.
            assert!(probed.contains_key(&path) || key == "return", "{object}: {path}");
            rows += 1;
        }
    }
    println!("{rows} rows of {} tables", TABLES.len());
}

#[test]
fn a_missing_or_invalid_key_counts_as_its_default() {
    let matrix = matrix();
    let (mut missing, mut invalid) = (0, 0);
    for (object, place, table) in TABLES {
        let base = &matrix[object]["base"];
        for row in table {
            let Some(key) = row.key else { continue };
            let result = |text| round_trip(object, &with(base, place, key, text));
            match row.missing {
                Otherwise::Use(default) => assert_eq!(result(None), result(Some(default)), "{key}"),
                // In a section, it is the section that goes.
                Otherwise::Refuse => {
                    assert!(result(None).is_err() || object == "config" && !place.is_empty(), "{key}")
                }
            }
            missing += 1;
            for odd in [
                "null",
                "true",
                "-1",
                "1.5",
                "1e30",
                "99999999999999999999",
                "\"x\"",
                "\"\"",
                "[\"x\"]",
                "{}",
            ] {
                let Convert::One { read, .. } = row.converter.convert else { continue };
                if read(odd).is_some() {
                    continue;
                }
                match row.invalid {
                    Otherwise::Use(default) => {
                        assert_eq!(result(Some(odd)), result(Some(default)), "{key} = {odd}");
                    }
                    Otherwise::Refuse => {
                        let is_section = object == "config" && !place.is_empty();
                        assert!(result(Some(odd)).is_err() || is_section, "{key} = {odd}");
                    }
                }
                invalid += 1;
            }
        }
    }
    println!("{missing} keys left out, {invalid} with values of another kind");
}

#[test]
fn every_row_gives_back_what_it_wrote() {
    let mut random = Random(0x5eed_0003);
    let mut values = 0;
    for (_, _, table) in TABLES {
        for row in table.iter().filter(|row| row.stored()) {
            let Convert::One { read, write } = row.converter.convert else { continue };
            let Some(key) = row.key else { continue };
            for _ in 0..rounds() {
                let stored = random.value(row);
                let (mut text, mut again) = (Vec::new(), Vec::new());
                write(&stored, &mut text);
                let text = String::from_utf8(text).unwrap();
                let value = read(&text);
                // The value is out of range: the row must have a default or a clamp for it.
                let Some(value) = value else {
                    assert!(matches!(row.invalid, Otherwise::Use(_)) || row.clamp.is_some(), "{key}: {text}");
                    continue;
                };
                write(&value, &mut again);
                if !INEXACT.contains(&key) {
                    assert_eq!(String::from_utf8(again).unwrap(), text, "{key}");
                }
                values += 1;
            }
        }
    }
    println!("{values} values of single rows");
}

#[test]
fn random_blobs_come_back_from_json_as_they_went() {
    let mut random = Random(0x5eed_0004);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..rounds() {
        for object in ["deck_normal", "deck_filtered", "config", "notetype"] {
            let sent = random.sent(object).unwrap();
            let once = match round_trip(object, &sent) {
                Ok(once) => once,
                Err(err) => panic!("{err}: {sent}"),
            };
            read += 1;
            assert_eq!(keys_of(object, &once), keys_of(object, &sent), "{sent}");
            let twice = round_trip(object, &once).unwrap();
            assert_eq!(without_losing(&twice), without_losing(&once), "{sent}");
            // Also the first time, once the singles of JSON are those of the blob.
            assert_eq!(without_losing(&once), without_losing(&sent), "{object}");
            refused += usize::from(Object::check(&sent, MAX_DEPTH).is_err());
        }
    }
    assert_eq!(refused, 0);
    println!("{read} rows of random blobs");
}

/// Every key of the object, of which those of the tables must all be there.
fn keys_of(object: &str, text: &str) -> BTreeSet<String> {
    let mut json: Json = serde_json::from_str(text).unwrap();
    let mut keys = BTreeSet::new();
    for (_, place, table) in TABLES.iter().filter(|(of, ..)| *of == object) {
        let part = at(&mut json, place).as_object().unwrap();
        for row in table.iter().filter(|row| row.emit == Emit::Always) {
            assert!(row.key.is_none_or(|key| part.contains_key(key)), "{place}.{:?} of {text}", row.key);
        }
        keys.extend(part.keys().map(|key| format!("{place}.{key}")));
    }
    keys
}

fn without_losing(text: &str) -> Json {
    let mut json: Json = serde_json::from_str(text).unwrap();
    for key in INEXACT {
        for place in ["", "new"] {
            if let Some(part) =
                json.pointer_mut(&if place.is_empty() { String::new() } else { format!("/{place}") })
            {
                part.as_object_mut().unwrap().remove(key);
            }
        }
    }
    json
}
