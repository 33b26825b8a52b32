//! A sync that merges: the session of a device from `start` to `finish`, and its steps, a file each.
//!
//! Not here: full syncs (`collection::full`), media (`media`), the JSON of the protocol (`messages`), HTTP. Imports
//! `collection`, `media`, `messages`, `text`, `files`.

mod graves;
pub mod new_collection;
pub mod objects;
pub mod rows;
mod sanity_and_finish;
pub mod session;
mod start;
