//! A client of protocol 11 that does as it is told, also what no client does.

use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::harness::EVENT_TIMEOUT;

/// All methods of the protocol.
pub const METHODS: [&str; 12] = [
    "hostKey",
    "meta",
    "start",
    "applyGraves",
    "applyChanges",
    "chunk",
    "applyChunk",
    "sanityCheck2",
    "finish",
    "abort",
    "upload",
    "download",
];

/// Those that take part in a session.
pub const STEPS: [&str; 6] = ["applyGraves", "applyChanges", "chunk", "applyChunk", "sanityCheck2", "finish"];

/// Those that take bodies of any size.
pub const LARGE: [&str; 5] = ["start", "applyGraves", "applyChanges", "applyChunk", "upload"];

/// A body and how its end is told.
#[derive(Clone, Copy)]
pub enum Framed<'b> {
    Chunked(&'b [u8]),
    Length(&'b [u8]),
}

/// A POST with these header lines, each ended by CRLF.
pub fn post(path: &str, headers: &str, body: Framed) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}");
    match body {
        Framed::Length(body) => {
            [format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
        }
        Framed::Chunked(body) => {
            let mut wire = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
            for piece in body.chunks(4096) {
                wire.extend(chunk(piece));
            }
            wire.extend(chunk(b""));
            wire
        }
    }
}

/// One chunk of a body; an empty one ends it.
pub fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

/// The header line of protocol 11.
pub fn sync_header(key: &str, skey: &str) -> String {
    format!("anki-sync: {{\"v\":11,\"k\":\"{key}\",\"c\":\"26.09.3,29bb700b,linux\",\"s\":\"{skey}\"}}\r\n")
}

/// Bytes that do not pack, the same in each run.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    noise
}

/// Packs a body as clients do.
pub fn pack(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 3).unwrap()
}

/// An HTTP connection.
pub struct Wire {
    socket: Option<TcpStream>,
    reader: BufReader<Box<dyn Read>>,
}

impl Wire {
    pub fn open(address: SocketAddr) -> Wire {
        Wire::on(TcpStream::connect(address).unwrap())
    }

    /// To a server that may end at any moment.
    pub fn try_open(address: SocketAddr) -> io::Result<Wire> {
        TcpStream::connect(address).map(Wire::on)
    }

    fn on(socket: TcpStream) -> Wire {
        socket.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        socket.set_write_timeout(Some(EVENT_TIMEOUT)).unwrap();
        Wire { reader: BufReader::new(Box::new(socket.try_clone().unwrap())), socket: Some(socket) }
    }

    /// A recording of what a server sent.
    pub fn of(recording: Vec<u8>) -> Wire {
        Wire { socket: None, reader: BufReader::new(Box::new(Cursor::new(recording))) }
    }

    /// Sends these bytes. A server that has decided early may close before it took all; the reply tells.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Err(err) = self.socket.as_mut().unwrap().write_all(bytes) {
            assert!(matches!(err.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{err}");
        }
    }

    /// Reads status and headers.
    pub fn head(&mut self) -> Reply {
        self.try_head().unwrap()
    }

    fn try_head(&mut self) -> io::Result<Reply> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            match line.trim_end() {
                "" if line.is_empty() => return Err(cut("the connection ended in the head of a reply")),
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        Ok(Reply { status, headers: lines.split_off(1), body: Vec::new() })
    }

    /// Reads a whole reply.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().unwrap()
    }

    /// Reads a whole reply of a server that may end at any moment.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        let mut reply = self.try_head()?;
        self.try_body(&mut reply)?;
        Ok(reply)
    }

    /// Reads the body that belongs to this head.
    pub fn body(&mut self, reply: &mut Reply) {
        self.try_body(reply).unwrap();
    }

    fn try_body(&mut self, reply: &mut Reply) -> io::Result<()> {
        if reply.header("transfer-encoding").is_some() {
            while let Some(piece) = self.try_chunk()? {
                reply.body.extend(piece);
            }
        } else if let Some(length) = reply.header("content-length") {
            reply.body.resize(length.parse().unwrap(), 0);
            self.reader.read_exact(&mut reply.body)?;
        } else {
            self.reader.read_to_end(&mut reply.body)?;
        }
        Ok(())
    }

    /// Reads one chunk of a body; none at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        self.try_chunk().expect("a whole chunk")
    }

    fn try_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim_end(), 16).map_err(|_| cut("no chunk"))?;
        let mut data = vec![0; size + 2];
        self.reader.read_exact(&mut data)?;
        assert!(data.ends_with(b"\r\n"));
        data.truncate(size);
        Ok((size > 0).then_some(data))
    }
}

fn cut(text: &str) -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, text)
}

/// A download of more than the buffers on the way hold, of which nothing but the beginning is taken yet.
pub struct SlowDownload {
    wire: Wire,
    reply: Reply,
}

impl SlowDownload {
    pub fn begin(device: &Device) -> SlowDownload {
        SlowDownload::try_begin(device).unwrap()
    }

    /// Begins one from a server that may end at any moment.
    pub fn try_begin(device: &Device) -> io::Result<SlowDownload> {
        let mut wire = Wire::on(TcpStream::connect(device.address)?);
        wire.send(&device.request("download", Framed::Chunked(&pack(b"{}"))));
        let mut reply = wire.try_head()?;
        if reply.status != 200 {
            return Err(io::Error::other(format!("status {}", reply.status)));
        }
        reply.body = wire.try_chunk()?.ok_or_else(|| cut("nothing came"))?;
        Ok(SlowDownload { wire, reply })
    }

    pub fn end(self) -> Vec<u8> {
        self.try_end().unwrap()
    }

    /// Reads the rest from a server that may have ended.
    pub fn try_end(mut self) -> io::Result<Vec<u8>> {
        self.wire.try_body(&mut self.reply)?;
        Ok(self.reply.unpacked())
    }
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The unpacked body of a 200, whose head must have told its length.
    pub fn unpacked(&self) -> Vec<u8> {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        let plain = zstd::decode_all(&self.body[..]).unwrap();
        assert_eq!(self.header("anki-original-size"), Some(plain.len().to_string().as_str()));
        // Other clients unpack in one call, into a buffer of that size.
        assert!(zstd::bulk::decompress(&self.body, plain.len()).unwrap() == plain);
        plain
    }

    /// The JSON of a 200.
    #[track_caller]
    pub fn ok(&self) -> Value {
        serde_json::from_slice(&self.unpacked()).unwrap()
    }

    /// Checks the status of an error, which comes as a short text and never as a packed body.
    #[track_caller]
    pub fn refused(&self, status: u16) {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.text().trim_end(), status.to_string());
        assert_eq!(self.header("anki-original-size"), None);
    }
}

/// A device of one account, with a session key of its own. Each request has its own connection.
pub struct Device {
    pub address: SocketAddr,
    pub key: String,
    pub skey: String,
}

impl Device {
    pub fn new(address: SocketAddr, key: &str) -> Device {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let skey = format!("s{}", COUNTER.fetch_add(1, Ordering::Relaxed));
        Device { address, key: key.to_owned(), skey }
    }

    /// The bytes of a request with this body.
    pub fn request(&self, method: &str, body: Framed) -> Vec<u8> {
        post(&format!("/sync/{method}"), &sync_header(&self.key, &self.skey), body)
    }

    /// Sends a request whose body is these bytes.
    pub fn send_raw(&self, method: &str, body: Framed) -> Reply {
        let mut wire = Wire::open(self.address);
        wire.send(&self.request(method, body));
        wire.reply()
    }

    /// Sends a request as clients do to a path of a server that may end at any moment.
    pub fn try_call(&self, path: &str, body: &[u8]) -> io::Result<Reply> {
        let mut wire = Wire::on(TcpStream::connect(self.address)?);
        wire.send(&post(path, &sync_header(&self.key, &self.skey), Framed::Chunked(&pack(body))));
        wire.try_reply()
    }

    /// Sends a request as clients do.
    pub fn call(&self, method: &str, json: &str) -> Reply {
        self.try_call(&format!("/sync/{method}"), json.as_bytes()).unwrap()
    }

    pub fn meta(&self) -> Value {
        self.call("meta", r#"{"v":11,"cv":"anki,26.09.3 (29bb700b),linux"}"#).ok()
    }

    pub fn start(&self, usn: i64, is_newer: bool) -> Reply {
        self.call("start", &format!(r#"{{"minUsn":{usn},"lnewer":{is_newer},"graves":null}}"#))
    }

    /// Graves: the object inside `chunk`.
    pub fn apply_graves(&self, graves: &str) -> Reply {
        self.call("applyGraves", &format!(r#"{{"chunk":{graves}}}"#))
    }

    /// Changes: the object inside `changes`.
    pub fn apply_changes(&self, changes: &str) -> Reply {
        self.call("applyChanges", &format!(r#"{{"changes":{changes}}}"#))
    }

    /// Rows: the object inside `chunk`.
    pub fn apply_chunk(&self, rows: &str) -> Reply {
        self.call("applyChunk", &format!(r#"{{"chunk":{rows}}}"#))
    }

    /// Fetches chunks until they are done.
    pub fn chunks(&self) -> Vec<Value> {
        let mut chunks = Vec::new();
        loop {
            let chunk = self.call("chunk", r#"{"_pad":null}"#).ok();
            let done = chunk["done"].as_bool().unwrap();
            chunks.push(chunk);
            if done {
                return chunks;
            }
        }
    }

    /// Uploads a collection and returns the server's words.
    pub fn upload(&self, file: &[u8]) -> String {
        let reply = self.send_raw("upload", Framed::Chunked(&pack(file)));
        String::from_utf8(reply.unpacked()).unwrap()
    }

    pub fn download(&self) -> Vec<u8> {
        self.call("download", "{}").unpacked()
    }

    /// Opens a session as a device that has seen everything before the server's usn, and returns that usn.
    pub fn begin(&self) -> i64 {
        let usn = self.meta()["usn"].as_i64().unwrap();
        self.start(usn, true).ok();
        usn
    }

    pub fn finish(&self) {
        self.call("finish", r#"{"_pad":null}"#).ok();
    }
}
