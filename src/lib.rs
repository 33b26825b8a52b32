//! ankipi: a self-hosted Anki sync server for small boards.

pub mod error;
pub mod server;
pub mod sys;
