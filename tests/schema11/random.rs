//! Random collections of schema 11 on their way up, down, and up again. The seed is fixed; SEED and ROUNDS ask for more.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ankipi::collection::FILE_NAME;
use ankipi::collection::full::upload;
use serde_json::{Value, json};

use crate::random_objects::{Random, bases};
use crate::tables::{assert_same, open, read, vector_path};
use crate::{MAX_ROW, downgraded, singles};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The generated contents of a collection, to compare with after the conversions.
#[derive(Default)]
struct Put {
    /// Unknown keys with their values, by column.
    unknown: Vec<(&'static str, String)>,
    config: BTreeMap<String, Value>,
    objects: usize,
}

/// The JSON columns of `col`.
const COLUMNS: [&str; 5] = ["conf", "models", "decks", "dconf", "tags"];

fn fill(path: &Path, random: &mut Random) -> Put {
    let mut put = Put::default();
    let [notetype, normal, filtered, options] = bases();
    let db = open(path);
    for (column, bases) in
        [("models", vec![&notetype]), ("decks", vec![&normal, &normal, &filtered]), ("dconf", vec![&options])]
    {
        let mut map = Vec::new();
        for n in 0..1 + random.below(6) {
            let mut base = bases[random.below(bases.len())].clone();
            base["id"] = json!(n + 1);
            let mut unknown = Vec::new();
            let object = random.object(&base, &mut unknown);
            // The generator may say something else there.
            let mut object = with(&object, &base["id"], n);
            if base.get("desiredRetention").is_some() && column == "decks" {
                // The conversion lowers some percentages by one (4.4).
                object.insert_str(object.len() - 1, ",\"desiredRetention\":90");
            }
            put.unknown.extend(unknown.into_iter().map(|pair| (column, pair)));
            map.push(format!("\"{}\":{object}", n + 1));
            put.objects += 1;
        }
        set(&db, column, &format!("{{{}}}", map.join(",")));
    }
    for n in 0..random.below(8) {
        let value = serde_json::from_str(&random.unknown(1)).unwrap_or(Value::Null);
        put.config.insert(format!("k{n}"), value);
    }
    set(&db, "conf", &serde_json::to_string(&put.config).unwrap());
    let tags: BTreeMap<String, usize> =
        (0..random.below(5)).map(|n| (format!("t{n}{}", random.string()), random.below(9))).collect();
    set(&db, "tags", &serde_json::to_string(&tags).unwrap());
    put
}

/// The object with this id, and a name that no other has.
fn with(object: &str, id: &Value, n: usize) -> String {
    let body = object.trim_end().strip_suffix('}').unwrap();
    format!("{body},\"id\":{id},\"name\":\"n{n}\",\"usn\":{n}}}")
}

fn set(db: &rusqlite::Connection, column: &str, json: &str) {
    db.execute(&format!("UPDATE col SET {column} = ?1"), [json]).unwrap();
}

fn columns(path: &Path) -> [String; 5] {
    let db = open(path);
    COLUMNS.map(|column| db.query_row(&format!("SELECT {column} FROM col"), [], |row| row.get(0)).unwrap())
}

/// What comes up is found again below, and what goes down comes up the same: objects, config, tags, unknown keys.
#[test]
fn random_collections_survive_the_way_up_and_down() {
    let (seed, rounds) = (setting("SEED", 0x5eed_0005), setting("ROUNDS", 25));
    let (mut objects, mut unknown) = (0, 0);
    for round in 0..rounds {
        let what = format!("SEED={seed}, round {round}");
        let mut random = Random((seed + round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::copy(vector_path("old_2.1.25_schema11.anki2"), &path).unwrap();
        let put = fill(&path, &mut random);
        upload::check(&path, MAX_ROW).unwrap().unwrap_or_else(|unfit| panic!("{what}: {unfit:?}"));

        let down = downgraded(&path);
        let below = down.path().join(FILE_NAME);
        let once = columns(&below);
        for (column, pair) in &put.unknown {
            let at = COLUMNS.iter().position(|name| name == column).unwrap();
            assert!(once[at].contains(pair), "{what}: {pair} of {column} is lost");
        }
        assert_eq!(parsed(&once[0]), parsed(&serde_json::to_string(&put.config).unwrap()), "{what}");

        upload::check(&below, MAX_ROW).unwrap().unwrap_or_else(|unfit| panic!("{what}: {unfit:?}"));
        // Options beyond their ranges are brought into them on the way down (5.3); the columns tell that nothing else is.
        let (mut up, mut before) = (read(&below), read(&path));
        for tables in [&mut up, &mut before] {
            tables.remove("deck_config");
        }
        assert_same(&up, &before, &what);
        let again = columns(&downgraded(&below).path().join(FILE_NAME));
        assert_eq!(
            again.each_ref().map(|json| parsed(json)),
            once.each_ref().map(|json| parsed(json)),
            "{what}"
        );
        objects += put.objects;
        unknown += put.unknown.len();
    }
    println!("SEED={seed}: {rounds} collections of {objects} objects with {unknown} unknown keys");
}

fn parsed(json: &str) -> Value {
    singles(serde_json::from_str(json).unwrap())
}
