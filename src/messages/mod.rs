//! The JSON shapes of the protocol. No SQL, no HTTP and no file access here.
//!
//! Not here: what is done with them (`sync`, `media`). Imports `error` only.
//!
//! Lists whose length a client chooses are never held in memory: each element is passed to a sink as soon as it is
//! parsed. The shapes follow spec sync-protocol.md 6 and collection-format.md 11.

pub mod changes;
pub mod chunk;
pub mod graves;
mod integers;
pub mod json_map;
mod json_stream;
pub mod media;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

pub use json_stream::Source;

use crate::error::Error;
use integers::Int;

/// The error for JSON of another shape. serde's message quotes the value, which may be a password or the text of a note
/// and must not reach the log. Only the type of the value is kept.
pub fn shape_error(err: &serde_json::Error) -> Error {
    let text = err.to_string();
    let kind_only = ["invalid type: ", "invalid value: "].into_iter().find_map(|prefix| {
        let found = text.strip_prefix(prefix)?;
        let kind = found.split(['"', '`', ',']).next()?.trim_end();
        let expected = &found[found.rfind(", expected ")?..];
        Some(format!("{prefix}{kind}{expected}"))
    });
    Error::BadRequest(format!("unexpected JSON: {}", kind_only.unwrap_or(text)))
}

/// The `anki-sync` request header of protocol 11 (sync-protocol.md 4).
#[derive(Deserialize)]
pub struct SyncHeader {
    /// The sync version of the encoding.
    #[serde(rename = "v")]
    pub sync_version: u64,
    /// Host key; empty for `hostKey`.
    #[serde(rename = "k")]
    pub hkey: String,
    /// Client version, short form.
    #[serde(rename = "c")]
    pub client: String,
    /// Session key.
    #[serde(rename = "s")]
    pub skey: String,
}

/// `hostKey` request.
#[derive(Deserialize)]
pub struct LoginRequest {
    /// User name.
    #[serde(rename = "u")]
    pub user: String,
    /// Password as typed.
    #[serde(rename = "p")]
    pub password: String,
}

/// `hostKey` reply.
#[derive(Serialize)]
pub struct LoginReply {
    /// The host key.
    pub key: String,
}

/// `meta` request.
#[derive(Deserialize)]
pub struct MetaRequest {
    /// The client's sync version.
    #[serde(rename = "v", deserialize_with = "integers::not_negative")]
    pub sync_version: u64,
    /// Client version, long form.
    #[serde(rename = "cv")]
    pub client: String,
}

/// `meta` reply; every key is required by some client (sync-protocol.md 6.2).
#[derive(Serialize)]
pub struct MetaReply<'m> {
    /// Modified stamp, ms.
    #[serde(rename = "mod")]
    pub modified: i64,
    /// Schema stamp, ms.
    #[serde(rename = "scm")]
    pub schema: i64,
    /// The usn that objects of the next sync will get.
    pub usn: i32,
    /// Server clock, seconds; clients refuse more than 300 s of difference.
    #[serde(rename = "ts")]
    pub now: i64,
    /// A text for the user.
    #[serde(rename = "msg")]
    pub message: &'m str,
    /// Whether the client may continue.
    #[serde(rename = "cont")]
    pub go_on: bool,
    /// AnkiWeb's host number; must be 0 elsewhere.
    #[serde(rename = "hostNum")]
    pub host_number: u32,
    /// Whether the collection has no cards.
    pub empty: bool,
    /// The last usn of the media store.
    pub media_usn: i32,
}

/// `start` request (`minUsn`, `lnewer`) without its graves, which `graves::read_start` streams.
#[derive(Debug)]
pub struct StartRequest {
    /// The client has not seen the server's rows from this usn on.
    pub client_usn: i32,
    /// Whether the client's collection was modified later than the server's. If so, its config wins.
    pub client_is_newer: bool,
}

/// `sanityCheck2` request. Old clients send a text instead of the counts when their own check failed.
#[derive(Deserialize)]
pub struct SanityRequest {
    /// `[[new, lrn, rev], cards, notes, revlog, graves, notetypes, decks, options]`
    pub client: SanitySide,
}

/// One side of a sanity check.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum SanitySide {
    /// Counts. The due counts and the graves are not compared.
    Counts((IgnoredAny, Int, Int, Int, IgnoredAny, Int, Int, Int)),
    /// The error that the client's own check found.
    Complaint(String),
}

/// The counts that a sanity check compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SanityCounts {
    /// Rows of `cards`.
    pub cards: u32,
    /// Rows of `notes`.
    pub notes: u32,
    /// Rows of `revlog`.
    pub revlog: u32,
    /// Rows of `notetypes`.
    pub notetypes: u32,
    /// Rows of `decks`.
    pub decks: u32,
    /// Rows of `deck_config`.
    pub deck_configs: u32,
}

impl SanitySide {
    /// The counts to compare. None if the client sent a text or an invalid count.
    pub fn counts(&self) -> Option<SanityCounts> {
        let SanitySide::Counts((_, cards, notes, revlog, _, notetypes, decks, deck_configs)) = self else {
            return None;
        };
        let count = |int: &Int| u32::try_from(int.0).ok();
        Some(SanityCounts {
            cards: count(cards)?,
            notes: count(notes)?,
            revlog: count(revlog)?,
            notetypes: count(notetypes)?,
            decks: count(decks)?,
            deck_configs: count(deck_configs)?,
        })
    }
}

/// `sanityCheck2` reply.
#[derive(Serialize)]
pub struct SanityReply {
    status: &'static str,
    #[serde(rename = "c")]
    client: Option<SanityList>,
    #[serde(rename = "s")]
    server: Option<SanityList>,
}

type SanityList = ([u32; 3], u32, u32, u32, u32, u32, u32, u32);

impl SanityReply {
    /// `ok` if the counts are equal. `server` is none if the server's own rows are invalid.
    pub fn new(client: Option<SanityCounts>, server: Option<SanityCounts>) -> SanityReply {
        let list =
            |c: SanityCounts| ([0; 3], c.cards, c.notes, c.revlog, 0, c.notetypes, c.decks, c.deck_configs);
        let agreed = client.is_some() && client == server;
        SanityReply {
            status: if agreed { "ok" } else { "bad" },
            client: client.map(list),
            server: server.map(list),
        }
    }

    /// Whether the sync may be finished.
    pub fn is_ok(&self) -> bool {
        self.status == "ok"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_may_be_floats_and_a_client_error_is_a_text() {
        let counts = |json: &str| serde_json::from_str::<SanityRequest>(json).unwrap().client.counts();
        let expected = counts(r#"{"client":[[0,0,0],1,2,3,4,5,6,7]}"#).unwrap();
        assert_eq!((expected.cards, expected.revlog, expected.deck_configs), (1, 3, 7));
        for same in [
            r#"{"client":[[1.0,0,0],1.0,2,3.0,"x",5,6,"7"],"full":true}"#,
            r#"{"client":["",1,2,3,-9,5,6,7]}"#,
        ] {
            assert_eq!(counts(same), Some(expected));
        }
        for none in [r#"{"client":"deck had usn = -1"}"#, r#"{"client":[[0,0,0],-1,2,3,4,5,6,7]}"#] {
            assert_eq!(counts(none), None);
        }
    }

    #[test]
    fn errors_about_json_do_not_quote_it() {
        let cases = [
            (r#"{"u":"a","p":12345}"#, "invalid type: integer, expected a string at line 1 column 18"),
            (
                r#"{"u":"a","p":["my, expected secret"]}"#,
                "invalid type: sequence, expected a string at line 1 column 13",
            ),
            (r#""my, expected secret""#, "invalid type: string, expected "),
            (r#"{"u":"a"}"#, "missing field `p` at line 1 column 9"),
        ];
        for (json, expected) in cases {
            let text = shape_error(&serde_json::from_str::<LoginRequest>(json).err().unwrap()).to_string();
            assert!(
                text.starts_with(&format!("unexpected JSON: {expected}")) && !text.contains("my"),
                "{text}"
            );
        }
    }
}
