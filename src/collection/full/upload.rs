//! Full upload: checks that a file is a collection that every device can use (collection-format.md 13)
//!
//! `PRAGMA integrity_check` looks up each row in each index and takes minutes on a board. This module finds the same
//! damage in one pass over each table and index: `quick_check` for the structure; for each index of the large tables
//! that it holds the rows of its table (by checksums) and that each entry comes after the one before; `integrity_check`
//! for the small tables, whose indexes depend on the collation. Other indexes than those of every collection are dropped.
//! What differs from our tables but can be read is repaired (`repair`). Then every object is translated as a sync would. A
//! refusal has a sentence for the user, who can repair the collection in the
//! client.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use crate::collection::full::download::{JOURNAL_BYTES, Snapshot};
use crate::collection::full::indexes::{self, Checksum};
use crate::collection::full::refusal::{
    CHECK_DATABASE, CheckResult, Failure, NEW_PROFILE, UPDATE_CLIENT, UPDATE_SERVER, UPLOAD_AGAIN,
    WHOLE_COLLECTION, refuse,
};
use crate::collection::full::{repair, row_sizes};
use crate::collection::schema::upgrade;
use crate::collection::schema::{INDEXES, Index, LARGE_TABLES, TABLES, TABLES_WITH_USN, columns_of};
use crate::collection::{Collection, SCAN_CACHE_KIB, SCHEMA_VERSION};
use crate::error::{Error, Result};
use crate::files::FsyncingFile;

/// The first 16 bytes of every SQLite 3 file.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Bytes of the file header.
const HEADER_BYTES: usize = 100;

/// The header's text encoding: UTF-8 in every collection.
const UTF_8: [u8; 4] = [0, 0, 0, 1];

pub use crate::collection::full::refusal::{UploadFault, Verdict};

/// Checks an uploaded file and prepares it for use: upgrades old schemas, creates missing indexes, and sets invalid
/// usns to 0. The file is on disk when this returns. Rows and objects over `max_row_bytes` are refused.
pub fn check(path: &Path, max_row_bytes: u64) -> Result<Verdict> {
    check_file(path, max_row_bytes, repair::raise_usn)
}

fn check_file(path: &Path, max_row_bytes: u64, last: fn(&Connection) -> CheckResult) -> Result<Verdict> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(Error::io("opening", path))?;
    if let Err(fault) = check_header(&file).map_err(Error::io("reading", path))? {
        return Ok(Err(fault));
    }
    // Switches to a rollback journal for good: in WAL mode the check would create side files.
    set_journal_bytes(&file, [1, 1]).map_err(Error::io("writing", path))?;
    if let Err(failure) = check_contents(path, max_row_bytes, last) {
        return failure.into_verdict();
    }
    file.sync_all().map_err(Error::io("syncing", path))?;
    Ok(Ok(()))
}

/// Copies a collection of an old schema, then checks and upgrades the copy.
pub fn upgraded_copy(path: &Path, copy: &Path, max_row_bytes: u64) -> Result<()> {
    let mut file = FsyncingFile::create(copy)?;
    Snapshot::open_any(path)?.copy_to(&mut file, copy)?;
    file.into_file().sync_all().map_err(Error::io("syncing", copy))?;
    // `raise_usn` is left out: the devices already know the usn of this collection.
    check_file(copy, max_row_bytes, |_| Ok(()))?.map_err(|fault| {
        Error::Broken(format!(
            "{} has an old format and cannot be upgraded: {}. Upload the collection anew from a device",
            path.display(),
            fault.reason
        ))
    })
}

fn set_journal_bytes(file: &File, bytes: [u8; 2]) -> std::io::Result<()> {
    file.write_all_at(&bytes, JOURNAL_BYTES.start as u64)
}

fn check_header(mut file: &File) -> std::io::Result<Verdict> {
    let fault = |reason: &str, advice| Ok(Err(UploadFault::new(reason, advice)));
    let len = file.metadata()?.len();
    let mut header = [0; HEADER_BYTES];
    if len == 0 {
        return fault("it is empty", WHOLE_COLLECTION);
    }
    if len < HEADER_BYTES as u64 || file.read_exact(&mut header).is_err() || &header[..16] != MAGIC {
        return fault("it is not an Anki collection (not an SQLite file)", WHOLE_COLLECTION);
    }
    let page_bytes = match u64::from(u16::from_be_bytes([header[16], header[17]])) {
        1 => 65_536,
        bytes => bytes,
    };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    if len < pages * page_bytes {
        return fault(&format!("it is cut off: {len} of {} bytes arrived", pages * page_bytes), UPLOAD_AGAIN);
    }
    if header[56..60] != UTF_8 {
        return fault("its texts are not in UTF-8", WHOLE_COLLECTION);
    }
    Ok(Ok(()))
}

fn check_contents(path: &Path, max_row_bytes: u64, last: fn(&Connection) -> CheckResult) -> CheckResult {
    let collection = Collection::connect(path, SCAN_CACHE_KIB)?;
    collection.limit_values(max_row_bytes)?;
    read_contents(&collection, max_row_bytes).and_then(|()| last(&collection.db)).or_else(|failure| {
        match failure {
            // SQLite does not say which value is over the limit: find its row.
            Failure::Error(Error::TooLarge(_)) => {
                row_sizes::refuse_long_rows(&collection.db, max_row_bytes)?;
                Err(failure)
            }
            failure => Err(failure),
        }
    })
}

fn read_contents(collection: &Collection, max_row_bytes: u64) -> CheckResult {
    let db = &collection.db;
    // No journal: after a crash or power cut the file is deleted.
    db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE")?;
    refuse_executable_schema(db)?;
    let version = check_version(db)?;
    check_structure(db, "PRAGMA quick_check(1)")?;
    repair::repair_tables(db, version)?;
    check_col(db)?;
    if version < SCHEMA_VERSION {
        // Before the upgrade, which holds whole rows in memory.
        row_sizes::check_small_tables(db, version, max_row_bytes)?;
        upgrade::upgrade(db, version, max_row_bytes)?;
    }
    indexes::replace_unknown(db)?;
    row_sizes::check_small_tables(db, SCHEMA_VERSION, max_row_bytes)?;
    repair::rebuild_text_indexes(db)?;
    for (table, _) in TABLES.iter().filter(|(table, _)| !LARGE_TABLES.contains(table)) {
        check_structure(db, &format!("PRAGMA integrity_check({table})"))?;
    }
    for table in LARGE_TABLES {
        check_rows(db, table, max_row_bytes)?;
        if indexes::has_automatic(db, table)? {
            check_structure(db, &format!("PRAGMA integrity_check({table})"))?;
        }
    }
    collection.check_objects()?;
    // Updates write whole rows, which may hold the sort field twice. All rows were checked above.
    collection.limit_rows(max_row_bytes)?;
    reset_invalid_usns(db)
}

/// Sets invalid usns to 0, which is safe because every device gets these rows by downloading the file. Kept as they
/// are, a row marked as pending (-1) would fail every later sanity check, a usn over 32 bits would never be sent, and a
/// fractional usn would be sent again and again.
fn reset_invalid_usns(db: &Connection) -> CheckResult {
    let is_invalid = "typeof(usn) != 'integer' OR usn NOT BETWEEN 0 AND 2147482999";
    // A valid usn stays below the largest `col.usn` that `check_col` accepts.
    for table in TABLES_WITH_USN {
        let rows = if LARGE_TABLES.contains(table) {
            // The index is much smaller than the table.
            format!("id IN (SELECT id FROM {table} INDEXED BY ix_{table}_usn WHERE {is_invalid})")
        } else {
            is_invalid.to_owned()
        };
        db.execute(&format!("UPDATE {table} SET usn = 0 WHERE {rows}"), [])?;
    }
    Ok(())
}

/// Refuses triggers, views and virtual tables: they would run code or queries of the file in this process.
fn refuse_executable_schema(db: &Connection) -> CheckResult {
    let mut select = db.prepare("SELECT type, name, ifnull(sql, '') FROM sqlite_schema")?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, name, sql): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let words: Vec<_> = sql.split_ascii_whitespace().take(2).map(str::to_ascii_lowercase).collect();
        let kind = if words.iter().any(|word| word == "virtual") { "virtual table".to_owned() } else { kind };
        if kind != "table" && kind != "index" {
            return refuse(
                format!("it contains the {kind} '{name}', which collections must not"),
                NEW_PROFILE,
            );
        }
    }
    Ok(())
}

/// The schema version; refuses versions that cannot be upgraded.
fn check_version(db: &Connection) -> CheckResult<i64> {
    if columns_of(db, "col")?.is_empty() {
        return refuse("it is not an Anki collection (no table 'col')", WHOLE_COLLECTION);
    }
    let version: Option<i64> = db.query_row("SELECT max(ver) FROM col", [], |row| row.get(0))?;
    match version {
        Some(version) if version == SCHEMA_VERSION || upgrade::is_old(version) => Ok(version),
        Some(version) if version > SCHEMA_VERSION => refuse(
            format!(
                "it has collection format {version}, which is newer than this server knows ({SCHEMA_VERSION})"
            ),
            UPDATE_SERVER,
        ),
        Some(version) => {
            refuse(format!("it has collection format {version}, which is too old"), UPDATE_CLIENT)
        }
        None => refuse("its table 'col' is empty", WHOLE_COLLECTION),
    }
}

fn check_structure(db: &Connection, pragma: &str) -> CheckResult {
    let finding: String = db.query_row(pragma, [], |row| row.get(0))?;
    match finding.as_str() {
        "ok" => Ok(()),
        _ => refuse(format!("it is damaged: {}", finding.replace('\n', " ")), CHECK_DATABASE),
    }
}

fn check_col(db: &Connection) -> CheckResult {
    let whole =
        "SELECT count(*), sum(typeof(crt) = 'integer' AND typeof(mod) = 'integer' AND typeof(scm) = 'integer'
                 AND typeof(usn) = 'integer' AND usn BETWEEN 0 AND 2147483000) FROM col";
    match db.query_row(whole, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?)))? {
        (1, Some(1)) => Ok(()),
        (1, _) => refuse("its table 'col' holds other things than numbers", CHECK_DATABASE),
        (count, _) => refuse(format!("its table 'col' has {count} rows instead of one"), CHECK_DATABASE),
    }
}

/// Reads each row of a large table once. Checks its length, that its texts are UTF-8, and that the indexes match.
fn check_rows(db: &Connection, table: &str, max_row_bytes: u64) -> CheckResult {
    let indexes: Vec<&Index> = INDEXES.iter().filter(|index| index.table == table).collect();
    let (texts, mut others): (&[&str], _) = match table {
        "notes" => (
            &["guid", "tags", "flds"],
            format!("{} + {}", row_sizes::bytes_of("sfld"), row_sizes::bytes_of("data")),
        ),
        "cards" => (&[], row_sizes::bytes_of("data")),
        _ => (&[], "0".to_owned()),
    };
    let columns = tables_of_18(table);
    for column in repair::extra_columns(db, table, columns)? {
        others = format!("{others} + {}", row_sizes::bytes_of(&column));
    }
    // Columns: id, bytes of the values that are not read, the texts, then for each index its condition and columns.
    let mut columns = vec!["id", &others];
    columns.extend(texts);
    for index in &indexes {
        columns.push(index.only_if.unwrap_or("1"));
        columns.extend(index.columns);
    }
    let mut checksums = vec![Checksum::default(); indexes.len()];
    let mut select = db.prepare(&format!("SELECT {} FROM {table} NOT INDEXED", columns.join(", ")))?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let texts_end = 2 + texts.len();
        let bytes = row.get::<_, i64>(1)? as u64 + check_texts(table, row, 2..texts_end)?;
        if bytes > max_row_bytes {
            return Err(Error::TooLarge(format!("a row has {bytes} bytes")).into());
        }
        let mut column = texts_end;
        for (index, checksum) in indexes.iter().zip(&mut checksums) {
            let (condition, from) = (row.get_ref(column)?, column + 1);
            column = from + index.columns.len();
            if condition == ValueRef::Integer(1) {
                checksum.add((from..column).chain([0]).map(|column| row.get_ref(column)))?;
            }
        }
    }
    for (index, expected) in indexes.iter().zip(checksums) {
        if indexes::checksum_of(db, index)? != expected {
            return refuse(
                format!("it is damaged: index {} does not match table {table}", index.name),
                CHECK_DATABASE,
            );
        }
    }
    Ok(())
}

fn tables_of_18(table: &str) -> &'static [&'static str] {
    TABLES.iter().find(|(name, _)| *name == table).map_or(&[], |(_, columns)| columns)
}

/// Checks that these columns are UTF-8 texts; returns their bytes.
fn check_texts(table: &str, row: &Row<'_>, columns: std::ops::Range<usize>) -> CheckResult<u64> {
    let mut bytes = 0;
    for column in columns {
        match row.get_ref(column)? {
            ValueRef::Text(text) if std::str::from_utf8(text).is_ok() => bytes += text.len() as u64,
            _ => {
                let id: i64 = row.get(0)?;
                return refuse(
                    format!("row {id} of table {table} holds something that is not text"),
                    CHECK_DATABASE,
                );
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The default of MAX_SYNC_ROW_MEGS.
    const MAX_ROW: u64 = 8 << 20;

    /// Two notes of one id, possible in a table without a key.
    const NOTES_WITHOUT_KEY: &str =
        "CREATE TABLE x AS SELECT * FROM notes; DROP TABLE notes; ALTER TABLE x RENAME TO notes;
        INSERT INTO notes SELECT * FROM notes WHERE id = 5";

    type Damage = Box<dyn FnOnce(&Path, &Connection)>;

    /// Checks a new collection with some notes and cards, after `damage` has changed it.
    fn verdict_after(damage: impl FnOnce(&Path, &Connection)) -> Verdict {
        let dir = tempfile::tempdir().unwrap();
        crate::collection::new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(crate::collection::FILE_NAME);
        let db = Connection::open(&path).unwrap();
        db.create_collation("unicase", crate::text::unicase::compare).unwrap();
        db.execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
             INSERT INTO notes SELECT i, 'g' || i, 1600000000000, i, -1, '', 'front ' || i || char(31) || 'back', 'x', i, 0, ''
             FROM n;
             INSERT INTO cards SELECT id, id, 1, 0, 0, 0, 0, 0, id, 0, 0, 0, 0, 0, 0, id % 2, 0, '' FROM notes;",
        )
        .unwrap();
        damage(&path, &db);
        drop(db);
        check(&path, MAX_ROW).unwrap()
    }

    fn sql(statements: &'static str) -> impl FnOnce(&Path, &Connection) {
        move |_, db| db.execute_batch(statements).unwrap()
    }

    #[test]
    fn a_sound_collection_is_taken() {
        verdict_after(|_, _| {}).unwrap();
    }

    #[test]
    fn what_no_device_could_use_is_refused_with_a_reason() {
        let cases: Vec<(Damage, &str)> = vec![
            (Box::new(|path, _| fs::write(path, "").unwrap()), "empty"),
            (Box::new(|path, _| fs::write(path, "x").unwrap()), "not an SQLite file"),
            (Box::new(|path, _| fs::write(path, "hello ".repeat(999)).unwrap()), "not an SQLite file"),
            (
                Box::new(|path, _| OpenOptions::new().write(true).open(path).unwrap().set_len(8192).unwrap()),
                "cut off",
            ),
            (Box::new(|path, _| overwrite(path, 4)), "damaged"),
            (Box::new(|path, _| in_utf_16(path)), "not in UTF-8"),
            (
                Box::new(sql("CREATE TRIGGER t AFTER INSERT ON notes BEGIN DELETE FROM cards; END")),
                "trigger 't'",
            ),
            (Box::new(sql("CREATE VIEW v AS SELECT 1")), "view 'v'"),
            (Box::new(sql("CREATE VIRTUAL TABLE v USING sqlite_dbpage")), "virtual table 'v'"),
            (Box::new(sql("DROP TABLE col")), "no table 'col'"),
            (Box::new(sql("UPDATE col SET ver = 13")), "format 13, which is too old"),
            (Box::new(sql("UPDATE col SET ver = 19")), "format 19, which is newer"),
            (Box::new(sql("DELETE FROM col")), "'col' is empty"),
            (
                Box::new(sql("INSERT INTO col SELECT 2,crt,mod,scm,ver,dty,usn,ls,'','','','','' FROM col")),
                "2 rows",
            ),
            (Box::new(sql("UPDATE col SET scm = 'soon'")), "other things than numbers"),
            (Box::new(sql("ALTER TABLE notes RENAME COLUMN sfld TO extra")), "'notes'"),
            (Box::new(sql(NOTES_WITHOUT_KEY)), "UNIQUE constraint failed: notes.id"),
            (Box::new(sql("DROP TABLE fields")), "'fields'"),
            (Box::new(sql("UPDATE decks SET kind = x'ff'")), "deck 1"),
            (Box::new(sql("UPDATE notes SET flds = x'ff' WHERE id = 77")), "row 77"),
        ];
        for (damage, expected) in cases {
            let UploadFault { reason, .. } = verdict_after(damage).expect_err(expected);
            assert!(reason.contains(expected), "{expected}: {reason}");
        }
    }

    /// The collection after `damage` and the check; what of it is not the tables of every collection.
    fn repaired(damage: &str) -> (tempfile::TempDir, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("repaired");
        let copy = path.clone();
        verdict_after(|path, db| {
            db.execute_batch(
                "INSERT INTO graves VALUES (1, 0, 3), (2, 0, 4);
                 INSERT INTO tags VALUES ('b', 0, 0, NULL), ('A', 0, 0, NULL), ('c', 0, 1, NULL);",
            )
            .unwrap();
            db.execute_batch(damage).unwrap();
            fs::copy(path, &copy).unwrap();
        })
        .unwrap_or_else(|fault| panic!("{damage}: {}", fault.reason));
        check(&path, MAX_ROW).unwrap().unwrap();
        let db = Connection::open(&path).unwrap();
        db.create_collation("unicase", crate::text::unicase::compare).unwrap();
        assert_eq!(db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
        (dir, db)
    }

    fn value(db: &Connection, sql: &str) -> i64 {
        db.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn tables_of_other_programs_are_brought_to_ours() {
        let copied = |table: &str, create: &str| {
            format!("ALTER TABLE {table} RENAME TO x; CREATE TABLE {create}; INSERT INTO {table} SELECT *")
        };
        let cases = [
            "ALTER TABLE graves RENAME TO x; CREATE TABLE graves (usn integer, oid integer, type integer);
             INSERT INTO graves SELECT usn, oid, type FROM x; INSERT INTO graves VALUES (9, 2, 0); DROP TABLE x",
            "CREATE TABLE x AS SELECT * FROM notes; DROP TABLE notes; ALTER TABLE x RENAME TO notes",
            "CREATE TABLE x AS SELECT data, * FROM cards; DROP TABLE cards; ALTER TABLE x DROP COLUMN \"data:1\";
             ALTER TABLE x RENAME TO cards",
            "CREATE TABLE x AS SELECT * FROM tags; DROP TABLE tags; ALTER TABLE x RENAME TO tags; INSERT INTO tags VALUES ('a', 1, 1, NULL)",
            "CREATE TABLE x AS SELECT * FROM decks; DROP TABLE decks; ALTER TABLE x RENAME TO decks; CREATE UNIQUE INDEX idx_decks_name ON decks (name)",
            "ALTER TABLE revlog ADD COLUMN strict integer NOT NULL DEFAULT 7 CHECK (strict = 7)",
            &format!("{} FROM x; DROP TABLE x", copied("config", "config (KEY text PRIMARY KEY, usn integer, mtime_secs integer, val blob)")),
        ];
        for case in cases {
            let (_dir, db) = repaired(case);
            for (table, columns) in TABLES {
                let sql: String = db
                    .query_row("SELECT sql FROM sqlite_schema WHERE name = ?1", [table], |row| row.get(0))
                    .unwrap();
                if !case.contains("ADD COLUMN") {
                    assert_eq!(sql, crate::collection::schema::create_table_sql(table), "{case}");
                }
                assert!(columns_of(&db, table).unwrap().len() >= columns.len());
            }
            for (sql, count) in [
                ("SELECT count(*) FROM notes WHERE flds LIKE 'front %'", 500),
                ("SELECT sum(nid) FROM cards WHERE data = ''", 500 * 501 / 2),
                ("SELECT count(*) FROM tags", 3),
                ("SELECT count(*) FROM graves", 2),
                (
                    "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL",
                    INDEXES.len() as i64,
                ),
                ("SELECT sum(id) FROM decks", 1),
            ] {
                assert_eq!(value(&db, sql), count, "{case}: {sql}");
            }
            db.execute_batch("INSERT INTO revlog (id, cid, usn, ease, ivl, lastIvl, factor, time, type) VALUES (1, 1, 1, 1, 1, 1, 1, 1, 1)")
                .unwrap_or_else(|err| panic!("{case}: {err}"));
        }
        assert_eq!(value(&repaired(cases[0]).1, "SELECT usn FROM graves WHERE oid = 2"), 9);
    }

    #[test]
    fn what_an_add_on_put_beside_stays() {
        let (_dir, db) = repaired(
            "ALTER TABLE notes ADD COLUMN \"a \"\"note\" text DEFAULT 'x'; ALTER TABLE cards ADD COLUMN double AS (id * 2);
             UPDATE notes SET \"a \"\"note\" = 'kept' WHERE id = 5; CREATE TABLE addon (id integer PRIMARY KEY, text);
             INSERT INTO addon VALUES (7, 'kept')",
        );
        assert_eq!(value(&db, "SELECT id FROM notes WHERE \"a \"\"note\" = 'kept'"), 5);
        assert_eq!(value(&db, "SELECT id FROM addon WHERE text = 'kept'"), 7);
        assert_eq!(columns_of(&db, "cards").unwrap().len(), 18, "a column that computes something");
        let UploadFault { reason, .. } = verdict_after(|_, db| {
            db.execute_batch(
                "ALTER TABLE notes ADD COLUMN extra; UPDATE notes SET extra = zeroblob(9000000) WHERE id = 5",
            )
            .unwrap();
        })
        .expect_err("a row that no sync could write again");
        assert!(reason.contains("row 5 of table notes"), "{reason}");
    }

    #[test]
    fn indexes_in_the_order_of_another_collation_are_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        crate::collection::new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(crate::collection::FILE_NAME);
        let db = Connection::open(&path).unwrap();
        db.create_collation("unicase", |a, b| b.cmp(a)).unwrap();
        db.execute_batch("REINDEX; DELETE FROM tags").unwrap();
        for name in ["a", "B", "c", "D", "\u{e9}", "\u{3b1}"] {
            db.execute("INSERT INTO tags VALUES (?1, 0, 0, NULL)", [name]).unwrap();
            let row = "INSERT INTO decks SELECT NULL, ?1, 0, 0, common, kind FROM decks WHERE id = 1";
            db.execute(row, [name]).unwrap();
        }
        drop(db);
        check(&path, MAX_ROW).unwrap().unwrap();
        let collection = Collection::open_to_read(&path).unwrap();
        assert_eq!(value(&collection.db, "SELECT count(*) FROM tags WHERE tag IN ('A', 'b', 'C', 'd')"), 4);
        let sql = "PRAGMA integrity_check";
        assert_eq!(collection.db.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap(), "ok");
    }

    #[test]
    fn the_usn_ends_above_that_of_every_row() {
        assert_eq!(value(&repaired("SELECT 1").1, "SELECT usn FROM col"), 5);
        assert_eq!(value(&repaired("UPDATE cards SET usn = 9 WHERE id = 7").1, "SELECT usn FROM col"), 10);
        assert_eq!(
            value(
                &repaired("UPDATE tags SET usn = 2147483647; UPDATE col SET usn = 20").1,
                "SELECT usn FROM col"
            ),
            20
        );
    }

    /// Fills a page with junk.
    fn overwrite(path: &Path, page: u64) {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0xa5; 4096], page * 4096).unwrap();
    }

    fn in_utf_16(path: &Path) {
        fs::remove_file(path).unwrap();
        let db = Connection::open(path).unwrap();
        db.execute_batch("PRAGMA encoding = 'UTF-16'; CREATE TABLE col (id)").unwrap();
    }

    #[test]
    fn a_long_sort_field_counts_once() {
        // Fields and sort field have 6 MB each: together over the limit, but a sync sends only the fields.
        let fill = "UPDATE notes SET flds = hex(zeroblob(3000000)), sfld = 'x' || hex(zeroblob(2999999)), usn = -1 WHERE id = 5";
        verdict_after(sql(fill)).unwrap();
        let alone = "UPDATE notes SET sfld = 'x' || hex(zeroblob(5000000)) WHERE id = 5";
        let UploadFault { reason, .. } = verdict_after(sql(alone)).expect_err("a sort field of nothing");
        assert!(reason.contains("row 5 of table notes"), "{reason}");
    }

    #[test]
    fn an_index_that_lacks_a_row_is_found() {
        let UploadFault { reason, .. } = verdict_after(|_, db| {
            // Deletes a row while the index is hidden from SQLite, so that the index keeps the row's entry.
            db.execute_batch(
                "PRAGMA writable_schema = ON;
                 CREATE TABLE copy AS SELECT * FROM sqlite_schema WHERE name = 'ix_cards_nid';
                 DELETE FROM sqlite_schema WHERE name = 'ix_cards_nid';",
            )
            .unwrap();
            let again = Connection::open(db.path().unwrap()).unwrap();
            again
                .execute_batch(
                    "DELETE FROM cards WHERE id = 250; PRAGMA writable_schema = ON;
                     INSERT INTO sqlite_schema SELECT * FROM copy; DROP TABLE copy",
                )
                .unwrap();
        })
        .expect_err("an index with an entry too many");
        assert!(reason.contains("ix_cards_nid"), "{reason}");
    }

    /// `quick_check` finds nothing wrong with these, and SQLite finds only some of the rows by them.
    #[test]
    fn an_index_in_the_wrong_order_is_found() {
        for (index, columns, backwards) in [
            ("ix_cards_nid", "cards (nid)", "cards (nid DESC)"),
            ("ix_cards_sched", "cards (did, queue, due)", "cards (did, queue, due DESC)"),
            ("idx_cards_odid", "cards (odid) WHERE odid != 0", "cards (odid DESC) WHERE odid != 0"),
        ] {
            let UploadFault { reason, .. } = verdict_after(|_, db| {
                db.execute_batch(&format!(
                    "UPDATE cards SET odid = id WHERE id % 2; DROP INDEX {index};
                     CREATE INDEX {index} ON {backwards}; PRAGMA writable_schema = ON;
                     UPDATE sqlite_schema SET sql = 'CREATE INDEX {index} ON {columns}' WHERE name = '{index}'"
                ))
                .unwrap();
            })
            .expect_err(index);
            assert!(reason.contains(index) && reason.contains("out of order"), "{reason}");
        }
    }

    #[test]
    fn indexes_that_no_collection_has_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        crate::collection::new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(crate::collection::FILE_NAME);
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "CREATE INDEX \"an add-on's\" ON notes (flds); DROP INDEX ix_cards_usn; CREATE INDEX ix_cards_usn ON cards (mod)",
        )
        .unwrap();
        drop(db);
        check(&path, MAX_ROW).unwrap().unwrap();
        let collection = Collection::open_to_read(&path).unwrap();
        let of = |name: &str| -> Option<String> {
            let sql = "SELECT max(sql) FROM sqlite_schema WHERE name = ?1";
            collection.db.query_row(sql, [name], |row| row.get(0)).unwrap()
        };
        assert_eq!(of("an add-on's"), None);
        assert!(of("ix_cards_usn").unwrap().contains("(usn)"));
    }

    #[test]
    fn missing_indexes_are_made_and_odd_usns_settled() {
        let dir = tempfile::tempdir().unwrap();
        crate::collection::new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(crate::collection::FILE_NAME);
        let db = Connection::open(&path).unwrap();
        db.create_collation("unicase", crate::text::unicase::compare).unwrap();
        db.execute_batch("DROP INDEX ix_notes_usn").unwrap();
        // Found by fuzzing: no sync would send the last one.
        for usn in ["0", "3", "7", "-1", "-5", "8", "1.5", "'x'", "x'01'", "1795428020168"] {
            let row = format!("INSERT INTO notes VALUES (NULL, '', 1, 1, {usn}, '', '', '', 1, 0, '')");
            db.execute_batch(&row).unwrap();
            db.execute(&format!("INSERT INTO tags VALUES ({usn} || 't', {usn}, 0, NULL)"), []).unwrap();
        }
        drop(db);
        check(&path, MAX_ROW).unwrap().unwrap();
        let collection = Collection::open_to_read(&path).unwrap();
        for table in ["notes", "tags"] {
            let mut select =
                collection.db.prepare(&format!("SELECT usn FROM {table} ORDER BY usn DESC")).unwrap();
            let usns = select.query_map([], |row| row.get(0)).unwrap().map(std::result::Result::unwrap);
            assert_eq!(usns.collect::<Vec<i64>>(), [8, 7, 3, 0, 0, 0, 0, 0, 0, 0], "{table}");
        }
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'ix_notes_usn'";
        assert_eq!(collection.db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    }
}
