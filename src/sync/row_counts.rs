//! How many rows of each kind a chunk has, for the log.

use crate::text::counted::counted;

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
        let [notes, cards, reviews] = [(self.notes, "note"), (self.cards, "card"), (self.revlog, "review")]
            .map(|(n, noun)| counted(n, noun));
        write!(f, "{notes}, {cards}, {reviews}")
    }
}

impl RowCounts {
    pub(super) fn total(self) -> usize {
        self.revlog + self.cards + self.notes
    }
}
