//! The daily copy: the state of a collection before the first sync of a day, for mistakes that were synced everywhere.
//!
//! It is made by a thread of its own while the sync goes on. Where the file system can share blocks (reflinks: btrfs, XFS),
//! nothing is copied. Elsewhere the thread reads a snapshot, as a download does, and the sync writes to a WAL meanwhile.
//! A hard link would not do: SQLite writes into the collection in place, so the copy would change with it.
//!
//! A collection that has not changed since its last copy is not copied again.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use rusqlite::OptionalExtension;

use crate::collection::full::backups::{self, Kind};
use crate::collection::schema::TABLES_WITH_USN;
use crate::collection::{Collection, Stamps};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::GentleFile;
use crate::files::sqlite_files::has_side_files;
use crate::os::{self, clock};
use crate::sync::session::{Download, State, User};

/// Stack of the thread. SQLite needs less to read pages; unused stack costs address space, not memory.
const STACK_BYTES: usize = 256 * 1024;

/// Held while a copy is made: one at a time, so that the disk is free for syncs.
static COPYING: Mutex<()> = Mutex::new(());

/// How many copies are kept, and when none are made.
#[derive(Clone, Copy)]
pub struct Policy {
    days: usize,
    weeks: usize,
    min_free_bytes: u64,
}

impl Policy {
    /// Takes it from the settings.
    pub fn of(config: &Config) -> Policy {
        Policy { days: config.backup_days, weeks: config.backup_weeks, min_free_bytes: config.min_free_bytes }
    }
}

/// What the copy is made from.
enum Source {
    /// The copy shares the blocks of the collection already, and has only to be synced.
    Shared(File),
    /// A snapshot, to be copied page by page.
    Snapshot(Download),
}

/// Begins a copy if this is the first sync of the day and the collection has changed since the last one. Call it while no
/// session is open. An error is logged: it must not keep a device from syncing.
pub(super) fn begin_if_due(user: &Arc<User>, state: &mut State) {
    let today = clock::today();
    if user.daily.days == 0 || state.looked_at_backup == Some(today) {
        return;
    }
    // Also after an error, so that not each sync of the day tries again.
    state.looked_at_backup = Some(today);
    if let Err(err) = begin(user, state) {
        log::error!("{}: no daily copy of the collection: {err}", user.name);
    }
}

fn begin(user: &Arc<User>, state: &mut State) -> Result<()> {
    // What the last sync left in a WAL belongs to the copy, and a file without a WAL may share its blocks.
    user.close_unless_read(state);
    let path = user.collection_path();
    let Ok(bytes) = fs::metadata(&path).map(|meta| meta.len()) else { return Ok(()) };
    let last = backups::backups(&user.dir)?.into_iter().rfind(|backup| backup.kind == Kind::Daily);
    if last.as_ref().is_some_and(|last| last.day == Some(clock::today())) {
        return Ok(());
    }
    let current = user.open_with(state, Collection::open_to_read)?;
    if let Some(last) = last
        && let Ok(last) = Collection::open_to_read(&last.path).and_then(|copy| copy.stamps())
        && !has_changed(&current, last)?
    {
        return Ok(());
    }
    drop(current);
    let unfinished = backups::unfinished_path(&user.dir, &format!("day-{}", clock::today()))?;
    let source = match share_blocks(user, state, &unfinished) {
        Some(file) => Source::Shared(file),
        None => {
            check_room(user, bytes)?;
            Source::Snapshot(user.begin_read(state)?)
        }
    };
    let user = user.clone();
    let work = move || {
        os::lower_priority();
        if let Err(err) = make(&user, source, &unfinished) {
            let _ = fs::remove_file(&unfinished);
            log::error!("{}: no daily copy of the collection: {err}", user.name);
        }
    };
    let started = thread::Builder::new().name("daily-backup".to_owned()).stack_size(STACK_BYTES).spawn(work);
    started.map(drop).map_err(|err| Error::Broken(format!("starting a thread: {err}")))
}

/// Whether a collection has other contents than when it had these stamps. The stamps alone do not tell: two devices that sync in
/// turn give each other new ones every time.
fn has_changed(collection: &Collection, then: Stamps) -> Result<bool> {
    let now = collection.stamps()?;
    if now.schema != then.schema || now.usn < then.usn {
        return Ok(true);
    }
    for table in TABLES_WITH_USN {
        // The server's own note of the day, which it makes at the first sync.
        let other_than_ours = if *table == "config" { "AND KEY != 'lastUnburied'" } else { "" };
        let sql = format!("SELECT 1 FROM {table} WHERE usn >= ?1 {other_than_ours} LIMIT 1");
        if collection.db.query_row(&sql, [then.usn], |_| Ok(())).optional()?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A copy that shares the blocks of the collection; None where the file system has no such thing, or somebody reads the
/// collection: then its newest state may be in a WAL, and closing a descriptor would drop the locks of that reader.
fn share_blocks(user: &User, state: &State, to: &Path) -> Option<File> {
    let path = user.collection_path();
    if state.is_read() || has_side_files(&path) {
        return None;
    }
    let from = File::open(path).ok()?;
    let copy = File::options().write(true).create_new(true).open(to).ok()?;
    if os::clone_file(&from, &copy).is_ok() {
        return Some(copy);
    }
    let _ = fs::remove_file(to);
    None
}

/// Errors if the copy would leave no room for a full upload and what is to be kept free.
fn check_room(user: &User, bytes: u64) -> Result<()> {
    let free = os::free_bytes(&user.dir).map_err(Error::io("asking for the free space at", &user.dir))?;
    let needed = bytes.saturating_mul(2).saturating_add(user.daily.min_free_bytes);
    if free >= needed {
        return Ok(());
    }
    Err(Error::DiskFull(format!(
        "{free} bytes are free; it takes {bytes}, and leaves as much for an upload and SYNC_MIN_FREE_MEGS free. \
         SYNC_BACKUP_DAYS=0 switches daily copies off"
    )))
}

fn make(user: &User, source: Source, unfinished: &Path) -> Result<()> {
    let _one_at_a_time = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
    let started = Instant::now();
    let bytes = match source {
        Source::Shared(copy) => {
            copy.sync_all().map_err(Error::io("syncing", unfinished))?;
            0
        }
        Source::Snapshot(snapshot) => {
            let mut copy = GentleFile::create(unfinished)?;
            snapshot.send(&mut copy).map_err(|err| match err {
                // Writers report errors as a closed connection. Here it is the file's.
                Error::Disconnected(err) => Error::Io("writing", unfinished.to_path_buf(), err),
                other => other,
            })?;
            copy.flush()
                .and_then(|()| copy.into_file().sync_all())
                .map_err(Error::io("syncing", unfinished))?;
            snapshot.bytes()
        }
    };
    let stored = backups::store(&user.dir, unfinished, Kind::Daily)?;
    log::info!(
        "{}: kept the state before the first sync of the day as backup {}, {bytes} bytes copied in {} ms",
        user.name,
        stored.number,
        started.elapsed().as_millis()
    );
    backups::delete_old_daily(&user.dir, user.daily.days, user.daily.weeks)
}
