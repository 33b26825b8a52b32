//! Deletions that a client sends (collection-format.md 12.3).

use rusqlite::{Statement, params};

use crate::collection::Collection;
use crate::error::Result;
use crate::messages::Source;
use crate::messages::graves;
use crate::messages::graves::GraveKind;

impl Collection {
    /// Applies the body of `applyGraves`; returns how many.
    pub fn apply_graves<'b>(&self, body: impl Into<Source<'b>>, server_usn: i32) -> Result<usize> {
        let mut undertaker = Undertaker::new(self, server_usn)?;
        graves::read_chunk(body, |kind, id| undertaker.bury(kind, id))?;
        Ok(undertaker.buried)
    }

    /// Applies the graves that an old client sends inside `start`.
    pub fn apply_graves_in_start<'b>(&self, body: impl Into<Source<'b>>, server_usn: i32) -> Result<usize> {
        let mut undertaker = Undertaker::new(self, server_usn)?;
        graves::read_start(body, |kind, id| undertaker.bury(kind, id))?;
        Ok(undertaker.buried)
    }
}

struct Undertaker<'c> {
    delete: [Statement<'c>; 3],
    grave: Statement<'c>,
    server_usn: i32,
    buried: usize,
}

impl<'c> Undertaker<'c> {
    fn new(collection: &'c Collection, server_usn: i32) -> Result<Undertaker<'c>> {
        let db = &collection.db;
        Ok(Undertaker {
            delete: [
                db.prepare("DELETE FROM cards WHERE id = ?1")?,
                db.prepare("DELETE FROM notes WHERE id = ?1")?,
                db.prepare("DELETE FROM decks WHERE id = ?1")?,
            ],
            // An existing grave keeps its usn.
            grave: db.prepare("INSERT OR IGNORE INTO graves (oid, type, usn) VALUES (?1, ?2, ?3)")?,
            server_usn,
            buried: 0,
        })
    }

    /// Deletes this row only: clients list a note's cards and a deck's children themselves. Unknown ids get a grave
    /// too, for the devices that may still have them.
    fn bury(&mut self, kind: GraveKind, id: i64) -> Result<()> {
        self.delete[kind as usize].execute([id])?;
        self.grave.execute(params![id, kind as i64, self.server_usn])?;
        self.buried += 1;
        Ok(())
    }
}
