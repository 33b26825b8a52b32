//! HTTP: heads and framing, bodies, forms, responses, and keep-alive bytes while a client waits.
//!
//! Not here: sockets and timeouts (`server::connections`), paths (`api::routes`), zstd and gzip (`compression`). Knows
//! neither accounts nor SQL. Imports `compression`, `files`, `os`, `error`.

pub mod body;
pub mod body_framing;
pub mod client_link;
pub mod form;
pub mod keep_client_waiting;
pub mod request_head;
pub mod response;
#[cfg(test)]
pub mod test_wire;

use std::io::Read;

use client_link::{LINK_HEADER, ReplyLink};
use response::Responder;

/// The header in which the connection layer passes the client's address.
pub const PEER_HEADER: &str = "x-ankipi-peer";

/// The header in which the connection layer passes the client's Content-Length.
pub const LENGTH_HEADER: &str = "x-ankipi-length";

/// A request whose body has not been read.
pub struct Request {
    inner: tiny_http::Request,
    reply_headers: String,
}

/// The request methods that we serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// OPTIONS
    Options,
    /// Any other.
    Other,
}

impl Request {
    /// Wraps a request that tiny_http has parsed.
    pub fn new(inner: tiny_http::Request) -> Request {
        Request { inner, reply_headers: String::new() }
    }

    /// The verb.
    pub fn verb(&self) -> Verb {
        match self.inner.method() {
            tiny_http::Method::Get => Verb::Get,
            tiny_http::Method::Head => Verb::Head,
            tiny_http::Method::Post => Verb::Post,
            tiny_http::Method::Options => Verb::Options,
            _ => Verb::Other,
        }
    }

    /// The path without the query.
    pub fn path(&self) -> &str {
        self.inner.url().split('?').next().unwrap_or_default()
    }

    /// The first value of a key of the query, decoded.
    pub fn query(&self, key: &str) -> Option<String> {
        let (_, query) = self.inner.url().split_once('?')?;
        let mut pairs = form_urlencoded::parse(query.as_bytes());
        pairs.find(|(name, _)| name == key).map(|(_, value)| value.into_owned())
    }

    /// The value of a header, by its name in any case; the first one of several.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    /// All values of a header, in their order.
    pub fn headers(&self, name: &str) -> impl DoubleEndedIterator<Item = &str> {
        let is_named =
            move |header: &&tiny_http::Header| header.field.as_str().as_str().eq_ignore_ascii_case(name);
        self.inner.headers().iter().filter(is_named).map(|header| header.value.as_str())
    }

    /// The client's Content-Length, if it sent one.
    pub fn declared_bytes(&self) -> Option<u64> {
        self.header(LENGTH_HEADER)?.parse().ok()
    }

    /// The length of the body in bytes, if it has some and has arrived whole, so that reading it waits for nobody: only then the
    /// connection layer tells it. Clients since 2.1.57 declare none.
    pub fn whole_bytes(&self) -> Option<u64> {
        self.inner.body_length().map(|bytes| bytes as u64)
    }

    /// The client's connection.
    fn link(&self) -> Option<ReplyLink> {
        ReplyLink::of(self.header(LINK_HEADER)?.parse().ok()?)
    }

    /// Whether a proxy is at the other end of the connection: what it takes says nothing of its client.
    fn is_of_proxy(&self) -> bool {
        ["x-forwarded-for", "x-real-ip", "forwarded", "via"].iter().any(|name| self.header(name).is_some())
    }

    /// The body, read from the socket. A truncated body ends in an error.
    pub fn body(&mut self) -> &mut dyn Read {
        self.inner.as_reader()
    }

    /// Lets a page of this origin read the reply, whatever its status (the CORS protocol of the Fetch standard).
    pub fn allow_origin(&mut self, origin: &str) {
        self.reply_headers = format!(
            "Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Expose-Headers: anki-original-size\r\nVary: Origin\r\n"
        );
    }

    /// Turns the request, after its body was read, into what sends the reply.
    pub fn into_responder(self) -> Responder {
        let (head_only, link) = (self.verb() == Verb::Head, self.link());
        // The connection layer asks tiny_http to close the others, and drops what a client says of it.
        let is_kept = self.header("connection").is_none();
        let speed_of = link.clone().filter(|_| !self.is_of_proxy());
        Responder::new(self.inner.into_writer(), head_only, self.reply_headers)
            .with_link(speed_of)
            .on_kept_connection(is_kept, link)
    }
}
