//! ankipi: a self-hosted Anki sync server for small boards.
//!
//! One binary, one data folder, a few MB of memory whatever the size of a collection. It is written from a
//! specification of the protocol and the file format; "spec" in comments means its files sync-protocol.md and
//! collection-format.md, by section.
//!
//! # How a request flows
//!
//! ```text
//! client socket
//!   server::guard      one poll() thread owns every client socket: heads checked, bodies re-framed, time and numbers
//!   |                  bounded; hands one request per connection to tiny_http over a private Unix socket
//!   server             four worker threads take requests from tiny_http; a panic ends its request only
//!   api                route, then everything that the head tells: version, host key -> user, session key, size
//!   |  accounts        passwords, host keys, and how often somebody may guess
//!   http::body         socket -> cap on wire bytes -> zstd, or (clients before 2.1.57) a form with gzip in it
//!                      -> cap on decoded bytes -> spool (or a file, for uploads)
//!   spool              512 KiB in memory, the rest in a nameless file
//!   session            the user's lock; the session with this key, which is an open SQLite transaction
//!   collection         one step of the sync, row by row, through
//!   |  wire            the JSON shapes, parsed element by element,
//!   |  translate       the tables between JSON objects and protobuf blobs,
//!   |  text            what is derived from note text, and the collation of names
//!   media              the other half of a sync: files and their index, under a lock of their own
//!   (lock released)
//!   http::reply        the spooled reply in zstd blocks; http::patience has kept the client waiting if that took long
//!   api::access_log    one line
//! ```
//!
//! Protocols 8 to 10 tell in a form what protocol 11 tells in a header (`api::admission`), and the form's fields may stand
//! behind its data. Then these are spooled as they are, and unpacked only when the key was seen. Replies to forms are
//! plain, to the letter, and have their length in the head.
//!
//! A full upload goes from the decoder to a file beside the collection, is checked there (`collection::upload`), and
//! only then, under the lock, takes its place (`collection::replace`). A full download is a snapshot
//! (`collection::download`) that is sent while other devices go on.
//!
//! A sync writes into the collection itself, with a rollback journal beside it, so that what is new is written once.
//! While a download or `ankipi export` reads, syncs write to a WAL, and when nobody reads any more, that is folded into
//! the file: the first sync beside a download opens a snapshot of its own, `session::State::keeper`, that makes it so.
//!
//! Clients of protocols 8 to 10 keep their collection in schema 11. Their uploads are brought to schema 18 by the check
//! (`collection::upgrade`); their downloads are a scratch copy that is brought back (`collection::downgrade`).
//!
//! Media come as zips: spooled (a large stored file straight to the place that it is renamed from), read by their
//! directory, each file unpacked to a place of its own and synced, then all of them renamed into the folder and
//! recorded in one transaction; the header of `media` says what a crash leaves at each step. They go as zips that are
//! streamed from the files. `ankipi check` (`commands::check`) looks at all of it from outside. `colpkg` packs it for
//! Anki, `import` brings it from other servers, `collection::restore` goes back to a backup.
//!
//! # What holds everywhere
//!
//! - `collection` and `media` never see HTTP, `http` never sees SQLite, `wire` and `translate` do no I/O; only `http` and `server`
//!   name tiny_http. Settings are passed, never global. `unsafe` is in `sys` alone.
//! - No lock is held while a socket is read or written: bodies are spooled before, replies after. (The one on a reply is,
//!   so that its signs of life and its rest do not mix: `http::patience`.)
//! - Nothing whose size a client chooses is held whole in memory: one row, one notetype, one deck at a time, of at most
//!   MAX_SYNC_ROW_MEGS. Media files pass through in blocks.
//! - Nothing is acknowledged before it is on disk. Every rename is of a synced file and is followed by a sync of the
//!   folder. Being killed at any line leaves the state before or after a request; `collection::replace::clean_up` and
//!   `media::MediaStore::open` tidy at the next start.
//! - Nothing is opened for writing through a symbolic link inside the data folder (`fsutil::refuse_link`).
//! - A key is looked at before a body is read, and again when it has come (`api::App::confirm`).
//! - An error is a situation (`error::Error`), becomes a status in one place, and is logged once, in `api`.
//!
//! # Locks
//!
//! One per user around the collection (`session::User`), another around the media (`media::MediaStore`), so that the one
//! syncs while the other does, and one around the map of users (`session::Users`), held for a look-up, and while the
//! folder of a new user is readied. In `accounts` there are one around what is known of accounts, held for a look-up or
//! while changed files are read anew, one per account around its keys, one around the counts of failed logins, and one
//! around password hashing. In `http::encoding` one is held to leave a decoder's buffers or take them, in
//! `http::patience` one around the list of clients that wait, and one around each reply to them. No code takes a
//! second one while it holds the first; readying a new user's media and reading accounts anew make theirs. Across
//! processes, a lock file (`accounts::users_file::lock`) is held while accounts or keys are changed; it is taken first,
//! for a moment, and never while a password is asked for or hashed. A download opens and closes its snapshot under its
//! user's lock and reads without it; an upload may move the file under it, which the snapshot survives. Commands that
//! read all of a collection wait until no device is in the middle of a sync with it (`commands::data`); while a command
//! opens one it keeps the folder locked, and no other takes its place (`fsutil::keep_in_place`).
//!
//! # Why a guard
//!
//! tiny_http does not survive the open network: one request can abort the process, one failed accept ends it, it has no
//! timers and no limits. The maintained fork mends four of a dozen faults and changes the interface. `server::guard`
//! says what was measured, and what it does about each.

pub mod accounts;
pub mod api;
pub mod cli;
pub mod collection;
pub mod compression;
pub mod config;
pub mod error;
pub mod files;
pub mod http;
pub mod import_export;
pub mod logging;
pub mod media;
pub mod messages;
pub mod os;
pub mod server;
pub mod sync;
pub mod text;
