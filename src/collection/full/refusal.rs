//! Why an uploaded file is refused, and what its owner can do about it.

use crate::error::Error;

/// Longer reasons are truncated. They may contain names from the file, which have any length.
const MAX_REASON_CHARS: usize = 300;

/// Why a file is refused.
#[derive(Debug)]
pub struct UploadFault {
    /// Follows "refused this upload: ", such as "it is empty". Safe to log.
    pub reason: String,
    /// What to do, in sentences.
    pub advice: &'static str,
}

/// The result of a check. Errors of the server itself are in the `Result` around it.
pub type Verdict = std::result::Result<(), UploadFault>;

/// For damage that the client can repair.
pub const CHECK_DATABASE: &str =
    "On this device, please use Check Database in the Tools menu, then upload again.";
/// For files that were damaged in transit.
pub const UPLOAD_AGAIN: &str = "Please upload again.";
/// For files that are not collections.
pub const WHOLE_COLLECTION: &str =
    "Please open the collection in Anki on this device, and upload again from there.";
/// For files of a schema newer than the server's.
pub const UPDATE_SERVER: &str = "Please ask whoever runs the server to update ankipi.";
/// For files of a schema too old to upgrade.
pub const UPDATE_CLIENT: &str =
    "Please open the collection in Anki 2.1.25 or newer, then upload again from there.";
/// For tables, views and triggers that an add-on may have created.
pub const NEW_PROFILE: &str = "An add-on may have put it there. Please export your collection with scheduling, import it into a new profile \
     and upload that.";
/// For rows over the limit.
pub const SHORTEN_ROW: &str = "Please shorten it on this device and upload again, or ask whoever runs the server to raise MAX_SYNC_ROW_MEGS.";

impl UploadFault {
    /// Escapes control characters in the reason: it may contain names from the file, which must not break a log line.
    pub fn new(reason: &str, advice: &'static str) -> UploadFault {
        let mut shown = String::new();
        for c in reason.chars().take(MAX_REASON_CHARS) {
            if c.is_control() {
                shown.extend(c.escape_default());
            } else {
                shown.push(c);
            }
        }
        if reason.chars().nth(MAX_REASON_CHARS).is_some() {
            shown.push_str("...");
        }
        UploadFault { reason: shown, advice }
    }
}

/// Why a check stopped: the file is refused, or the check had an error.
pub enum Failure {
    /// The file is refused.
    UploadFault(UploadFault),
    /// The check had an error. `into_verdict` decides whether the file caused it.
    Error(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(err: E) -> Failure {
        Failure::Error(err.into())
    }
}

/// The result of one step of a check.
pub type CheckResult<T = ()> = std::result::Result<T, Failure>;

/// Refuses the file.
pub fn refuse<T>(reason: impl AsRef<str>, advice: &'static str) -> CheckResult<T> {
    Err(Failure::UploadFault(UploadFault::new(reason.as_ref(), advice)))
}

impl Failure {
    /// Refuses the file for errors that it caused: all SQLite errors, except those about the disk or memory, and errors
    /// about its contents. Other errors are returned as they are.
    pub fn into_verdict(self) -> crate::error::Result<Verdict> {
        use rusqlite::ErrorCode::{
            CannotOpen, DiskFull, OutOfMemory, PermissionDenied, ReadOnly, SystemIoFailure,
        };
        let fault = |reason: &str, advice| Ok(Err(UploadFault::new(reason, advice)));
        match self {
            Failure::UploadFault(fault) => Ok(Err(fault)),
            Failure::Error(Error::Db(rusqlite::Error::SqliteFailure(code, text))) => match code.code {
                CannotOpen | DiskFull | OutOfMemory | PermissionDenied | ReadOnly | SystemIoFailure => {
                    Err(Error::Db(rusqlite::Error::SqliteFailure(code, text)))
                }
                _ => {
                    let text = text.unwrap_or_else(|| code.to_string());
                    fault(&format!("SQLite cannot read it: {text}"), CHECK_DATABASE)
                }
            },
            Failure::Error(Error::Db(err)) => fault(&format!("SQLite cannot read it: {err}"), CHECK_DATABASE),
            Failure::Error(Error::Refused(reason)) => fault(&reason, CHECK_DATABASE),
            Failure::Error(Error::TooLarge(reason)) => fault(&reason, SHORTEN_ROW),
            Failure::Error(err) => Err(err),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_from_the_file_cannot_forge_a_line_of_the_log() {
        let fault = UploadFault::new("it contains the view 'a\r\nERROR \u{1b}[2J\u{85}\u{e9}'", NEW_PROFILE);
        assert_eq!(fault.reason, "it contains the view 'a\\r\\nERROR \\u{1b}[2J\\u{85}\u{e9}'");
        assert_eq!(UploadFault::new(&"x".repeat(301), CHECK_DATABASE).reason.len(), 303);
        assert_eq!(UploadFault::new(&"x".repeat(300), CHECK_DATABASE).reason.len(), 300);
    }
}
