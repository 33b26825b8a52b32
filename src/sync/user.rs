//! One user between requests: the folder, its lock, and how its collection is opened and replaced.
//!
//! One lock per user, held during one step and never while a socket is read or written. What is done with it: `session` (the
//! sync of a device), `download` (full downloads), `between_syncs` (closing what the last sync left open).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::collection::full::backups::Kind;
use crate::collection::full::download::Snapshot;
use crate::collection::full::{replace, restore, upload};
use crate::collection::row_totals::RowTotals;
use crate::collection::{Collection, FILE_NAME, Journal, Meta, new_collection};
use crate::error::{Error, Result};
use crate::files;
use crate::files::damaged::put_folders_aside;
use crate::files::sqlite_files::{FileState, Remembered};
use crate::media::MediaStore;
use crate::os::clock::Day;
use crate::sync::daily_backup;
use crate::sync::kept_connection::Kept;
use crate::sync::session::Session;

/// What an owner can do about a damaged collection.
pub const HELP_WITH_DAMAGE: &str = "`ankipi restore` puts a backup back; or move the file away, and upload from a device that \
                                has everything";

/// What is the same for all users.
#[derive(Clone)]
pub struct UserSettings {
    /// How many replaced collections are kept.
    pub backups: usize,
    /// Which daily copies are kept.
    pub daily: daily_backup::Policy,
    /// Maximum size of a row, in bytes.
    pub max_row_bytes: u64,
    /// The journal of syncs on this disk.
    pub journal: Journal,
}

/// One user: a folder and a lock.
pub struct User {
    pub(super) name: String,
    /// The user's folder.
    pub dir: PathBuf,
    /// The user's media. It has its own lock.
    pub media: MediaStore,
    pub(super) settings: UserSettings,
    /// Number of the next temporary file beside the collection.
    pub(super) files_made: AtomicU32,
    pub(super) state: Mutex<State>,
}

/// What is open of a user's collection, and what is remembered of it.
#[derive(Default)]
pub(super) struct State {
    pub(super) session: Option<Session>,
    /// How many downloads read the current collection. Changed only while the lock is held.
    pub(super) readers: Arc<AtomicUsize>,
    /// Snapshot held for running downloads. While it is held, nothing is checkpointed into the file.
    pub(super) keeper: Option<Snapshot>,
    /// When a device last replaced the collection.
    pub(super) replaced: Option<Instant>,
    /// The file that SQLite found damaged in the middle of a sync: device and inode.
    pub(super) damaged: Option<(u64, u64)>,
    /// The day on which `daily_backup` last looked whether a copy is due.
    pub(super) looked_at_backup: Option<Day>,
    /// The connection of the last session. None while a session is open, which has it.
    pub(super) kept: Option<Kept>,
    /// When the last session ended, if its WAL may still have to be checkpointed.
    pub(super) quiet_since: Option<Instant>,
    /// What `meta` was last told of the file while it was closed.
    pub(super) meta: Option<Remembered<Meta>>,
    /// How many rows the file has, while it is closed.
    pub(super) totals: Option<Remembered<RowTotals>>,
}

impl State {
    pub(super) fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }
}

impl User {
    /// Prepares a user's folder and recovers after a crash.
    pub(super) fn open(settings: &UserSettings, dir: &Path, name: &str) -> User {
        if let Err(err) = replace::clean_up(dir) {
            log::error!("{}: what an interrupted request left cannot be tidied up: {err}", dir.display());
        }
        if restore::is_waiting(dir)
            && let Err(err) = restore::put_waiting_in_place(dir, settings.backups)
        {
            log::error!("{}: the restored backup cannot be put in place: {err}", dir.display());
        }
        User {
            name: name.to_owned(),
            media: MediaStore::open(dir),
            dir: dir.to_owned(),
            settings: settings.clone(),
            files_made: AtomicU32::new(0),
            state: Mutex::default(),
        }
    }

    /// Rolls back the session, brings the collection into one file, and closes the media store.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        self.end_session(&mut state);
        self.close_unless_read(&mut state);
        drop(state);
        self.media.close();
    }

    /// Call when another folder has taken the place of the user's folder: forgets the old one, and prepares the new
    /// one.
    pub(super) fn switch_to_new_folder(&self) -> Result<()> {
        {
            let mut state = self.lock();
            *state = State::default();
            replace::clean_up(&self.dir)?;
        }
        self.media.switch_to_new_folder()
    }

    /// Locks the user. If a step has panicked, its session may be half applied and is rolled back.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            self.state.clear_poison();
            let mut state = poisoned.into_inner();
            (state.session, state.kept) = (None, None);
            state.quiet_since = Some(Instant::now());
            state
        })
    }

    /// Locks the user for a request. A collection that `ankipi restore` left is put in place first; a device in the
    /// middle of a sync then finds its session gone.
    pub(super) fn lock_for_request(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if restore::is_waiting(&self.dir) {
            self.replace_by(&mut state, || restore::put_waiting_in_place(&self.dir, self.settings.backups))?;
        }
        Ok(state)
    }

    pub(super) fn collection_path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// The last committed state, for `meta`, also while a session is open. None before the first upload.
    pub fn meta(&self) -> Result<Option<Meta>> {
        let mut state = self.lock_for_request()?;
        if let Some(session) = &state.session {
            return Ok(Some(session.meta));
        }
        if state.damaged.is_some() && state.damaged == self.file_in_place() {
            return Err(Error::Damaged("the collection is damaged, as an earlier sync found".to_owned()));
        }
        if let Some(kept) = self.kept(&mut state)? {
            return Ok(Some(kept.meta()));
        }
        let path = self.collection_path();
        if state.is_read() {
            return self.read_meta(&mut state).map(Some);
        }
        // No connection of ours is open, so reading the file can drop no locks.
        if let Some(meta) = state.meta.as_ref().and_then(|remembered| remembered.of(&path)) {
            return Ok(Some(*meta));
        }
        state.meta = None;
        if state.quiet_since.is_none() {
            // Side files of a crash, or of another program.
            self.close_unless_read(&mut state);
        }
        if !replace::recover(&self.dir)? {
            return Ok(None);
        }
        let before = FileState::of(&path);
        let meta = self.read_meta(&mut state)?;
        state.meta = Remembered::new(&path, before, meta);
        Ok(Some(meta))
    }

    fn read_meta(&self, state: &mut State) -> Result<Meta> {
        self.open_with(state, Collection::open_to_read)?.meta()
    }

    /// Remembers that the collection is damaged if that is why a step failed. The next `meta` tells the user.
    pub(super) fn note_damage<T>(&self, outcome: &Result<T>, state: &mut State) {
        if let Err(err) = outcome
            && err.is_damage()
        {
            log::error!("{}: the collection is damaged ({err}); {HELP_WITH_DAMAGE}", self.dir.display());
            state.damaged = self.file_in_place();
        }
    }

    fn file_in_place(&self) -> Option<(u64, u64)> {
        files::id_of(&self.collection_path()).ok()
    }

    /// Opens the collection. Creates it if it is missing, and upgrades it if another server left an old schema.
    pub(super) fn open_with<T>(&self, state: &mut State, open: impl Fn(&Path) -> Result<T>) -> Result<T> {
        let path = self.collection_path();
        if !replace::recover(&self.dir)? {
            new_collection::create(&self.dir)?;
        }
        match open(&path) {
            Err(Error::OldSchema(version)) => {
                log::info!("{}: upgrading from schema {version}", path.display());
                self.upgrade_in_place(state)?;
                open(&path)
            }
            Err(Error::Busy(text)) => Err(Error::Busy(text)),
            Err(_) if put_folders_aside(&self.dir, FILE_NAME) => open(&path),
            Err(err) if err.is_failed_open() => Err(why_unopenable(&path).unwrap_or(err)),
            opened => opened,
        }
    }

    /// Replaces the collection by an upgraded copy. The old file goes to the backups; only its journal mode is changed.
    ///
    /// This server never leaves a file of an old schema. The official server does if a client of an old protocol
    /// downloads and no other request follows. So such a file may be copied into the data folder, also while this
    /// server runs.
    fn upgrade_in_place(&self, state: &mut State) -> Result<()> {
        let copy = self.next_upload_path();
        let made = upload::upgraded_copy(&self.collection_path(), &copy, self.settings.max_row_bytes)
            .and_then(|()| self.replace(state, &copy));
        if made.is_err()
            && let Err(err) = files::remove_if_there(&copy)
        {
            log::warn!("{err}");
        }
        made
    }

    /// The path for the next upload.
    pub fn next_upload_path(&self) -> PathBuf {
        replace::upload_path(&self.dir, self.files_made.fetch_add(1, Ordering::Relaxed))
    }

    /// Replaces the collection by a checked upload. Running downloads go on: they have the old file open, which only
    /// moves to the backups.
    pub fn replace_collection(&self, checked: &Path) -> Result<()> {
        self.replace(&mut *self.lock_for_request()?, checked)
    }

    fn replace(&self, state: &mut State, checked: &Path) -> Result<()> {
        self.replace_by(state, || replace::replace(&self.dir, checked, self.settings.backups, Kind::Replaced))
    }

    fn replace_by(&self, state: &mut State, put: impl FnOnce() -> Result<()>) -> Result<()> {
        self.end_session(state);
        self.close_unless_read(state);
        state.kept = None;
        let replaced = put();
        if matches!(replaced, Ok(()) | Err(Error::Unconfirmed(_))) {
            // Downloads of the old collection need no held snapshot any more: nobody writes to its file.
            (state.readers, state.keeper) = Default::default();
            state.replaced = Some(Instant::now());
            state.quiet_since = Some(Instant::now());
        }
        replaced
    }
}

/// Why SQLite could not open the file, if waiting does not help.
fn why_unopenable(path: &Path) -> Option<Error> {
    if path.is_dir() {
        return Some(Error::Damaged(format!("{} is a folder", path.display())));
    }
    // SQLite could not open it either, so no lock of this process is lost by closing it.
    match fs::File::open(path) {
        Err(err) if err.kind() == std::io::ErrorKind::PermissionDenied => {
            Some(Error::Io("opening", path.to_owned(), err))
        }
        _ => None,
    }
}
