//! Merges notetypes, decks, deck options, tags and config from a client: decides which of two changed objects wins
//! (collection-format.md 12.4).
//!
//! The other direction: `send_objects`.

use crate::collection::blobs::{DeckConfigRow, DeckRow, NotetypeRow};
use crate::collection::objects::{put_config_entry, put_deck, put_deck_config, put_notetype};
use crate::collection::{CachedStatements, Collection, untranslatable};
use crate::error::{Error, Result};
use crate::messages::Source;
use crate::messages::changes;
use crate::messages::changes::ChangeSink;
use crate::os::clock;
use crate::text::tag;
use rusqlite::{Connection, OptionalExtension, params};

impl Collection {
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
            self.db.execute_cached(&stamp, params![clock::now_secs(), server_usn + 1])?;
        }
        Ok(())
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
            .query_row_cached(&format!("SELECT mtime_secs FROM {table} WHERE id = ?1"), [id], |row| {
                row.get(0)
            })
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
            .query_row_cached(
                &format!("SELECT id, name FROM {table} WHERE name = ?1 AND id != ?2"),
                params![name, id],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let Some((holder, mut new_name)) = holder else { return Ok(()) };
        let mut taken = self.db.prepare_cached(&format!("SELECT 1 FROM {table} WHERE name = ?1"))?;
        while taken.exists([&new_name])? {
            new_name.push('+');
        }
        let rename = format!("UPDATE {table} SET name = ?1, usn = ?2 WHERE id = ?3");
        self.db.execute_cached(&rename, params![new_name, self.server_usn + 1, holder])?;
        Ok(())
    }

    fn check_same_shape(&self, notetype: &NotetypeRow) -> Result<()> {
        let known =
            self.db.query_row_cached("SELECT 1 FROM notetypes WHERE id = ?1", [notetype.id], |_| Ok(()));
        if known.optional()?.is_none() {
            return Ok(());
        }
        let count = |table: &str| -> Result<usize> {
            let sql = format!("SELECT count(*) FROM {table} WHERE ntid = ?1");
            Ok(self
                .db
                .query_row_cached(&sql, [notetype.id], |row| row.get::<_, i64>(0))
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
        Ok(self
            .db
            .query_row_cached("SELECT tag FROM tags WHERE tag = ?1", [name], |row| row.get(0))
            .optional()?)
    }
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
        self.db.execute_cached(
            "INSERT OR IGNORE INTO tags (tag, usn, collapsed) VALUES (?1, ?2, TRUE)",
            params![name, self.server_usn],
        )?;
        Ok(())
    }

    fn replace_config(&mut self) -> Result<()> {
        self.db.execute_cached("DELETE FROM config", [])?;
        Ok(())
    }

    fn config_entry(&mut self, key: &str, json: &str) -> Result<()> {
        put_config_entry(self.db, key, json, self.server_usn)
    }

    fn created(&mut self, stamp: i64) -> Result<()> {
        self.db.execute_cached("UPDATE col SET crt = ?1", [stamp])?;
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
