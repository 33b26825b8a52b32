//! Sends notetypes, decks, deck options, tags and config that changed (collection-format.md 12.4).
//!
//! The other direction: `merge_objects`.

use crate::collection::objects::ObjectWriter;
use crate::collection::{CachedStatements, Collection, Range};
use crate::error::Result;
use std::io::Write;

impl Collection {
    /// Writes the changes that the client has not seen, and the config if `with_config` (the server's is newer). Must
    /// run before the client's own changes are applied.
    pub fn write_changes(&self, unseen: Range, with_config: bool, out: &mut impl Write) -> Result<()> {
        let mut objects = ObjectWriter::list(out);
        objects.raw("{\"models\":[")?;
        self.write_notetypes(unseen, &mut objects)?;
        objects.raw("],\"decks\":[[")?;
        self.write_decks(unseen, &mut objects)?;
        objects.raw("],[")?;
        self.write_deck_configs(unseen, &mut objects)?;
        objects.raw("]],\"tags\":[")?;
        self.write_tags(unseen, &mut objects)?;
        objects.raw("]")?;
        if with_config {
            objects.raw(",\"conf\":{")?;
            self.write_config(&mut objects)?;
            let created: i64 = self.db.query_row_cached("SELECT crt FROM col", [], |row| row.get(0))?;
            objects.raw(&format!("}},\"crt\":{created}"))?;
        }
        objects.raw("}")
    }
}
