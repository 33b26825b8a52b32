//! Normal syncs, which merge changes: the session of a device from `start` to `finish`, and a file for each step.
//!
//! Not here: full syncs (`collection::full`), media (`media`), the JSON of the protocol (`messages`), HTTP. Imports
//! `collection`, `media`, `messages`, `text`, `files`, `config`.

mod between_syncs;
mod daily_backup;
mod download;
mod graves;
mod kept_connection;
mod merge_objects;
mod merge_rows;
mod row_counts;
mod sanity_and_finish;
mod send_objects;
mod send_rows;
pub mod session;
mod start;
pub mod user;
pub mod users;
mod wrong_stamps;

pub use merge_rows::NotetypeShapes;
pub use send_rows::ChunkCursor;
