//! Sends cards, notes and reviews in chunks (collection-format.md 12.5).
//!
//! The other direction: `merge_rows`.

use crate::collection::{Collection, Range, int, spooling};
use crate::error::{Error, Result};
use crate::messages::chunk;
use crate::messages::chunk::{CARD_INTS, Card, Revlog};
use crate::sync::row_counts::RowCounts;
use rusqlite::types::ValueRef;
use rusqlite::{Row, params};
use std::io::Write;

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
        let mut select = self.db.prepare_cached(&table.select())?;
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
