//! The text rules against vectors that were recorded from the real programs (spec, collection-format.md 2.1 and 10).

use std::cmp::Ordering;

use ankipi::text::{note, tag, unicase};
use rusqlite::Connection;
use serde_json::Value;

fn note_vectors() -> Value {
    serde_json::from_str(include_str!("vectors/note_vectors.json")).unwrap()
}

fn unicase_vectors() -> Value {
    serde_json::from_str(include_str!("vectors/unicase.json")).unwrap()
}

fn text<'v>(vector: &'v Value, key: &str) -> &'v str {
    vector[key].as_str().unwrap_or_else(|| panic!("{key} of {vector}"))
}

/// The list under `key`; fails unless it has `length` entries.
fn list<'v>(vectors: &'v Value, key: &str, length: usize) -> &'v [Value] {
    let list = vectors[key].as_array().unwrap();
    assert_eq!(list.len(), length, "{key}");
    list
}

/// A sort field as SQLite returns it: type, text, value.
fn stored(db: &Connection, sort_field: &str) -> (String, String, rusqlite::types::Value) {
    db.execute("DELETE FROM notes", []).unwrap();
    db.execute("INSERT INTO notes (sfld) VALUES (?1)", [sort_field]).unwrap();
    db.query_row("SELECT typeof(sfld), CAST(sfld AS text), sfld FROM notes", [], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })
    .unwrap()
}

fn database() -> Connection {
    let db = Connection::open_in_memory().unwrap();
    // The column has the same affinity as in a collection (spec 1.1).
    db.execute_batch("CREATE TABLE notes (sfld integer NOT NULL)").unwrap();
    db
}

fn same_value(value: &rusqlite::types::Value, expected: &Value) -> bool {
    use rusqlite::types::Value::{Integer, Real, Text};
    match value {
        Integer(value) => expected.as_i64() == Some(*value),
        Real(value) if value.is_infinite() => expected == "inf",
        Real(value) => expected.as_f64() == Some(*value),
        Text(value) => expected == value,
        _ => false,
    }
}

#[test]
fn fields_are_stored_as_by_the_real_server() {
    let db = database();
    for vector in list(&note_vectors(), "vectors", 140) {
        let label = text(vector, "label");
        let prepared = note::prepare(text(vector, "field0"), 1, 0).unwrap();
        assert_eq!(prepared.fields, text(vector, "server_flds0"), "{label}");
        assert_eq!(prepared.sort_field, text(vector, "stripped"), "{label}");
        assert_eq!(note::strip(&prepared.fields), prepared.sort_field, "{label}");
        assert_eq!(Some(u64::from(prepared.checksum)), vector["server_csum"].as_u64(), "{label}");

        let (kind, sort_field, value) = stored(&db, &prepared.sort_field);
        assert_eq!(kind, text(vector, "server_sfld_typeof"), "{label}");
        if kind != "real" {
            // How many digits of a real number are written out depends on the release of SQLite; the value does not.
            assert_eq!(sort_field, text(vector, "server_sfld_text"), "{label}");
        }
        assert!(same_value(&value, &vector["server_sfld_value"]), "{label}: {value:?}");
    }
}

#[test]
fn the_sort_field_is_the_one_of_the_notetype() {
    let db = database();
    for vector in list(&note_vectors(), "sort_field", 6) {
        let count = vector["notetype_fields"].as_u64().unwrap() as usize;
        let sort_field = vector["mid_sort_idx"].as_u64().unwrap() as u32;
        let prepared = note::prepare(text(vector, "flds"), count, sort_field).unwrap();
        assert_eq!(prepared.fields, text(vector, "flds"));
        assert_eq!(Some(u64::from(prepared.checksum)), vector["csum"].as_u64(), "{vector}");

        let (kind, sort_field, _) = stored(&db, &prepared.sort_field);
        assert_eq!(kind, text(vector, "sfld_typeof"), "{vector}");
        assert_eq!(sort_field, text(vector, "sfld_text"), "{vector}");
    }
}

#[test]
fn tags_of_a_note_are_stored_as_by_the_real_server() {
    for vector in list(&note_vectors(), "tags_server", 16) {
        assert_eq!(note::normalize_tags(text(vector, "sent")), text(vector, "stored"), "{vector}");
    }
}

/// Clients normalise names when tags are added, by the rule that the server applies to names that are synced.
#[test]
fn names_of_tags_are_normalised_as_by_the_client() {
    for (name, normal) in [("e\u{301}", "\u{e9}"), ("::", "blank::blank"), ("foo::", "foo::blank")] {
        assert_eq!(tag::normalize_name(name), normal);
    }
}

#[test]
fn a_wrong_number_of_fields_is_refused() {
    let errors = note_vectors();
    let refused =
        |case: &str| list(&errors, "errors", 3).iter().any(|e| e["case"] == case && e["status"] == 400);
    assert!(refused("too few") && refused("too many"));
    let wrong = |found, expected| Err(note::WrongFieldCount { found, expected });
    assert_eq!(note::prepare("a", 2, 0), wrong(1, 2));
    assert_eq!(note::prepare("a\u{1f}b\u{1f}c", 2, 0), wrong(3, 2));
    assert_eq!(note::prepare("a\u{1f}b", 0, 0), wrong(2, 1));
}

#[test]
fn texts_compare_as_in_the_real_client() {
    for vector in list(&unicase_vectors(), "compare", 1120) {
        let (a, b) = (vector[0].as_str().unwrap(), vector[1].as_str().unwrap());
        let expected = match vector[2].as_i64().unwrap() {
            -1 => Ordering::Less,
            0 => Ordering::Equal,
            1 => Ordering::Greater,
            other => panic!("{other}"),
        };
        assert_eq!(unicase::compare(a, b), expected, "{vector}");
        assert_eq!(unicase::compare(b, a), expected.reverse(), "{vector}");
        assert_eq!(unicase::equal(a, b), expected == Ordering::Equal, "{vector}");
    }
}

#[test]
fn an_index_in_this_collation_is_sound() {
    let vectors = unicase_vectors();
    let sorted: Vec<&str> = list(&vectors, "sorted", 190).iter().map(|word| word.as_str().unwrap()).collect();
    let db = Connection::open_in_memory().unwrap();
    db.create_collation("unicase", unicase::compare).unwrap();
    db.execute_batch("CREATE TABLE names (name text COLLATE unicase)").unwrap();
    // Inserted in reverse order, so that the index has to sort.
    for word in sorted.iter().rev() {
        db.execute("INSERT INTO names VALUES (?1)", [word]).unwrap();
    }
    db.execute_batch("CREATE INDEX idx_names ON names (name)").unwrap();

    let read: Vec<String> = db
        .prepare("SELECT name FROM names ORDER BY name, name COLLATE binary")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(read, sorted);
    let verdict: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
}
