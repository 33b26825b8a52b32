//! One user's media: the files in `media/`, and the index `media.db` that tells clients what happened to them
//! (sync-protocol.md 7). Knows no HTTP and no collection, and has a lock of its own: the client syncs media in the
//! background while the collection is in use.
//!
//! # What holds
//!
//! No live record without its file, and no file under a record's name with other contents than the record tells, but
//! for the moment in which an upload is put in place, and a crash in that moment heals.
//!
//! # How an upload is put in place
//!
//! 1. Without the lock (`upload`): each entry goes to a file of its own beside `media/`, which is synced. What the index
//!    knows already is only read.
//! 2. Under the lock: the intent, that is the names with the checksum that each is about to have, is written to
//!    `media.pending` and is durable.
//! 3. The files are renamed into `media/`; one sync of the folder.
//! 4. One transaction records all changes under consecutive usns.
//! 5. Deleted files are removed. A record is gone before its file, so that no record ever lacks one.
//! 6. `media.pending` is removed.
//!
//! The next start, or the next use after an error, goes through `media.pending` (`recover`): a file with the contents
//! that were about to come is recorded, as its upload had arrived whole; a file whose record is gone is removed. Both
//! look at what is there, so doing it twice does no harm, and neither does a `media.pending` of long ago. A client that
//! was not answered sends its changes again, and what is there already costs nothing.

pub mod check;
pub mod download;
pub mod index;
pub mod name;
pub mod take_over;
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
use index::{Change, MediaDb, Record};
use name::MediaName;

/// SHA-1 of a file's contents.
pub type Sha1Sum = [u8; 20];

/// The folder of the files, in the user's folder, as on the official server.
pub const FOLDER: &str = "media";

/// Files in one zip, either way.
pub const MAX_FILES: usize = 25;

/// The largest file, as for clients and for the official server.
pub const MAX_FILE_BYTES: u64 = 100 * 1024 * 1024;

/// Files are read and written in blocks of this size.
const BLOCK_BYTES: usize = 32 * 1024;

/// What is about to be put in place.
const PENDING: &str = "media.pending";

/// The name under which files arrive.
const STAGED_PREFIX: &str = "media.new-";

/// How long the index stays open for writing after the last upload: as long as clients pause between two.
const IDLE: Duration = Duration::from_secs(20);

/// The counts of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// The usn of the last change.
    pub last_usn: i32,
    /// All files together.
    pub bytes: i64,
    /// Files that are there.
    pub files: i64,
}

/// One user's media.
pub struct MediaStore {
    dir: PathBuf,
    staged: AtomicU32,
    state: Mutex<State>,
}

struct State {
    /// Open from the first upload until nothing has come for a while.
    writer: Option<MediaDb>,
    last_used: Instant,
    /// Something may have been put in place by half.
    needs_recovery: bool,
}

/// What is about to happen to a file; as stored in `media.pending`.
#[derive(Serialize, Deserialize)]
struct Intent {
    name: String,
    /// Hexadecimal; none if the file is being deleted.
    sha1: Option<String>,
}

impl MediaStore {
    /// Readies the store in a user's folder and heals what a crash left. That a store is broken must not keep the
    /// server from starting: its requests tell.
    pub fn open(dir: &Path) -> Result<MediaStore> {
        files::create_folder(&dir.join(FOLDER))?;
        remove_staged(dir)?;
        let state = State { writer: None, last_used: Instant::now(), needs_recovery: true };
        let store = MediaStore { dir: dir.to_owned(), staged: AtomicU32::new(0), state: Mutex::new(state) };
        // The index is not opened: an idle server does without the memory, and without waiting for random bytes.
        if let Err(err) = store.lock().map(drop) {
            log::error!("{}: the media are not in order: {err}", dir.display());
        }
        Ok(store)
    }

    /// Makes the folder anew for a user whose data was deleted.
    pub fn make_folder(&self) -> Result<()> {
        files::create_folder(&self.folder())
    }

    /// The last usn and the counts.
    pub fn totals(&self) -> Result<Totals> {
        self.read(MediaDb::totals)
    }

    /// Hands the next page of changes after `usn` to `each`, ordered by usn.
    pub fn changes_after(&self, usn: i64, each: impl FnMut(Change) -> Result<()>) -> Result<()> {
        self.read(|db| db.changes_after(usn, each))
    }

    /// Closes the index if it has not been used for a while, which folds its WAL into it; returns how long to wait
    /// before looking again, or none if it is closed.
    pub fn close_if_idle(&self) -> Option<Duration> {
        // Who holds the lock is using it.
        let Ok(mut state) = self.state.try_lock() else {
            return Some(IDLE);
        };
        state.writer.as_ref()?;
        match IDLE.checked_sub(state.last_used.elapsed()) {
            Some(left) if !left.is_zero() => Some(left),
            _ => {
                state.writer = None;
                None
            }
        }
    }

    /// Closes the index.
    pub fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).writer = None;
    }

    /// The state, healed if that is needed.
    fn lock(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| {
            // A panic may have left anything.
            self.state.clear_poison();
            let mut state = poisoned.into_inner();
            state.writer = None;
            state.needs_recovery = true;
            state
        });
        if state.needs_recovery {
            files::refuse_link(&self.folder())?;
            recover(&self.dir)?;
            state.needs_recovery = false;
        }
        state.last_used = Instant::now();
        Ok(state)
    }

    fn read<T>(&self, work: impl FnOnce(&MediaDb) -> Result<T>) -> Result<T> {
        let state = self.lock()?;
        match &state.writer {
            Some(db) => work(db),
            None => work(&MediaDb::open_to_read(&self.dir)?),
        }
    }

    fn folder(&self) -> PathBuf {
        self.dir.join(FOLDER)
    }

    fn next_staged_path(&self) -> PathBuf {
        self.dir.join(format!("{STAGED_PREFIX}{}", self.staged.fetch_add(1, Ordering::Relaxed)))
    }
}

impl State {
    fn writer(&mut self, dir: &Path) -> Result<&MediaDb> {
        match &mut self.writer {
            Some(db) => Ok(db),
            none => Ok(none.insert(MediaDb::open(dir)?)),
        }
    }
}

/// Removes the files of uploads that were not put in place.
fn remove_staged(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("reading", dir))? {
        let entry = entry.map_err(Error::io("reading", dir))?;
        if entry.file_name().to_string_lossy().starts_with(STAGED_PREFIX) {
            files::remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// What an upload had been about to do when the server was interrupted.
fn pending(dir: &Path) -> Result<Vec<(MediaName, Option<Sha1Sum>)>> {
    let path = dir.join(PENDING);
    let json = match fs::read(&path) {
        Ok(json) => json,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(Error::Io("reading", path, err)),
    };
    let intents: Vec<Intent> = serde_json::from_slice(&json).unwrap_or_else(|err| {
        log::error!("{} is not as ankipi wrote it, is the disk failing? {err}", path.display());
        Vec::new()
    });
    Ok(intents
        .into_iter()
        .filter_map(|intent| Some((MediaName::parse(intent.name).ok()?, intent.sha1.as_deref().map(unhex))))
        .collect())
}

/// Brings records and files together where an upload was interrupted.
fn recover(dir: &Path) -> Result<()> {
    let pending = pending(dir)?;
    if pending.is_empty() {
        return files::remove_if_there(&dir.join(PENDING));
    }
    let (db, folder) = (MediaDb::open(dir)?, dir.join(FOLDER));
    let mut recording = db.begin()?;
    let mut gone = Vec::new();
    let mut recorded = 0;
    for (name, intended) in &pending {
        let path = name.path_in(&folder);
        let live = db.record(name)?.filter(Record::is_live);
        match (file_sha1(&path)?, intended) {
            (Some(found), Some(sha1)) if found.sha1 == *sha1 && live.as_ref() != Some(&found) => {
                recording.put(name, &found)?;
                recorded += 1;
            }
            (Some(_), None) if live.is_none() => gone.push(path),
            _ => {}
        }
    }
    // The renames may not be durable yet.
    files::sync_folder(&folder)?;
    match recorded {
        0 => drop(recording),
        _ => drop(recording.commit()?),
    }
    gone.iter().try_for_each(|path| files::remove_if_there(path))?;
    files::sync_folder(&folder)?;
    if recorded + gone.len() > 0 {
        log::warn!(
            "{}: finished a media upload that was interrupted: {recorded} files recorded, {} removed",
            dir.display(),
            gone.len()
        );
    }
    files::remove_if_there(&dir.join(PENDING))
}

/// What a record of this file would be; none if there is no such file.
fn file_sha1(path: &Path) -> Result<Option<Record>> {
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) {
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

/// Lower-case hexadecimal, as on the wire.
pub fn hex(sha1: &Sha1Sum) -> String {
    sha1.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `hex` wrote; anything else becomes a sum that no file has.
fn unhex(text: &str) -> Sha1Sum {
    let mut sum = Sha1Sum::default();
    for (i, byte) in sum.iter_mut().enumerate() {
        *byte = text.get(2 * i..2 * i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()).unwrap_or(0);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::spool::Spool;

    /// A zip as a client sends it; no contents is a deletion.
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
        let store = MediaStore::open(dir.path()).unwrap();
        store.upload(&zip_of(dir.path(), &[("a", Some("1")), ("b", Some("1"))])).unwrap();
        (dir, store)
    }

    fn interrupt(dir: &Path, intents: &[(&str, Option<&str>)]) {
        let intents: Vec<_> = intents
            .iter()
            .map(|(name, contents)| Intent {
                name: (*name).to_owned(),
                sha1: contents.map(|contents| hex(&sum(contents))),
            })
            .collect();
        fs::write(dir.join(PENDING), serde_json::to_vec(&intents).unwrap()).unwrap();
    }

    /// What the next start makes of it: each name with its usn and contents.
    fn healed(dir: &Path) -> Vec<(String, i32, Option<Sha1Sum>)> {
        let store = MediaStore::open(dir).unwrap();
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
        store.upload(&zip_of(dir.path(), &[("b", None)])).unwrap();
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
        // A folder in a file's place: the second rename fails.
        fs::create_dir(dir.path().join(FOLDER).join("c")).unwrap();
        let zip = zip_of(dir.path(), &[("a", Some("2")), ("c", Some("3"))]);
        assert_eq!(store.upload(&zip).unwrap_err().status(), 500);
        fs::remove_dir(dir.path().join(FOLDER).join("c")).unwrap();
        assert_eq!(store.totals().unwrap().last_usn, 3, "the first was there, and is recorded");
        assert_eq!(store.upload(&zip).unwrap().last_usn, 4);
        drop(store);
        assert_eq!(healed(dir.path()).len(), 3);
    }

    #[test]
    fn the_last_change_of_a_name_in_a_zip_wins() {
        let (dir, store) = store();
        let changes = [("a", Some("2")), ("a", None), ("b", None)];
        let outcome = store.upload(&zip_of(dir.path(), &changes)).unwrap();
        assert_eq!((outcome.processed, outcome.last_usn, outcome.deleted), (3, 4, 2));
        drop(store);
        assert_eq!(healed(dir.path()), [row("a", 3, None), row("b", 4, None)]);
    }

    #[test]
    fn the_index_is_folded_when_it_is_closed_and_reading_leaves_no_trace() {
        let (dir, store) = store();
        let wal = dir.path().join("media.db-wal");
        assert!(wal.exists() && store.close_if_idle().is_some());
        store.close();
        assert!(store.close_if_idle().is_none());
        assert_eq!(store.totals().unwrap(), Totals { last_usn: 2, bytes: 2, files: 2 });
        assert!(!wal.exists());
    }
}
