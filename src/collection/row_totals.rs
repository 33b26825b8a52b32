//! How many cards, notes and reviews a collection has, remembered from sync to sync. SQLite counts by reading a whole
//! index, so that a sync of one review would take the longer, the larger the collection is.
//!
//! What is remembered is the count of an earlier sync and each row that a sync has added or deleted since. It is trusted
//! only while nobody else can have changed the file:
//! - While the connection is open, SQLite's data version tells of commits of others. It is looked at in the transaction.
//! - While the file is closed, its times tell. They are taken under an exclusive lock, long enough after the last write
//!   that a later one gets another time, and are compared in the next transaction.

use std::cell::Cell;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::collection::{CachedStatements, Collection, LOCK_TIMEOUT};
use crate::error::Result;
use crate::files::sqlite_files::{FINE_STEP, FileTimes, Remembered};

/// The tables with many rows.
#[derive(Clone, Copy, Debug)]
pub enum LargeTable {
    /// `cards`
    Cards,
    /// `notes`
    Notes,
    /// `revlog`
    Revlog,
}

/// The number of rows of each large table, in the order of `LargeTable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTotals([i64; 3]);

impl RowTotals {
    /// The number of rows of a table.
    pub fn of(&self, table: LargeTable) -> u32 {
        u32::try_from(self.0[table as usize]).unwrap_or_default()
    }
}

/// What a connection knows of the totals.
#[derive(Default)]
pub(super) struct KnownTotals(Cell<Option<Known>>);

#[derive(Clone, Copy)]
struct Known {
    totals: RowTotals,
    /// SQLite's number of the last commit of another connection.
    data_version: i64,
}

impl Collection {
    /// The number of rows of each large table. Counts them if that is not known. Call it in a write transaction.
    pub fn row_totals(&self) -> Result<RowTotals> {
        if let Some(known) = self.totals.0.get() {
            return Ok(known.totals);
        }
        let count =
            |table| self.db.query_row_cached(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0));
        let totals = RowTotals([count("cards")?, count("notes")?, count("revlog")?]);
        self.totals.0.set(Some(Known { totals, data_version: self.data_version()? }));
        Ok(totals)
    }

    /// Notes that the open transaction has added so many rows, or deleted if the number is negative.
    pub(crate) fn note_rows(&self, table: LargeTable, added: i64) {
        if let Some(mut known) = self.totals.0.get() {
            known.totals.0[table as usize] += added;
            self.totals.0.set(Some(known));
        }
    }

    /// Forgets the totals, as after a rollback.
    pub(super) fn forget_totals(&self) {
        self.totals.0.set(None);
    }

    /// Forgets the totals if another connection has committed since they were right. Call it in a write transaction.
    pub(super) fn forget_totals_of_others(&self) -> Result<()> {
        if let Some(known) = self.totals.0.get()
            && known.data_version != self.data_version()?
        {
            self.forget_totals();
        }
        Ok(())
    }

    /// Takes over the totals that were remembered while the file was closed, if it is still in the same state. Call it in a
    /// write transaction that has written nothing.
    pub fn take_over_totals(&self, remembered: &Remembered<RowTotals>, path: &Path) -> Result<()> {
        if let Some(totals) = remembered.of_locked(path) {
            self.totals.0.set(Some(Known { totals: *totals, data_version: self.data_version()? }));
        }
        Ok(())
    }

    /// As `close_with_checkpoint`, and returns the totals if they are known and nobody else had the file open. Takes some
    /// 50 ms, in which other programs cannot read the file.
    pub fn close_with_totals(self, path: &Path) -> Result<Option<Remembered<RowTotals>>> {
        self.checkpoint()?;
        self.db.busy_timeout(Duration::ZERO)?;
        // With this mode, the lock of the transaction is exclusive, and is kept until the connection is closed.
        let locked = self.db.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE");
        let mut settled = None;
        if locked.is_ok() {
            self.forget_totals_of_others()?;
            self.commit()?;
            // A change after the lock is released then gets another time than the last one of ours.
            thread::sleep(2 * FINE_STEP);
            settled = self.totals.0.get().map(|known| known.totals).zip(FileTimes::of(path));
        }
        self.db.busy_timeout(LOCK_TIMEOUT)?;
        self.close_with_checkpoint()?;
        Ok(settled.and_then(|(totals, times)| Remembered::since(path, times, totals)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::{FILE_NAME, Journal, new_collection};
    use rusqlite::Connection;

    const ADD_REVIEW: &str =
        "INSERT INTO revlog VALUES ((SELECT count(*) FROM revlog), 1, 1, 1, 1, 1, 1, 1, 1)";

    fn open(path: &Path) -> Collection {
        Collection::open(path, Journal::Wal).unwrap()
    }

    /// A collection of no reviews that counted wrong, and what is remembered of it after it was closed.
    fn remembered() -> (tempfile::TempDir, std::path::PathBuf, Remembered<RowTotals>) {
        let dir = tempfile::tempdir().unwrap();
        new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let collection = open(&path);
        collection.begin().unwrap();
        collection.row_totals().unwrap();
        collection.db.execute_batch("UPDATE col SET mod = mod + 1").unwrap();
        collection.note_rows(LargeTable::Revlog, 7);
        collection.commit().unwrap();
        let remembered = collection.close_with_totals(&path).unwrap().expect("nobody else had it open");
        (dir, path, remembered)
    }

    /// The reviews that the next sync counts or remembers.
    fn reviews(path: &Path, remembered: &Remembered<RowTotals>) -> u32 {
        let collection = open(path);
        collection.begin().unwrap();
        collection.take_over_totals(remembered, path).unwrap();
        let found = collection.row_totals().unwrap().of(LargeTable::Revlog);
        collection.roll_back().unwrap();
        collection.close_with_checkpoint().unwrap();
        found
    }

    #[test]
    fn totals_are_remembered_while_the_file_is_closed() {
        let (_dir, path, remembered) = remembered();
        assert_eq!(reviews(&path, &remembered), 7, "counted again");
        assert_eq!(reviews(&path, &remembered), 7, "a sync that changes nothing changes no times");
    }

    #[test]
    fn whatever_another_program_changes_in_a_closed_file_is_counted() {
        for is_folded in [true, false] {
            let (_dir, path, remembered) = remembered();
            let other = Connection::open(&path).unwrap();
            other.execute_batch(ADD_REVIEW).unwrap();
            if is_folded {
                drop(other);
            } else {
                // Its WAL stays.
                std::mem::forget(other);
            }
            assert_eq!(reviews(&path, &remembered), 1, "folded: {is_folded}");
        }
        let (_dir, path, remembered) = remembered();
        let copy = path.with_extension("copy");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::rename(copy, &path).unwrap();
        assert_eq!(reviews(&path, &remembered), 0, "another file");
    }

    #[test]
    fn what_another_program_changes_beside_an_open_connection_is_counted() {
        let (_dir, path, _) = remembered();
        let collection = open(&path);
        let count = || {
            collection.begin().unwrap();
            let found = collection.row_totals().unwrap().of(LargeTable::Revlog);
            collection.db.execute_batch("UPDATE col SET mod = mod + 1").unwrap();
            collection.note_rows(LargeTable::Revlog, 7);
            collection.commit().unwrap();
            found
        };
        assert_eq!([count(), count()], [0, 7]);
        let other = Connection::open(&path).unwrap();
        other.execute_batch(ADD_REVIEW).unwrap();
        assert_eq!([count(), count()], [1, 8]);
        // It has the file open.
        assert!(collection.close_with_totals(&path).unwrap().is_none());
    }

    #[test]
    fn rows_of_a_rolled_back_sync_do_not_count() {
        let (_dir, path, _) = remembered();
        let collection = open(&path);
        collection.begin().unwrap();
        collection.row_totals().unwrap();
        collection.note_rows(LargeTable::Revlog, 7);
        collection.roll_back().unwrap();
        collection.begin().unwrap();
        assert_eq!(collection.row_totals().unwrap().of(LargeTable::Revlog), 0);
    }
}
