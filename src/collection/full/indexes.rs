//! Checks that an uploaded collection has the indexes of every collection, and that they match their tables.
//!
//! SQLite trusts an index. An entry in the wrong place is not found, so the row would be missing from a sync. `quick_check`
//! does not notice that. Here each index of a large table is read once from end to end: its entries must be those of the
//! table (compared by a checksum), and each must come after the one before.

use std::cmp::Ordering;
use std::hash::{DefaultHasher, Hash, Hasher};

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::collection::full::refusal::{CHECK_DATABASE, CheckResult, refuse};
use crate::collection::schema::{INDEXES, Index};

/// Drops indexes that collections do not have, also those that are defined in another way, and creates those that are
/// missing.
pub fn replace_unknown(db: &Connection) -> CheckResult {
    let found: Vec<(String, String)> = db
        .prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (name, sql) in found {
        if !INDEXES.iter().any(|index| without_looks(&index.create_sql()) == without_looks(&sql)) {
            db.execute_batch(&format!("DROP INDEX \"{}\"", name.replace('"', "\"\"")))?;
        }
    }
    for index in INDEXES {
        db.execute_batch(&index.create_sql())?;
    }
    Ok(())
}

/// A definition without spelling differences that do not change its meaning.
fn without_looks(sql: &str) -> String {
    let kept: String =
        sql.chars().filter(|c| !c.is_whitespace() && !matches!(c, '"' | '`' | '[' | ']' | ';')).collect();
    kept.to_ascii_lowercase().replacen("ifnotexists", "", 1)
}

/// Whether a table has indexes that come with its definition. These are not in `INDEXES`.
pub fn has_automatic(db: &Connection, table: &str) -> rusqlite::Result<bool> {
    db.query_row("SELECT count(*) FROM pragma_index_list(?1) WHERE origin != 'c'", [table], |row| {
        row.get::<_, i64>(0).map(|count| count > 0)
    })
}

/// Checksum for comparing an index with its table: the number of entries and the sum of their hashes, in any order.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Checksum {
    entries: u64,
    sum: u64,
}

impl Checksum {
    /// Adds an entry: the values of the index, then the rowid.
    pub fn add<'r>(
        &mut self,
        entry: impl Iterator<Item = rusqlite::Result<ValueRef<'r>>>,
    ) -> rusqlite::Result<()> {
        // The hash is not keyed: a user who forges a collision damages only their own collection.
        let mut hasher = DefaultHasher::new();
        for value in entry {
            match value? {
                ValueRef::Null => 0.hash(&mut hasher),
                ValueRef::Integer(value) => value.hash(&mut hasher),
                ValueRef::Real(value) => value.to_bits().hash(&mut hasher),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.hash(&mut hasher),
            }
        }
        self.entries += 1;
        self.sum = self.sum.wrapping_add(hasher.finish());
        Ok(())
    }
}

/// Reads an index of a large table; refuses the file if its entries are out of order.
pub fn checksum_of(db: &Connection, index: &Index) -> CheckResult<Checksum> {
    let mut checksum = Checksum::default();
    let condition = index.only_if.unwrap_or("1");
    let sql = format!(
        "SELECT {}, id FROM {} INDEXED BY {} WHERE {condition} ORDER BY {}",
        index.columns.join(", "),
        index.table,
        index.name,
        index.columns[0]
    );
    let mut select = db.prepare(&sql)?;
    let mut rows = select.query([])?;
    let mut last: Vec<Key> = Vec::new();
    while let Some(row) = rows.next()? {
        checksum.add((0..=index.columns.len()).map(|column| row.get_ref(column)))?;
        let mut order = if last.is_empty() { Ordering::Less } else { Ordering::Equal };
        for column in 0..=index.columns.len() {
            let value = row.get_ref(column)?;
            match last.get_mut(column) {
                Some(before) => {
                    order = order.then_with(|| before.compare(value));
                    before.set(value);
                }
                None => last.push(Key::of(value)),
            }
        }
        if order != Ordering::Less {
            let what =
                format!("it is damaged: index {} of table {} is out of order", index.name, index.table);
            return refuse(what, CHECK_DATABASE);
        }
    }
    Ok(checksum)
}

/// A value of the previous entry.
enum Key {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Key {
    fn of(value: ValueRef<'_>) -> Key {
        match value {
            ValueRef::Null => Key::Null,
            ValueRef::Integer(value) => Key::Integer(value),
            ValueRef::Real(value) => Key::Real(value),
            ValueRef::Text(bytes) => Key::Text(bytes.to_owned()),
            ValueRef::Blob(bytes) => Key::Blob(bytes.to_owned()),
        }
    }

    fn set(&mut self, value: ValueRef<'_>) {
        match (self, value) {
            (Key::Integer(number), ValueRef::Integer(value)) => *number = value,
            (key, value) => *key = Key::of(value),
        }
    }

    /// SQLite's order: null, numbers, texts, blobs. The indexes of large tables have no collation.
    fn compare(&self, other: ValueRef<'_>) -> Ordering {
        match (self, other) {
            (Key::Integer(left), ValueRef::Integer(right)) => left.cmp(&right),
            (Key::Real(left), ValueRef::Real(right)) => left.partial_cmp(&right).unwrap_or(Ordering::Equal),
            (Key::Integer(left), ValueRef::Real(right)) => compare_mixed(*left, right),
            (Key::Real(left), ValueRef::Integer(right)) => compare_mixed(right, *left).reverse(),
            (Key::Text(left), ValueRef::Text(right)) | (Key::Blob(left), ValueRef::Blob(right)) => {
                left.as_slice().cmp(right)
            }
            (left, right) => left.class().cmp(&Key::of(right).class()),
        }
    }

    fn class(&self) -> u8 {
        match self {
            Key::Null => 0,
            Key::Integer(_) | Key::Real(_) => 1,
            Key::Text(_) => 2,
            Key::Blob(_) => 3,
        }
    }
}

/// Compares without the loss that a conversion of large integers would have.
fn compare_mixed(left: i64, right: f64) -> Ordering {
    /// 2^63, which no integer reaches.
    const TWO_TO_63: f64 = 9_223_372_036_854_775_808.0;
    if right >= TWO_TO_63 {
        return Ordering::Less;
    }
    if right < -TWO_TO_63 {
        return Ordering::Greater;
    }
    let whole = right.trunc();
    left.cmp(&(whole as i64)).then_with(|| 0.0.partial_cmp(&(right - whole)).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_order_that_sqlite_gives_them() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE t (id integer PRIMARY KEY, v)").unwrap();
        let values = "NULL, -9223372036854775808, -9.3e18, 9.3e18, 9223372036854775807, 9223372036854775806.0, 0, 0.5, -0.5,
            1, 1.0, -1, 1e300, -1e300, '', 'a', 'B', 'ab', x'', x'00', x'ff', 9007199254740993, 9007199254740992.0";
        for value in values.split(',') {
            db.execute(&format!("INSERT INTO t (v) VALUES ({value})"), []).unwrap();
        }
        let mut select = db.prepare("SELECT v FROM t ORDER BY v, id").unwrap();
        let mut rows = select.query([]).unwrap();
        let mut last: Option<Key> = None;
        while let Some(row) = rows.next().unwrap() {
            let value = row.get_ref(0).unwrap();
            if let Some(last) = last {
                assert_ne!(last.compare(value), Ordering::Greater, "{value:?}");
                // And SQLite agrees on what is equal.
                let differs: bool = db
                    .query_row("SELECT ?1 IS NOT ?2", [owned(&last), owned(&Key::of(value))], |row| {
                        row.get(0)
                    })
                    .unwrap();
                assert_eq!(last.compare(value) != Ordering::Equal, differs, "{value:?}");
            }
            last = Some(Key::of(value));
        }
    }

    fn owned(key: &Key) -> rusqlite::types::Value {
        use rusqlite::types::Value;
        match key {
            Key::Null => Value::Null,
            Key::Integer(value) => Value::Integer(*value),
            Key::Real(value) => Value::Real(*value),
            Key::Text(bytes) => Value::Text(String::from_utf8(bytes.clone()).unwrap()),
            Key::Blob(bytes) => Value::Blob(bytes.clone()),
        }
    }

    #[test]
    fn definitions_of_every_client_are_known() {
        for sql in [
            "CREATE INDEX ix_notes_usn on notes (usn)",
            "create index \"ix_notes_usn\"\n on notes(usn);",
            "CREATE INDEX idx_cards_odid ON cards (odid)\nWHERE odid != 0",
            "CREATE UNIQUE INDEX idx_decks_name ON decks (name)",
        ] {
            let known = INDEXES.iter().any(|index| without_looks(&index.create_sql()) == without_looks(sql));
            assert!(known, "{sql}");
        }
    }
}
