//! The end of a session: compare counts, stamp, commit (collection-format.md 12.7, 12.8).

use rusqlite::{OptionalExtension, params};

use crate::collection::row_totals::LargeTable;
use crate::collection::schema::TABLES_WITH_USN;
use crate::collection::{CachedStatements, Collection, Stamps};
use crate::error::Result;
use crate::messages::SanityCounts;

impl Collection {
    /// The row counts to compare with the client's. None if a row has usn -1 ("pending"), which no row on a server may
    /// have.
    pub fn sanity_counts(&self) -> Result<Option<SanityCounts>> {
        for table in TABLES_WITH_USN.iter().filter(|table| !["config", "templates"].contains(table)) {
            let pending = format!("SELECT 1 FROM {table} WHERE usn = -1 LIMIT 1");
            if self.db.query_row_cached(&pending, [], |_| Ok(())).optional()?.is_some() {
                log::warn!("sanity check: table {table} has rows marked as pending");
                return Ok(None);
            }
        }
        let count = |table: &str| -> Result<u32> {
            Ok(self.db.query_row_cached(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?)
        };
        let large = self.row_totals()?;
        Ok(Some(SanityCounts {
            cards: large.of(LargeTable::Cards),
            notes: large.of(LargeTable::Notes),
            revlog: large.of(LargeTable::Revlog),
            notetypes: count("notetypes")?,
            decks: count("decks")?,
            deck_configs: count("deck_config")?,
        }))
    }

    /// Sets the collection's stamps and commits; returns the new modified stamp, ms.
    pub fn finish(&self, before: Stamps) -> Result<i64> {
        let stamp = before.next_modified();
        self.db
            .execute_cached("UPDATE col SET ls = ?1, mod = ?1, usn = ?2", params![stamp, before.usn + 1])?;
        self.stamp_renamed(before.usn)?;
        self.commit()?;
        Ok(stamp)
    }
}
