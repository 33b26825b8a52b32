//! Files on the owner's disk: durable writes (fsync, rename), locks between processes, owners, spools.
//!
//! Not here: what is in the files. Imports `os` and `error`.

pub mod disk_abilities;
pub mod durable;
pub mod locks;
pub mod owner;
pub mod spool;
pub mod sqlite_files;
pub mod temporary;

pub use disk_abilities::{has_shared_memory, synchronous};
pub use durable::{GentleFile, create_folder, remove_if_there, replace_file, sync_folder};
pub use locks::{
    holder, is_in_use, keep_in_place, lock_data_folder, lock_if_possible, running_servers, wait_to_replace,
};
pub use owner::{create_for_owner, give_all, refuse_link};
