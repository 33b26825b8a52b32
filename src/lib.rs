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
//!   server::connections    one poll() thread owns all client sockets: checks heads, re-frames bodies, enforces limits and
//!   |                      timeouts; passes one request at a time per connection to tiny_http over a private Unix
//!   |                      socket (`kept_backends`: small requests of all clients share three connections); lets clients
//!   |                      take turns, and an everyday sync end before the next begins (`queue`)
//!   server::workers        six threads take requests from tiny_http; a panic ends its request only
//!   api                    finds the route, then checks the head: version, host key -> user, session key, size
//!   |  accounts            passwords, host keys of devices, how often somebody may guess
//!   http::body             socket -> limit on wire bytes -> zstd, or (clients before 2.1.57) a form with gzip in it
//!   |  compression         -> limit on decoded bytes -> spool (or a file, for uploads)
//!   files::spool           512 KiB in memory, the rest in a nameless file
//!   sync::session          takes the user's lock; finds the session, which is an open SQLite transaction
//!   sync                   one step of the sync, row by row, with
//!   |  messages            the JSON of the protocol, parsed element by element,
//!   |  collection          the file: tables, journal, collation, and
//!   |  collection::blobs   the tables between JSON objects and protobuf blobs
//!   |  text                what is computed from the text of a note
//!   media                  the other half of a sync: media files and their index, under a lock of their own
//!   (lock released)
//!   http::response         the spooled reply in zstd blocks, packed as the client's link makes worthwhile
//!                          (compression::zstd_encoder); until it begins, http::keep_client_waiting
//!                          sends keep-alive bytes so that the client does not time out; goes back through tiny_http
//!                          and the poll thread, or, if small, to the client at once (http::client_link)
//!   logging::access_log    one line
//! ```
//!
//! Protocols 8 to 10 send in a form what protocol 11 sends in a header (`api::authentication`). The key may come after
//! the data: then the data are spooled as they are, and unpacked only after the key was checked. Replies to forms are
//! plain and have a Content-Length.
//!
//! A full upload goes from the decoder to a file beside the collection, is checked there (`collection::full::upload`),
//! and then replaces the collection under the user's lock (`collection::full::replace`); the old file moves to the
//! backups (`collection::full::backups`). A full download sends a snapshot (`collection::full::download`) while other
//! devices sync.
//!
//! A sync writes to a WAL: its commit waits for one or two flushes of the disk. The connection stays open for some
//! seconds (`sync::between_syncs`), so that the next sync finds its statements prepared; then, or before a download, or
//! at the stop, the WAL is checkpointed and removed, and the collection is one file again. While a download reads the
//! file, a snapshot (`sync::user::State::keeper`) keeps the WAL out of it. A sync whose first chunk of rows is full
//! begins anew with a rollback journal (`sync::session::Session::prepare_for_rows`), because what it adds is then
//! written once; one such sync at a time also has a larger page cache (`limits_and_timeouts::SPARE_MEMORY`). While more
//! than four syncs are open, the others keep no unchanged pages and no statements between their steps (`limits_and_timeouts::SESSIONS_WITH_CACHES`). What `meta` and `begin` answer is remembered while the file does not change
//! (`files::sqlite_files::Remembered`), and so is the number of its rows (`collection::row_totals`).
//!
//! Clients of protocols 8 to 10 keep their collection in schema 11. Their uploads are upgraded to schema 18
//! (`collection::schema::upgrade`). They download a temporary copy that was downgraded
//! (`collection::schema::downgrade`).
//!
//! Media come as zips. A zip is spooled, and each file is unpacked to a temporary file. One transaction records and lists them;
//! it and the files are made durable at the same time, and then the files are renamed into the folder. The header of `media`
//! says what a crash leaves at each step. Downloads of media are zips streamed from the files.
//!
//! `ankipi check` (`cli::commands::check`) looks at all of it from outside. `import_export` writes packages for Anki
//! and takes over the folders of other servers.
//!
//! # Which folder imports which
//!
//! ```text
//! main -> cli -> server -> api -> sync, import_export, logging -> collection, media, accounts, http
//!      -> files -> messages, config -> compression, text, os, limits_and_timeouts, error
//! ```
//!
//! An import goes to the right only.
//!
//! # What holds everywhere
//!
//! - `collection` and `media` know no HTTP, `http` knows no SQLite, `messages` and `collection::blobs` do no I/O. Only
//!   `http` and `server` name tiny_http. Settings are passed as arguments, never global. `unsafe` is in `os` alone.
//! - No lock is held while a socket is read or written: bodies are spooled before, replies after. (Except the lock of
//!   one reply, so that its keep-alive bytes and its body do not mix: `http::keep_client_waiting`; and that of an offer to
//!   send a reply to the client at once, into an empty socket that never blocks: `http::client_link`.)
//! - Nothing whose size a client chooses is held whole in memory: one row, one notetype, one deck at a time, of at most
//!   MAX_SYNC_ROW_MEGS. Media files pass through in blocks.
//! - Nothing is acknowledged before it is on disk. Every rename is of a synced file and is followed by a sync of the
//!   folder, or (media) is done again from a durable list, which is kept until a later sync. A kill at any line leaves the
//!   state before or after a request; `collection::full::replace::clean_up` and `media::MediaStore::open` clean up at the
//!   next start.
//! - No file is opened for writing through a symbolic link inside the data folder (`files::refuse_link`).
//! - A key is checked before a body is read, and again when it has arrived (`api::App::confirm`).
//! - An error is a situation (`error::Error`), becomes a status in one place, and is logged once, in `api`.
//!
//! # Locks
//!
//! - One per user around the collection (`sync::user::User`), another around the media (`media::MediaStore`), so that
//!   both sync at the same time.
//! - One around the map of users (`sync::users::Users`), held for a look-up, and one per user around the folder, held
//!   while it is prepared.
//! - In `accounts`: around the snapshot of all accounts, held to look at it or to replace it; around making a new one;
//!   around the counts of failed logins; around password hashing.
//! - In `os::allocator`: around freed buffers, of which nobody waits for it.
//! - In `compression::zstd_decoder`: around the buffers of decoders that are kept. In `http::client_link`: around the
//!   connections of forwarded requests, and for each connection one around its speed and one around what is offered to
//!   its reply (for which the poll thread may wait while a worker writes a small reply to an empty socket). In
//!   `http::keep_client_waiting`: around the list of waiting clients, and one around each reply to them.
//! - In `api::quota_and_free_space`: around the spare bytes of users. In `files::free_space`: around the number of
//!   reserved bytes.
//! - In `limits_and_timeouts::at_most`: around counts of permits. A permit is held while a large row is read, or a
//!   large body that is here whole is unpacked; who waits for one may hold a user's lock, and who holds one waits for
//!   no other lock.
//!
//! No code takes a second lock while it holds one of these, with three exceptions: a permit for a large row, preparing
//! a user's folder (which takes the user's locks, and those of `accounts` if the folder is missing), and making a new
//! snapshot of the accounts.
//!
//! Between processes: the lock file of `accounts::users_file::lock` is held while accounts or keys change. It is taken
//! first, briefly, and never while a password is asked for or hashed. A download opens and closes its snapshot under
//! its user's lock and reads without it; an upload may move the file under it, which the snapshot survives. Commands
//! that read a whole collection see the last committed state; if a device is in the middle of a sync of many rows, they
//! wait until it is done (`cli::commands::user_folders`). While a command opens a collection it locks the folder, and
//! the server replaces no file there (`files::lock_against_replacement`).
//!
//! # Why tiny_http is not on the network itself
//!
//! One request can abort the process, one failed accept ends its accept loop, it has no timeouts and no limits. The
//! maintained fork fixes four of a dozen faults and changes the interface. `server::connections` lists what was
//! measured, and what it does about each.

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
pub mod limits_and_timeouts;
pub mod logging;
pub mod media;
pub mod messages;
pub mod os;
pub mod server;
pub mod sync;
pub mod text;
