//! Full download: the pages of one snapshot, read through SQL.
//!
//! A read transaction on a WAL file sees one committed state however long it lasts, and the sync of another device
//! goes on beside it. `sqlite_dbpage` (a build option, see .cargo/config.toml) hands out that state page by page; a
//! plain read of the file could see pages of two states, and closing its descriptor would drop SQLite's locks.

use std::io::{self, Write};
use std::path::Path;

use rusqlite::OpenFlags;
use rusqlite::config::DbConfig;

use super::{Collection, SCAN_CACHE_KIB};
use crate::error::{Error, Result};

/// Where the header says how the file is journalled (two bytes).
pub(super) const JOURNAL_BYTES: std::ops::Range<usize> = 18..20;

/// A collection at one moment.
pub struct Snapshot {
    collection: Collection,
    bytes: u64,
}

impl Snapshot {
    /// Opens a snapshot of the last committed state.
    pub fn open(path: &Path) -> Result<Snapshot> {
        let snapshot = Snapshot::open_any(path)?;
        snapshot.collection.check_schema()?;
        Ok(snapshot)
    }

    /// Opens a snapshot of a file that may be of an old schema.
    pub(super) fn open_any(path: &Path) -> Result<Snapshot> {
        let collection = Collection::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, SCAN_CACHE_KIB)?;
        // Without WAL this reader would keep the other device's sync from committing.
        collection.db.execute_batch("PRAGMA journal_mode = WAL; BEGIN")?;
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
    pub(super) fn copy_to(&self, out: &mut impl Write, path: &Path) -> Result<()> {
        self.write_to(out).map_err(|err| match err {
            Error::Disconnected(err) => Error::Io("writing", path.to_owned(), err),
            other => other,
        })
    }

    /// Ends the snapshot. SQLite removes side files by their names when the last connection closes; of a collection
    /// that was moved, those names belong to the one that took its place.
    pub fn close(self, is_moved: bool) {
        if is_moved
            && let Err(err) =
                self.collection.db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        {
            // Rather leak a connection than another collection's WAL.
            log::error!("closing a snapshot: {err}");
            std::mem::forget(self);
        }
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
