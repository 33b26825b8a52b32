//! The empty collection of a new account. A device gets it if it downloads before anything was uploaded.
//!
//! It has modified stamp 0 and usn 0, as on the official server. Its scheduler is version 1 without a creation offset,
//! so that clients of every protocol version accept it (sync-protocol.md 6.2).

use std::fs::{self, File};
use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use crate::collection::blobs::{DeckConfigRow, DeckRow, NotetypeRow};
use crate::collection::objects::{put_config_entry, put_deck, put_deck_config, put_notetype};
use crate::collection::{
    Collection, FILE_NAME, LOCK_TIMEOUT, SCAN_CACHE_KIB, SCHEMA_VERSION, schema, untranslatable,
};
use crate::error::{Error, Result};
use crate::files;
use crate::os::clock;

/// Name of an empty collection that is not complete yet.
pub(super) const TEMPORARY: &str = "collection.anki2.empty";

/// Seconds from midnight to 4:00, when a collection's day begins.
const FOUR_O_CLOCK: i64 = 4 * 3600;

/// The initial notetype, as clients send one.
const NOTETYPE: &str = r#"{"id":1600000000000,"name":"Basic","type":0,"mod":0,"usn":0,"sortf":0,"did":null,
  "css":".card { font-family: arial; font-size: 20px; text-align: center; }\n",
  "latexPre":"\\documentclass{article}\n\\pagestyle{empty}\n\\begin{document}\n","latexPost":"\\end{document}",
  "req":[[0,"any",[0]]],
  "flds":[{"name":"Front","ord":0,"sticky":false,"rtl":false,"font":"Arial","size":20},
    {"name":"Back","ord":1,"sticky":false,"rtl":false,"font":"Arial","size":20}],
  "tmpls":[{"name":"Card 1","ord":0,"qfmt":"{{Front}}","afmt":"{{FrontSide}}<hr id=answer>{{Back}}"}]}"#;

/// The initial deck.
const DECK: &str = r#"{"id":1,"name":"Default","mod":0,"usn":0,"lrnToday":[0,0],"revToday":[0,0],"newToday":[0,0],
  "timeToday":[0,0],"collapsed":true,"browserCollapsed":true,"desc":"","dyn":0,"conf":1}"#;

/// The initial deck options.
const DECK_CONFIG: &str = r#"{"id":1,"name":"Default","mod":0,"usn":0,"maxTaken":60,"autoplay":true,"timer":0,"replayq":true,
  "new":{"delays":[1,10],"initialFactor":2500,"ints":[1,4,0],"order":1,"perDay":20},
  "rev":{"ease4":1.3,"ivlFct":1,"maxIvl":36500,"perDay":200,"hardFactor":1.2},
  "lapse":{"delays":[10],"leechAction":1,"leechFails":8,"minInt":1,"mult":0},
  "desiredRetention":0.9,"sm2Retention":0.9,"easyDaysPercentages":[1,1,1,1,1,1,1]}"#;

/// The initial config: keys and JSON values.
const CONFIG: [(&str, &str); 14] = [
    ("activeDecks", "[1]"),
    ("addToCur", "true"),
    ("collapseTime", "1200"),
    ("curDeck", "1"),
    ("curModel", "1600000000000"),
    ("dayLearnFirst", "false"),
    ("dueCounts", "true"),
    ("estTimes", "true"),
    ("newSpread", "0"),
    ("nextPos", "1"),
    ("schedVer", "1"),
    ("sortBackwards", "false"),
    ("sortType", "\"noteFld\""),
    ("timeLim", "0"),
];

/// Creates an empty collection in this folder, atomically (temporary file, sync, rename).
pub fn create(dir: &Path) -> Result<()> {
    let temporary = dir.join(TEMPORARY);
    files::remove_if_there(&temporary)?;
    fill(&temporary)?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(Error::io("syncing", &temporary))?;
    fs::rename(&temporary, dir.join(FILE_NAME)).map_err(Error::io("renaming", &temporary))?;
    files::sync_folder(dir)
}

fn fill(path: &Path) -> Result<()> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let collection =
        Collection::prepare(Connection::open_with_flags(path, flags)?, SCAN_CACHE_KIB, LOCK_TIMEOUT)?;
    let db = &collection.db;
    db.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")?;
    for (table, _) in schema::TABLES {
        db.execute_batch(schema::create_table_sql(table))?;
    }
    for index in schema::INDEXES {
        db.execute_batch(&index.create_sql())?;
    }
    let now = clock::now_millis();
    let created = now / 1000 - (now / 1000).rem_euclid(86_400) + FOUR_O_CLOCK;
    db.execute(
        "INSERT INTO col VALUES (1, ?1, 0, ?2, ?3, 0, 0, 0, '', '', '', '', '')",
        params![created, now, SCHEMA_VERSION],
    )?;
    put_notetype(db, &NotetypeRow::from_json(NOTETYPE).map_err(untranslatable)?)?;
    put_deck(db, &DeckRow::from_json(DECK).map_err(untranslatable)?)?;
    put_deck_config(db, &DeckConfigRow::from_json(DECK_CONFIG).map_err(untranslatable)?)?;
    for (key, json) in CONFIG {
        put_config_entry(db, key, json, 0)?;
    }
    Ok(db.execute_batch("COMMIT")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_collection_passes_its_own_upload_check() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let meta = Collection::open_to_read(&path).unwrap().meta().unwrap();
        assert!(meta.is_empty && !meta.needs_v2_scheduler && !meta.needs_timezones);
        assert_eq!((meta.stamps.modified, meta.stamps.usn), (0, 0));
        crate::collection::full::upload::check(&path, 1 << 20).unwrap().unwrap();
    }
}
