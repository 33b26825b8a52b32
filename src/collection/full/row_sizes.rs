//! Rows that are longer than what the server holds in memory at once. SQLite tells how long they are without reading
//! them.

use rusqlite::{Connection, OptionalExtension};

use crate::collection::full::refusal::{Checked, SHORTEN, refuse};
use crate::collection::full::upload::columns_of;
use crate::collection::schema::{LARGE_TABLES, TABLES, tables_of};

/// Looks at the rows of the small tables. Those of the large ones are looked at as they are read, and `col` is never
/// read whole.
pub fn check_small_tables(db: &Connection, version: i64, max_row_bytes: u64) -> Checked {
    for (table, columns) in tables_of(version).filter(|(table, _)| *table != "col") {
        if !LARGE_TABLES.contains(&table) {
            refuse_long_row(db, table, columns, max_row_bytes)?;
        }
    }
    Ok(())
}

/// Asks SQLite how long a value is, which it knows without reading it.
pub fn bytes_of(column: &str) -> String {
    match column {
        // A part of the fields, stored once more: only what goes beyond them counts.
        "sfld" => "max(ifnull(octet_length(sfld), 0) - ifnull(octet_length(flds), 0), 0)".to_owned(),
        column => format!("ifnull(octet_length({column}), 0)"),
    }
}

fn refuse_long_row(db: &Connection, table: &str, columns: &[&str], max_row_bytes: u64) -> Checked {
    let bytes: Vec<String> = columns.iter().map(|column| bytes_of(column)).collect();
    let bytes = bytes.join(" + ");
    // What names a row: its id or name, or its notetype in `fields` and `templates`.
    let sql = format!(
        "SELECT CAST(substr({}, 1, 40) AS TEXT), {bytes} FROM {table} WHERE {bytes} > ?1",
        columns[0]
    );
    let long = db
        .query_row(&sql, [max_row_bytes as i64], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    match long {
        None => Ok(()),
        Some((key, bytes)) => refuse(
            format!(
                "row {key} of table {table} has {bytes} bytes, which is over the server's limit of {max_row_bytes} \
                 (MAX_SYNC_ROW_MEGS)"
            ),
            SHORTEN,
        ),
    }
}

/// Refuses the file by its first row over the limit, in whatever state its tables are.
pub fn refuse_long_rows(db: &Connection, max_row_bytes: u64) -> Checked {
    for (table, columns) in TABLES.iter().filter(|(table, _)| *table != "col") {
        let found = columns_of(db, table)?;
        if columns.iter().all(|column| found.iter().any(|found| found.eq_ignore_ascii_case(column))) {
            refuse_long_row(db, table, columns, max_row_bytes)?;
        }
    }
    Ok(())
}
