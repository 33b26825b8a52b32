//! The connection of a user's last sync. It stays open for some seconds, because opening a collection anew costs more
//! than a small sync: SQLite reads its schema and prepares every statement again.
//!
//! While it is open, commits are in the WAL, and the file itself is not written to. So a change of the file in that
//! time comes from another program. It is noticed before the connection is used again.

use std::path::{Path, PathBuf};

use crate::collection::{Collection, Journal, Meta};
use crate::error::Result;
use crate::files::sqlite_files::FileTimes;
use crate::limits_and_timeouts::KEPT_CONNECTIONS;
use crate::limits_and_timeouts::at_most::{AtMost, Permit};

/// Held by each connection that is kept, of all users.
static KEPT: AtMost = AtMost::new(KEPT_CONNECTIONS);

/// A connection without a transaction.
pub struct Kept {
    /// The connection.
    pub collection: Collection,
    path: PathBuf,
    /// The times of the file when the connection was last used.
    times: FileTimes,
    /// SQLite's number of the last commit of another program.
    data_version: i64,
    meta: Meta,
    _permit: Permit,
}

/// What another program did to the file of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutsideChange {
    /// A commit through SQLite.
    Commit,
    /// The file was overwritten, replaced or removed. The connection and its WAL belong to a file that is gone.
    Replacement,
}

impl Kept {
    /// Keeps a connection to the file at `path`, if it writes to a WAL and few others are kept. Closes it otherwise.
    pub fn new(collection: Collection, path: &Path) -> Result<Option<Kept>> {
        if collection.journal()? != Journal::Wal {
            return Ok(None);
        }
        let (Some(permit), Some(times)) = (KEPT.try_take(), FileTimes::of(path)) else {
            return Ok(None);
        };
        let (meta, data_version) = (collection.meta()?, collection.data_version()?);
        Ok(Some(Kept { collection, path: path.to_owned(), times, data_version, meta, _permit: permit }))
    }

    /// What another program has done to the file since the connection was last used.
    pub fn outside_change(&self) -> Result<Option<OutsideChange>> {
        let times = FileTimes::of(&self.path);
        if !times.is_some_and(|times| times.is_same_file(&self.times)) {
            return Ok(Some(OutsideChange::Replacement));
        }
        if self.collection.data_version()? != self.data_version {
            return Ok(Some(OutsideChange::Commit));
        }
        Ok((times != Some(self.times)).then_some(OutsideChange::Replacement))
    }

    /// What the file holds for `meta`, if nobody else has changed it.
    pub fn meta(&self) -> Meta {
        self.meta
    }
}
