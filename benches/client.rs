//! A sync client of protocol 11: chunked zstd requests over one connection (spec, sync-protocol.md 4 and 6).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::Result;
use crate::generate::Counts;

/// Bytes of an HTTP chunk, as the clients' library makes them of a body.
const HTTP_CHUNK_BYTES: usize = 4096;

/// HTTP chunks that leave with one write.
const CHUNKS_AT_ONCE: usize = 4;

/// The timeout of a client for the next byte: the desktop's default.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request is repeated while the server is busy.
const BUSY_PATIENCE: Duration = Duration::from_secs(300);

const MEDIA_METHODS: [&str; 5] = ["begin", "mediaChanges", "uploadChanges", "downloadFiles", "mediaSanity"];

/// Body bytes on the wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// From the client.
    pub up: u64,
    /// To the client.
    pub down: u64,
    /// Requests that were answered 503 and sent again.
    pub refused: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        self.up += other.up;
        self.down += other.down;
        self.refused += other.refused;
    }
}

/// One device of one user.
pub struct Client {
    address: SocketAddr,
    user: String,
    password: String,
    hkey: String,
    connection: Option<BufReader<TcpStream>>,
    /// Bytes transferred so far.
    pub traffic: Traffic,
}

/// A stamp that tells collections apart, and the number of this sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    /// `mod`, ms.
    pub modified: i64,
    /// `scm`, ms.
    pub schema: i64,
    /// `usn`
    pub usn: i64,
}

impl Client {
    /// A client that has logged in before: accounts in plain text have the key of the official server.
    pub fn new(address: SocketAddr, user: &str, password: &str) -> Client {
        let digest = Sha1::digest(format!("{user}:{password}"));
        let hkey = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Client {
            address,
            user: user.to_owned(),
            password: password.to_owned(),
            hkey,
            connection: None,
            traffic: Traffic::default(),
        }
    }

    /// Asks for the key with name and password.
    pub fn log_in(&mut self) -> Result<()> {
        let request = format!("{{\"u\":\"{}\",\"p\":\"{}\"}}", self.user, self.password);
        let reply = self.call("hostKey", &request)?;
        expect(reply["key"] == self.hkey.as_str(), "hostKey", &reply)
    }

    /// `meta`
    pub fn meta(&mut self) -> Result<Stamps> {
        let reply = self.call("meta", "{\"v\":11,\"cv\":\"anki,26.09.3 (29bb700b),linux\"}")?;
        expect(reply["cont"] == true, "meta", &reply)?;
        let stamp = |key: &str| reply[key].as_i64().ok_or_else(|| format!("meta without {key}: {reply}"));
        Ok(Stamps { modified: stamp("mod")?, schema: stamp("scm")?, usn: stamp("usn")? })
    }

    /// A request and a reply in JSON.
    pub fn call(&mut self, method: &str, request: &str) -> Result<Value> {
        let packed = zstd::encode_all(request.as_bytes(), 3)?;
        let mut reply = Vec::new();
        self.exchange(method, || Ok(&packed[..]), &mut reply)?;
        Ok(serde_json::from_slice(&reply)?)
    }

    /// Sends a collection, given as its frame.
    pub fn upload(&mut self, packed: &Path) -> Result<()> {
        let mut reply = Vec::new();
        self.exchange("upload", || File::open(packed), &mut reply)?;
        match &reply[..] {
            b"OK" => Ok(()),
            other => Err(format!("upload: {}", String::from_utf8_lossy(other)).into()),
        }
    }

    /// Fetches the collection into a file.
    pub fn download(&mut self, path: &Path) -> Result<()> {
        let packed = zstd::encode_all(&b"{\"_pad\":null}"[..], 3)?;
        let announced = self.exchange("download", || Ok(&packed[..]), &mut File::create(path)?)?;
        match std::fs::metadata(path)?.len() {
            bytes if bytes == announced => Ok(()),
            bytes => Err(format!("download: {bytes} bytes arrived, {announced} were announced").into()),
        }
    }

    /// Sends a zip of media files, given as its frame.
    pub fn upload_media(&mut self, packed: &[u8], files: usize) -> Result<()> {
        let mut reply = Vec::new();
        self.exchange("uploadChanges", || Ok(packed), &mut reply)?;
        let reply: Value = serde_json::from_slice(&reply)?;
        expect(reply["data"][0] == files, "uploadChanges", &reply)
    }

    /// Fetches a zip of media files, which may hold fewer than were asked for.
    pub fn download_media(&mut self, names: &[&str]) -> Result<Vec<u8>> {
        let request = json!({ "files": names }).to_string();
        let packed = zstd::encode_all(request.as_bytes(), 3)?;
        let mut zip = Vec::new();
        self.exchange("downloadFiles", || Ok(&packed[..]), &mut zip)?;
        Ok(zip)
    }

    /// Fetches the collection as a client of protocol 10 does, which gets schema 11, uncompressed.
    pub fn download_old(&mut self, path: &Path) -> Result<()> {
        let mut connection = connect(self.address)?;
        let part = |name: &str, value: &str| {
            format!("--bench\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let form =
            [part("k", &self.hkey), part("v", "ankidesktop,2.1.44,lin"), "--bench--\r\n".to_owned()].concat();
        let head = format!(
            "POST /sync/download HTTP/1.1\r\nhost: {}\r\ncontent-type: multipart/form-data; boundary=bench\r\n\
             content-length: {}\r\n\r\n",
            self.address,
            form.len()
        );
        connection.get_mut().write_all((head + &form).as_bytes())?;
        let head = Head::read(&mut connection)?;
        if head.status != 200 {
            return Err(format!("download: status {}", head.status).into());
        }
        let mut wire = ReplyBody { connection: &mut connection, framing: head.framing, bytes: 0 };
        io::copy(&mut wire, &mut File::create(path)?)?;
        self.traffic.up += form.len() as u64;
        self.traffic.down += wire.bytes;
        Ok(())
    }

    /// One exchange, again while the server is busy. Returns the size that the reply announced.
    fn exchange<B: Read>(
        &mut self,
        method: &str,
        body: impl Fn() -> io::Result<B>,
        sink: &mut impl Write,
    ) -> Result<u64> {
        let deadline = Instant::now() + BUSY_PATIENCE;
        loop {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => connect(self.address)?,
            };
            let (head, sent) = self.send(&mut connection, method, body()?);
            let head = head.map_err(|err| format!("{method}: {err}"))?;
            match head.status {
                200 => {}
                503 if Instant::now() < deadline => {
                    // The rest of this request may be on its way still: another connection.
                    self.traffic.refused += 1;
                    thread::sleep(Duration::from_secs(1));
                    continue;
                }
                status => return Err(format!("{method}: status {status}").into()),
            }
            sent.map_err(|err| format!("{method}: sending: {err}"))?;
            let announced = head.original_bytes.ok_or_else(|| format!("{method}: no anki-original-size"))?;
            let mut wire = ReplyBody { connection: &mut connection, framing: head.framing, bytes: 0 };
            zstd::stream::copy_decode(&mut wire, sink).map_err(|err| format!("{method}: {err}"))?;
            // To the end of the reply, which may come after the end of the frame.
            io::copy(&mut wire, &mut io::sink())?;
            self.traffic.down += wire.bytes;
            self.connection = Some(connection);
            return Ok(announced);
        }
    }

    /// Sends a request and reads the head of the reply. A server may refuse before it has read everything, so the head
    /// counts for more than how the sending went.
    fn send(
        &mut self,
        connection: &mut BufReader<TcpStream>,
        method: &str,
        mut body: impl Read,
    ) -> (Result<Head>, io::Result<()>) {
        let head = format!(
            "POST /{} HTTP/1.1\r\nanki-sync: {{\"v\":11,\"k\":\"{}\",\"c\":\"26.09.3,29bb700b,linux\",\
             \"s\":\"bench1\"}}\r\ncontent-type: application/octet-stream\r\naccept: */*\r\nhost: {}\r\n\
             transfer-encoding: chunked\r\n\r\n",
            path_of(method),
            self.hkey,
            self.address
        );
        let socket = connection.get_mut();
        let mut wire = head.into_bytes();
        let mut block = vec![0; HTTP_CHUNK_BYTES * CHUNKS_AT_ONCE];
        let mut send = || loop {
            let count = read_full(&mut body, &mut block)?;
            for chunk in block[..count].chunks(HTTP_CHUNK_BYTES) {
                write!(wire, "{:x}\r\n", chunk.len())?;
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            self.traffic.up += count as u64;
            if count < block.len() {
                wire.extend_from_slice(b"0\r\n\r\n");
                return socket.write_all(&wire);
            }
            socket.write_all(&wire)?;
            wire.clear();
        };
        let sent = send();
        (Head::read(connection), sent)
    }
}

/// The path of a method; those of media sync have names of their own.
fn path_of(method: &str) -> String {
    let service = if MEDIA_METHODS.contains(&method) { "msync" } else { "sync" };
    format!("{service}/{method}")
}

/// Fills the buffer unless the source ends.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// A connection with a client's timers.
pub fn connect(address: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(EVENT_TIMEOUT))?;
    socket.set_write_timeout(Some(EVENT_TIMEOUT))?;
    Ok(BufReader::with_capacity(64 * 1024, socket))
}

/// The head of a reply.
pub struct Head {
    /// Its status.
    pub status: u16,
    /// `anki-original-size`
    original_bytes: Option<u64>,
    framing: Framing,
}

/// What is left of a body.
enum Framing {
    Length(u64),
    /// Bytes left of this chunk.
    Chunk(u64),
    /// Before the first chunk.
    Chunked,
    Ended,
}

impl Head {
    /// Reads a head.
    pub fn read(connection: &mut impl BufRead) -> Result<Head> {
        let status_line = line(connection)?;
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut head = Head {
            status: status.ok_or_else(|| format!("not a status line: {status_line:?}"))?,
            original_bytes: None,
            framing: Framing::Length(0),
        };
        loop {
            let line = line(connection)?.to_ascii_lowercase();
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                None => return Ok(head),
                Some(("anki-original-size", size)) => head.original_bytes = size.parse().ok(),
                Some(("content-length", length)) => head.framing = Framing::Length(length.parse()?),
                Some(("transfer-encoding", _)) => head.framing = Framing::Chunked,
                Some(_) => {}
            }
        }
    }

    /// Reads the body to its end and forgets it.
    pub fn skip_body(self, connection: &mut BufReader<TcpStream>) -> Result<()> {
        io::copy(&mut ReplyBody { connection, framing: self.framing, bytes: 0 }, &mut io::sink())?;
        Ok(())
    }
}

fn line(connection: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if connection.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}

/// The body of a reply without its framing.
struct ReplyBody<'c> {
    connection: &'c mut BufReader<TcpStream>,
    framing: Framing,
    bytes: u64,
}

impl ReplyBody<'_> {
    fn next_chunk(&mut self) -> io::Result<()> {
        if matches!(self.framing, Framing::Chunk(_)) {
            line(self.connection)?;
        }
        let size = line(self.connection)?;
        let size = u64::from_str_radix(&size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
        self.framing = Framing::Chunk(size);
        if size == 0 {
            line(self.connection)?;
            self.framing = Framing::Ended;
        }
        Ok(())
    }
}

impl Read for ReplyBody<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if matches!(self.framing, Framing::Chunked | Framing::Chunk(0)) {
            self.next_chunk()?;
        }
        let left = match &mut self.framing {
            Framing::Length(left) | Framing::Chunk(left) => left,
            Framing::Chunked | Framing::Ended => return Ok(0),
        };
        let most = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        if most == 0 {
            // A buffered reader would wait for its source even if asked for no bytes.
            return Ok(0);
        }
        let count = self.connection.read(&mut buf[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= count as u64;
        self.bytes += count as u64;
        Ok(count)
    }
}

/// What a device has to send in a normal sync, row by row as JSON; each list is used up from its front.
#[derive(Default)]
pub struct Rows<'r> {
    /// Reviews.
    pub revlog: Option<Box<dyn Iterator<Item = String> + 'r>>,
    /// Notes.
    pub notes: Option<Box<dyn Iterator<Item = String> + 'r>>,
    /// Cards.
    pub cards: Option<Box<dyn Iterator<Item = String> + 'r>>,
}

/// Rows of a chunk.
const CHUNK_ROWS: usize = 250;

impl Rows<'_> {
    /// The next chunk: the three tables in turn.
    fn next_chunk(&mut self) -> (String, bool) {
        let mut lists = [String::new(), String::new(), String::new()];
        let mut rows = 0;
        loop {
            let before = rows;
            for (source, list) in
                [&mut self.revlog, &mut self.notes, &mut self.cards].into_iter().zip(&mut lists)
            {
                if rows < CHUNK_ROWS
                    && let Some(row) = source.as_mut().and_then(Iterator::next)
                {
                    list.push(if list.is_empty() { '[' } else { ',' });
                    list.push_str(&row);
                    rows += 1;
                }
            }
            if rows == before || rows == CHUNK_ROWS {
                break;
            }
        }
        let done = rows < CHUNK_ROWS;
        let mut chunk = format!("{{\"done\":{done}");
        for (key, list) in ["revlog", "notes", "cards"].into_iter().zip(lists) {
            if !list.is_empty() {
                chunk.push_str(&format!(",\"{key}\":{list}]"));
            }
        }
        chunk.push('}');
        (chunk, done)
    }
}

/// How many rows came down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Reviews.
    pub revlog: usize,
    /// Notes.
    pub notes: usize,
    /// Cards.
    pub cards: usize,
}

impl Client {
    /// A normal sync of a device that has seen everything before `usn`. `config` is there if the device changed last.
    /// Fails unless the server counts the same rows afterwards as the device does.
    pub fn sync(
        &mut self,
        usn: i64,
        config: Option<&str>,
        rows: Rows<'_>,
        counts: Counts,
    ) -> Result<Received> {
        let meta = self.meta()?;
        let (received, stamp) = self.steps(usn, config, rows, counts)?;
        let after = self.meta()?;
        let expected = Stamps { modified: stamp, schema: meta.schema, usn: meta.usn + 1 };
        if after == expected {
            Ok(received)
        } else {
            Err(format!("after finish meta says {after:?}, and not {expected:?}").into())
        }
    }

    /// The steps of such a sync behind `meta`; returns the stamp that the server gave its collection, too.
    pub fn steps(
        &mut self,
        usn: i64,
        config: Option<&str>,
        mut rows: Rows<'_>,
        counts: Counts,
    ) -> Result<(Received, i64)> {
        let newer = config.is_some();
        self.call("start", &format!("{{\"minUsn\":{usn},\"lnewer\":{newer},\"graves\":null}}"))?;
        let config = config.map(|conf| format!(",\"conf\":{conf},\"crt\":1600000000")).unwrap_or_default();
        let changes = format!("{{\"changes\":{{\"models\":[],\"decks\":[[],[]],\"tags\":[]{config}}}}}");
        let changes = self.call("applyChanges", &changes)?;
        expect(
            changes["models"].is_array() && changes["conf"].is_object() != newer,
            "applyChanges",
            &changes,
        )?;
        let mut received = Received::default();
        loop {
            let chunk = self.call("chunk", "{\"_pad\":null}")?;
            let rows = |key: &str| chunk[key].as_array().map_or(0, Vec::len);
            received.revlog += rows("revlog");
            received.notes += rows("notes");
            received.cards += rows("cards");
            if chunk["done"] == true {
                break;
            }
        }
        loop {
            let (chunk, done) = rows.next_chunk();
            let reply = self.call("applyChunk", &format!("{{\"chunk\":{chunk}}}"))?;
            expect(reply.is_null(), "applyChunk", &reply)?;
            if done {
                break;
            }
        }
        let [cards, notes, revlog, notetypes, decks, options] = counts;
        let counts = format!("[[0,0,0],{cards},{notes},{revlog},0,{notetypes},{decks},{options}]");
        let verdict = self.call("sanityCheck2", &format!("{{\"client\":{counts}}}"))?;
        expect(verdict["status"] == "ok", "sanityCheck2", &verdict)?;
        let stamp = self.call("finish", "{\"_pad\":null}")?;
        Ok((received, stamp.as_i64().ok_or("finish: not a stamp")?))
    }

    /// Begins a media sync of a device that has seen everything up to `usn`, and fails if there is more.
    pub fn begin_media(&mut self, usn: i64) -> Result<()> {
        let reply = self.call("begin", "{\"v\":\"26.09.3,29bb700b,linux\"}")?;
        expect(reply["data"]["usn"] == usn, "begin", &reply)?;
        // Clients that are up to date do not ask.
        Ok(())
    }

    /// Ends a media sync of a device with so many files.
    pub fn end_media(&mut self, files: usize) -> Result<()> {
        let reply = self.call("mediaSanity", &json!({ "local": files }).to_string())?;
        expect(reply["data"] == "OK", "mediaSanity", &reply)
    }
}

fn expect(holds: bool, method: &str, reply: &Value) -> Result<()> {
    if holds { Ok(()) } else { Err(format!("{method}: unexpected reply {:.500}", reply.to_string()).into()) }
}
