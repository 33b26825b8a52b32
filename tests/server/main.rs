//! The whole server, as a process, seen through its socket by a scripted client that may send anything.
//!
//! What the real client sends is tested with the real client; here is mostly what it never sends.

mod binary; // which server that is
mod client; // a client of protocol 11 that does as it is told
mod form; // and one of the protocols before
mod harness; // the server as a child process: its log, its memory, its files
mod process_figures; // its memory and what it writes, as the kernel counts them

mod accounts; // users and devices that come and go while the server runs; guessing
mod accounts_model; // random histories of accounts against a simple model
mod auth; // every endpoint with every kind of key
mod commands; // what the commands say, and with what they end
mod hostile; // bad input at every endpoint: the right status, a log line, flat memory, untouched files
mod http; // paths, verbs, framing, pages
mod legacy; // forms, and what else clients before 2.1.57 send
mod limits; // quotas, the free disk, and who may sync
mod login; // passwords and keys, and who may see what
mod memory; // what requests leave behind
mod merge; // whose row wins
mod old_files; // old schemas, and rows out of order
mod outside_changes; // what somebody else does to the files while the server runs
mod paths; // symlinks, modes, names
mod races; // requests of several devices in any order
mod readers; // downloads, exports and checks of what changes meanwhile
mod replay; // requests of the real client, compared with the answers of the official server
mod sessions; // start to finish and every way to end in between
#[path = "../media/zip.rs"]
#[allow(dead_code, reason = "the other half is for the tests of media")]
mod zip; // the zips of media sync
