//! The one error type, and the one place where an error becomes an HTTP status.
//!
//! Variants are situations that are treated differently, not sources. What a client may learn is its status; the
//! text goes to the log, once, where the request ends (`api`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request, or the start of the server, failed.
#[derive(Debug)]
pub enum Error {
    /// The client sent what the protocol does not allow: 400. An open session survives it.
    BadRequest(String),
    /// Well-formed, but it cannot be applied to this collection: 400, and the session is rolled back.
    Refused(String),
    /// Unknown host key, unknown user or wrong password: 403. Clients log out on it, so nothing else may use it.
    Forbidden(String),
    /// No such page: 404.
    NotFound,
    /// Known path, wrong verb: 405. The verbs that it takes.
    MethodNotAllowed(&'static str),
    /// A step of a session that is not (or no longer) open, or that another device has taken over: 409.
    NoSession,
    /// A media file that the index knows is not there, or is not what the index says: 409, as on the official server.
    LostFile(&'static str),
    /// A limit was reached: 413. The text names the limit and the variable that raises it.
    TooLarge(String),
    /// It is done, but the disk did not say that it will last: 500.
    Unconfirmed(String),
    /// There is no room on the disk for what the request brings: 507.
    DiskFull(String),
    /// The client speaks a protocol version that we do not: 501, which clients show as "too old".
    UnsupportedVersion(u64),
    /// Somebody else holds what the request needs, and waiting did not help: 503.
    Busy(String),
    /// A file operation failed: 500. Verb, path, cause.
    Io(&'static str, PathBuf, io::Error),
    /// SQLite failed in a way the client did not cause: 500.
    Db(rusqlite::Error),
    /// The collection in place is of this older schema version, as another server may leave it: it can be upgraded. 500.
    OldSchema(i64),
    /// The connection to the client broke; nobody is left to answer.
    Disconnected(io::Error),
    /// The command line does not say what to do; no request ends with it.
    Usage(String),
    /// The server's own state does not allow it (start-up, damaged file): 500.
    Broken(String),
}

impl Error {
    /// The HTTP status that clients see (spec, sync-protocol.md 2.2).
    pub fn status(&self) -> u16 {
        match self {
            Error::BadRequest(_) | Error::Refused(_) => 400,
            Error::Forbidden(_) => 403,
            Error::NotFound => 404,
            Error::MethodNotAllowed(_) => 405,
            Error::NoSession | Error::LostFile(_) => 409,
            Error::TooLarge(_) => 413,
            Error::UnsupportedVersion(_) => 501,
            Error::Busy(_) => 503,
            Error::DiskFull(_) => 507,
            Error::Io(..)
            | Error::Db(_)
            | Error::OldSchema(_)
            | Error::Disconnected(_)
            | Error::Unconfirmed(_)
            | Error::Usage(_)
            | Error::Broken(_) => 500,
        }
    }

    /// A `BadRequest` with this text.
    pub fn bad(text: impl Into<String>) -> Error {
        Error::BadRequest(text.into())
    }

    /// For `map_err` on file operations: keeps what was tried on which path.
    pub fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |err| Error::Io(verb, path, err)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::BadRequest(text)
            | Error::Refused(text)
            | Error::Forbidden(text)
            | Error::TooLarge(text)
            | Error::DiskFull(text)
            | Error::Busy(text)
            | Error::Unconfirmed(text)
            | Error::Usage(text)
            | Error::Broken(text) => f.write_str(text),
            Error::NotFound => f.write_str("no such page"),
            Error::MethodNotAllowed(_) => f.write_str("wrong HTTP method"),
            Error::NoSession => f.write_str("no open sync session with this session key"),
            Error::LostFile(what) => {
                write!(
                    f,
                    "a media file that a client asked for {what}; `ankipi check` tells which ones are not in order"
                )
            }
            Error::UnsupportedVersion(v) => write!(f, "sync version {v} is not supported"),
            Error::Io(verb, path, err) => write!(f, "{verb} {}: {err}", path.display()),
            Error::Db(err) => write!(f, "database: {err}"),
            Error::OldSchema(version) => {
                write!(
                    f,
                    "the collection has the old format {version}; the server upgrades it at the next sync"
                )
            }
            Error::Disconnected(err) => write!(f, "connection lost: {err}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<rusqlite::Error> for Error {
    fn from(err: rusqlite::Error) -> Error {
        match err.sqlite_error_code() {
            Some(rusqlite::ErrorCode::TooBig) => {
                Error::TooLarge("a row is over the limit; MAX_SYNC_ROW_MEGS raises it".to_owned())
            }
            Some(rusqlite::ErrorCode::DatabaseBusy) => Error::Busy(
                "a device syncs right now, or another program has the database open; try again".to_owned(),
            ),
            _ => Error::Db(err),
        }
    }
}
