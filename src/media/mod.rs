//! One user's media: the files in `media/`, and the index `media.db`, which records their changes for clients
//! (sync-protocol.md 7).
//!
//! Here: `index` (the database), `name` (which names are refused), `zip`, `upload`, `download`, `check`, `lost_files`,
//! `denied_files`, `import_folder`. Not here: HTTP, collections. It has its own lock, because clients sync media in the background while the collection is
//! in use. Imports `files`, `compression`, `text`, `os`.
//!
//! # Invariant
//!
//! Each live record has its file, and no file has other contents than its record says. This does not hold while an
//! upload is put in place. A crash in that moment is repaired at the next start. Nor does it hold when the disk loses or
//! damages a file. That is noticed before the file is sent, and repaired by the devices (`lost_files`). A file that the
//! server may not open keeps its record, and is not listed to clients until the server may (`denied_files`).
//!
//! # How an upload is put in place
//!
//! 1. Without the lock (`upload`): each entry is written to a temporary file beside `media/`. Contents that the index has
//!    already are only read.
//! 2. Under the lock: one transaction records all changes under consecutive usns, and lists each name with its temporary
//!    file (`pending`).
//! 3. The temporary files and the transaction are made durable: on a file system with a journal by one flush of the whole disk,
//!    where that can be relied on (`os::WholeFileSystem`), and otherwise file by file. From here on nothing of it is lost.
//! 4. The files are renamed into `media/`, and deleted files are removed. Without the flush in step 3, both folders are synced.
//!    With it, a power cut may undo that. It is done again then, from the list, where it stays until a later upload has
//!    flushed the disk.
//!
//! So the client waits for one flush, or for two times some that the disk makes at once. A power cut in step 3 may leave the
//! transaction without the contents of a file. A name that had no record then has none again. Where a file would take the
//! place of another one, all files are made durable before the transaction.
//!
//! The next start, or the next use after an error, works off the list (`pending::finish`). A client that got no response
//! sends its changes again. Those that are already applied cost nothing.

pub mod check;
pub mod denied_files;
pub mod download;
pub mod file_paths;
pub mod import_folder;
pub mod index;
pub mod lost_files;
pub mod name;
mod pending;
#[cfg(test)]
mod test_store;
pub mod upload;
pub mod zip;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::files;
use crate::files::damaged::{DAMAGED_FOLDER, put_aside, put_folders_aside};
use crate::files::sqlite_files::{FileState, Remembered};
use file_paths::FilePaths;
use index::{Change, MediaDb, Record};

/// SHA-1 of a file's contents.
pub type Sha1Sum = [u8; 20];

/// The folder of the files, in the user's folder, as on the official server.
pub const FOLDER: &str = "media";

/// Files are read and written in blocks of this size.
const BLOCK_BYTES: usize = 32 * 1024;

/// Prefix of the temporary files of uploads.
const STAGED_PREFIX: &str = "media.new-";

/// How long the index stays open for writing after the last upload. Clients pause less than this between two uploads.
const IDLE: Duration = Duration::from_secs(20);

/// The totals of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The usn of the last change.
    pub last_usn: i32,
    /// The length of all files in bytes.
    pub bytes: i64,
    /// The number of files.
    pub files: i64,
}

/// One user's media.
pub struct MediaStore {
    dir: PathBuf,
    paths: FilePaths,
    staged: AtomicU32,
    state: Mutex<State>,
}

struct State {
    /// Open from the first upload until the store is idle.
    writer: Option<MediaDb>,
    last_used: Instant,
    /// Changes may be half applied.
    needs_recovery: bool,
    /// The list of changes that were put in place.
    listed: Listed,
    /// Whether the index may list files that are denied to the server.
    may_have_denied: bool,
    /// The counts, as they were last read while the index was closed.
    totals: Option<Remembered<Totals>>,
}

/// Rows of the list of changes in the index (`pending`), by their numbers.
#[derive(Clone, Copy, Default)]
struct Listed {
    /// The last one.
    last: i64,
    /// Up to this one, renames and deletions are durable.
    durable: i64,
}

impl MediaStore {
    /// Opens the store in a user's folder and recovers from a crash. A damaged store is only logged, so that the server
    /// still starts. Its requests return the error.
    pub fn open(dir: &Path) -> MediaStore {
        if let Err(err) = ready_folder(dir) {
            log::error!("{}: the media are not ready: {err}", dir.display());
        }
        let state = State {
            writer: None,
            last_used: Instant::now(),
            needs_recovery: true,
            listed: Listed::default(),
            may_have_denied: true,
            totals: None,
        };
        let store = MediaStore {
            dir: dir.to_owned(),
            paths: FilePaths::new(dir),
            staged: AtomicU32::new(0),
            state: Mutex::new(state),
        };
        // The index stays closed. This saves an idle server the memory, and the wait for random bytes.
        if let Err(err) = store.recover_and_tidy() {
            log::error!("{}: the media cannot be used: {err}", dir.display());
        }
        store
    }

    /// Call when another folder has taken the place of the user's folder: forgets the old one, and prepares the new
    /// one.
    pub fn switch_to_new_folder(&self) -> Result<()> {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.writer = None;
            state.needs_recovery = true;
            state.may_have_denied = true;
            state.totals = None;
        }
        self.paths.recheck_folder();
        self.recover_and_tidy()
    }

    /// Removes temporary files: before recovering, which may need their room, those that it does not need; then all. No
    /// upload may be under way.
    fn recover_and_tidy(&self) -> Result<()> {
        // If the list cannot be read, recovering reports it.
        if let Ok(needed) = pending::temporary_files(&self.dir) {
            remove_staged(&self.dir, &needed)?;
        }
        drop(self.lock()?);
        remove_staged(&self.dir, &[])
    }

    /// The last usn and the totals.
    pub fn totals(&self) -> Result<Totals> {
        self.totals_and_denied().map(|(totals, _)| totals)
    }

    /// The last usn and the totals, and how many files the server may not open.
    pub fn totals_and_denied(&self) -> Result<(Totals, i64)> {
        self.write(|state| {
            self.list_allowed_again(state);
            Ok((state.totals(&self.dir)?, state.count_denied(&self.dir)?))
        })
    }

    /// Hands the next page of changes after `usn` to `each`, ordered by usn.
    pub fn changes_after(&self, usn: i64, each: impl FnMut(Change) -> Result<()>) -> Result<()> {
        if i64::from(self.totals()?.last_usn) == usn {
            return Ok(());
        }
        self.look_after_page(usn)?;
        if i64::from(self.totals()?.last_usn) == usn {
            return Ok(());
        }
        self.read(|db| db.changes_after(usn, each))
    }

    /// Closes the index if it is idle, which checkpoints its WAL. Returns when to look again, or None if it is closed.
    pub fn close_if_idle(&self) -> Option<Duration> {
        // Whoever holds the lock is using the index.
        let Ok(mut state) = self.state.try_lock() else {
            return Some(IDLE);
        };
        state.writer.as_ref()?;
        match IDLE.checked_sub(state.last_used.elapsed()) {
            Some(left) if !left.is_zero() => Some(left),
            _ => {
                self.close_index(&mut state);
                None
            }
        }
    }

    /// Closes the index.
    pub fn close(&self) {
        self.close_index(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Empties the list of changes before, as all are in place, unless some may be half applied.
    fn close_index(&self, state: &mut State) {
        if let Some(db) = &state.writer
            && !state.needs_recovery
            && state.listed.last > 0
            && let Err(err) = self.paths.sync().and_then(|()| pending::clear(db))
        {
            log::warn!("{}: the list of changes stays in the index of the media: {err}", self.dir.display());
        }
        state.writer = None;
    }

    /// Locks the state. Recovers first if that is needed.
    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| {
            // A panic may have left the state inconsistent.
            self.state.clear_poison();
            let mut state = poisoned.into_inner();
            state.writer = None;
            state.needs_recovery = true;
            state
        });
        ready_folder(&self.dir)?;
        if state.needs_recovery {
            let recovered = self.recover(&mut state);
            self.if_damaged(recovered, &mut state)?;
            state.needs_recovery = false;
        }
        state.last_used = Instant::now();
        Ok(state)
    }

    /// Finishes or takes back what was interrupted.
    fn recover(&self, state: &mut State) -> Result<()> {
        files::refuse_link(&self.paths.folder())?;
        // It is opened anew afterwards: what it holds may not be on the disk.
        state.writer = None;
        state.may_have_denied = true;
        pending::finish(&self.dir, &self.paths)
    }

    fn read<T>(&self, work: impl FnOnce(&MediaDb) -> Result<T>) -> Result<T> {
        let mut state = self.lock()?;
        let done = state.reader(&self.dir, work);
        self.if_damaged(done, &mut state)
    }

    fn write<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.lock()?;
        let done = work(&mut state);
        self.if_damaged(done, &mut state)
    }

    /// Puts the index aside if SQLite called it damaged: the next request begins a new one.
    fn if_damaged<T>(&self, done: Result<T>, state: &mut State) -> Result<T> {
        if done.is_err() && put_folders_aside(&self.dir, index::FILE_NAME) {
            return Err(Error::Busy("a folder was in the way of the media's index; try again".to_owned()));
        }
        if let Err(err) = &done
            && (is_damage(err) || self.dir.join(index::FILE_NAME).is_dir())
        {
            log::error!(
                "{}: the index of the media is damaged ({err}). It is put aside in {DAMAGED_FOLDER}/, and a new one is \
                 begun: the devices are asked for their files again",
                self.dir.display()
            );
            state.writer = None;
            put_index_aside(&self.dir);
            return Err(Error::Busy("the index of the media was damaged; try again".to_owned()));
        }
        done
    }

    fn next_staged_path(&self) -> PathBuf {
        loop {
            let number = self.staged.fetch_add(1, Ordering::Relaxed);
            let path = self.dir.join(format!("{STAGED_PREFIX}{number}"));
            // A start that could not recover has left its temporary files.
            if fs::symlink_metadata(&path).is_err() {
                return path;
            }
        }
    }
}

impl State {
    /// The counts, without opening the index if they are known.
    fn totals(&mut self, dir: &Path) -> Result<Totals> {
        if let Some(db) = &self.writer {
            return db.totals();
        }
        let path = dir.join(index::FILE_NAME);
        if let Some(totals) = self.totals.as_ref().and_then(|remembered| remembered.of(&path)) {
            return Ok(*totals);
        }
        if MediaDb::is_missing(dir) {
            return Ok(Totals::default());
        }
        let before = FileState::of(&path);
        let totals = MediaDb::open_to_read(dir)?.totals()?;
        self.totals = Remembered::new(&path, before, totals);
        Ok(totals)
    }

    fn count_denied(&self, dir: &Path) -> Result<i64> {
        if self.may_have_denied && !MediaDb::is_missing(dir) {
            self.reader(dir, MediaDb::count_denied)
        } else {
            Ok(0)
        }
    }

    fn reader<T>(&self, dir: &Path, work: impl FnOnce(&MediaDb) -> Result<T>) -> Result<T> {
        match &self.writer {
            Some(db) => work(db),
            None => work(&MediaDb::open_to_read(dir)?),
        }
    }

    fn writer(&mut self, dir: &Path) -> Result<&MediaDb> {
        match &mut self.writer {
            Some(db) => Ok(db),
            none => {
                let db = MediaDb::open(dir)?;
                self.listed = Listed { last: db.last_pending()?, durable: 0 };
                Ok(none.insert(db))
            }
        }
    }
}

/// Creates the folder of the files if it is missing. A file in its place is put aside.
fn ready_folder(dir: &Path) -> Result<()> {
    let folder = dir.join(FOLDER);
    match fs::symlink_metadata(&folder) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(meta) if meta.is_file() => {
            log::error!("{} is a file: it is put aside in {DAMAGED_FOLDER}/", folder.display());
            put_aside(dir, &folder, FOLDER);
        }
        _ => {}
    }
    files::create_folder(&folder)
}

/// Removes the temporary files of unfinished uploads, except those of `needed`.
fn remove_staged(dir: &Path, needed: &[PathBuf]) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("reading", dir))? {
        let entry = entry.map_err(Error::io("reading", dir))?;
        let path = entry.path();
        if !needed.contains(&path) && entry.file_name().to_string_lossy().starts_with(STAGED_PREFIX) {
            files::remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Whether an error means that the index itself is damaged.
fn is_damage(err: &Error) -> bool {
    use rusqlite::Error as Sqlite;
    // A table is missing, or a value is not what we or the official server write.
    let is_odd = |err: &Sqlite| {
        matches!(
            err,
            Sqlite::SqlInputError { .. }
                | Sqlite::QueryReturnedNoRows
                | Sqlite::InvalidColumnType(..)
                | Sqlite::FromSqlConversionFailure(..)
                | Sqlite::IntegralValueOutOfRange(..)
                | Sqlite::Utf8Error(..)
        )
    };
    err.is_damage() || matches!(err, Error::Db(err) if is_odd(err))
}

/// Moves the index to the damaged files, with its side files.
fn put_index_aside(dir: &Path) {
    for suffix in ["-wal", "-shm", "-journal", ""] {
        let name = format!("{}{suffix}", index::FILE_NAME);
        let path = dir.join(&name);
        if path.exists() {
            put_aside(dir, &path, &name);
        }
    }
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

/// A record of this file as it is now; None if there is no such file.
fn file_sha1(path: &Path) -> Result<Option<Record>> {
    if !is_file(path) {
        return Ok(None);
    }
    let mut file = File::open(path).map_err(Error::io("opening", path))?;
    let (mut sha1, mut bytes) = (Sha1::new(), 0);
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match file.read(&mut block).map_err(Error::io("reading", path))? {
            0 => return Ok(Some(Record { sha1: sha1.finalize().into(), bytes })),
            count => {
                sha1.update(&block[..count]);
                bytes += count as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::test_store::{healed, row, store, zip_of};
    use super::*;
    use crate::media::upload::Room;

    /// A start that could not recover leaves temporary files, whose names uploads must not take.
    #[test]
    fn temporary_files_that_were_left_stop_no_upload() {
        let (dir, store) = store();
        for number in 0..9 {
            fs::write(dir.path().join(format!("{STAGED_PREFIX}{number}")), "left").unwrap();
        }
        let last_usn =
            store.upload(&zip_of(dir.path(), &[("c", Some("3"))]), &Room::UNLIMITED).unwrap().last_usn;
        assert_eq!(last_usn, 3);
    }

    #[test]
    fn a_failure_in_the_middle_heals_without_a_restart() {
        let (dir, store) = store();
        // A folder in place of a file makes the second rename fail.
        fs::write(dir.path().join(DAMAGED_FOLDER), "so that the folder below cannot be put aside").unwrap();
        fs::create_dir(dir.path().join(FOLDER).join("c")).unwrap();
        let zip = zip_of(dir.path(), &[("a", Some("2")), ("c", Some("3"))]);
        assert_eq!(store.upload(&zip, &Room::UNLIMITED).unwrap_err().status(), 500);
        fs::remove_dir(dir.path().join(FOLDER).join("c")).unwrap();
        assert_eq!(store.totals().unwrap().last_usn, 4, "both had come, and are in place now");
        let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let is_left = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(STAGED_PREFIX);
        assert_eq!(entries.filter(is_left).count(), 0);
        assert_eq!(store.upload(&zip, &Room::UNLIMITED).unwrap().last_usn, 4);
        drop(store);
        assert_eq!(healed(dir.path()).len(), 3);
    }

    /// SQLite refuses, as on a full disk.
    #[test]
    fn an_upload_that_cannot_be_recorded_leaves_nothing_and_the_next_one_goes_through() {
        let (dir, store) = store();
        // No more pages than it has.
        let stop_growing = "PRAGMA max_page_count = 1";
        store.state.lock().unwrap().writer.as_ref().unwrap().db.execute_batch(stop_growing).unwrap();
        let many: Vec<_> = (0..25).map(|number| format!("{number}-{}.jpg", "x".repeat(100))).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), Some("4"))).collect();
        let refused = store.upload(&zip_of(dir.path(), &many), &Room::UNLIMITED).unwrap_err();
        assert!(refused.to_string().contains("full"), "{refused}");
        let names = |folder: &Path| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names(dir.path()).all(|name| !name.to_string_lossy().starts_with(STAGED_PREFIX)));
        assert_eq!(names(&dir.path().join(FOLDER)).count(), 2);
        let zip = zip_of(dir.path(), &[("c", Some("3"))]);
        assert_eq!(store.upload(&zip, &Room::UNLIMITED).unwrap().last_usn, 3);
    }

    /// A card that rots between the check of the files and the reply.
    #[test]
    fn a_reply_ends_before_its_directory_if_a_file_reads_differently_each_time() {
        let (dir, store) = store();
        let download = || store.download(vec!["a".to_owned(), "b".to_owned()]).unwrap();
        let mut whole = Vec::new();
        download().write_to(&mut whole).unwrap();
        let checked = download();
        fs::write(dir.path().join(FOLDER).join("a"), "2").unwrap();
        let mut cut = Vec::new();
        assert_eq!(checked.write_to(&mut cut).unwrap_err().status(), 409);
        let directory = |zip: &[u8]| zip.windows(4).any(|bytes| bytes == b"PK\x01\x02");
        assert!(directory(&whole) && !directory(&cut));
    }

    #[test]
    fn the_last_change_of_a_name_in_a_zip_wins() {
        let (dir, store) = store();
        let changes = [("a", Some("2")), ("a", None), ("b", None)];
        let outcome = store.upload(&zip_of(dir.path(), &changes), &Room::UNLIMITED).unwrap();
        assert_eq!((outcome.processed, outcome.last_usn, outcome.deleted), (3, 4, 2));
        drop(store);
        assert_eq!(healed(dir.path()), [row("a", 3, None), row("b", 4, None)]);
    }

    #[test]
    fn the_index_is_folded_when_it_is_closed_and_reading_leaves_no_trace() {
        let (dir, store) = store();
        let wal = dir.path().join("media.db-wal");
        let list = || MediaDb::open_to_read(dir.path()).unwrap().pending().unwrap().len();
        assert!(wal.exists() && store.close_if_idle().is_some());
        assert_eq!(list(), 2);
        store.close();
        assert!(store.close_if_idle().is_none() && !wal.exists());
        assert_eq!(list(), 0);
        assert_eq!(store.totals().unwrap(), Totals { last_usn: 2, bytes: 2, files: 2 });
        assert!(!wal.exists());
    }
}
