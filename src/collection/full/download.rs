//! Full download: the pages of one snapshot, read through SQL.
//!
//! A snapshot sees one committed state however long it lasts, and the sync of another device goes on beside it in a WAL.
//! `sqlite_dbpage` (a build option, see .cargo/config.toml) hands out that state page by page.
//!
//! A snapshot that nobody has begun to write beside leaves no trace on the disk: it takes no locks. Before somebody
//! does, a second one that makes the WAL and does take locks must be opened; `session` does so.

use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::collection::{Collection, SCAN_CACHE_KIB};
use crate::error::{Error, Result};

/// Where the header says how the file is journalled (two bytes).
pub(crate) const JOURNAL_BYTES: std::ops::Range<usize> = 18..20;

/// How long to leave others alone who have the file locked.
const RETRY: Duration = Duration::from_millis(20);

/// A collection at one moment.
pub struct Snapshot {
    collection: Collection,
    bytes: u64,
}

impl Snapshot {
    /// Opens a snapshot of the last committed state. While there is one, nothing may be written unless there is one
    /// beside syncs, too.
    pub fn open(path: &Path) -> Result<Snapshot> {
        let snapshot = Snapshot::open_any(path)?;
        snapshot.collection.check_schema()?;
        Ok(snapshot)
    }

    /// Opens a snapshot of a file that may be of an old schema.
    pub(crate) fn open_any(path: &Path) -> Result<Snapshot> {
        Snapshot::begin(Collection::connect_to_read(path)?)
    }

    /// Opens a snapshot which makes syncs write to a WAL, and keeps that from being brought into the file. `Busy` if a
    /// sync is open that does not, or if somebody else reads the file for longer than `patience`.
    pub fn open_beside_syncs(path: &Path, patience: Duration) -> Result<Snapshot> {
        let started = Instant::now();
        loop {
            match Snapshot::try_beside_syncs(path, patience) {
                // SQLite does not wait for others with the change to a WAL.
                Err(Error::Busy(_)) if started.elapsed() < patience => thread::sleep(RETRY),
                opened => return opened,
            }
        }
    }

    fn try_beside_syncs(path: &Path, patience: Duration) -> Result<Snapshot> {
        let collection = Collection::connect_waiting(path, SCAN_CACHE_KIB, patience)?;
        // It may be the last one to close, while an older snapshot still reads the file.
        collection.leave_file_alone()?;
        collection.db.execute_batch("PRAGMA journal_mode = WAL")?;
        let snapshot = Snapshot::begin(collection)?;
        let mode: String = snapshot.collection.db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            // A sync that does without has come in between.
            return Err(Error::Busy("a device syncs; try again".to_owned()));
        }
        snapshot.collection.check_schema()?;
        Ok(snapshot)
    }

    /// What SQLite finds wrong with the file.
    pub fn damage(&self) -> Result<Option<String>> {
        self.collection.damage()
    }

    fn begin(collection: Collection) -> Result<Snapshot> {
        // Holds the first page, which changes when a sync begins a WAL.
        collection.db.execute_batch("BEGIN")?;
        let pragma =
            |name: &str| collection.db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
        let bytes = pragma("page_count")? as u64 * pragma("page_size")? as u64;
        Ok(Snapshot { collection, bytes })
    }

    /// The length of the file that `write_to` writes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Never: a collection has at least one page.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes the file: in rollback mode, so that no client looks for side files (collection-format.md 1.4).
    pub fn write_to(&self, out: &mut impl Write) -> Result<()> {
        let mut select = self.collection.db.prepare("SELECT data FROM sqlite_dbpage ORDER BY pgno")?;
        let mut pages = select.query([])?;
        let mut written = 0;
        while let Some(page) = pages.next()? {
            let page =
                page.get_ref(0)?.as_blob().map_err(|err| Error::Broken(format!("reading a page: {err}")))?;
            let first = written == 0;
            written += page.len() as u64;
            write_page(out, page, first).map_err(Error::Disconnected)?;
        }
        match written == self.bytes {
            true => Ok(()),
            false => Err(Error::Broken(format!("read {written} of {} bytes of the collection", self.bytes))),
        }
    }
}

impl Snapshot {
    /// Writes the file to another one, of this path.
    pub(crate) fn copy_to(&self, out: &mut impl Write, path: &Path) -> Result<()> {
        self.write_to(out).map_err(|err| match err {
            Error::Disconnected(err) => Error::Io("writing", path.to_owned(), err),
            other => other,
        })
    }
}

fn write_page(out: &mut impl Write, page: &[u8], first: bool) -> io::Result<()> {
    if !first || page.len() < JOURNAL_BYTES.end {
        return out.write_all(page);
    }
    out.write_all(&page[..JOURNAL_BYTES.start])?;
    out.write_all(&[1, 1])?;
    out.write_all(&page[JOURNAL_BYTES.end..])
}
