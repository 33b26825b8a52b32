//! The shapes of media sync (sync-protocol.md 7).

use serde::{Deserialize, Serialize};

use crate::messages::integers;

/// Every media reply in JSON. `err` is a text for the user; clients before 2.1.57 insist on it.
#[derive(Serialize)]
pub struct Wrapped<'d, T> {
    data: &'d T,
    err: &'static str,
}

impl<'d, T> Wrapped<'d, T> {
    /// A reply without a complaint.
    pub fn new(data: &'d T) -> Wrapped<'d, T> {
        Wrapped { data, err: "" }
    }
}

/// `begin` request.
#[derive(Deserialize)]
pub struct BeginRequest {
    /// Client version, long form.
    #[serde(rename = "v")]
    pub client: String,
}

/// `begin` reply.
#[derive(Serialize)]
pub struct BeginReply<'k> {
    /// The usn of the last change.
    pub usn: i32,
    /// What clients before 2.1.57 authenticate with from here on; the others want it to be there.
    #[serde(rename = "sk")]
    pub media_key: &'k str,
}

/// `mediaChanges` request.
#[derive(Deserialize)]
pub struct ChangesRequest {
    /// The usn of the last change that the client knows.
    #[serde(rename = "lastUsn", deserialize_with = "integers::any")]
    pub last_usn: i64,
}

/// A row of a `mediaChanges` reply: name, usn, SHA-1 or "" for a deletion.
#[derive(Serialize)]
pub struct ChangeRow<'c>(pub &'c str, pub i32, pub &'c str);

/// `downloadFiles` request.
#[derive(Deserialize)]
pub struct FilesRequest {
    /// The names, of which a prefix is answered.
    pub files: Vec<String>,
}

/// `mediaSanity` request.
#[derive(Deserialize)]
pub struct SanityRequest {
    /// How many files the client has.
    #[serde(rename = "local", deserialize_with = "integers::any")]
    pub files: i64,
}

/// `mediaSanity`: both sides have as many files.
pub const SANITY_OK: &str = "OK";

/// `mediaSanity`: they have not.
pub const SANITY_FAILED: &str = "mediaSanity";
