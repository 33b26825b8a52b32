//! The index of a user's media files: `media.db` in the official schema 4 (sync-protocol.md 9), so that ankipi and the
//! official server can replace each other. Version 3 is upgraded on opening.
//!
//! Rows are never removed. Size 0 marks a deleted file; its checksum stays. `meta` holds the last usn and the totals.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use crate::error::{Error, Result};
use crate::files;
use crate::files::sqlite_files::{has_side_files, immutable_uri};
use crate::media::name::MediaName;
use crate::media::{Sha1Sum, Totals};
use crate::os::clock;

/// The name of the index in a user's folder, as on the official server.
pub const FILE_NAME: &str = "media.db";

/// The supported schema version.
const SCHEMA_VERSION: i64 = 4;

/// Rows in one page of `mediaChanges`.
const CHANGES_PAGE: u32 = 1000;

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
const UPGRADE_FILL: &str = "\
INSERT INTO media SELECT fname, csum, size, usn, CAST(strftime('%s', 'now') AS int) FROM ankipi_media;
UPDATE meta SET last_usn = max((SELECT coalesce(max(usn), 0) FROM ankipi_meta),
    (SELECT coalesce(max(usn), 0) FROM media)),
  total_bytes = (SELECT coalesce(sum(size), 0) FROM media),
  total_nonempty_files = (SELECT count() FROM media WHERE size > 0);
DROP TABLE ankipi_media;
DROP TABLE ankipi_meta;";

/// An open index.
pub struct MediaDb {
    pub(super) db: Connection,
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
        let db = MediaDb::prepare(db)?;
        // A commit is durable when it returns, and costs one fsync with a WAL. The index of a WAL needs shared memory. Where
        // there is none, an index that is in WAL mode can only be read by whoever has it alone.
        let journal = if files::has_shared_memory(dir) {
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL".to_owned()
        } else {
            format!(
                "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = DELETE; PRAGMA locking_mode = NORMAL;
                 PRAGMA synchronous = {}",
                files::synchronous()
            )
        };
        db.db.execute_batch(&journal)?;
        db.upgrade()?;
        Ok(db)
    }

    /// Opens for reading. Writes only to recover a WAL or to upgrade the schema. A missing index is read as empty.
    pub fn open_to_read(dir: &Path) -> Result<MediaDb> {
        let path = dir.join(FILE_NAME);
        files::refuse_link(&path)?;
        if !path.exists() {
            let db = MediaDb { db: Connection::open_in_memory()? };
            db.upgrade()?;
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
        let pragmas =
            format!("PRAGMA mmap_size = 0; PRAGMA temp_store = FILE; PRAGMA cache_size = -{CACHE_KIB}");
        db.execute_batch(&pragmas)?;
        Ok(MediaDb { db })
    }

    fn version(&self) -> Result<i64> {
        Ok(self.db.query_row("PRAGMA user_version", [], |row| row.get(0))?)
    }

    fn upgrade(&self) -> Result<()> {
        let steps = match self.version()? {
            SCHEMA_VERSION => return Ok(()),
            0 => [SCHEMA, "", ""],
            3 => [UPGRADE_FROM_3, SCHEMA, UPGRADE_FILL],
            other => {
                return Err(Error::Broken(format!(
                    "{FILE_NAME} has schema {other}; ankipi keeps schema {SCHEMA_VERSION}"
                )));
            }
        };
        let transaction = self.db.unchecked_transaction()?;
        steps.iter().try_for_each(|step| transaction.execute_batch(step))?;
        Ok(transaction.commit()?)
    }

    /// The last usn and the totals.
    pub fn totals(&self) -> Result<Totals> {
        let read =
            |row: &Row<'_>| Ok(Totals { last_usn: row.get(0)?, bytes: row.get(1)?, files: row.get(2)? });
        Ok(self.db.query_row("SELECT last_usn, total_bytes, total_nonempty_files FROM meta", [], read)?)
    }

    /// The record of a file, if there is one.
    pub fn record(&self, name: &MediaName) -> Result<Option<Record>> {
        let read =
            |row: &Row<'_>| Ok(Record { sha1: row.get(0)?, bytes: row.get::<_, i64>(1)?.max(0) as u64 });
        let mut select = self.db.prepare("SELECT csum, size FROM media WHERE fname = ?1")?;
        Ok(select.query_row([name], read).optional()?)
    }

    /// Hands the next changes after `usn` to `each`, ordered by usn.
    pub fn changes_after(&self, usn: i64, mut each: impl FnMut(Change) -> Result<()>) -> Result<()> {
        let mut select = self.db.prepare(
            "SELECT fname, usn, CASE WHEN size > 0 THEN csum END FROM media WHERE usn > ?1 ORDER BY usn LIMIT ?2",
        )?;
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

    /// Begins the transaction that records changes of files.
    pub fn begin(&self) -> Result<Recording<'_>> {
        Ok(Recording { transaction: self.db.unchecked_transaction()?, totals: self.totals()?, db: self })
    }
}

/// A transaction; dropping it rolls back.
pub struct Recording<'d> {
    transaction: rusqlite::Transaction<'d>,
    db: &'d MediaDb,
    totals: Totals,
}

impl Recording<'_> {
    /// Records that a file has these contents, under the next usn.
    pub fn put(&mut self, name: &MediaName, record: &Record) -> Result<()> {
        self.change(name, record)
    }

    /// Records that a file is deleted, under the next usn. The checksum stays.
    pub fn delete(&mut self, name: &MediaName) -> Result<()> {
        match self.db.record(name)? {
            Some(record) => self.change(name, &Record { bytes: 0, ..record }),
            None => Ok(()),
        }
    }

    fn change(&mut self, name: &MediaName, new: &Record) -> Result<()> {
        if let Some(old) = self.db.record(name)?.filter(Record::is_live) {
            self.totals.bytes -= old.bytes as i64;
            self.totals.files -= 1;
        }
        if new.is_live() {
            self.totals.bytes += new.bytes as i64;
            self.totals.files += 1;
        }
        self.totals.last_usn += 1;
        let mut put = self.transaction.prepare(
            "INSERT OR REPLACE INTO media (fname, csum, size, usn, mtime) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        let now = clock::now_secs();
        put.execute(params![name, new.sha1, new.bytes as i64, self.totals.last_usn, now])?;
        Ok(())
    }

    /// Replaces the totals by these.
    pub fn recount(&mut self, counted: Totals) {
        self.totals = counted;
    }

    /// Writes the totals to the table, so that this connection reads them.
    pub fn store_totals(&self) -> Result<()> {
        let Totals { last_usn, bytes, files } = self.totals;
        self.transaction.execute(
            "UPDATE meta SET last_usn = ?1, total_bytes = ?2, total_nonempty_files = ?3",
            params![last_usn, bytes, files],
        )?;
        Ok(())
    }

    /// Commits, durably. Returns the last usn.
    pub fn commit(self) -> Result<i32> {
        self.store_totals()?;
        self.transaction.commit()?;
        Ok(self.totals.last_usn)
    }
}
