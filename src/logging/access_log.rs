//! One log line per request: user, client, what was done, duration. Never keys, passwords or note texts.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::http::Request;
use crate::http::body::Received;

/// What is known of a request so far, for its log line.
pub struct AccessLog {
    path: String,
    address: IpAddr,
    user: String,
    client: String,
    did: String,
    received: Received,
    sent: u64,
    /// Pages are logged at level debug if they succeed: monitors request `/health` every few seconds.
    is_page: bool,
}

impl AccessLog {
    /// Takes path and client address of a request.
    pub fn new(request: &Request, address: IpAddr) -> AccessLog {
        AccessLog {
            path: printable(request.path()),
            address,
            user: "-".to_owned(),
            client: "-".to_owned(),
            did: String::new(),
            received: Received::default(),
            sent: 0,
            is_page: false,
        }
    }

    /// The client's address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Notes that it is for a page, which is logged at level info or higher only if it fails.
    pub fn page(&mut self) {
        self.is_page = true;
    }

    /// Notes the user whose key it carries.
    pub fn user(&mut self, name: &str) {
        self.user = printable(name);
    }

    /// The user whose key it carries, as the log shows the name; `-` if there is none.
    pub fn user_name(&self) -> &str {
        &self.user
    }

    /// Notes the client's version.
    pub fn client(&mut self, version: &str) {
        if !version.is_empty() {
            self.client = printable(version);
        }
    }

    /// Notes the length of the request's body.
    pub fn received(&mut self, received: Received) {
        self.received = received;
    }

    /// Notes the length of the reply's body.
    pub fn sent(&mut self, bytes: u64) {
        self.sent = bytes;
    }

    /// Notes what was done.
    pub fn did(&mut self, words: &str) {
        self.did = words.to_owned();
    }

    /// The lengths of both bodies, as far as they were noted.
    pub fn bytes(&self) -> (u64, u64) {
        (self.received.wire, self.sent)
    }

    /// Writes the line.
    pub fn write(self, outcome: Result<()>, took: Duration) {
        let status = outcome.as_ref().err().map_or(200, Error::status);
        let mut line = format!(
            "{} {} {} {} {status} {} ms in {} out {}",
            self.address,
            self.user,
            self.client,
            self.path,
            took.as_millis(),
            self.received.wire,
            self.sent
        );
        if !self.did.is_empty() {
            let _ = write!(line, ": {}", self.did);
        }
        match outcome {
            Ok(()) if self.is_page => log::debug!(target: "request", "{line}"),
            Ok(()) => log::info!(target: "request", "{line}"),
            Err(err @ Error::Disconnected(_)) => log::info!(target: "request", "{line}: {err}"),
            // Only 500 is an error of the server.
            Err(err) if status != 500 => log::warn!(target: "request", "{line}: {}", shortened(&err)),
            Err(err) => log::error!(target: "request", "{line}: {}", shortened(&err)),
        }
    }
}

/// Maximum length of an error text. Some texts quote what a client sent, which may be megabytes.
const MAX_ERROR_CHARS: usize = 400;

fn shortened(err: &Error) -> String {
    let text = err.to_string();
    match text.char_indices().nth(MAX_ERROR_CHARS) {
        Some((end, _)) => format!("{} [...]", &text[..end]),
        None => text,
    }
}

/// Text from a client, shortened and on one line.
pub fn printable(text: &str) -> String {
    text.chars().take(100).map(|c| if c.is_control() || c.is_whitespace() { '?' } else { c }).collect()
}
