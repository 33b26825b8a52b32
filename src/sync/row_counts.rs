//! How many rows of each kind a chunk has, for the log.

/// Counts for the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowCounts {
    /// Reviews.
    pub revlog: usize,
    /// Cards.
    pub cards: usize,
    /// Notes.
    pub notes: usize,
}

impl std::fmt::Display for RowCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} notes, {} cards, {} reviews", self.notes, self.cards, self.revlog)
    }
}

impl RowCounts {
    pub(super) fn total(self) -> usize {
        self.revlog + self.cards + self.notes
    }
}
