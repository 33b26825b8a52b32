//! ankipi: a self-hosted Anki sync server for small boards.

pub mod accounts;
pub mod api;
pub mod cli;
pub mod clock;
pub mod collection;
pub mod config;
pub mod error;
pub mod fsutil;
pub mod http;
pub mod logging;
pub mod server;
pub mod session;
pub mod spool;
pub mod sys;
pub mod text;
pub mod translate;
pub mod wire;
