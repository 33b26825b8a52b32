//! Notetypes, decks, deck options, tags and config: reads their rows as JSON objects, and writes them.
//!
//! Not here: which of two changed objects wins (`sync::merge_objects`).

use crate::collection::blobs::{DeckConfigRow, DeckRow, FieldRow, NotetypeRow, Refused, TemplateRow};
use crate::collection::int;
use crate::collection::spooling;
use crate::collection::{CachedStatements, Collection, Range};
use crate::error::{Error, Result};
use crate::os::clock;
use rusqlite::{CachedStatement, Connection, Row, params};
use serde_json::value::RawValue;
use std::io::Write;

/// Sends renamed objects before the objects that now have their old names. In the other order the device would find the
/// name taken and rename the second object.
const RENAMED_FIRST: &str = "ORDER BY name LIKE '%+' DESC, length(name) DESC, id";

impl Collection {
    pub(crate) fn write_notetypes(&self, unseen: Range, out: &mut ObjectWriter<impl Write>) -> Result<()> {
        let mut children = NotetypeChildren::new(&self.db)?;
        let mut select = self.db.prepare_cached(
            &format!("SELECT id, name, mtime_secs, usn, config FROM notetypes WHERE usn BETWEEN ?1 AND ?2 {RENAMED_FIRST}"),
        )?;
        let mut rows = select.query([unseen.from, unseen.to])?;
        let mut first = true;
        while let Some(row) = rows.next()? {
            let notetype = children.complete(row)?;
            out.object(&mut first, notetype.id, |json| notetype.write_json(json))
                .map_err(unreadable("notetype", notetype.id))?;
        }
        Ok(())
    }

    pub(crate) fn write_decks(&self, unseen: Range, out: &mut ObjectWriter<impl Write>) -> Result<()> {
        let mut select = self.db.prepare_cached(
            &format!("SELECT id, name, mtime_secs, usn, common, kind FROM decks WHERE usn BETWEEN ?1 AND ?2 {RENAMED_FIRST}"),
        )?;
        let mut rows = select.query([unseen.from, unseen.to])?;
        let mut first = true;
        while let Some(row) = rows.next()? {
            let deck = deck_row(row)?;
            out.object(&mut first, deck.id, |json| deck.write_json(json))
                .map_err(unreadable("deck", deck.id))?;
        }
        Ok(())
    }

    pub(crate) fn write_deck_configs(&self, unseen: Range, out: &mut ObjectWriter<impl Write>) -> Result<()> {
        let mut select = self.db.prepare_cached(
            "SELECT id, name, mtime_secs, usn, config FROM deck_config WHERE usn BETWEEN ?1 AND ?2 ORDER BY id",
        )?;
        let mut rows = select.query([unseen.from, unseen.to])?;
        let mut first = true;
        while let Some(row) = rows.next()? {
            let config = deck_config_row(row)?;
            out.object(&mut first, config.id, |json| config.write_json(json))
                .map_err(unreadable("deck options", config.id))?;
        }
        Ok(())
    }

    pub(crate) fn write_tags(&self, unseen: Range, out: &mut ObjectWriter<impl Write>) -> Result<()> {
        let mut select = self.db.prepare_cached("SELECT tag, usn FROM tags WHERE usn BETWEEN ?1 AND ?2")?;
        let mut rows = select.query([unseen.from, unseen.to])?;
        let mut first = true;
        while let Some(row) = rows.next()? {
            let name = row.get_ref(0)?.as_str().unwrap_or_default();
            out.separate(&mut first)?;
            serde_json::to_writer(&mut out.out, name).map_err(|err| spooling(err.into()))?;
            if out.is_map {
                out.raw(&format!(":{}", int(row, 1)? as i32))?;
            }
        }
        Ok(())
    }

    pub(crate) fn write_config(&self, out: &mut ObjectWriter<impl Write>) -> Result<()> {
        let mut select = self.db.prepare_cached("SELECT KEY, val FROM config")?;
        let mut rows = select.query([])?;
        let mut first = true;
        while let Some(row) = rows.next()? {
            let key = row.get_ref(0)?.as_str().unwrap_or_default();
            let value = row
                .get_ref(1)?
                .as_bytes()
                .ok()
                .and_then(|json| serde_json::from_slice::<&RawValue>(json).ok());
            let Some(value) = value else {
                log::warn!("config entry {key:?} is not JSON and is not sent");
                continue;
            };
            out.separate(&mut first)?;
            serde_json::to_writer(&mut out.out, key).map_err(|err| spooling(err.into()))?;
            out.raw(":")?;
            out.raw(value.get())?;
        }
        Ok(())
    }

    /// Translates every object as a sync would. An upload with an object that no device could read is refused here.
    pub(crate) fn check_objects(&self) -> Result<()> {
        let mut nowhere = ObjectWriter::list(std::io::sink());
        let everything = Range { from: i32::MIN, to: i32::MAX };
        self.write_notetypes(everything, &mut nowhere)?;
        self.write_decks(everything, &mut nowhere)?;
        self.write_deck_configs(everything, &mut nowhere)
    }
}

fn unreadable(what: &'static str, id: i64) -> impl FnOnce(WriteError) -> Error {
    move |err| match err {
        WriteError::Object(Refused(reason)) => {
            Error::Refused(format!("{what} {id} cannot be read: {reason}"))
        }
        WriteError::Spool(err) => err,
    }
}

enum WriteError {
    Object(Refused),
    Spool(Error),
}

/// Writes objects as a JSON list, or as a JSON map by id. One object at a time is held in memory.
pub(crate) struct ObjectWriter<W> {
    out: W,
    json: Vec<u8>,
    is_map: bool,
}

impl<W: Write> ObjectWriter<W> {
    /// As in the sync protocol: lists of objects and of tag names.
    pub(crate) fn list(out: W) -> ObjectWriter<W> {
        ObjectWriter { out, json: Vec::new(), is_map: false }
    }

    /// As in the columns of schema 11: maps from id to object, and from tag to usn.
    pub(crate) fn map(out: W) -> ObjectWriter<W> {
        ObjectWriter { is_map: true, ..ObjectWriter::list(out) }
    }

    pub(crate) fn raw(&mut self, text: &str) -> Result<()> {
        self.out.write_all(text.as_bytes()).map_err(spooling)
    }

    fn separate(&mut self, first: &mut bool) -> Result<()> {
        if std::mem::replace(first, false) { Ok(()) } else { self.raw(",") }
    }

    fn object(
        &mut self,
        first: &mut bool,
        id: i64,
        write: impl FnOnce(&mut Vec<u8>) -> std::result::Result<(), Refused>,
    ) -> std::result::Result<(), WriteError> {
        self.json.clear();
        write(&mut self.json).map_err(WriteError::Object)?;
        self.separate(first).map_err(WriteError::Spool)?;
        if self.is_map {
            self.raw(&format!("\"{id}\":")).map_err(WriteError::Spool)?;
        }
        self.out.write_all(&self.json).map_err(|err| WriteError::Spool(spooling(err)))
    }
}

fn deck_row(row: &Row<'_>) -> Result<DeckRow> {
    Ok(DeckRow {
        id: row.get(0)?,
        name: row.get(1)?,
        mtime_secs: row.get(2)?,
        usn: row.get(3)?,
        common: row.get(4)?,
        kind: row.get(5)?,
    })
}

fn deck_config_row(row: &Row<'_>) -> Result<DeckConfigRow> {
    Ok(DeckConfigRow {
        id: row.get(0)?,
        name: row.get(1)?,
        mtime_secs: row.get(2)?,
        usn: row.get(3)?,
        config: row.get(4)?,
    })
}

/// The statements that read the fields and templates of one notetype.
struct NotetypeChildren<'c> {
    fields: CachedStatement<'c>,
    templates: CachedStatement<'c>,
}

impl<'c> NotetypeChildren<'c> {
    fn new(db: &'c Connection) -> Result<NotetypeChildren<'c>> {
        Ok(NotetypeChildren {
            fields: db.prepare_cached("SELECT name, config FROM fields WHERE ntid = ?1 ORDER BY ord")?,
            templates: db.prepare_cached(
                "SELECT name, mtime_secs, usn, config FROM templates WHERE ntid = ?1 ORDER BY ord",
            )?,
        })
    }

    fn complete(&mut self, row: &Row<'_>) -> Result<NotetypeRow> {
        let id: i64 = row.get(0)?;
        let fields = self
            .fields
            .query_map([id], |row| Ok(FieldRow { name: row.get(0)?, config: row.get(1)? }))?
            .collect::<rusqlite::Result<_>>()?;
        let templates = self
            .templates
            .query_map([id], |row| {
                Ok(TemplateRow {
                    name: row.get(0)?,
                    mtime_secs: row.get(1)?,
                    usn: row.get(2)?,
                    config: row.get(3)?,
                })
            })?
            .collect::<rusqlite::Result<_>>()?;
        Ok(NotetypeRow {
            id,
            name: row.get(1)?,
            mtime_secs: row.get(2)?,
            usn: row.get(3)?,
            config: row.get(4)?,
            fields,
            templates,
        })
    }
}

/// Writes a notetype in place of the one with its id.
pub(crate) fn put_notetype(db: &Connection, row: &NotetypeRow) -> Result<()> {
    db.execute_cached(
        "INSERT INTO notetypes (id, name, mtime_secs, usn, config) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, mtime_secs = excluded.mtime_secs,
           usn = excluded.usn, config = excluded.config",
        params![row.id, row.name, row.mtime_secs, row.usn, row.config],
    )?;
    db.execute_cached("DELETE FROM fields WHERE ntid = ?1", [row.id])?;
    db.execute_cached("DELETE FROM templates WHERE ntid = ?1", [row.id])?;
    let mut put =
        db.prepare_cached("INSERT INTO fields (ntid, ord, name, config) VALUES (?1, ?2, ?3, ?4)")?;
    for (ord, field) in row.fields.iter().enumerate() {
        put.execute(params![row.id, ord as i64, field.name, field.config])?;
    }
    let mut put = db.prepare_cached(
        "INSERT INTO templates (ntid, ord, name, mtime_secs, usn, config) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for (ord, template) in row.templates.iter().enumerate() {
        let TemplateRow { name, mtime_secs, usn, config } = template;
        put.execute(params![row.id, ord as i64, name, mtime_secs, usn, config])?;
    }
    Ok(())
}

/// Writes a deck in place of the one with its id.
pub(crate) fn put_deck(db: &Connection, row: &DeckRow) -> Result<()> {
    db.execute_cached(
        "INSERT INTO decks (id, name, mtime_secs, usn, common, kind) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, mtime_secs = excluded.mtime_secs,
           usn = excluded.usn, common = excluded.common, kind = excluded.kind",
        params![row.id, row.name, row.mtime_secs, row.usn, row.common, row.kind],
    )?;
    Ok(())
}

/// Writes deck options in place of those with their id.
pub(crate) fn put_deck_config(db: &Connection, row: &DeckConfigRow) -> Result<()> {
    db.execute_cached(
        "INSERT INTO deck_config (id, name, mtime_secs, usn, config) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, mtime_secs = excluded.mtime_secs,
           usn = excluded.usn, config = excluded.config",
        params![row.id, row.name, row.mtime_secs, row.usn, row.config],
    )?;
    Ok(())
}

/// Writes an entry of the config in place of one with its key.
pub(crate) fn put_config_entry(db: &Connection, key: &str, json: &str, usn: i32) -> Result<()> {
    db.execute_cached(
        "INSERT OR REPLACE INTO config (KEY, usn, mtime_secs, val) VALUES (?1, ?2, ?3, ?4)",
        params![key, usn, clock::now_secs(), json.as_bytes()],
    )?;
    Ok(())
}
