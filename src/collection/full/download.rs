//! Full download: the pages of one snapshot, read through SQL.
//!
//! A snapshot reads one committed state for as long as it is open. Meanwhile another device may sync: it writes to a
//! WAL. The table `sqlite_dbpage` (a build option, see .cargo/config.toml) returns that state page by page.
//!
//! While no sync is open, `Snapshot::open` takes no locks and writes nothing to the disk, so a sync could change the
//! file under it. Before a sync starts, `session` opens a second snapshot with `open_beside_syncs`, which switches to a
//! WAL and holds a lock.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::backup::Backup;

use crate::collection::{Collection, SCAN_CACHE_KIB};
use crate::error::{Error, Result};
use crate::files;
use crate::files::spool;

/// The two bytes of the file header that tell the journal mode: 1 for a rollback journal, 2 for a WAL.
pub(crate) const JOURNAL_BYTES: std::ops::Range<usize> = 18..20;

/// Whether SQLite has the table `sqlite_dbpage`. The build flags of SQLite are in .cargo/config.toml, which `cargo
/// install` does not read. A program built that way copies the collection before each download.
pub const HAS_DBPAGE: bool = match option_env!("LIBSQLITE3_FLAGS") {
    Some(flags) => contains(flags.as_bytes(), b"SQLITE_ENABLE_DBPAGE_VTAB"),
    None => false,
};

/// Whether `part` occurs in `text`, at compile time, so that the binary does not contain the other kind of download.
const fn contains(text: &[u8], part: &[u8]) -> bool {
    let mut start = 0;
    while start + part.len() <= text.len() {
        let mut same = 0;
        while same < part.len() && text[start + same] == part[same] {
            same += 1;
        }
        if same == part.len() {
            return true;
        }
        start += 1;
    }
    false
}

/// Pause between two attempts while the file is locked.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// An open collection, in the state that was committed when it was opened.
pub struct Snapshot {
    collection: Collection,
    bytes: u64,
}

impl Snapshot {
    /// Opens a snapshot of the last committed state. While it is open, nothing may be written to the file,
    /// unless a snapshot from `open_beside_syncs` is open too.
    pub fn open(path: &Path) -> Result<Snapshot> {
        let snapshot = Snapshot::open_any(path)?;
        snapshot.collection.check_schema()?;
        Ok(snapshot)
    }

    /// Opens a snapshot of a temporary copy of the file, for disks without a WAL: there, a sync could not write while a
    /// download reads. The copy is already deleted from its folder when this returns, so it disappears with the
    /// snapshot.
    pub fn of_copy(path: &Path) -> Result<Snapshot> {
        let copy = spool::unused_path(path.parent().unwrap_or(Path::new(".")));
        let copied = || {
            let file = File::create_new(&copy).map_err(Error::io("creating", &copy))?;
            let mut out = io::BufWriter::with_capacity(64 * 1024, file);
            Snapshot::open(path)?.copy_to(&mut out, &copy)?;
            out.flush().map_err(Error::io("writing", &copy))?;
            Snapshot::begin(Collection::connect_immutable(&copy)?)
        };
        let snapshot = copied();
        files::remove_if_there(&copy)?;
        snapshot
    }

    /// Like `open`, but also accepts old schemas.
    pub(crate) fn open_any(path: &Path) -> Result<Snapshot> {
        Snapshot::begin(Collection::connect_to_read(path)?)
    }

    /// Opens a snapshot that makes syncs write to a WAL and prevents its checkpoint. `Busy` if a sync with a rollback
    /// journal is open, or if another program keeps the file locked for longer than `lock_timeout`.
    pub fn open_beside_syncs(path: &Path, lock_timeout: Duration) -> Result<Snapshot> {
        let started = Instant::now();
        loop {
            match Snapshot::try_beside_syncs(path, lock_timeout) {
                // SQLite's busy timeout does not cover the switch to a WAL.
                Err(Error::Busy(_)) if started.elapsed() < lock_timeout => thread::sleep(RETRY_PAUSE),
                opened => return opened,
            }
        }
    }

    fn try_beside_syncs(path: &Path, lock_timeout: Duration) -> Result<Snapshot> {
        let collection = Collection::connect_waiting(path, SCAN_CACHE_KIB, lock_timeout)?;
        // If this is the last connection to close, SQLite would checkpoint, while an older snapshot still reads the
        // file.
        collection.disable_checkpoint_on_close()?;
        collection.db.execute_batch("PRAGMA journal_mode = WAL")?;
        let snapshot = Snapshot::begin(collection)?;
        let mode: String = snapshot.collection.db.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
        if mode != "wal" {
            // A sync with a rollback journal started in between.
            return Err(Error::Busy("a device syncs; try again".to_owned()));
        }
        snapshot.collection.check_schema()?;
        Ok(snapshot)
    }

    /// The first damage that SQLite finds, or none. `deep` also looks up each row in each index.
    pub fn damage(&self, deep: bool) -> Result<Option<String>> {
        self.collection.damage(deep)
    }

    fn begin(collection: Collection) -> Result<Snapshot> {
        // The reads below start the read transaction. It keeps the first page, which changes when a sync switches to a
        // WAL.
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

    /// Always false: a collection has at least one page.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Writes the file. Its header says rollback journal, so that no client looks for side files (collection-format.md
    /// 1.4).
    pub fn write_to(&self, out: &mut impl Write) -> Result<()> {
        if HAS_DBPAGE { self.write_pages(out) } else { self.write_copy(out) }
    }

    fn write_pages(&self, out: &mut impl Write) -> Result<()> {
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
        if written == self.bytes {
            return Ok(());
        }
        Err(Error::Broken(format!("read {written} of {} bytes of the collection", self.bytes)))
    }
}

impl Snapshot {
    /// Writes the file from a temporary copy beside it, which takes the size of the collection on the disk.
    fn write_copy(&self, out: &mut impl Write) -> Result<()> {
        let source = &self.collection.db;
        let folder = Path::new(source.path().unwrap_or_default()).parent().unwrap_or(Path::new("."));
        let path = spool::unused_path(folder);
        let copy = || {
            let mut target = Connection::open(&path)?;
            // The copy is read once and deleted, so it need not survive a crash.
            target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")?;
            Backup::new(source, &mut target)?.step(-1)?;
            drop(target);
            File::open(&path).map_err(Error::io("reading", &path))
        };
        let copied = copy();
        files::remove_if_there(&path)?;
        let mut copied = copied?;
        let mut header = [0; JOURNAL_BYTES.end];
        copied.read_exact(&mut header).map_err(Error::io("reading", &path))?;
        write_page(out, &header, true).map_err(Error::Disconnected)?;
        let written = header.len() as u64 + io::copy(&mut copied, out).map_err(Error::Disconnected)?;
        if written == self.bytes {
            return Ok(());
        }
        Err(Error::Broken(format!("copied {written} of {} bytes of the collection", self.bytes)))
    }

    /// Copies the file to `out`, which is the file at `path`.
    pub fn copy_to(&self, out: &mut impl Write, path: &Path) -> Result<()> {
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
