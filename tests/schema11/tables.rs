//! The rows of a collection as JSON, to compare with those that real programs made.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ankipi::text::unicase;
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::{Value, json};

use crate::blobs::{decode, fields_of};

/// Rows of each table, sorted: their order has no meaning.
pub type Tables = BTreeMap<String, Vec<Value>>;

pub const NAMES: [&str; 12] = [
    "cards",
    "col",
    "config",
    "deck_config",
    "decks",
    "fields",
    "graves",
    "notes",
    "notetypes",
    "revlog",
    "tags",
    "templates",
];

pub fn vector_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

pub fn vector(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(vector_path(name)).unwrap()).unwrap()
}

pub fn open(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.create_collation("unicase", unicase::compare).unwrap();
    db
}

/// The tables of a file; those that it has not are left out.
pub fn read(path: &Path) -> Tables {
    let db = open(path);
    let mut tables = Tables::new();
    for table in NAMES {
        let Ok(mut select) = db.prepare(&format!("SELECT * FROM {table} NOT INDEXED")) else { continue };
        let columns: Vec<String> = select.column_names().map(str::to_owned).collect();
        let mut rows = select.query([]).unwrap();
        let read = tables.entry(table.to_owned()).or_default();
        while let Some(row) = rows.next().unwrap() {
            let values = columns.iter().enumerate().map(|(i, column)| match row.get_ref(i).unwrap() {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(value) => json!(value),
                ValueRef::Real(value) => json!(value),
                ValueRef::Text(text) => json!(std::str::from_utf8(text).unwrap()),
                ValueRef::Blob(blob) => readable(table, column, blob),
            });
            read.push(values.collect());
        }
    }
    sorted(tables)
}

/// The tables of a vector, whose blobs are in hexadecimal.
pub fn of_vector(name: &str) -> Tables {
    let vector = vector(name);
    let mut tables = Tables::new();
    for table in NAMES {
        let Some(found) = vector.get(table).filter(|found| found.get("rows").is_some()) else { continue };
        let columns = found["columns"].as_array().unwrap();
        let rows = found["rows"].as_array().unwrap().iter().map(|row| {
            let values = row.as_array().unwrap().iter().zip(columns).map(|(value, column)| {
                let column = column.as_str().unwrap();
                let is_blob = column == "val" || fields_of(table, column).is_some();
                match value.as_str().filter(|_| is_blob) {
                    Some(hex) => readable(table, column, &bytes(hex)),
                    None => value.clone(),
                }
            });
            values.collect()
        });
        tables.insert(table.to_owned(), rows.collect());
    }
    sorted(tables)
}

pub fn sorted(mut tables: Tables) -> Tables {
    tables.values_mut().for_each(|rows| rows.sort_by_key(Value::to_string));
    tables
}

/// Fails with the rows that only one side has.
pub fn assert_same(ours: &Tables, theirs: &Tables, what: &str) {
    for table in ours.keys().chain(theirs.keys()) {
        let (ours, theirs) = (&ours[table], &theirs[table]);
        let only = |a: &[Value], b: &[Value]| {
            a.iter().filter(|row| !b.contains(row)).map(|row| format!("\n  {row}")).collect::<String>()
        };
        assert!(
            ours == theirs,
            "{what}, table {table}: only ours{}\nonly theirs{}",
            only(ours, theirs),
            only(theirs, ours)
        );
    }
}

fn readable(table: &str, column: &str, blob: &[u8]) -> Value {
    match fields_of(table, column) {
        Some(fields) => decode(blob, fields),
        None => serde_json::from_slice(blob).unwrap(),
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}
