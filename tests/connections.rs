//! The connection layer with a real tiny_http behind it, through real sockets.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ankipi::http::client_link::ReplyLink;
use ankipi::http::request_head::Fields;
use ankipi::limits_and_timeouts::{Limits, SyncStep, Weight};
use ankipi::server::connections::{Client as Sharer, Policy, PollLoop};

/// Timeout of every wait in these tests; a test that reaches it fails.
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A timeout that no test reaches.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Read lock of every test. Write lock of those that need something of the process for themselves: its descriptors, or its list of
/// announced connections.
static ALONE: RwLock<()> = RwLock::new(());

fn alone() -> RwLockWriteGuard<'static, ()> {
    ALONE.write().unwrap_or_else(PoisonError::into_inner)
}

fn not_alone() -> RwLockReadGuard<'static, ()> {
    ALONE.read().unwrap_or_else(PoisonError::into_inner)
}

// ---- the server ----

/// Lets handlers wait until the test releases them.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<usize>, Condvar)>);

impl Gate {
    fn open(&self, times: usize) {
        *self.0.0.lock().unwrap() += times;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let tickets = self.0.0.lock().unwrap();
        let (mut tickets, _) =
            self.0.1.wait_timeout_while(tickets, EVENT_TIMEOUT, |tickets| *tickets == 0).unwrap();
        *tickets = tickets.saturating_sub(1);
    }
}

/// What requests cost here.
struct ByPath;

impl Policy for ByPath {
    fn weight(&self, path: &str) -> Weight {
        match path {
            path if path.starts_with("/bulk") => Weight::Bulk,
            path if path.starts_with("/login") => Weight::Login,
            _ => Weight::Light,
        }
    }

    fn sync_step(&self, path: &str) -> Option<SyncStep> {
        match path {
            path if path.starts_with("/first") => Some(SyncStep::First),
            path if path.starts_with("/later") => Some(SyncStep::Later),
            _ => None,
        }
    }

    fn client(&self, peer: IpAddr, fields: &Fields) -> Sharer {
        if let Some(user) = fields.values("x-user").next() {
            return Sharer::user(user, peer);
        }
        let told = fields.values("x-client").next().and_then(|text| text.parse().ok());
        Sharer::at(told.unwrap_or(peer))
    }

    fn replies_tell_their_end(&self, fields: &Fields) -> bool {
        fields.values("x-keep").next().is_some()
    }
}

/// The header of a request whose backend connection may be kept.
const KEEP: &str = "X-Keep: 1\r\n";

/// The header of a client of another address.
const ELSEWHERE: &str = "X-Client: 192.0.2.9\r\n";

struct PollLoopThread {
    addr: SocketAddr,
    stop: UnixStream,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl PollLoopThread {
    fn start(listener: TcpListener, backend: PathBuf, limits: Limits) -> PollLoopThread {
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let poll_loop = PollLoop::new(vec![listener.into()], backend, limits, ByPath, stopped).unwrap();
        // The port tells the poll loops of parallel tests apart; the kernel keeps 15 characters of a name.
        let name = format!("poll-{}", addr.port());
        let thread = thread::Builder::new().name(name).spawn(move || poll_loop.run()).ok();
        PollLoopThread { addr, stop, thread }
    }

    fn begin_stop(&self) {
        let _ = (&self.stop).write_all(b"x");
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.addr)
    }

    /// Asserts that the thread takes next to no processor time, once it has done what there is to do.
    fn assert_becomes_quiet(&self) {
        let name = format!("poll-{}", self.addr.port());
        let Some(mut before) = time_of_thread(&name) else {
            return;
        };
        let mut is_quiet = |_| {
            thread::sleep(millis(500));
            let now = time_of_thread(&name).unwrap();
            let spent = now - std::mem::replace(&mut before, now);
            spent < millis(10)
        };
        assert!((0..8).any(&mut is_quiet), "more than 10 ms in each of 8 half seconds");
        assert!((0..2).all(is_quiet), "more than 10 ms in a half second after a quiet one");
    }

    /// Waits until the thread has read what clients have sent so far.
    fn wait_until_read(&self) {
        // Each is refused after what came before was read; five, because the kernel may deliver a request late.
        for _ in 0..5 {
            assert_eq!(self.client().send("nonsense\r\n\r\n").answer().status, 400);
        }
    }
}

impl Drop for PollLoopThread {
    fn drop(&mut self) {
        let _ = (&self.stop).write_all(b"x");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Server {
    connections: PollLoopThread,
    gate: Gate,
    events: Receiver<String>,
    tiny: Arc<tiny_http::Server>,
    workers: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
    _not_alone: Option<RwLockReadGuard<'static, ()>>,
}

impl Server {
    fn start() -> Server {
        Server::with(Limits::default())
    }

    fn with(limits: Limits) -> Server {
        let not_alone = not_alone();
        let mut server = Server::on(TcpListener::bind("127.0.0.1:0").unwrap(), limits);
        server._not_alone = Some(not_alone);
        server
    }

    fn on(listener: TcpListener, limits: Limits) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("http");
        let tiny = Arc::new(tiny_http::Server::http_unix(&path).unwrap());
        let (gate, (sender, events)) = (Gate::default(), mpsc::channel());
        let workers = (0..limits.max_active)
            .map(|_| {
                let (tiny, gate, sender) = (tiny.clone(), gate.clone(), sender.clone());
                thread::spawn(move || {
                    while let Ok(request) = tiny.recv() {
                        handle(request, &gate, &sender);
                    }
                })
            })
            .collect();
        let connections = PollLoopThread::start(listener, path, limits);
        Server { connections, gate, events, tiny, workers, _dir: dir, _not_alone: None }
    }

    fn client(&self) -> Client {
        self.connections.client()
    }

    fn event(&self) -> String {
        self.events.recv_timeout(EVENT_TIMEOUT).expect("an event")
    }

    fn assert_alive(&self) {
        let mut client = self.client();
        assert_eq!(client.get("/ping").text(), "pong");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.gate.open(1000);
        self.connections.begin_stop();
        if let Some(thread) = self.connections.thread.take() {
            let _ = thread.join();
        }
        for _ in &self.workers {
            self.tiny.unblock();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

fn handle(mut request: tiny_http::Request, gate: &Gate, events: &Sender<String>) {
    let path = request.url().split('?').next().unwrap_or_default().to_owned();
    let text = |text: String| tiny_http::Response::from_string(text);
    match path.as_str() {
        "/ping" => drop(request.respond(text("pong".into()))),
        "/headers" => {
            let lines: Vec<_> =
                request.headers().iter().map(|h| format!("{}: {}\n", h.field, h.value)).collect();
            drop(request.respond(text(lines.concat())));
        }
        "/echo" => {
            let mut body = Vec::new();
            if read_body(&mut request, &mut body, events) {
                drop(request.respond(tiny_http::Response::from_data(body).with_chunked_threshold(100)));
            }
        }
        "/count" | "/bulk/count" | "/login/count" => count(request, events),
        "/late-count" => {
            say(events, &path);
            gate.pass();
            count(request, events);
        }
        "/refuse" => drop(request.respond(text("no".into()).with_status_code(403))),
        "/slow" | "/bulk/slow" | "/login/slow" => {
            say(events, &path);
            gate.pass();
            drop(request.respond(text("slow".into())));
        }
        "/stream" => {
            let mut out = request.into_writer();
            for piece in [CHUNKED, "1\r\n \r\n", "3\r\nend\r\n", "0\r\n\r\n"] {
                if out.write_all(piece.as_bytes()).and_then(|()| out.flush()).is_err() {
                    return say(events, "stream broke");
                }
                gate.pass();
            }
        }
        "/cut-chunked" => drop(write!(request.into_writer(), "{CHUNKED}5\r\nhello\r\n")),
        "/cut-length" => {
            drop(write!(request.into_writer(), "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"));
        }
        "/broken" | "/broken-before" => {
            let mut out = request.into_writer();
            let begun = if path == "/broken" { format!("{CHUNKED}5\r\nhello\r\n") } else { String::new() };
            drop(write!(out, "{begun}{BROKEN}").and_then(|()| out.flush()));
        }
        "/no-content" => drop(request.respond(tiny_http::Response::empty(204))),
        "/endless" => {
            let mut out = request.into_writer();
            let _ = out.write_all(CHUNKED.as_bytes());
            let chunk = [b"1000\r\n".as_slice(), &[b'x'; 0x1000], b"\r\n"].concat();
            while out.write_all(&chunk).is_ok() {}
            say(events, "endless ended");
        }
        "/big" => {
            let data = io::repeat(b'x').take(BIG as u64);
            let response = tiny_http::Response::new(200.into(), vec![], data, None, None);
            drop(request.respond(response));
        }
        _ => drop(request.respond(tiny_http::Response::empty(404))),
    }
}

const BIG: usize = 8 << 20;

/// What a reply of ours ends with if it fails midway.
const BROKEN: &str = "\r\n\r\n";

fn say(events: &Sender<String>, event: &str) {
    let _ = events.send(event.to_owned());
}

fn count(mut request: tiny_http::Request, events: &Sender<String>) {
    let mut count = Counter(0);
    if read_body(&mut request, &mut count, events) {
        drop(request.respond(tiny_http::Response::from_string(count.0.to_string())));
    }
}

struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0 += data.len() as u64;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the body; a failure is recorded as an event and gets no reply.
fn read_body(request: &mut tiny_http::Request, to: &mut impl Write, events: &Sender<String>) -> bool {
    match io::copy(request.as_reader(), to) {
        Ok(_) => true,
        Err(_) => {
            say(events, "cut body");
            false
        }
    }
}

// ---- the client ----

struct Client {
    stream: BufReader<TcpStream>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        assert_eq!(self.status, 200, "{self:?}");
        std::str::from_utf8(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| header.1.as_str())
    }
}

impl Client {
    fn connect(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect_timeout(&addr, EVENT_TIMEOUT).unwrap();
        stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(EVENT_TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    fn send(&mut self, data: impl AsRef<[u8]>) -> &mut Client {
        self.try_send(data.as_ref()).unwrap();
        self
    }

    fn try_send(&mut self, data: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(data)
    }

    fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).answer()
    }

    fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    fn try_answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.head()?;
        let length = answer.header("content-length").map(|length| length.parse().unwrap());
        match length {
            Some(length) => {
                answer.body = vec![0; length];
                self.stream.read_exact(&mut answer.body)?;
            }
            None if answer.header("transfer-encoding").is_some() => answer.body = self.chunks()?,
            None if answer.status == 204 => (),
            None => {
                self.stream.read_to_end(&mut answer.body)?;
            }
        }
        Ok(answer)
    }

    fn head(&mut self) -> io::Result<Answer> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap();
            headers.push((name.to_lowercase(), value.to_owned()));
        }
        Ok(Answer { status: status.unwrap_or_else(|| panic!("{status_line}")), headers, body: Vec::new() })
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).unwrap();
            let start = body.len();
            body.resize(start + size, 0);
            self.stream.read_exact(&mut body[start..])?;
            assert_eq!(self.line()?, "");
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Waits until the server closes, in whatever way; fails if it sends anything.
    fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                panic!("still open")
            }
            _ => assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest)),
        }
    }
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

fn post(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")
}

fn post_length(path: &str, length: usize) -> String {
    post(path, &format!("Content-Length: {length}\r\n"))
}

fn post_chunked(path: &str) -> String {
    post(path, "Transfer-Encoding: chunked\r\n")
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

// ---- what works ----

#[test]
fn a_connection_serves_many_requests() {
    let server = Server::start();
    let mut client = server.client();
    for n in 0..200 {
        let answer = client.get("/ping");
        assert_eq!(answer.header("connection"), Some("keep-alive"));
        assert_eq!(answer.text(), "pong");
        let body = vec![b'a' + (n % 26) as u8; n * 37];
        let answer = client.send(post_length("/echo", body.len())).send(&body).answer();
        assert_eq!(answer.body, body);
    }
}

#[test]
fn chunked_bodies_pass_both_ways_in_pieces_of_any_size() {
    let server = Server::start();
    let mut client = server.client();
    for size in [1, 7, 100, 4096, 32 << 10, 100_000] {
        let body: Vec<u8> = (0..200_000usize).map(|n| (n * n) as u8).collect();
        let body = &body[..(size * 2000).min(body.len())];
        let mut wire = post_chunked("/echo").into_bytes();
        body.chunks(size).for_each(|piece| wire.extend(chunk(piece)));
        wire.extend(b"0\r\n\r\n");
        let answer = client.send(&wire).answer();
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        assert!(answer.body == body, "size {size}");
    }
}

#[test]
fn large_bodies_pass_both_ways() {
    let server = Server::start();
    let mut client = server.client();
    let data = vec![b'x'; BIG];
    assert_eq!(client.send(post_length("/count", BIG)).send(&data).answer().text(), BIG.to_string());
    let mut wire = post_chunked("/count").into_bytes();
    data.chunks(4096).for_each(|piece| wire.extend(chunk(piece)));
    assert_eq!(client.send(&wire).send("0\r\n\r\n").answer().text(), BIG.to_string());
    assert_eq!(client.get("/big").body.len(), BIG);
    assert_eq!(client.get("/ping").text(), "pong");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let mut client = server.client();
    let mut wire = Vec::new();
    for n in 0..300 {
        let body = format!("body {n}");
        wire.extend(post_length("/echo", body.len()).into_bytes());
        wire.extend(body.into_bytes());
        // What clients of the nineties send behind a body.
        wire.extend(b"\r\n");
    }
    client.send(&wire);
    for n in 0..300 {
        assert_eq!(client.answer().text(), format!("body {n}"));
    }
}

#[test]
fn a_request_may_arrive_byte_by_byte() {
    let server = Server::start();
    let mut client = server.client();
    let wire = [post_chunked("/echo").as_bytes(), b"5\r\nhello\r\n0\r\n\r\n"].concat();
    for byte in wire {
        client.send([byte]);
    }
    assert_eq!(client.answer().text(), "hello");
}

#[test]
fn the_backend_learns_peer_and_length_and_nothing_forged() {
    let server = Server::start();
    let mut client = server.client();
    let headers = "Connection: upgrade\r\nUpgrade: websocket\r\nX-Ankipi-Peer: 6.6.6.6\r\n\
                   Content-Length: 5\r\nAnki-Sync: k\r\n";
    let answer = client.send(post("/headers", headers)).send("hello").answer();
    let text = answer.text().to_lowercase();
    for line in
        ["x-ankipi-peer: 127.0.0.1\n", "x-ankipi-length: 5\n", "anki-sync: k\n", "connection: close\n"]
    {
        assert!(text.contains(line), "{text}");
    }
    for word in ["upgrade", "6.6.6.6", "transfer-encoding"] {
        assert!(!text.contains(word), "{text}");
    }
    assert_eq!(text.matches("\ncontent-length: 5\n").count(), 1, "{text}");
}

#[test]
fn the_upgrade_header_of_nginx_changes_nothing() {
    let server = Server::start();
    let mut client = server.client();
    for _ in 0..3 {
        let head = post("/count", "Connection: upgrade\r\nUpgrade: \r\nTransfer-Encoding: chunked\r\n");
        let answer = client.send(head).send(chunk(b"hello")).send("0\r\n\r\n").answer();
        assert_eq!(answer.text(), "5");
    }
}

#[test]
fn a_client_that_expects_100_continue_gets_it_once() {
    let server = Server::start();
    let mut client = server.client();
    client.send(post("/count", "Expect: 100-continue\r\nContent-Length: 5\r\n"));
    assert_eq!(client.head().unwrap().status, 100);
    assert_eq!(client.send("hello").answer().text(), "5");
    let eager = post("/count", "Expect: 100-continue\r\nContent-Length: 5\r\n") + "hello";
    assert_eq!(client.send(eager).answer().text(), "5");
}

#[test]
fn http10_clients_get_no_chunks_and_a_close() {
    let server = Server::start();
    let mut client = server.client();
    let answer = client.send("GET /big HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answer();
    assert_eq!((answer.header("transfer-encoding"), answer.header("connection")), (None, Some("close")));
    assert_eq!(answer.body.len(), BIG);
    let mut client = server.client();
    assert_eq!(client.send("POST /count HTTP/1.0\r\nContent-Length: 2\r\n\r\nab").answer().text(), "2");
    client.assert_closed();
}

#[test]
fn replies_without_a_body_keep_the_connection_usable() {
    let server = Server::start();
    let mut client = server.client();
    client.send("HEAD /ping HTTP/1.1\r\n\r\n");
    assert_eq!(client.head().unwrap().header("content-length"), Some("4"));
    client.send("HEAD /big HTTP/1.1\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 200);
    assert_eq!(client.get("/no-content").status, 204);
    assert_eq!(client.get("/ping").text(), "pong");
}

#[test]
fn a_client_that_asks_for_close_gets_it() {
    let server = Server::start();
    let mut client = server.client();
    let answer = client.send("GET /ping HTTP/1.1\r\nConnection: Close\r\n\r\n").answer();
    assert_eq!(answer.header("connection"), Some("close"));
    client.assert_closed();
}

#[test]
fn flushed_bytes_of_a_reply_arrive_at_once() {
    let server = Server::start();
    let mut client = server.client();
    client.send("GET /stream HTTP/1.1\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 200);
    server.gate.open(1);
    assert_eq!((client.line().unwrap(), client.line().unwrap()), ("1".into(), " ".into()));
    server.gate.open(2);
    assert_eq!(client.chunks().unwrap(), b"end");
    server.gate.open(1);
    assert_eq!(client.get("/ping").text(), "pong");
}

#[test]
fn ipv6_works_where_there_is_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        return;
    };
    let _not_alone = not_alone();
    let server = Server::on(listener, Limits::default());
    assert!(server.client().get("/headers").text().contains("x-ankipi-peer: ::1\n"));
}

#[test]
fn mapped_addresses_are_shown_as_ipv4() {
    let Ok(listener) = TcpListener::bind("[::]:0") else {
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let _not_alone = not_alone();
    let server = Server::on(listener, Limits::default());
    if TcpStream::connect(("127.0.0.1", port)).is_ok() {
        let mut client = Client::connect(SocketAddr::from(([127, 0, 0, 1], port)));
        assert!(client.get("/headers").text().contains("x-ankipi-peer: 127.0.0.1\n"));
    }
    drop(server);
}

// ---- what is refused ----

#[test]
fn bad_requests_get_their_status_and_a_close() {
    let server = Server::start();
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100_000));
    let cases = [
        (post("/count", "Content-Length: -5\r\n"), 400),
        (post("/count", "Content-Length: 5\r\nContent-Length: 5\r\n"), 400),
        (post("/count", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), 400),
        (post("/count", "Transfer-Encoding: identity\r\n"), 501),
        (post_chunked("/count") + "xyz\r\n", 400),
        (post_chunked("/count") + "ffffffffffffffff1\r\n", 400),
        ("GET / HTTP/2.0\r\n\r\n".into(), 505),
        ("TRACE / HTTP/1.1\r\n\r\n".into(), 405),
        ("BREW / HTTP/1.1\r\n\r\n".into(), 501),
        ("GET ftp://x/ HTTP/1.1\r\n\r\n".into(), 400),
        ("\u{16}\u{3}\u{1}".into(), 400),
        (many_headers, 431),
    ];
    for (wire, status) in cases {
        let mut client = server.client();
        // A refusal may overtake the sending.
        let _ = client.try_send(wire.as_bytes());
        let answer = client.answer();
        assert_eq!(answer.status, status, "{:.60}", wire);
        assert_eq!(answer.header("connection"), Some("close"));
        client.assert_closed();
    }
    server.assert_alive();
}

/// Cloudflare with mTLS and Access adds up to 90 lines to those of the client.
#[test]
fn a_head_of_100_lines_and_32_kib_is_taken() {
    let server = Server::start();
    let head = |lines: usize, bytes: usize| {
        let mut head = format!("GET /ping HTTP/1.1\r\nHost: x\r\n{}", "Cf-Any: b\r\n".repeat(lines - 2));
        let rest = bytes - head.len() - "X-Long: \r\n\r\n".len();
        head.push_str(&format!("X-Long: {}\r\n\r\n", "x".repeat(rest)));
        head
    };
    for (lines, bytes, status) in
        [(100, 32 << 10, 200), (101, 8 << 10, 431), (3, (32 << 10) + 1, 431), (3, 40 << 10, 431)]
    {
        let mut client = server.client();
        let _ = client.try_send(head(lines, bytes).as_bytes());
        assert_eq!(client.answer().status, status, "{lines} lines, {bytes} bytes");
    }
}

#[test]
fn bytes_above_127_in_a_header_value_are_passed_over() {
    let server = Server::start();
    let mut client = server.client();
    client.send(&b"GET /headers HTTP/1.1\r\nHost: x\r\nCf-Ipcity: S\xe3o Paulo\r\nRemote-Name: \xd0\x90\xd0\xbd\xd0\xb0\r\nA: b\r\n\r\n"[..]);
    let answer = client.answer();
    assert_eq!(answer.status, 200);
    let text = answer.text();
    assert!(text.contains("Cf-Ipcity: S?o Paulo\nRemote-Name: ??????\nA: b\n"), "{text}");
}

#[test]
fn a_header_line_of_100_mb_is_not_taken() {
    let server = Server::start();
    let mut client = server.client();
    client.send("GET / HTTP/1.1\r\nA: ");
    let block = vec![b'a'; 1 << 20];
    let taken = (0..100).take_while(|_| client.try_send(&block).is_ok()).count();
    assert!(taken < 100);
    server.assert_alive();
}

#[test]
fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    let server = Server::start();
    for sent in [0, 10_000, 900_000] {
        let mut client = server.client();
        let head = post_length("/refuse", 50_000_000);
        client.send(head).send(vec![0; sent.max(8192)]);
        let answer = client.answer();
        assert_eq!((answer.status, answer.header("connection")), (403, Some("close")));
        assert_eq!(answer.body, b"no");
    }
    // If the whole body was received, the connection is kept.
    let mut client = server.client();
    let answer = client.send(post_length("/refuse", 5)).send("hello").answer();
    assert_eq!((answer.status, answer.header("connection")), (403, Some("keep-alive")));
    assert_eq!(client.get("/ping").text(), "pong");
}

#[test]
fn a_client_that_sends_on_after_a_refusal_waits_and_is_not_reset() {
    let server = Server::with(Limits { linger_pause: Duration::ZERO, ..Limits::default() });
    let mut client = server.client();
    client.stream.get_ref().set_write_timeout(Some(millis(300))).unwrap();
    client.send(post_length("/refuse", 50_000_000));
    let stopped = (0..50).find_map(|_| client.try_send(&[0; 1 << 20]).err()).expect("all of it was read");
    assert_eq!(stopped.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(client.answer().status, 403);
}

#[test]
fn what_is_sent_after_a_refusal_is_read_in_small_pieces_with_pauses() {
    for (linger_pause, is_read) in [(Duration::ZERO, true), (millis(60_000), false)] {
        let limits = Limits { linger: FOR_EVER, linger_bytes: 64 << 20, linger_pause, ..Limits::default() };
        let server = Server::with(limits);
        let mut client = server.client();
        let timeout = if is_read { EVENT_TIMEOUT } else { millis(1000) };
        client.stream.get_ref().set_write_timeout(Some(timeout)).unwrap();
        client.send("nonsense\r\n\r\n");
        assert_eq!(client.answer().status, 400);
        // The buffers of the kernel take some MB.
        let sent = (0..32).take_while(|_| client.try_send(&[0; 1 << 20]).is_ok()).count();
        assert_eq!(sent == 32, is_read, "{sent} MiB after a pause of {linger_pause:?}");
    }
}

#[test]
fn what_was_sent_before_the_end_of_a_client_is_read_without_pauses() {
    let pause = millis(60_000);
    // The next connection waits for the end of this one.
    let limits =
        Limits { max_conns: 1, min_wait: pause, linger: pause, linger_pause: pause, ..Limits::default() };
    let server = Server::with(limits);
    let mut client = server.client();
    client.send("nonsense\r\n\r\n").answer();
    client.send([0; 40_000]).stream.get_ref().shutdown(Shutdown::Write).unwrap();
    server.assert_alive();
}

#[test]
fn without_a_backend_there_is_502() {
    let _not_alone = not_alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connections = PollLoopThread::start(listener, "/nonexistent/http".into(), Limits::default());
    assert_eq!(connections.client().get("/ping").status, 502);
}

// ---- cuts ----

#[test]
fn a_cut_body_is_an_error_for_the_backend() {
    let server = Server::start();
    let wires = [
        post_length("/count", 200_000) + &"x".repeat(100_000),
        post_chunked("/count") + "186a0\r\n" + &"x".repeat(100_000) + "\r\n",
        post_chunked("/count") + "30d40\r\n" + &"x".repeat(100_000),
        post_chunked("/count") + "186a0\r\n" + &"x".repeat(100_000) + "\r\n0\r\n\r",
    ];
    for wire in wires {
        server.client().send(&wire);
        assert_eq!(server.event(), "cut body", "{wire:.60}");
    }
    // Too little came: the request was not handed to the backend.
    server.client().send(post_length("/count", 100)).send("x");
    server.assert_alive();
    assert!(server.events.try_recv().is_err());
}

#[test]
fn a_body_cut_while_the_backend_is_slow_is_still_an_error() {
    let server = Server::start();
    let mut client = server.client();
    client.send(post_length("/late-count", 50_000_000)).send(vec![0; 8192]);
    assert_eq!(server.event(), "/late-count");
    client.stream.get_ref().set_write_timeout(Some(millis(200))).unwrap();
    // Fills every buffer on the way.
    while client.try_send(&[0; 100_000]).is_ok() {}
    drop(client);
    server.gate.open(1);
    assert_eq!(server.event(), "cut body");
}

#[test]
fn cut_bodies_end_between_chunks() {
    let _not_alone = not_alone();
    let (backend, path, _dir) = fake_backend();
    let connections =
        PollLoopThread::start(TcpListener::bind("127.0.0.1:0").unwrap(), path, Limits::default());
    let mut client = connections.client();
    client.send(post_length("/count", 50_000_000)).send(vec![b'x'; 8192]);
    let (mut stream, _) = backend.accept().unwrap();
    client.stream.get_ref().set_write_timeout(Some(millis(200))).unwrap();
    while client.try_send(&[b'x'; 100_000]).is_ok() {}
    drop(client);
    let mut wire = Vec::new();
    stream.read_to_end(&mut wire).unwrap();
    let start = wire.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let mut rest = &wire[start..];
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == b'\r').unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        assert!(size > 0 && &rest[end + 2 + size..][..2] == b"\r\n");
        rest = &rest[end + 4 + size..];
    }
}

#[test]
fn a_cut_reply_is_an_error_for_the_client() {
    let server = Server::start();
    for request in [
        "GET /cut-chunked HTTP/1.1\r\n\r\n",
        "GET /cut-length HTTP/1.1\r\n\r\n",
        "GET /cut-length HTTP/1.0\r\n\r\n",
        "GET /cut-chunked HTTP/1.0\r\n\r\n",
    ] {
        let mut client = server.client();
        let got = client.send(request).try_answer();
        assert!(got.is_err(), "{request}: {got:?}");
    }
    server.assert_alive();
}

fn fake_backend() -> (UnixListener, PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http");
    (UnixListener::bind(&path).unwrap(), path, dir)
}

// ---- kept backend connections ----

/// Reads a request without a body from a backend connection, and returns its head.
fn read_head(stream: &mut UnixStream) -> String {
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Whether the backend connection was closed before `EVENT_TIMEOUT`, and nothing came on it.
fn is_closed(stream: &mut UnixStream) -> bool {
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    matches!(stream.read(&mut [0]), Ok(0))
}

const PONG: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong";

fn start_before(path: PathBuf) -> PollLoopThread {
    PollLoopThread::start(TcpListener::bind("127.0.0.1:0").unwrap(), path, Limits::default())
}

#[test]
fn requests_of_different_clients_follow_each_other_on_one_backend_connection() {
    let _not_alone = not_alone();
    let (backend, path, _dir) = fake_backend();
    let connections = start_before(path);
    let mut kept = None;
    for number in 0..3 {
        let mut client = connections.client();
        client.send(format!("GET /{number} HTTP/1.1\r\n{KEEP}\r\n"));
        let stream = kept.get_or_insert_with(|| backend.accept().unwrap().0);
        let head = read_head(stream);
        assert!(head.starts_with(&format!("GET /{number} ")) && !head.contains("Connection:"), "{head}");
        stream.write_all(PONG.as_bytes()).unwrap();
        assert_eq!(client.answer().text(), "pong");
    }
    // One that must not be kept is alone on its connection, and so is a transfer.
    for head in ["GET /x HTTP/1.1\r\n".to_owned(), format!("GET /bulk/x HTTP/1.1\r\n{KEEP}")] {
        let mut client = connections.client();
        client.send(head + "\r\n");
        let (mut alone, _) = backend.accept().unwrap();
        assert!(read_head(&mut alone).contains("\r\nConnection: close\r\n"));
        alone.write_all(PONG.as_bytes()).unwrap();
        assert_eq!(client.answer().text(), "pong");
        assert!(is_closed(&mut alone));
    }
    // The stop does not leave it open.
    connections.begin_stop();
    assert!(is_closed(&mut kept.unwrap()));
}

#[test]
fn the_steps_of_a_users_sync_come_before_the_next_sync() {
    let _not_alone = not_alone();
    for (header, third) in [("X-User: user", "/later/1"), ("X-Client: 192.0.2.", "/first/3")] {
        let (backend, path, _dir) = fake_backend();
        let limits = Limits { max_active: 1, ..Limits::default() };
        let connections = PollLoopThread::start(TcpListener::bind("127.0.0.1:0").unwrap(), path, limits);
        let send = |client: &mut Client, path: &str, number: usize| {
            client.send(format!("GET {path}/{number} HTTP/1.1\r\n{KEEP}{header}{number}\r\n\r\n"));
        };
        let mut clients = [connections.client(), connections.client(), connections.client()];
        send(&mut clients[0], "/first", 1);
        let (mut stream, _) = backend.accept().unwrap();
        let mut order = vec![read_head(&mut stream)];
        send(&mut clients[1], "/first", 2);
        connections.wait_until_read();
        send(&mut clients[2], "/first", 3);
        connections.wait_until_read();
        for number in 1..4 {
            stream.write_all(PONG.as_bytes()).unwrap();
            order.push(read_head(&mut stream));
            if number == 1 {
                assert_eq!(clients[0].answer().text(), "pong");
                send(&mut clients[0], "/later", 1);
                connections.wait_until_read();
            }
        }
        assert!(order[2].starts_with(&format!("GET {third} ")), "{order:?}");
    }
}

#[test]
fn a_backend_connection_is_kept_only_after_a_whole_reply_of_ours() {
    let _not_alone = not_alone();
    let (backend, path, _dir) = fake_backend();
    let connections = start_before(path);
    let excess = format!("{PONG}HTTP/1.1 200 OK\r\n");
    let broken = format!("{CHUNKED}1\r\nx\r\n{BROKEN}");
    let cases = [
        ("HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n", Some(400)),
        ("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", Some(500)),
        (&excess, Some(200)),
        (BROKEN, Some(502)),
        (&broken, None),
    ];
    for (reply, status) in cases {
        let mut client = connections.client();
        client.send(format!("GET / HTTP/1.1\r\n{KEEP}\r\n"));
        let (mut stream, _) = backend.accept().unwrap();
        read_head(&mut stream);
        stream.write_all(reply.as_bytes()).unwrap();
        assert_eq!(client.try_answer().ok().map(|answer| answer.status), status, "{reply}");
        assert!(is_closed(&mut stream), "{reply}");
    }
    // The client leaves before its reply: the next client must not get it.
    let mut client = connections.client();
    client.send(format!("GET / HTTP/1.1\r\n{KEEP}\r\n"));
    let (mut stream, _) = backend.accept().unwrap();
    read_head(&mut stream);
    drop(client);
    assert!(is_closed(&mut stream));
}

#[test]
fn bodies_of_any_size_and_unread_ones_leave_no_byte_for_the_next_request() {
    let server = Server::start();
    let mut clients = [server.client(), server.client()];
    for round in 0..60 {
        let size = [0, 1, 5, 1023, 1024, 1025, 8191, 65_535, 65_536, 65_537, 200_000][round % 11];
        let body = vec![b'G'; size];
        let client = &mut clients[round % 2];
        // /ping reads no body. After a long one that nobody reads, the client's connection is closed.
        let path = if round % 3 == 0 && size < 65_536 { "/ping" } else { "/echo" };
        let mut wire = if round % 5 == 0 {
            post(path, &format!("{KEEP}Transfer-Encoding: chunked\r\n")).into_bytes()
        } else {
            post(path, &format!("{KEEP}Content-Length: {size}\r\n")).into_bytes()
        };
        match (round % 5 == 0, size) {
            (true, 0) => wire.extend_from_slice(b"0\r\n\r\n"),
            (true, _) => wire.extend_from_slice(&[&chunk(&body)[..], b"0\r\n\r\n"].concat()),
            (false, _) => wire.extend_from_slice(&body),
        }
        let answer = client.send(&wire).answer();
        let expected = if path == "/ping" { b"pong".to_vec() } else { body };
        assert!(answer.body == expected, "{path} {size}: {:?}", answer.status);
        if round % 7 == 0 {
            let broken = |path| {
                let got = server.client().send(format!("GET {path} HTTP/1.1\r\n{KEEP}\r\n")).try_answer();
                got.ok().map(|answer| answer.status)
            };
            assert_eq!((broken("/broken"), broken("/broken-before")), (None, Some(502)));
        }
    }
}

#[test]
fn more_requests_at_once_than_kept_connections_all_get_their_reply() {
    let server = Server::start();
    let addr = server.connections.addr;
    let threads: Vec<_> = (0..12)
        .map(|_| {
            thread::spawn(move || {
                for round in 0..50 {
                    let body = round.to_string();
                    let wire = post("/echo", &format!("{KEEP}Content-Length: {}\r\n", body.len())) + &body;
                    assert_eq!(Client::connect(addr).send(wire).answer().text(), body);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

// ---- replies that go to the client past the poll loop ----

/// The client's connection, as the head of a forwarded request names it.
fn link_of(head: &str) -> ReplyLink {
    let number = head.split("x-ankipi-link: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
    ReplyLink::of(number.parse().unwrap()).unwrap()
}

/// Whether a reply goes to the client.
fn pong_to_client(link: &ReplyLink) -> bool {
    link.send_whole(PONG.as_bytes(), b"", b"")
}

/// A poll loop with one request, whose reply is offered.
struct Offered {
    client: Client,
    /// The backend's end of its connection.
    stream: UnixStream,
    link: ReplyLink,
    // Dropped after these, for whose end it would wait.
    connections: PollLoopThread,
    _backend: UnixListener,
    _dir: tempfile::TempDir,
}

impl Offered {
    fn start(limits: Limits) -> Offered {
        let (backend, path, dir) = fake_backend();
        let connections = PollLoopThread::start(TcpListener::bind("127.0.0.1:0").unwrap(), path, limits);
        let mut client = connections.client();
        client.send(format!("GET /first HTTP/1.1\r\n{KEEP}\r\n"));
        let mut stream = backend.accept().unwrap().0;
        let link = link_of(&read_head(&mut stream));
        Offered { client, stream, link, connections, _backend: backend, _dir: dir }
    }

    /// A poll loop that wakes up for sockets alone.
    fn without_timers(limits: Limits) -> Offered {
        let (offer_check, busy_after_light, queue_wait) = (FOR_EVER, FOR_EVER, FOR_EVER);
        Offered::start(Limits { offer_check, busy_after_light, queue_wait, ..limits })
    }

    /// Once the poll loop has read what was sent, the shorter way is closed: replies to the first request by way of the backend.
    fn reply_by_backend(&mut self) {
        // Another connection would wake it up once more.
        thread::sleep(millis(1000));
        assert!(!pong_to_client(&self.link));
        self.stream.write_all(PONG.as_bytes()).unwrap();
    }

    /// Waits for the request for `/second` at the backend, and for the first reply at the client.
    fn assert_second_comes(&mut self) {
        let head = read_head(&mut self.stream);
        assert!(head.starts_with("GET /second "), "{head}");
        assert_eq!(self.client.answer().text(), "pong");
    }
}

#[test]
fn a_small_reply_goes_to_the_client_and_both_connections_serve_the_next_request() {
    let _alone = alone();
    let mut offered = Offered::start(Limits::default());
    let Offered { connections, client, stream, link: first, .. } = &mut offered;
    assert!(pong_to_client(first));
    assert_eq!(client.answer().text(), "pong");
    for _ in 0..3 {
        client.send(format!("GET /next HTTP/1.1\r\n{KEEP}\r\n"));
        assert!(pong_to_client(&link_of(&read_head(stream))));
        assert_eq!(client.answer().text(), "pong");
    }
    // A reply by way of the backend may follow, and the reply of an old request may not.
    client.send(format!("GET /last HTTP/1.1\r\n{KEEP}\r\n"));
    let last = link_of(&read_head(stream));
    assert!(!pong_to_client(first));
    stream.write_all(PONG.as_bytes()).unwrap();
    assert_eq!(client.answer().text(), "pong");
    assert!(!pong_to_client(&last));
    // Other clients get the connection to the backend as well.
    *client = connections.client();
    client.send(format!("GET /other HTTP/1.1\r\n{KEEP}\r\n"));
    assert!(pong_to_client(&link_of(&read_head(stream))));
    assert_eq!(client.answer().text(), "pong");
}

#[test]
fn a_request_that_waits_is_forwarded_as_soon_as_another_one_is_answered() {
    let _alone = alone();
    for is_answered_first in [true, false] {
        let mut offered = Offered::without_timers(Limits { max_active: 1, ..Limits::default() });
        assert!(!is_answered_first || pong_to_client(&offered.link));
        let mut second = offered.connections.client();
        second.send(format!("GET /second HTTP/1.1\r\n{KEEP}\r\n"));
        if !is_answered_first {
            offered.reply_by_backend();
        }
        offered.assert_second_comes();
    }
}

#[test]
fn pipelined_requests_are_answered_by_way_of_the_poll_loop() {
    let _alone = alone();
    let mut offered = Offered::without_timers(Limits::default());
    offered.client.send(format!("GET /second HTTP/1.1\r\n{KEEP}\r\n"));
    offered.reply_by_backend();
    offered.assert_second_comes();
}

#[test]
fn replies_that_need_another_form_go_by_way_of_the_poll_loop() {
    let _alone = alone();
    let (backend, path, _dir) = fake_backend();
    let connections = start_before(path);
    let heads = [
        format!("HEAD / HTTP/1.1\r\n{KEEP}"),
        format!("GET / HTTP/1.0\r\n{KEEP}"),
        format!("GET / HTTP/1.1\r\nConnection: close\r\n{KEEP}"),
        "GET / HTTP/1.1\r\n".to_owned(),
        format!("GET /bulk/x HTTP/1.1\r\n{KEEP}"),
    ];
    for head in heads {
        let mut client = connections.client();
        client.send(format!("{head}\r\n"));
        let mut stream = backend.accept().unwrap().0;
        assert!(!pong_to_client(&link_of(&read_head(&mut stream))), "{head}");
    }
}

#[test]
fn a_connection_whose_reply_went_past_the_poll_loop_times_out_and_stops_like_any_other() {
    let _alone = alone();
    for stops in [false, true] {
        let keep_alive = if stops { FOR_EVER } else { millis(300) };
        let mut offered = Offered::start(Limits { keep_alive, ..Limits::default() });
        let Offered { connections, client, link, .. } = &mut offered;
        assert!(pong_to_client(link));
        assert_eq!(client.answer().text(), "pong");
        let since = Instant::now();
        if stops {
            connections.begin_stop();
            connections.join();
            assert!(since.elapsed() < millis(900), "{:?}", since.elapsed());
        }
        client.assert_closed();
        assert!(since.elapsed() < millis(2500), "{:?}", since.elapsed());
    }
}

#[test]
fn a_backend_that_speaks_nonsense_is_502_and_never_half_a_reply() {
    let _not_alone = not_alone();
    let (backend, path, _dir) = fake_backend();
    let connections =
        PollLoopThread::start(TcpListener::bind("127.0.0.1:0").unwrap(), path, Limits::default());
    let huge = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(40_000));
    let cases = [
        ("", Some(502)),
        ("HTTP/1.1 200 OK\r\nContent-Le", Some(502)),
        ("nonsense\r\n\r\n", Some(502)),
        ("HTTP/1.1 200 OK\r\n\r\nno length", Some(502)),
        (huge.as_str(), Some(502)),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", Some(200)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX", None),
    ];
    for (reply, status) in cases {
        let mut client = connections.client();
        client.send("GET / HTTP/1.1\r\n\r\n");
        let (mut stream, _) = backend.accept().unwrap();
        stream.read_exact(&mut [0; 16]).unwrap();
        let _ = stream.write_all(reply.as_bytes());
        drop(stream);
        assert_eq!(client.try_answer().ok().map(|answer| answer.status), status, "{reply:.60}");
    }
}

#[test]
fn a_client_that_leaves_frees_its_worker() {
    let server = Server::with(Limits { max_active: 1, ..Limits::default() });
    let mut client = server.client();
    client.send("GET /endless HTTP/1.1\r\n\r\n");
    assert_eq!(client.head().unwrap().status, 200);
    drop(client);
    assert_eq!(server.event(), "endless ended");
    server.assert_alive();
}

// ---- slots ----

#[test]
fn large_forms_never_hold_the_last_slot() {
    let limits = Limits { max_active: 2, max_bulk: 1, busy_after: FOR_EVER, ..Limits::default() };
    let server = Server::with(limits);
    let form =
        post("/late-count", "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n");
    let mut forms = [server.client(), server.client(), server.client()];
    for client in &mut forms {
        client.send(&form).send([b'x'; 50_000]);
    }
    assert_eq!(server.event(), "/late-count");
    // Time for the others to be handed over.
    for _ in 0..20 {
        server.assert_alive();
    }
    assert!(server.events.try_recv().is_err(), "the second form must wait");
    server.gate.open(3);
    // Any of them may have come first.
    for client in &mut forms {
        client.send([b'x'; 50_000]);
    }
    for client in &mut forms {
        assert_eq!(client.answer().text(), "100000");
    }
}

#[test]
fn a_small_body_of_any_kind_holds_no_worker_until_it_is_whole() {
    let server = Server::with(Limits { max_active: 2, max_logins: 1, ..Limits::default() });
    let mut drips: Vec<_> = (0..8).map(|_| server.client()).collect();
    for drip in &mut drips {
        drip.send(post_length("/login/count", 60_000)).send(vec![0; 59_000]);
    }
    server.assert_alive();
    let mut login = server.client();
    assert_eq!(login.send(post_length("/login/count", 5)).send("hello").answer().text(), "5");
    for drip in &mut drips {
        assert_eq!(drip.send(vec![0; 1000]).answer().text(), "60000");
    }
}

#[test]
fn a_transfer_on_a_slow_link_gets_through_while_nobody_waits_for_its_slot() {
    // 2 kB a second, and nobody would wait for longer than this.
    let limits = Limits { busy_after: millis(100), busy_after_light: millis(10), ..Limits::default() };
    let server = Server::with(limits);
    let mut slow = server.client();
    slow.send(post_length("/bulk/count", 100_000)).send(vec![0; 96_000]);
    for _ in 0..20 {
        slow.send(vec![0; 200]);
        thread::sleep(millis(100));
        server.assert_alive();
    }
    assert_eq!(slow.answer().text(), "100000");
}

#[test]
fn one_client_gets_a_part_of_the_slots_for_transfers() {
    let limits = Limits { max_active: 6, max_bulk: 3, max_bulk_per_client: 2, ..Limits::default() };
    let server = Server::with(limits);
    let mut own: Vec<_> = (0..4).map(|_| server.client()).collect();
    for client in &mut own {
        client.send("GET /bulk/slow HTTP/1.1\r\n\r\n");
    }
    assert_eq!([server.event(), server.event()], ["/bulk/slow", "/bulk/slow"]);
    // Somebody else finds a slot at once.
    let mut other = server.client();
    other.send(format!("GET /bulk/slow HTTP/1.1\r\n{ELSEWHERE}\r\n"));
    assert_eq!(server.event(), "/bulk/slow");
    assert!(server.events.try_recv().is_err(), "a third of one client");
    server.gate.open(5);
    assert_eq!(other.answer().text(), "slow");
    for client in &mut own {
        assert_eq!(client.answer().text(), "slow");
    }
}

#[test]
fn an_address_with_too_many_connections_loses_its_own() {
    let limits = Limits { max_conns: 64, min_wait_in_crowd: millis(1), ..Limits::default() };
    let server = Server::with(limits);
    let mut other = server.client();
    other.send(post("/count", &format!("{ELSEWHERE}Content-Length: 2\r\n"))).send("a");
    let crowd: Vec<_> = (0..200).map(|_| server.client()).collect();
    for _ in 0..5 {
        server.assert_alive();
    }
    // The oldest connection of all is of an address that has but one.
    assert_eq!(other.send("b").answer().text(), "2");
    drop(crowd);
}

#[test]
fn bodies_that_wait_take_bounded_memory_and_the_greedy_client_pays() {
    let limits = Limits { max_buffered_bytes: 1 << 20, ..Limits::default() };
    let server = Server::with(limits);
    let mut other = server.client();
    other.send(post("/count", &format!("{ELSEWHERE}Content-Length: 50000\r\n"))).send(vec![0; 40_000]);
    let mut greedy: Vec<_> = (0..60).map(|_| server.client()).collect();
    for client in &mut greedy {
        let _ = client.try_send(post_length("/count", 60_000).as_bytes());
        let _ = client.try_send(&[0; 50_000]);
    }
    server.assert_alive();
    assert_eq!(other.send(vec![0; 10_000]).answer().text(), "50000");
    let mut refused = 0;
    for client in &mut greedy {
        client.stream.get_ref().set_read_timeout(Some(millis(20))).unwrap();
        refused += usize::from(matches!(client.try_answer(), Ok(answer) if answer.status == 503));
    }
    assert!((35..=45).contains(&refused), "{refused} of 60 connections with 50 KB each");
}

#[test]
fn slow_forms_make_way_for_whoever_waits_and_quick_ones_do_not() {
    let limits = Limits {
        max_active: 4,
        max_bulk: 3,
        busy_after: millis(300),
        busy_rate: 20_000,
        ..Limits::default()
    };
    let server = Server::with(limits);
    let form = post("/count", "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n");
    let (mut slow, mut quick, mut bulk) = (server.client(), server.client(), server.client());
    slow.send(&form).send([b'x'; 10_000]);
    quick.send(&form).send([b'x'; 990_000]);
    // No other connection waits for a slot, so both may be slow.
    let started = Instant::now();
    while started.elapsed() < millis(1200) {
        server.assert_alive();
    }
    bulk.send("GET /bulk/slow HTTP/1.1\r\n\r\n");
    assert_eq!(slow.answer().status, 408);
    let mut events = [server.event(), server.event()];
    events.sort();
    assert_eq!(events, ["/bulk/slow", "cut body"]);
    server.gate.open(1);
    assert_eq!(bulk.answer().text(), "slow");
    assert_eq!(quick.send([b'x'; 10_000]).answer().text(), "1000000");
}

#[test]
fn bulk_transfers_never_hold_the_last_slot() {
    let server = Server::with(Limits { max_active: 2, max_bulk: 2, ..Limits::default() });
    let (mut first, mut second) = (server.client(), server.client());
    first.send("GET /bulk/slow HTTP/1.1\r\n\r\n");
    assert_eq!(server.event(), "/bulk/slow");
    second.send("GET /bulk/slow HTTP/1.1\r\n\r\n");
    for _ in 0..20 {
        server.assert_alive();
    }
    assert!(server.events.try_recv().is_err(), "the second bulk transfer must wait");
    server.gate.open(1);
    assert_eq!(first.answer().text(), "slow");
    assert_eq!(server.event(), "/bulk/slow");
    server.gate.open(1);
    assert_eq!(second.answer().text(), "slow");
}

#[test]
fn logins_wait_for_each_other_and_nobody_waits_for_them() {
    let server = Server::with(Limits { max_active: 3, max_logins: 1, ..Limits::default() });
    let (mut first, mut second) = (server.client(), server.client());
    first.send("GET /login/slow HTTP/1.1\r\n\r\n");
    assert_eq!(server.event(), "/login/slow");
    second.send("GET /login/slow HTTP/1.1\r\n\r\n");
    for _ in 0..20 {
        server.assert_alive();
    }
    assert!(server.events.try_recv().is_err(), "the second login must wait");
    server.gate.open(1);
    assert_eq!(first.answer().text(), "slow");
    assert_eq!(server.event(), "/login/slow");
    server.gate.open(1);
    assert_eq!(second.answer().text(), "slow");
}

#[test]
fn a_request_that_waits_too_long_gets_503() {
    let server = Server::with(Limits { max_active: 1, queue_wait: millis(100), ..Limits::default() });
    let (mut first, mut second) = (server.client(), server.client());
    first.send("GET /slow HTTP/1.1\r\n\r\n");
    assert_eq!(server.event(), "/slow");
    assert_eq!(second.get("/ping").status, 503);
    server.gate.open(1);
    assert_eq!(first.answer().text(), "slow");
}

#[test]
fn a_dripping_small_request_holds_no_worker() {
    let server = Server::with(Limits { max_active: 1, ..Limits::default() });
    let mut drips: Vec<_> = (0..20).map(|_| server.client()).collect();
    for drip in &mut drips {
        drip.send(post_length("/count", 8000)).send(vec![0; 7000]);
    }
    server.assert_alive();
    for drip in &mut drips {
        assert_eq!(drip.send(vec![0; 1000]).answer().text(), "8000");
    }
}

#[test]
fn clients_that_do_not_read_block_nobody_for_long() {
    let server = Server::with(Limits { max_active: 2, write_idle: millis(300), ..Limits::default() });
    let mut deaf: Vec<_> = (0..4).map(|_| server.client()).collect();
    for client in &mut deaf {
        client.send("GET /endless HTTP/1.1\r\n\r\n");
    }
    server.assert_alive();
    // Wait for the deadlines first: a client that began to read before would be served for ever.
    for _ in &deaf {
        assert_eq!(server.event(), "endless ended");
    }
    for client in &mut deaf {
        assert!(client.try_answer().is_err());
    }
}

// ---- timers ----

#[test]
fn silent_and_slow_clients_are_ended() {
    let server = Server::with(Limits {
        first_byte: millis(500),
        head: millis(600),
        keep_alive: millis(700),
        body_grace: millis(600),
        body_idle: millis(800),
        ..Limits::default()
    });
    server.client().assert_closed();
    assert_eq!(server.client().send("GET / HT").answer().status, 408);
    assert_eq!(server.client().send(post_length("/count", 10)).answer().status, 408);
    let mut idle = server.client();
    idle.get("/ping");
    idle.assert_closed();
    // The backend already has this request.
    let mut stalled = server.client();
    stalled.send(post_length("/count", 100_000)).send(vec![0; 50_000]);
    assert_eq!(stalled.answer().status, 408);
    assert_eq!(server.event(), "cut body");
    server.assert_alive();
}

#[test]
fn a_drip_below_the_rate_is_ended_and_one_above_is_not() {
    let server = Server::with(Limits {
        body_grace: millis(1500),
        body_idle: millis(2000),
        body_rate: 1000,
        ..Limits::default()
    });
    let mut slow = server.client();
    slow.send(post_length("/count", 1000));
    let started = Instant::now();
    while slow.try_send(b"x").is_ok() && started.elapsed() < millis(1800) {
        thread::sleep(millis(20));
    }
    assert_eq!(slow.answer().status, 408);
    let mut steady = server.client();
    steady.send(post_length("/count", 6000));
    for _ in 0..60 {
        steady.send([0; 100]);
        thread::sleep(millis(30));
    }
    assert_eq!(steady.answer().text(), "6000");
}

#[test]
fn a_backend_may_think_for_longer_than_any_timer() {
    let short = millis(300);
    let server = Server::with(Limits {
        first_byte: short,
        head: short,
        keep_alive: short,
        body_idle: short,
        body_grace: short,
        write_idle: short,
        queue_wait: short,
        ..Limits::default()
    });
    let mut client = server.client();
    client.send(post_length("/late-count", 5)).send("hello");
    assert_eq!(server.event(), "/late-count");
    thread::sleep(millis(700));
    server.gate.open(1);
    assert_eq!(client.answer().text(), "5");
}

/// Processor time that the thread of this name has had.
fn time_of_thread(name: &str) -> Option<Duration> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let mut paths = tasks.filter_map(|task| Some(task.ok()?.path()));
    let path = paths.find(|path| {
        let comm = std::fs::read_to_string(path.join("comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    })?;
    let figures = std::fs::read_to_string(path.join("schedstat")).ok()?;
    Some(Duration::from_nanos(figures.split(' ').next()?.parse().ok()?))
}

#[test]
fn waiting_costs_no_processor_time() {
    let server = Server::with(Limits { max_active: 3, linger: FOR_EVER, ..Limits::default() });
    let mut clients: Vec<_> = (0..10).map(|_| server.client()).collect();
    // Idle, half a head, half a body; then, with the backend: it thinks, with a request pipelined behind; a body that
    // it does not read; a reply that the client does not read; and behind those a queue, one of it with half a body. At last
    // what is sent after a refusal.
    clients[0].get("/ping");
    clients[1].send("GET /pi");
    clients[2].send(post_length("/count", 10)).send("hello");
    clients[3].send("GET /slow HTTP/1.1\r\n\r\nGET /ping HTTP/1.1\r\n\r\n");
    assert_eq!(server.event(), "/slow");
    clients[4].send(post_length("/late-count", 50_000_000)).send([0; 8192]);
    assert_eq!(server.event(), "/late-count");
    clients[4].stream.get_ref().set_write_timeout(Some(millis(200))).unwrap();
    while clients[4].try_send(&[0; 100_000]).is_ok() {}
    // The last worker is for another client.
    clients[5].send(format!("GET /endless HTTP/1.1\r\n{ELSEWHERE}\r\n"));
    assert_eq!(clients[5].head().unwrap().status, 200);
    clients[6].send("GET /ping HTTP/1.1\r\n\r\n");
    clients[7].send(post_length("/count", 20_000)).send([0; 10_000]);
    clients[8].send("nonsense\r\n\r\n").answer();
    clients[9].send("nonsense\r\n\r\n").answer();
    clients[9].send([0; 500_000]);
    server.connections.assert_becomes_quiet();
}

#[test]
fn a_backend_that_hung_up_before_the_client_read_its_reply_costs_no_processor_time() {
    let _not_alone = not_alone();
    let (backend, path, _dir) = fake_backend();
    let connections = start_before(path);
    let mut client = connections.client();
    client.send("GET /bulk/x HTTP/1.1\r\n\r\n");
    let (mut stream, _) = backend.accept().unwrap();
    read_head(&mut stream);
    stream.set_write_timeout(Some(millis(300))).unwrap();
    stream.write_all(CHUNKED.as_bytes()).unwrap();
    // Fills every buffer on the way.
    while stream.write_all(&chunk(&[b'x'; 10_000])).is_ok() {}
    drop(stream);
    connections.assert_becomes_quiet();
}

// ---- floods ----

#[test]
fn half_open_connections_are_held_or_evicted_but_a_ping_passes() {
    for max_conns in [512, 64] {
        let server = Server::with(Limits { max_conns, ..Limits::default() });
        let mut half_open: Vec<_> = (0..400).map(|_| server.client()).collect();
        for client in &mut half_open {
            let _ = client.try_send(b"POST /count HTTP/1.1\r\nContent-Le");
        }
        server.assert_alive();
        // The newest connections are still served.
        let last = half_open.last_mut().unwrap();
        assert_eq!(last.send("ngth: 2\r\n\r\nab").answer().text(), "2");
    }
}

#[test]
fn a_connection_at_work_is_never_evicted() {
    let server = Server::with(Limits { max_conns: 4, min_wait: Duration::ZERO, ..Limits::default() });
    let mut busy = server.client();
    busy.send("GET /slow HTTP/1.1\r\n\r\n");
    assert_eq!(server.event(), "/slow");
    for _ in 0..50 {
        server.assert_alive();
    }
    let _flood: Vec<_> = (0..50).map(|_| server.client()).collect();
    server.assert_alive();
    server.gate.open(1);
    assert_eq!(busy.answer().text(), "slow");
}

#[test]
fn a_burst_of_2000_connections_is_survived() {
    let server = Server::with(Limits { max_conns: 32, min_wait: millis(1), ..Limits::default() });
    let mut held = VecDeque::new();
    for n in 0..2000 {
        let mut client = server.client();
        let _ = client.try_send([&b""[..], b"GET /pi", b"GET /ping HTTP/1.1\r\n\r\n"][n % 3]);
        held.push_back(client);
        if held.len() > 300 {
            held.pop_front();
        }
    }
    server.assert_alive();
    drop(held);
    server.assert_alive();
}

#[test]
fn resets_right_after_connecting_are_survived() {
    let server = Server::start();
    for _ in 0..500 {
        let mut client = server.client();
        client.send("GET /big HTTP/1.1\r\n\r\n");
        // Closing with the reply unread is a reset.
        client.stream.get_ref().shutdown(Shutdown::Read).unwrap();
    }
    server.assert_alive();
}

#[test]
fn garbage_leaves_nothing_behind() {
    let _alone = alone();
    let server = Server::on(TcpListener::bind("127.0.0.1:0").unwrap(), Limits::default());
    server.assert_alive();
    let pieces: &[&[u8]] = &[
        b"GET /ping HTTP/1.1\r\n",
        b"POST /echo HTTP/1.1\r\n",
        b"POST /refuse HTTP/1.0\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 70000\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Expect: 100-continue\r\n",
        b"X: y\r\n",
        b"\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"\n",
        b"\0\xff\xfe",
        &[b'z'; 9000],
    ];
    let fds = || std::fs::read_dir("/proc/self/fd").map_or(0, |list| list.count());
    let before = fds();
    let mut rng = fastrand::Rng::with_seed(42);
    let mut random = |below: usize| rng.usize(..below);
    for n in 0..3000 {
        let mut client = server.client();
        let mut wire: Vec<u8> =
            (0..1 + random(7)).flat_map(|_| pieces[random(pieces.len())].to_vec()).collect();
        if random(3) == 0 {
            let at = random(wire.len());
            wire[at] = random(256) as u8;
        }
        let _ = client.try_send(&wire);
        match random(3) {
            0 => (),
            1 => drop(client.stream.get_ref().shutdown(Shutdown::Both)),
            _ => {
                let _ = client.stream.get_ref().shutdown(Shutdown::Write);
                let _ = client.stream.read_to_end(&mut Vec::new());
            }
        }
        if n % 500 == 0 {
            server.assert_alive();
        }
    }
    server.assert_alive();
    // Workers may still be busy with the last requests.
    let deadline = Instant::now() + EVENT_TIMEOUT;
    while fds() > before && Instant::now() < deadline {
        thread::sleep(millis(20));
    }
    assert!(fds() <= before, "{} descriptors, {before} before", fds());
}

/// Not a test: the server of the next one, in a process with few descriptors. Ends with its standard input.
#[test]
#[ignore = "run by few_descriptors_are_enough"]
fn server_with_few_descriptors() {
    let server = Server::start();
    // More than the connection layer leaves to the rest of the process, so that accept() and connect() do fail.
    let _files: Vec<_> = (0..40).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    println!("\naddress {}", server.connections.addr);
    let _ = io::stdin().read(&mut [0]);
}

/// The process holds 47 descriptors before the first client comes. Of the 11 that are left, a client takes one and its
/// request three; each earlier request takes two until tiny_http has closed them, which takes a moment on a busy machine.
/// Clients wait in the backlog until then, and none is turned away.
#[test]
fn few_descriptors_are_enough() {
    let _not_alone = not_alone();
    let command = "ulimit -n 58 && exec \"$0\" --ignored --exact server_with_few_descriptors --nocapture";
    let mut process = Command::new("sh")
        .args(["-c", command])
        .arg(std::env::current_exe().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let addr = lines.find_map(|line| line.strip_prefix("address ")?.parse().ok()).unwrap();
    let mut half_open: Vec<_> = (0..200).map(|_| Client::connect(addr)).collect();
    for client in &mut half_open {
        let _ = client.try_send(b"GET /");
    }
    for keep in ["", KEEP].repeat(10) {
        let answer = Client::connect(addr).send(format!("GET /ping HTTP/1.1\r\n{keep}\r\n")).answer();
        assert_eq!(answer.text(), "pong");
    }
    drop(process.stdin.take());
    assert!(process.wait().unwrap().success());
}

/// Where tiny_http found no free descriptor, its accept loop has ended for good.
#[test]
fn a_backend_that_accepts_no_more_ends_the_server() {
    let _not_alone = not_alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("http");
    drop(UnixListener::bind(&path).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut poll_loop = PollLoopThread::start(listener, path, Limits::default());
    assert_eq!(poll_loop.client().get("/ping").status, 502);
    let ended = poll_loop.thread.take().unwrap().join().unwrap();
    assert!(ended.unwrap_err().to_string().contains("file descriptors ran out"));
}

// ---- the end ----

#[test]
fn stop_ends_idle_connections_and_lets_active_ones_finish() {
    let mut server = Server::start();
    let (mut idle, mut active, mut gathering) = (server.client(), server.client(), server.client());
    idle.get("/ping");
    // 100 tells that the server has read its head.
    gathering.send(post("/count", "Expect: 100-continue\r\nContent-Length: 10\r\n"));
    assert_eq!(gathering.head().unwrap().status, 100);
    active.send("GET /slow HTTP/1.1\r\n\r\n");
    assert_eq!(server.event(), "/slow");
    server.connections.begin_stop();
    idle.assert_closed();
    assert_eq!(gathering.answer().status, 503);
    assert!(TcpStream::connect(server.connections.addr).is_err());
    server.gate.open(1);
    let answer = active.answer();
    assert_eq!((answer.text(), answer.header("connection")), ("slow", Some("close")));
    drop((active, gathering));
    server.connections.join();
}

#[test]
fn stop_does_not_wait_for_ever() {
    let mut server = Server::with(Limits { stop_wait: millis(100), ..Limits::default() });
    let mut active = server.client();
    active.send("GET /slow HTTP/1.1\r\n\r\n");
    assert_eq!(server.event(), "/slow");
    server.connections.begin_stop();
    server.connections.join();
    assert!(active.try_answer().is_err());
}

#[test]
#[ignore = "prints figures; meant for a release build"]
fn speed() {
    let server = Server::with(Limits { ..Limits::default() });
    let mut client = server.client();
    let started = Instant::now();
    for _ in 0..5000 {
        client.get("/ping");
    }
    println!("ping {:?}", started.elapsed() / 5000);
    let (size, block) = (300 << 20, vec![0; 1 << 20]);
    let name = format!("poll-{}", server.connections.addr.port());
    let (started, spent) = (Instant::now(), time_of_thread(&name));
    client.send(post_length("/bulk/count", size));
    for _ in 0..300 {
        client.send(&block);
    }
    client.answer();
    println!("upload {:.0} MB/s", 300.0 / started.elapsed().as_secs_f64());
    let spent = time_of_thread(&name).zip(spent).map(|(after, before)| after - before);
    println!("time of the connection layer for it {spent:?}");
    let started = Instant::now();
    for _ in 0..10 {
        client.get("/big");
    }
    println!("download {:.0} MB/s", 80.0 / started.elapsed().as_secs_f64());
}
