//! A copy of the collection in schema 11, for clients of protocol 8 to 10 (collection-format.md 8).
//!
//! The live file is never changed: a snapshot is copied to a scratch file, and the scratch file is downgraded. Schema
//! 11 keeps JSON of up to many megabytes in five columns of one row. SQLite would hold such a text in memory twice. A
//! blob needs little memory: SQLite reserves its space in the file (`zeroblob`) and accepts its content piece by piece.
//! So the columns are written as blobs and then turned into texts, by one bit in the row's header
//! (sqlite.org/fileformat.html 2.1).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::blob::ZeroBlob;
use rusqlite::{Connection, params};

use crate::collection::full::download::Snapshot;
use crate::collection::int;
use crate::collection::objects::ObjectWriter;
use crate::collection::schema;
use crate::collection::schema::{
    CREATE_OLD_GRAVES, INDEXES, INDEXES_SINCE_15, LARGE_TABLES, TABLES, TABLES_SINCE_11,
};
use crate::collection::{Collection, Range, SCAN_CACHE_KIB};
use crate::error::{Error, Result};
use crate::files::temporary::TemporaryFile;

/// The schema version of the copy.
const VERSION: i64 = 11;

/// The columns of `col` that hold JSON: its last five, in table order.
const JSON_COLUMNS: [&str; 5] = ["conf", "models", "decks", "dconf", "tags"];

/// Size of the blocks in which the copy is written and read.
const BLOCK_BYTES: usize = 64 * 1024;

/// A copy that is not downgraded yet. Dropping it deletes the file.
pub struct CopyToDowngrade(TemporaryFile);

/// A collection in schema 11, in an open file that was deleted from its folder.
pub struct OldCopy {
    file: File,
    bytes: u64,
}

impl CopyToDowngrade {
    /// Copies a snapshot to a new file.
    pub fn copy(snapshot: &Snapshot, path: &Path) -> Result<CopyToDowngrade> {
        let file = File::create_new(path).map_err(Error::io("creating", path))?;
        let scratch = CopyToDowngrade(TemporaryFile::at(path.to_owned()));
        // Not synced: after a power cut the file is deleted anyway.
        let mut out = BufWriter::with_capacity(BLOCK_BYTES, file);
        snapshot.copy_to(&mut out, path)?;
        out.flush().map_err(Error::io("writing", path))?;
        Ok(scratch)
    }

    /// Downgrades the copy to schema 11.
    ///
    /// Errors: `Refused` if an object cannot be read.
    pub fn downgrade(self) -> Result<OldCopy> {
        let path = self.0.path();
        let root = downgrade(path)?;
        let file = File::options().read(true).write(true).open(path).map_err(Error::io("opening", path))?;
        turn_blobs_into_texts(&file, root).map_err(Error::io("changing", path))?;
        check_texts(path)?;
        let bytes = file.metadata().map_err(Error::io("reading", path))?.len();
        // Dropping `self` deletes the file's name; the open file stays readable.
        Ok(OldCopy { file, bytes })
    }
}

impl OldCopy {
    /// The length of the file.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Always false: a collection has at least one page.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes the file.
    pub fn write_to(&self, out: &mut impl Write) -> Result<()> {
        let (mut block, mut at) = (vec![0; BLOCK_BYTES], 0);
        while at < self.bytes {
            let count = self
                .file
                .read_at(&mut block, at)
                .map_err(Error::io("reading", "the copy for an old client".as_ref()))?;
            if count == 0 {
                return Err(Error::Broken(format!(
                    "the copy for an old client ends at {at} of {}",
                    self.bytes
                )));
            }
            out.write_all(&block[..count]).map_err(Error::Disconnected)?;
            at += count as u64;
        }
        Ok(())
    }
}

/// The position and size of a page in the file.
struct Page {
    at: u64,
    bytes: usize,
}

/// Changes tables and indexes. Returns the page with the row of `col`; its JSON columns are still blobs.
fn downgrade(path: &Path) -> Result<Page> {
    let collection = Collection::connect(path, SCAN_CACHE_KIB)?;
    let db = &collection.db;
    db.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; BEGIN",
    )?;
    rebuild_graves(db)?;
    free_of_unicase(db)?;
    // Clients of that schema insert rows without naming columns.
    for (table, columns) in TABLES.iter().filter(|(table, _)| LARGE_TABLES.contains(table)) {
        for extra in schema::columns_of(db, table)?.iter().skip(columns.len()) {
            db.execute_batch(&format!("ALTER TABLE {table} DROP COLUMN \"{}\"", extra.replace('"', "\"\"")))?;
        }
    }
    rebuild_col(&collection)?;
    for (table, _) in
        TABLES.iter().filter(|(table, _)| !TABLES_SINCE_11.contains(table) && *table != "graves")
    {
        db.execute_batch(&format!("DROP TABLE {table}"))?;
    }
    for index in INDEXES.iter().filter(|index| TABLES_SINCE_11.contains(&index.table)) {
        if INDEXES_SINCE_15.contains(&index.name) {
            db.execute_batch(&format!("DROP INDEX IF EXISTS {}", index.name))?;
        } else {
            db.execute_batch(&index.create_sql())?;
        }
    }
    db.execute_batch("COMMIT")?;
    let root: i64 = db.query_row(
        "SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = 'col'",
        [],
        |row| row.get(0),
    )?;
    let bytes: i64 = db.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    Ok(Page { at: (root as u64 - 1) * bytes as u64, bytes: bytes as usize })
}

/// Gives the tables of add-ons the collation NOCASE in place of `unicase`, and drops indexes in its order: clients up to 2.1.44
/// check the file before they know that collation, and then refuse it. What is unique for `unicase` is so for NOCASE.
fn free_of_unicase(db: &Connection) -> Result<()> {
    let found = |kind: &str| -> Result<Vec<(String, String)>> {
        let sql = "SELECT name, sql FROM sqlite_schema WHERE type = ?1 AND sql LIKE '%unicase%' AND name NOT LIKE 'sqlite%'";
        let mut select = db.prepare(sql)?;
        let rows = select.query_map([kind], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    };
    let is_ours = |name: &str| TABLES.iter().any(|(table, _)| table.eq_ignore_ascii_case(name));
    for (name, sql) in found("table")?.into_iter().filter(|(name, _)| !is_ours(name)) {
        let (name, created) = (format!("\"{}\"", name.replace('"', "\"\"")), without_unicase(&sql));
        if created == sql {
            continue;
        }
        db.execute_batch(&format!(
            "CREATE TEMP TABLE addon_rows AS SELECT * FROM main.{name}; DROP TABLE main.{name}; {created};
             INSERT INTO main.{name} SELECT * FROM temp.addon_rows; DROP TABLE temp.addon_rows"
        ))?;
    }
    let of_ours = |name: &str| INDEXES.iter().any(|index| index.name.eq_ignore_ascii_case(name));
    for (name, _) in found("index")?.into_iter().filter(|(name, _)| !of_ours(name)) {
        db.execute_batch(&format!("DROP INDEX \"{}\"", name.replace('"', "\"\"")))?;
    }
    Ok(())
}

/// A definition with COLLATE NOCASE for each COLLATE unicase.
fn without_unicase(sql: &str) -> String {
    const NAME: &str = "unicase";
    let lower = sql.to_ascii_lowercase();
    let (mut out, mut copied) = (String::with_capacity(sql.len()), 0);
    for (at, _) in lower.match_indices(NAME) {
        let before = lower[..at].trim_end_matches(|c: char| c.is_whitespace() || "\"'`[".contains(c));
        if before.ends_with("collate") {
            out.push_str(&sql[copied..at]);
            out.push_str("NOCASE");
            copied = at + NAME.len();
        }
    }
    out + &sql[copied..]
}

fn rebuild_graves(db: &Connection) -> Result<()> {
    Ok(db.execute_batch(&format!(
        "CREATE TEMP TABLE old_rows AS SELECT usn, oid, type FROM main.graves; DROP TABLE main.graves;
         {CREATE_OLD_GRAVES}; INSERT INTO main.graves SELECT * FROM temp.old_rows; DROP TABLE temp.old_rows"
    ))?)
}

/// Drops and creates `col`, so that its page holds this one row and no remains of earlier changes.
fn rebuild_col(collection: &Collection) -> Result<()> {
    let db = &collection.db;
    let mut bytes = [0; JSON_COLUMNS.len()];
    for (column, bytes) in JSON_COLUMNS.iter().zip(&mut bytes) {
        let mut counter = Counter(0);
        write_column(collection, column, &mut counter)?;
        *bytes = counter.0;
    }
    let numbers: [i64; 7] = db.query_row("SELECT id, crt, mod, scm, dty, usn, ls FROM col", [], |row| {
        let mut numbers = [0; 7];
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = int(row, i)?;
        }
        Ok(numbers)
    })?;
    let [id, created, modified, schema, dirty, usn, last_sync] = numbers;
    let [conf, models, decks, dconf, tags] = bytes.map(ZeroBlob);
    db.execute_batch("DROP TABLE col")?;
    db.execute_batch(schema::create_table_sql("col"))?;
    db.execute(
        "INSERT INTO col VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        params![
            id, created, modified, schema, VERSION, dirty, usn, last_sync, conf, models, decks, dconf, tags
        ],
    )?;
    for column in JSON_COLUMNS {
        let blob = db.blob_open("main", "col", column, id, false)?;
        let mut out = BufWriter::with_capacity(BLOCK_BYTES, blob);
        write_column(collection, column, &mut out)?;
        out.flush().map_err(Error::io("writing", "a JSON column".as_ref()))?;
    }
    Ok(())
}

/// Writes the JSON object that schema 11 has in this column.
fn write_column(collection: &Collection, column: &str, out: &mut impl Write) -> Result<()> {
    let everything = Range { from: i32::MIN, to: i32::MAX };
    let mut map = ObjectWriter::map(out);
    map.raw("{")?;
    match column {
        "conf" => collection.write_config(&mut map),
        "models" => collection.write_notetypes(everything, &mut map),
        "decks" => collection.write_decks(everything, &mut map),
        "dconf" => collection.write_deck_configs(everything, &mut map),
        _ => collection.write_tags(everything, &mut map),
    }?;
    map.raw("}")
}

/// A writer that only counts bytes.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0 += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Turns the JSON columns into texts. A value of n bytes has the type 2n + 12 as a blob and 2n + 13 as a text.
fn turn_blobs_into_texts(file: &File, page: Page) -> io::Result<()> {
    let mut bytes = vec![0; page.bytes];
    file.read_exact_at(&mut bytes, page.at)?;
    let unexpected = || io::Error::other("table col does not look as it was written");
    let types = last_bytes_of_types(&bytes).ok_or_else(unexpected)?;
    for at in types {
        if bytes[at] & 1 != 0 {
            return Err(unexpected());
        }
        bytes[at] |= 1;
    }
    file.write_all_at(&bytes, page.at)
}

/// Finds, on a leaf page with one row of `col`, the last byte of the type of each JSON column.
fn last_bytes_of_types(page: &[u8]) -> Option<[usize; JSON_COLUMNS.len()]> {
    const LEAF_OF_TABLE: u8 = 0x0d;
    let (kind, rows) = (*page.first()?, page.get(3..5)?);
    if kind != LEAF_OF_TABLE || rows != [0, 1] {
        return None;
    }
    let mut at = usize::from(u16::from_be_bytes([page[8], page[9]]));
    // The cell: row length, row id, header length, then the type of each column.
    skip_varint(page, &mut at)?;
    skip_varint(page, &mut at)?;
    skip_varint(page, &mut at)?;
    let columns = TABLES.iter().find(|(table, _)| *table == "col")?.1.len();
    let mut json = [0; JSON_COLUMNS.len()];
    for column in 0..columns {
        skip_varint(page, &mut at)?;
        if let Some(i) = (column + JSON_COLUMNS.len()).checked_sub(columns) {
            json[i] = at - 1;
        }
    }
    Some(json)
}

fn skip_varint(page: &[u8], at: &mut usize) -> Option<()> {
    for _ in 0..9 {
        *at += 1;
        if *page.get(*at - 1)? < 0x80 {
            break;
        }
    }
    Some(())
}

/// Checks with SQLite that the columns are texts now. SQLite reads only the row's header for this.
fn check_texts(path: &Path) -> Result<()> {
    let db = Collection::connect(path, SCAN_CACHE_KIB)?.db;
    let types = JSON_COLUMNS.map(|column| format!("typeof({column}) = 'text'")).join(" AND ");
    if db.query_row(&format!("SELECT ver = {VERSION} AND {types} FROM col"), [], |row| row.get(0))? {
        return Ok(());
    }
    Err(Error::Broken("the copy for an old client is not in schema 11".to_owned()))
}
