//! Upgrades collections of older clients from schema 11, or from one of the transient schemas 14 to 17, to 18
//! (collection-format.md 7).
//!
//! The steps are those of clients; each is named after the schema that it upgrades to. The file is a copy that is
//! deleted if a step fails, so nothing is rolled back here. The JSON columns of schema 11 may be large: they are
//! streamed from the file, and one object at a time is in memory.
//!
//! Two deliberate differences from the official server (collection-format.md 16). Renamed objects get the usn of the
//! collection instead of -1. The id of an object is its key in the map, even if its own `id` differs: notes and cards
//! of such a file refer to the key, because its client looks objects up by key.

use std::collections::BTreeSet;

use rusqlite::{Connection, params};
use unicode_normalization::UnicodeNormalization;

use crate::collection::blobs::{self, DeckConfigRow, DeckRow, NotetypeRow, deck_name};
use crate::collection::objects::{put_deck, put_deck_config, put_notetype};
use crate::collection::schema;
use crate::collection::schema::INDEXES;
use crate::collection::{SCHEMA_VERSION, untranslatable};
use crate::error::{Error, Result};
use crate::messages::Source;
use crate::messages::json_map::each_entry;
use crate::os;
use crate::os::clock;
use crate::text::unicase::Unicase;

/// How many characters may be appended to a name to make it unique. Clients do not write equal names, so a file with
/// more of them is refused: each duplicate would need a longer name than the one before.
const MAX_SUFFIXES: usize = 100;

/// Options with this initial ease or less get `DEFAULT_EASE`: old clients wrote such values by mistake.
const LOW_EASE: f32 = 1.3;
const DEFAULT_EASE: f32 = 2.5;

/// Whether this schema version can be upgraded.
pub fn is_old(version: i64) -> bool {
    version == 11 || (14..SCHEMA_VERSION).contains(&version)
}

/// Upgrades a file of an old schema. Its tables must have been checked. Objects may have up to `max_object_bytes`.
///
/// Errors: `Refused` for contents that no client writes, `TooLarge` for an object over the limit.
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
    // All columns in one statement: SQLite reads the unchanged columns into memory, and JSON columns may be large.
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
    /// `col.usn`, which changed rows get, so that devices receive them in their next sync.
    usn: i32,
    max_object_bytes: u64,
}

impl Upgrade<'_> {
    /// Moves deck options, tags and config to tables. The options stay JSON.
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

    /// Moves notetypes and decks to tables. Deck options become blobs, with the ease in percent.
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

    /// Converts the ease of deck options from percent to a factor. An ease that is too low becomes the default, also on
    /// cards with a low ease in decks with these options.
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

    /// Creates a table again, from these columns of its old rows. Of rows with the same key the first one is kept.
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

    /// Passes each entry of a JSON column of `col` to `each`.
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

    /// Passes id and blob of each row to `each`, which may update that row.
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
        make_unique(row.fields.iter_mut().map(|field| &mut field.name))?;
        make_unique(row.templates.iter_mut().map(|template| &mut template.name))?;
        put_notetype(self.db, &row)
    }

    fn add_deck(&self, id: i64, json: &str) -> Result<()> {
        if id == 0 {
            return Err(Error::Refused("a deck with id 0".to_owned()));
        }
        let mut row = DeckRow::from_json(json).map_err(untranslatable)?;
        row.id = id;
        row.name = self.free_name("decks", id, row.name)?;
        if blobs::name_in_json(json) != Some(deck_name::native_to_human(&row.name)) {
            (row.mtime_secs, row.usn) = (clock::now_secs(), self.usn);
        }
        put_deck(self.db, &row)
    }

    /// Appends `_` to the name until no other row has it.
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

/// Parses the key of a map, which is an id.
fn id(key: &str) -> Result<i64> {
    key.parse().map_err(|_| Error::Refused("an id that is no number".to_owned()))
}

/// A random id for a notetype whose id is 0.
fn random_id() -> Result<i64> {
    let mut bytes = [0; 4];
    os::random(&mut bytes).map_err(|err| Error::Broken(format!("no random numbers: {err}")))?;
    Ok(i64::from(u32::from_le_bytes(bytes).max(1)))
}

/// Normalises names (NFC), and appends `+` to each until it differs from all before it.
fn make_unique<'n>(names: impl Iterator<Item = &'n mut String>) -> Result<()> {
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
    if name.len() <= longest {
        return Ok(());
    }
    Err(Error::Refused(format!("more than {MAX_SUFFIXES} of the same name")))
}
