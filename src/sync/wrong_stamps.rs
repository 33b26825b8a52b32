//! Wrong stamps: a collection that is older than what a device knows, and one that was modified in the future.

use rusqlite::params;

use crate::collection::{Collection, Meta, Stamps};
use crate::error::{Error, Result};
use crate::os::clock;

/// Clients do not sync if their clock and the server's differ by more than this. A later stamp than that is wrong.
const MAX_SKEW_MILLIS: i64 = 300_000;

/// The modified stamp that `meta` tells in place of one in the future. Every client with changes is newer than this.
const LONG_AGO: i64 = 1;

impl Stamps {
    /// Whether the collection was modified in the future. The clock of this board, or of the computer that the file
    /// comes from, was wrong once.
    pub fn is_from_future(&self) -> bool {
        self.modified > clock::now_millis().saturating_add(MAX_SKEW_MILLIS)
    }

    /// The modified stamp for clients. A stamp in the future would make each client believe that the server is newer, and
    /// discard its own changes of the config.
    pub fn modified_for_clients(&self) -> i64 {
        if self.is_from_future() { LONG_AGO } else { self.modified }
    }

    /// The modified stamp of a sync that ends now. `self` are the stamps before it.
    pub fn next_modified(&self) -> i64 {
        let now = clock::now_millis();
        if self.is_from_future() {
            return now;
        }
        // The clock of a board without an RTC may be behind. The new stamp must still be later than the old one.
        now.max(self.modified.saturating_add(1))
    }
}

impl Collection {
    /// Returns an error if the client knows a later usn than the collection has: the folder was restored from a copy. A
    /// sync would exchange only what is newer than that usn, and both sides would differ for ever. So the collection
    /// gets a new schema stamp, with which each device is asked for a full sync. Call in the transaction of a session,
    /// which is committed then.
    pub fn refuse_if_behind(&self, meta: &Meta, client_usn: i32) -> Result<()> {
        let Stamps { modified, schema, usn } = meta.stamps;
        if client_usn <= usn {
            return Ok(());
        }
        let mut stamp = clock::now_millis();
        while [modified, schema].contains(&stamp) {
            stamp += 1;
        }
        self.db.execute("UPDATE col SET scm = ?1, mod = ?1", params![stamp])?;
        self.commit()?;
        Err(Error::Busy(format!(
            "the collection is older than what the device knows (usn {usn} here, minUsn {client_usn} there). Was the \
             folder put back from a copy? From now on each device is asked for a full sync"
        )))
    }

    /// Replaces stamps in the future, before the collection goes to a device as a file.
    pub fn correct_stamps(&self, stamps: Stamps) -> Result<()> {
        let now = clock::now_millis();
        self.db.execute("UPDATE col SET mod = ?1, scm = min(scm, ?1)", params![now])?;
        log::warn!(
            "the collection was modified on {}, which is in the future: its stamps are set to now",
            clock::moment(stamps.modified / 1000)
        );
        Ok(())
    }
}
