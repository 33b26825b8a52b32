//! The index of a user's media files: `media.db` in the official schema 4 (sync-protocol.md 9), so that ankipi and the
//! official server can replace each other. Version 3 is upgraded on opening.
//!
//! Size 0 marks a deleted file; its checksum stays. `meta` holds the last usn and the totals. Rows are removed only when
//! a file was lost or damaged (`lost_files`). A table of our own lists those files until a device has sent them again.
//! Another one lists files that the server may not open; their rows stay. A third one lists changes that are being put in
//! place.

use std::cell::Cell;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use crate::error::{Error, Result};
use crate::files;
use crate::files::sqlite_files::{has_side_files, immutable_uri};
use crate::media::name::MediaName;
use crate::media::name::folded;
use crate::media::{FOLDER, Sha1Sum, Totals};
use crate::os::clock;

pub use crate::files::data_folder::MEDIA_INDEX_FILE as FILE_NAME;

/// The supported schema version.
const SCHEMA_VERSION: i64 = 4;

/// Rows in one page of `mediaChanges`.
const CHANGES_PAGE: u32 = 1000;

/// Page size of a new index in bytes. A change of one file touches four pages, of which each is written whole: 4 KiB in
/// place of the 16 of SQLite's usual pages. The longest name still fits in a page of an index.
const PAGE_BYTES: u32 = 1024;

/// Page cache in KiB: the upper levels of the index.
const CACHE_KIB: i64 = 256;

const SCHEMA: &str = "\
CREATE TABLE media (
  fname text NOT NULL PRIMARY KEY,
  csum blob NOT NULL,
  -- if zero, file has been deleted
  size int NOT NULL,
  usn int NOT NULL,
  mtime int NOT NULL
);
CREATE INDEX ix_usn ON media (usn);
CREATE TABLE meta (
  last_usn int NOT NULL,
  total_bytes int NOT NULL,
  total_nonempty_files int NOT NULL
);
INSERT INTO meta VALUES (0, 0, 0);
PRAGMA user_version = 4;";

/// Version 3 holds the same data under other names. Its checksums may be text.
const UPGRADE_FROM_3: &str = "\
CREATE TABLE ankipi_media AS
  SELECT fname, CASE typeof(csum) WHEN 'text' THEN coalesce(unhex(csum), x'') ELSE csum END AS csum,
    CASE WHEN deleted THEN 0 ELSE sz END AS size, usn FROM media;
CREATE TABLE ankipi_meta AS SELECT usn FROM meta;
DROP TABLE media;
DROP TABLE meta;";

/// The second half of the upgrade, once the new tables exist. `{now}` stands for the seconds since 1970.
const UPGRADE_FILL: &str = "\
INSERT INTO media SELECT fname, csum, size, usn, {now} FROM ankipi_media;
UPDATE meta SET last_usn = max((SELECT coalesce(max(usn), 0) FROM ankipi_meta),
    (SELECT coalesce(max(usn), 0) FROM media)),
  total_bytes = (SELECT coalesce(sum(size), 0) FROM media),
  total_nonempty_files = (SELECT count() FROM media WHERE size > 0);
DROP TABLE ankipi_media;
DROP TABLE ankipi_meta;";

/// A new index in place of a lost one must use usns that no device knows, so it starts at the minutes since 1970. Then
/// all clients see a change, and compare counts. `{now}` as above.
const CONTINUE_AT_UNUSED_USN: &str = "\
UPDATE meta SET last_usn = max(0, {now} / 60);
INSERT INTO media SELECT 'ankipi:forgot', zeroblob(20), 0, last_usn, 0 FROM meta;";

/// What was forgotten and did not come back, for the owner to see. The official server leaves this table alone.
const FORGOTTEN: &str = "\
CREATE TABLE IF NOT EXISTS ankipi_forgotten (
  fname text NOT NULL PRIMARY KEY,
  csum blob NOT NULL,
  size int NOT NULL,
  why text NOT NULL,
  secs int NOT NULL
)";

/// Files that the server may not open because of their owner or mode. They are not listed to clients until it may.
const DENIED: &str = "CREATE TABLE IF NOT EXISTS ankipi_denied (fname text NOT NULL PRIMARY KEY)";

/// Changes whose files may not be in their place after a crash (`pending`). `staged` is the temporary file that becomes the
/// file; null for a deletion, and where the file was there already.
const PENDING: &str = "CREATE TABLE IF NOT EXISTS ankipi_pending (fname text NOT NULL, staged text)";

/// The name whose deletion makes clients compare counts. No client can have a file of this name, as all strip the colon.
const IMPOSSIBLE_NAME: &str = "ankipi:forgot";

/// Why records are forgotten of which the devices know newer ones.
const REASON_OLD_COPY: &str = "may be newer on a device than in this folder";

/// An open index.
pub struct MediaDb {
    pub(super) db: Connection,
    /// The value of `PRAGMA synchronous` with which a commit is durable.
    durable: &'static str,
    /// Its value now.
    synchronous: Cell<&'static str>,
}

/// The record of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// SHA-1 of the contents; for a deleted file, of its last contents.
    pub sha1: Sha1Sum,
    /// Length in bytes; 0 if the file was deleted.
    pub bytes: u64,
}

impl Record {
    /// Reads the columns `csum` and `size`, of which `csum` is at this index.
    fn of_row(row: &Row<'_>, csum: usize) -> rusqlite::Result<Record> {
        Ok(Record { sha1: row.get(csum)?, bytes: row.get::<_, i64>(csum + 1)?.max(0) as u64 })
    }

    /// Whether the file exists, according to the index.
    pub fn is_live(&self) -> bool {
        self.bytes > 0
    }
}

/// A row of `mediaChanges`.
pub struct Change {
    /// The file's name.
    pub name: String,
    /// The usn of its last change.
    pub usn: i32,
    /// SHA-1 of the contents; None if the file was deleted.
    pub sha1: Option<Sha1Sum>,
}

impl Totals {
    fn of_row(row: &Row<'_>) -> rusqlite::Result<Totals> {
        Ok(Totals { last_usn: row.get(0)?, bytes: row.get(1)?, files: row.get(2)? })
    }
}

impl MediaDb {
    /// Opens for writing, and creates or upgrades the tables.
    pub fn open(dir: &Path) -> Result<MediaDb> {
        files::refuse_link(&dir.join(FILE_NAME))?;
        let db = Connection::open_with_flags(
            dir.join(FILE_NAME),
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        let mut db = MediaDb::prepare(db)?;
        // With a WAL, a durable commit costs one fsync. A WAL needs shared memory. On a disk without it, a file in WAL mode
        // can be read only with an exclusive lock.
        let journal = if files::has_shared_memory(dir) {
            "PRAGMA journal_mode = WAL"
        } else {
            db.durable = files::synchronous();
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = DELETE; PRAGMA locking_mode = NORMAL"
        };
        db.db.execute_batch(journal)?;
        db.db.execute_batch(&format!("PRAGMA synchronous = {}", db.durable))?;
        db.synchronous.set(db.durable);
        db.upgrade(has_entries(&dir.join(FOLDER)))?;
        Ok(db)
    }

    /// Whether there is no index yet, which is an empty one.
    pub fn is_missing(dir: &Path) -> bool {
        fs::symlink_metadata(dir.join(FILE_NAME)).is_err_and(|err| err.kind() == ErrorKind::NotFound)
    }

    /// Opens for reading. Writes only to recover a WAL or to upgrade the schema. A missing index is read as empty.
    pub fn open_to_read(dir: &Path) -> Result<MediaDb> {
        let path = dir.join(FILE_NAME);
        files::refuse_link(&path)?;
        if MediaDb::is_missing(dir) {
            let db = MediaDb::of(Connection::open_in_memory()?);
            db.upgrade(false)?;
            return Ok(db);
        }
        if has_side_files(&path) {
            // A crash left a WAL behind. Opening for writing recovers it.
            return MediaDb::open(dir);
        }
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let db = MediaDb::prepare(Connection::open_with_flags(immutable_uri(&path), flags)?)?;
        match db.version()? {
            SCHEMA_VERSION => Ok(db),
            _ => MediaDb::open(dir),
        }
    }

    fn prepare(db: Connection) -> Result<MediaDb> {
        // The file may come from anywhere, so no code in it may run.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        // The owner may have the file open in another tool.
        db.busy_timeout(Duration::from_secs(5))?;
        // The page size has no effect on a file that has pages already.
        let pragmas = format!(
            "PRAGMA page_size = {PAGE_BYTES}; PRAGMA temp_store = FILE; \
             PRAGMA cache_size = -{CACHE_KIB}"
        );
        db.execute_batch(&pragmas)?;
        Ok(MediaDb::of(db))
    }

    fn of(db: Connection) -> MediaDb {
        MediaDb { db, durable: "FULL", synchronous: Cell::new("FULL") }
    }

    fn version(&self) -> Result<i64> {
        Ok(self.db.query_row("PRAGMA user_version", [], |row| row.get(0))?)
    }

    /// Brings an index to our schema. `is_lost` says that a new one takes the place of one that was lost.
    fn upgrade(&self, is_lost: bool) -> Result<()> {
        let steps = match self.version()? {
            SCHEMA_VERSION => return Ok(()),
            0 => [SCHEMA, if is_lost { CONTINUE_AT_UNUSED_USN } else { "" }, ""],
            3 => [UPGRADE_FROM_3, SCHEMA, UPGRADE_FILL],
            other => {
                return Err(Error::Broken(format!(
                    "{FILE_NAME} has schema {other}; ankipi keeps schema {SCHEMA_VERSION}"
                )));
            }
        };
        let transaction = self.db.unchecked_transaction()?;
        let now = clock::now_secs().to_string();
        steps.iter().try_for_each(|step| transaction.execute_batch(&step.replace("{now}", &now)))?;
        Ok(transaction.commit()?)
    }

    /// The last usn and the totals.
    pub fn totals(&self) -> Result<Totals> {
        let mut select =
            self.db.prepare_cached("SELECT last_usn, total_bytes, total_nonempty_files FROM meta")?;
        Ok(select.query_row([], Totals::of_row)?)
    }

    /// The record of a file, if there is one.
    pub fn record(&self, name: &MediaName) -> Result<Option<Record>> {
        let mut select = self.db.prepare_cached("SELECT csum, size FROM media WHERE fname = ?1")?;
        Ok(select.query_row([name], |row| Record::of_row(row, 0)).optional()?)
    }

    /// Hands the next changes after `usn` to `each`, ordered by usn.
    pub fn changes_after(&self, usn: i64, mut each: impl FnMut(Change) -> Result<()>) -> Result<()> {
        let not_denied = self.unless_denied()?;
        let mut select = self.db.prepare(&format!(
            "SELECT fname, usn, CASE WHEN size > 0 THEN csum END FROM media WHERE usn > ?1 {not_denied} ORDER BY usn
             LIMIT ?2"
        ))?;
        let mut rows = select.query(params![usn, CHANGES_PAGE])?;
        while let Some(row) = rows.next()? {
            each(Change { name: row.get(0)?, usn: row.get(1)?, sha1: row.get(2)? })?;
        }
        Ok(())
    }

    /// The totals as counted from the rows. The usn is at least as high as that of each row.
    pub fn counted_totals(&self) -> Result<Totals> {
        let count = "SELECT max(coalesce(max(usn), 0), (SELECT last_usn FROM meta)),
            coalesce(sum(size), 0), coalesce(sum(size > 0), 0) FROM media";
        Ok(self.db.query_row(count, [], Totals::of_row)?)
    }

    /// The next names of existing files after `last`, in order.
    pub fn live_names_after(&self, last: &str, limit: u32) -> Result<Vec<String>> {
        let mut select = self
            .db
            .prepare("SELECT fname FROM media WHERE fname > ?1 AND size > 0 ORDER BY fname LIMIT ?2")?;
        let names = select.query_map(params![last, limit], |row| row.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    /// What SQLite's check finds; None if the file is sound.
    pub fn damage(&self) -> Result<Option<String>> {
        let found: String = self.db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        Ok((found != "ok").then_some(found))
    }

    /// Whether a live record of another name is the same name to a file system that ignores case.
    pub fn has_twin(&self, name: &MediaName) -> Result<bool> {
        self.has_twin_that(name, |_| true)
    }

    /// The same, of twins that fulfil a condition.
    pub fn has_twin_that(&self, name: &MediaName, condition: impl Fn(&MediaName) -> bool) -> Result<bool> {
        let wanted = folded(name.as_str());
        let mut select = self.db.prepare("SELECT fname FROM media WHERE size > 0")?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            let other = row.get_ref(0)?.as_str().unwrap_or_default();
            if other != name.as_str()
                && folded(other) == wanted
                && MediaName::parse(other.to_owned()).is_ok_and(|other| condition(&other))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn has_denied(&self) -> Result<bool> {
        Ok(self.db.table_exists(None, "ankipi_denied")?)
    }

    /// The condition for rows whose files are not denied to the server.
    fn unless_denied(&self) -> Result<&'static str> {
        Ok(if self.has_denied()? { "AND fname NOT IN (SELECT fname FROM ankipi_denied)" } else { "" })
    }

    /// How many files the server may not open.
    pub fn count_denied(&self) -> Result<i64> {
        if !self.has_denied()? {
            return Ok(0);
        }
        Ok(self.db.query_row("SELECT count(*) FROM ankipi_denied", [], |row| row.get(0))?)
    }

    /// Names of files that the server may not open, at most so many.
    pub fn denied(&self, limit: u32) -> Result<Vec<String>> {
        if !self.has_denied()? {
            return Ok(Vec::new());
        }
        let mut select = self.db.prepare("SELECT fname FROM ankipi_denied ORDER BY fname LIMIT ?1")?;
        let names = select.query_map([limit], |row| row.get(0))?;
        Ok(names.collect::<rusqlite::Result<_>>()?)
    }

    fn has_forgotten(&self) -> Result<bool> {
        Ok(self.db.table_exists(None, "ankipi_forgotten")?)
    }

    /// How many files are awaited from the devices.
    pub fn count_forgotten(&self) -> Result<i64> {
        if !self.has_forgotten()? {
            return Ok(0);
        }
        Ok(self.db.query_row("SELECT count(*) FROM ankipi_forgotten", [], |row| row.get(0))?)
    }

    /// A line for each of the newest files that are awaited from the devices.
    pub fn forgotten(&self, limit: u32) -> Result<Vec<String>> {
        if !self.has_forgotten()? {
            return Ok(Vec::new());
        }
        let mut select = self
            .db
            .prepare("SELECT fname, why, secs FROM ankipi_forgotten ORDER BY secs DESC, fname LIMIT ?1")?;
        let line = |row: &Row<'_>| {
            let (name, why): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(format!("{name:?} {why}, noticed {}", clock::moment(row.get(2)?)))
        };
        let lines = select.query_map([limit], line)?.collect::<rusqlite::Result<_>>()?;
        Ok(lines)
    }

    /// The record of a file that is awaited from the devices, and whether it was forgotten because it was damaged.
    pub fn forgotten_record(&self, name: &MediaName) -> Result<Option<(Record, bool)>> {
        if !self.has_forgotten()? {
            return Ok(None);
        }
        let mut select = self.db.prepare("SELECT csum, size, why FROM ankipi_forgotten WHERE fname = ?1")?;
        let read = |row: &Row<'_>| Ok((Record::of_row(row, 0)?, row.get::<_, String>(2)? != REASON_OLD_COPY));
        Ok(select.query_row([name], read).optional()?)
    }

    /// Hands the records of existing files in the next page of changes after `usn` to `each`. Left out are names that no
    /// client can request, and files that are denied to the server.
    pub fn records_after(
        &self,
        usn: i64,
        mut each: impl FnMut(MediaName, Record) -> Result<()>,
    ) -> Result<()> {
        let not_denied = self.unless_denied()?;
        let mut select = self.db.prepare(&format!(
            "SELECT fname, csum, size FROM media WHERE usn > ?1 {not_denied} ORDER BY usn LIMIT ?2"
        ))?;
        let mut rows = select.query(params![usn, CHANGES_PAGE])?;
        while let Some(row) = rows.next()? {
            let record = Record::of_row(row, 1)?;
            if let (true, Ok(name)) = (record.is_live(), MediaName::parse(row.get(0)?)) {
                each(name, record)?;
            }
        }
        Ok(())
    }

    /// The list of changes that are being put in place: names, and temporary files.
    pub fn pending(&self) -> Result<Vec<(String, Option<String>)>> {
        if !self.has_pending()? {
            return Ok(Vec::new());
        }
        let mut select = self.db.prepare("SELECT fname, staged FROM ankipi_pending ORDER BY rowid")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The number of the last row of that list; 0 if there is none.
    pub fn last_pending(&self) -> Result<i64> {
        if !self.has_pending()? {
            return Ok(0);
        }
        let last = "SELECT coalesce(max(rowid), 0) FROM ankipi_pending";
        Ok(self.db.query_row(last, [], |row| row.get(0))?)
    }

    fn has_pending(&self) -> Result<bool> {
        Ok(self.db.table_exists(None, "ankipi_pending")?)
    }

    /// Begins the transaction that records changes of files.
    pub fn begin(&self) -> Result<Recording<'_>> {
        self.begin_with(self.durable)
    }

    /// As `begin`, on an index with a WAL. The commit is durable after the next flush of the whole file system: until then a
    /// power cut may undo it.
    pub fn begin_unsynced(&self) -> Result<Recording<'_>> {
        self.begin_with("NORMAL")
    }

    fn begin_with(&self, synchronous: &'static str) -> Result<Recording<'_>> {
        // Only when it changes: a statement costs more than the comparison.
        if self.synchronous.get() != synchronous {
            self.db.execute_batch(&format!("PRAGMA synchronous = {synchronous}"))?;
            self.synchronous.set(synchronous);
        }
        Ok(Recording {
            transaction: self.db.unchecked_transaction()?,
            totals: self.totals()?,
            has_forgotten: self.has_forgotten()?,
            has_denied: self.has_denied()?,
            forgets: false,
            db: self,
        })
    }
}

/// A transaction; dropping it rolls back.
pub struct Recording<'d> {
    transaction: rusqlite::Transaction<'d>,
    db: &'d MediaDb,
    totals: Totals,
    /// Whether the table of forgotten files exists.
    has_forgotten: bool,
    /// Whether the table of denied files exists.
    has_denied: bool,
    /// Whether this transaction forgets something.
    forgets: bool,
}

impl Recording<'_> {
    /// Records that a file has these contents, under the next usn.
    pub fn put(&mut self, name: &MediaName, record: &Record) -> Result<()> {
        self.stop_waiting_for(name)?;
        self.change(name, record)
    }

    /// Records that a file is deleted, under the next usn. The checksum stays.
    pub fn delete(&mut self, name: &MediaName) -> Result<()> {
        // Other devices must receive the deletion of a forgotten file, too, or they would send it again.
        let record = match self.db.record(name)? {
            None => self.db.forgotten_record(name)?.map(|(record, _)| record),
            record => record,
        };
        self.stop_waiting_for(name)?;
        match record {
            Some(record) => self.change(name, &Record { bytes: 0, ..record }),
            None => Ok(()),
        }
    }

    /// Notes that the server may not open the file of a live record. Returns whether that is new.
    pub fn deny(&mut self, name: &MediaName) -> Result<bool> {
        if !self.has_denied {
            self.transaction.execute_batch(DENIED)?;
            self.has_denied = true;
        }
        let note = "INSERT OR IGNORE INTO ankipi_denied VALUES (?1)";
        Ok(self.transaction.execute(note, [name])? > 0)
    }

    /// Removes the note of `deny`. Returns whether there was one.
    pub fn stop_denying(&mut self, name: &str) -> Result<bool> {
        if !self.has_denied {
            return Ok(false);
        }
        Ok(self.transaction.execute("DELETE FROM ankipi_denied WHERE fname = ?1", [name])? > 0)
    }

    fn change(&mut self, name: &MediaName, new: &Record) -> Result<()> {
        self.stop_denying(name.as_str())?;
        if let Some(old) = self.db.record(name)?.filter(Record::is_live) {
            self.totals.bytes -= old.bytes as i64;
            self.totals.files -= 1;
        }
        if new.is_live() {
            self.totals.bytes += new.bytes as i64;
            self.totals.files += 1;
        }
        self.totals.last_usn += 1;
        let mut put = self.transaction.prepare_cached(
            "INSERT OR REPLACE INTO media (fname, csum, size, usn, mtime) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let now = clock::now_secs();
        put.execute(params![name, new.sha1, new.bytes as i64, self.totals.last_usn, now])?;
        Ok(())
    }

    /// Removes a live record as if there had never been one, and notes why.
    pub fn forget(&mut self, name: &MediaName, why: &str) -> Result<()> {
        self.prepare_to_forget()?;
        self.stop_denying(name.as_str())?;
        if let Some(old) = self.db.record(name)?.filter(Record::is_live) {
            let note = "INSERT OR REPLACE INTO ankipi_forgotten VALUES (?1, ?2, ?3, ?4, ?5)";
            let values = params![name, old.sha1, old.bytes as i64, why, clock::now_secs()];
            self.transaction.execute(note, values)?;
            self.transaction.execute("DELETE FROM media WHERE fname = ?1", [name])?;
            self.totals.bytes -= old.bytes as i64;
            self.totals.files -= 1;
        }
        Ok(())
    }

    /// Removes all records, and goes on beyond the usn that a client knows. Returns how many files were listed.
    pub fn forget_all(&mut self, client_usn: i64) -> Result<i64> {
        self.prepare_to_forget()?;
        let note = "INSERT OR REPLACE INTO ankipi_forgotten SELECT fname, csum, size, ?1, ?2 FROM media WHERE size > 0";
        self.transaction.execute(note, params![REASON_OLD_COPY, clock::now_secs()])?;
        self.transaction.execute("DELETE FROM media", [])?;
        if self.has_denied {
            self.transaction.execute("DELETE FROM ankipi_denied", [])?;
        }
        let last_usn = i32::try_from(client_usn).unwrap_or(i32::MAX).max(self.totals.last_usn);
        let before = std::mem::replace(&mut self.totals, Totals { last_usn, bytes: 0, files: 0 });
        Ok(before.files)
    }

    fn prepare_to_forget(&mut self) -> Result<()> {
        if !self.forgets {
            self.transaction.execute_batch(FORGOTTEN)?;
            (self.forgets, self.has_forgotten) = (true, true);
        }
        Ok(())
    }

    fn stop_waiting_for(&self, name: &MediaName) -> Result<()> {
        if self.has_forgotten {
            self.transaction.execute("DELETE FROM ankipi_forgotten WHERE fname = ?1", [name])?;
        }
        Ok(())
    }

    /// Adds changes to the list of those that are being put in place. Removes rows up to number `done`. Returns the number of the
    /// last row.
    pub fn list_pending<'c>(
        &mut self,
        done: i64,
        changes: impl Iterator<Item = (&'c str, Option<&'c str>)>,
    ) -> Result<i64> {
        if !self.db.has_pending()? {
            self.transaction.execute_batch(PENDING)?;
        }
        if done > 0 {
            self.transaction
                .prepare_cached("DELETE FROM ankipi_pending WHERE rowid <= ?1")?
                .execute([done])?;
        }
        let mut insert = self.transaction.prepare_cached("INSERT INTO ankipi_pending VALUES (?1, ?2)")?;
        for (name, staged) in changes {
            insert.execute(params![name, staged])?;
        }
        Ok(self.transaction.last_insert_rowid())
    }

    /// Empties that list.
    pub fn clear_pending(&mut self) -> Result<()> {
        if self.db.has_pending()? {
            self.transaction.execute("DELETE FROM ankipi_pending", [])?;
        }
        Ok(())
    }

    /// Stops waiting for files that were forgotten before this moment, in seconds since 1970.
    pub fn stop_waiting_for_older_than(&mut self, secs: i64) -> Result<()> {
        if self.has_forgotten {
            self.transaction.execute("DELETE FROM ankipi_forgotten WHERE secs < ?1", [secs])?;
        }
        Ok(())
    }

    /// Makes every client compare its count of files with ours.
    fn make_clients_count(&mut self) -> Result<()> {
        self.totals.last_usn += 1;
        let put = "INSERT INTO media VALUES (?1, zeroblob(20), 0, ?2, ?3)
            ON CONFLICT (fname) DO UPDATE SET usn = excluded.usn, mtime = excluded.mtime WHERE size = 0";
        self.transaction.execute(put, params![IMPOSSIBLE_NAME, self.totals.last_usn, clock::now_secs()])?;
        Ok(())
    }

    /// The last usn so far.
    pub fn last_usn(&self) -> i32 {
        self.totals.last_usn
    }

    /// Replaces the totals by these.
    pub fn recount(&mut self, counted: Totals) {
        self.totals = counted;
    }

    /// Writes the totals to the table, so that this connection reads them.
    pub fn store_totals(&self) -> Result<()> {
        let Totals { last_usn, bytes, files } = self.totals;
        let mut update = self
            .transaction
            .prepare_cached("UPDATE meta SET last_usn = ?1, total_bytes = ?2, total_nonempty_files = ?3")?;
        update.execute(params![last_usn, bytes, files])?;
        Ok(())
    }

    /// Commits; durably, but for `begin_unsynced`. Returns the last usn.
    pub fn commit(mut self) -> Result<i32> {
        if self.forgets {
            self.make_clients_count()?;
        }
        self.store_totals()?;
        self.transaction.commit()?;
        Ok(self.totals.last_usn)
    }
}

/// Whether a folder holds anything.
fn has_entries(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
}
