//! Cards, notes and reviews in chunks, sent and received (collection-format.md 12.5, 12.6).

use std::collections::HashMap;
use std::io::Write;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, Statement, params};

use crate::collection::blobs;
use crate::collection::{Collection, Range};
use crate::error::{Error, Result};
use crate::messages::Source;
use crate::messages::chunk;
use crate::messages::chunk::{CARD_INTS, Card, Note, Revlog, RowSink};
use crate::sync::start::spooling;
use crate::text::note;

/// Maximum rows of one chunk, as in clients and in the official server.
const CHUNK_ROWS: usize = 250;

/// A chunk ends early at this size, so that its spool stays in memory. Clients accept chunks of any size.
const CHUNK_BYTES: u64 = 384 * 1024;

/// Progress of the chunks of a session: the last row sent of each table, in (usn, id) order.
///
/// The official server keeps a list of all row ids, 1.6 MB for 200 000 reviews. The order of the usn index makes that
/// list unnecessary: only this session changes rows, and its client sends rows after it has received all.
#[derive(Default)]
pub struct ChunkCursor {
    position: [Option<(i64, i64)>; 3],
    finished: [bool; 3],
}

/// Cache of notetypes by id: the number of fields and the sort field, which each note needs. Kept for one session.
pub type NotetypeShapes = HashMap<i64, NotetypeShape>;

/// See `NotetypeShapes`.
#[derive(Clone, Copy)]
pub struct NotetypeShape {
    fields: usize,
    sort_field: u32,
}

/// Counts for the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowCounts {
    /// Reviews.
    pub revlog: usize,
    /// Cards.
    pub cards: usize,
    /// Notes.
    pub notes: usize,
}

impl std::fmt::Display for RowCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} notes, {} cards, {} reviews", self.notes, self.cards, self.revlog)
    }
}

impl RowCounts {
    fn total(self) -> usize {
        self.revlog + self.cards + self.notes
    }
}

/// A writer that counts its bytes.
pub trait CountedWrite: Write {
    /// Bytes written so far.
    fn written(&self) -> u64;
}

impl CountedWrite for crate::files::spool::Spool {
    fn written(&self) -> u64 {
        self.len()
    }
}

#[derive(Clone, Copy)]
enum Table {
    Revlog,
    Cards,
    Notes,
}

impl Table {
    const ALL: [Table; 3] = [Table::Revlog, Table::Cards, Table::Notes];

    fn key(self) -> &'static str {
        match self {
            Table::Revlog => "revlog",
            Table::Cards => "cards",
            Table::Notes => "notes",
        }
    }

    /// Column 0 must be the id, and column `USN` the usn. Walks the index on usn, whose entries end in the row id.
    fn select(self) -> String {
        let columns = match self {
            Table::Revlog => "id, cid, usn, ease, ivl, lastIvl, factor, time, type",
            Table::Cards => {
                "id, nid, did, ord, mod, usn, type, queue, due, ivl, factor, reps, lapses, left, odue, odid, flags, data"
            }
            Table::Notes => "id, guid, mid, mod, usn, tags, flds",
        };
        let table = self.key();
        // First the rest of one usn, then the later usns. With one condition for both, SQLite would scan the first usn
        // from its start for every chunk. The index is named because the statistics that clients leave in their uploads
        // would make SQLite scan the whole table.
        format!(
            "SELECT {columns} FROM {table} INDEXED BY ix_{table}_usn WHERE usn = ?1 AND id > ?3
             UNION ALL SELECT {columns} FROM {table} INDEXED BY ix_{table}_usn WHERE usn > ?1 AND usn <= ?2 ORDER BY usn, id"
        )
    }

    fn usn_column(self) -> usize {
        match self {
            Table::Revlog => Revlog::USN,
            Table::Cards => Card::USN,
            Table::Notes => 4,
        }
    }
}

impl Collection {
    /// Writes the next chunk of rows that the client has not seen.
    pub fn write_chunk(
        &self,
        unseen: Range,
        cursor: &mut ChunkCursor,
        out: &mut impl CountedWrite,
    ) -> Result<RowCounts> {
        let mut counts = RowCounts::default();
        out.write_all(b"{").map_err(spooling)?;
        for table in Table::ALL {
            if !cursor.finished[table as usize] && !is_full(counts, out) {
                self.write_rows(table, unseen, cursor, out, &mut counts)?;
            }
        }
        let done = cursor.finished.iter().all(|finished| *finished);
        write!(out, "\"done\":{done}}}").map_err(spooling)?;
        Ok(counts)
    }

    fn write_rows(
        &self,
        table: Table,
        unseen: Range,
        cursor: &mut ChunkCursor,
        out: &mut impl CountedWrite,
        counts: &mut RowCounts,
    ) -> Result<()> {
        let slot = table as usize;
        let (from_usn, after_id) = cursor.position[slot].unwrap_or((unseen.from.into(), i64::MIN));
        let mut select = self.db.prepare(&table.select())?;
        let mut rows = select.query(params![from_usn, unseen.to, after_id])?;
        let mut opening = format!("\"{}\":[", table.key());
        let separator = ",";
        loop {
            if is_full(*counts, out) {
                break;
            }
            let Some(row) = rows.next()? else {
                cursor.finished[slot] = true;
                break;
            };
            out.write_all(opening.as_bytes()).map_err(spooling)?;
            separator.clone_into(&mut opening);
            write_row(table, row, out)?;
            cursor.position[slot] = Some((int(row, table.usn_column())?, int(row, 0)?));
            match table {
                Table::Revlog => counts.revlog += 1,
                Table::Cards => counts.cards += 1,
                Table::Notes => counts.notes += 1,
            }
        }
        if opening == separator { out.write_all(b"],").map_err(spooling) } else { Ok(()) }
    }

    /// Applies the body of `applyChunk`.
    pub fn apply_chunk<'b>(
        &self,
        body: impl Into<Source<'b>>,
        client_usn: i32,
        server_usn: i32,
        shapes: &mut NotetypeShapes,
        max_row_bytes: u64,
    ) -> Result<RowCounts> {
        let mut merge = Merge::new(&self.db, client_usn, server_usn, shapes);
        chunk::read(body, max_row_bytes, &mut merge)?;
        Ok(merge.counts)
    }
}

fn is_full(counts: RowCounts, out: &impl CountedWrite) -> bool {
    counts.total() >= CHUNK_ROWS || out.written() >= CHUNK_BYTES
}

fn write_row(table: Table, row: &Row<'_>, out: &mut impl Write) -> Result<()> {
    match table {
        Table::Revlog => chunk::write_revlog(out, &Revlog { ints: Revlog::fit(ints(row)?) }),
        Table::Cards => chunk::write_card(out, &Card::fit(ints(row)?), card_data(row)),
        Table::Notes => chunk::write_note(
            out,
            [int(row, 0)?, int(row, 2)?, int(row, 3)?, int(row, 4)?],
            [text(row, 1)?, text(row, 5)?, text(row, 6)?],
        ),
    }
    .map_err(spooling)
}

/// An integer from a column that old clients may have filled with another type: REAL is truncated, other types are 0
/// (collection-format.md 15).
pub(crate) fn int(row: &Row<'_>, column: usize) -> rusqlite::Result<i64> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(value) => value,
        ValueRef::Real(value) => value as i64,
        _ => 0,
    })
}

fn ints<const N: usize>(row: &Row<'_>) -> Result<[i64; N]> {
    let mut ints = [0; N];
    for (column, value) in ints.iter_mut().enumerate() {
        *value = int(row, column)?;
    }
    Ok(ints)
}

fn text<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r str> {
    match row.get_ref(column)? {
        ValueRef::Text(text) => std::str::from_utf8(text).map_err(|_| {
            Error::Refused(format!("row {} holds text that is not UTF-8", int(row, 0).unwrap_or(0)))
        }),
        _ => Ok(""),
    }
}

/// The last column of cards, `data`; empty if it is not text (collection-format.md 15).
fn card_data<'r>(row: &'r Row<'_>) -> &'r str {
    text(row, CARD_INTS).unwrap_or_default()
}

/// Merges a client's rows.
///
/// New rows are inserted and known rows updated. `INSERT OR REPLACE` could do both, but SQLite copies every page that
/// such a statement changes to a file, in order to undo the statement.
struct Merge<'c, 's> {
    db: &'c Connection,
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
    statement: Option<Statement<'c>>,
}

impl<'c> Lazy<'c> {
    fn get(&mut self) -> Result<&mut Statement<'c>> {
        let statement = match self.statement.take() {
            Some(statement) => statement,
            None => self.db.prepare(self.sql)?,
        };
        Ok(self.statement.insert(statement))
    }
}

impl<'c, 's> Merge<'c, 's> {
    fn new(
        db: &'c Connection,
        client_usn: i32,
        server_usn: i32,
        shapes: &'s mut NotetypeShapes,
    ) -> Merge<'c, 's> {
        let lazy = |sql| Lazy { db, sql, statement: None };
        Merge {
            db,
            client_usn,
            server_usn,
            shapes,
            add_revlog: lazy("INSERT OR IGNORE INTO revlog VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"),
            our_card: lazy("SELECT usn, mod FROM cards WHERE id = ?1"),
            add_card: lazy(
                "INSERT INTO cards VALUES
                 (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
            ),
            update_card: lazy(
                "UPDATE cards SET nid = ?2, did = ?3, ord = ?4, mod = ?5, usn = ?6, type = ?7, queue = ?8, due = ?9,
                 ivl = ?10, factor = ?11, reps = ?12, lapses = ?13, left = ?14, odue = ?15, odid = ?16, flags = ?17,
                 data = ?18 WHERE id = ?1",
            ),
            our_note: lazy("SELECT usn, mod FROM notes WHERE id = ?1"),
            add_note: lazy("INSERT INTO notes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 0, '')"),
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
            .db
            .query_row(
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
fn incoming(ours: &mut Statement<'_>, id: i64, modified: i64, client_usn: i32) -> Result<Incoming> {
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
        self.add_revlog.get()?.execute(rusqlite::params_from_iter(ints))?;
        self.counts.revlog += 1;
        Ok(())
    }

    fn card(&mut self, row: &Card) -> Result<()> {
        self.counts.cards += 1;
        let (id, modified) = (row.ints[Card::ID], row.ints[Card::MODIFIED]);
        let put = match incoming(self.our_card.get()?, id, modified, self.client_usn)? {
            Incoming::New => self.add_card.get()?,
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
                "note {} has {} fields, its notetype {}",
                row.id, wrong.found, wrong.expected
            ))
        })?;
        let put = match incoming(self.our_note.get()?, row.id, row.modified, self.client_usn)? {
            Incoming::New => self.add_note.get()?,
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
