//! The JSON shapes of media sync (sync-protocol.md 7).

use serde::{Deserialize, Serialize};

use crate::messages::integers;

/// The envelope of every JSON media reply. `err` is an error text for the user; clients before 2.1.57 require the key.
#[derive(Serialize)]
pub struct Wrapped<'d, T> {
    data: &'d T,
    err: &'static str,
}

impl<'d, T> Wrapped<'d, T> {
    /// A reply without an error.
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
    /// Clients before 2.1.57 authenticate the following media requests with it. The others only require the key.
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
    /// The requested names. The reply may hold only the first of them; clients ask again for the rest.
    pub files: Vec<String>,
}

/// `mediaSanity` request.
#[derive(Deserialize)]
pub struct SanityRequest {
    /// The number of files of the client.
    #[serde(rename = "local", deserialize_with = "integers::any")]
    pub files: i64,
}

/// `mediaSanity` reply: both sides have the same number of files.
pub const SANITY_OK: &str = "OK";

/// `mediaSanity` reply: the numbers differ.
pub const SANITY_FAILED: &str = "mediaSanity";
