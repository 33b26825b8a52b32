//! What the server remembers of each user between requests: the open sync session, and who reads the collection.
//!
//! One lock per user, held for the length of one step and never while a socket is read or written. A session is one
//! SQLite transaction from `start` to `finish`; dropping it rolls back. The newest `start` wins: the device that had
//! the session before gets 409 at its next step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::collection;
use crate::collection::full::download::Snapshot;
use crate::collection::full::replace;
use crate::collection::schema::downgrade::{OldCopy, Scratch};
use crate::collection::{ChunkCursor, Collection, FILE_NAME, Meta, NotetypeShapes, PATIENCE, Range, Stamps};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::media::MediaStore;

/// All users, by name. They come and go while the server runs.
pub struct Users {
    base: PathBuf,
    backups: usize,
    max_row_bytes: u64,
    session_idle: Duration,
    users: Mutex<BTreeMap<String, Arc<User>>>,
}

/// One user: a folder and a lock.
pub struct User {
    name: String,
    /// The user's folder.
    pub dir: PathBuf,
    /// The user's media, under a lock of their own.
    pub media: MediaStore,
    backups: usize,
    max_row_bytes: u64,
    /// Numbers the files that are made beside the collection.
    files_made: AtomicU32,
    /// The account was removed.
    has_left: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    /// How many downloads read the collection that is in place; it is counted under this lock.
    readers: Arc<AtomicUsize>,
    /// Keeps the file as they read it: while this is there, syncs write to a WAL.
    keeper: Option<Snapshot>,
}

impl State {
    fn is_read(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }
}

/// What lies between `start` and `finish`.
pub struct Session {
    skey: String,
    /// The collection, in a transaction.
    pub collection: Collection,
    /// What was committed when it began, for others that ask.
    meta: Meta,
    /// Everything from this usn on is news to the client.
    pub client_usn: i32,
    /// Whether the client's config wins.
    pub client_is_newer: bool,
    /// How far the chunks to the client have come.
    pub cursor: ChunkCursor,
    /// What was looked up of notetypes.
    pub shapes: NotetypeShapes,
    last_step: Instant,
}

impl Session {
    /// The stamps at the start. Everything the client sends gets their usn.
    pub fn stamps(&self) -> Stamps {
        self.meta.stamps
    }

    /// What the client has not seen.
    pub fn unseen(&self) -> Range {
        Range::unseen_by(self.client_usn)
    }
}

impl Users {
    /// Makes the users' folders where they are missing and tidies up after a crash.
    pub fn open(config: &Config, names: &[String]) -> Result<Users> {
        let users = Users {
            base: config.base.clone(),
            backups: config.backups,
            max_row_bytes: config.max_row_bytes,
            session_idle: config.session_idle,
            users: Mutex::default(),
        };
        names.iter().try_for_each(|name| users.by_name(name).map(drop))?;
        // Folders that a server had made which was killed before it could do this.
        files::sync_folder(&config.base)?;
        Ok(users)
    }

    /// The user of that name, who must have an account. The folder of a new one is made now.
    pub fn by_name(&self, name: &str) -> Result<Arc<User>> {
        let mut users = self.lock();
        if let Some(user) = users.get(name) {
            if user.has_left.swap(false, Ordering::Relaxed) {
                // The folder may have been deleted meanwhile.
                user.media.make_folder()?;
            }
            return Ok(user.clone());
        }
        let user = Arc::new(User::open(&self.base, name, self.backups, self.max_row_bytes)?);
        users.insert(name.to_owned(), user.clone());
        Ok(user)
    }

    /// Rolls back the sessions of users that have no account any more. Their locks stay: the account may come back while
    /// a request of before is still under way.
    pub fn keep_only(&self, names: &[String]) {
        for user in self.all().into_iter().filter(|user| !names.contains(&user.name)) {
            if !user.has_left.swap(true, Ordering::Relaxed) {
                log::info!("{:?} has no account any more", user.name);
                user.end();
            }
        }
    }

    /// Rolls back sessions that have been silent for too long, and closes media stores that are not in use; returns how
    /// long to wait before looking again, or none if nothing is open.
    pub fn expire_sessions(&self) -> Option<Duration> {
        let users = self.all();
        let sessions = users.iter().filter_map(|user| user.expire(self.session_idle));
        sessions.chain(users.iter().filter_map(|user| user.media.close_if_idle())).min()
    }

    /// Rolls back every session and closes the media stores.
    pub fn end_sessions(&self) {
        self.all().iter().for_each(|user| user.end());
    }

    fn all(&self) -> Vec<Arc<User>> {
        self.lock().values().cloned().collect()
    }

    /// Held to look a user up or to add one, and while no other lock is taken.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<User>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl User {
    fn open(base: &Path, name: &str, backups: usize, max_row_bytes: u64) -> Result<User> {
        let dir = base.join(name);
        files::refuse_link(&dir)?;
        files::create_folder(&dir)?;
        replace::clean_up(&dir)?;
        Ok(User {
            name: name.to_owned(),
            media: MediaStore::open(&dir)?,
            dir,
            has_left: AtomicBool::new(false),
            backups,
            max_row_bytes,
            files_made: AtomicU32::new(0),
            state: Mutex::default(),
        })
    }

    /// Rolls back the session and closes the media store.
    fn end(&self) {
        self.end_session(&mut self.lock());
        self.media.close();
    }

    /// Rolls back the session if there is one.
    fn end_session(&self, state: &mut State) {
        state.session = None;
        self.fold(state);
    }

    /// Brings the collection into one file again, unless somebody needs it to be in two.
    fn fold(&self, state: &mut State) {
        if state.session.is_none() && !state.is_read() {
            state.keeper = None;
            Collection::fold(&self.collection_path());
        }
    }

    /// A panic in the middle of a step may have left a session half-way: it goes.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            self.state.clear_poison();
            let mut state = poisoned.into_inner();
            state.session = None;
            state
        })
    }

    fn collection_path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    fn expire(&self, idle: Duration) -> Option<Duration> {
        // Who holds the lock is busy with the session; one user must not wait for another here.
        let Ok(mut state) = self.state.try_lock() else {
            return Some(idle);
        };
        let silent = state.session.as_ref()?.last_step.elapsed();
        if silent < idle {
            return Some(idle - silent);
        }
        self.end_session(&mut state);
        log::info!("{}: rolled back a sync that was silent for {} s", self.name, silent.as_secs());
        None
    }

    /// What `meta` tells: the last committed state, also while a session is open. None before the first upload.
    pub fn meta(&self) -> Result<Option<Meta>> {
        let mut state = self.lock();
        if let Some(session) = &state.session {
            return Ok(Some(session.meta));
        }
        self.fold(&mut state);
        match replace::settle(&self.dir)? {
            true => self.open_with(&mut state, Collection::open_to_read)?.meta().map(Some),
            false => Ok(None),
        }
    }

    /// Opens a session in place of any other and runs its first step.
    pub fn start<T>(
        &self,
        skey: &str,
        client_usn: i32,
        client_is_newer: bool,
        first_step: impl FnOnce(&mut Session) -> Result<T>,
    ) -> Result<T> {
        let mut state = self.lock();
        self.end_session(&mut state);
        let opened = self.open_session(&mut state, skey, client_usn, client_is_newer);
        let begun = opened.and_then(|mut session| Ok((first_step(&mut session)?, session)));
        match begun {
            Ok((outcome, session)) => {
                state.session = Some(session);
                Ok(outcome)
            }
            Err(err) => {
                self.fold(&mut state);
                Err(err)
            }
        }
    }

    fn open_session(
        &self,
        state: &mut State,
        skey: &str,
        client_usn: i32,
        client_is_newer: bool,
    ) -> Result<Session> {
        if state.is_read() && state.keeper.is_none() {
            state.keeper = Some(self.open_with(state, |path| Snapshot::open_beside_syncs(path, PATIENCE))?);
        }
        let collection = self.open_with(state, Collection::open)?;
        collection.limit_rows(self.max_row_bytes)?;
        collection.begin()?;
        Ok(Session {
            skey: skey.to_owned(),
            meta: collection.meta()?,
            collection,
            client_usn,
            client_is_newer,
            cursor: ChunkCursor::default(),
            shapes: NotetypeShapes::default(),
            last_step: Instant::now(),
        })
    }

    /// Runs a step of the session with this key. A failure ends the session: the step may have changed something. So
    /// requests are checked to be well-formed before they come here; a bad one leaves the session as it was.
    pub fn step<T>(&self, skey: &str, work: impl FnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let mut state = self.lock();
        let mut session = match state.session.take() {
            Some(session) if session.skey == skey => session,
            other => {
                state.session = other;
                return Err(Error::NoSession);
            }
        };
        let outcome = work(&mut session);
        if outcome.is_ok() {
            session.last_step = Instant::now();
            state.session = Some(session);
        } else {
            drop(session);
            self.fold(&mut state);
        }
        outcome
    }

    /// Runs the last step of the session with this key.
    pub fn last_step<T>(&self, skey: &str, work: impl FnOnce(Session) -> Result<T>) -> Result<T> {
        let mut state = self.lock();
        match state.session.take() {
            Some(session) if session.skey == skey => {
                let outcome = work(session);
                self.fold(&mut state);
                outcome
            }
            other => {
                state.session = other;
                Err(Error::NoSession)
            }
        }
    }

    /// Rolls back the session with this key. Of another key it is left alone: a device whose session was taken over
    /// says `abort` too.
    pub fn abort(&self, skey: &str) {
        let mut state = self.lock();
        if state.session.as_ref().is_some_and(|session| session.skey == skey) {
            self.end_session(&mut state);
        }
    }

    /// Opens the collection, which is made now if there is none, and upgraded if another server left an old schema.
    fn open_with<T>(&self, state: &mut State, open: impl Fn(&Path) -> Result<T>) -> Result<T> {
        let path = self.collection_path();
        if !replace::settle(&self.dir)? {
            collection::create_new(&self.dir)?;
        }
        match open(&path) {
            Err(Error::OldSchema(version)) => {
                log::info!("{}: upgrading from schema {version}", path.display());
                self.upgrade_in_place(state)?;
                open(&path)
            }
            opened => opened,
        }
    }

    /// Puts an upgraded copy of the collection in its place: the old file goes to the backups as it was,
    /// but for its journal mode.
    ///
    /// No request of ours leaves such a file, but the official server does when a client of an old protocol downloads
    /// and no other request follows. So it is found when the data folder is taken over, also while we run.
    fn upgrade_in_place(&self, state: &mut State) -> Result<()> {
        let copy = self.next_upload_path();
        let made = collection::upgraded_copy(&self.collection_path(), &copy, self.max_row_bytes)
            .and_then(|()| self.replace(state, &copy));
        if made.is_err()
            && let Err(err) = files::remove_if_there(&copy)
        {
            log::warn!("{err}");
        }
        made
    }

    /// Begins a full download of the last committed state. An open session is rolled back, as on the official server;
    /// the next one may run while the download goes on.
    pub fn download(self: &Arc<User>) -> Result<Download> {
        let mut state = self.lock();
        self.end_session(&mut state);
        let snapshot = self.open_with(&mut state, Snapshot::open)?;
        state.readers.fetch_add(1, Ordering::Relaxed);
        let readers = state.readers.clone();
        Ok(Download { user: self.clone(), snapshot: Some(snapshot), old_copy: None, readers })
    }

    /// A full download in schema 11, for clients of protocol 8 to 10. It is made here and now, on the side.
    pub fn download_for_old_clients(self: &Arc<User>) -> Result<Download> {
        let mut download = self.download()?;
        if let Some(snapshot) = &download.snapshot {
            let number = self.files_made.fetch_add(1, Ordering::Relaxed);
            let scratch = Scratch::copy(snapshot, &replace::old_copy_path(&self.dir, number))?;
            // The rest needs it no more, and the next upload or sync would have to mind it.
            download.end_snapshot();
            download.old_copy = Some(scratch.downgrade()?);
        }
        Ok(download)
    }

    /// Where the next upload goes.
    pub fn next_upload_path(&self) -> PathBuf {
        replace::upload_path(&self.dir, self.files_made.fetch_add(1, Ordering::Relaxed))
    }

    /// Puts a checked upload in place. Downloads of the old collection go on: they have its file open, which moves to
    /// the backups under them.
    pub fn replace_collection(&self, checked: &Path) -> Result<()> {
        self.replace(&mut self.lock(), checked)
    }

    fn replace(&self, state: &mut State, checked: &Path) -> Result<()> {
        self.end_session(state);
        let replaced = replace::replace(&self.dir, checked, self.backups);
        if matches!(replaced, Ok(()) | Err(Error::Unconfirmed(_))) {
            // Downloads of the old one go on: nobody writes to it any more.
            (state.readers, state.keeper) = Default::default();
        }
        replaced
    }
}

/// A full download under way.
pub struct Download {
    user: Arc<User>,
    /// Taken when the download ends.
    snapshot: Option<Snapshot>,
    /// What is sent in place of the snapshot.
    old_copy: Option<OldCopy>,
    /// The readers of its collection.
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
            self.user.fold(&mut state);
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.end_snapshot();
    }
}
