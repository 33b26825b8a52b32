//! Collections of older clients: from schema 11, or one of the transient schemas 14 to 17, to 18 (collection-format.md 7).
//!
//! The steps are those of clients, each from the schema before to the one it is named after. The file is a copy that is
//! thrown away if one fails, so nothing here can be undone. The JSON columns of schema 11 may be large: they are read
//! as they lie in the file, and one object at a time is in memory.
//!
//! Where this differs from the official server on purpose (collection-format.md 16): what is renamed gets the usn of the
//! collection instead of -1, and the keys of the maps are the ids, also where an object says otherwise. Notes and
//! cards of such a file refer to the keys: they are what its client looks objects up by.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};
use unicode_normalization::UnicodeNormalization;

use crate::collection::blobs;
use crate::collection::blobs::{DeckConfigRow, DeckRow, NotetypeRow, deck_name};
use crate::collection::schema;
use crate::collection::schema::INDEXES;
use crate::collection::{SCHEMA_VERSION, untranslatable};
use crate::error::{Error, Result};
use crate::messages::Source;
use crate::messages::json_map::each_entry;
use crate::os;
use crate::os::clock;
use crate::sync::objects::{put_deck, put_deck_config, put_notetype};
use crate::text::unicase::Unicase;

/// How often a name may be lengthened until it is free. No client lets two names be equal, so this many equal ones are
/// not from a client, and each would lengthen the next.
const MAX_SUFFIXES: usize = 100;

/// New cards of options with this ease or less begin with `DEFAULT_EASE`: a fault of old clients.
const LOW_EASE: f32 = 1.3;
const DEFAULT_EASE: f32 = 2.5;

/// Whether there is a way from this schema version to ours.
pub fn is_old(version: i64) -> bool {
    version == 11 || (14..SCHEMA_VERSION).contains(&version)
}

/// Upgrades a file of an old schema whose tables were checked. Objects may have up to `max_object_bytes`.
///
/// Errors: `Refused` for what no client could have written, `TooLarge` for an object over the bound.
pub fn upgrade(db: &Connection, version: i64, max_object_bytes: u64) -> Result<()> {
    let (row, usn) = db.query_row("SELECT rowid, usn FROM col", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let upgrade = Upgrade { db, row, usn, max_object_bytes };
    db.execute_batch("BEGIN")?;
    if version < 14 {
        upgrade.to_14()?;
    }
    if version < 15 {
        upgrade.to_15()?;
    }
    if version < 16 {
        upgrade.to_16()?;
    }
    if (14..17).contains(&version) {
        upgrade.rebuild("tags", "tag, usn, 1, NULL")?;
    }
    upgrade.rebuild("graves", "oid, type, usn")?;
    // All at once: to write the row SQLite reads what is to stay of it, and that must not be a column of JSON.
    db.execute(
        "UPDATE col SET ver = ?1, conf = '', models = '', decks = '', dconf = '', tags = ''",
        [SCHEMA_VERSION],
    )?;
    Ok(db.execute_batch("COMMIT")?)
}

struct Upgrade<'c> {
    db: &'c Connection,
    /// The row of `col`.
    row: i64,
    /// `col.usn`: what is changed here is news from then on.
    usn: i32,
    max_object_bytes: u64,
}

impl Upgrade<'_> {
    /// Deck options, tags and config get tables; the options are JSON still.
    fn to_14(&self) -> Result<()> {
        self.create_tables(&["deck_config", "config", "tags"])?;
        self.each_in_column("dconf", "deck options", |key, json| {
            let mut row = DeckConfigRow::from_json(json).map_err(untranslatable)?;
            (row.id, row.config) = (id(key)?, json.as_bytes().to_vec());
            put_deck_config(self.db, &row)
        })?;
        let mut put =
            self.db.prepare("INSERT OR IGNORE INTO tags (tag, usn, collapsed) VALUES (?1, ?2, TRUE)")?;
        self.each_in_column("tags", "tags", |tag, usn| {
            let usn: i32 = usn.parse().map_err(|_| Error::Refused("a usn that is no number".to_owned()))?;
            put.execute(params![tag, usn])?;
            Ok(())
        })?;
        let mut put = self
            .db
            .prepare("INSERT OR REPLACE INTO config (KEY, usn, mtime_secs, val) VALUES (?1, 0, 0, ?2)")?;
        self.each_in_column("conf", "config", |key, json| {
            put.execute(params![key, blobs::compact_json(json).map_err(untranslatable)?])?;
            Ok(())
        })
    }

    /// Notetypes and decks get tables; deck options become blobs, with the ease in percent.
    fn to_15(&self) -> Result<()> {
        self.create_tables(&["notetypes", "fields", "templates", "decks"])?;
        self.each_in_column("models", "notetypes", |key, json| self.add_notetype(id(key)?, json))?;
        self.each_in_column("decks", "decks", |key, json| self.add_deck(id(key)?, json))?;
        self.each_row("deck_config", "config", |id, json| {
            let json = std::str::from_utf8(&json)
                .map_err(|_| Error::Refused("deck options: not text".to_owned()))?;
            let mut row = DeckConfigRow::from_json(json).map_err(untranslatable)?;
            row.id = id;
            DeckConfigRow::map_initial_ease(&mut row.config, |ease| ease * 100.0).map_err(untranslatable)?;
            put_deck_config(self.db, &row)
        })
    }

    /// The ease of deck options becomes a factor, and one that is too low the default, also on cards that have it.
    fn to_16(&self) -> Result<()> {
        self.db.execute_batch(
            "CREATE TEMP TABLE low_options (id INTEGER PRIMARY KEY); CREATE TEMP TABLE low_decks (id INTEGER PRIMARY KEY)",
        )?;
        let mut put = self.db.prepare("UPDATE deck_config SET config = ?1 WHERE id = ?2")?;
        let mut low = self.db.prepare("INSERT INTO low_options VALUES (?1)")?;
        self.each_row("deck_config", "config", |id, mut config| {
            let mut is_low = false;
            DeckConfigRow::map_initial_ease(&mut config, |percent| {
                let ease = percent / 100.0;
                is_low = ease <= LOW_EASE;
                if is_low { DEFAULT_EASE } else { ease }
            })
            .map_err(untranslatable)?;
            put.execute(params![config, id])?;
            if is_low {
                low.execute([id])?;
            }
            Ok(())
        })?;
        let mut uses_low =
            self.db.prepare("INSERT INTO low_decks SELECT ?1 FROM low_options WHERE id = ?2")?;
        self.each_row("decks", "kind", |id, kind| {
            if let Some(options) = DeckRow::options_of(&kind).map_err(untranslatable)? {
                uses_low.execute([id, options])?;
            }
            Ok(())
        })?;
        self.db.execute(
            "UPDATE cards SET factor = 2500, usn = ?1 WHERE factor != 0 AND factor <= 2000
             AND (did IN (SELECT id FROM low_decks) OR odid IN (SELECT id FROM low_decks))",
            [self.usn],
        )?;
        drop((put, low, uses_low));
        Ok(self.db.execute_batch("DROP TABLE temp.low_options; DROP TABLE temp.low_decks")?)
    }

    /// Creates a table anew with these values of its old rows; of rows with the same key the first one stays.
    fn rebuild(&self, table: &str, values: &str) -> Result<()> {
        let create_sql = schema::create_table_sql(table);
        Ok(self.db.execute_batch(&format!(
            "CREATE TEMP TABLE old_rows AS SELECT {values} FROM main.{table}; DROP TABLE main.{table}; {create_sql};
             INSERT OR IGNORE INTO main.{table} SELECT * FROM temp.old_rows ORDER BY rowid; DROP TABLE temp.old_rows"
        ))?)
    }

    fn create_tables(&self, tables: &[&str]) -> Result<()> {
        for table in tables {
            self.db.execute_batch(schema::create_table_sql(table))?;
            for index in INDEXES.iter().filter(|index| index.table == *table) {
                self.db.execute_batch(&index.create_sql())?;
            }
        }
        Ok(())
    }

    /// Hands the entries of a JSON column of `col` to `each`.
    fn each_in_column(
        &self,
        column: &str,
        what: &str,
        each: impl FnMut(&str, &str) -> Result<()>,
    ) -> Result<()> {
        let json = self.db.blob_open("main", "col", column, self.row, true)?;
        let read = each_entry(Source::Stream(Box::new(json)), self.max_object_bytes, each);
        read.map_err(|err| match err {
            Error::BadRequest(reason) | Error::Refused(reason) => {
                Error::Refused(format!("its {what} cannot be read: {reason}"))
            }
            other => other,
        })
    }

    /// Hands id and blob of each row to `each`, which may update that row.
    fn each_row(
        &self,
        table: &str,
        column: &str,
        mut each: impl FnMut(i64, Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let mut select = self.db.prepare(&format!("SELECT id, {column} FROM {table} NOT INDEXED"))?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let blob = row.get_ref(1)?.as_bytes().unwrap_or_default().to_vec();
            each(row.get(0)?, blob)?;
        }
        Ok(())
    }

    fn add_notetype(&self, id: i64, json: &str) -> Result<()> {
        let mut row = NotetypeRow::from_json(json).map_err(untranslatable)?;
        row.id = if id == 0 { random_id()? } else { id };
        row.name = self.free_name("notetypes", row.id, row.name.nfc().collect())?;
        tell_apart(row.fields.iter_mut().map(|field| &mut field.name))?;
        tell_apart(row.templates.iter_mut().map(|template| &mut template.name))?;
        put_notetype(self.db, &row)
    }

    fn add_deck(&self, id: i64, json: &str) -> Result<()> {
        if id == 0 {
            return Err(Error::Refused("a deck with id 0".to_owned()));
        }
        let mut row = DeckRow::from_json(json).map_err(untranslatable)?;
        row.id = id;
        row.name = self.free_name("decks", id, row.name)?;
        if translate::name_in_json(json) != Some(deck_name::native_to_human(&row.name)) {
            (row.mtime_secs, row.usn) = (clock::now_secs(), self.usn);
        }
        put_deck(self.db, &row)
    }

    /// The name, lengthened by `_` until no other row has it.
    fn free_name(&self, table: &str, id: i64, mut name: String) -> Result<String> {
        let mut taken = self.db.prepare(&format!("SELECT 1 FROM {table} WHERE name = ?1 AND id != ?2"))?;
        let longest = name.len() + MAX_SUFFIXES;
        while taken.exists(params![name, id])? {
            name.push('_');
            check_length(&name, longest)?;
        }
        Ok(name)
    }
}

/// The id that the key of a map is.
fn id(key: &str) -> Result<i64> {
    key.parse().map_err(|_| Error::Refused("an id that is no number".to_owned()))
}

/// An id for the notetype that has none.
fn random_id() -> Result<i64> {
    let mut bytes = [0; 4];
    os::random(&mut bytes).map_err(|err| Error::Broken(format!("no random numbers: {err}")))?;
    Ok(i64::from(u32::from_le_bytes(bytes).max(1)))
}

/// Normalises names, and lengthens each by `+` until it differs from all before it.
fn tell_apart<'n>(names: impl Iterator<Item = &'n mut String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        let mut free: String = name.nfc().collect();
        let longest = free.len() + MAX_SUFFIXES;
        while !seen.insert(Unicase(free.clone())) {
            free.push('+');
            check_length(&free, longest)?;
        }
        *name = free;
    }
    Ok(())
}

fn check_length(name: &str, longest: usize) -> Result<()> {
    match name.len() <= longest {
        true => Ok(()),
        false => Err(Error::Refused(format!("more than {MAX_SUFFIXES} of the same name"))),
    }
}
