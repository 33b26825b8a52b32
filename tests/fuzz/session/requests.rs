//! One line of a story as a request: what a client would send, changed by as much as the line asks for.

use std::fs;
use std::path::Path;

use rusqlite::Connection;
use rusqlite::types::{Value as Sql, ValueRef};
use serde_json::{Map, Value, json};
use sha1::{Digest, Sha1};

use super::super::input::Input;
use super::super::zips::{Entry, write_zip};
use super::{HASH, World, open, packed, vector};

/// The tables of a collection.
pub const TABLES: [&str; 13] = [
    "col",
    "notes",
    "cards",
    "revlog",
    "deck_config",
    "config",
    "fields",
    "templates",
    "notetypes",
    "decks",
    "tags",
    "graves",
    "sqlite_stat1",
];

/// The letters of the methods.
const METHODS: [(u8, &str); 17] = [
    (b's', "start"),
    (b'g', "applyGraves"),
    (b'c', "applyChanges"),
    (b'k', "chunk"),
    (b'p', "applyChunk"),
    (b'y', "sanityCheck2"),
    (b'f', "finish"),
    (b'x', "abort"),
    (b'm', "meta"),
    (b'h', "hostKey"),
    (b'u', "upload"),
    (b'd', "download"),
    (b'b', "begin"),
    (b'n', "mediaChanges"),
    (b'U', "uploadChanges"),
    (b'D', "downloadFiles"),
    (b'S', "mediaSanity"),
];

/// A request, and what is known of it.
pub struct Asked {
    pub method: &'static str,
    /// Whose key it has; empty for a wrong one.
    pub user: &'static str,
    /// Whether it is of protocol 8 to 10.
    pub is_form: bool,
    /// With the line breaks, without the length.
    pub head: String,
    pub body: Vec<u8>,
}

const SKEYS: [&str; 4] = ["s1", "s2", "", "s1\\x"];

impl Asked {
    pub fn of(input: &mut Input, world: &World) -> Asked {
        let letter = input.byte();
        let found = METHODS.iter().find(|(known, _)| *known == letter);
        let method = found.map_or(METHODS[usize::from(letter) % METHODS.len()].1, |(_, method)| *method);
        let how = input.byte();
        let user = ["a", "a", "b", ""][usize::from(how) % 4];
        let skey = SKEYS[usize::from(how / 4) % 4];
        let (is_form, is_spoilt, is_odd) = (how & 0x10 != 0, how & 0x20 != 0, how & 0x40 != 0);
        let mut plain = body_of(method, input, world);
        if is_spoilt {
            spoil(input, &mut plain);
        }
        let mut asked = match (is_form, is_odd) {
            (false, _) => Asked::of_today(user, method, &plain, skey),
            (true, false) => Asked::form(user, method, &plain, skey, 0),
            (true, true) if method == "begin" => Asked::query(user, method),
            (true, true) => Asked::form(user, method, &plain, skey, input.byte()),
        };
        if is_odd && !is_form {
            spoil(input, &mut asked.body);
        }
        asked
    }

    /// A well-formed request of protocol 11.
    pub fn plain(user: &'static str, method: &str, body: &Value, skey: &str) -> Asked {
        let method = METHODS.iter().find(|(_, known)| *known == method).unwrap().1;
        let user = if user == "b" { "b" } else { "a" };
        Asked::of_today(user, method, body.to_string().as_bytes(), skey)
    }

    fn of_today(user: &'static str, method: &'static str, plain: &[u8], skey: &str) -> Asked {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nanki-sync: {}\r\n",
            path_of(method),
            json!({"v": 11, "k": key_of(user), "c": "25.09,abc,linux", "s": skey})
        );
        Asked { method, user, is_form: false, head, body: packed(plain, false) }
    }

    fn form(user: &'static str, method: &'static str, plain: &[u8], skey: &str, odd: u8) -> Asked {
        let is_raw = path_of(method).starts_with("/msync") || odd & 1 != 0;
        let data = if is_raw { plain.to_vec() } else { packed(plain, true) };
        let compressed = if is_raw { "0" } else { "1" };
        let mut parts: Vec<(&str, &[u8])> = vec![
            ("c", compressed.as_bytes()),
            (if odd & 2 != 0 { "sk" } else { "k" }, b""),
            ("s", skey.as_bytes()),
            ("data", &data),
        ];
        let key = key_of(user);
        parts[1].1 = key.as_bytes();
        parts.rotate_left(usize::from(odd >> 2) % 4);
        let mut body = Vec::new();
        for (name, contents) in parts {
            let head = format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
            body.extend_from_slice(head.as_bytes());
            body.extend_from_slice(contents);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--xyz--\r\n");
        if odd & 0x80 != 0 {
            body.truncate(body.len() * usize::from(odd & 0x7f) / 0x80);
        }
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=xyz\r\n",
            path_of(method)
        );
        // Cut off, it may have no key, or one that is cut off.
        let user = if odd & 0x80 != 0 { "b" } else { user };
        Asked { method, user, is_form: true, head, body }
    }

    fn query(user: &'static str, method: &'static str) -> Asked {
        let head = format!("GET /msync/begin?k={}&v=x HTTP/1.1\r\nHost: x\r\n", key_of(user));
        Asked { method, user, is_form: true, head, body: Vec::new() }
    }
}

fn path_of(method: &str) -> String {
    let folder = if METHODS[12..].iter().any(|(_, media)| *media == method) { "msync" } else { "sync" };
    format!("/{folder}/{method}")
}

fn key_of(user: &str) -> String {
    let digest = Sha1::digest(format!("{}:{HASH}", if user.is_empty() { "nobody" } else { user }));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the collection of user a holds, as it would be sent.
pub struct Pools {
    cards: Vec<Value>,
    notes: Vec<Value>,
    revlog: Vec<Value>,
    notetypes: Vec<Value>,
    decks: Vec<Value>,
    deck_configs: Vec<Value>,
    config: Value,
    /// Numbers that mean something there.
    numbers: Vec<i64>,
    counts: Value,
}

impl Pools {
    pub fn of(collection: &Path) -> Pools {
        let db = open(collection);
        let objects = fs::read(vector("rich18").with_extension("objects.json")).unwrap();
        let mut objects: Value = serde_json::from_slice(&objects).unwrap();
        let mut list = |key: &str| objects[key].as_array_mut().map(std::mem::take).unwrap();
        let mut notes = rows(&db, "SELECT id, guid, mid, mod, usn, tags, flds, '', '', 0, '' FROM notes");
        let cards = rows(&db, "SELECT * FROM cards");
        let numbers = ["SELECT id FROM notes", "SELECT id FROM cards", "SELECT id FROM decks"]
            .into_iter()
            .chain(["SELECT id FROM notetypes", "SELECT id FROM deck_config", "SELECT mod FROM notes"])
            .flat_map(|sql| rows(&db, sql))
            .map(|row| row[0].as_i64().unwrap());
        let numbers = numbers
            .chain([1, -1, 2, 3, 9, 255, 256, 65_535, 65_536, -2, 1_000_000])
            .chain([
                i32::MAX.into(),
                i32::MIN.into(),
                i64::from(i32::MAX) + 1,
                u32::MAX.into(),
                i64::MAX,
                i64::MIN,
            ])
            .collect();
        let count = |table: &str| rows(&db, &format!("SELECT count(*) FROM {table}"))[0][0].clone();
        notes.sort_by_key(|note| note[0].as_i64());
        Pools {
            counts: json!([
                [0, 0, 0],
                cards.len(),
                notes.len(),
                count("revlog"),
                0,
                count("notetypes"),
                count("decks"),
                count("deck_config")
            ]),
            revlog: rows(&db, "SELECT * FROM revlog"),
            cards,
            notes,
            notetypes: list("notetypes"),
            decks: list("decks"),
            deck_configs: list("deck_config"),
            config: rows(&db, "SELECT KEY, CAST(val AS text) FROM config")
                .into_iter()
                .map(|row| {
                    let value = serde_json::from_str(row[1].as_str().unwrap()).unwrap();
                    (row[0].as_str().unwrap().to_owned(), value)
                })
                .collect::<Map<_, _>>()
                .into(),
            numbers,
        }
    }
}

/// Rows as arrays.
fn rows(db: &Connection, sql: &str) -> Vec<Value> {
    let mut select = db.prepare(sql).unwrap();
    let columns = select.column_count();
    let row = |row: &rusqlite::Row| {
        let value = |column| match row.get_ref(column).unwrap() {
            ValueRef::Integer(number) => json!(number),
            ValueRef::Real(number) => json!(number),
            ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
            ValueRef::Null | ValueRef::Blob(_) => Value::Null,
        };
        Ok((0..columns).map(value).collect())
    };
    select.query_map([], row).unwrap().map(Result::unwrap).collect()
}

fn body_of(method: &str, input: &mut Input, world: &World) -> Vec<u8> {
    let pools = &world.pools;
    let mut shape = match method {
        "start" => {
            let graves = match input.byte() % 2 {
                0 => Value::Null,
                _ => graves(input, pools),
            };
            json!({"minUsn": *input.pick(&[1, 0, 2, -1, 1_000_000, i32::MAX]), "lnewer": input.byte() % 2 == 1, "graves": graves})
        }
        "applyGraves" => json!({"chunk": graves(input, pools)}),
        "applyChanges" => {
            let decks =
                json!([objects(input, pools, &pools.decks), objects(input, pools, &pools.deck_configs)]);
            let mut changes = json!({
                "models": objects(input, pools, &pools.notetypes),
                "decks": decks,
                "tags": (0..input.below(4)).map(|_| text(input)).collect::<Vec<_>>(),
            });
            if input.byte() % 2 == 1 {
                changes["conf"] = pools.config.clone();
                changes["crt"] = number(input, pools);
                edit(input, pools, &mut changes["conf"]);
            }
            json!({"changes": changes})
        }
        "applyChunk" => json!({"chunk": {
            "done": true,
            "revlog": objects(input, pools, &pools.revlog),
            "cards": objects(input, pools, &pools.cards),
            "notes": objects(input, pools, &pools.notes),
        }}),
        "sanityCheck2" => json!({"client": pools.counts, "full": true}),
        "meta" => json!({"v": *input.pick(&[11, 10, 9, 8, 7, 12, -1]), "cv": "25.09,abc,linux"}),
        "hostKey" => {
            json!({"u": *input.pick(&["a", "b", "c", "", "../a"]), "p": *input.pick(&["p", "q", ""])})
        }
        "upload" => return collection(input, world),
        "begin" => json!({"v": "25.09,abc,linux"}),
        "mediaChanges" => json!({"lastUsn": *input.pick(&[0, 1, 2, -1, 1_000_000])}),
        "uploadChanges" => return media_zip(input),
        "downloadFiles" => {
            json!({"files": (0..input.below(4)).map(|_| media_name(input)).collect::<Vec<_>>()})
        }
        "mediaSanity" => json!({"local": input.below(5)}),
        _ => json!({"_pad": null}),
    };
    for _ in 0..input.below(4) {
        edit(input, pools, &mut shape);
    }
    shape.to_string().into_bytes()
}

fn graves(input: &mut Input, pools: &Pools) -> Value {
    let mut ids = || -> Vec<Value> { (0..input.below(4)).map(|_| number(input, pools)).collect() };
    json!({"cards": ids(), "notes": ids(), "decks": ids()})
}

/// Up to three of these, edited.
fn objects(input: &mut Input, pools: &Pools, pool: &[Value]) -> Vec<Value> {
    let count = input.below(4);
    let mut objects: Vec<Value> = (0..count).map(|_| input.pick(pool).clone()).collect();
    for object in &mut objects {
        for _ in 0..input.below(5) {
            edit(input, pools, object);
        }
    }
    objects
}

/// Changes one thing, somewhere.
fn edit(input: &mut Input, pools: &Pools, at: &mut Value) {
    let goes_on = input.byte() % 8 != 7;
    match at {
        Value::Object(map) if goes_on && !map.is_empty() => {
            let n = input.below(map.len());
            edit(input, pools, map.values_mut().nth(n).unwrap());
        }
        Value::Array(list) if goes_on && !list.is_empty() => {
            let n = input.below(list.len());
            edit(input, pools, &mut list[n]);
        }
        here => change(input, pools, here),
    }
}

fn change(input: &mut Input, pools: &Pools, at: &mut Value) {
    match (input.byte() % 8, at) {
        (0 | 1, Value::Object(map)) => {
            map.insert(text(input), json(input, pools, 0));
        }
        (2 | 3, Value::Object(map)) if !map.is_empty() => {
            let n = input.below(map.len());
            let key = map.keys().nth(n).cloned();
            map.remove(&key.unwrap_or_default());
        }
        (0 | 1, Value::Array(list)) => list.push(json(input, pools, 0)),
        (2, Value::Array(list)) => drop(list.pop()),
        (3, Value::Array(list)) => list.extend(list.last().cloned()),
        (0 | 1, Value::String(old)) => *old = text(input),
        (2, Value::String(old)) => old.push_str(&text(input)),
        (3, Value::String(old)) => *old = old.to_uppercase(),
        (0 | 1, at @ Value::Number(_)) => *at = number(input, pools),
        (2, at @ Value::Number(_)) => *at = json!(at.as_i64().unwrap_or(0).wrapping_add(1)),
        (3, at @ Value::Number(_)) => *at = json!(at.as_f64().unwrap_or(0.0) + 0.5),
        (4, at) => *at = Value::Null,
        (_, at) => *at = json(input, pools, 0),
    }
}

fn json(input: &mut Input, pools: &Pools, depth: usize) -> Value {
    match input.byte() % if depth < 3 { 8 } else { 6 } {
        0 | 1 => number(input, pools),
        2 | 3 => text(input).into(),
        4 => (input.byte() % 2 == 1).into(),
        5 => Value::Null,
        6 => (0..input.below(3)).map(|_| json(input, pools, depth + 1)).collect(),
        _ => (0..input.below(3))
            .map(|_| (text(input), json(input, pools, depth + 1)))
            .collect::<Map<_, _>>()
            .into(),
    }
}

fn number(input: &mut Input, pools: &Pools) -> Value {
    match input.byte() {
        kind @ ..200 => json!(pools.numbers[usize::from(kind) % pools.numbers.len()]),
        200..220 => json!(f64::from(input.byte()) / 16.0),
        220..230 => json!(*input.pick(&pools.numbers)).to_string().into(),
        230 => json!(*input.pick(&[1e300, -1e300, 1e-9, -0.0])),
        _ => json!(i64::from(input.byte()) << (input.byte() % 56)),
    }
}

const TEXTS: [&str; 24] = [
    "",
    "Default",
    "default",
    "deck::sub",
    "::",
    "a\u{1f}b",
    "a\u{1f}b\u{1f}c",
    "\u{1f}",
    "\0",
    "e\u{301}",
    "\u{df}",
    "\u{130}",
    "<img src=\"hello\">",
    "{\"pos\":1}",
    "[sound:a.mp3]",
    "&amp;&lt;x",
    " t1 t2 ",
    "\u{feff}\u{200b}",
    "Basic",
    "id",
    "usn",
    "1.5",
    "99999999999999999999",
    "Stra\u{df}e",
];

fn text(input: &mut Input) -> String {
    match input.byte() {
        kind @ ..200 => TEXTS[usize::from(kind) % TEXTS.len()].to_owned(),
        200..=250 => String::from_utf8_lossy(input.short()).into_owned(),
        _ => input.pick(&TEXTS).repeat(1 + input.below(6000)),
    }
}

/// Changes bytes, wherever they are.
fn spoil(input: &mut Input, bytes: &mut Vec<u8>) {
    for _ in 0..=input.byte() % 3 {
        let at = input.below(bytes.len() + 1);
        match input.byte() % 4 {
            0 if at < bytes.len() => bytes[at] = input.byte(),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, input.short().iter().copied())),
            _ => {
                let end = (at + input.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
}

const COLLECTIONS: [&str; 6] =
    ["rich18", "rich11", "mid_schema14", "mid_schema18", "old_2.0.52_schema11", "old_23.10_schema11"];

/// A whole collection, in which values and bytes are changed.
fn collection(input: &mut Input, world: &World) -> Vec<u8> {
    let mut file = fs::read(vector(input.pick::<&str>(&COLLECTIONS))).unwrap();
    let edits = input.below(4);
    if edits > 0 {
        let path = world.dir.join("edited.anki2");
        fs::write(&path, file).unwrap();
        let db = open(&path);
        db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF").unwrap();
        for _ in 0..edits {
            // Not all of them are possible.
            let _ = edit_row(input, world, &db);
        }
        drop(db);
        file = fs::read(&path).unwrap();
    }
    for _ in 0..input.below(3) {
        let at = (input.below(65_536) << 2 | input.below(4)) % file.len();
        file[at] = input.byte();
    }
    file
}

fn edit_row(input: &mut Input, world: &World, db: &Connection) -> rusqlite::Result<usize> {
    let table = *input.pick(&TABLES);
    let mut select = db.prepare("SELECT name FROM pragma_table_info(?1)")?;
    let columns: Vec<String> = select.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    if columns.is_empty() {
        return Ok(0);
    }
    let column = input.pick(&columns).clone();
    let row = input.below(32) as i64;
    let old: Sql = db.query_row(
        &format!("SELECT {column} FROM {table} LIMIT 1 OFFSET ?1 % (SELECT count(*) FROM {table})"),
        [row],
        |row| row.get(0),
    )?;
    let new = match (input.byte() % 8, &old) {
        (0..=3, Sql::Text(text)) if text.starts_with('{') => {
            let mut object: Value = serde_json::from_str(text).unwrap_or_default();
            edit(input, &world.pools, &mut object);
            Sql::Text(object.to_string())
        }
        (0..=3, Sql::Blob(blob)) => {
            let mut blob = blob.clone();
            spoil(input, &mut blob);
            Sql::Blob(blob)
        }
        (0..=4, _) => Sql::Integer(number(input, &world.pools).as_i64().unwrap_or(0)),
        (5, _) => Sql::Text(text(input)),
        (6, _) => Sql::Blob(input.short().to_vec()),
        _ => Sql::Real(f64::from(input.byte()) / 3.0),
    };
    db.execute(&format!("UPDATE OR REPLACE {table} SET {column} = ?1 WHERE {column} IS ?2"), (new, old))
}

const MEDIA_NAMES: [&str; 16] = [
    "hello",
    "a.mp3",
    "b.png",
    "..",
    "../x",
    "a/b",
    "e\u{301}.jpg",
    "\u{e9}.jpg",
    "CON",
    "",
    "_meta",
    "media.db",
    ".",
    "a\0b",
    "A.MP3",
    "\u{202e}gpj.exe",
];

fn media_name(input: &mut Input) -> String {
    match input.byte() {
        kind @ ..200 => MEDIA_NAMES[usize::from(kind) % MEDIA_NAMES.len()].to_owned(),
        _ => String::from_utf8_lossy(input.short()).into_owned(),
    }
}

/// A zip of changes.
fn media_zip(input: &mut Input) -> Vec<u8> {
    let (mut entries, mut meta) = (Vec::new(), Vec::new());
    for n in 0..input.below(30) {
        let name = media_name(input);
        let number = n.to_string();
        match input.byte() % 5 {
            0 => meta.push(json!([name, ""])),
            1 => meta.push(json!([name, null])),
            kind => {
                let data = input.short();
                let entry: fn(&str, &[u8]) -> Entry =
                    [Entry::stored, Entry::deflated, Entry::described][usize::from(kind) - 2];
                entries.push(entry(&number, data));
                meta.push(json!([name, number]));
            }
        }
    }
    let mut meta = Value::Array(meta);
    if input.byte() % 4 == 3 {
        let at = input.below(3);
        if let Some(pair) = meta.get_mut(at) {
            *pair = json!([media_name(input), input.below(4).to_string()]);
        }
    }
    entries.push(Entry::stored("_meta", meta.to_string().as_bytes()));
    write_zip(&entries)
}
