//! One user's `collection.anki2`, schema 18 (collection-format.md).
//!
//! A `Collection` is an open file. Here: opening it (`mod.rs`), creating an empty one (`new_collection`), reading and
//! writing its objects (`objects`), how many rows it has (`row_totals`), `schema` with upgrade and downgrade, `full` (upload, download, replace, backups,
//! restore), `blobs` (protobuf <-> JSON). Not here: the steps of a sync that merges (`sync`), users, HTTP. Imports
//! `messages`, `files`, `text`, `os`.
//!
//! Journal: a sync writes to a WAL, because a commit then waits for one fsync, and each changed page is written once
//! before the reply. Nothing is checkpointed while a device may wait: `sync::session` does that some seconds after the last
//! sync, and at the stop. On a disk without shared memory for the WAL's index, a sync uses a rollback journal. In both
//! modes a commit is on disk when it returns.
//!
//! While a sync is open, this process must open the file through SQLite only. Closing any other descriptor of the file
//! would drop all POSIX locks of the process, and another program could then take the journal for that of a crash.

pub mod blobs;
pub mod full;
pub mod new_collection;
pub(crate) mod objects;
pub mod row_totals;
pub mod schema;

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row};

use crate::collection::blobs::Refused;
use crate::error::{Error, Result};
use crate::files;
use crate::files::sqlite_files::{has_rollback_journal, has_side_files, immutable_uri};
use crate::text::unicase;

pub use crate::files::data_folder::COLLECTION_FILE as FILE_NAME;

/// The schema version that the server stores and sends.
pub const SCHEMA_VERSION: i64 = 18;

/// Page cache of a connection that writes, in KiB. One MiB holds the upper levels of the indexes of a 300 MB
/// collection, so that inserting 10 000 notes rewrites few pages.
const CACHE_KIB: i64 = 1024;

/// Page cache of a connection that reads from end to end, in KiB. It is small because no page is read twice.
pub(crate) const SCAN_CACHE_KIB: i64 = 256;

/// How long the server waits for a lock. Only another program can hold it, such as the owner's SQLite tool.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a command waits for a lock of a running server: enough for a commit, not for a sync.
pub const COMMAND_LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// Added to each row limit for what SQLite counts besides texts and blobs. Also the lowest limit that it works with.
const ROW_OVERHEAD_BYTES: u64 = 64 * 1024;

/// Statements that a connection keeps prepared: those of a sync.
const CACHED_STATEMENTS: usize = 64;

/// An open collection file.
pub struct Collection {
    pub(crate) db: Connection,
    totals: row_totals::KnownTotals,
}

/// How a commit survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// Changed pages go to a log beside the file.
    Wal,
    /// Changed pages go into the file, and their old contents to a journal beside it.
    Rollback,
}

impl Journal {
    /// The better one that works in this folder.
    pub fn of_disk(dir: &Path) -> Journal {
        if files::has_shared_memory(dir) { Journal::Wal } else { Journal::Rollback }
    }
}

/// The stamps that decide which kind of sync is needed (sync-protocol.md 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// `col.mod`, ms.
    pub modified: i64,
    /// `col.scm`, ms.
    pub schema: i64,
    /// `col.usn`.
    pub usn: i32,
}

/// What the reply to `meta` says about a collection.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Modified, schema and usn.
    pub stamps: Stamps,
    /// Whether the collection has no cards.
    pub is_empty: bool,
    /// Whether the config names the v2 scheduler, which clients before protocol 9 would damage.
    pub needs_v2_scheduler: bool,
    /// Whether the config has the new timezone key, which clients before protocol 10 would ignore.
    pub needs_timezones: bool,
}

/// The usns of the rows that a client has not seen, both ends included.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The first unseen usn.
    pub from: i32,
    /// The last unseen usn.
    pub to: i32,
}

impl Range {
    /// Everything from the client's usn on; -1 means "only what is pending" (collection-format.md 12.2).
    pub fn unseen_by(client_usn: i32) -> Range {
        Range { from: client_usn, to: if client_usn == -1 { -1 } else { i32::MAX } }
    }
}

impl Collection {
    /// Opens for a sync session. Closing the connection leaves a WAL as it is.
    pub fn open(path: &Path, journal: Journal) -> Result<Collection> {
        let collection = Collection::connect(path, CACHE_KIB)?;
        collection.disable_checkpoint_on_close()?;
        // An acknowledged sync must survive a power cut. EXTRA is FULL, and also syncs the folder after a rollback
        // journal was deleted from it. The WAL must not get into the file while a download reads that.
        collection.db.execute_batch(&format!(
            "PRAGMA synchronous = {}; PRAGMA wal_autocheckpoint = 0",
            files::synchronous()
        ))?;
        let mode = match journal {
            Journal::Wal => "PRAGMA journal_mode = WAL",
            // To leave WAL mode, SQLite needs the WAL's index. With an exclusive lock it keeps that index in its own
            // memory.
            Journal::Rollback => {
                "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = DELETE; PRAGMA locking_mode = NORMAL"
            }
        };
        match collection.db.execute_batch(mode).map_err(Error::from) {
            // Another connection reads the file, so this sync uses the current journal mode.
            Err(Error::Busy(_)) => {}
            set => set?,
        }
        collection.db.set_prepared_statement_cache_capacity(CACHED_STATEMENTS);
        collection.check_schema()?;
        Ok(collection)
    }

    /// Opens a file that nobody else has open, to change it in place.
    pub(crate) fn open_alone(path: &Path) -> Result<Collection> {
        Collection::open(path, Journal::Rollback)
    }

    /// Checkpoints the WAL into the file, unless another program reads an older state, and closes. Call only while no
    /// snapshot of this process is open: the file would change under it.
    pub fn close_with_checkpoint(self) -> Result<()> {
        self.checkpoint()?;
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        Ok(self.db.close().map_err(|(_, err)| err)?)
    }

    fn checkpoint(&self) -> Result<()> {
        Ok(self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
    }

    /// Changes to a rollback journal, unless somebody else has the file open. Call without a transaction.
    pub fn use_rollback_journal(&self) -> Result<()> {
        match self.db.execute_batch("PRAGMA journal_mode = DELETE").map_err(Error::from) {
            Err(Error::Busy(_)) => Ok(()),
            set => set,
        }
    }

    /// The journal in use.
    pub fn journal(&self) -> Result<Journal> {
        let mode: String = self.db.query_row_cached("PRAGMA journal_mode", [], |row| row.get(0))?;
        Ok(if mode == "wal" { Journal::Wal } else { Journal::Rollback })
    }

    /// A number that changes whenever another connection has committed.
    pub fn data_version(&self) -> Result<i64> {
        Ok(self.db.query_row_cached("PRAGMA data_version", [], |row| row.get(0))?)
    }

    /// Closing this connection will not checkpoint the WAL.
    fn disable_checkpoint_on_close(&self) -> Result<()> {
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(())
    }

    /// Brings the collection into one file: checkpoints a WAL, unless another program reads an older state, and rolls
    /// back what was not committed. Call only while no connection of this process is open. Errors are logged, not
    /// returned: the next operation would hit the same error, unless it replaces the file.
    pub fn recover_journal(path: &Path) {
        if has_side_files(path)
            && path.exists()
            && let Err(err) = Collection::try_recover_journal(path)
        {
            log::warn!("{}: checkpoint or rollback failed, keeping the journal files: {err}", path.display());
        }
    }

    fn try_recover_journal(path: &Path) -> Result<()> {
        let collection = Collection::connect(path, SCAN_CACHE_KIB)?;
        collection.db.execute_batch(&format!(
            "PRAGMA synchronous = {}; PRAGMA schema_version",
            files::synchronous()
        ))?;
        collection.checkpoint()?;
        if has_rollback_journal(path) {
            // SQLite ignores a journal that a power cut left empty. Changing the journal mode deletes it.
            collection.db.execute_batch("PRAGMA journal_mode = PERSIST; PRAGMA journal_mode = DELETE")?;
        }
        Ok(())
    }

    /// Opens the last committed state for reading. Call only while no sync is open.
    pub fn open_to_read(path: &Path) -> Result<Collection> {
        let collection = Collection::connect_to_read(path)?;
        collection.check_schema()?;
        Ok(collection)
    }

    pub(crate) fn connect_to_read(path: &Path) -> Result<Collection> {
        if !has_side_files(path) {
            return Collection::connect_immutable(path);
        }
        // There is the journal of a crash, or the WAL of a sync beside a download. Only a normal open reads them.
        let collection = Collection::connect(path, SCAN_CACHE_KIB)?;
        collection.disable_checkpoint_on_close()?;
        Ok(collection)
    }

    /// Opens the last committed state for a short read while a server in another process may write. `Busy` if that
    /// server has written uncommitted pages to the file.
    pub fn open_beside_server(path: &Path) -> Result<Collection> {
        let collection = Collection::connect_waiting(path, SCAN_CACHE_KIB, COMMAND_LOCK_TIMEOUT)?;
        collection.db.execute_batch("BEGIN")?;
        collection.check_schema()?;
        Ok(collection)
    }

    /// The first damage that SQLite finds, or none. `deep` also looks up each row in each index, which takes minutes on a
    /// board.
    pub fn damage(&self, deep: bool) -> Result<Option<String>> {
        let check = if deep { "PRAGMA integrity_check(1)" } else { "PRAGMA quick_check(1)" };
        let found: String = self.db.query_row(check, [], |row| row.get(0))?;
        Ok((found != "ok").then_some(found))
    }

    pub(crate) fn connect(path: &Path, cache_kib: i64) -> Result<Collection> {
        Collection::connect_waiting(path, cache_kib, LOCK_TIMEOUT)
    }

    fn connect_waiting(path: &Path, cache_kib: i64, lock_timeout: Duration) -> Result<Collection> {
        files::refuse_link(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Collection::prepare(Connection::open_with_flags(path, flags)?, cache_kib, lock_timeout)
    }

    /// Opens a file that nobody writes to. Nothing is written to the SD card, not even the side files of a WAL reader.
    pub(crate) fn connect_immutable(path: &Path) -> Result<Collection> {
        files::refuse_link(path)?;
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(immutable_uri(path), flags)
            .map_err(|err| Error::Broken(format!("opening {}: {err}", path.display())))?;
        Collection::prepare(db, SCAN_CACHE_KIB, LOCK_TIMEOUT)
    }

    /// Applies the settings that all connections share.
    pub(crate) fn prepare(db: Connection, cache_kib: i64, lock_timeout: Duration) -> Result<Collection> {
        db.create_collation("unicase", unicase::compare)?;
        // The file came from a client: no trigger or function in it may run.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        db.busy_timeout(lock_timeout)?;
        // Sorting goes to a file, to save memory.
        let pragmas =
            format!("PRAGMA temp_store = FILE; PRAGMA cache_size = -{cache_kib}; PRAGMA foreign_keys = OFF");
        db.execute_batch(&pragmas)?;
        Ok(Collection { db, totals: row_totals::KnownTotals::default() })
    }

    /// Limits the rows that are read or written to the longest row that a client may send.
    pub fn limit_rows(&self, max_row_bytes: u64) -> Result<()> {
        // A note stores its sort field twice: in `flds` and in `sfld`.
        self.limit_values(max_row_bytes.saturating_mul(2))
    }

    /// Limits the values that are read and the rows that are written to `max_bytes`.
    pub(crate) fn limit_values(&self, max_bytes: u64) -> Result<()> {
        let max = i32::try_from(max_bytes.saturating_add(ROW_OVERHEAD_BYTES)).unwrap_or(i32::MAX);
        self.db.set_limit(Limit::SQLITE_LIMIT_LENGTH, max)?;
        Ok(())
    }

    pub(crate) fn check_schema(&self) -> Result<()> {
        match self.db.query_row_cached("SELECT ver FROM col", [], |row| row.get::<_, i64>(0))? {
            SCHEMA_VERSION => Ok(()),
            old if schema::upgrade::is_old(old) => Err(Error::OldSchema(old)),
            other => Err(Error::Broken(format!(
                "the collection has schema {other}; ankipi keeps schema {SCHEMA_VERSION}"
            ))),
        }
    }

    /// Reads the stamps of the collection.
    pub fn stamps(&self) -> Result<Stamps> {
        let read =
            |row: &Row<'_>| Ok(Stamps { modified: row.get(0)?, schema: row.get(1)?, usn: row.get(2)? });
        Ok(self.db.query_row_cached("SELECT mod, scm, usn FROM col", [], read)?)
    }

    /// The number of notes and of cards.
    pub fn counts(&self) -> Result<(u64, u64)> {
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64));
        Ok(self.db.query_row("SELECT (SELECT count() FROM notes), (SELECT count() FROM cards)", [], read)?)
    }

    /// What the reply to `meta` says (collection-format.md 12.1).
    pub fn meta(&self) -> Result<Meta> {
        Ok(Meta {
            stamps: self.stamps()?,
            is_empty: self
                .db
                .query_row_cached("SELECT 1 FROM cards LIMIT 1", [], |_| Ok(()))
                .optional()?
                .is_none(),
            needs_v2_scheduler: self.config("schedVer")? == Some(2),
            needs_timezones: self
                .config::<serde_json::Value>("creationOffset")?
                .is_some_and(|value| !value.is_null()),
        })
    }

    /// A config value; none if the key is missing or its value has another type.
    pub(crate) fn config<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let value: Option<Option<T>> = self
            .db
            .query_row_cached("SELECT val FROM config WHERE KEY = ?1", [key], |row| {
                Ok(row.get_ref(0)?.as_bytes().ok().and_then(|json| serde_json::from_slice(json).ok()))
            })
            .optional()?;
        Ok(value.flatten())
    }

    /// Begins the transaction of a sync session.
    pub fn begin(&self) -> Result<()> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        self.forget_totals_of_others()
    }

    /// Changes the size of the page cache.
    pub fn set_page_cache(&self, kib: u32) -> Result<()> {
        Ok(self.db.execute_batch(&format!("PRAGMA cache_size = -{kib}"))?)
    }

    /// Frees what SQLite can read or prepare again: unchanged pages, and statements.
    pub fn release_caches(&self) {
        self.db.flush_prepared_statement_cache();
        if let Err(err) = self.db.release_memory() {
            log::debug!("keeping pages in memory: {err}");
        }
    }

    /// The size of the database with what the open transaction has added, in bytes.
    pub fn bytes(&self) -> Result<u64> {
        let pragma = |name| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let bytes = pragma("page_count")?.saturating_mul(pragma("page_size")?);
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    /// Commits the transaction. It is on disk when this returns.
    pub fn commit(&self) -> Result<()> {
        Ok(self.db.execute_batch("COMMIT")?)
    }

    /// Rolls the transaction back.
    pub fn roll_back(&self) -> Result<()> {
        self.forget_totals();
        Ok(self.db.execute_batch("ROLLBACK")?)
    }
}

/// Statements that stay prepared between requests.
pub(crate) trait CachedStatements {
    /// As `execute`.
    fn execute_cached(&self, sql: &str, params: impl Params) -> rusqlite::Result<usize>;
    /// As `query_row`.
    fn query_row_cached<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T>;
}

impl CachedStatements for Connection {
    fn execute_cached(&self, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
        self.prepare_cached(sql)?.execute(params)
    }

    fn query_row_cached<T>(
        &self,
        sql: &str,
        params: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.prepare_cached(sql)?.query_row(params, read)
    }
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

/// The error for a failed write to the spool in which a reply is built: a fault of the server, not of the client.
pub(crate) fn spooling(err: std::io::Error) -> Error {
    Error::Io("spooling", "a reply".into(), err)
}

/// The error for an object that cannot be translated. The reason names the object.
pub(crate) fn untranslatable(Refused(reason): Refused) -> Error {
    Error::Refused(reason)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::collection::full::download::Snapshot;

    fn config_keys(path: &Path, prefix: &str) -> i64 {
        let open = Collection::open_to_read(path).unwrap();
        open.db
            .query_row("SELECT count() FROM config WHERE key LIKE ?1 || '%'", [prefix], |row| row.get(0))
            .unwrap()
    }

    /// Adds a key with a value larger than the page cache, so that SQLite writes pages before the commit.
    fn change(collection: &Collection, key: &str) {
        collection.begin().unwrap();
        let row = rusqlite::params![key, vec![b' '; 4 << 20]];
        collection.db.execute("INSERT INTO config VALUES (?1, 0, 0, ?2)", row).unwrap();
    }

    #[test]
    fn a_sync_leaves_the_file_alone_until_its_wal_is_folded() {
        let dir = tempfile::tempdir().unwrap();
        crate::collection::new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let side_file = |suffix: &str| dir.path().join(format!("{FILE_NAME}{suffix}")).exists();

        let collection = Collection::open(&path, Journal::Wal).unwrap();
        let before = fs::read(&path).unwrap();
        change(&collection, "test 1");
        assert!(side_file("-wal") && !side_file("-journal"));
        // A command beside the server need not wait.
        assert_eq!(Collection::open_beside_server(&path).unwrap().config::<i64>("test 1").unwrap(), None);
        collection.commit().unwrap();
        let snapshot = Snapshot::open_beside_syncs(&path, COMMAND_LOCK_TIMEOUT).unwrap();
        change(&collection, "test 2");
        collection.commit().unwrap();
        assert!(fs::read(&path).unwrap() == before);
        let copied = dir.path().join("copied");
        snapshot.copy_to(&mut fs::File::create(&copied).unwrap(), &copied).unwrap();
        drop(snapshot);
        // Closing alone changes nothing.
        drop(collection);
        assert!(side_file("-wal") && fs::read(&path).unwrap() == before);
        Collection::open(&path, Journal::Wal).unwrap().close_with_checkpoint().unwrap();
        assert!(!has_side_files(&path) && !side_file("-shm") && fs::metadata(&path).unwrap().len() > 8 << 20);
        assert_eq!((config_keys(&copied, "test"), config_keys(&path, "test")), (1, 2));
    }

    #[test]
    fn a_disk_without_shared_memory_gets_a_rollback_journal() {
        let dir = tempfile::tempdir().unwrap();
        crate::collection::new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        // As another disk or server leaves it: in WAL mode, and with something in the WAL.
        let collection = Collection::open(&path, Journal::Wal).unwrap();
        change(&collection, "test 1");
        collection.commit().unwrap();
        drop(collection);
        let collection = Collection::open(&path, Journal::Rollback).unwrap();
        change(&collection, "test 2");
        assert!(
            dir.path().join(format!("{FILE_NAME}-journal")).exists()
                && !dir.path().join(format!("{FILE_NAME}-shm")).exists()
        );
        assert!(matches!(Collection::open_beside_server(&path), Err(Error::Busy(_))));
        assert!(matches!(Snapshot::open_beside_syncs(&path, COMMAND_LOCK_TIMEOUT), Err(Error::Busy(_))));
        collection.commit().unwrap();
        drop(collection);
        assert!(!has_side_files(&path));
        assert_eq!(config_keys(&path, "test"), 2);
    }
}
