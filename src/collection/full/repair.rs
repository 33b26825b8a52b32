//! Changes the tables of an uploaded file to our definitions. Other programs write schema 18 with columns in another
//! order, without keys or with the indexes of another collation; add-ons add columns. The official server takes such
//! files, and clients work with them until a statement depends on what differs.
//!
//! The file is a copy that is deleted if the check fails, so nothing is rolled back here.

use rusqlite::Connection;

use crate::collection::full::refusal::{CHECK_DATABASE, CheckResult, refuse};
use crate::collection::schema::{INDEXES, TABLES_WITH_USN, create_table_sql, tables_of};
use crate::text::unicase;

/// The name of a table while its successor is filled.
const OLD: &str = "\"replaced by ankipi\"";

/// Words of definitions that can reject or change what a sync writes. If one appears, the table is made anew; in a comment
/// it only costs time.
const CONSTRAINTS: &[&str] = &["check", "conflict", "foreign", "generated", "references"];

/// Makes every table anew that is not defined as ours, with all its rows. Columns that we do not know stay, without their
/// constraints. Call after the structure of the file was checked.
pub fn repair_tables(db: &Connection, version: i64) -> CheckResult {
    let ours = Connection::open_in_memory()?;
    ours.create_collation("unicase", unicase::compare)?;
    // With this, a rename does not check the rest of the schema, which may be broken.
    db.execute_batch("PRAGMA legacy_alter_table = ON")?;
    for (table, columns) in tables_of(version) {
        let found = Shape::of(db, table, columns)?;
        let has = |column: &&str| found.columns.iter().any(|found| found.name.eq_ignore_ascii_case(column));
        if !columns.iter().all(has) {
            return refuse(format!("its table '{table}' is missing or lacks columns"), CHECK_DATABASE);
        }
        // The upgrade creates these two again.
        if version < 18 && matches!(table, "graves" | "tags") {
            continue;
        }
        ours.execute_batch(create_table_sql(table))?;
        if !found.is_like(&Shape::of(&ours, table, columns)?) {
            log::info!("upload: table {table} is not defined as usual and is made anew");
            remake(db, table, columns, &found.extra(columns))?;
        }
    }
    Ok(())
}

/// Rebuilds the indexes whose order depends on the collation. Call when all tables are ours.
pub fn rebuild_text_indexes(db: &Connection) -> CheckResult {
    for index in INDEXES.iter().filter(|index| index.columns.contains(&"name")) {
        db.execute_batch(&format!("REINDEX {}", index.name))?;
    }
    // The rows of this table are in the order of their key.
    let order: String = db.query_row("PRAGMA integrity_check(tags)", [], |row| row.get(0))?;
    if order != "ok" {
        let columns =
            tables_of(18).find(|(table, _)| *table == "tags").map_or(&[][..], |(_, columns)| columns);
        let extra = Shape::of(db, "tags", columns)?.extra(columns);
        remake(db, "tags", columns, &extra)?;
    }
    Ok(())
}

/// Raises `col.usn` above the usn of every row. Not all clients do so before an upload. The next sync of each device would
/// send it every row again.
pub fn raise_usn(db: &Connection) -> CheckResult {
    let all: Vec<String> =
        TABLES_WITH_USN.iter().map(|table| format!("SELECT max(usn) AS usn FROM {table}")).collect();
    db.execute(
        &format!(
            "UPDATE col SET usn = highest FROM (SELECT max(usn) + 1 AS highest FROM ({})) WHERE usn < highest",
            all.join(" UNION ALL ")
        ),
        [],
    )?;
    Ok(())
}

/// The names of columns that a table has besides these, quoted.
pub fn extra_columns(db: &Connection, table: &str, columns: &[&str]) -> rusqlite::Result<Vec<String>> {
    Ok(Shape::of(db, table, columns)?.extra(columns))
}

/// The parts of a table's definition that matter to writers.
struct Shape {
    columns: Vec<Column>,
    is_without_rowid: bool,
    is_strict: bool,
    /// Indexes that come with the definition: columns and collations.
    automatic: Vec<String>,
    /// Words of `CONSTRAINTS` are in the definition.
    is_constrained: bool,
}

struct Column {
    name: String,
    /// Position in the primary key from 1; else 0.
    key: i64,
    collation: String,
    /// Inserts must give it a value.
    is_required: bool,
    is_generated: bool,
}

impl Shape {
    /// Reads the definition of a table. An unknown table has no columns. Collations are read only for the columns
    /// `known`.
    fn of(db: &Connection, table: &str, known: &[&str]) -> rusqlite::Result<Shape> {
        let mut select =
            db.prepare("SELECT name, pk, \"notnull\" AND dflt_value IS NULL, hidden FROM pragma_table_xinfo(?1) ORDER BY cid")?;
        let mut columns: Vec<Column> = select
            .query_map([table], |row| {
                Ok(Column {
                    name: row.get(0)?,
                    key: row.get(1)?,
                    collation: String::new(),
                    is_required: row.get(2)?,
                    is_generated: row.get::<_, i64>(3)? != 0,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        for column in &mut columns {
            if known.iter().any(|known| known.eq_ignore_ascii_case(&column.name)) {
                let (_, collation, ..) = db.column_metadata(Some("main"), table, column.name.as_str())?;
                column.collation = collation.unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            }
        }
        let mut select = db.prepare(
            "SELECT group_concat(lower(x.name) || ' ' || lower(x.coll)) FROM pragma_index_list(?1) AS l, pragma_index_xinfo(l.name) AS x
             WHERE l.origin != 'c' AND x.key GROUP BY l.name ORDER BY l.name",
        )?;
        let automatic = select.query_map([table], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let (is_without_rowid, is_strict) = db
            .prepare("SELECT wr, strict FROM pragma_table_list(?1) WHERE schema = 'main'")?
            .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?
            .next()
            .transpose()?
            .unwrap_or_default();
        let sql: String =
            db.query_row("SELECT ifnull(max(sql), '') FROM sqlite_schema WHERE name = ?1", [table], |row| {
                row.get(0)
            })?;
        let is_constrained = sql
            .to_ascii_lowercase()
            .split(|c: char| !c.is_ascii_alphanumeric())
            .any(|word| CONSTRAINTS.contains(&word));
        Ok(Shape { columns, is_without_rowid, is_strict, automatic, is_constrained })
    }

    /// Whether the table can be used like `ours`: it begins with the same columns, and inserts need no value for the
    /// others.
    fn is_like(&self, ours: &Shape) -> bool {
        let (first, extra) = self.columns.split_at(ours.columns.len().min(self.columns.len()));
        let same = |(found, ours): (&Column, &Column)| {
            found.name.eq_ignore_ascii_case(&ours.name)
                && found.key == ours.key
                && found.collation == ours.collation
                && !found.is_generated
        };
        first.len() == ours.columns.len()
            && first.iter().zip(&ours.columns).all(same)
            && extra.iter().all(|column| column.key == 0 && !column.is_required && !column.is_generated)
            && self.is_without_rowid == ours.is_without_rowid
            && !self.is_strict
            && self.automatic == ours.automatic
            && !self.is_constrained
    }

    /// The quoted names of the columns besides these that hold values.
    fn extra(&self, known: &[&str]) -> Vec<String> {
        let is_known = |name: &str| known.iter().any(|known| known.eq_ignore_ascii_case(name));
        let extra = self.columns.iter().filter(|column| !column.is_generated && !is_known(&column.name));
        extra.map(|column| format!("\"{}\"", column.name.replace('"', "\"\""))).collect()
    }
}

/// Creates the table with our definition, and moves the rows. Its indexes are gone then.
fn remake(db: &Connection, table: &str, columns: &[&str], extra: &[String]) -> CheckResult {
    db.execute_batch(&format!("ALTER TABLE {table} RENAME TO {OLD}"))?;
    db.execute_batch(create_table_sql(table))?;
    for column in extra {
        db.execute_batch(&format!("ALTER TABLE {table} ADD COLUMN {column}"))?;
    }
    let all: Vec<&str> = columns.iter().copied().chain(extra.iter().map(String::as_str)).collect();
    let all = all.join(", ");
    // Without a primary key, these two tables may hold duplicates, of which one is kept. In other tables a client may
    // need both rows.
    let (verb, order) = match table {
        "graves" => ("INSERT OR REPLACE", " ORDER BY usn"),
        "tags" => ("INSERT OR IGNORE", ""),
        _ => ("INSERT", ""),
    };
    db.execute_batch(&format!(
        "{verb} INTO {table} ({all}) SELECT {all} FROM {OLD} NOT INDEXED{order}; DROP TABLE {OLD}"
    ))?;
    Ok(())
}
