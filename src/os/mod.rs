//! The operating system: a file for each kind of system call, and the clock. All `unsafe` code of the crate is here.
//!
//! Not here: files and folders (`files`), which need no `unsafe`. Imports nothing of ours.

mod allocator;
pub mod clock;
mod disk;
mod identity;
mod interfaces;
mod poll;
mod process;
mod signals;
mod sockets;
mod sqlite_wal;
mod terminal;

pub use allocator::release_freed_memory;
pub use disk::{
    NO_FOLLOW, WholeFileSystem, can_be_shared_memory, check_access, check_writable, clone_file, free_bytes,
    has_no_locks, is_unsupported,
};
pub use identity::{effective_user, user_name};
pub use interfaces::lan_addresses;
pub use poll::{POLL_ERR, POLL_HUP, POLL_IN, POLL_OUT, PollFd, poll, poll_fd};
pub use process::{
    TARGET, VERSION, can_open_descriptors, lower_priority, open_files_limit, prepare_process,
    raise_open_files_limit, random,
};
pub use signals::{Signal, on_signals};
pub use sockets::{
    TcpProgress, handed_over_sockets, is_all_acknowledged, is_unknown_address_family, reset_on_close,
    tcp_progress,
};
pub use sqlite_wal::skip_sync_of_new_wal_header;
pub use terminal::EchoOff;
