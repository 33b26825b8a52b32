//! Files on the owner's disk: the data folder, durable writes (fsync, rename), free space, locks between processes, owners, spools.
//!
//! Not here: what is in the files. Imports `os`, `text`, `error`, and the name of the users file from `config`.

pub mod access;
pub mod damaged;
pub mod data_folder;
pub mod disk_abilities;
pub mod durable;
pub mod free_space;
mod held_folder;
pub mod locks;
pub mod owner;
pub mod spool;
pub mod sqlite_files;
pub mod temporary;

pub use disk_abilities::{has_shared_memory, synchronous};
pub use durable::{
    Flush, FsyncingFile, create_folder, flush_at_once, remove_folder, remove_if_there, replace_file,
    sync_folder,
};
pub use held_folder::{HeldFolder, id_of, is_there};
pub use locks::{
    holder, is_in_use, leave_notice, lock_against_replacement, lock_data_folder, lock_for_replacement,
    lock_if_possible, notices, running_servers,
};
pub use owner::{create_for_owner, give_tree_to_owner, refuse_link};
