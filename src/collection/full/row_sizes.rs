//! Refuses rows that are too long to hold in memory. SQLite reports the length of a value without reading the value.

use rusqlite::{Connection, OptionalExtension};

use crate::collection::full::refusal::{CheckResult, SHORTEN_ROW, refuse};
use crate::collection::full::repair;
use crate::collection::schema::{LARGE_TABLES, TABLES, columns_of, tables_of};

/// Refuses a long row in the small tables. Rows of the large tables are checked when they are read; `col` is not
/// checked, because it is never read whole.
pub fn check_small_tables(db: &Connection, version: i64, max_row_bytes: u64) -> CheckResult {
    for (table, columns) in tables_of(version).filter(|(table, _)| *table != "col") {
        if !LARGE_TABLES.contains(&table) {
            refuse_long_row(db, table, columns, max_row_bytes)?;
        }
    }
    Ok(())
}

/// The SQL expression for the bytes of this column that count.
pub fn bytes_of(column: &str) -> String {
    match column {
        // A copy of one of the fields: only bytes beyond the length of `flds` count.
        "sfld" => "max(ifnull(octet_length(sfld), 0) - ifnull(octet_length(flds), 0), 0)".to_owned(),
        column => format!("ifnull(octet_length({column}), 0)"),
    }
}

fn refuse_long_row(db: &Connection, table: &str, columns: &[&str], max_row_bytes: u64) -> CheckResult {
    let extra = repair::extra_columns(db, table, columns)?;
    let all = columns.iter().copied().chain(extra.iter().map(String::as_str));
    let bytes: Vec<String> = all.map(bytes_of).collect();
    let bytes = bytes.join(" + ");
    // The first column identifies the row: its id or name, or in `fields` and `templates` its notetype.
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
            SHORTEN_ROW,
        ),
    }
}

/// Refuses the first row over the limit. Tables that lack a column are skipped, because the file may be damaged.
pub fn refuse_long_rows(db: &Connection, max_row_bytes: u64) -> CheckResult {
    for (table, columns) in TABLES.iter().filter(|(table, _)| *table != "col") {
        let found = columns_of(db, table)?;
        if columns.iter().all(|column| found.iter().any(|found| found.eq_ignore_ascii_case(column))) {
            refuse_long_row(db, table, columns, max_row_bytes)?;
        }
    }
    Ok(())
}
