//! Collections of old clients: upgraded on arrival, and downgraded for their downloads. The vectors are files of real
//! clients and rows that real programs made of them (`vectors/`, made as collection-format.md 17 tells); what differs
//! on purpose is said where it does.

mod blobs;
mod cases;
mod random;
#[path = "../random_objects/mod.rs"]
mod random_objects;
mod tables;

use std::fs;
use std::path::Path;

use ankipi::collection::FILE_NAME;
use ankipi::collection::full::download::Snapshot;
use ankipi::collection::full::upload;
use ankipi::collection::full::upload::Verdict;
use ankipi::collection::schema::downgrade::CopyToDowngrade;
use serde_json::{Value, json};
use tables::{Tables, assert_same, of_vector, open, read, sorted, vector, vector_path};
use tempfile::TempDir;

/// The default of MAX_SYNC_ROW_MEGS.
const MAX_ROW: u64 = 8 << 20;

/// A copy of an uploaded file after the server's check.
struct Uploaded {
    dir: TempDir,
    verdict: Verdict,
}

impl Uploaded {
    fn new(file: &str, prepare: impl FnOnce(&Path)) -> Uploaded {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::copy(vector_path(file), &path).unwrap();
        prepare(&path);
        let verdict = upload::check(&path, MAX_ROW).unwrap();
        Uploaded { dir, verdict }
    }

    fn tables(&self) -> Tables {
        read(&self.dir.path().join(FILE_NAME))
    }

    fn refusal(&self) -> &upload::UploadFault {
        self.verdict.as_ref().expect_err("a refusal")
    }
}

/// Collection-format.md 16, 2: rows that are marked as pending are settled on upload.
pub fn settled(mut tables: Tables) -> Tables {
    let mut highest = -1;
    for (table, usn) in [
        ("cards", 5),
        ("config", 1),
        ("deck_config", 3),
        ("decks", 3),
        ("graves", 2),
        ("notes", 4),
        ("notetypes", 3),
        ("revlog", 2),
        ("tags", 1),
        ("templates", 4),
    ] {
        for row in tables.get_mut(table).into_iter().flatten() {
            if row[usn] == json!(-1) {
                row[usn] = json!(0);
            }
            highest = highest.max(row[usn].as_i64().unwrap());
        }
    }
    // `col.usn` ends above every row.
    for row in tables.get_mut("col").into_iter().flatten() {
        row[6] = json!(row[6].as_i64().unwrap().max(highest + 1));
    }
    sorted(tables)
}

#[test]
fn files_of_old_clients_become_what_the_real_client_makes_of_them() {
    for client in ["2.0.52", "2.1.15", "2.1.25", "2.1.44", "23.10"] {
        let uploaded = Uploaded::new(&format!("old_{client}_schema11.anki2"), |_| ());
        uploaded.verdict.as_ref().unwrap();
        let theirs = settled(of_vector(&format!("old_{client}_upgraded18.tables.json")));
        assert_same(&uploaded.tables(), &theirs, client);
    }
}

#[test]
fn files_that_a_client_left_half_upgraded_are_finished() {
    for version in 14..=18 {
        let uploaded = Uploaded::new(&format!("mid_schema{version}.anki2"), |_| ());
        uploaded.verdict.as_ref().unwrap();
        let theirs = settled(of_vector(&format!("mid_schema{version}_upgraded18.tables.json")));
        assert_same(&uploaded.tables(), &theirs, &format!("schema {version}"));
    }
}

#[test]
fn a_rich_collection_survives_the_way_up() {
    let uploaded = Uploaded::new("rich11.anki2", |_| ());
    uploaded.verdict.as_ref().unwrap();
    assert_same(&uploaded.tables(), &settled(of_vector("rich11_reupgraded18.tables.json")), "rich11");
}

/// A snapshot of the file in schema 11, in a folder of its own.
fn downgraded(file: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let snapshot = Snapshot::open(file).unwrap();
    let copy = CopyToDowngrade::copy(&snapshot, &dir.path().join("scratch")).unwrap().downgrade().unwrap();
    let mut out = fs::File::create(dir.path().join(FILE_NAME)).unwrap();
    copy.write_to(&mut out).unwrap();
    assert_eq!(out.metadata().unwrap().len(), copy.len());
    assert!(!dir.path().join("scratch").exists());
    dir
}

#[test]
fn a_rich_collection_survives_the_way_down() {
    let live = tempfile::tempdir().unwrap();
    let file = live.path().join(FILE_NAME);
    fs::copy(vector_path("rich18.anki2"), &file).unwrap();
    let dir = downgraded(&file);
    let path = dir.path().join(FILE_NAME);
    assert_eq!(fs::read(&path).unwrap()[18..20], [1, 1], "rollback journal");
    let mut ours = read(&path);
    let mut theirs = of_vector("rich11.tables.json");
    // The JSON columns, parsed. Numbers are compared as singles, which they are.
    for column in ours.get_mut("col").unwrap()[0].as_array_mut().unwrap()[8..].iter_mut() {
        *column = singles(serde_json::from_str(column.as_str().expect("TEXT")).unwrap());
    }
    let vector = vector("rich11.tables.json");
    let columns = vector["col"]["columns"].as_array().unwrap().iter();
    let col = columns.map(|column| singles(vector["col_parsed"][column.as_str().unwrap()].clone()));
    theirs.insert("col".to_owned(), vec![col.collect()]);
    assert_same(&ours, &theirs, "rich18");
    let db = open(&path);
    let schema = |sql: &str| -> Vec<String> {
        db.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let tables =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    assert_eq!(schema(tables), ["cards", "col", "graves", "notes", "revlog"]);
    let indexes = "SELECT name FROM sqlite_schema WHERE type = 'index' ORDER BY name";
    assert_eq!(
        schema(indexes),
        [
            "ix_cards_nid",
            "ix_cards_sched",
            "ix_cards_usn",
            "ix_notes_csum",
            "ix_notes_usn",
            "ix_revlog_cid",
            "ix_revlog_usn"
        ]
    );
    assert_eq!(schema("PRAGMA integrity_check"), ["ok"]);
}

/// Numbers with a fraction as the single that they stand for; integers as they are.
fn singles(value: Value) -> Value {
    match value {
        Value::Number(number) if number.as_i64().is_none() => {
            let single = number.as_f64().unwrap() as f32;
            if single.fract() == 0.0 { json!(single as i64) } else { json!(single.to_string()) }
        }
        Value::Array(values) => values.into_iter().map(singles).collect(),
        Value::Object(object) => object.into_iter().map(|(key, value)| (key, singles(value))).collect(),
        other => other,
    }
}

#[test]
fn the_live_file_is_not_touched_by_a_download_in_the_old_form() {
    let live = tempfile::tempdir().unwrap();
    let file = live.path().join(FILE_NAME);
    fs::copy(vector_path("rich18.anki2"), &file).unwrap();
    let before = fs::read(&file).unwrap();
    downgraded(&file);
    assert!(fs::read(&file).unwrap() == before);
}

#[test]
fn what_goes_down_comes_up_again() {
    let live = tempfile::tempdir().unwrap();
    let file = live.path().join(FILE_NAME);
    fs::copy(vector_path("rich18.anki2"), &file).unwrap();
    upload::check(&file, MAX_ROW).unwrap().unwrap();
    let once = downgraded(&file);
    let path = once.path().join(FILE_NAME);
    upload::check(&path, MAX_ROW).unwrap().unwrap();
    let up = read(&path);
    let twice = downgraded(&path);
    let path = twice.path().join(FILE_NAME);
    upload::check(&path, MAX_ROW).unwrap().unwrap();
    assert_same(&read(&path), &up, "twice");
    // Data for which schema 11 has no place is lost in the first downgrade (collection-format.md 8).
    let before = read(&file);
    for table in ["notes", "cards", "revlog", "graves", "notetypes", "fields"] {
        assert_eq!(up[table], before[table], "{table}");
    }
}

#[test]
fn columns_of_many_megabytes_are_texts_that_old_clients_can_read() {
    let live = tempfile::tempdir().unwrap();
    let file = live.path().join(FILE_NAME);
    fs::copy(vector_path("rich18.anki2"), &file).unwrap();
    let db = open(&file);
    db.execute_batch(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO config SELECT 'big' || i, 0, 0, CAST('\"' || hex(zeroblob(500)) || '\"' AS BLOB) FROM n",
    )
    .unwrap();
    drop(db);
    let dir = downgraded(&file);
    let db = open(&dir.path().join(FILE_NAME));
    let (kind, conf): (String, String) =
        db.query_row("SELECT typeof(conf), conf FROM col", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let conf: Value = serde_json::from_str(&conf).unwrap();
    assert_eq!((kind.as_str(), conf["big3000"].as_str().unwrap().len()), ("text", 1000));
    let damage: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(damage, "ok");
}

#[test]
fn any_page_size_goes_down() {
    for pragmas in ["page_size = 512", "page_size = 65536", "page_size = 1024; PRAGMA auto_vacuum = FULL"] {
        let live = tempfile::tempdir().unwrap();
        let file = live.path().join(FILE_NAME);
        fs::copy(vector_path("rich18.anki2"), &file).unwrap();
        open(&file)
            .execute_batch(&format!("PRAGMA journal_mode = DELETE; PRAGMA {pragmas}; VACUUM"))
            .unwrap();
        let plain = read(&file);
        let dir = downgraded(&file);
        let path = dir.path().join(FILE_NAME);
        let damage: String = open(&path).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(damage, "ok", "{pragmas}");
        upload::check(&path, MAX_ROW).unwrap().unwrap();
        assert_eq!(read(&path)["fields"], plain["fields"], "{pragmas}");
    }
}

/// Clients of that schema check the file with a connection that does not know the collation.
#[test]
fn tables_of_addons_come_down_without_the_collation() {
    let live = tempfile::tempdir().unwrap();
    let file = live.path().join(FILE_NAME);
    fs::copy(vector_path("rich18.anki2"), &file).unwrap();
    let more = "CREATE TABLE \"an add-on's unicase\" (id integer PRIMARY KEY, word text NOT NULL COLLATE \"unicase\" UNIQUE, n);
                INSERT INTO \"an add-on's unicase\" VALUES (1, 'Äpfel', 'unicase'), (2, 'b', x'00'), (3, 'A', 2.5);
                CREATE UNIQUE INDEX addon_words ON \"an add-on's unicase\" (n, word COLLATE unicase);
                CREATE TABLE plain (name text UNIQUE);
                INSERT INTO plain VALUES ('collate unicase')";
    open(&file).execute_batch(more).unwrap();
    let dir = downgraded(&file);
    let db = rusqlite::Connection::open(dir.path().join(FILE_NAME)).unwrap();
    let text = |sql: &str| -> String { db.query_row(sql, [], |row| row.get(0)).unwrap() };
    for check in ["quick_check", "integrity_check"] {
        assert_eq!(text(&format!("PRAGMA {check}")), "ok");
    }
    assert_eq!(
        text("SELECT group_concat(word, ' ') FROM (SELECT word FROM \"an add-on's unicase\" ORDER BY id)"),
        "Äpfel b A"
    );
    assert_eq!(text("SELECT word FROM \"an add-on's unicase\" WHERE word = 'B'"), "b");
    assert_eq!(text("SELECT n FROM \"an add-on's unicase\" WHERE id = 1"), "unicase");
    assert_eq!(text("SELECT name FROM plain"), "collate unicase");
    let twice = "INSERT INTO \"an add-on's unicase\" (word) VALUES ('B')";
    assert!(db.execute(twice, []).unwrap_err().to_string().contains("UNIQUE"));
}

#[test]
fn an_object_beyond_reading_fails_the_download_and_leaves_no_copy() {
    let live = tempfile::tempdir().unwrap();
    let file = live.path().join(FILE_NAME);
    fs::copy(vector_path("rich18.anki2"), &file).unwrap();
    open(&file).execute_batch("UPDATE decks SET kind = x'ff' WHERE id = 1").unwrap();
    let snapshot = Snapshot::open(&file).unwrap();
    let scratch = live.path().join("scratch");
    let copy = CopyToDowngrade::copy(&snapshot, &scratch).unwrap();
    assert!(scratch.exists());
    let err = copy.downgrade().err().expect("an error").to_string();
    assert!(err.contains("deck 1"), "{err}");
    assert!(!scratch.exists());
}

#[test]
fn what_the_upgrade_renames_is_news_to_other_devices() {
    let uploaded = Uploaded::new("old_2.1.25_schema11.anki2", |path| {
        let db = open(path);
        db.execute_batch("UPDATE col SET usn = 7, decks = replace(decks, '\"Top 2\"', '\"Top  2:\"')")
            .unwrap();
        db.execute_batch("UPDATE col SET decks = replace(decks, '\"usn\":-1', '\"usn\":3')").unwrap();
    });
    uploaded.verdict.as_ref().unwrap();
    let tables = uploaded.tables();
    let usns: Vec<_> =
        tables["decks"].iter().map(|row| (row[1].as_str().unwrap(), row[3].as_i64().unwrap())).collect();
    assert!(usns.contains(&("Top  2", 7)) && usns.contains(&("Top", 3)), "{usns:?}");
}

#[test]
fn a_name_that_a_thousand_objects_share_is_refused() {
    let uploaded = Uploaded::new("old_2.1.25_schema11.anki2", |path| {
        let db = open(path);
        let decks: String = db.query_row("SELECT decks FROM col", [], |row| row.get(0)).unwrap();
        let decks: Value = serde_json::from_str(&decks).unwrap();
        let copies = (1..1000).map(|id| (id.to_string(), decks["1"].clone()));
        let copies = Value::Object(copies.collect());
        db.execute("UPDATE col SET decks = ?1", [copies.to_string()]).unwrap();
    });
    assert!(uploaded.refusal().reason.contains("more than 100 of the same name"), "{:?}", uploaded.refusal());
}

#[test]
fn a_row_over_the_limit_is_refused_by_its_name() {
    let cases = [
        (
            "old_2.1.25_schema11.anki2",
            "UPDATE notes SET flds = hex(zeroblob(5000000)) WHERE id = (SELECT max(id) FROM notes)",
            "of table notes has 10",
        ),
        (
            "rich18.anki2",
            "UPDATE cards SET data = hex(zeroblob(5000000)) WHERE id = 1795428020172",
            "row 1795428020172 of table cards has 10000",
        ),
        // Each object is below the limit.
        (
            "rich18.anki2",
            "UPDATE notes SET flds = hex(zeroblob(3000000)), tags = flds || hex(zeroblob(3000000))",
            "of table notes has 12000",
        ),
        ("rich18.anki2", "UPDATE notetypes SET config = zeroblob(9000000)", "of table notetypes has 9000"),
        (
            "rich18.anki2",
            "INSERT INTO config VALUES ('big', 0, 0, zeroblob(9000000))",
            "row big of table config has 9000",
        ),
        (
            "old_2.1.25_schema11.anki2",
            "UPDATE col SET conf = '{\"a\":\"' || hex(zeroblob(5000000)) || '\"}'",
            "over the limit",
        ),
    ];
    for (file, sql, expected) in cases {
        let uploaded = Uploaded::new(file, |path| {
            assert_ne!(open(path).execute(sql, []).unwrap(), 0);
        });
        let unfit = uploaded.refusal();
        assert!(
            unfit.reason.contains(expected) && unfit.reason.contains("MAX_SYNC_ROW_MEGS"),
            "{sql}: {unfit:?}"
        );
        assert!(unfit.advice.contains("shorten it"), "{unfit:?}");
    }
}

#[test]
fn a_column_may_be_longer_than_any_object_in_it() {
    let uploaded = Uploaded::new("old_2.1.25_schema11.anki2", |path| {
        let db = open(path);
        let entries: Vec<String> = (0..20).map(|i| format!("\"k{i}\":\"{}\"", "x".repeat(1 << 20))).collect();
        db.execute("UPDATE col SET conf = ?1", [format!("{{{}}}", entries.join(","))]).unwrap();
    });
    uploaded.verdict.as_ref().unwrap();
    assert_eq!(uploaded.tables()["config"].len(), 20);
}
