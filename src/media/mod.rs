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
//! 2. Under the lock: the journal `media.pending` is written. It holds each name with its intended checksum and its
//!    temporary file.
//! 3. Both are made durable: by one flush of the whole disk, where that can be relied on (`os::WholeFileSystem`), and
//!    otherwise one file after the other; so, too, one or two files on a file system without a journal. From here on a crash
//!    loses nothing that is new.
//! 4. The files are renamed into `media/`. Without a flush in step 3, and on a file system without a journal (ext2), the
//!    folder is synced.
//! 5. One transaction records all changes under consecutive usns, durably.
//! 6. Deleted files are removed. This comes after their records, so that no record is ever without its file.
//! 7. `media.pending` is removed. Without a flush in step 3 it is overwritten by an empty list, and the next upload overwrites
//!    that: a file that is made anew for each upload costs more blocks of the disk than a picture's record. It is removed
//!    when the index is closed.
//!
//! With a flush in step 3 the client waits for two: that one, and that of the commit. Renames that a power cut undoes are
//! then done again, from `media.pending`: it and the temporary files leave the same folder, and file systems with a journal
//! keep the order of what was done (`WholeFileSystem::keeps_order`). So where `media.pending` is gone, the renames are there.
//!
//! The next start, or the next use after an error, processes `media.pending` (`recover`). A temporary file with the intended
//! contents is renamed. A file with the intended contents is recorded, because its upload had arrived completely. A file
//! whose record is deleted is removed. All three look at the current state, so repeating them is harmless, and so is an
//! old `media.pending`. A client that got no response sends its changes again. Those that are already applied cost nothing.

pub mod check;
pub mod denied_files;
pub mod download;
pub mod file_paths;
pub mod import_folder;
pub mod index;
pub mod lost_files;
pub mod name;
pub mod upload;
pub mod zip;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::files;
use crate::files::damaged::{DAMAGED_FOLDER, put_aside, put_folders_aside};
use crate::files::sqlite_files::{FileState, Remembered};
use crate::text::counted::counted;
use crate::text::hex::unhex;
use file_paths::FilePaths;
use index::{Change, MediaDb, Record};
use name::MediaName;

/// SHA-1 of a file's contents.
pub type Sha1Sum = [u8; 20];

/// The folder of the files, in the user's folder, as on the official server.
pub const FOLDER: &str = "media";

/// Files are read and written in blocks of this size.
const BLOCK_BYTES: usize = 32 * 1024;

/// The journal of changes that are being put in place.
const PENDING: &str = "media.pending";

/// What it holds when nothing is being put in place. It is kept like this between uploads on some disks.
const NO_INTENTS: &[u8] = b"[]";

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
    /// Whether the index may list files that are denied to the server.
    may_have_denied: bool,
    /// The counts, as they were last read while the index was closed.
    totals: Option<Remembered<Totals>>,
}

/// An intended change of a file, as stored in `media.pending`.
#[derive(Serialize, Deserialize)]
struct Intent {
    name: String,
    /// Hexadecimal; None if the file is to be deleted.
    sha1: Option<String>,
    /// The name of the temporary file that becomes it. Earlier releases did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    staged: Option<String>,
}

/// An intended change, as it is read from `media.pending`.
struct Intended {
    name: MediaName,
    /// None if the file is to be deleted; zeros, which no file has, if the text is no checksum.
    sha1: Option<Sha1Sum>,
    /// The temporary file that becomes it.
    staged: Option<PathBuf>,
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
        remove_staged(&self.dir, &pending(&self.dir)?)?;
        drop(self.lock()?);
        remove_staged(&self.dir, &[])
    }

    /// The last usn and the totals.
    pub fn totals(&self) -> Result<Totals> {
        self.write(|state| {
            self.list_allowed_again(state);
            state.totals(&self.dir)
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

    fn close_index(&self, state: &mut State) {
        let was_open = state.writer.take().is_some();
        // With changes that may be half applied, it is needed.
        if was_open
            && !state.needs_recovery
            && let Err(err) = files::remove_if_there(&self.dir.join(PENDING))
        {
            log::warn!("{err}");
        }
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
            files::refuse_link(&self.paths.folder())?;
            self.if_damaged(recover(&self.dir, &self.paths), &mut state)?;
            state.needs_recovery = false;
        }
        state.last_used = Instant::now();
        Ok(state)
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

    fn reader<T>(&self, dir: &Path, work: impl FnOnce(&MediaDb) -> Result<T>) -> Result<T> {
        match &self.writer {
            Some(db) => work(db),
            None => work(&MediaDb::open_to_read(dir)?),
        }
    }

    fn writer(&mut self, dir: &Path) -> Result<&MediaDb> {
        match &mut self.writer {
            Some(db) => Ok(db),
            none => Ok(none.insert(MediaDb::open(dir)?)),
        }
    }
}

/// Creates the folder of the files if it is missing. A file in its place is put aside.
fn ready_folder(dir: &Path) -> Result<()> {
    let folder = dir.join(FOLDER);
    if fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_file()) {
        log::error!("{} is a file: it is put aside in {DAMAGED_FOLDER}/", folder.display());
        put_aside(dir, &folder, FOLDER);
    }
    files::create_folder(&folder)
}

/// Removes the temporary files of unfinished uploads, except those of `needed`.
fn remove_staged(dir: &Path, needed: &[Intended]) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("reading", dir))? {
        let entry = entry.map_err(Error::io("reading", dir))?;
        let path = entry.path();
        let is_needed = needed.iter().any(|intended| intended.staged.as_ref() == Some(&path));
        if !is_needed && entry.file_name().to_string_lossy().starts_with(STAGED_PREFIX) {
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

/// The intended changes of an interrupted upload.
fn pending(dir: &Path) -> Result<Vec<Intended>> {
    let path = dir.join(PENDING);
    let json = match fs::read(&path) {
        Ok(json) => json,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) if err.kind() == std::io::ErrorKind::IsADirectory => {
            put_aside(dir, &path, PENDING);
            return Ok(Vec::new());
        }
        Err(err) => return Err(Error::Io("reading", path, err)),
    };
    // A power cut before the flush can leave this. Nothing was put in place yet.
    if json.is_empty() {
        return Ok(Vec::new());
    }
    let intents: Vec<Intent> = serde_json::from_slice(&json).unwrap_or_else(|err| {
        log::warn!(
            "{}: ignored, as it is not whole. If the power was not cut during an upload, the disk may be failing: {err}",
            path.display()
        );
        Vec::new()
    });
    Ok(intents
        .into_iter()
        .filter_map(|intent| {
            // The journal may be damaged: no other file may be taken for a temporary one.
            let is_staged = |name: &String| name.starts_with(STAGED_PREFIX) && !name.contains('/');
            Some(Intended {
                name: MediaName::parse(intent.name).ok()?,
                sha1: intent.sha1.as_deref().map(|text| unhex(text).unwrap_or_default()),
                staged: intent.staged.filter(is_staged).map(|name| dir.join(name)),
            })
        })
        .collect())
}

/// Finishes an interrupted upload, so that records and files agree.
fn recover(dir: &Path, paths: &FilePaths) -> Result<()> {
    let pending = pending(dir)?;
    if pending.is_empty() {
        return files::remove_if_there(&dir.join(PENDING));
    }
    let db = MediaDb::open(dir)?;
    let mut recording = db.begin()?;
    let mut gone = Vec::new();
    let mut recorded = 0;
    for Intended { name, sha1, staged } in &pending {
        let live = db.record(name)?.filter(Record::is_live);
        if let (Some(sha1), Some(staged)) = (sha1, staged)
            && durable_staged_file(staged)?.is_some_and(|found| found.sha1 == *sha1)
        {
            // Also of a live record: the rename of its file may be what was lost.
            let is_taken = paths.ignores_case() && db.has_twin(name)?;
            paths.put(staged, name, is_taken)?;
        }
        let path = paths.path_of(name);
        match sha1 {
            Some(sha1) => {
                if let Some(found) = readable_file(&path)?.filter(|found| found.sha1 == *sha1)
                    && live.as_ref() != Some(&found)
                {
                    recording.put(name, &found)?;
                    recorded += 1;
                }
            }
            None if live.is_none() && is_file(&path) => gone.push(path),
            None => {}
        }
    }
    // The renames of the upload may not be durable yet.
    paths.sync()?;
    match recorded {
        0 => drop(recording),
        _ => drop(recording.commit()?),
    }
    gone.iter().try_for_each(|path| files::remove_if_there(path))?;
    paths.sync()?;
    if recorded + gone.len() > 0 {
        log::warn!(
            "{}: finished a media upload that was interrupted: {} recorded, {} removed",
            dir.display(),
            counted(recorded, "file"),
            gone.len()
        );
    }
    files::remove_if_there(&dir.join(PENDING))
}

/// A temporary file as it is now, made durable: the flush of its upload may have failed, or not have begun. None if there
/// is none, or if it cannot be read: its client sends it again.
fn durable_staged_file(path: &Path) -> Result<Option<Record>> {
    match readable_file(path)? {
        Some(found) => upload::sync_file(path).map(|()| Some(found)),
        None => Ok(None),
    }
}

/// A record of this file as it is now. None if there is none, if the disk cannot read it, or if the server may not.
fn readable_file(path: &Path) -> Result<Option<Record>> {
    match file_sha1(path) {
        Err(Error::Io(_, _, err))
            if [libc::EIO, libc::EACCES, libc::EPERM].map(Some).contains(&err.raw_os_error()) =>
        {
            log::warn!("{}: {err}; its device sends the file again", path.display());
            Ok(None)
        }
        other => other,
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
    use super::*;
    use crate::files::spool::Spool;
    use crate::media::upload::Room;
    use crate::text::hex::hex;

    /// A zip as a client sends it. No contents mean a deletion.
    fn zip_of(dir: &Path, changes: &[(&str, Option<&str>)]) -> Spool {
        let mut spool = Spool::new(dir);
        let mut zip = zip::ZipWriter::new(&mut spool);
        let mut meta = Vec::new();
        for (name, contents) in changes {
            meta.push((name, contents.map(|_| *name)));
            if let Some(contents) = contents {
                zip.add(name, contents.len() as u64, |sink| sink(contents.as_bytes())).unwrap();
            }
        }
        let meta = serde_json::to_vec(&meta).unwrap();
        zip.add(zip::META, meta.len() as u64, |sink| sink(&meta)).unwrap();
        zip.finish().unwrap();
        spool
    }

    fn sum(contents: &str) -> Sha1Sum {
        Sha1::digest(contents).into()
    }

    /// A store that holds `a` and `b`, with "1" in them.
    fn store() -> (tempfile::TempDir, MediaStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = MediaStore::open(dir.path());
        store.upload(&zip_of(dir.path(), &[("a", Some("1")), ("b", Some("1"))]), &Room::UNLIMITED).unwrap();
        (dir, store)
    }

    fn interrupt(dir: &Path, intents: &[(&str, Option<&str>)]) {
        let intents: Vec<_> = intents
            .iter()
            .map(|(name, contents)| Intent {
                name: (*name).to_owned(),
                sha1: contents.map(|contents| hex(&sum(contents))),
                staged: None,
            })
            .collect();
        let mut list = serde_json::to_vec(&intents).unwrap();
        // Some disks get it in a file that was longer.
        list.resize(list.len().next_multiple_of(4096), b' ');
        fs::write(dir.join(PENDING), list).unwrap();
    }

    /// The state after the next start: each name with its usn and contents.
    fn healed(dir: &Path) -> Vec<(String, i32, Option<Sha1Sum>)> {
        let store = MediaStore::open(dir);
        assert!(!dir.join(PENDING).exists());
        let mut rows = Vec::new();
        store
            .changes_after(0, |change| {
                let on_disk = file_sha1(&dir.join(FOLDER).join(&change.name)).unwrap();
                assert_eq!(on_disk.map(|found| found.sha1), change.sha1, "{}", change.name);
                rows.push((change.name, change.usn, change.sha1));
                Ok(())
            })
            .unwrap();
        assert_eq!(store.totals().unwrap(), MediaDb::open_to_read(dir).unwrap().counted_totals().unwrap());
        rows
    }

    fn row(name: &str, usn: i32, contents: Option<&str>) -> (String, i32, Option<Sha1Sum>) {
        (name.to_owned(), usn, contents.map(sum))
    }

    #[test]
    fn an_interruption_before_the_renames_leaves_everything_as_it_was() {
        let (dir, store) = store();
        drop(store);
        interrupt(dir.path(), &[("a", Some("2")), ("b", None), ("c", Some("3"))]);
        fs::write(dir.path().join("media.new-0"), "2").unwrap();
        assert_eq!(healed(dir.path()), [row("a", 1, Some("1")), row("b", 2, Some("1"))]);
        assert!(!dir.path().join("media.new-0").exists());
    }

    /// What a power cut leaves that undoes the renames, before or after the record was made.
    #[test]
    fn renames_that_are_lost_are_done_again() {
        for is_recorded in [false, true] {
            let (dir, store) = store();
            if is_recorded {
                let zip = zip_of(dir.path(), &[("a", Some("2")), ("c", Some("3"))]);
                store.upload(&zip, &Room::UNLIMITED).unwrap();
                fs::write(dir.path().join(FOLDER).join("a"), "1").unwrap();
                fs::remove_file(dir.path().join(FOLDER).join("c")).unwrap();
            }
            drop(store);
            let staged = [("a", "2", "media.new-7"), ("c", "3", "media.new-8"), ("d", "4", "../media.new-9")];
            let intents = staged.map(|(name, contents, staged)| Intent {
                name: name.to_owned(),
                sha1: Some(hex(&sum(contents))),
                staged: Some(staged.to_owned()),
            });
            fs::write(dir.path().join(PENDING), serde_json::to_vec(&intents).unwrap()).unwrap();
            fs::write(dir.path().join("media.new-7"), "2").unwrap();
            fs::write(dir.path().join("media.new-8"), "3").unwrap();
            let expected = [row("b", 2, Some("1")), row("a", 3, Some("2")), row("c", 4, Some("3"))];
            assert_eq!(healed(dir.path()), expected);
        }
    }

    /// On a disk that ignores case, a file whose rename is lost must not go where its twin is.
    #[test]
    fn a_rename_that_is_lost_spares_the_twin() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(FOLDER.to_ascii_uppercase())).unwrap();
        let store = MediaStore::open(dir.path());
        let zip = zip_of(dir.path(), &[("A", Some("1")), ("a", Some("2"))]);
        store.upload(&zip, &Room::UNLIMITED).unwrap();
        let odd = store.paths.path_of(&MediaName::parse("a".to_owned()).unwrap());
        assert!(!odd.starts_with(dir.path().join(FOLDER)));
        drop(store);
        fs::rename(&odd, dir.path().join("media.new-1")).unwrap();
        let intent = Intent {
            name: "a".to_owned(),
            sha1: Some(hex(&sum("2"))),
            staged: Some("media.new-1".to_owned()),
        };
        fs::write(dir.path().join(PENDING), serde_json::to_vec(&[intent]).unwrap()).unwrap();
        drop(MediaStore::open(dir.path()));
        assert_eq!(fs::read(odd).unwrap(), b"2");
        assert_eq!(fs::read(dir.path().join(FOLDER).join("A")).unwrap(), b"1");
    }

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

    /// Recovering may need the room that temporary files of another upload take.
    #[test]
    fn what_recovering_does_not_need_is_removed_before_it_may_fail() {
        let (dir, store) = store();
        drop(store);
        interrupt(dir.path(), &[("c", Some("3"))]);
        fs::write(dir.path().join("media.new-5"), "of another upload").unwrap();
        // An index that cannot be opened, nor put aside.
        fs::write(dir.path().join(DAMAGED_FOLDER), "").unwrap();
        let index = dir.path().join(index::FILE_NAME);
        fs::remove_file(&index).unwrap();
        fs::create_dir(&index).unwrap();
        drop(MediaStore::open(dir.path()));
        assert!(dir.path().join(PENDING).exists());
        assert!(!dir.path().join("media.new-5").exists());
    }

    #[test]
    fn an_interruption_between_the_renames_and_the_record_ends_with_what_had_come() {
        let (dir, store) = store();
        drop(store);
        interrupt(dir.path(), &[("a", Some("2")), ("b", None), ("c", Some("3")), ("d", Some("4"))]);
        for (name, contents) in [("a", "2"), ("c", "3")] {
            fs::write(dir.path().join(FOLDER).join(name), contents).unwrap();
        }
        let expected = [row("b", 2, Some("1")), row("a", 3, Some("2")), row("c", 4, Some("3"))];
        assert_eq!(healed(dir.path()), expected);
    }

    #[test]
    fn an_interruption_before_deleted_files_are_removed_removes_them() {
        let (dir, store) = store();
        store.upload(&zip_of(dir.path(), &[("b", None)]), &Room::UNLIMITED).unwrap();
        drop(store);
        interrupt(dir.path(), &[("b", None)]);
        fs::write(dir.path().join(FOLDER).join("b"), "1").unwrap();
        assert_eq!(healed(dir.path()), [row("a", 1, Some("1")), row("b", 3, None)]);
        assert!(!dir.path().join(FOLDER).join("b").exists());
    }

    #[test]
    fn intents_of_long_ago_and_damaged_ones_do_no_harm() {
        let (dir, store) = store();
        drop(store);
        interrupt(dir.path(), &[("a", Some("0")), ("b", Some("1")), ("../c", Some("1"))]);
        let expected = [row("a", 1, Some("1")), row("b", 2, Some("1"))];
        assert_eq!(healed(dir.path()), expected);
        fs::write(dir.path().join(PENDING), "[{\"na").unwrap();
        assert_eq!(healed(dir.path()), expected);
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
        assert_eq!(store.totals().unwrap().last_usn, 3, "the first was there, and is recorded");
        assert_eq!(store.upload(&zip, &Room::UNLIMITED).unwrap().last_usn, 4);
        drop(store);
        assert_eq!(healed(dir.path()).len(), 3);
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
        assert!(wal.exists() && store.close_if_idle().is_some());
        assert!(pending(dir.path()).unwrap().is_empty());
        store.close();
        assert!(!dir.path().join(PENDING).exists());
        assert!(store.close_if_idle().is_none());
        assert_eq!(store.totals().unwrap(), Totals { last_usn: 2, bytes: 2, files: 2 });
        assert!(!wal.exists());
    }
}
