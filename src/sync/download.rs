//! Full downloads, during which other devices sync.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::collection::full::download::Snapshot;
use crate::collection::full::replace;
use crate::collection::schema::downgrade::{CopyToDowngrade, OldCopy};
use crate::collection::{Collection, Journal};
use crate::error::Result;
use crate::sync::user::{State, User};

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

impl User {
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

    /// Opens a snapshot and counts it as a reader.
    pub(super) fn begin_read(self: &Arc<User>, state: &mut State) -> Result<Download> {
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
}
