//! Deletions that a client sends (collection-format.md 12.3).

use rusqlite::{CachedStatement, params};

use crate::collection::Collection;
use crate::collection::row_totals::LargeTable;
use crate::error::Result;
use crate::messages::Source;
use crate::messages::graves;
use crate::messages::graves::GraveKind;

impl Collection {
    /// Applies the body of `applyGraves`; returns the number of deletions.
    pub fn apply_graves<'b>(&self, body: impl Into<Source<'b>>, server_usn: i32) -> Result<usize> {
        let mut deleter = Deleter::new(self, server_usn)?;
        graves::read_chunk(body, |kind, id| deleter.delete_row(kind, id))?;
        Ok(deleter.deleted)
    }

    /// Applies the graves that an old client sends inside `start`.
    pub fn apply_graves_in_start<'b>(&self, body: impl Into<Source<'b>>, server_usn: i32) -> Result<usize> {
        let mut deleter = Deleter::new(self, server_usn)?;
        graves::read_start(body, |kind, id| deleter.delete_row(kind, id))?;
        Ok(deleter.deleted)
    }
}

struct Deleter<'c> {
    collection: &'c Collection,
    delete: [CachedStatement<'c>; 3],
    grave: CachedStatement<'c>,
    server_usn: i32,
    deleted: usize,
}

impl<'c> Deleter<'c> {
    fn new(collection: &'c Collection, server_usn: i32) -> Result<Deleter<'c>> {
        let db = &collection.db;
        Ok(Deleter {
            collection,
            delete: [
                db.prepare_cached("DELETE FROM cards WHERE id = ?1")?,
                db.prepare_cached("DELETE FROM notes WHERE id = ?1")?,
                db.prepare_cached("DELETE FROM decks WHERE id = ?1")?,
            ],
            // An existing grave keeps its usn, unless its object had come back: then the devices that got it back must
            // hear of this deletion, too.
            grave: db.prepare_cached(
                "INSERT INTO graves (oid, type, usn) VALUES (?1, ?2, ?3)
                 ON CONFLICT (oid, type) DO UPDATE SET usn = excluded.usn WHERE ?4",
            )?,
            server_usn,
            deleted: 0,
        })
    }

    /// Deletes one row and records a grave. A note's cards and a deck's children stay: clients list those themselves.
    /// Unknown ids get a grave too, because other devices may still have them.
    fn delete_row(&mut self, kind: GraveKind, id: i64) -> Result<()> {
        let was_there = self.delete[kind as usize].execute([id])? > 0;
        if was_there {
            match kind {
                GraveKind::Card => self.collection.note_rows(LargeTable::Cards, -1),
                GraveKind::Note => self.collection.note_rows(LargeTable::Notes, -1),
                GraveKind::Deck => {}
            }
        }
        self.grave.execute(params![id, kind as i64, self.server_usn, was_there])?;
        self.deleted += 1;
        Ok(())
    }
}
