//! Paths, verbs, framing, pages.

use std::fs;

use crate::client::{Framed, Reply, Wire, pack, post, sync_header};
use crate::harness::{KEY, TestServer, collection};

const META: &str = r#"{"v":11,"cv":"x"}"#;

/// Sends this text and reads the reply.
fn ask(server: &TestServer, text: &str) -> Reply {
    let mut wire = Wire::open(server.address);
    wire.send(text.as_bytes());
    wire.reply()
}

fn get(server: &TestServer, path: &str, headers: &str) -> Reply {
    ask(server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"))
}

/// A `meta` to this path, with these header lines more.
fn meta(path: &str, headers: &str) -> Vec<u8> {
    post(path, &(sync_header(KEY, "s") + headers), Framed::Chunked(&pack(META.as_bytes())))
}

#[test]
fn slashes_and_the_base_path_are_forgiven() {
    let server = TestServer::with(&[("SYNC_BASE_PATH", "/anki/")]);
    for path in [
        "/sync/meta",
        "/sync/meta/",
        "//sync//meta",
        "/anki/sync/meta",
        "/anki//sync/meta/",
        "/anki/sync/meta?x=/y",
        "/sync/sync/meta",
        "/anki/sync/sync/meta",
        "/anki/anki/sync/meta",
        "/msync/sync/meta",
        "http://pi.local:8080/anki/sync/meta",
        "HTTPS://pi.local//sync/meta?x=/y",
    ] {
        let mut wire = Wire::open(server.address);
        wire.send(&meta(path, ""));
        assert_eq!(wire.reply().status, 200, "{path}");
    }
    for path in ["/", "/anki", "/anki/", "/health", "/anki/health"] {
        assert_eq!(get(&server, path, "").status, 200, "{path}");
    }
}

#[test]
fn unknown_paths_and_verbs_get_codes_that_make_nobody_repair_a_collection() {
    let server = TestServer::start();
    let cases = [
        ("GET /favicon.ico", 404, None),
        ("POST /anki/sync/meta", 404, None),
        ("GET /syncs/meta", 404, None),
        // Where the official server answers 400, which clients show as a damaged collection.
        ("POST /sync/Meta", 404, None),
        ("POST /sync/nothing", 404, None),
        ("POST /sync", 404, None),
        ("POST /msync/nothing", 404, None),
        ("POST /sync/meta", 422, None),
        ("GET /sync/meta", 405, Some("POST")),
        ("PUT /sync/upload", 405, Some("POST")),
        ("DELETE /sync/meta", 405, Some("POST")),
        ("POST /health", 405, Some("GET, HEAD")),
        ("POST /", 405, Some("GET, HEAD")),
        ("OPTIONS /", 405, Some("GET, HEAD")),
    ];
    for (line, status, allow) in cases {
        let reply = ask(&server, &format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!((reply.status, reply.header("allow")), (status, allow), "{line}");
        let path = line.split(' ').nth(1).unwrap();
        server.wait_for_refusal(path, status);
    }
}

/// Proxies add what they know about a client, in whatever encoding it is.
#[test]
fn headers_of_proxies_in_any_bytes_and_number_are_passed_over() {
    let server = TestServer::start();
    let mut many: Vec<u8> = b"Cf-Ipcity: S\xe3o Paulo\r\nRemote-Name: \xf0\x9f\x98\x80\r\n".to_vec();
    for number in 0..90 {
        many.extend(format!("Cf-Number-{number}: {}\r\n", "x".repeat(250)).into_bytes());
    }
    let plain = meta("/sync/meta", "");
    let at = plain.windows(9).position(|at| at == b"anki-sync").unwrap();
    let mut wire = Wire::open(server.address);
    wire.send(&[&plain[..at], &many, &plain[at..]].concat());
    wire.reply().ok();
}

#[test]
fn pages_of_listed_origins_may_sync_from_a_browser() {
    let server = TestServer::with(&[("SYNC_CORS_ORIGINS", "https://deck.example, http://localhost:3000")]);
    let preflight = |origin: &str| {
        ask(
            &server,
            &format!(
                "OPTIONS /sync/meta HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
            ),
        )
    };
    let reply = preflight("https://deck.example");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://deck.example"));
    assert!(reply.header("access-control-allow-headers").unwrap().contains("anki-sync"));
    assert_eq!(reply.header("vary"), Some("Origin"));
    let reply = preflight("https://other.example");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (405, None));
    for (headers, status) in [(sync_header(KEY, "s"), 200), (sync_header("wrong", "s"), 403)] {
        let mut wire = Wire::open(server.address);
        let headers = headers + "Origin: http://localhost:3000\r\n";
        wire.send(&post("/sync/meta", &headers, Framed::Chunked(&pack(META.as_bytes()))));
        let reply = wire.reply();
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("access-control-allow-origin"), Some("http://localhost:3000"));
        assert_eq!(reply.header("access-control-expose-headers"), Some("anki-original-size"));
    }
    let closed = TestServer::start();
    let reply =
        ask(&closed, "OPTIONS /sync/meta HTTP/1.1\r\nHost: x\r\nOrigin: https://deck.example\r\n\r\n");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (405, None));
}

#[test]
fn health_says_whether_the_data_folder_is_there() {
    let server = TestServer::start();
    let reply = get(&server, "/health", "");
    assert_eq!((reply.status, reply.text()), (200, "ok\n"));
    let mut wire = Wire::open(server.address);
    // The answer to HEAD has the length and no body: the next reply follows at once.
    for _ in 0..2 {
        wire.send(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n");
        let reply = wire.head();
        assert_eq!((reply.status, reply.header("content-length")), (200, Some("3")));
    }
    // Pulled out and put back, as an SD card may be.
    let away = server.base.path().with_extension("away");
    fs::rename(server.base.path(), &away).unwrap();
    assert!(matches!(get(&server, "/health", "").status, 502 | 503));
    fs::rename(&away, server.base.path()).unwrap();
    assert_eq!(get(&server, "/health", "").status, 200);
    // If one user's folder is unusable, only that user gets errors, and no new collection is made elsewhere.
    let (here, away) = (server.base.path().join("test"), server.base.path().join("away"));
    fs::rename(&here, &away).unwrap();
    server.device().call("start", r#"{"minUsn":1,"lnewer":true}"#).refused(500);
    fs::rename(&away, &here).unwrap();
    server.assert_syncs();
}

#[test]
fn the_start_page_shows_the_address_to_type_in() {
    let server = TestServer::with(&[("SYNC_BASE_PATH", "a&b")]);
    let page = |host: &str| {
        let reply = ask(&server, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
        reply.text().to_owned()
    };
    assert!(page("pi.local:8080").contains(">http://pi.local:8080/a&amp;b/</code>"));
    assert!(page("[::1]:80").contains("http://[::1]:80/"));
    for host in ["<script>alert(1)", "x\"onload=", "x'", "x y", "javascript:&#x3c;"] {
        let page = page(host);
        assert!(!page.contains(host) && page.contains("THIS-SERVER"), "{page}");
    }
}

#[test]
fn requests_pass_in_every_framing_and_through_proxies() {
    let server = TestServer::holding(&collection(""), &[("SYNC_IP_HEADER", "X-Real-IP")]);
    let body = pack(META.as_bytes());
    let nginx =
        "X-Real-IP: 203.0.113.9\r\nConnection: upgrade\r\nUpgrade: \r\nX-Forwarded-For: 203.0.113.9\r\n";
    let headers = sync_header(KEY, "s");
    let http10 =
        format!("POST /sync/meta HTTP/1.0\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    let requests = [
        post("/sync/meta", &headers, Framed::Length(&body)),
        post("/sync/meta", &headers, Framed::Chunked(&body)),
        post("/sync/meta", &headers.replace("anki-sync", "ANKI-Sync"), Framed::Length(&body)),
        meta("/sync/meta", nginx),
        meta("/sync/meta", "Content-Encoding: zstd\r\nAccept-Encoding: gzip, br, zstd\r\nCookie: a=b\r\n"),
        [http10, body].concat(),
    ];
    let last = requests.len() - 1;
    for (number, request) in requests.iter().enumerate() {
        let mut wire = Wire::open(server.address);
        wire.send(request);
        let reply = wire.reply();
        assert_eq!(reply.ok()["usn"], 1, "request {number}");
        assert_eq!(reply.header("transfer-encoding").is_none(), number == last, "HTTP/1.0 knows no chunks");
    }
    server.wait_for_log("203.0.113.9 test ");
}

#[test]
fn one_connection_serves_a_whole_sync() {
    let server = TestServer::holding(&collection(""), &[]);
    let device = server.device();
    let mut wire = Wire::open(server.address);
    let mut call = |method: &str, json: &str| {
        wire.send(&device.request(method, Framed::Chunked(&pack(json.as_bytes()))));
        wire.reply()
    };
    call("meta", META).ok();
    call("start", r#"{"minUsn":1,"lnewer":true}"#).ok();
    for _ in 0..20 {
        call("applyChunk", r#"{"chunk":{"done":false}}"#).ok();
        // A refusal whose body was read keeps the connection, too.
        call("applyChunk", "[]").refused(400);
    }
    call("finish", "{}").ok();
    call("finish", "{}").refused(409);
    assert_eq!(call("meta", META).ok()["usn"], 2);
}

#[test]
fn a_client_may_take_its_time_and_share_a_packet() {
    let server = TestServer::holding(&collection(""), &[]);
    let request = meta("/sync/meta", "");
    let mut wire = Wire::open(server.address);
    request.iter().for_each(|byte| wire.send(&[*byte]));
    wire.reply().ok();
    wire.send(&request.repeat(3));
    for _ in 0..3 {
        wire.reply().ok();
    }
}
