//! The sync session of a device: one SQLite transaction from `start` to `finish`. Dropping it rolls back. A new `start` ends the
//! open session: the device that had it gets 409 at its next step.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::collection::full::download::Snapshot;
use crate::collection::{Collection, Journal, LOCK_TIMEOUT, Meta, Range, Stamps};
use crate::error::{Error, Result};
use crate::limits_and_timeouts::at_most::{AtMost, Permit};
use crate::limits_and_timeouts::{MANY_ROWS_CACHE_KIB, SESSIONS_WITH_CACHES, SPARE_MEMORY};
use crate::sync::daily_backup::{DailyCopy, Source};
use crate::sync::user::{State, User};
use crate::sync::{ChunkCursor, NotetypeShapes, daily_backup};

/// Longer than the time between `meta` and `start` of one sync.
const LONGEST_SYNC: Duration = Duration::from_secs(600);

/// Held by each open sync that keeps pages and statements from step to step, of all users.
static WITH_CACHES: AtMost = AtMost::new(SESSIONS_WITH_CACHES);

/// An open sync session, from `start` to `finish`.
pub struct Session {
    skey: String,
    /// The collection, with an open transaction.
    pub collection: Collection,
    /// The committed state at `start`, with which `meta` answers other devices.
    pub(super) meta: Meta,
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
    pub(super) last_step: Instant,
    /// To keep pages and statements between two steps.
    caches: Option<Permit>,
    /// For a larger page cache than usual.
    many_pages: Option<Permit>,
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

    /// Call before rows are applied. If the first chunk is full, the session begins anew with a rollback journal (added
    /// pages are then written once, with a WAL twice), and gets a larger page cache if memory is free for that.
    pub fn prepare_for_rows(&mut self, rows: usize, max_row_bytes: u64) -> Result<()> {
        let early = self.early.take();
        if rows < MANY_ROWS {
            return Ok(());
        }
        if let Some(early) = early {
            self.begin_anew(early, max_row_bytes)?;
        }
        // A connection with a rollback journal is closed at the end of the session, and its page cache with it.
        if self.many_pages.is_none() && self.collection.journal()? == Journal::Rollback {
            self.many_pages = SPARE_MEMORY.try_take();
            if self.many_pages.is_some() {
                self.collection.set_page_cache(MANY_ROWS_CACHE_KIB)?;
            }
        }
        Ok(())
    }

    /// Begins the transaction again with a rollback journal, with the steps that were applied.
    fn begin_anew(&mut self, early: Vec<(Step, String)>, max_row_bytes: u64) -> Result<()> {
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

    /// Call between two steps. If many syncs are open, releases the pages and statements that the next step can read and
    /// prepare again.
    fn release_caches_if_many(&mut self) {
        self.caches = self.caches.take().or_else(|| WITH_CACHES.try_take());
        if self.caches.is_none() {
            self.collection.release_caches();
        }
    }

    /// The usns of the rows that the client has not seen.
    pub fn unseen(&self) -> Range {
        Range::unseen_by(self.client_usn)
    }
}

impl User {
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
                session.release_caches_if_many();
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
            caches: None,
            many_pages: None,
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
            session.release_caches_if_many();
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

    /// Rolls back the session if there is one, and keeps its connection.
    pub(super) fn end_session(&self, state: &mut State) {
        if let Some(session) = state.session.take() {
            let rolled_back = session.collection.roll_back().map(|()| session.collection);
            self.keep(state, rolled_back);
        }
    }

    /// Closes the connection of a session whose step has failed: its transaction may be half applied, and the disk may
    /// have failed.
    fn close_after_error(&self, state: &mut State, session: Session) {
        drop(session);
        state.quiet_since = Some(Instant::now());
    }
}
