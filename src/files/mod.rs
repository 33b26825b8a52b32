//! Files on the owner's disk: durable writes (fsync, rename), locks between processes, owners, spools.
//!
//! Not here: what is in the files. Imports `os`, `error`, and the names of our own files from
//! `config`.

pub mod damaged;
pub mod durable;
mod held_folder;
pub mod locks;
pub mod owner;
pub mod spool;
pub mod sqlite_files;
pub mod temporary;

pub use durable::{
    GentleFile, create_folder, maps_files, remove_folder, remove_if_there, replace_file, sync_folder,
};
pub use held_folder::{HeldFolder, is_there};
pub use locks::{
    holder, is_in_use, keep_in_place, leave_notice, lock_data_folder, notices, running_servers,
    wait_to_replace,
};
pub use owner::{create_for_owner, give_all, refuse_link};
