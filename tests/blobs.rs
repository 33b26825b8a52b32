//! Tests the translation of decks, deck options and notetypes with recordings of real programs (`vectors/`), with random
//! objects, and with hostile input.

mod random_objects;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ankipi::collection::blobs::{
    DeckConfigRow, DeckRow, FieldRow, NotetypeRow, Refused, TemplateRow, notetype_sort_field,
};
use random_objects::Random;
use serde_json::{Value, json};

fn vectors(name: &str) -> Value {
    let path = format!("{}/tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Deck,
    Config,
    Notetype,
}

impl Kind {
    const ALL: [Kind; 3] = [Kind::Deck, Kind::Config, Kind::Notetype];

    /// JSON to database row and back to JSON.
    fn round_trip(self, text: &str) -> Result<String, Refused> {
        let mut out = b"before ".to_vec();
        match self {
            Kind::Deck => DeckRow::from_json(text)?.write_json(&mut out)?,
            Kind::Config => DeckConfigRow::from_json(text)?.write_json(&mut out)?,
            Kind::Notetype => NotetypeRow::from_json(text)?.write_json(&mut out)?,
        }
        Ok(String::from_utf8(out).unwrap().strip_prefix("before ").unwrap().to_owned())
    }
}

/// Integers must be equal and written as integers; other numbers are compared as f32.
fn same(ours: &Value, real: &Value) -> bool {
    match (ours, real) {
        (Value::Number(a), Value::Number(b)) if b.is_f64() => {
            a.as_f64().unwrap() as f32 == b.as_f64().unwrap() as f32
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => ours == real,
    }
}

/// Replaces the value at a path like `tmpls.0.name`; `None` removes it.
fn put(object: &mut Value, path: &str, value: Option<Value>) {
    let (parents, key) = path.rsplit_once('.').unwrap_or(("", path));
    let mut at = object;
    for step in parents.split('.').filter(|step| !step.is_empty()) {
        at = match step.parse::<usize>() {
            Ok(i) => &mut at[i],
            Err(_) => &mut at[step],
        };
    }
    let at = at.as_object_mut().unwrap();
    match value {
        Some(value) => at.insert(key.to_owned(), value),
        None => at.remove(key),
    };
}

/// Where the real server refuses and this module does not: id 0 is refused by its caller, which knows whether the
/// object comes from a sync (refused) or from an upgrade (repaired).
const REFUSED_BY_THE_CALLER: (&str, &str) = ("id", "0");

/// Tries every key with 24 values: the object is refused if the real server refuses it, else sent back as by the real server.
#[test]
fn every_probe_of_the_tolerance_matrix() {
    let matrix = vectors("tolerance_matrix.json");
    let mut probes = 0;
    let mut wrong = Vec::new();
    for (name, kind) in [
        ("notetype", Kind::Notetype),
        ("deck_normal", Kind::Deck),
        ("deck_filtered", Kind::Deck),
        ("config", Kind::Config),
    ] {
        let base = &matrix[name]["base"];
        let unchanged: Value = serde_json::from_str(&kind.round_trip(&base.to_string()).unwrap()).unwrap();
        for (path, values) in matrix[name]["keys"].as_object().unwrap() {
            for (probe, real) in values.as_object().unwrap() {
                probes += 1;
                let mut sent = base.clone();
                put(&mut sent, path, (probe != "<missing>").then(|| serde_json::from_str(probe).unwrap()));
                let ours = kind.round_trip(&sent.to_string());
                let expected = (real != "REJECT").then(|| {
                    let mut expected = unchanged.clone();
                    let value = if real.get("also").is_some() { &real["value"] } else { real };
                    put(&mut expected, path, (value != "<absent>").then(|| value.clone()));
                    for (path, value) in real.get("also").and_then(Value::as_object).into_iter().flatten() {
                        put(&mut expected, path, (value != "<absent>").then(|| value.clone()));
                    }
                    expected
                });
                let agree = match (&ours, &expected) {
                    (Err(_), None) => true,
                    (Ok(_), None) => (path.as_str(), probe.as_str()) == REFUSED_BY_THE_CALLER,
                    (Ok(ours), Some(expected)) => same(&serde_json::from_str(ours).unwrap(), expected),
                    _ => false,
                };
                if !agree {
                    wrong.push(format!("{name} {path} = {probe}: {ours:?}, expected {expected:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {probes} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(probes, 3144);
}

fn rows(table: &Value) -> impl Iterator<Item = &Vec<Value>> {
    table["rows"].as_array().unwrap().iter().map(|row| row.as_array().unwrap())
}

fn int(value: &Value) -> i64 {
    value.as_i64().unwrap()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn blob(value: &Value) -> Vec<u8> {
    let hex = value.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

struct Rich {
    decks: Vec<DeckRow>,
    configs: Vec<DeckConfigRow>,
    notetypes: Vec<NotetypeRow>,
}

/// The rows of rich18.anki2.
fn rich() -> Rich {
    let tables = vectors("rich18.tables.json");
    // Rows of fields and templates begin with notetype and position.
    let parts = |table: &str, ntid: &Value| {
        let parts = rows(&tables[table]).filter(|row| row[0] == *ntid);
        let parts: BTreeMap<i64, Vec<Value>> = parts.map(|row| (int(&row[1]), row[2..].to_vec())).collect();
        assert!(parts.keys().copied().eq(0..parts.len() as i64));
        parts.into_values().collect::<Vec<_>>()
    };
    let deck = |row: &Vec<Value>| DeckRow {
        id: int(&row[0]),
        name: text(&row[1]),
        mtime_secs: int(&row[2]),
        usn: int(&row[3]) as i32,
        common: blob(&row[4]),
        kind: blob(&row[5]),
    };
    let config = |row: &Vec<Value>| DeckConfigRow {
        id: int(&row[0]),
        name: text(&row[1]),
        mtime_secs: int(&row[2]),
        usn: int(&row[3]) as i32,
        config: blob(&row[4]),
    };
    let notetype = |row: &Vec<Value>| NotetypeRow {
        id: int(&row[0]),
        name: text(&row[1]),
        mtime_secs: int(&row[2]),
        usn: int(&row[3]) as i32,
        config: blob(&row[4]),
        fields: parts("fields", &row[0])
            .iter()
            .map(|row| FieldRow { name: text(&row[0]), config: blob(&row[1]) })
            .collect(),
        templates: parts("templates", &row[0])
            .iter()
            .map(|row| TemplateRow {
                name: text(&row[0]),
                mtime_secs: int(&row[1]),
                usn: int(&row[2]) as i32,
                config: blob(&row[3]),
            })
            .collect(),
    };
    Rich {
        decks: rows(&tables["decks"]).map(deck).collect(),
        configs: rows(&tables["deck_config"]).map(config).collect(),
        notetypes: rows(&tables["notetypes"]).map(notetype).collect(),
    }
}

fn written(write: impl FnOnce(&mut Vec<u8>) -> Result<(), Refused>) -> String {
    let mut out = Vec::new();
    write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn object_with_id(objects: &Value, id: i64) -> &Value {
    objects.as_array().unwrap().iter().find(|object| object["id"] == id).unwrap()
}

/// The fields of a message in ascending order, with the unknown keys parsed: they may come in any order.
fn fields(mut blob: &[u8]) -> BTreeMap<(u64, usize), (Vec<u8>, Option<Value>)> {
    fn varint(blob: &mut &[u8]) -> u64 {
        let len = blob.iter().position(|byte| *byte < 0x80).unwrap() + 1;
        let value = blob[..len].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *blob = &blob[len..];
        value
    }
    let mut fields = BTreeMap::new();
    while !blob.is_empty() {
        let tag = varint(&mut blob);
        let start = blob;
        let skip = match tag & 7 {
            0 => {
                varint(&mut blob);
                0
            }
            2 => varint(&mut blob) as usize,
            5 => 4,
            wire_type => panic!("wire type {wire_type}"),
        };
        let prefix = start.len() - blob.len();
        let (payload, rest) = start.split_at(prefix + skip);
        blob = rest;
        let other = (tag >> 3 == 255).then(|| serde_json::from_slice(&payload[prefix..]).unwrap());
        let payload = if other.is_none() { payload.to_vec() } else { Vec::new() };
        fields.insert((tag, fields.len()), (payload, other));
    }
    fields
}

#[test]
fn rich_collection_both_ways() {
    let objects = vectors("rich18.objects.json");
    let rich = rich();
    let mut checked = 0;
    for row in &rich.decks {
        let object = object_with_id(&objects["decks"], row.id);
        let ours = written(|out| row.write_json(out));
        assert!(same(&serde_json::from_str(&ours).unwrap(), object), "{ours}\n{object}");
        let again = DeckRow::from_json(&object.to_string()).unwrap();
        assert_eq!(fields(&again.common), fields(&row.common), "{object}");
        assert_eq!(fields(&again.kind), fields(&row.kind), "{object}");
        assert_eq!(
            DeckRow { common: vec![], kind: vec![], ..again },
            DeckRow { common: vec![], kind: vec![], ..row.clone() }
        );
        checked += 1;
    }
    for row in &rich.configs {
        let object = object_with_id(&objects["deck_config"], row.id);
        let ours = written(|out| row.write_json(out));
        assert!(same(&serde_json::from_str(&ours).unwrap(), object), "{ours}\n{object}");
        let again = DeckConfigRow::from_json(&object.to_string()).unwrap();
        assert_eq!(fields(&again.config), fields(&row.config), "{object}");
        assert_eq!(
            (again.id, &again.name, again.mtime_secs, again.usn),
            (row.id, &row.name, row.mtime_secs, row.usn)
        );
        checked += 1;
    }
    for row in &rich.notetypes {
        let object = object_with_id(&objects["notetypes"], row.id);
        let ours = written(|out| row.write_json(out));
        assert!(same(&serde_json::from_str(&ours).unwrap(), object), "{ours}\n{object}");
        let again = NotetypeRow::from_json(&object.to_string()).unwrap();
        assert_eq!(fields(&again.config), fields(&row.config), "{object}");
        assert_eq!(
            (again.id, &again.name, again.mtime_secs, again.usn),
            (row.id, &row.name, row.mtime_secs, row.usn)
        );
        let both = again.fields.iter().zip(&row.fields);
        assert!(both.clone().all(|(a, b)| a.name == b.name && fields(&a.config) == fields(&b.config)));
        assert_eq!(again.fields.len(), row.fields.len());
        let both = again.templates.iter().zip(&row.templates);
        assert!(both.clone().all(|(a, b)| a.name == b.name && fields(&a.config) == fields(&b.config)));
        // JSON has no mtime and usn of templates.
        assert!(again.templates.iter().all(|template| (template.mtime_secs, template.usn) == (0, 0)));
        assert_eq!(again.templates.len(), row.templates.len());
        assert_eq!(i64::from(notetype_sort_field(&row.config).unwrap()), int(&object["sortf"]));
        checked += 1;
    }
    assert_eq!(checked, 18);
}

/// Damages a blob, or appends to it.
fn damage(random: &mut Random, blob: &mut Vec<u8>) {
    for _ in 0..1 + random.below(4) {
        let at = random.below(blob.len() + 1);
        match random.below(6) {
            0 => blob.truncate(at),
            1 => blob.insert(at, random.next() as u8),
            2 if at < blob.len() => blob[at] = random.next() as u8,
            3 if at < blob.len() => blob[at] ^= 1 << random.below(8),
            4 => blob.extend_from_within(at..),
            // A valid field, of any number and a type that often fits.
            _ => match random.below(3) {
                0 => blob.extend([(random.below(15) as u8 + 1) << 3 | 5, 0, 0, 0xc0, 0x7f]),
                1 => blob.extend([(random.below(15) as u8 + 1) << 3, 0xff, 0xff, 0xff, 0xff, 0x0f]),
                _ => blob.extend([0xfa, 0x0f, 20].iter().chain(br#"{"md":1,"x":2,"x":3}"#)),
            },
        }
    }
}

/// Fails if an object of the text, at any depth, has a key twice, or if a client would have to see `null` for a number.
fn assert_sendable(text: &str) {
    struct Strict;
    impl<'de> serde::Deserialize<'de> for Strict {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Strict, D::Error> {
            deserializer.deserialize_any(Strict)
        }
    }
    impl<'de> serde::de::Visitor<'de> for Strict {
        type Value = Strict;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("JSON without repeated keys")
        }
        fn visit_unit<E>(self) -> Result<Strict, E> {
            Ok(Strict)
        }
        fn visit_bool<E>(self, _: bool) -> Result<Strict, E> {
            Ok(Strict)
        }
        fn visit_i64<E>(self, _: i64) -> Result<Strict, E> {
            Ok(Strict)
        }
        fn visit_u64<E>(self, _: u64) -> Result<Strict, E> {
            Ok(Strict)
        }
        fn visit_f64<E>(self, _: f64) -> Result<Strict, E> {
            Ok(Strict)
        }
        fn visit_str<E>(self, _: &str) -> Result<Strict, E> {
            Ok(Strict)
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
            while seq.next_element::<Strict>()?.is_some() {}
            Ok(Strict)
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
            let mut keys = std::collections::BTreeSet::new();
            while let Some((key, _)) = map.next_entry::<String, Strict>()? {
                if !keys.insert(key) {
                    return Err(serde::de::Error::custom("a key twice"));
                }
            }
            Ok(Strict)
        }
    }
    serde_json::from_str::<Strict>(text).unwrap_or_else(|err| panic!("{err} in {text}"));
}

fn bases() -> Vec<(Kind, Value)> {
    let kinds = [Kind::Notetype, Kind::Deck, Kind::Deck, Kind::Config];
    kinds.into_iter().zip(random_objects::bases()).collect()
}

#[test]
fn random_objects_are_stable_after_the_first_pass_and_keep_unknown_keys() {
    let bases = bases();
    let mut random = Random(0x5eed_0001);
    for _ in 0..1500 {
        let (kind, base) = &bases[random.below(bases.len())];
        let mut unknown = Vec::new();
        let sent = random.object(base, &mut unknown);
        let once = kind.round_trip(&sent).unwrap_or_else(|err| panic!("{err}: {sent}"));
        assert_sendable(&once);
        for pair in unknown {
            assert!(once.contains(&pair), "{pair} of {sent} in {once}");
        }
        assert_eq!(kind.round_trip(&once).unwrap(), once, "{sent}");
    }
}

/// Rows whose blobs are damaged are refused, or give an object that any client (and this module) can read.
#[test]
fn random_blobs_never_panic() {
    let rich = rich();
    let mut random = Random(0x5eed_0002);
    let mut readable = 0;
    for round in 0..6000 {
        let mut out = b"before ".to_vec();
        let (kind, written) = match Kind::ALL[round % 3] {
            Kind::Deck => {
                let mut row = rich.decks[random.below(rich.decks.len())].clone();
                let blob = if random.chance(2) { &mut row.common } else { &mut row.kind };
                damage(&mut random, blob);
                (Kind::Deck, row.write_json(&mut out))
            }
            Kind::Config => {
                let mut row = rich.configs[random.below(rich.configs.len())].clone();
                damage(&mut random, &mut row.config);
                (Kind::Config, row.write_json(&mut out))
            }
            Kind::Notetype => {
                let mut row = rich.notetypes[random.below(rich.notetypes.len())].clone();
                match random.below(3) {
                    0 => damage(&mut random, &mut row.config),
                    1 => damage(&mut random, &mut row.fields[0].config),
                    _ => damage(&mut random, &mut row.templates[0].config),
                }
                let _ = notetype_sort_field(&row.config);
                (Kind::Notetype, row.write_json(&mut out))
            }
        };
        let out = String::from_utf8(out).unwrap();
        let out = out.strip_prefix("before ").unwrap();
        if written.is_err() {
            assert_eq!(out, "");
            continue;
        }
        readable += 1;
        assert_sendable(out);
        kind.round_trip(out).unwrap_or_else(|err| panic!("{err}: {out}"));
    }
    assert!(readable > 500, "only {readable}");
}

#[test]
fn hostile_texts_are_refused() {
    let deep = "[".repeat(1 << 20);
    let balanced = format!("{}{}", "[".repeat(1 << 19), "]".repeat(1 << 19));
    for (kind, base) in bases() {
        let base = base.to_string();
        let with = |pair: &str| format!("{},{pair}}}", base.strip_suffix('}').unwrap());
        for text in [
            String::new(),
            deep.clone(),
            balanced.clone(),
            with(&format!("\"x\":{deep}")),
            with(&format!("\"x\":{balanced}")),
            with(&format!("\"x\":{}1{}", "{\"y\":".repeat(1 << 18), "}".repeat(1 << 18))),
            with("\"x\":1e999"),
            with("\"x\":\"\\ud800\""),
            with("\"x\":"),
            with("\"\\udfff\":1"),
            base[..base.len() - 1].to_owned(),
            format!("[{base}]"),
            format!("{base}{base}"),
        ] {
            let refused = catch_unwind(AssertUnwindSafe(|| kind.round_trip(&text)));
            let refused = refused.expect("no panic").expect_err(&text[..text.len().min(99)]);
            assert!(refused.to_string().len() < 200, "{refused}");
        }
        let huge = format!("\"x\":[{}0]", "0,".repeat(1 << 17));
        assert!(
            kind.round_trip(&with(&huge)).unwrap().contains(&huge),
            "large, but nothing is wrong with it"
        );
        let many: String = (0..20000).map(|i| format!("\"x{}\":{i},", i % 10000)).collect();
        let out = kind.round_trip(&with(&format!("{many}\"x\":0"))).unwrap();
        assert!(out.contains("\"x9999\":19999") && !out.contains(":9999,"), "the last of each key");
    }
    let notetype = bases()[0].1.to_string();
    for (key, long) in [("flds", "1,"), ("tmpls", "[],"), ("req", "[],"), ("flds", "{},")] {
        let text = format!("{},\"{key}\":[{}0]}}", notetype.strip_suffix('}').unwrap(), long.repeat(1 << 15));
        assert_eq!(Kind::Notetype.round_trip(&text).is_ok(), key == "req");
    }
}

#[test]
fn damaged_rows_are_refused() {
    let deck = |common: &[u8], kind: &[u8]| {
        let row = DeckRow {
            id: 1,
            name: "a".into(),
            mtime_secs: 0,
            usn: 0,
            common: common.to_vec(),
            kind: kind.to_vec(),
        };
        let mut out = Vec::new();
        let result = row.write_json(&mut out);
        assert!(result.is_ok() || out.is_empty());
        result.map(|()| serde_json::from_slice::<Value>(&out).unwrap())
    };
    let normal = b"\x0a\x00";
    let refused: [(&[u8], &[u8], &str); 10] = [
        (b"", b"", "deck 1: kind is neither normal nor filtered"),
        (b"", b"\x18\x01", "deck 1: kind is neither normal nor filtered"),
        (b"", b"\x08\x01", "deck 1: kind is not a protobuf message"),
        (b"", b"\x0a\x05\x00", "deck 1: kind is not a protobuf message"),
        (b"\x08", normal, "deck 1: blob: not a protobuf message"),
        (b"\x0b\x0c", normal, "deck 1: blob: not a protobuf message"),
        (b"\x0a\x00", normal, "deck 1: blob: field 1 is damaged"),
        (b"", b"\x0a\x03\x22\x01\xff", "deck 1: blob: field 4 is damaged"),
        (b"", b"\x0a\x03\x42\x01\x08", "deck 1: blob: field 8 is damaged"),
        (b"", b"\x12\x05\x12\x03\x0a\x01\xff", "deck 1: blob: field 2 is damaged"),
    ];
    for (common, kind, why) in refused {
        assert_eq!(deck(common, kind), Err(Refused(why.into())));
    }
    // An unknown field is skipped, of two kinds the last counts, and unpacked lists are read.
    let filtered = deck(b"\x40\x01", b"\x0a\x00\x12\x0a\x1d\0\0\x80\x3f\x1d\0\0\0\x40").unwrap();
    assert_eq!(filtered["dyn"], 1);
    assert_eq!(filtered["delays"], json!([1.0, 2.0]));
}

/// Differences from the real server that the spec recommends (16.5).
#[test]
fn unknown_keys_never_clash_and_floats_are_always_numbers() {
    // `md`, and in filtered decks every key of decks, would come out twice or with the wrong meaning.
    let other = |text: &str| [&[0xfa, 0x0f, text.len() as u8], text.as_bytes()].concat();
    let row = DeckRow {
        id: 1,
        name: "a".into(),
        mtime_secs: 0,
        usn: 0,
        common: other(r#"{"md":9,"conf":9,"terms":9,"delays":9,"previewDelay":9,"mid":9,"id":9}"#),
        kind: b"\x12\x06\x1a\x04\x00\x00\xc0\x7f".to_vec(), // delays: [NaN]
    };
    let filtered = written(|out| row.write_json(out));
    assert_sendable(&filtered);
    let filtered: Value = serde_json::from_str(&filtered).unwrap();
    assert_eq!([&filtered["delays"], &filtered["mid"]], [&Value::Null, &json!(9)]);
    assert!(filtered.get("md").is_none() && filtered.get("conf").is_none());

    let normal = DeckRow { kind: b"\x0a\x02\x28\x01".to_vec(), ..row };
    let normal = written(|out| normal.write_json(out));
    assert_sendable(&normal);
    let normal: Value = serde_json::from_str(&normal).unwrap();
    assert_eq!([&normal["md"], &normal["terms"]], [&json!(true), &json!(9)]);

    // secondsToShowQuestion infinite, fsrsParams6 with NaN, desiredRetention NaN.
    let config = b"\xcd\x02\0\0\x80\x7f\x32\x08\0\0\x80\x3f\0\0\xc0\x7f\xad\x02\0\0\xc0\x7f".to_vec();
    let row = DeckConfigRow { id: 1, name: "a".into(), mtime_secs: 0, usn: 0, config };
    let options: Value = serde_json::from_str(&written(|out| row.write_json(out))).unwrap();
    assert_eq!(options["secondsToShowQuestion"], json!(0.0));
    assert_eq!(options["fsrsParams6"], json!([]));
    assert_eq!(options["desiredRetention"], json!(0.9));
}

/// Unknown keys of sections are sent back in their section; they are lost if the section is refused (5.2, 5.4).
#[test]
fn unknown_keys_of_sections() {
    let mut options = bases()[3].1.clone();
    put(&mut options, "rev.fuzz", Some(json!(0.05)));
    put(&mut options, "lapse.kept", Some(json!([1])));
    put(&mut options, "new.lost", Some(json!(1)));
    put(&mut options, "new.initialFactor", Some(json!(-1)));
    let options: Value =
        serde_json::from_str(&Kind::Config.round_trip(&options.to_string()).unwrap()).unwrap();
    assert_eq!(options["rev"]["fuzz"], json!(0.05));
    assert_eq!(options["lapse"]["kept"], json!([1]));
    assert_eq!(options["new"].get("lost"), None);
    assert_eq!(options["new"]["initialFactor"], 2500);
}

/// Cases from the tables of the spec that the recorded probes do not cover.
#[test]
fn details_of_the_spec() {
    let normal = bases()[1].1.clone();
    let deck = |changes: &[(&str, Value)]| {
        let mut deck = normal.clone();
        changes.iter().for_each(|(path, value)| put(&mut deck, path, Some(value.clone())));
        serde_json::from_str::<Value>(&Kind::Deck.round_trip(&deck.to_string()).unwrap()).unwrap()
    };
    // 4.3: the day of lrnToday does not count, the time is kept whatever its day.
    let today = deck(&[
        ("lrnToday", json!([9, 1])),
        ("newToday", json!([5, 2])),
        ("revToday", json!([4, 3])),
        ("timeToday", json!(["x", 4.0, 4])),
    ]);
    let of_days = ["lrnToday", "newToday", "revToday", "timeToday"].map(|key| today[key].clone());
    assert_eq!(of_days, [json!([5, 0]), json!([5, 2]), json!([5, 0]), json!([5, 4])]);
    let before_epoch =
        deck(&[("newToday", json!([-3, 7])), ("revToday", json!([-4, 1])), ("timeToday", json!([-5, 6]))]);
    assert_eq!([&before_epoch["newToday"], &before_epoch["timeToday"]], [&json!([-3, 7]), &json!([-3, 6])]);
    // 4.4: whole percents, two of which lose one.
    for percent in 0..=100 {
        let back = deck(&[("desiredRetention", json!(percent))])["desiredRetention"].clone();
        assert_eq!(back, json!(if [53, 59].contains(&percent) { percent - 1 } else { percent }));
    }
    // 4.1: `return` is discarded, and so is every 2 that is not a 1.
    let odd = deck(&[("return", json!(true)), ("dyn", json!(2))]);
    assert_eq!((odd.get("return"), &odd["dyn"]), (None, &json!(0)));
    // 2.2
    assert_eq!(deck(&[("name", json!(" a :: \u{1}b\n::"))])["name"], "a::b::blank");

    let mut filtered = bases()[2].1.clone();
    put(
        &mut filtered,
        "terms",
        Some(json!([["a", "7", 99], {"search": "b", "limit": -7, "order": 0, "x": 1}])),
    );
    put(&mut filtered, "conf", Some(json!(1)));
    let filtered: Value =
        serde_json::from_str(&Kind::Deck.round_trip(&filtered.to_string()).unwrap()).unwrap();
    assert_eq!(filtered["terms"], json!([["a", 7, 99], ["b", 0, 0]]));
    assert_eq!(filtered.get("conf"), None);
    for terms in
        [json!([["a", 1]]), json!([["a", 1, 2, 3]]), json!([["a", "+ 1", 2]]), json!([{"search": "a"}])]
    {
        let mut deck = bases()[2].1.clone();
        put(&mut deck, "terms", Some(terms.clone()));
        assert!(Kind::Deck.round_trip(&deck.to_string()).is_err(), "{terms}");
    }

    // 5.2: within 1310..=5000 (5.3), 35 values lose one, and multiples of 10 are stable.
    let mut options = bases()[3].1.clone();
    let mut lose_one = Vec::new();
    for factor in 1310..=5000 {
        put(&mut options, "new.initialFactor", Some(json!(factor)));
        let text = Kind::Config.round_trip(&options.to_string()).unwrap();
        let back = serde_json::from_str::<Value>(&text).unwrap()["new"]["initialFactor"].clone();
        if back != json!(factor) {
            assert_eq!(back, json!(factor - 1));
            lose_one.push(factor);
        }
    }
    assert_eq!(lose_one.len(), 35);
    assert!(
        lose_one.starts_with(&[2001, 2008, 2011, 2018, 2021, 2024, 2031])
            && lose_one.ends_with(&[4094, 4095])
    );

    // 6.1: requirements as array or object; one bad one spoils all.
    let mut notetype = bases()[0].1.clone();
    let mut req = |value: Value| {
        put(&mut notetype, "req", Some(value));
        let text = Kind::Notetype.round_trip(&notetype.to_string()).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["req"].clone()
    };
    let object = json!({"card_ord": 1, "kind": "any", "field_ords": [0, 3]});
    assert_eq!(req(json!([[0, "none", []], object])), json!([[0, "none", []], [1, "any", [0, 3]]]));
    assert_eq!(req(json!([[0, "none", []], [0, "some", []]])), json!([]));
    assert_eq!(req(json!([[70000, "none", []]])), json!([]));
    // All 32 bits are stored, only 16 are sent.
    let row = NotetypeRow { config: b"\x10\x81\x80\x04".to_vec(), ..rich().notetypes[0].clone() };
    assert_eq!(notetype_sort_field(&row.config), Ok(65537));
    let out: Value = serde_json::from_str(&written(|out| row.write_json(out))).unwrap();
    assert_eq!(out["sortf"], 1);
}
