//! Merges cards, notes and reviews from a client: decides which of two changed rows wins (collection-format.md 12.6).
//!
//! The other direction: `send_rows`.

use crate::collection::blobs;
use crate::collection::row_totals::LargeTable;
use crate::collection::{CachedStatements, Collection, int};
use crate::error::{Error, Result};
use crate::messages::Source;
use crate::messages::chunk;
use crate::messages::chunk::{CARD_INTS, Card, Note, Revlog, RowSink};
use crate::sync::row_counts::RowCounts;
use crate::text::counted::counted;
use crate::text::note;
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use std::collections::HashMap;

/// Cache of notetypes by id: the number of fields and the sort field, which each note needs. Kept for one session.
pub type NotetypeShapes = HashMap<i64, NotetypeShape>;

/// See `NotetypeShapes`.
#[derive(Clone, Copy)]
pub struct NotetypeShape {
    fields: usize,
    sort_field: u32,
}

impl Collection {
    /// Applies the body of `applyChunk`.
    pub fn apply_chunk<'b>(
        &self,
        body: impl Into<Source<'b>>,
        client_usn: i32,
        server_usn: i32,
        shapes: &mut NotetypeShapes,
        max_row_bytes: u64,
    ) -> Result<RowCounts> {
        let mut merge = Merge::new(self, client_usn, server_usn, shapes);
        chunk::read(body, max_row_bytes, &mut merge)?;
        Ok(merge.counts)
    }
}

/// Merges a client's rows. Every statement names its columns: add-ons add some to the tables.
///
/// New rows are inserted and known rows updated. `INSERT OR REPLACE` could do both, but SQLite copies every page that
/// such a statement changes to a file, in order to undo the statement.
struct Merge<'c, 's> {
    collection: &'c Collection,
    client_usn: i32,
    server_usn: i32,
    shapes: &'s mut NotetypeShapes,
    add_revlog: Lazy<'c>,
    our_card: Lazy<'c>,
    add_card: Lazy<'c>,
    update_card: Lazy<'c>,
    our_note: Lazy<'c>,
    add_note: Lazy<'c>,
    update_note: Lazy<'c>,
    counts: RowCounts,
}

/// A statement that is prepared on first use. Most chunks need few of them: their rows are of one table, all new or all
/// known.
struct Lazy<'c> {
    db: &'c Connection,
    sql: &'static str,
    statement: Option<CachedStatement<'c>>,
}

impl<'c> Lazy<'c> {
    fn get(&mut self) -> Result<&mut CachedStatement<'c>> {
        let statement = match self.statement.take() {
            Some(statement) => statement,
            None => self.db.prepare_cached(self.sql)?,
        };
        Ok(self.statement.insert(statement))
    }
}

impl<'c, 's> Merge<'c, 's> {
    fn new(
        collection: &'c Collection,
        client_usn: i32,
        server_usn: i32,
        shapes: &'s mut NotetypeShapes,
    ) -> Merge<'c, 's> {
        let lazy = |sql| Lazy { db: &collection.db, sql, statement: None };
        Merge {
            collection,
            client_usn,
            server_usn,
            shapes,
            add_revlog: lazy(
                "INSERT OR IGNORE INTO revlog (id, cid, usn, ease, ivl, lastIvl, factor, time, type)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            ),
            our_card: lazy("SELECT usn, mod FROM cards WHERE id = ?1"),
            add_card: lazy(
                "INSERT INTO cards (id, nid, did, ord, mod, usn, type, queue, due, ivl, factor, reps, lapses, left, odue,
                 odid, flags, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
            ),
            update_card: lazy(
                "UPDATE cards SET nid = ?2, did = ?3, ord = ?4, mod = ?5, usn = ?6, type = ?7, queue = ?8, due = ?9,
                 ivl = ?10, factor = ?11, reps = ?12, lapses = ?13, left = ?14, odue = ?15, odid = ?16, flags = ?17,
                 data = ?18 WHERE id = ?1",
            ),
            our_note: lazy("SELECT usn, mod FROM notes WHERE id = ?1"),
            add_note: lazy(
                "INSERT INTO notes (id, guid, mid, mod, usn, tags, flds, sfld, csum, flags, data)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, '')",
            ),
            update_note: lazy(
                "UPDATE notes SET guid = ?2, mid = ?3, mod = ?4, usn = ?5, tags = ?6, flds = ?7, sfld = ?8, csum = ?9,
                 flags = 0, data = '' WHERE id = ?1",
            ),
            counts: RowCounts::default(),
        }
    }

    fn shape(&mut self, notetype_id: i64) -> Result<NotetypeShape> {
        if let Some(shape) = self.shapes.get(&notetype_id) {
            return Ok(*shape);
        }
        let found: Option<(Vec<u8>, i64)> = self
            .collection
            .db
            .query_row_cached(
                "SELECT config, (SELECT count(*) FROM fields WHERE ntid = ?1) FROM notetypes WHERE id = ?1",
                [notetype_id],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let Some((config, fields)) = found else {
            return Err(Error::Refused(format!("a note of the unknown notetype {notetype_id}")));
        };
        let sort_field = blobs::notetype_sort_field(&config)
            .map_err(|err| Error::Refused(format!("notetype {notetype_id} cannot be read: {}", err.0)))?;
        let shape = NotetypeShape { fields: (fields as usize).max(1), sort_field };
        self.shapes.insert(notetype_id, shape);
        Ok(shape)
    }
}

/// How an incoming row compares with the stored row of the same id.
enum Incoming {
    /// There is no stored row: insert.
    New,
    /// It replaces the stored row: update.
    Replaces,
    /// The stored row stays.
    Outdated,
}

/// Compares an incoming row with the stored one. If the stored row did not change since the client's last sync, the
/// incoming row replaces it. Otherwise the newer row wins; with equal stamps the stored row stays.
fn incoming(ours: &mut CachedStatement<'_>, id: i64, modified: i64, client_usn: i32) -> Result<Incoming> {
    let ours = ours.query_row([id], |row| Ok((int(row, 0)?, int(row, 1)?))).optional()?;
    Ok(match ours {
        None => Incoming::New,
        Some((usn, ours_modified)) => {
            let changed_since = if client_usn == -1 { usn == -1 } else { usn >= client_usn.into() };
            if !changed_since || ours_modified < modified { Incoming::Replaces } else { Incoming::Outdated }
        }
    })
}

impl RowSink for Merge<'_, '_> {
    fn revlog(&mut self, row: &Revlog) -> Result<()> {
        let mut ints = row.ints;
        ints[Revlog::USN] = self.server_usn.into();
        let added = self.add_revlog.get()?.execute(rusqlite::params_from_iter(ints))?;
        self.collection.note_rows(LargeTable::Revlog, added as i64);
        self.counts.revlog += 1;
        Ok(())
    }

    fn card(&mut self, row: &Card) -> Result<()> {
        self.counts.cards += 1;
        let (id, modified) = (row.ints[Card::ID], row.ints[Card::MODIFIED]);
        let put = match incoming(self.our_card.get()?, id, modified, self.client_usn)? {
            Incoming::New => {
                self.collection.note_rows(LargeTable::Cards, 1);
                self.add_card.get()?
            }
            Incoming::Replaces => self.update_card.get()?,
            Incoming::Outdated => return Ok(()),
        };
        let mut ints = row.ints;
        ints[Card::USN] = self.server_usn.into();
        for (i, value) in ints.iter().enumerate() {
            put.raw_bind_parameter(i + 1, value)?;
        }
        put.raw_bind_parameter(CARD_INTS + 1, &row.data)?;
        put.raw_execute()?;
        Ok(())
    }

    fn note(&mut self, row: &Note) -> Result<()> {
        self.counts.notes += 1;
        let shape = self.shape(row.notetype_id)?;
        let prepared = note::prepare(&row.fields, shape.fields, shape.sort_field).map_err(|wrong| {
            Error::Refused(format!(
                "note {} has {}, its notetype {}",
                row.id,
                counted(wrong.found, "field"),
                wrong.expected
            ))
        })?;
        let put = match incoming(self.our_note.get()?, row.id, row.modified, self.client_usn)? {
            Incoming::New => {
                self.collection.note_rows(LargeTable::Notes, 1);
                self.add_note.get()?
            }
            Incoming::Replaces => self.update_note.get()?,
            Incoming::Outdated => return Ok(()),
        };
        put.execute(params![
            row.id,
            row.guid,
            row.notetype_id,
            row.modified,
            self.server_usn,
            note::normalize_tags(&row.tags),
            prepared.fields,
            prepared.sort_field,
            prepared.checksum,
        ])?;
        Ok(())
    }
}
