//! Request and response heads: finding their end, checking them, and rewriting them for the other side.
//!
//! No I/O. A request head is accepted only if every hop reads it the same way. tiny_http takes any `Transfer-Encoding`
//! for chunked, uses the first of two lengths, takes a negative length for none, and hangs on `HTTP/2.0`.
//!
//! Where other parsers cannot misread a head, this parser is lenient: header values may hold any byte but NUL, CR and
//! LF (proxies add names of cities and people in them), and a target may be an absolute URL (RFC 9112 3.2.2).

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::http::body_framing::Body;
use crate::http::client_link::LINK_HEADER;
use crate::http::{LENGTH_HEADER, PEER_HEADER};

/// Empty lines allowed before a request line; old clients send an extra one after a body.
const LEADING_BLANK_LINES: usize = 2;

/// Why a request is refused, and the status that the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// A fixed text for client and log; never contains what the client sent.
    pub reason: &'static str,
}

impl Refusal {
    /// A refusal with this status and text.
    pub const fn new(status: u16, reason: &'static str) -> Refusal {
        Refusal { status, reason }
    }

    /// The whole response.
    pub fn response(&self) -> String {
        let Refusal { status, reason } = self;
        format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{reason}\n",
            status_text(*status),
            reason.len() + 1,
        )
    }
}

fn status_text(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

/// Finds the end of a request head while it arrives. Looks at each byte once.
#[derive(Debug, Default)]
pub struct Scan {
    at: usize,
    line: usize,
    /// Where the request line begins, after blank lines.
    start: usize,
    blank: usize,
    lines: usize,
}

impl Scan {
    /// Continues over `buf`, which holds everything since the last head. Once the head is complete, returns its start and
    /// its end (exclusive) in `buf`.
    pub fn advance(
        &mut self,
        buf: &[u8],
        max_bytes: usize,
        max_headers: usize,
    ) -> Result<Option<(usize, usize)>, Refusal> {
        while let Some(offset) = buf[self.at..].iter().position(|&byte| byte == b'\n') {
            self.check_first_byte(buf)?;
            let lf = self.at + offset;
            let line = &buf[self.line..lf];
            self.at = lf + 1;
            self.line = lf + 1;
            match line {
                b"\r" if self.lines == 0 => self.skip_blank_line()?,
                b"\r" => return self.whole(max_bytes),
                _ if line.ends_with(b"\r") => self.lines += 1,
                _ => return Err(Refusal::new(400, "line without CR")),
            }
            if self.lines > max_headers + 1 {
                return Err(Refusal::new(431, "too many header lines"));
            }
        }
        self.at = buf.len();
        if buf.len() - self.start > max_bytes {
            return Err(Refusal::new(431, "head too large"));
        }
        self.check_first_byte(buf)?;
        Ok(None)
    }

    /// Whether anything but blank lines arrived.
    pub fn has_begun(&self, buf: &[u8]) -> bool {
        buf.len() > self.start
    }

    fn skip_blank_line(&mut self) -> Result<(), Refusal> {
        self.blank += 1;
        self.start = self.line;
        if self.blank > LEADING_BLANK_LINES {
            return Err(Refusal::new(400, "blank lines before the request"));
        }
        Ok(())
    }

    fn whole(&self, max_bytes: usize) -> Result<Option<(usize, usize)>, Refusal> {
        if self.at - self.start > max_bytes {
            return Err(Refusal::new(431, "head too large"));
        }
        Ok(Some((self.start, self.at)))
    }

    /// Refuses a TLS handshake at once: otherwise a client with an https:// URL would wait for the timeout.
    fn check_first_byte(&self, buf: &[u8]) -> Result<(), Refusal> {
        /// The record type with which a handshake begins.
        const TLS_HANDSHAKE: u8 = 0x16;
        match buf.get(self.start) {
            Some(&TLS_HANDSHAKE) => Err(Refusal::new(
                400,
                "https where only http is served: type http://, or let a proxy serve https",
            )),
            Some(&byte) if byte != b'\r' && !is_token_byte(byte) => {
                Err(Refusal::new(400, "not an HTTP request"))
            }
            _ => Ok(()),
        }
    }
}

/// The header fields of a request, in their order. Bytes outside printable ASCII are `?`.
#[derive(Debug)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// All values of a field, by its name in any case.
    pub fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &str> {
        self.0.iter().filter(move |field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1.as_str())
    }
}

/// A request that may be forwarded.
#[derive(Debug)]
pub struct Request {
    /// The header fields as the client sent them.
    pub fields: Fields,
    /// The path, without a query.
    pub path: String,
    /// HTTP/1.0: the reply has no chunks, and the connection closes after it.
    pub is_http10: bool,
    /// HEAD: the reply has no body.
    pub is_head: bool,
    /// The client wants to keep the connection open after the reply.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The body that follows.
    pub body: Body,
    /// The head for the backend, up to the lines that `complete_head` adds.
    pub forward: Vec<u8>,
}

/// How tiny_http finds the end of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardedBody {
    /// So many bytes follow at once.
    Whole(usize),
    /// Chunks follow as the client sends them.
    Chunks,
}

/// Checks a complete head (with its blank line) and rewrites it for the backend.
pub fn parse_request(head: &[u8], peer: IpAddr) -> Result<Request, Refusal> {
    let text = ascii_of(head).ok_or(Refusal::new(400, "control character in the head"))?;
    let mut lines = text.split("\r\n");
    let line = RequestLine::parse(lines.next().unwrap_or_default())?;
    let fields = parse_fields(lines)?;
    let framing = Framing::parse(&fields, line.is_http10)?;
    let connection = ConnectionOptions::parse(&fields);
    Ok(Request {
        path: line.target.split('?').next().unwrap_or_default().to_owned(),
        is_http10: line.is_http10,
        is_head: line.method == "HEAD",
        keep_alive: !line.is_http10 && !connection.has("close"),
        expects_continue: expects_continue(&fields)? && !line.is_http10,
        forward: forward_request(&line, &fields, &connection, &framing, peer),
        body: framing.into_body(),
        fields: Fields(
            fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ),
    })
}

/// The head in printable ASCII and tabs, in lines that end with CRLF. Bytes above 127 of the request line are
/// percent-encoded. Other bytes become `?`, which cannot occur in a header name or a framing header. `None` if there is
/// a NUL, CR or LF in a line.
fn ascii_of(head: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(head.len());
    let mut in_request_line = true;
    let mut rest = head;
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'\r' => {
                rest = after.strip_prefix(b"\n")?;
                text.push_str("\r\n");
                in_request_line = false;
            }
            b'\n' | 0 => return None,
            b' '..=b'~' | b'\t' => text.push(char::from(*byte)),
            0x80.. if in_request_line => {
                let _ = write!(text, "%{byte:02X}");
            }
            _ if in_request_line => return None,
            _ => text.push('?'),
        }
    }
    Some(text)
}

struct RequestLine<'a> {
    method: &'a str,
    /// The path and the query.
    target: String,
    /// The host of a target that was an absolute URL. It counts instead of the `Host` header.
    host: Option<&'a str>,
    is_http10: bool,
}

impl RequestLine<'_> {
    fn parse(line: &str) -> Result<RequestLine<'_>, Refusal> {
        let mut parts = line.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::new(400, "malformed request line"));
        };
        let is_http10 = match version {
            "HTTP/1.1" => false,
            "HTTP/1.0" => true,
            _ if version.starts_with("HTTP/") => return Err(Refusal::new(505, "HTTP version")),
            _ => return Err(Refusal::new(400, "malformed request line")),
        };
        match method {
            "GET" | "HEAD" | "POST" | "OPTIONS" | "PUT" | "DELETE" | "PATCH" => (),
            "TRACE" | "CONNECT" => return Err(Refusal::new(405, "method not allowed")),
            _ if is_token(method) => return Err(Refusal::new(501, "unknown method")),
            _ => return Err(Refusal::new(400, "malformed request line")),
        }
        let (host, target) = split_target(target).ok_or(Refusal::new(400, "request target"))?;
        Ok(RequestLine { method, target, host, is_http10 })
    }
}

/// Splits a request target into the host, if it is an absolute URL, and path with query.
fn split_target(target: &str) -> Option<(Option<&str>, String)> {
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    if target.starts_with('/') {
        return Some((None, target.to_owned()));
    }
    let (scheme, rest) = target.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return None;
    }
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let slash = if path.starts_with('/') { "" } else { "/" };
    (!host.is_empty()).then(|| (Some(host), format!("{slash}{path}")))
}

type Field<'a> = (&'a str, &'a str);

fn parse_fields<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<Field<'a>>, Refusal> {
    lines.take_while(|line| !line.is_empty()).map(parse_field).collect()
}

/// Splits a header line. A folded line is refused too: it begins with white space, which is no token byte.
fn parse_field(line: &str) -> Result<Field<'_>, Refusal> {
    match line.split_once(':') {
        Some((name, value)) if is_token(name) => Ok((name, value.trim_matches([' ', '\t']))),
        _ => Err(Refusal::new(400, "malformed header")),
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn values<'a>(fields: &[Field<'a>], name: &str) -> impl DoubleEndedIterator<Item = &'a str> {
    fields.iter().filter(move |field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1)
}

/// How the client delimits its body.
enum Framing {
    None,
    Length(u64),
    Chunked,
}

impl Framing {
    fn parse(fields: &[Field<'_>], is_http10: bool) -> Result<Framing, Refusal> {
        let mut lengths = values(fields, "content-length");
        let mut codings = values(fields, "transfer-encoding");
        match (lengths.next(), codings.next()) {
            (None, None) => Ok(Framing::None),
            (Some(_), Some(_)) => Err(Refusal::new(400, "Content-Length with Transfer-Encoding")),
            (Some(_), None) if lengths.next().is_some() => Err(Refusal::new(400, "two Content-Lengths")),
            (Some(length), None) => Framing::length(length),
            (None, Some(_)) if is_http10 => Err(Refusal::new(400, "Transfer-Encoding in HTTP/1.0")),
            (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") && codings.next().is_none() => {
                Ok(Framing::Chunked)
            }
            (None, Some(_)) => Err(Refusal::new(501, "Transfer-Encoding other than chunked")),
        }
    }

    fn length(text: &str) -> Result<Framing, Refusal> {
        // parse() alone would accept "+5".
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u64>() {
            Ok(length) if digits => Ok(Framing::Length(length)),
            _ => Err(Refusal::new(400, "malformed Content-Length")),
        }
    }

    fn into_body(self) -> Body {
        match self {
            Framing::None => Body::none(),
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::chunked(),
        }
    }
}

fn expects_continue(fields: &[Field<'_>]) -> Result<bool, Refusal> {
    let mut expects = false;
    for value in values(fields, "expect") {
        if !value.eq_ignore_ascii_case("100-continue") {
            return Err(Refusal::new(417, "Expect"));
        }
        expects = true;
    }
    Ok(expects)
}

/// The words of the `Connection` headers: options, and names of headers that must not be forwarded.
struct ConnectionOptions<'a>(Vec<&'a str>);

impl ConnectionOptions<'_> {
    fn parse<'a>(fields: &'a [Field<'a>]) -> ConnectionOptions<'a> {
        let words = values(fields, "connection").flat_map(|value| value.split(','));
        ConnectionOptions(words.map(|word| word.trim_matches([' ', '\t'])).collect())
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|word| word.eq_ignore_ascii_case(name))
    }
}

/// Whether a header is not forwarded: hop-by-hop headers, those that only the connection layer may set, and one that nobody
/// reads. `Connection: upgrade`, which common nginx configurations send with every request, would make tiny_http hand over
/// the raw socket instead of the body.
fn is_not_forwarded(name: &str) -> bool {
    let dropped = [
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        // tiny_http takes time for each byte of a head.
        "accept",
    ];
    let begins =
        |start: &str| name.get(..start.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(start));
    dropped.iter().any(|dropped| name.eq_ignore_ascii_case(dropped))
        || begins("proxy-")
        || begins("x-ankipi-")
}

fn forward_request(
    line: &RequestLine<'_>,
    fields: &[Field<'_>],
    connection: &ConnectionOptions<'_>,
    framing: &Framing,
    peer: IpAddr,
) -> Vec<u8> {
    let mut head = format!("{} {} HTTP/1.1\r\n", line.method, line.target);
    if let Some(host) = line.host {
        let _ = write!(head, "Host: {host}\r\n");
    }
    for (name, value) in fields {
        let is_replaced = line.host.is_some() && name.eq_ignore_ascii_case("host");
        if !is_not_forwarded(name) && !connection.has(name) && !is_replaced {
            // Writing into a String cannot fail; here and below.
            let _ = write!(head, "{name}: {value}\r\n");
        }
    }
    let _ = write!(head, "{PEER_HEADER}: {peer}\r\n");
    if let Framing::Length(length) = framing {
        let _ = write!(head, "{LENGTH_HEADER}: {length}\r\n");
    }
    head.into_bytes()
}

/// Ends a head for the backend. `link` is the number of the client's connection (`http::client_link`). Unless `is_kept`,
/// tiny_http closes its connection after the reply.
pub fn complete_head(head: &mut Vec<u8>, body: ForwardedBody, link: Option<u64>, is_kept: bool) {
    let framing = match body {
        ForwardedBody::Whole(0) => String::new(),
        ForwardedBody::Whole(bytes) => format!("Content-Length: {bytes}\r\n"),
        ForwardedBody::Chunks => "Transfer-Encoding: chunked\r\n".to_owned(),
    };
    let link = link.map_or_else(String::new, |number| format!("{LINK_HEADER}: {number}\r\n"));
    let connection = if is_kept { "" } else { "Connection: close\r\n" };
    head.extend_from_slice(format!("{link}{connection}{framing}\r\n").as_bytes());
}

/// A response head for the client, and the body that follows.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The head for the client.
    pub forward: Vec<u8>,
    /// How the backend delimits the body.
    pub body: Body,
    /// The client cannot read chunks (HTTP/1.0): send the decoded bytes, then close.
    pub dechunk: bool,
}

/// A response head that the connection layer does not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadReply;

/// The end of a response head, if it is complete.
pub fn reply_end(buf: &[u8]) -> Option<usize> {
    buf.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The line that tells a client that it may send another request.
pub const KEPT_CLIENT: &[u8] = b"Connection: keep-alive\r\n";

/// Reads the backend's head and rewrites it for the client; `None` for an interim (1xx) one. A reply with neither length
/// nor chunks is refused: if it were truncated, nobody would notice.
pub fn parse_reply(
    head: &[u8],
    is_head: bool,
    is_http10: bool,
    keep_alive: bool,
) -> Result<Option<Reply>, BadReply> {
    let mut lines = head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let status_line = lines.next().unwrap_or_default();
    let status = parse_status(status_line)?;
    if status < 200 {
        // After 101 the connection would not be HTTP any more.
        return if status == 101 { Err(BadReply) } else { Ok(None) };
    }
    let has_body = !is_head && status != 204 && status != 304;
    let mut forward = [status_line, b"\r\n"].concat();
    let (mut length, mut chunked) = (None, false);
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = split_reply_field(line)?;
        match name.to_ascii_lowercase().as_str() {
            "connection" | "keep-alive" | "te" | "trailer" | "upgrade" => continue,
            "content-length" if length.is_some() => return Err(BadReply),
            "content-length" => length = Some(value.parse().map_err(|_| BadReply)?),
            "transfer-encoding" if !value.eq_ignore_ascii_case("chunked") => return Err(BadReply),
            "transfer-encoding" => {
                chunked = true;
                if is_http10 || !has_body {
                    continue;
                }
            }
            _ => (),
        }
        forward.extend_from_slice(line);
        forward.extend_from_slice(b"\r\n");
    }
    let body = match (has_body, length, chunked) {
        (false, ..) => Body::none(),
        (true, Some(length), false) => Body::Length(length),
        (true, None, true) => Body::chunked(),
        _ => return Err(BadReply),
    };
    forward.extend_from_slice(if keep_alive { KEPT_CLIENT } else { b"Connection: close\r\n" });
    forward.extend_from_slice(b"\r\n");
    Ok(Some(Reply { status, dechunk: is_http10 && matches!(body, Body::Chunked(_)), forward, body }))
}

fn parse_status(line: &[u8]) -> Result<u16, BadReply> {
    match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', code @ ..] if code.len() >= 3 => {
            let digits = std::str::from_utf8(&code[..3]).map_err(|_| BadReply)?;
            let status = digits.parse().map_err(|_| BadReply)?;
            let ends = matches!(code.get(3), None | Some(b' '));
            if ends && (100..600).contains(&status) { Ok(status) } else { Err(BadReply) }
        }
        _ => Err(BadReply),
    }
}

fn split_reply_field(line: &[u8]) -> Result<(&str, &str), BadReply> {
    if line.contains(&b'\r') || line.contains(&0) {
        return Err(BadReply);
    }
    let colon = line.iter().position(|&byte| byte == b':').ok_or(BadReply)?;
    let name = std::str::from_utf8(&line[..colon]).map_err(|_| BadReply)?;
    // Only the values of framing headers are read. Other values are forwarded unchanged.
    let value = std::str::from_utf8(&line[colon + 1..]).unwrap_or_default();
    if is_token(name) { Ok((name, value.trim())) } else { Err(BadReply) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> IpAddr {
        "192.0.2.7".parse().unwrap()
    }

    fn parse(head: &str) -> Result<Request, Refusal> {
        // The process of a test ends soon.
        let head: &'static str = head.to_owned().leak();
        parse_request(head.as_bytes(), peer())
    }

    fn post(headers: &str) -> Result<Request, Refusal> {
        parse(&format!("POST /sync/meta HTTP/1.1\r\n{headers}\r\n"))
    }

    fn forwarded(request: &Request) -> &str {
        std::str::from_utf8(&request.forward).unwrap()
    }

    /// Scans `input` cut at `split`.
    fn scan_split(input: &[u8], split: usize) -> Result<Option<(usize, usize)>, Refusal> {
        let mut scan = Scan::default();
        match scan.advance(&input[..split], 64, 3)? {
            None => scan.advance(input, 64, 3),
            end => Ok(end),
        }
    }

    #[test]
    fn heads_end_at_the_blank_line_at_every_split() {
        type Case = (&'static [u8], Option<(usize, usize)>);
        let cases: &[Case] = &[
            (b"GET / HTTP/1.1\r\n\r\n", Some((0, 18))),
            (b"\r\nGET / HTTP/1.1\r\n\r\nGET", Some((2, 20))),
            (b"\r\n\r\nGET / HTTP/1.1\r\nA: b\r\n\r\n", Some((4, 28))),
            (b"GET / HTTP/1.1\r\nA: b\r\n", None),
            (b"\r\n\r\n", None),
            (b"", None),
        ];
        for (input, want) in cases {
            for split in 0..=input.len() {
                assert_eq!(scan_split(input, split), Ok(*want), "{input:?} at {split}");
            }
        }
    }

    #[test]
    fn hopeless_heads_are_refused_before_their_end() {
        let cases: &[(&[u8], u16)] = &[
            (b"\r\n\r\n\r\n", 400),
            (b"GET / HTTP/1.1\n", 400),
            (b"\x16\x03\x01", 400),
            (b" GET", 400),
            (b"GET /\r\n1\r\n2\r\n3\r\n4\r\n", 431),
            (&[b'A'; 65], 431),
            (b"GET /\r\n0123456789012345678901234567890123456789012345678901234567890123456789\r\n\r\n", 431),
        ];
        for (input, status) in cases {
            for split in 0..=input.len() {
                let refusal = scan_split(input, split).unwrap_err();
                assert_eq!(refusal.status, *status, "{input:?} at {split}");
            }
        }
    }

    /// A line feed may stand anywhere in the random bytes of a handshake.
    #[test]
    fn https_on_this_port_is_called_so() {
        for input in [&b"\x16\x03\x01\x02\0\x01"[..], b"\x16\x03\x01\x02\0\x01\n\r\nx", b"\r\n\x16\x03\n"] {
            for split in 0..=input.len() {
                let refusal = scan_split(input, split).unwrap_err();
                assert!(refusal.reason.starts_with("https where only http"), "{input:?} at {split}");
            }
        }
    }

    #[test]
    fn request_lines() {
        let cases = [
            ("GET / HTTP/1.1", 0),
            ("POST /sync/meta?x=y HTTP/1.0", 0),
            ("PATCH /~ HTTP/1.1", 0),
            ("GET / HTTP/2.0", 505),
            ("GET / HTTP/1.2", 505),
            ("PRI * HTTP/2.0", 505),
            ("GET / http/1.1", 400),
            ("GET /", 400),
            ("GET  / HTTP/1.1", 400),
            ("GET / HTTP/1.1 ", 400),
            ("GET /a b HTTP/1.1", 400),
            ("GET /\t HTTP/1.1", 400),
            ("GET /\u{e9} HTTP/1.1", 0),
            ("GET /\r HTTP/1.1", 400),
            ("GET http://host/ HTTP/1.1", 0),
            ("OPTIONS * HTTP/1.1", 400),
            ("TRACE / HTTP/1.1", 405),
            ("CONNECT host:1 HTTP/1.1", 405),
            ("BREW / HTTP/1.1", 501),
            ("get / HTTP/1.1", 501),
            ("G(T / HTTP/1.1", 400),
            ("", 400),
        ];
        for (line, status) in cases {
            let got = parse(&format!("{line}\r\n\r\n")).map_or_else(|refusal| refusal.status, |_| 0);
            assert_eq!(got, status, "{line:?}");
        }
    }

    #[test]
    fn headers_and_framing() {
        let cases = [
            ("Host: x\r\n", 0),
            ("A:\r\nA: \t b \r\n", 0),
            ("Content-Length: 0\r\n", 0),
            ("Content-Length: 1000\r\n", 0),
            ("Transfer-Encoding: Chunked\r\n", 0),
            ("Expect: 100-Continue\r\n", 0),
            ("Content-Length: 1000000000000000000\r\n", 0),
            ("Content-Length: 100000000000000000000\r\n", 400),
            ("Content-Length: 18446744073709551616\r\n", 400),
            ("Content-Length: -1\r\n", 400),
            ("Content-Length: +1\r\n", 400),
            ("Content-Length: 1, 1\r\n", 400),
            ("Content-Length: 0x1\r\n", 400),
            ("Content-Length:\r\n", 400),
            ("Content-Length: 1\r\ncontent-length: 1\r\n", 400),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: identity\r\n", 501),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Transfer-Encoding:\r\n", 501),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
            ("Expect: tea\r\n", 417),
            ("No colon\r\n", 400),
            (": v\r\n", 400),
            ("A : v\r\n", 400),
            ("A: b\r\n folded\r\n", 400),
            (" A: b\r\n", 400),
            ("A: S\u{e3}o Paulo\r\nB: \u{7f}\u{1}\r\n", 0),
            ("\u{e9}: b\r\n", 400),
            ("A\u{b}: b\r\n", 400),
            ("A: \0\r\n", 400),
            ("Content-Length: 1\u{e9}\r\n", 400),
            ("Content-Length: \u{b}1\r\n", 400),
            ("Transfer-Encoding: \u{b}chunked\r\n", 501),
            ("Transfer-Encoding: chunked\u{ff}\r\n", 501),
            ("Expect: 100-continue\u{1}\r\n", 417),
            ("A: x\ry\r\n", 400),
            ("A: x\ny\r\n", 400),
        ];
        for (headers, status) in cases {
            let got = post(headers).map_or_else(|refusal| refusal.status, |_| 0);
            assert_eq!(got, status, "{headers:?}");
        }
        assert_eq!(parse("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap_err().status, 400);
    }

    #[test]
    fn hop_by_hop_and_forged_headers_are_dropped() {
        let request = post(
            "Host: h\r\nConnection: upgrade, X-Once\r\nUpgrade: websocket\r\nX-Once: 1\r\nKeep-Alive: 5\r\n\
             TE: trailers\r\n\
             Trailer: T\r\nProxy-Authorization: p\r\nX-Ankipi-Peer: 1.1.1.1\r\nx-ankipi-other: 1\r\nAnki-Sync: {}\r\n\
             Expect: 100-continue\r\nContent-Length: 7\r\n",
        )
        .unwrap();
        assert_eq!(
            forwarded(&request),
            "POST /sync/meta HTTP/1.1\r\nHost: h\r\nAnki-Sync: {}\r\nx-ankipi-peer: 192.0.2.7\r\nx-ankipi-length: 7\r\n"
        );
        assert!(request.keep_alive && request.expects_continue);
        assert_eq!(request.body, Body::Length(7));
    }

    #[test]
    fn any_byte_of_a_value_is_passed_over_as_ascii() {
        let head = b"POST /caf\xc3\xa9?q=\xff HTTP/1.1\r\nHost: h\r\nCf-Ipcity: S\xe3o Paulo\r\nX-User: \xf0\x9f\x98\x80\x01\r\n\r\n";
        let request = parse_request(head, peer()).unwrap();
        let forward = forwarded(&request);
        assert!(forward.starts_with("POST /caf%C3%A9?q=%FF HTTP/1.1\r\n"), "{forward}");
        assert!(forward.contains("Cf-Ipcity: S?o Paulo\r\nX-User: ?????\r\n"), "{forward}");
        assert_eq!(request.path, "/caf%C3%A9");
        assert!(parse_request(b"GET /\x01 HTTP/1.1\r\n\r\n", peer()).is_err());
    }

    #[test]
    fn an_absolute_target_is_its_path_and_its_host() {
        let cases = [
            ("http://a:8080/sync/meta?x=1", "/sync/meta?x=1", "a:8080"),
            ("HTTPS://a", "/", "a"),
            ("http://[::1]?x", "/?x", "[::1]"),
        ];
        for (target, expected, host) in cases {
            let request = parse(&format!("POST {target} HTTP/1.1\r\nhost: b\r\nA: b\r\n\r\n")).unwrap();
            let start = format!("POST {expected} HTTP/1.1\r\nHost: {host}\r\nA: b\r\n");
            assert!(forwarded(&request).starts_with(&start), "{}", forwarded(&request));
        }
        for target in ["http://", "http:///x", "ftp://a/", "a:80", "*", "http:/x"] {
            assert_eq!(parse(&format!("GET {target} HTTP/1.1\r\n\r\n")).unwrap_err().status, 400, "{target}");
        }
    }

    #[test]
    fn the_backend_is_told_the_framing_and_whether_to_close() {
        let completed = |body, link, is_kept| {
            let mut head = b"A: b\r\n".to_vec();
            complete_head(&mut head, body, link, is_kept);
            String::from_utf8(head).unwrap()
        };
        let chunks = completed(ForwardedBody::Chunks, Some(7), false);
        assert_eq!(
            chunks,
            "A: b\r\nx-ankipi-link: 7\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        assert_eq!(completed(ForwardedBody::Whole(5), None, true), "A: b\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(completed(ForwardedBody::Whole(0), None, true), "A: b\r\n\r\n");
    }

    #[test]
    fn a_request_without_a_body_is_passed_without_one() {
        let empty = post("Content-Length: 0\r\n").unwrap();
        assert!(forwarded(&empty).contains("x-ankipi-length: 0\r\n"));
        let none =
            parse("HEAD /a?b HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n").unwrap();
        assert!(!forwarded(&none).contains("x-ankipi-length"));
        assert!(none.is_head && none.is_http10 && !none.keep_alive && !none.expects_continue);
        assert_eq!(none.path, "/a");
        assert!(!post("Connection: Close\r\n").unwrap().keep_alive);
    }

    fn reply(head: &str, is_head: bool, is_http10: bool) -> Result<Option<Reply>, BadReply> {
        parse_reply(head.as_bytes(), is_head, is_http10, true)
    }

    #[test]
    fn replies_keep_their_framing() {
        let got = reply(
            "HTTP/1.1 200 OK\r\nServer: t\r\nConnection: close\r\nContent-Length: 5\r\n\r\n",
            false,
            false,
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            std::str::from_utf8(&got.forward).unwrap(),
            "HTTP/1.1 200 OK\r\nServer: t\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(got.body, Body::Length(5));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let got = reply(chunked, false, false).unwrap().unwrap();
        assert!(got.body == Body::chunked() && !got.dechunk);
        let got = reply(chunked, false, true).unwrap().unwrap();
        assert!(got.body == Body::chunked() && got.dechunk);
        assert!(!String::from_utf8(got.forward).unwrap().contains("chunked"));
        assert_eq!(reply(chunked, true, false).unwrap().unwrap().body, Body::none());
        assert_eq!(reply("HTTP/1.1 204 No\r\n\r\n", false, false).unwrap().unwrap().body, Body::none());
        assert_eq!(
            reply("HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", false, false).unwrap().unwrap().body,
            Body::none()
        );
        assert!(reply("HTTP/1.1 100 Continue\r\n\r\n", false, false).unwrap().is_none());
    }

    #[test]
    fn replies_without_a_sure_end_are_refused() {
        let cases = [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 101 Switch\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 2000 OK\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 20\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "nonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\nbad line\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 1\r\n\r\n",
        ];
        for head in cases {
            assert_eq!(reply(head, false, false).unwrap_err(), BadReply, "{head:?}");
        }
    }

    #[test]
    fn random_heads_never_panic() {
        let pieces = [
            "GET ",
            "/",
            " HTTP/1.1",
            "\r\n",
            ":",
            "Content-Length",
            " 5",
            "\r",
            "\n",
            "\u{e9}",
            "chunked",
            "\0",
        ];
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut head = String::new();
            for _ in 0..12 {
                head.push_str(pieces[random.usize(..pieces.len())]);
            }
            let _ = Scan::default().advance(head.as_bytes(), 64, 4);
            let _ = parse(&head);
            let _ = parse_reply(head.as_bytes(), false, false, true);
        }
    }
}
