//! The daily copy of a collection, in its state before the first sync of the day. It helps against mistakes that were
//! synced to all devices.
//!
//! It is made by a thread of its own while the sync goes on. Where the file system can share blocks (reflinks: btrfs,
//! XFS), nothing is copied. Elsewhere the thread reads a snapshot, as a download does, and the sync writes to a WAL
//! meanwhile. A hard link would not work: SQLite writes into the collection in place, so the copy would change, too.
//!
//! A collection that has not changed since its last copy is not copied again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use rusqlite::OptionalExtension;

use crate::collection::full::backups::{self, Kind};
use crate::collection::schema::TABLES_WITH_USN;
use crate::collection::{Collection, Stamps};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::FsyncingFile;
use crate::files::free_space::{self, Reserved};
use crate::files::sqlite_files::has_side_files;
use crate::os::clock::Day;
use crate::os::{self, clock};

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

    /// Whether daily copies are switched on, and this was not asked today yet. `last_asked` becomes today, also if the
    /// copy fails, so that not each sync of the day tries again.
    pub fn is_first_sync_of_day(self, last_asked: &mut Option<Day>) -> bool {
        let today = Some(clock::today());
        self.days > 0 && std::mem::replace(last_asked, today) != today
    }
}

/// How the collection gets into the copy.
pub enum Source {
    /// The copy shares the blocks of the collection already, and has only to be synced.
    Shared(File),
    /// A snapshot of the collection is written to the copy, for which there is room.
    Snapshot(WriteSnapshot, Reserved),
}

/// Writes a snapshot.
pub type WriteSnapshot = Box<dyn FnOnce(&mut dyn Write) -> Result<()> + Send>;

/// The file of a copy, whose bytes are reserved until they are written.
struct ReservedFile {
    file: FsyncingFile,
    written: u64,
    room: Reserved,
}

impl Write for ReservedFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.file.write(data)?;
        self.room.give_back(count as u64);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Whether no daily copy was made today, and the collection has changed since the last one. `open` opens it for reading.
pub fn is_due(dir: &Path, open: impl FnOnce() -> Result<Collection>) -> Result<bool> {
    let last = backups::backups(dir)?.into_iter().rfind(|backup| backup.kind == Kind::Daily);
    if last.as_ref().is_some_and(|last| last.day == Some(clock::today())) {
        return Ok(false);
    }
    // Opening also upgrades a file of an old schema, before it is copied.
    let current = open()?;
    let Some(last) = last else { return Ok(true) };
    match Collection::open_to_read(&last.path).and_then(|copy| copy.stamps()) {
        Ok(stamps) => has_changed(&current, stamps),
        // A copy that cannot be read does not count.
        Err(_) => Ok(true),
    }
}

/// A copy that is about to be made.
pub struct DailyCopy {
    /// The user's folder.
    dir: PathBuf,
    user_name: String,
    policy: Policy,
    /// Where the copy is written to, until it is complete.
    unfinished: PathBuf,
}

impl DailyCopy {
    /// The copy of today.
    pub fn new(dir: &Path, user_name: &str, policy: Policy) -> Result<DailyCopy> {
        let unfinished = backups::unfinished_path(dir, &format!("day-{}", clock::today()))?;
        Ok(DailyCopy { dir: dir.to_owned(), user_name: user_name.to_owned(), policy, unfinished })
    }

    /// Makes the copy share the blocks of the collection. None if the file system has no such thing, or if a WAL may hold
    /// the newest state. Call only while no connection of ours is open: closing a descriptor would drop its locks.
    pub fn share_blocks(&self, collection: &Path) -> Option<File> {
        if has_side_files(collection) {
            return None;
        }
        let from = File::open(collection).ok()?;
        let copy = File::options().write(true).create_new(true).open(&self.unfinished).ok()?;
        if os::clone_file(&from, &copy).is_ok() {
            return Some(copy);
        }
        let _ = fs::remove_file(&self.unfinished);
        None
    }

    /// Reserves the room of a copy of so many bytes. Errors if it would leave none for a full upload and what is to be kept
    /// free.
    pub fn reserve_room(&self, bytes: u64) -> Result<Reserved> {
        let with_upload = bytes.saturating_mul(2);
        let mut room = match free_space::reserve(&self.dir, self.policy.min_free_bytes, with_upload, 0) {
            Err(Error::DiskFull(text)) => {
                return Err(Error::DiskFull(format!(
                    "{text}; it takes {bytes} bytes, and leaves as much for an upload. SYNC_BACKUP_DAYS=0 switches daily \
                     copies off"
                )));
            }
            reserved => reserved?,
        };
        room.give_back(bytes);
        Ok(room)
    }

    /// Starts a thread that makes the copy. Its errors are logged.
    pub fn start(self, source: Source) -> Result<()> {
        let work = move || {
            os::lower_priority();
            if let Err(err) = self.make(source) {
                let _ = fs::remove_file(&self.unfinished);
                log::error!("{}: no daily copy of the collection: {err}", self.user_name);
            }
        };
        let started =
            thread::Builder::new().name("daily-backup".to_owned()).stack_size(STACK_BYTES).spawn(work);
        started.map(drop).map_err(|err| Error::Broken(format!("starting a thread: {err}")))
    }

    fn make(&self, source: Source) -> Result<()> {
        let unfinished = &self.unfinished;
        let _one_at_a_time = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        let bytes = match source {
            Source::Shared(copy) => {
                copy.sync_all().map_err(Error::io("syncing", unfinished))?;
                0
            }
            Source::Snapshot(write, room) => {
                let file = FsyncingFile::create(unfinished)?;
                let mut copy = ReservedFile { file, written: 0, room };
                write(&mut copy).map_err(|err| match err {
                    // Writers report every error as a closed connection. Here it is an error of the file.
                    Error::Disconnected(err) => Error::Io("writing", unfinished.to_owned(), err),
                    other => other,
                })?;
                copy.file.into_file().sync_all().map_err(Error::io("syncing", unfinished))?;
                copy.written
            }
        };
        let stored = backups::store(&self.dir, unfinished, Kind::Daily)?;
        log::info!(
            "{}: kept the state before the first sync of the day as backup {}, {bytes} bytes copied in {} ms",
            self.user_name,
            stored.number,
            started.elapsed().as_millis()
        );
        backups::delete_old_daily(&self.dir, self.policy.days, self.policy.weeks)
    }
}

/// Whether a collection has other contents than when it had these stamps. Comparing stamps is not enough: two devices
/// that sync in turn change the stamps every time.
fn has_changed(collection: &Collection, then: Stamps) -> Result<bool> {
    let now = collection.stamps()?;
    if now.schema != then.schema || now.usn < then.usn {
        return Ok(true);
    }
    for table in TABLES_WITH_USN {
        // The server itself writes this key at the first sync of a day.
        let other_than_ours = if *table == "config" { "AND KEY != 'lastUnburied'" } else { "" };
        let sql = format!("SELECT 1 FROM {table} WHERE usn >= ?1 {other_than_ours} LIMIT 1");
        if collection.db.query_row(&sql, [then.usn], |_| Ok(())).optional()?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEG: u64 = 1 << 20;

    /// An upload beside the copy would otherwise find the same space free.
    #[test]
    fn a_copy_and_uploads_at_the_same_time_leave_the_reserve_free() {
        let _turn = free_space::turn_of_test();
        let dir = std::env::temp_dir();
        // Other programs may use or free tens of megabytes meanwhile.
        let min_free_bytes = os::free_bytes(&dir).unwrap().saturating_sub(400 * MEG);
        let policy = Policy { days: 7, weeks: 0, min_free_bytes };
        let copy =
            DailyCopy { dir: dir.clone(), user_name: "anna".to_owned(), policy, unfinished: dir.clone() };
        let upload = |megs| free_space::reserve(&dir, min_free_bytes, megs * MEG, 0);
        let uploading = upload(300).unwrap();
        let refused = copy.reserve_room(100 * MEG).err().expect("no copy").to_string();
        assert!(
            refused.contains("SYNC_MIN_FREE_MEGS keeps") && refused.contains("SYNC_BACKUP_DAYS=0"),
            "{refused}"
        );
        drop(uploading);
        let mut room = copy.reserve_room(100 * MEG).unwrap();
        assert!(upload(400).is_err());
        room.give_back(100 * MEG);
        upload(200).unwrap();
    }
}
