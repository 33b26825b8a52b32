//! Unchunked changes: notetypes, decks, deck options, tags, config (collection-format.md 12.4).

use std::io::Write;

use rusqlite::{Connection, OptionalExtension, Row, Statement, params};
use serde_json::value::RawValue;

use crate::collection::blobs::{DeckConfigRow, DeckRow, FieldRow, NotetypeRow, Refused, TemplateRow};
use crate::collection::{Collection, Range, untranslatable};
use crate::error::{Error, Result};
use crate::messages::Source;
use crate::messages::changes;
use crate::messages::changes::ChangeSink;
use crate::os::clock;
use crate::sync::rows::int;
use crate::sync::start::spooling;
use crate::text::tag;

/// Sends renamed objects before the objects that now have their old names. In the other order the device would find the
/// name taken and rename the second object.
const RENAMED_FIRST: &str = "ORDER BY name LIKE '%+' DESC, length(name) DESC, id";

impl Collection {
    /// Writes the changes that the client has not seen, and the config if `with_config` (the server's is newer). Must
    /// run before the client's own changes are applied.
    pub fn write_changes(&self, unseen: Range, with_config: bool, out: &mut impl Write) -> Result<()> {
        let mut objects = ObjectWriter::list(out);
        objects.raw("{\"models\":[")?;
        self.write_notetypes(unseen, &mut objects)?;
        objects.raw("],\"decks\":[[")?;
        self.write_decks(unseen, &mut objects)?;
        objects.raw("],[")?;
        self.write_deck_configs(unseen, &mut objects)?;
        objects.raw("]],\"tags\":[")?;
        self.write_tags(unseen, &mut objects)?;
        objects.raw("]")?;
        if with_config {
            objects.raw(",\"conf\":{")?;
            self.write_config(&mut objects)?;
            let created: i64 = self.db.query_row("SELECT crt FROM col", [], |row| row.get(0))?;
            objects.raw(&format!("}},\"crt\":{created}"))?;
        }
        objects.raw("}")
    }

    pub(crate) fn write_notetypes(&self, unseen: Range, out: &mut ObjectWriter<impl Write>) -> Result<()> {
        let mut children = NotetypeChildren::new(&self.db)?;
        let mut select = self.db.prepare(
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
        let mut select = self.db.prepare(
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
        let mut select = self.db.prepare(
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
        let mut select = self.db.prepare("SELECT tag, usn FROM tags WHERE usn BETWEEN ?1 AND ?2")?;
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
        let mut select = self.db.prepare("SELECT KEY, val FROM config")?;
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

    /// Applies the body of `applyChanges`.
    pub fn apply_changes<'b>(
        &self,
        body: impl Into<Source<'b>>,
        server_usn: i32,
        max_object_bytes: u64,
    ) -> Result<()> {
        changes::read(body, max_object_bytes, &mut Merge { db: &self.db, server_usn })
    }

    /// Sets the modified stamp of the objects that `free_name` renamed in this session.
    pub(crate) fn stamp_renamed(&self, server_usn: i32) -> Result<()> {
        for named in [Named::Decks, Named::Notetypes] {
            let stamp = format!("UPDATE {} SET mtime_secs = ?1 WHERE usn = ?2", named.table());
            self.db.execute(&stamp, params![clock::now_secs(), server_usn + 1])?;
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
    fields: Statement<'c>,
    templates: Statement<'c>,
}

impl<'c> NotetypeChildren<'c> {
    fn new(db: &'c Connection) -> Result<NotetypeChildren<'c>> {
        Ok(NotetypeChildren {
            fields: db.prepare("SELECT name, config FROM fields WHERE ntid = ?1 ORDER BY ord")?,
            templates: db.prepare(
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

/// The two tables in which each name must be unique.
#[derive(Clone, Copy)]
enum Named {
    Decks,
    Notetypes,
}

impl Named {
    fn table(self) -> &'static str {
        match self {
            Named::Decks => "decks",
            Named::Notetypes => "notetypes",
        }
    }
}

/// Merges a client's objects into the collection, one after another.
struct Merge<'c> {
    db: &'c Connection,
    server_usn: i32,
}

impl Merge<'_> {
    /// Whether an incoming object replaces the stored one: if it is newer or as old, as on the official server.
    fn replaces_ours(&self, table: &'static str, id: i64, modified: i64) -> Result<bool> {
        let ours: Option<i64> = self
            .db
            .query_row(&format!("SELECT mtime_secs FROM {table} WHERE id = ?1"), [id], |row| row.get(0))
            .optional()?;
        Ok(ours.is_none_or(|ours| ours <= modified))
    }

    /// Frees a name for an incoming object: the stored object of another id that has this name gets `+` appended until
    /// its name is unique.
    ///
    /// The official server renames the incoming object instead. The client does the same with what the server sends, so
    /// each side would keep its own object under the name for ever (seen with 26.9.3). Here both sides rename the same
    /// object. It gets the usn of the next session, so that this client receives it in the next sync. Its modified
    /// stamp is set at `finish`, after the client has stamped its own copy: until then this request may still contain a
    /// newer version of the object, as when two names are swapped.
    fn free_name(&self, named: Named, id: i64, name: &str) -> Result<()> {
        let table = named.table();
        let holder: Option<(i64, String)> = self
            .db
            .query_row(
                &format!("SELECT id, name FROM {table} WHERE name = ?1 AND id != ?2"),
                params![name, id],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let Some((holder, mut new_name)) = holder else { return Ok(()) };
        let mut taken = self.db.prepare(&format!("SELECT 1 FROM {table} WHERE name = ?1"))?;
        while taken.exists([&new_name])? {
            new_name.push('+');
        }
        let rename = format!("UPDATE {table} SET name = ?1, usn = ?2 WHERE id = ?3");
        self.db.execute(&rename, params![new_name, self.server_usn + 1, holder])?;
        Ok(())
    }

    fn check_same_shape(&self, notetype: &NotetypeRow) -> Result<()> {
        let known = self.db.query_row("SELECT 1 FROM notetypes WHERE id = ?1", [notetype.id], |_| Ok(()));
        if known.optional()?.is_none() {
            return Ok(());
        }
        let count = |table: &str| -> Result<usize> {
            let sql = format!("SELECT count(*) FROM {table} WHERE ntid = ?1");
            Ok(self
                .db
                .query_row(&sql, [notetype.id], |row| row.get::<_, i64>(0))
                .map(|count| count as usize)?)
        };
        if count("fields")? == notetype.fields.len() && count("templates")? == notetype.templates.len() {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "notetype {} has another number of fields or templates here: a full sync is needed",
            notetype.id
        )))
    }

    /// The name, with its parent spelled as the nearest existing parent tag.
    fn under_existing_parent(&self, name: String) -> Result<String> {
        let mut parent = name.as_str();
        while let Some((above, _)) = parent.rsplit_once("::") {
            if let Some(spelling) = self.existing_tag(above)? {
                return Ok(format!("{spelling}{}", &name[above.len()..]));
            }
            parent = above;
        }
        Ok(name)
    }

    fn existing_tag(&self, name: &str) -> Result<Option<String>> {
        Ok(self.db.query_row("SELECT tag FROM tags WHERE tag = ?1", [name], |row| row.get(0)).optional()?)
    }
}

/// Writes a notetype in place of the one with its id.
pub(crate) fn put_notetype(db: &Connection, row: &NotetypeRow) -> Result<()> {
    db.execute(
        "INSERT INTO notetypes (id, name, mtime_secs, usn, config) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, mtime_secs = excluded.mtime_secs,
           usn = excluded.usn, config = excluded.config",
        params![row.id, row.name, row.mtime_secs, row.usn, row.config],
    )?;
    db.execute("DELETE FROM fields WHERE ntid = ?1", [row.id])?;
    db.execute("DELETE FROM templates WHERE ntid = ?1", [row.id])?;
    let mut put = db.prepare("INSERT INTO fields (ntid, ord, name, config) VALUES (?1, ?2, ?3, ?4)")?;
    for (ord, field) in row.fields.iter().enumerate() {
        put.execute(params![row.id, ord as i64, field.name, field.config])?;
    }
    let mut put = db.prepare(
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
    db.execute(
        "INSERT INTO decks (id, name, mtime_secs, usn, common, kind) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, mtime_secs = excluded.mtime_secs,
           usn = excluded.usn, common = excluded.common, kind = excluded.kind",
        params![row.id, row.name, row.mtime_secs, row.usn, row.common, row.kind],
    )?;
    Ok(())
}

/// Writes deck options in place of those with their id.
pub(crate) fn put_deck_config(db: &Connection, row: &DeckConfigRow) -> Result<()> {
    db.execute(
        "INSERT INTO deck_config (id, name, mtime_secs, usn, config) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, mtime_secs = excluded.mtime_secs,
           usn = excluded.usn, config = excluded.config",
        params![row.id, row.name, row.mtime_secs, row.usn, row.config],
    )?;
    Ok(())
}

impl ChangeSink for Merge<'_> {
    fn notetype(&mut self, json: &str) -> Result<()> {
        let mut row = NotetypeRow::from_json(json).map_err(untranslatable)?;
        check_id("notetype", row.id)?;
        if !self.replaces_ours("notetypes", row.id, row.mtime_secs)? {
            return Ok(());
        }
        self.check_same_shape(&row)?;
        self.free_name(Named::Notetypes, row.id, &row.name)?;
        row.usn = self.server_usn;
        put_notetype(self.db, &row).map_err(clash)
    }

    fn deck(&mut self, json: &str) -> Result<()> {
        let mut row = DeckRow::from_json(json).map_err(untranslatable)?;
        check_id("deck", row.id)?;
        if !self.replaces_ours("decks", row.id, row.mtime_secs)? {
            return Ok(());
        }
        self.free_name(Named::Decks, row.id, &row.name)?;
        row.usn = self.server_usn;
        put_deck(self.db, &row)
    }

    fn deck_config(&mut self, json: &str) -> Result<()> {
        let mut row = DeckConfigRow::from_json(json).map_err(untranslatable)?;
        check_id("deck options", row.id)?;
        if !self.replaces_ours("deck_config", row.id, row.mtime_secs)? {
            return Ok(());
        }
        row.usn = self.server_usn;
        put_deck_config(self.db, &row)
    }

    fn tag(&mut self, name: &str) -> Result<()> {
        let name = tag::normalize_name(name);
        if self.existing_tag(&name)?.is_some() {
            return Ok(());
        }
        let name = self.under_existing_parent(name)?;
        self.db.execute(
            "INSERT OR IGNORE INTO tags (tag, usn, collapsed) VALUES (?1, ?2, TRUE)",
            params![name, self.server_usn],
        )?;
        Ok(())
    }

    fn replace_config(&mut self) -> Result<()> {
        self.db.execute("DELETE FROM config", [])?;
        Ok(())
    }

    fn config_entry(&mut self, key: &str, json: &str) -> Result<()> {
        self.db.execute(
            "INSERT OR REPLACE INTO config (KEY, usn, mtime_secs, val) VALUES (?1, ?2, ?3, ?4)",
            params![key, self.server_usn, clock::now_secs(), json.as_bytes()],
        )?;
        Ok(())
    }

    fn created(&mut self, stamp: i64) -> Result<()> {
        self.db.execute("UPDATE col SET crt = ?1", [stamp])?;
        Ok(())
    }
}

fn check_id(what: &str, id: i64) -> Result<()> {
    match id {
        0 => Err(Error::Refused(format!("{what} with id 0"))),
        _ => Ok(()),
    }
}

/// Turns a constraint violation into a client error: two fields or two templates of the notetype have the same name.
fn clash(err: Error) -> Error {
    match err {
        Error::Db(rusqlite::Error::SqliteFailure(code, text))
            if code.code == rusqlite::ErrorCode::ConstraintViolation =>
        {
            Error::Refused(format!("names clash inside a notetype: {}", text.unwrap_or_default()))
        }
        other => other,
    }
}
