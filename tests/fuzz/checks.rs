//! Checks that must pass for any bytes. The fuzz targets search for bytes that fail them; `fuzz_replay` repeats the
//! inputs found so far.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use ankipi::collection::blobs::{DeckConfigRow, DeckRow, FieldRow, NotetypeRow, TemplateRow, deck_name};
use ankipi::collection::schema::upgrade;
use ankipi::error::Result;
use ankipi::files::spool::Spool;
use ankipi::media::zip::ZipReader;
use ankipi::server::connections::fuzz_entry::probe;
use ankipi::text::{note, tag, unicase};
use rusqlite::{Connection, params};

mod bodies;
mod input;
mod session;
#[allow(dead_code, reason = "the tests of media read zips, too")]
#[path = "../media/zip.rs"]
mod zips;

pub use bodies::{body, form, gzip};
pub use session::session;

/// A check of some bytes; panics on a fault.
pub type Check = fn(&[u8]);

/// All checks, by the names of their targets.
pub const ALL: [(&str, Check); 10] = [
    ("head", head),
    ("body", body),
    ("gzip", gzip),
    ("form", form),
    ("zip", zip),
    ("translate", translate),
    ("text", text),
    ("collation", collation),
    ("schema11", schema11),
    ("session", session),
];

/// Takes the first byte off: it chooses what is done with the rest.
fn choice(data: &[u8]) -> (usize, &[u8]) {
    data.split_first().map_or((0, data), |(first, rest)| (usize::from(*first), rest))
}

/// A request: what is handed on does not depend on the pieces in which it came, is read alike by the next hop, and
/// cannot say what only the connection layer says.
pub fn head(data: &[u8]) {
    let (piece, input) = choice(data);
    let whole = probe(input, usize::MAX);
    let pieces = probe(input, piece);
    assert_eq!(whole.is_ok(), pieces.is_ok());
    let Ok(Some(request)) = whole else {
        return;
    };
    assert_eq!(pieces.unwrap().as_ref(), Some(&request));
    let text = std::str::from_utf8(&request.forward).unwrap();
    let head = text.strip_suffix("\r\n\r\n").expect("an end");
    assert!(!head.contains("\r\n\r\n"));
    let mut lines = head.split("\r\n");
    assert!(lines.next().unwrap().ends_with(" HTTP/1.1"));
    let mut counts = HashMap::<String, usize>::new();
    for line in lines {
        assert!(!line.contains(['\r', '\n']));
        *counts.entry(line.split_once(':').unwrap().0.to_ascii_lowercase()).or_default() += 1;
    }
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    assert_eq!(count("x-ankipi-peer"), 1);
    assert!(count("x-ankipi-length") <= 1);
    assert!(count("content-length") + count("transfer-encoding") <= 1);
    assert_eq!(count("connection"), 1);
    assert_eq!(count("upgrade") + count("expect") + count("keep-alive"), 0);
}

/// A media zip: nothing is unpacked beyond what its directory says.
pub fn zip(data: &[u8]) {
    let mut spool = Spool::new(&std::env::temp_dir());
    spool.write_all(data).unwrap();
    let Ok(zip) = ZipReader::open(&spool) else {
        return;
    };
    let _ = zip.meta();
    for number in 0..26 {
        let Some(entry) = zip.entry(&number.to_string()) else {
            continue;
        };
        let mut bytes = 0;
        let outcome = zip.unpack(entry, |block| {
            bytes += block.len() as u64;
            assert!(bytes <= entry.bytes());
            Ok(())
        });
        assert!(outcome.is_err() || bytes == entry.bytes());
        // A file of the store begins with the contents only if there is one.
        assert!(zip.file_of(entry).unwrap_or_default().is_none());
    }
}

/// The objects of the wire: what is taken can be sent, and comes back as the same row.
pub fn translate(data: &[u8]) {
    let (choice, data) = choice(data);
    let text = String::from_utf8_lossy(data);
    match choice % 6 {
        0 => round_trip(DeckRow::from_json, DeckRow::write_json, &text),
        1 => round_trip(DeckConfigRow::from_json, DeckConfigRow::write_json, &text),
        2 => round_trip(NotetypeRow::from_json, NotetypeRow::write_json, &text),
        // Blobs of an upload. Those that cannot be read are refused; the others become JSON that clients can read.
        3 => {
            let (common, kind) = data.split_at(data.len() / 2);
            let name = "a".to_owned();
            let (common, kind) = (common.to_vec(), kind.to_vec());
            sent(|out| DeckRow { id: 1, name, mtime_secs: 1, usn: 1, common, kind }.write_json(out));
        }
        4 => {
            let name = "a".to_owned();
            let config = data.to_vec();
            sent(|out| DeckConfigRow { id: 1, name, mtime_secs: 1, usn: 1, config }.write_json(out));
        }
        _ => {
            let part = |n: usize| data.chunks(data.len() / 3 + 1).nth(n).unwrap_or_default().to_vec();
            let fields = vec![FieldRow { name: "f".to_owned(), config: part(1) }];
            let templates =
                vec![TemplateRow { name: "t".to_owned(), mtime_secs: 0, usn: 0, config: part(2) }];
            let (name, config) = ("n".to_owned(), part(0));
            let row = NotetypeRow { id: 1, name, mtime_secs: 1, usn: 1, config, fields, templates };
            sent(|out| row.write_json(out));
        }
    }
    if !has_controls(&text) {
        let native = deck_name::human_to_native(&text);
        assert_eq!(deck_name::human_to_native(&deck_name::native_to_human(&native)), native, "{text:?}");
    }
}

/// By the rule they go after colons were looked at and the text was composed, so what is left of a name with any may change
/// once more (collection-format.md 2.2).
fn has_controls(text: &str) -> bool {
    text.chars().any(|c| c.is_ascii_control())
}

fn round_trip<T: PartialEq + std::fmt::Debug, E: std::fmt::Display>(
    from: impl Fn(&str) -> std::result::Result<T, E>,
    to: impl Fn(&T, &mut Vec<u8>) -> std::result::Result<(), E>,
    text: &str,
) {
    let json = |row: &T| {
        let mut out = Vec::new();
        to(row, &mut out).unwrap_or_else(|err| panic!("it was taken and cannot be sent: {err}"));
        String::from_utf8(out).unwrap()
    };
    let Ok(row) = from(text) else {
        return;
    };
    let once = json(&row);
    serde_json::from_str::<serde::de::IgnoredAny>(&once).unwrap();
    let again = from(&once).unwrap_or_else(|err| panic!("{err}: {once}"));
    assert_eq!(json(&again), once);
}

fn sent<E>(write: impl FnOnce(&mut Vec<u8>) -> std::result::Result<(), E>) {
    let mut out = Vec::new();
    match write(&mut out) {
        Ok(()) => drop(serde_json::from_slice::<serde::de::IgnoredAny>(&out).unwrap()),
        Err(_) => assert!(out.is_empty()),
    }
}

/// Note text: what is derived is the same when it is derived again.
pub fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let count = text.split('\u{1f}').count();
    let prepared = note::prepare(&text, count, 1).unwrap();
    assert!(prepared.sort_field.len() <= text.len() * 4);
    assert_eq!(note::prepare(&prepared.fields, count, 1).as_ref(), Ok(&prepared), "{text:?}");
    assert!(note::prepare(&text, count + 1, 0).is_err());
    let (tags, name) = (note::normalize_tags(&text), tag::normalize_name(&text));
    if !has_controls(&text) {
        assert_eq!(note::normalize_tags(&tags), tags, "{text:?}");
    }
    // White space goes after colons were looked at, too; the names of tags hold none.
    if !has_controls(&text) && !text.contains(char::is_whitespace) {
        assert_eq!(tag::normalize_name(&name), name, "{text:?}");
    }
}

/// The collation: the rule of collection-format.md 2.1, taken at its word.
pub fn collation(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut texts = text.split('\0');
    let (a, b) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
    let order = folded(a).cmp(&folded(b));
    assert_eq!(unicase::compare(a, b), order, "{a:?} {b:?}");
    assert_eq!(unicase::equal(a, b), order == Ordering::Equal, "{a:?} {b:?}");
}

fn folded(text: &str) -> Vec<u32> {
    static TABLE: OnceLock<HashMap<u32, Vec<u32>>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let lines = include_str!("folding.txt").lines().filter(|line| !line.starts_with('#'));
        let numbers = lines.map(|line| line.split(' ').map(|code| u32::from_str_radix(code, 16).unwrap()));
        let mut table = HashMap::new();
        for mut numbers in numbers {
            let from = numbers.next().unwrap();
            let mut to: Vec<_> = numbers.collect();
            if to.len() == 3 {
                // The quirk.
                to.rotate_right(1);
            }
            table.insert(from, to);
        }
        table
    });
    text.chars().flat_map(|c| table.get(&(c as u32)).cloned().unwrap_or_else(|| vec![c as u32])).collect()
}

/// The JSON columns of an old collection: what is taken is sound, and can be sent.
pub fn schema11(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    // As SQLite has it, a text ends before the first zero.
    let columns: Vec<_> = text.split('\0').collect();
    let db = old_collection(&columns).unwrap();
    if upgrade::upgrade(&db, 11, 1 << 20).is_err() {
        return;
    }
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let mut decks = db.prepare("SELECT id, name, mtime_secs, usn, common, kind FROM decks").unwrap();
    let mut rows = decks.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let deck = DeckRow {
            id: row.get(0).unwrap(),
            name: row.get(1).unwrap(),
            mtime_secs: row.get(2).unwrap(),
            usn: row.get(3).unwrap(),
            common: row.get(4).unwrap(),
            kind: row.get(5).unwrap(),
        };
        deck.write_json(&mut Vec::new()).unwrap();
    }
    let mut options = db.prepare("SELECT id, name, mtime_secs, usn, config FROM deck_config").unwrap();
    let mut rows = options.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let options = DeckConfigRow {
            id: row.get(0).unwrap(),
            name: row.get(1).unwrap(),
            mtime_secs: row.get(2).unwrap(),
            usn: row.get(3).unwrap(),
            config: row.get(4).unwrap(),
        };
        options.write_json(&mut Vec::new()).unwrap();
    }
}

/// A collection of schema 11 with these texts as conf, models, decks, dconf and tags.
fn old_collection(columns: &[&str]) -> Result<Connection> {
    static SCHEMA: OnceLock<String> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| {
        let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let found =
            vectors.map(|dir| dir.join("tests/vectors/old_2.1.25_schema11.anki2")).find(|f| f.exists());
        let db = Connection::open(found.unwrap()).unwrap();
        let mut select = db.prepare("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite%'").unwrap();
        let sql = select.query_map([], |row| row.get::<_, String>(0)).unwrap();
        sql.map(|sql| sql.unwrap() + ";\n").collect()
    });
    let db = Connection::open_in_memory()?;
    db.create_collation("unicase", unicase::compare)?;
    db.execute_batch(schema)?;
    let column = |n: usize| columns.get(n).copied().unwrap_or("{}");
    db.execute(
        "INSERT INTO col VALUES (1, 1, 1, 1, 11, 0, 5, 1, ?1, ?2, ?3, ?4, ?5)",
        params![column(0), column(1), column(2), column(3), column(4)],
    )?;
    Ok(db)
}
