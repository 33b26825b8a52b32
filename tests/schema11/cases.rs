//! Odd files of schema 11, each with the verdict of the real server and the rows that it made.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use ankipi::collection::schema::INDEXES;
use rusqlite::Connection;
use serde_json::{Value, json};

use super::Uploaded;
use crate::tables::{Tables, assert_same, of_vector, open, sorted, vector};
use crate::{settled, tables};

const BASE: &str = "old_2.1.25_schema11.anki2";

/// Ids of objects in the base file.
const CLOZE: i64 = 1795427218917;
const CHILD_DECK: i64 = 1795427218931;

/// The id that the real server drew for the notetype that had none.
const DRAWN_ID: &str = "1470686774";

/// When the vectors were made, some time after the base file.
const VECTORS_MADE: std::ops::Range<i64> = 1795428000..1795430000;

/// Intended differences from the real server.
enum Ours {
    /// Refused here: the upgrade would give nothing that a client can use (collection-format.md 7, 13).
    Refuse(&'static str),
    /// Accepted, and what was changed in the file makes no difference.
    AsUnmodified,
    /// Another change to these rows: of which table, those it takes away by id, and names and usn in their place.
    Rename(&'static str, &'static [(i64, &'static str)]),
    /// Tags.
    Tags(&'static [(&'static str, i64)]),
}

fn on_purpose(case: &str) -> Option<Ours> {
    Some(match case {
        // The key of the map is the id, for all three kinds of objects (16, 1).
        "nt inner id differs from key" | "deck inner id differs" | "deck inner id 0" => Ours::AsUnmodified,
        // The order of a map is arbitrary there; here it is that of the text.
        "nt dup names" => {
            Ours::Rename("notetypes", &[(CLOZE, "Same"), (CLOZE + 1, "SAME_"), (CLOZE + 2, "same__")])
        }
        "deck dup names" => Ours::Rename("decks", &[(CHILD_DECK, "Dup"), (CHILD_DECK + 2, "DUP_")]),
        "tags dup case" => Ours::Tags(&[("a", 1)]),
        // Files of another version than they say: refused rather than taken with half of their tables.
        "ver 17" | "ver 18" => Ours::Refuse("is missing or lacks columns"),
        "two col rows" => Ours::Refuse("2 rows instead of one"),
        "empty file" => Ours::Refuse("it is empty"),
        "sqlite without col" => Ours::Refuse("no table 'col'"),
        "extra table+trigger" => Ours::Refuse("trigger 'tr'"),
        _ => return None,
    })
}

#[test]
fn odd_files_get_the_verdict_and_the_rows_of_the_real_server() {
    let vectors = vector("upgrade_cases.json");
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 136);
    let unmodified = settled(of_vector("old_2.1.25_upgraded18.tables.json"));
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let uploaded = Uploaded::new(BASE, |path| apply(case, path));
        let ours = on_purpose(name);
        let refused = match &ours {
            Some(Ours::Refuse(reason)) => Some(*reason),
            Some(_) => None,
            None => (!case["accepted"].as_bool().unwrap()).then_some(""),
        };
        match (&uploaded.verdict, refused) {
            (Err(unfit), Some(reason)) => {
                assert!(unfit.reason.contains(reason), "{name}: {unfit:?}");
                println!("{name}: {}. {}", unfit.reason, unfit.advice);
            }
            (Ok(()), None) => {
                let found = simplified(uploaded.tables());
                let expected = expected_rows(case, ours, &unmodified, &found);
                assert_same(&found, &simplified(settled(expected)), name);
                assert_indexes(&uploaded, name);
            }
            (verdict, _) => panic!("{name}: {verdict:?}"),
        }
    }
}

/// Changes the base file as the case says.
fn apply(case: &Value, path: &Path) {
    let name = case["case"].as_str().unwrap();
    match name {
        "empty file" => return std::fs::write(path, "").unwrap(),
        "not sqlite" => return std::fs::write(path, "no collection ".repeat(999)).unwrap(),
        "sqlite without col" => {
            std::fs::remove_file(path).unwrap();
            return Connection::open(path).unwrap().execute_batch("CREATE TABLE x (a)").unwrap();
        }
        _ => {}
    }
    let db = open(path);
    let mut patches = case["json_patch"].as_array().unwrap().clone();
    if name == "fld size float" {
        // 20 and 20.0 were the same to the program that wrote the vectors down.
        patches.push(
            json!({"op": "set", "path": ["models", CLOZE.to_string(), "flds", 0, "size"], "value": 20.0}),
        );
    }
    for patch in &patches {
        let (column, place) = patch["path"].as_array().unwrap().split_first().unwrap();
        let column = column.as_str().unwrap();
        let text: String = db.query_row(&format!("SELECT {column} FROM col"), [], |row| row.get(0)).unwrap();
        let mut json: Value = serde_json::from_str(&text).unwrap();
        let (last, above) = place.split_last().unwrap();
        let parent = above.iter().fold(&mut json, |json, step| match step.as_u64() {
            Some(index) => &mut json[index as usize],
            None => &mut json[step.as_str().unwrap()],
        });
        match patch["op"].as_str() {
            Some("set") => parent[last.as_str().unwrap()] = patch["value"].clone(),
            _ => drop(
                parent.as_object_mut().unwrap().remove(last.as_str().unwrap()).expect("something to delete"),
            ),
        }
        db.execute(&format!("UPDATE col SET {column} = ?1"), [json.to_string()]).unwrap();
    }
    if let Some(sql) = case["sql"].as_str() {
        db.execute_batch(sql).unwrap();
    }
}

/// The rows of the unmodified file, changed as the case says.
fn expected_rows(case: &Value, ours: Option<Ours>, unmodified: &Tables, found: &Tables) -> Tables {
    let mut expected = simplified(unmodified.clone());
    let mut replace = |table: &str, minus: Vec<Value>, plus: Vec<Value>| {
        let rows = expected.get_mut(table).unwrap();
        for row in minus {
            let at = rows.iter().position(|found| *found == row);
            rows.remove(at.unwrap_or_else(|| panic!("{}: {table} had no {row}", case["case"])));
        }
        rows.extend(plus);
    };
    let rows = |value: &Value, table: &str| -> Vec<Value> {
        let rows = value.as_array().unwrap().clone();
        simplified(settled(Tables::from([(table.to_owned(), rows)]))).remove(table).unwrap()
    };
    match ours {
        Some(Ours::AsUnmodified) => {}
        Some(Ours::Rename(table, names)) => {
            for (id, name) in names {
                let old = simplified(unmodified.clone())[table]
                    .iter()
                    .find(|row| row[0] == json!(id))
                    .unwrap()
                    .clone();
                let mut new = old.clone();
                new[1] = json!(name);
                if table == "decks" && name.ends_with('_') {
                    new[2] = json!("now");
                }
                replace(table, vec![old], vec![new]);
            }
        }
        Some(Ours::Tags(tags)) => {
            let all = unmodified["tags"].clone();
            replace("tags", all, tags.iter().map(|(tag, usn)| json!([tag, usn, 1, null])).collect());
        }
        Some(Ours::Refuse(_)) => unreachable!("accepted"),
        None => {
            let drawn = found["notetypes"]
                .iter()
                .find_map(|row| row[0].as_i64().filter(|id| (1..1 << 32).contains(id)));
            let diff = case["diff"].to_string().replace(DRAWN_ID, &drawn.unwrap_or(-1).to_string());
            let diff: Value = serde_json::from_str(&diff).unwrap();
            for (table, changes) in diff.as_object().unwrap() {
                replace(table, rows(&changes["minus"], table), rows(&changes["plus"], table));
            }
        }
    }
    sorted(expected)
}

/// As the vectors of odd files show rows: what is empty is left out of blobs, long texts are their length, and the
/// stamp of what was renamed is "now".
fn simplified(mut tables: Tables) -> Tables {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    for (table, rows) in &mut tables {
        for row in rows {
            for value in row.as_array_mut().unwrap() {
                if let Value::Object(object) = value
                    && table != "config"
                {
                    for (key, value) in object.iter_mut() {
                        if ["css", "latex_pre", "latex_post"].contains(&key.as_str())
                            && let Some(text) = value.as_str()
                        {
                            *value = json!(text.chars().count());
                        }
                        if key == "other" {
                            value.as_object_mut().unwrap().retain(|_, value| !is_empty(value));
                        }
                    }
                    object.retain(|key, value| key == "other" || !is_empty(value));
                }
            }
            if table == "decks"
                && let Some(stamp) = row[2].as_i64()
                && (VECTORS_MADE.contains(&stamp) || (stamp - now).abs() < 600)
            {
                row[2] = json!("now");
            }
        }
    }
    sorted(tables)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

/// Every index is there, also where the file had it not, and SQLite finds nothing wrong.
fn assert_indexes(uploaded: &Uploaded, name: &str) {
    let db = tables::open(&uploaded.dir.path().join(ankipi::collection::FILE_NAME));
    for index in INDEXES {
        let exists = db
            .prepare("SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = ?1")
            .unwrap()
            .exists([index.name])
            .unwrap();
        assert!(exists, "{name}: {}", index.name);
    }
    let damage: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(damage, "ok", "{name}");
}
