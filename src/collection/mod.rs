//! One user's `collection.anki2`, schema 18 (collection-format.md).
//!
//! A `Collection` is an open file. Here: opening it (`mod.rs`), reading and writing its objects (`objects`), `schema` with
//! upgrade and downgrade, `full` (upload, download, replace, backups, restore), `blobs` (protobuf <-> JSON). Not here: the
//! steps of a sync that merges (`sync`), users, HTTP. Imports `messages`, `files`, `text`, `os`.
//!
//! Journal: a sync normally uses a rollback journal, so that new rows are written once, into the file itself. While a
//! download reads the file, a sync writes to a WAL instead; the WAL is checkpointed when the last download has ended.
//! In both modes a commit is on disk when it returns.
//!
//! While a sync is open, this process must open the file through SQLite only. Closing any other descriptor of the file
//! would drop all POSIX locks of the process, and another program could then take the journal for that of a crash.

pub mod blobs;
pub mod full;
pub(crate) mod objects;
pub mod schema;

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use crate::collection::blobs::Refused;
use crate::error::{Error, Result};
use crate::files;
use crate::files::sqlite_files::{has_rollback_journal, has_side_files, immutable_uri};
use crate::text::unicase;

pub use full::upload::upgraded_copy;

/// The name of the collection in a user's folder, as on the official server.
pub const FILE_NAME: &str = "collection.anki2";

/// The schema version that the server stores and sends.
pub const SCHEMA_VERSION: i64 = 18;

/// Page cache of a connection that writes, in KiB. One MiB holds the upper levels of the indexes of a 300 MB
/// collection, so that inserting 10 000 notes rewrites few pages.
const CACHE_KIB: i64 = 1024;

/// Page cache of a connection that reads from end to end, in KiB. It is small because no page is read twice.
pub(crate) const SCAN_CACHE_KIB: i64 = 256;

/// How long the server waits for a lock. Only another program can hold it, such as the owner's SQLite tool.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long a command waits for a lock of a running server: enough for a commit, not for a sync.
pub const SHORT_PATIENCE: Duration = Duration::from_millis(200);

/// Added to each row limit for what SQLite counts besides texts and blobs. Also the lowest limit that it works with.
const ROW_OVERHEAD_BYTES: u64 = 64 * 1024;

/// An open collection file.
pub struct Collection {
    pub(crate) db: Connection,
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
    /// Opens for a sync session.
    pub fn open(path: &Path) -> Result<Collection> {
        let collection = Collection::connect(path, CACHE_KIB)?;
        // An acknowledged sync must survive a power cut. EXTRA is FULL, and also syncs the folder after the rollback
        // journal was deleted from it.
        collection.db.execute_batch(&format!("PRAGMA synchronous = {}", files::synchronous()))?;
        match collection.db.execute_batch("PRAGMA journal_mode = DELETE").map_err(Error::from) {
            // A download reads the file: the sync stays in WAL mode.
            Err(Error::Busy(_)) => {}
            set => set?,
        }
        collection.check_schema()?;
        Ok(collection)
    }

    /// Closing this connection will not checkpoint the WAL.
    fn disable_checkpoint_on_close(&self) -> Result<()> {
        self.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(())
    }

    /// Brings the collection into one file: checkpoints a WAL, unless another program reads an older state, and rolls
    /// back what was not committed. Call only while no connection of this process is open. Errors are logged, not
    /// returned: the next operation would hit the same error, unless it replaces the file.
    pub fn fold(path: &Path) {
        if has_side_files(path)
            && path.exists()
            && let Err(err) = Collection::fold_side_files(path)
        {
            log::warn!("{}: checkpoint or rollback failed, keeping the journal files: {err}", path.display());
        }
    }

    fn fold_side_files(path: &Path) -> Result<()> {
        let collection = Collection::connect(path, SCAN_CACHE_KIB)?;
        collection.db.execute_batch(&format!(
            "PRAGMA synchronous = {}; PRAGMA schema_version",
            files::synchronous()
        ))?;
        collection.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
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
        let collection = Collection::connect_waiting(path, SCAN_CACHE_KIB, SHORT_PATIENCE)?;
        collection.db.execute_batch("BEGIN")?;
        collection.check_schema()?;
        Ok(collection)
    }

    /// The first damage that SQLite's `quick_check` finds, or none.
    pub fn damage(&self) -> Result<Option<String>> {
        let found: String = self.db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        Ok((found != "ok").then_some(found))
    }

    pub(crate) fn connect(path: &Path, cache_kib: i64) -> Result<Collection> {
        Collection::connect_waiting(path, cache_kib, PATIENCE)
    }

    fn connect_waiting(path: &Path, cache_kib: i64, patience: Duration) -> Result<Collection> {
        files::refuse_link(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Collection::prepare(Connection::open_with_flags(path, flags)?, cache_kib, patience)
    }

    /// Opens a file that nobody writes to. Nothing is written to the SD card, not even the side files of a WAL reader.
    pub(crate) fn connect_immutable(path: &Path) -> Result<Collection> {
        files::refuse_link(path)?;
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(immutable_uri(path), flags)
            .map_err(|err| Error::Broken(format!("opening {}: {err}", path.display())))?;
        Collection::prepare(db, SCAN_CACHE_KIB, PATIENCE)
    }

    /// Applies the settings that all connections share.
    pub(crate) fn prepare(db: Connection, cache_kib: i64, patience: Duration) -> Result<Collection> {
        db.create_collation("unicase", unicase::compare)?;
        // The file came from a client: no trigger or function in it may run.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        db.busy_timeout(patience)?;
        // Saves memory: mapped pages count as memory of the process, and sorting goes to a file.
        let pragmas = format!(
            "PRAGMA mmap_size = 0; PRAGMA temp_store = FILE; PRAGMA cache_size = -{cache_kib}; PRAGMA foreign_keys = OFF"
        );
        db.execute_batch(&pragmas)?;
        Ok(Collection { db })
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
        match self.db.query_row("SELECT ver FROM col", [], |row| row.get::<_, i64>(0))? {
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
        Ok(self.db.query_row("SELECT mod, scm, usn FROM col", [], read)?)
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
            is_empty: self.db.query_row("SELECT 1 FROM cards LIMIT 1", [], |_| Ok(())).optional()?.is_none(),
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
            .query_row("SELECT val FROM config WHERE KEY = ?1", [key], |row| {
                Ok(row.get_ref(0)?.as_bytes().ok().and_then(|json| serde_json::from_slice(json).ok()))
            })
            .optional()?;
        Ok(value.flatten())
    }

    /// Begins the transaction of a sync session.
    pub fn begin(&self) -> Result<()> {
        Ok(self.db.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// Commits the transaction. It is on disk when this returns.
    pub fn commit(&self) -> Result<()> {
        Ok(self.db.execute_batch("COMMIT")?)
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
    fn a_sync_writes_into_the_file_unless_somebody_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        crate::sync::new_collection::create(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        let side_file = |suffix: &str| dir.path().join(format!("{FILE_NAME}{suffix}")).exists();

        // Another server may leave the file in WAL mode.
        drop(Snapshot::open_beside_syncs(&path, SHORT_PATIENCE).unwrap());
        let collection = Collection::open(&path).unwrap();
        change(&collection, "test 1");
        assert!(side_file("-journal") && !side_file("-wal"));
        assert!(matches!(Collection::open_beside_server(&path), Err(Error::Busy(_))));
        assert!(matches!(Snapshot::open_beside_syncs(&path, SHORT_PATIENCE), Err(Error::Busy(_))));
        collection.commit().unwrap();
        drop(collection);
        assert!(!has_side_files(&path) && fs::metadata(&path).unwrap().len() > 4 << 20);
        assert_eq!(config_keys(&path, "test"), 1);

        let snapshot = Snapshot::open_beside_syncs(&path, SHORT_PATIENCE).unwrap();
        let collection = Collection::open(&path).unwrap();
        change(&collection, "test 2");
        assert!(side_file("-wal") && !side_file("-journal"));
        collection.commit().unwrap();
        drop(collection);
        let copied = dir.path().join("copied");
        snapshot.copy_to(&mut fs::File::create(&copied).unwrap(), &copied).unwrap();
        drop(snapshot);
        Collection::fold(&path);
        assert!(!has_side_files(&path));
        assert_eq!((config_keys(&copied, "test"), config_keys(&path, "test")), (1, 2));
    }
}
