//! The tables and indexes of schema 18, and where older schemas differ (collection-format.md 1).

pub mod downgrade;
pub mod upgrade;

/// An index that every collection has.
pub struct Index {
    /// Its name.
    pub name: &'static str,
    /// The table it is on.
    pub table: &'static str,
    /// Its columns.
    pub columns: &'static [&'static str],
    /// The condition of a partial index.
    pub only_if: Option<&'static str>,
    /// Whether the index is unique.
    pub unique: bool,
}

const fn index(name: &'static str, table: &'static str, columns: &'static [&'static str]) -> Index {
    Index { name, table, columns, only_if: None, unique: false }
}

const fn unique(name: &'static str, table: &'static str, columns: &'static [&'static str]) -> Index {
    Index { name, table, columns, only_if: None, unique: true }
}

/// All secondary indexes.
pub const INDEXES: &[Index] = &[
    index("ix_notes_usn", "notes", &["usn"]),
    index("ix_notes_csum", "notes", &["csum"]),
    index("idx_notes_mid", "notes", &["mid"]),
    index("ix_cards_usn", "cards", &["usn"]),
    index("ix_cards_nid", "cards", &["nid"]),
    index("ix_cards_sched", "cards", &["did", "queue", "due"]),
    Index { only_if: Some("odid != 0"), ..index("idx_cards_odid", "cards", &["odid"]) },
    index("ix_revlog_usn", "revlog", &["usn"]),
    index("ix_revlog_cid", "revlog", &["cid"]),
    index("idx_graves_pending", "graves", &["usn"]),
    unique("idx_decks_name", "decks", &["name"]),
    unique("idx_notetypes_name", "notetypes", &["name"]),
    index("idx_notetypes_usn", "notetypes", &["usn"]),
    unique("idx_fields_name_ntid", "fields", &["name", "ntid"]),
    unique("idx_templates_name_ntid", "templates", &["name", "ntid"]),
    index("idx_templates_usn", "templates", &["usn"]),
];

impl Index {
    /// The statement that creates the index if it is missing.
    pub fn create_sql(&self) -> String {
        let unique = if self.unique { "UNIQUE " } else { "" };
        let only_if = self.only_if.map(|condition| format!(" WHERE {condition}")).unwrap_or_default();
        let columns = self.columns.join(", ");
        format!("CREATE {unique}INDEX IF NOT EXISTS {} ON {} ({columns}){only_if}", self.name, self.table)
    }
}

/// Tables that can be large. The others have a few hundred rows.
pub const LARGE_TABLES: &[&str] = &["notes", "cards", "revlog"];

/// Every table with its columns in order.
pub const TABLES: &[(&str, &[&str])] = &[
    (
        "col",
        &["id", "crt", "mod", "scm", "ver", "dty", "usn", "ls", "conf", "models", "decks", "dconf", "tags"],
    ),
    ("notes", &["id", "guid", "mid", "mod", "usn", "tags", "flds", "sfld", "csum", "flags", "data"]),
    (
        "cards",
        &[
            "id", "nid", "did", "ord", "mod", "usn", "type", "queue", "due", "ivl", "factor", "reps",
            "lapses", "left", "odue", "odid", "flags", "data",
        ],
    ),
    ("revlog", &["id", "cid", "usn", "ease", "ivl", "lastIvl", "factor", "time", "type"]),
    ("graves", &["oid", "type", "usn"]),
    ("config", &["KEY", "usn", "mtime_secs", "val"]),
    ("deck_config", &["id", "name", "mtime_secs", "usn", "config"]),
    ("decks", &["id", "name", "mtime_secs", "usn", "common", "kind"]),
    ("notetypes", &["id", "name", "mtime_secs", "usn", "config"]),
    ("fields", &["ntid", "ord", "name", "config"]),
    ("templates", &["ntid", "ord", "name", "mtime_secs", "usn", "config"]),
    ("tags", &["tag", "usn", "collapsed", "config"]),
];

/// Tables whose rows carry a usn.
pub const TABLES_WITH_USN: &[&str] = &[
    "notes",
    "cards",
    "revlog",
    "graves",
    "config",
    "deck_config",
    "decks",
    "notetypes",
    "templates",
    "tags",
];

/// The statement that creates this table of schema 18.
pub fn create_table_sql(table: &str) -> &'static str {
    let found = CREATE_TABLES.iter().find(|(name, _)| *name == table);
    found.expect("asked for tables of TABLES only; a test goes through them").1
}

/// The statement that creates each table.
const CREATE_TABLES: &[(&str, &str)] = &[
    (
        "col",
        "CREATE TABLE col (id integer PRIMARY KEY, crt integer NOT NULL, mod integer NOT NULL, scm integer NOT NULL,
  ver integer NOT NULL, dty integer NOT NULL, usn integer NOT NULL, ls integer NOT NULL, conf text NOT NULL,
  models text NOT NULL, decks text NOT NULL, dconf text NOT NULL, tags text NOT NULL)",
    ),
    (
        "notes",
        "CREATE TABLE notes (id integer PRIMARY KEY, guid text NOT NULL, mid integer NOT NULL, mod integer NOT NULL,
  usn integer NOT NULL, tags text NOT NULL, flds text NOT NULL, sfld integer NOT NULL, csum integer NOT NULL,
  flags integer NOT NULL, data text NOT NULL)",
    ),
    (
        "cards",
        "CREATE TABLE cards (id integer PRIMARY KEY, nid integer NOT NULL, did integer NOT NULL, ord integer NOT NULL,
  mod integer NOT NULL, usn integer NOT NULL, type integer NOT NULL, queue integer NOT NULL, due integer NOT NULL,
  ivl integer NOT NULL, factor integer NOT NULL, reps integer NOT NULL, lapses integer NOT NULL,
  left integer NOT NULL, odue integer NOT NULL, odid integer NOT NULL, flags integer NOT NULL, data text NOT NULL)",
    ),
    (
        "revlog",
        "CREATE TABLE revlog (id integer PRIMARY KEY, cid integer NOT NULL, usn integer NOT NULL, ease integer NOT NULL,
  ivl integer NOT NULL, lastIvl integer NOT NULL, factor integer NOT NULL, time integer NOT NULL,
  type integer NOT NULL)",
    ),
    (
        "graves",
        "CREATE TABLE graves (oid integer NOT NULL, type integer NOT NULL, usn integer NOT NULL, PRIMARY KEY (oid, type))
  WITHOUT ROWID",
    ),
    (
        "config",
        "CREATE TABLE config (KEY text NOT NULL PRIMARY KEY, usn integer NOT NULL, mtime_secs integer NOT NULL,
  val blob NOT NULL) WITHOUT ROWID",
    ),
    (
        "deck_config",
        "CREATE TABLE deck_config (id integer PRIMARY KEY NOT NULL, name text NOT NULL COLLATE unicase,
  mtime_secs integer NOT NULL, usn integer NOT NULL, config blob NOT NULL)",
    ),
    (
        "decks",
        "CREATE TABLE decks (id integer PRIMARY KEY NOT NULL, name text NOT NULL COLLATE unicase,
  mtime_secs integer NOT NULL, usn integer NOT NULL, common blob NOT NULL, kind blob NOT NULL)",
    ),
    (
        "notetypes",
        "CREATE TABLE notetypes (id integer NOT NULL PRIMARY KEY, name text NOT NULL COLLATE unicase,
  mtime_secs integer NOT NULL, usn integer NOT NULL, config blob NOT NULL)",
    ),
    (
        "fields",
        "CREATE TABLE fields (ntid integer NOT NULL, ord integer NOT NULL, name text NOT NULL COLLATE unicase,
  config blob NOT NULL, PRIMARY KEY (ntid, ord)) WITHOUT ROWID",
    ),
    (
        "templates",
        "CREATE TABLE templates (ntid integer NOT NULL, ord integer NOT NULL, name text NOT NULL COLLATE unicase,
  mtime_secs integer NOT NULL, usn integer NOT NULL, config blob NOT NULL, PRIMARY KEY (ntid, ord)) WITHOUT ROWID",
    ),
    (
        "tags",
        "CREATE TABLE tags (tag text NOT NULL PRIMARY KEY COLLATE unicase, usn integer NOT NULL, collapsed boolean NOT NULL,
  config blob NULL) WITHOUT ROWID",
    ),
];

/// Tables that are the same in schema 11.
pub const TABLES_SINCE_11: &[&str] = &["col", "notes", "cards", "revlog"];

/// Indexes on those tables that schema 11 lacks.
pub const INDEXES_SINCE_15: &[&str] = &["idx_notes_mid", "idx_cards_odid"];

/// Columns of `graves` before schema 18.
pub const OLD_GRAVES: &[&str] = &["usn", "oid", "type"];

/// Creates `graves` as before schema 18: without key or index, so that it may hold duplicate rows.
pub const CREATE_OLD_GRAVES: &str =
    "CREATE TABLE graves (usn integer NOT NULL, oid integer NOT NULL, type integer NOT NULL)";

/// Columns of `tags` in schemas 14 to 16.
pub const OLD_TAGS: &[&str] = &["tag", "usn"];

/// Every table of a collection of this schema version, with its columns in order.
pub fn tables_of(version: i64) -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    TABLES.iter().filter_map(move |&(table, columns)| match table {
        "graves" if version < 18 => Some((table, OLD_GRAVES)),
        "tags" if (14..17).contains(&version) => Some((table, OLD_TAGS)),
        "config" | "deck_config" | "tags" => (version >= 14).then_some((table, columns)),
        "decks" | "notetypes" | "fields" | "templates" => (version >= 15).then_some((table, columns)),
        _ => Some((table, columns)),
    })
}

/// The names of the columns of a table, in their order.
pub(crate) fn columns_of(db: &rusqlite::Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut select = db.prepare("SELECT name FROM pragma_table_xinfo(?1) ORDER BY cid")?;
    select.query_map([table], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_created_with_the_expected_columns() {
        let db = rusqlite::Connection::open_in_memory().unwrap();
        db.create_collation("unicase", crate::text::unicase::compare).unwrap();
        for (table, columns) in TABLES {
            db.execute_batch(create_table_sql(table)).unwrap();
            let select = db.prepare(&format!("SELECT * FROM {table}")).unwrap();
            assert!(select.column_names().eq(columns.iter().copied()), "{table}");
        }
        assert_eq!(CREATE_TABLES.len(), TABLES.len());
    }
}
