//! The collection as a whole file: uploads that replace it, downloads that send it, backups and restore.
//!
//! Not here: syncs that merge rows (`sync`). Imports `collection::schema`, `files`, `os`.

pub mod backups;
pub mod download;
mod indexes;
mod refusal;
mod repair;
pub mod replace;
pub mod restore;
mod row_sizes;
pub mod upload;
