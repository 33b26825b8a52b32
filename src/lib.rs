//! ankipi: a self-hosted Anki sync server for small boards.

pub mod error;
pub mod sys;
pub mod translate;
