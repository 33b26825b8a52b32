//! ankipi: a self-hosted Anki sync server for small boards.

pub mod cli;
pub mod config;
pub mod error;
pub mod sys;
