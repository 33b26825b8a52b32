//! Every limit of a request, declared and explained in one place. They are enforced where the bytes pass:
//!
//! | limit | declared as | enforced in |
//! |---|---|---|
//! | head, header lines | `Limits::max_head_bytes`, `max_headers` | `http::request_head` |
//! | time and pace of a client | `Limits::first_byte` ... `write_idle` | `server::connections::pace`, `forwarding` |
//! | connections, in all and for an address | `Limits::max_conns`, `max_conns_per_address` | `server::connections` |
//! | a turn in the queue, open syncs with their pages, kept connections | `SYNC_STEPS_IN_PLACE` ... `KEPT_CONNECTIONS` | `server::connections::queue`, `sync` |
//! | workers, in all and for a client (a user, or an address) | `Limits::max_active` ... `max_bulk_per_client` | `server::connections::queue` |
//! | memory of bodies and replies that wait | `Limits::max_whole_bytes`, `max_buffered_bytes` | `server::connections` |
//! | body as sent, body unpacked | MAX_SYNC_PAYLOAD_MEGS, `SMALL_BODY_BYTES` | `http::body`, by the declared length before a byte is read |
//! | memory of decoders | `ZSTD_*` | `compression::zstd_decoder` |
//! | small bodies that are unpacked to much at once | `UNPACKING_*` | `compression::zstd_decoder` |
//! | a media zip or many pages in memory | `MEDIA_ZIP_MEMORY_BYTES`, `MANY_ROWS_CACHE_KIB`, `SPARE_MEMORY` | `files::spool`, `sync::session` |
//! | a row, a notetype, a deck | MAX_SYNC_ROW_MEGS, `LARGE_ELEMENT_BYTES` | `messages`, `sync` |
//! | parts and texts of a form | `FORM_*` | `http::form` |
//! | entries of a media zip, unpacked | `MEDIA_*` | `media::zip`, `media::upload` |
//! | stored bytes of a user, free bytes of the disk | `STORAGE_*`, SYNC_QUOTA_MEGS, SYNC_MIN_FREE_MEGS | `api::quota_and_free_space` |
//! | failed logins | `LOGIN_*` | `accounts::login_throttle` |
//!
//! The rule behind those of workers: a worker never waits for the bytes of one client while another client waits for a
//! worker. So a body of up to `max_whole_bytes` is received whole before a worker gets it, and a reply is buffered as
//! far. Longer ones, in either direction, are bulk transfers: these have slots of their own, of which a client may
//! hold some, and one that is slow loses its slot when somebody else waits for one. Slow clients that nobody waits for are
//! left alone.
//!
//! Imports nothing but the standard library.

pub mod at_most;

use std::time::Duration;

use at_most::AtMost;

/// The limits of connections and requests. The defaults fit a board with 64 MB of RAM and the timeouts of the known
/// clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Maximum open client connections. Lowered at start if the limit on file descriptors requires it.
    pub max_conns: usize,
    /// Maximum open connections of one client address (of one /64 network of IPv6). One more ends the oldest of that
    /// address. Trusted proxies are exempt; the clients behind them are not.
    pub max_conns_per_address: usize,
    /// Maximum active requests: the number of the backend's worker threads.
    pub max_active: usize,
    /// Maximum active requests of one client beside its bulk transfers. A client is a user where the head has a host key
    /// of an account, and an address otherwise. Besides, the last free worker is kept for a client that has none.
    pub max_active_per_client: usize,
    /// Maximum active bulk transfers: by their path, or because they are longer than `max_whole_bytes`. Kept below
    /// `max_active`, so that small requests always find a worker.
    pub max_bulk: usize,
    /// Maximum active bulk transfers of one client. Kept below `max_bulk` where that is possible.
    pub max_bulk_per_client: usize,
    /// Maximum active logins. Each takes about a second of CPU (PBKDF2); the rest queue here without holding a worker. One
    /// that is longer than `max_whole_bytes` is refused.
    pub max_logins: usize,
    /// Maximum bytes of a request head.
    pub max_head_bytes: usize,
    /// Maximum header lines of a request head.
    pub max_headers: usize,
    /// A body of up to this size is received whole before a worker gets the request; as much of a reply is kept for a
    /// client that reads slowly. Nearly all requests of a small sync, and all logins, are below.
    pub max_whole_bytes: usize,
    /// Maximum bytes that all connections together may hold in memory. If there are more, the client that holds most
    /// loses a connection.
    pub max_buffered_bytes: usize,
    /// Timeout for the first byte of a new connection.
    pub first_byte: Duration,
    /// Timeout for the whole head, from its first byte.
    pub head: Duration,
    /// Idle timeout for the next request. Clients keep pooled connections for 90 s and do not retry a request that fails
    /// because the server closed one, so the server must wait longer.
    pub keep_alive: Duration,
    /// Timeout for the next byte of a body, once it flows.
    pub body_idle: Duration,
    /// How long a body may be slower than `body_rate` at its start.
    pub body_grace: Duration,
    /// Minimum average rate of a body, in bytes a second.
    pub body_rate: u64,
    /// A bulk transfer that has been queued for this long is overdue. Then one that has held a slot for as long, and that
    /// waits for its client, must move `busy_rate`, or it is ended.
    pub busy_after: Duration,
    /// The same for small requests, which are overdue only if bulk transfers have taken all workers.
    pub busy_after_light: Duration,
    /// Minimum rate of a bulk transfer while another request is overdue, in bytes a second over the last seconds. A bad
    /// telephone line is faster.
    pub busy_rate: u64,
    /// Timeout for the client to take a byte of its reply.
    pub write_idle: Duration,
    /// How long a request may be queued for a free slot before it gets 503.
    pub queue_wait: Duration,
    /// How often the connection layer looks whether replies went to their clients past it, if nothing else happens.
    pub offer_check: Duration,
    /// How long a connection stays open after the last reply if the client still sends, so that the client can read the
    /// reply.
    pub linger: Duration,
    /// Maximum bytes that are read and thrown away from a client that still sends after its reply.
    pub linger_bytes: usize,
    /// The pause after each 8 KB of these.
    pub linger_pause: Duration,
    /// Connections that have been idle for less than this are not evicted, so that in a flood each can send its request.
    pub min_wait: Duration,
    /// The same for a connection of an address that has more than `max_conns_per_address`.
    pub min_wait_in_crowd: Duration,
    /// How long a stop waits for active requests.
    pub stop_wait: Duration,
    /// The server stops by itself after this time without any connection; `None` for never.
    pub idle_exit: Option<Duration>,
}

/// What a request costs, which decides how many of its kind may be active. The cheapest are started first.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// Takes milliseconds.
    Light,
    /// A login: about a second of CPU.
    Login,
    /// A transfer that may take minutes.
    Bulk,
}

/// What a request is to the sync of its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncStep {
    /// Its first step: `start`. After it, the server holds the sync in memory.
    First,
    /// A later one.
    Later,
}

/// How many later steps of a sync take the place of its first in the queue. Those of an everyday sync are 5 to 7.
pub const SYNC_STEPS_IN_PLACE: u32 = 8;

/// A place whose turn is so many turns ago is forgotten when another sync begins.
pub const SYNC_PLACE_TURNS: u64 = 8;

/// How many open syncs, of all users, keep SQLite's pages and statements from step to step: some 400 KiB each. Of other syncs
/// 240 KiB stay, so that 50 users whose devices are all slow take no more than 16 MiB.
pub const SESSIONS_WITH_CACHES: usize = 4;

/// How many users may have a connection without a sync. Each has pages and statements in memory, some 300 KB.
pub const KEPT_CONNECTIONS: usize = 6;

/// Threads that answer requests, at most half of them bulk transfers.
pub const WORKERS: usize = 6;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_conns: 512,
            max_conns_per_address: 256,
            max_active: WORKERS,
            max_active_per_client: 4,
            max_bulk: WORKERS / 2,
            max_bulk_per_client: 2,
            max_logins: 1,
            max_head_bytes: 32 << 10,
            max_headers: 100,
            max_whole_bytes: 64 << 10,
            max_buffered_bytes: 4 << 20,
            first_byte: Duration::from_secs(60),
            head: Duration::from_secs(20),
            keep_alive: Duration::from_secs(150),
            body_idle: Duration::from_secs(60),
            body_grace: Duration::from_secs(10),
            body_rate: 100,
            busy_after: Duration::from_secs(3),
            busy_after_light: Duration::from_millis(250),
            busy_rate: 4 << 10,
            write_idle: Duration::from_secs(60),
            queue_wait: Duration::from_secs(20),
            offer_check: Duration::from_secs(1),
            linger: Duration::from_secs(5),
            linger_bytes: 1 << 20,
            linger_pause: Duration::from_millis(40),
            min_wait: Duration::from_millis(250),
            min_wait_in_crowd: Duration::from_millis(50),
            stop_wait: Duration::from_secs(9),
            idle_exit: None,
        }
    }
}

impl Limits {
    /// File descriptors reserved for listeners, databases and files.
    const SPARE_FDS: usize = 16;

    /// File descriptors that databases and files are taken to need at most, where the limit leaves so many: those of 200
    /// users who sync at once. Below that, free ones are counted.
    pub const FDS_OF_DATABASES: usize = 1024;

    /// File descriptors of an active request: one in the connection layer, two in tiny_http, which duplicates its socket.
    pub const FDS_PER_REQUEST: usize = 3;

    /// How many requests of this weight may be active.
    pub fn max_of(&self, weight: Weight) -> usize {
        match weight {
            Weight::Light => self.max_active,
            Weight::Login => self.max_logins,
            Weight::Bulk => self.max_bulk,
        }
    }

    /// These limits, made consistent with each other and with the limit on file descriptors, so that running out of
    /// descriptors is rare.
    pub fn fit(mut self, open_files: usize) -> Limits {
        self.max_active = self.max_active.max(1);
        let below_all = (self.max_active - 1).max(1);
        self.max_active_per_client = self.max_active_per_client.clamp(1, below_all);
        self.max_bulk = self.max_bulk.clamp(1, below_all);
        self.max_bulk_per_client = self.max_bulk_per_client.clamp(1, (self.max_bulk - 1).max(1));
        self.max_logins = self.max_logins.clamp(1, below_all);
        let spare = self.max_active.saturating_mul(Limits::FDS_PER_REQUEST).saturating_add(Limits::SPARE_FDS);
        self.max_conns = self.max_conns.min(open_files.saturating_sub(spare)).max(1);
        self.max_conns_per_address = self.max_conns_per_address.clamp(1, self.max_conns.div_ceil(2));
        self
    }
}

/// After how many failed logins there is a delay, and the longest one. It doubles with each failure.
pub struct LoginRule {
    /// Failures without a delay.
    pub free: u32,
    /// The maximum delay.
    pub longest: Duration,
}

/// For a user at an address.
pub const LOGIN_PAIR: LoginRule = LoginRule { free: 3, longest: Duration::from_secs(300) };

/// For an address; not for accounts that were not guessed there.
pub const LOGIN_ADDRESS: LoginRule = LoginRule { free: 10, longest: Duration::from_secs(60) };

/// For a user at all addresses that have failed themselves.
pub const LOGIN_USER: LoginRule = LoginRule { free: 10, longest: Duration::from_secs(30) };

/// How many counts of each kind are kept, 32 bytes each: more than a board sees in an hour.
pub const LOGIN_COUNTS: usize = 256;

/// How long a count is kept after its last failure.
pub const LOGIN_MEMORY: Duration = Duration::from_secs(3600);

/// How many unknown names at delayed addresses are hashed as those of accounts are: so many at once, and then one in this
/// time.
pub const LOGIN_UNKNOWN_BURST: u32 = 5;
/// See `LOGIN_UNKNOWN_BURST`.
pub const LOGIN_UNKNOWN_EVERY: Duration = Duration::from_secs(2);

/// Bodies of methods that take a few keys or nothing: maximum bytes, as sent and unpacked.
pub const SMALL_BODY_BYTES: u64 = 64 * 1024;

/// What a media zip may hold beside its last file, which may be as large as the largest payload: 2.5 MiB of other files,
/// and the zip's own structures.
pub const BESIDE_LARGEST_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The limit of RFC 2046. Clients' boundaries have 18 or 67 bytes.
pub const FORM_BOUNDARY_BYTES: usize = 70;

/// Limit on the headers of one part. Clients send 100 bytes.
pub const FORM_HEADER_BYTES: usize = 4096;

/// Limit on the value of a text field. Keys and versions have 50 bytes.
pub const FORM_TEXT_BYTES: usize = 4096;

/// Limit on the parts of a form. Clients send at most five.
pub const FORM_PARTS: usize = 32;

/// Maximum files in one zip, in both directions.
pub const MEDIA_FILES: usize = 25;

/// A zip for a client ends after the file that passes this size, as on the official server. The client asks for the rest.
pub const MEDIA_REPLY_BYTES: u64 = 2_621_440;

/// Maximum size of a file, as in clients and on the official server.
pub const MEDIA_FILE_BYTES: u64 = 100 * 1024 * 1024;

/// Maximum size of `_meta`, as on the official server.
pub const MEDIA_ZIP_META_BYTES: u64 = 50 * 1024;

/// Maximum size of all entries, unpacked: clients stop adding files at 2.5 MiB, and the last file may have the maximum
/// size.
pub const MEDIA_ZIP_BYTES: u64 = MEDIA_FILE_BYTES + BESIDE_LARGEST_FILE_BYTES;

/// Maximum length of the comment behind the directory. Clients of 2.1.22 to 2.1.56 write `zip-rs`.
pub const MEDIA_ZIP_COMMENT_BYTES: u64 = 64;

/// How much of its output the decoder of a request keeps for later blocks to refer to: as much as clients use. A frame that
/// declares a larger window is decoded with this one. Most such frames never refer to anything farther back; one that does
/// is refused.
pub const ZSTD_WINDOW_BYTES: u64 = 2 * 1024 * 1024;

/// The same for packages, and for one upload of a collection at a time: level 19 uses so much.
pub const ZSTD_LARGE_WINDOW_BYTES: u64 = 8 * 1024 * 1024;

/// A body that arrived whole before a worker got it, and that has more than this many blocks of zstd (of up to 128 KiB), is
/// unpacked in turn with others. That of a small sync has fewer.
pub const UNPACKING_FREE_BLOCKS: u32 = 2;

/// How many of these are unpacked at once. None waits for bytes of a client.
pub const UNPACKING_AT_ONCE: usize = 2;

/// Elements of JSON of more than this (a row, a notetype, a deck) are read one at a time, whoever sends them.
pub const LARGE_ELEMENT_BYTES: u64 = 1024 * 1024;

/// How much of a media zip stays in memory. Clients stop filling a zip below this size, so only one with a large file is
/// spooled to disk.
pub const MEDIA_ZIP_MEMORY_BYTES: usize = 3 * 1024 * 1024;

/// Page cache of a sync with many rows, in KiB, if it holds `SPARE_MEMORY`: half of the index that 200 000 reviews are
/// spread over. Tests that need pages on the disk before the commit change more than this.
pub const MANY_ROWS_CACHE_KIB: u32 = 2560;

/// Memory that one of these holds at a time: a media zip of `MEDIA_ZIP_MEMORY_BYTES`, or a sync with many rows. Without it, a zip
/// goes to the disk, and a sync reads and writes pages again.
pub static SPARE_MEMORY: AtMost = AtMost::new(1);

/// A request of up to this size is stored also when the user is over the quota, or the disk below its reserve: reviews, and
/// the deletions that bring a user below the quota again. All of a user in a day must stay below `STORAGE_SPARE_BYTES`.
pub const STORAGE_SPARE_REQUEST_BYTES: u64 = 64 * 1024;

/// See `STORAGE_SPARE_REQUEST_BYTES`. 4 MiB are 10 000 reviews, or the deletion of 300 000 notes.
pub const STORAGE_SPARE_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes that a request writes between two checks of the free space. Each check leaves room for the next ones of all requests.
pub const STORAGE_STEP_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_the_descriptors() {
        let limits = Limits::default();
        assert_eq!(limits.clone().fit(20_000).max_conns, 512);
        assert_eq!(limits.clone().fit(128).max_conns, 128 - 3 * WORKERS - 16);
        assert_eq!(limits.clone().fit(4).max_conns, 1);
        let one = Limits { max_active: 1, max_bulk: 9, ..limits };
        assert_eq!(one.fit(1024).max_bulk, 1);
    }

    #[test]
    fn one_client_never_gets_all() {
        let limits = Limits { max_active_per_client: 99, max_bulk_per_client: 99, ..Limits::default() };
        let limits = Limits { max_conns_per_address: 9999, ..limits }.fit(20_000);
        assert_eq!(
            (limits.max_active_per_client, limits.max_bulk_per_client),
            (WORKERS - 1, WORKERS / 2 - 1)
        );
        assert_eq!(limits.max_conns_per_address, 256);
    }
}
