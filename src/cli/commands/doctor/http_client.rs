//! One HTTP request as a client sends it, for `ankipi doctor`. http uses a socket of ours. https uses curl, as this
//! program contains no TLS.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::os;

/// The timeout of Anki clients.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum size of a response. No response that the doctor needs is longer.
const MAX_REPLY_BYTES: u64 = 1 << 20;

/// A server address as typed into Anki.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    is_https: bool,
    /// The host, with the port if one was given.
    authority: String,
    /// Begins and ends with a slash.
    path: String,
}

impl Url {
    /// None if Anki would not accept the address.
    pub fn parse(text: &str) -> Option<Url> {
        let (scheme, rest) = text.split_once("://")?;
        let is_https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let is_plain =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\?#@".contains(&byte));
        if authority.is_empty() || !is_plain(authority) || !is_plain(path) {
            return None;
        }
        let path = match path.trim_matches('/') {
            "" => "/".to_owned(),
            path => format!("/{path}/"),
        };
        Some(Url { is_https, authority: authority.to_owned(), path })
    }

    /// Whether the connection is encrypted.
    pub fn is_https(&self) -> bool {
        self.is_https
    }

    /// The address without `sync/` and `msync/` at its end, if it has any: methods begin with these words, and old clients have
    /// them in their settings.
    pub fn without_methods(&self) -> Option<Url> {
        let mut rest = self.path.trim_end_matches('/');
        while let Some(shorter) = rest.strip_suffix("/sync").or_else(|| rest.strip_suffix("/msync")) {
            rest = shorter;
        }
        let path = format!("{rest}/");
        (path != self.path).then(|| Url { path, ..self.clone() })
    }

    /// The addresses at which other devices may reach this machine, if this one is of its loopback.
    pub fn for_other_devices(&self) -> Option<Vec<Url>> {
        let host_and_port = self.host_and_port();
        let (host, port) = host_and_port.rsplit_once(':')?;
        let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
        if self.is_https || !(host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())) {
            return None;
        }
        let port = port.parse().ok()?;
        let with = |ip| Url { authority: SocketAddr::new(ip, port).to_string(), ..self.clone() };
        Some(os::lan_addresses().into_iter().map(with).collect())
    }

    fn host_and_port(&self) -> String {
        let has_port = self
            .authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
        if has_port { self.authority.clone() } else { format!("{}:80", self.authority) }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

/// A request.
pub struct Request<'a> {
    /// `GET` or `POST`.
    pub verb: &'static str,
    /// Appended to the address. No leading slash, unless two are wanted.
    pub path: &'a str,
    /// Header names and values.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body, sent with its length.
    pub body: &'a [u8],
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body without framing.
    pub body: Vec<u8>,
}

impl Reply {
    /// The value of a header. `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Why there was no response.
#[derive(Debug)]
pub enum RequestError {
    /// The host name is unknown.
    UnknownHost(String),
    /// The connection was refused: nothing listens, or a firewall rejects it.
    Refused(String),
    /// Nothing was received before the timeout.
    Timeout,
    /// The certificate is not trusted, or is for another name.
    Certificate(String),
    /// The TLS handshake failed.
    Tls(String),
    /// The connection ended without a response, or the response is not HTTP.
    NotHttp(String),
    /// curl is not installed.
    NoCurl,
}

/// Sends a request and waits for the response. Redirects are not followed, as clients do not follow them either.
pub fn fetch(url: &Url, request: &Request<'_>) -> Result<Reply, RequestError> {
    if url.is_https { through_curl(url, request, "") } else { over_socket(url, request) }
}

/// The same over TLS 1.2, as clients that know no newer one.
pub fn fetch_with_old_tls(url: &Url, request: &Request<'_>) -> Result<Reply, RequestError> {
    through_curl(url, request, "tls-max = 1.2\n")
}

fn over_socket(url: &Url, request: &Request<'_>) -> Result<Reply, RequestError> {
    let addresses =
        url.host_and_port().to_socket_addrs().map_err(|err| RequestError::UnknownHost(err.to_string()))?;
    let mut last = RequestError::UnknownHost("it has no address".to_owned());
    for address in addresses {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(socket) => return talk(socket, url, request).map_err(request_error),
            Err(err) => last = request_error(err),
        }
    }
    Err(last)
}

fn request_error(err: io::Error) -> RequestError {
    match err.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => RequestError::Timeout,
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => RequestError::Refused(err.to_string()),
        _ => RequestError::NotHttp(err.to_string()),
    }
}

fn talk(mut socket: TcpStream, url: &Url, request: &Request<'_>) -> io::Result<Reply> {
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    let mut head = format!(
        "{} {}{} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n",
        request.verb,
        url.path,
        request.path,
        url.authority,
        request.body.len()
    );
    for (name, value) in request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    socket.write_all(head.as_bytes())?;
    // A server that refuses the body may respond before all of it is sent. So a failed write matters only without a
    // response.
    let sent = socket.write_all(request.body);
    let mut answer = Vec::new();
    let read = socket.take(MAX_REPLY_BYTES).read_to_end(&mut answer);
    match parse_reply(&answer, true) {
        Some(reply) => Ok(reply),
        None => {
            sent?;
            read?;
            Err(io::Error::other(if answer.is_empty() {
                "the connection was closed without an answer"
            } else {
                "the answer is not HTTP; if the port is one for https, type https"
            }))
        }
    }
}

/// Parses the final response (after 1xx ones) and its body. `framed`: a chunked body is still to be decoded.
fn parse_reply(answer: &[u8], framed: bool) -> Option<Reply> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]);
    let mut lines = head.split("\r\n");
    let first = lines.next()?;
    let status = first.strip_prefix("HTTP/")?.split(' ').nth(1)?.parse().ok()?;
    if (100..200).contains(&status) {
        return parse_reply(body, framed);
    }
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let is_chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value.to_ascii_lowercase().contains("chunked"));
    let body = if framed && is_chunked { dechunk(body) } else { body.to_vec() };
    Some(Reply { status, headers, body })
}

fn dechunk(mut wire: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = wire.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&wire[..end]).ok().and_then(|line| line.split(';').next());
        let size = size.and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        let Some(chunk) = size.filter(|size| *size > 0).and_then(|size| wire.get(end + 2..end + 2 + size))
        else {
            break;
        };
        body.extend_from_slice(chunk);
        wire = wire.get(end + 4 + chunk.len()..).unwrap_or_default();
    }
    body
}

/// curl reads the headers from a file: one holds a key, and arguments show in the process list.
fn through_curl(url: &Url, request: &Request<'_>, more_options: &str) -> Result<Reply, RequestError> {
    let not_http = |err: io::Error| RequestError::NotHttp(err.to_string());
    let config = std::env::temp_dir().join(format!("ankipi-doctor-{}", std::process::id()));
    // One that was killed may have left it.
    let _ = fs::remove_file(&config);
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&config).map_err(not_http)?;
    let written =
        write_curl_config(&mut file, url, request).and_then(|()| file.write_all(more_options.as_bytes()));
    let outcome = written.map_err(not_http).and_then(|()| run_curl(&config, request));
    let _ = fs::remove_file(&config);
    outcome
}

fn write_curl_config(file: &mut fs::File, url: &Url, request: &Request<'_>) -> io::Result<()> {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    writeln!(file, "url = \"{}\"", quoted(&format!("{url}{}", request.path)))?;
    writeln!(file, "request = {}\nheader = \"Expect:\"", request.verb)?;
    for (name, value) in request.headers {
        writeln!(file, "header = \"{name}: {}\"", quoted(value))?;
    }
    if request.verb == "POST" {
        // The body comes from standard input.
        writeln!(file, "data-binary = \"@-\"")?;
    }
    writeln!(file, "max-time = {}\nmax-filesize = {MAX_REPLY_BYTES}", TIMEOUT.as_secs())
}

fn run_curl(config: &std::path::Path, request: &Request<'_>) -> Result<Reply, RequestError> {
    let spawned = Command::new("curl")
        .args(["--silent", "--show-error", "--include", "--http1.1", "--path-as-is", "--config"])
        .arg(config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut curl = match spawned {
        Ok(curl) => curl,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(RequestError::NoCurl),
        Err(err) => return Err(RequestError::NotHttp(format!("starting curl: {err}"))),
    };
    if let Some(mut stdin) = curl.stdin.take() {
        // curl reads all of it before it connects. Without a body it reads nothing.
        let _ = stdin.write_all(request.body);
    }
    let output =
        curl.wait_with_output().map_err(|err| RequestError::NotHttp(format!("waiting for curl: {err}")))?;
    if let Some(reply) = parse_reply(&output.stdout, false) {
        return Ok(reply);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // The exit codes of curl(1).
    Err(match output.status.code() {
        Some(5 | 6) => RequestError::UnknownHost(said),
        Some(7) => RequestError::Refused(said),
        Some(28) => RequestError::Timeout,
        Some(60) => RequestError::Certificate(said),
        Some(35) => RequestError::Tls(said),
        _ => RequestError::NotHttp(said),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_end_in_one_slash_and_odd_ones_are_none() {
        let cases = [
            ("http://pi:8080", Some("http://pi:8080/")),
            ("HTTPS://example.org/anki", Some("https://example.org/anki/")),
            ("http://[::1]:80//a/b//", Some("http://[::1]:80/a/b/")),
            ("pi:8080", None),
            ("ftp://pi/", None),
            ("http:///x", None),
            ("http://a b/", None),
            ("http://me:secret@pi/", None),
            ("http://pi/?x", None),
        ];
        for (text, shown) in cases {
            assert_eq!(Url::parse(text).map(|url| url.to_string()).as_deref(), shown, "{text}");
        }
        assert_eq!(Url::parse("http://[::1]/").unwrap().host_and_port(), "[::1]:80");
        assert_eq!(Url::parse("http://pi:81/").unwrap().host_and_port(), "pi:81");
    }

    #[test]
    fn answers_are_read_behind_interim_ones_and_out_of_chunks() {
        let wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 No\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        let reply = parse_reply(wire, true).unwrap();
        assert_eq!((reply.status, reply.header("server"), &reply.body[..]), (403, Some("x"), &b"abcde"[..]));
        for cut in 0..wire.len() {
            parse_reply(&wire[..cut], true);
        }
        assert_eq!(parse_reply(b"SSH-2.0-OpenSSH\r\n\r\n", true), None);
    }
}
