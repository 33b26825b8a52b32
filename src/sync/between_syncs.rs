//! What follows a sync: its connection is kept for some seconds, then closed, and the WAL is checkpointed.

use std::thread;
use std::time::{Duration, Instant};

use crate::collection::full::replace;
use crate::collection::{Collection, Journal};
use crate::error::{Error, Result};
use crate::files::sqlite_files::{FINE_STEP, FileState, Remembered, has_side_files};
use crate::sync::kept_connection::{Kept, OutsideChange};
use crate::sync::user::{State, User};

/// How long after the last request of a sync its connection is closed and its WAL is checkpointed. Then no device waits
/// for that, and one that syncs again at once finds the connection open.
const CLOSE_AFTER: Duration = Duration::from_secs(6);

impl User {
    /// Keeps the connection of a session that has ended, or notes that there may be a WAL to checkpoint.
    pub(super) fn keep(&self, state: &mut State, collection: Result<Collection>) {
        let kept = collection.and_then(|collection| Kept::new(collection, &self.collection_path()));
        state.kept = kept.unwrap_or_else(|err| {
            log::debug!("{}: closing the connection of a sync: {err}", self.name);
            None
        });
        state.quiet_since = Some(Instant::now());
    }

    /// The connection that is kept, if the file is still its file.
    pub(super) fn kept<'s>(&self, state: &'s mut State) -> Result<Option<&'s Kept>> {
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
    pub(super) fn close_unless_read(&self, state: &mut State) {
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
    pub(super) fn end_keeper_if_unused(&self, state: &mut State) {
        if state.session.is_none() && !state.is_read() && state.keeper.take().is_some() {
            state.quiet_since = Some(Instant::now());
        }
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
}
