//! The one error type, and the one place where an error becomes an HTTP status.
//!
//! Each variant is a situation that is handled differently, not a source of errors. The client gets only the status.
//! The text is logged once, where the request ends (`api`).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request, or the start of the server, failed.
pub enum Error {
    /// The client sent something that the protocol does not allow: 400. An open session stays open.
    BadRequest(String),
    /// A body whose decoding needs a larger zstd window than the server allows: 413. The reply to an upload has the
    /// text.
    Window(String),
    /// A proxy between client and server has changed the request: 422. Clients show a network error, where 400 would
    /// make them advise a one-way sync.
    Altered(&'static str),
    /// Well-formed, but it cannot be applied to this collection: 400. The session is rolled back.
    Refused(String),
    /// Unknown host key, unknown user or wrong password: 403. Clients log out on 403, so no other error may use it.
    Forbidden(String),
    /// No such page: 404.
    NotFound,
    /// The client's address is in none of the networks of SYNC_ALLOW. The client is told that there is no such page: 403 would
    /// log out its device.
    AddressNotAllowed,
    /// Known path, wrong HTTP method: 405. Holds the allowed methods.
    MethodNotAllowed(&'static str),
    /// A sync step whose session is not open (any more), or was replaced by another device: 409.
    NoSession,
    /// A media file is missing, or differs from its record in the index: 409, as on the official server.
    LostFile(&'static str),
    /// A limit was exceeded: 413. The text names the limit and the setting that raises it.
    TooLarge(String),
    /// The change is made, but the disk did not confirm that it is durable: 500.
    Unconfirmed(String),
    /// No disk space for the request: 507.
    DiskFull(String),
    /// Unsupported protocol version: 501, which clients show as "too old".
    UnsupportedVersion(u64),
    /// Something that the request needs is in use, and waiting did not help: 503.
    Busy(String),
    /// A user or an address has failed to log in too often, and must wait this many seconds: 503.
    Throttled(u64),
    /// A file operation failed: 500. Holds verb, path and cause.
    Io(&'static str, PathBuf, io::Error),
    /// SQLite failed in a way the client did not cause: 500.
    Db(rusqlite::Error),
    /// The collection has this older schema version, as another server may leave it: it can be upgraded. 500.
    OldSchema(i64),
    /// A user's file is damaged, or cannot be opened for a reason that waiting does not remove: 500.
    Damaged(String),
    /// The connection to the client broke, so no response can be sent.
    Disconnected(io::Error),
    /// Wrong command line. Never the outcome of a request.
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
            Error::NotFound | Error::AddressNotAllowed => 404,
            Error::MethodNotAllowed(_) => 405,
            Error::NoSession | Error::LostFile(_) => 409,
            Error::TooLarge(_) | Error::Window(_) => 413,
            Error::Altered(_) => 422,
            Error::UnsupportedVersion(_) => 501,
            Error::Busy(_) | Error::Throttled(_) => 503,
            Error::DiskFull(_) => 507,
            Error::Io(..)
            | Error::Db(_)
            | Error::OldSchema(_)
            | Error::Disconnected(_)
            | Error::Unconfirmed(_)
            | Error::Usage(_)
            | Error::Damaged(_)
            | Error::Broken(_) => 500,
        }
    }

    /// Whether a file is damaged: SQLite says so, or something else than a file is in its place.
    pub fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Error::Damaged(_) => true,
            Error::Db(rusqlite::Error::SqliteFailure(_, Some(text))) if text.starts_with("no such ") => true,
            Error::Db(rusqlite::Error::SqlInputError { msg, .. }) => msg.starts_with("no such "),
            Error::Db(err) => matches!(err.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)),
            _ => false,
        }
    }

    /// Whether SQLite could not open a file at all.
    pub fn is_failed_open(&self) -> bool {
        match self {
            Error::Db(err) => err.sqlite_error_code() == Some(rusqlite::ErrorCode::CannotOpen),
            Error::Broken(text) => text.starts_with("opening "),
            _ => false,
        }
    }

    /// Whether the reason may be that the server may not use a file. To find out, it looks at files of all accounts, which is too
    /// much for what anybody can cause.
    pub fn may_come_from_denied_files(&self) -> bool {
        matches!(self.status(), 500 | 503) && !matches!(self, Error::Throttled(_) | Error::Disconnected(_))
    }

    /// A `BadRequest` with this text.
    pub fn bad(text: impl Into<String>) -> Error {
        Error::BadRequest(text.into())
    }

    /// For `map_err` on file operations: adds the operation and the path.
    pub fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |err| Error::Io(verb, path, err)
    }
}

/// For `unwrap` in tests. The same text, because nothing else prints it.
impl fmt::Debug for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::BadRequest(text)
            | Error::Refused(text)
            | Error::Forbidden(text)
            | Error::TooLarge(text)
            | Error::Window(text)
            | Error::DiskFull(text)
            | Error::Busy(text)
            | Error::Unconfirmed(text)
            | Error::Usage(text)
            | Error::Damaged(text)
            | Error::Broken(text) => f.write_str(text),
            Error::Altered(text) => f.write_str(text),
            Error::NotFound => f.write_str("no such page"),
            Error::AddressNotAllowed => f.write_str("this address is in none of the networks of SYNC_ALLOW"),
            Error::MethodNotAllowed(_) => f.write_str("wrong HTTP method"),
            Error::Throttled(secs) => write!(f, "must wait {secs} s to log in"),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_anybody_can_cause_is_no_reason_to_look_at_the_files_of_all() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        for err in [
            Error::Io("opening", "keys".into(), denied()),
            Error::Db(rusqlite::Error::InvalidQuery),
            Error::Busy("a lock".into()),
            Error::Broken("opening keys".into()),
        ] {
            assert!(err.may_come_from_denied_files(), "{err}");
        }
        for err in [
            Error::Throttled(2),
            Error::Disconnected(io::ErrorKind::ConnectionReset.into()),
            Error::Forbidden("unknown host key".into()),
            Error::bad("a body"),
        ] {
            assert!(!err.may_come_from_denied_files(), "{err}");
        }
    }
}
