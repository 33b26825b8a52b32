//! State of each user between requests: the open sync session and the running downloads.
//!
//! One lock per user, held during one step and never while a socket is read or written. A session is one SQLite
//! transaction from `start` to `finish`; dropping it rolls back. A new `start` ends the open session: the device that
//! had it gets 409 at its next step.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::collection::full::backups::Kind;
use crate::collection::full::download::Snapshot;
use crate::collection::full::replace;
use crate::collection::full::restore;
use crate::collection::full::upload;
use crate::collection::new_collection;
use crate::collection::row_totals::RowTotals;
use crate::collection::schema::downgrade::{CopyToDowngrade, OldCopy};
use crate::collection::{Collection, FILE_NAME, Journal, LOCK_TIMEOUT, Meta, Range, Stamps};
use crate::error::{Error, Result};
use crate::files;
use crate::files::damaged::put_folders_aside;
use crate::files::sqlite_files::{FINE_STEP, FileState, Remembered, has_side_files};
use crate::media::MediaStore;
use crate::os::clock::Day;
use crate::sync::daily_backup::{self, DailyCopy, Source};
use crate::sync::kept_connection::{Kept, OutsideChange, Slots};
use crate::sync::{ChunkCursor, NotetypeShapes};

/// Longer than the time between `meta` and `start` of one sync.
const LONGEST_SYNC: Duration = Duration::from_secs(600);

/// What an owner can do about a damaged collection.
pub const HELP_WITH_DAMAGE: &str = "`ankipi restore` puts a backup back; or move the file away, and upload from a device that \
                                has everything";

/// How long after the last request of a sync its connection is closed and its WAL is checkpointed. Then no device waits
/// for that, and one that syncs again at once finds the connection open.
const CLOSE_AFTER: Duration = Duration::from_secs(6);

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
    /// How many connections are kept after their syncs, all users together.
    pub slots: Slots,
}

/// One user: a folder and a lock.
pub struct User {
    name: String,
    /// The user's folder.
    pub dir: PathBuf,
    /// The user's media. It has its own lock.
    pub media: MediaStore,
    settings: UserSettings,
    /// Number of the next temporary file beside the collection.
    files_made: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    /// How many downloads read the current collection. Changed only while the lock is held.
    readers: Arc<AtomicUsize>,
    /// Snapshot held for running downloads. While it is held, nothing is checkpointed into the file.
    keeper: Option<Snapshot>,
    /// When a device last replaced the collection.
    replaced: Option<Instant>,
    /// The file that SQLite found damaged in the middle of a sync: device and inode.
    damaged: Option<(u64, u64)>,
    /// The day on which `daily_backup` last looked whether a copy is due.
    looked_at_backup: Option<Day>,
    /// The connection of the last session. None while a session is open, which has it.
    kept: Option<Kept>,
    /// When the last session ended, if its WAL may still have to be checkpointed.
    quiet_since: Option<Instant>,
    /// What `meta` was last told of the file while it was closed.
    meta: Option<Remembered<Meta>>,
    /// How many rows the file has, while it is closed.
    totals: Option<Remembered<RowTotals>>,
}

impl State {
    fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }
}

/// An open sync session, from `start` to `finish`.
pub struct Session {
    skey: String,
    /// The collection, with an open transaction.
    pub collection: Collection,
    /// The committed state at `start`, with which `meta` answers other devices.
    meta: Meta,
    /// The client has not seen rows from this usn on.
    pub client_usn: i32,
    /// Whether the client's config wins.
    pub client_is_newer: bool,
    /// Progress of the chunks sent to the client.
    pub cursor: ChunkCursor,
    /// Cache of the notetypes looked up so far.
    pub shapes: NotetypeShapes,
    /// The steps that were applied before the first rows. None once rows have arrived, or if the steps were large.
    early: Option<Vec<(Step, String)>>,
    last_step: Instant,
}

/// A step that comes before rows.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// `start`
    Start,
    /// `applyGraves`
    Graves,
    /// `applyChanges`
    Changes,
}

/// How many bytes of the steps before the first rows a session remembers.
const MAX_EARLY_BYTES: usize = 128 * 1024;

/// Rows of a full first chunk. More chunks will follow it.
const MANY_ROWS: usize = 250;

impl Session {
    /// The stamps at `start`. Rows from the client get their usn.
    pub fn stamps(&self) -> Stamps {
        self.meta.stamps
    }

    /// Remembers what was applied.
    pub fn note_step(&mut self, step: Step, body: Option<&str>) {
        let Some(early) = &mut self.early else { return };
        let bytes: usize = early.iter().map(|(_, text)| text.len()).sum();
        match body {
            Some(body) if bytes + body.len() <= MAX_EARLY_BYTES => early.push((step, body.to_owned())),
            _ => self.early = None,
        }
    }

    /// Call before rows are applied. If the first chunk is full, the session begins anew with a rollback journal: added
    /// pages are then written once, with a WAL twice.
    pub fn prepare_for_rows(&mut self, rows: usize, max_row_bytes: u64) -> Result<()> {
        let early = self.early.take().filter(|_| rows >= MANY_ROWS);
        let Some(early) = early else { return Ok(()) };
        let collection = &self.collection;
        collection.roll_back()?;
        collection.use_rollback_journal()?;
        collection.begin()?;
        if collection.stamps()? != self.meta.stamps {
            return Err(Error::Busy("another program has changed the collection".to_owned()));
        }
        self.shapes.clear();
        let usn = self.meta.stamps.usn;
        for (step, body) in early {
            match step {
                Step::Start => {
                    collection.begin_day(usn)?;
                    collection.apply_graves_in_start(body.as_str(), usn)?;
                }
                Step::Graves => drop(collection.apply_graves(body.as_str(), usn)?),
                Step::Changes => collection.apply_changes(body.as_str(), usn, max_row_bytes)?,
            }
        }
        Ok(())
    }

    /// The usns of the rows that the client has not seen.
    pub fn unseen(&self) -> Range {
        Range::unseen_by(self.client_usn)
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

    /// Rolls back the session if there is one, and keeps its connection.
    fn end_session(&self, state: &mut State) {
        if let Some(session) = state.session.take() {
            let rolled_back = session.collection.roll_back().map(|()| session.collection);
            self.keep(state, rolled_back);
        }
    }

    /// Keeps the connection of a session that has ended, or notes that there may be a WAL to checkpoint.
    fn keep(&self, state: &mut State, collection: Result<Collection>) {
        let kept = collection
            .and_then(|collection| Kept::new(collection, &self.collection_path(), &self.settings.slots));
        state.kept = kept.unwrap_or_else(|err| {
            log::debug!("{}: closing the connection of a sync: {err}", self.name);
            None
        });
        state.quiet_since = Some(Instant::now());
    }

    /// The connection that is kept, if the file is still its file.
    fn kept<'s>(&self, state: &'s mut State) -> Result<Option<&'s Kept>> {
        let Some(kept) = state.kept.take() else { return Ok(None) };
        match kept.outside_change() {
            Ok(None) => Ok(Some(state.kept.insert(kept))),
            Ok(Some(OutsideChange::Commit)) => {
                log::info!("{}: another program has changed the collection", self.name);
                self.keep(state, Ok(kept.collection));
                Ok(state.kept.as_ref())
            }
            Ok(Some(OutsideChange::Replacement)) => {
                drop(kept);
                log::warn!(
                    "{}: another program has replaced collection.anki2 or written over it while the server had it open; \
                     changes of the last sync that are not in it are put aside. Stop the server before you do that",
                    self.name
                );
                replace::put_side_files_aside(&self.dir)?;
                Ok(None)
            }
            Err(err) => {
                log::warn!("{}: closing the connection of the last sync: {err}", self.name);
                Ok(None)
            }
        }
    }

    /// Closes the connection of the last session and checkpoints its WAL, unless a download reads the file.
    fn close_unless_read(&self, state: &mut State) {
        if state.session.is_some() || state.is_read() {
            return;
        }
        state.keeper = None;
        let path = self.collection_path();
        let closed = match self.kept(state) {
            Ok(_) => state.kept.take().map_or(Ok(()), |kept| kept.collection.close_with_checkpoint()),
            Err(err) => Err(err),
        };
        if let Err(err) = closed {
            log::warn!("{}: checkpoint failed, trying again: {err}", path.display());
        }
        Collection::recover_journal(&path);
        // The side files stay if another program reads an older state. Then this is tried again.
        state.quiet_since = has_side_files(&path).then(Instant::now);
    }

    /// As `close_unless_read`, and remembers how many rows the collection has. Takes longer.
    fn close_with_totals(&self, state: &mut State) {
        if state.session.is_none()
            && !state.is_read()
            && let Ok(Some(_)) = self.kept(state)
            && let Some(kept) = state.kept.take()
        {
            state.keeper = None;
            let path = self.collection_path();
            state.totals = kept.collection.close_with_totals(&path).unwrap_or_else(|err| {
                log::warn!("{}: checkpoint failed, trying again: {err}", path.display());
                None
            });
        }
        self.close_unless_read(state);
    }

    /// Closes the snapshot that is held for downloads when the last of them has ended.
    fn end_keeper_if_unused(&self, state: &mut State) {
        if state.session.is_none() && !state.is_read() && state.keeper.take().is_some() {
            state.quiet_since = Some(Instant::now());
        }
    }

    /// Locks the user. If a step has panicked, its session may be half applied and is rolled back.
    fn lock(&self) -> MutexGuard<'_, State> {
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
    fn lock_for_request(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if restore::is_waiting(&self.dir) {
            self.replace_by(&mut state, || restore::put_waiting_in_place(&self.dir, self.settings.backups))?;
        }
        Ok(state)
    }

    fn collection_path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// Rolls back the session if it had no request for `idle`. Returns the time until the next check.
    pub(super) fn expire(&self, idle: Duration) -> Option<Duration> {
        // The user is busy if the lock is held. Do not wait, because the other users are checked next.
        let Ok(mut state) = self.state.try_lock() else {
            return Some(idle);
        };
        if let Some(session) = &state.session {
            let silent = session.last_step.elapsed();
            if silent < idle {
                return Some(idle - silent);
            }
            self.end_session(&mut state);
            log::info!("{}: rolled back a sync that was silent for {} s", self.name, silent.as_secs());
        }
        let quiet = state.quiet_since.filter(|_| !state.is_read())?.elapsed();
        if quiet < CLOSE_AFTER {
            return Some(CLOSE_AFTER - quiet);
        }
        self.close_with_totals(&mut state);
        if let Err(err) = self.prepare_for_next_sync() {
            log::warn!("{}: {err}", self.collection_path().display());
        }
        self.read_meta_ahead(&mut state);
        state.quiet_since.map(|_| CLOSE_AFTER)
    }

    /// Brings the file into WAL mode, which the next sync would have to wait for: uploads and syncs of many rows leave it
    /// in rollback mode. Call only while no connection of this process is open.
    fn prepare_for_next_sync(&self) -> Result<()> {
        let path = self.collection_path();
        match FileState::of(&path) {
            Some(file) if self.settings.journal == Journal::Wal && file.is_in_rollback_mode() => {
                match Collection::open(&path, self.settings.journal) {
                    // The next request upgrades it.
                    Err(Error::OldSchema(_)) => Ok(()),
                    opened => opened?.close_with_checkpoint(),
                }
            }
            _ => Ok(()),
        }
    }

    /// Reads the stamps for the next `meta` in advance.
    fn read_meta_ahead(&self, state: &mut State) {
        let path = self.collection_path();
        if path.exists() && !has_side_files(&path) {
            // Wait until a write by another program would get another time than ours.
            thread::sleep(2 * FINE_STEP);
            let before = FileState::of(&path);
            if let Ok(meta) = Collection::open_to_read(&path).and_then(|collection| collection.meta()) {
                state.meta = Remembered::new(&path, before, meta);
            }
        }
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
    fn note_damage<T>(&self, outcome: &Result<T>, state: &mut State) {
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

    /// Ends any open session, opens a new one and runs its first step.
    pub fn start<T>(
        self: &Arc<User>,
        skey: &str,
        client_usn: i32,
        client_is_newer: bool,
        first_step: impl FnOnce(&mut Session) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.lock_for_request()?;
        self.end_session(&mut state);
        if state.damaged.is_none() {
            // Copies of a damaged collection would replace older, sound ones.
            self.begin_daily_copy_if_due(&mut state);
        }
        let opened = self.open_session(&mut state, skey, client_usn, client_is_newer);
        self.note_damage(&opened, &mut state);
        let mut session = opened?;
        match first_step(&mut session) {
            Ok(outcome) => {
                state.session = Some(session);
                Ok(outcome)
            }
            Err(err) => {
                let failed = Err(err);
                self.note_damage(&failed, &mut state);
                self.close_after_error(&mut state, session);
                failed
            }
        }
    }

    /// Begins the daily copy if this is the first sync of the day and the collection has changed since the last copy. Call
    /// it while no session is open. An error is logged: it must not keep a device from syncing.
    fn begin_daily_copy_if_due(self: &Arc<User>, state: &mut State) {
        if self.settings.daily.is_first_sync_of_day(&mut state.looked_at_backup)
            && let Err(err) = self.begin_daily_copy(state)
        {
            log::error!("{}: no daily copy of the collection: {err}", self.name);
        }
    }

    fn begin_daily_copy(self: &Arc<User>, state: &mut State) -> Result<()> {
        // What the last sync left in a WAL belongs to the copy, and a file without a WAL may share its blocks.
        self.close_unless_read(state);
        let path = self.collection_path();
        let Ok(bytes) = fs::metadata(&path).map(|meta| meta.len()) else { return Ok(()) };
        if !daily_backup::is_due(&self.dir, || self.open_with(state, Collection::open_to_read))? {
            return Ok(());
        }
        let copy = DailyCopy::new(&self.dir, &self.name, self.settings.daily)?;
        let shared = if state.is_read() { None } else { copy.share_blocks(&path) };
        let source = match shared {
            Some(file) => Source::Shared(file),
            None => {
                let room = copy.reserve_room(bytes)?;
                let snapshot = self.begin_read(state)?;
                Source::Snapshot(Box::new(move |mut file| snapshot.send(&mut file)), room)
            }
        };
        copy.start(source)
    }

    /// Closes the connection of a session whose step has failed: its transaction may be half applied, and the disk may
    /// have failed.
    fn close_after_error(&self, state: &mut State, session: Session) {
        drop(session);
        state.quiet_since = Some(Instant::now());
    }

    fn open_session(
        &self,
        state: &mut State,
        skey: &str,
        client_usn: i32,
        client_is_newer: bool,
    ) -> Result<Session> {
        let kept = self.kept(state)?.map(|kept| kept.collection.check_schema());
        if kept.is_none_or(|checked| checked.is_err()) {
            state.kept = None;
        }
        if state.is_read() && self.settings.journal == Journal::Rollback {
            return Err(Error::Busy(
                "another device downloads, and this disk has no shared memory".to_owned(),
            ));
        }
        if state.is_read() && state.keeper.is_none() {
            state.keeper =
                Some(self.open_with(state, |path| Snapshot::open_beside_syncs(path, LOCK_TIMEOUT))?);
        }
        let totals = state.totals.take();
        let collection = match state.kept.take() {
            Some(kept) => kept.collection,
            None => {
                let collection =
                    self.open_with(state, |path| Collection::open(path, self.settings.journal))?;
                collection.limit_rows(self.settings.max_row_bytes)?;
                collection
            }
        };
        state.quiet_since = Some(Instant::now());
        collection.begin()?;
        if let Some(totals) = totals {
            collection.take_over_totals(&totals, &self.collection_path())?;
        }
        let meta = collection.meta()?;
        if client_usn > meta.stamps.usn && state.replaced.is_some_and(|when| when.elapsed() < LONGEST_SYNC) {
            // The client asked for the stamps before that.
            return Err(Error::Busy(
                "another device has uploaded a collection meanwhile; try again".to_owned(),
            ));
        }
        collection.refuse_if_behind(&meta, client_usn)?;
        Ok(Session {
            skey: skey.to_owned(),
            meta,
            collection,
            client_usn,
            client_is_newer,
            cursor: ChunkCursor::default(),
            shapes: NotetypeShapes::default(),
            early: (self.settings.journal == Journal::Wal).then(Vec::new),
            last_step: Instant::now(),
        })
    }

    /// Runs a step of the session with this key. An error ends the session, because the step may be half applied. So
    /// callers must check before that the request is well-formed: a malformed request must not end the session.
    pub fn step<T>(&self, skey: &str, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let mut state = self.lock_for_request()?;
        let mut session = match state.session.take() {
            Some(session) if session.skey == skey => session,
            other => {
                state.session = other;
                return Err(Error::NoSession);
            }
        };
        let outcome = work(&mut session);
        self.note_damage(&outcome, &mut state);
        if outcome.is_ok() {
            session.last_step = Instant::now();
            state.session = Some(session);
        } else {
            self.close_after_error(&mut state, session);
        }
        outcome
    }

    /// Runs the last step of the session with this key.
    pub fn last_step<T>(&self, skey: &str, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let mut state = self.lock_for_request()?;
        match state.session.take() {
            Some(mut session) if session.skey == skey => {
                let outcome = work(&mut session);
                self.note_damage(&outcome, &mut state);
                if outcome.is_ok() {
                    self.keep(&mut state, Ok(session.collection));
                } else {
                    self.close_after_error(&mut state, session);
                }
                self.end_keeper_if_unused(&mut state);
                outcome
            }
            other => {
                state.session = other;
                Err(Error::NoSession)
            }
        }
    }

    /// Rolls back the session with this key. A session with another key stays: a device whose session was replaced
    /// sends `abort` too.
    pub fn abort(&self, skey: &str) {
        let mut state = self.lock();
        if state.session.as_ref().is_some_and(|session| session.skey == skey) {
            self.end_session(&mut state);
        }
    }

    /// Opens the collection. Creates it if it is missing, and upgrades it if another server left an old schema.
    fn open_with<T>(&self, state: &mut State, open: impl Fn(&Path) -> Result<T>) -> Result<T> {
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

    /// Begins a full download of the last committed state. An open session is rolled back, as on the official server.
    /// New sessions may run during the download.
    pub fn download(self: &Arc<User>) -> Result<Download> {
        let mut state = self.lock_for_request()?;
        self.end_session(&mut state);
        // A file without a WAL is read without locks.
        self.close_unless_read(&mut state);
        self.correct_stamps(&mut state)?;
        self.begin_read(&mut state)
    }

    /// Opens a snapshot and counts it as a reader.
    fn begin_read(self: &Arc<User>, state: &mut State) -> Result<Download> {
        if self.settings.journal == Journal::Rollback {
            // A snapshot of the file itself would keep other devices from syncing until it is sent.
            let snapshot = self.open_with(state, Snapshot::of_copy)?;
            let readers = Arc::new(AtomicUsize::new(1));
            return Ok(Download { user: self.clone(), snapshot: Some(snapshot), old_copy: None, readers });
        }
        let snapshot = self.open_with(state, Snapshot::open)?;
        state.readers.fetch_add(1, Ordering::Relaxed);
        let readers = state.readers.clone();
        Ok(Download { user: self.clone(), snapshot: Some(snapshot), old_copy: None, readers })
    }

    /// Replaces stamps in the future, unless another download reads the file.
    fn correct_stamps(&self, state: &mut State) -> Result<()> {
        let stamps = self.open_with(state, Collection::open_to_read)?.stamps()?;
        if stamps.is_from_future() && !state.is_read() {
            self.open_with(state, |path| Collection::open(path, self.settings.journal))?
                .correct_stamps(stamps)?;
            self.close_unless_read(state);
        }
        Ok(())
    }

    /// A full download in schema 11, for clients of protocol 8 to 10. The copy is made before this returns, without
    /// holding the user's lock.
    pub fn download_for_old_clients(self: &Arc<User>) -> Result<Download> {
        let mut download = self.download()?;
        if let Some(snapshot) = &download.snapshot {
            let number = self.files_made.fetch_add(1, Ordering::Relaxed);
            let scratch = CopyToDowngrade::copy(snapshot, &replace::old_copy_path(&self.dir, number))?;
            // The snapshot is no longer needed. While it is open, a sync would have to use a WAL.
            download.end_snapshot();
            download.old_copy = Some(scratch.downgrade()?);
        }
        Ok(download)
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

/// A running full download.
pub struct Download {
    user: Arc<User>,
    /// None after the download has ended.
    snapshot: Option<Snapshot>,
    /// The schema 11 copy that is sent instead of the snapshot.
    old_copy: Option<OldCopy>,
    /// The count of readers of the collection that it reads.
    readers: Arc<AtomicUsize>,
}

impl Download {
    /// The length of the file.
    pub fn bytes(&self) -> u64 {
        match &self.old_copy {
            Some(copy) => copy.len(),
            None => self.snapshot.as_ref().map_or(0, Snapshot::len),
        }
    }

    /// Sends the file. No lock is held.
    pub fn send(&self, out: &mut impl std::io::Write) -> Result<()> {
        match &self.old_copy {
            Some(copy) => copy.write_to(out),
            None => self.snapshot.as_ref().map_or(Ok(()), |snapshot| snapshot.write_to(out)),
        }
    }

    fn end_snapshot(&mut self) {
        let mut state = self.user.lock();
        if self.snapshot.take().is_some() {
            self.readers.fetch_sub(1, Ordering::Relaxed);
            self.user.end_keeper_if_unused(&mut state);
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.end_snapshot();
    }
}
