//! Collections that come or go as files: `.colpkg` for Anki, and the data folders of other servers.
//!
//! Not here: full syncs over the network (`collection::full`). Imports `collection`, `media`, `accounts`, `files`.

pub mod from_other_servers;
pub mod read_colpkg;
pub mod write_colpkg;
