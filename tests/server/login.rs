//! Passwords, keys, and the separation of users.

use crate::client::{Device, Framed, METHODS, Wire, chunk, pack, post, sync_header};
use crate::harness::{KEY, OTHER_KEY, TestServer, collection};

/// Sends `hostKey` with this JSON.
fn log_in(server: &TestServer, json: &str) -> crate::client::Reply {
    Device::new(server.address, "").call("hostKey", json)
}

#[test]
fn a_good_login_gets_the_key_of_the_official_server() {
    let server = TestServer::start();
    for (json, key) in [
        (r#"{"u":"test","p":"secret"}"#, KEY),
        (r#"{"p":"word","x":[{}],"u":"other"}"#, OTHER_KEY), // any order, more keys
    ] {
        assert_eq!(log_in(&server, json).ok()["key"], key);
    }
    server.wait_for_log("logged in \"test\"");
    assert!(!server.log().contains("secret"), "the log tells the password");
    assert!(!server.log().contains(KEY), "the log tells the key");
}

#[test]
fn bad_logins_are_403_and_the_log_says_who_and_why() {
    let server = TestServer::start();
    let cases = [
        (r#"{"u":"test","p":"Secret"}"#, r#"login failed user="test" ip=127.0.0.1 reason=wrong password"#),
        (r#"{"u":"../test","p":"secret"}"#, r#"user="../test" ip=127.0.0.1 reason=unknown user"#),
        (r#"{"u":"a\nINFO b","p":"secret"}"#, r#"user="a\nINFO b" ip=127.0.0.1 reason=unknown user"#),
    ];
    for (json, line) in cases {
        log_in(&server, json).refused(403);
        server.wait_for_log(line);
    }
    let name = "x".repeat(60_000);
    log_in(&server, &format!(r#"{{"u":"{name}","p":"secret"}}"#)).refused(403);
    assert!(server.wait_for_log("user=\"xxx").len() < 1000, "a client can fill the log's disk");
    assert!(!server.log().contains("ecret"), "the log tells the password");
}

#[test]
fn logins_of_another_shape_are_400() {
    let server = TestServer::start();
    for json in [
        "",
        "nonsense",
        "null",
        "[]",
        "{}",
        r#"{"u":"test"}"#,
        r#"{"p":"secret"}"#,
        r#"{"u":null,"p":"secret"}"#,
        r#"{"u":"test","p":1}"#,
        r#"{"u":"test","p":"secret"} more"#,
        r#"{"u":"test","u":"test","p":"secret"}"#,
    ] {
        log_in(&server, json).refused(400);
        server.wait_for_refusal("/sync/hostKey", 400);
    }
}

#[test]
fn a_hashed_account_gives_each_device_a_key_of_its_own() {
    // 1000 rounds; the password is "secret".
    let phc = "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHRzYWx0$sVaWem31qy3rw+Ldi3plA/XzhMSNi9/XHnnD1Ytj05o";
    let server = TestServer::with(&[
        ("SYNC_USER1", &format!("test:{phc}")),
        ("SYNC_USER2", &format!("other:{phc}")),
        ("PASSWORDS_HASHED", "1"),
    ]);
    let keys: Vec<String> = [0; 2]
        .map(|_| log_in(&server, r#"{"u":"test","p":"secret"}"#).ok()["key"].as_str().unwrap().to_owned())
        .into();
    assert_ne!(keys[0], keys[1]);
    log_in(&server, r#"{"u":"test","p":"wrong"}"#).refused(403);
    log_in(&server, r#"{"u":"nobody","p":"secret"}"#).refused(403);
    let server = server.kill_and_restart();
    for key in &keys {
        Device::new(server.address, key).meta();
    }
    Device::new(server.address, KEY).call("meta", r#"{"v":11,"cv":""}"#).refused(403);
}

#[test]
fn every_endpoint_checks_its_header() {
    let server = TestServer::holding(&collection(""), &[]);
    let before = server.files();
    let header = |v: &str| format!(r#"{{"v":{v},"k":"{KEY}","c":"x","s":"y"}}"#);
    let mut cases: Vec<(String, u16)> =
        ["7", "12", "255", "256", "-1", "\"11\"", "null", "11.5"].map(|v| (header(v), 400)).into();
    cases.extend(
        ["", "nonsense", "[]", "{}", "null", "\"11\"", "{\"v\":11", "{\"v\":11}}"]
            .map(|text| (text.to_owned(), 400)),
    );
    for missing in ["v", "k", "s", "c"] {
        cases.push((header("11").replace(&format!("\"{missing}\":"), "\"x\":"), 400));
        cases.push((
            header("11").replace(&format!("\"{missing}\":\""), &format!("\"{missing}\":1,\"x\":\"")),
            400,
        ));
    }
    // `v` is a number anyway: the replacement above left it as it was.
    cases.retain(|(text, _)| text != &header("11"));
    for key in ["", "x", &KEY[1..], &KEY.to_uppercase(), &format!("{KEY} "), "\\u0000", &"k".repeat(8000)] {
        cases.push((header("11").replace(KEY, key), 403));
    }
    for method in METHODS {
        let path = format!("/sync/{method}");
        let send = |headers: &str| {
            let mut wire = Wire::open(server.address);
            wire.send(&post(&path, headers, Framed::Length(&pack(b"{}"))));
            wire.reply()
        };
        // A proxy dropped it. 400 would make clients advise a one-way sync.
        send("").refused(422);
        assert!(server.wait_for_refusal(&path, 422).contains("no anki-sync header"));
        for (text, status) in &cases {
            let status = if method == "hostKey" { 400 } else { *status };
            let reply = send(&format!("anki-sync: {text}\r\n"));
            assert_eq!(reply.status, status, "{method} {text}");
            server.wait_for_refusal(&path, status);
        }
    }
    assert!(!server.log().contains(&KEY[1..]), "the log tells the key");
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn a_key_reaches_only_its_own_collection() {
    let server = TestServer::start();
    assert_eq!(server.device().upload(&collection("")), "OK");
    let schema = server.device().meta()["scm"].clone();
    let before = server.files();
    let other = Device::new(server.address, OTHER_KEY);
    let device = server.device();
    let usn = device.begin();
    assert_eq!(other.meta()["empty"], true);
    // A session belongs to one user, even if another sends the same session key.
    let thief = Device { skey: device.skey.clone(), ..Device::new(server.address, OTHER_KEY) };
    thief.call("chunk", "{}").refused(409);
    thief.call("finish", "{}").refused(409);
    thief.call("abort", "{}").ok();
    thief.start(0, true).ok();
    thief.apply_graves(r#"{"cards":[1795428020163],"notes":[],"decks":[1]}"#).ok();
    thief.finish();
    assert_ne!(thief.download(), collection(""));
    assert_eq!(other.upload(&collection("DELETE FROM cards; UPDATE col SET scm = 1")), "OK");
    device.call("chunk", "{}").ok();
    device.call("abort", "{}").ok();
    assert_eq!(device.meta()["scm"], schema);
    assert_eq!(device.meta()["usn"], usn);
    let own = |path: &std::path::Path| path.starts_with(server.base.path().join("test"));
    let after = server.files();
    assert_eq!(
        before.iter().filter(|(path, _)| own(path)).collect::<Vec<_>>(),
        after.iter().filter(|(path, _)| own(path)).collect::<Vec<_>>()
    );
}

#[test]
fn an_unknown_key_is_refused_before_its_body_is_read() {
    let server = TestServer::start();
    for method in METHODS.iter().filter(|method| **method != "hostKey") {
        let headers = sync_header("unknown", "s");
        let mut wire = Wire::open(server.address);
        // The connection layer hands a request over once it has 64 KiB of it.
        wire.send(
            format!("POST /sync/{method} HTTP/1.1\r\n{headers}Content-Length: 4000000000\r\n\r\n").as_bytes(),
        );
        wire.send(&[0; 80 * 1024]);
        wire.reply().refused(403);
        let mut wire = Wire::open(server.address);
        let head = format!("POST /sync/{method} HTTP/1.1\r\n{headers}Transfer-Encoding: chunked\r\n\r\n");
        wire.send(head.as_bytes());
        wire.send(&chunk(&[0; 80 * 1024]));
        wire.reply().refused(403);
        for _ in 0..2 {
            let line = server.wait_for_refusal(&format!("/sync/{method}"), 403);
            assert!(line.contains(" in 0 ") && line.contains("unknown host key"), "{line}");
        }
    }
}

/// serde tells values in its errors.
#[test]
fn what_is_in_notes_does_not_get_into_the_log() {
    const TEXT: &str = "privatissimum";
    let server = TestServer::with(&[("SYNC_LOG", "trace")]);
    let device = server.device();
    let note = format!(
        "INSERT INTO notes VALUES (1, 'g', 1795428020052, 1, 0, '{TEXT}', '{TEXT}', '{TEXT}', 1, 0, '')"
    );
    assert_eq!(device.upload(&collection(&note)), "OK");
    device.begin();
    device
        .apply_changes(r#"{"models":[],"decks":[[],[]],"tags":["TEXT"]}"#.replace("TEXT", TEXT).as_str())
        .ok();
    device.apply_chunk(&format!(r#"{{"done":false,"notes":[[2,"h",1,1,-1,"{TEXT}","{TEXT}",0,0,0,""]]}}"#));
    let malformed = [
        ("start", format!(r#"{{"minUsn":"{TEXT}","lnewer":true,"graves":null}}"#)),
        ("applyGraves", format!(r#"{{"chunk":{{"cards":["{TEXT}"],"notes":[],"decks":[]}}}}"#)),
        ("applyChanges", format!(r#"{{"changes":{{"models":["{TEXT}"],"decks":[[],[]],"tags":[]}}}}"#)),
        (
            "applyChanges",
            format!(
                r#"{{"changes":{{"models":[{{"name":"{TEXT}","id":"{TEXT}"}}],"decks":[[],[]],"tags":[]}}}}"#
            ),
        ),
        (
            "applyChanges",
            format!(
                r#"{{"changes":{{"models":[],"decks":[[{{"id":"{TEXT}"}}],[]],"tags":[],"conf":"{TEXT}"}}}}"#
            ),
        ),
        ("applyChunk", format!(r#"{{"chunk":{{"done":true,"notes":[["{TEXT}","{TEXT}"]]}}}}"#)),
        (
            "applyChunk",
            format!(
                r#"{{"chunk":{{"done":true,"notes":[[3,"h","{TEXT}",1,-1,"{TEXT}","{TEXT}",0,0,0,""]]}}}}"#
            ),
        ),
        ("applyChunk", format!(r#"{{"chunk":{{"done":"{TEXT}","cards":["{TEXT}"]}}}}"#)),
        ("sanityCheck2", format!(r#"{{"client":["{TEXT}"],"full":true}}"#)),
    ];
    for (method, json) in &malformed {
        device.begin();
        let reply = device.call(method, json);
        assert_ne!(reply.status, 200, "{json}");
    }
    let mut damaged = collection(&note);
    let at = damaged.windows(TEXT.len()).position(|bytes| bytes == TEXT.as_bytes()).unwrap();
    damaged[at - 40..at].fill(0xff);
    device.upload(&damaged);
    device.send_raw("upload", Framed::Chunked(&pack(TEXT.as_bytes())));
    device.upload(&collection(&format!(
        "UPDATE notes SET mod = '{TEXT}'; {note}; UPDATE cards SET did = '{TEXT}'"
    )));
    device.meta();
    let log = server.log();
    let told: Vec<_> = log.lines().filter(|line| line.contains(TEXT)).collect();
    assert!(log.contains("/sync/applyChunk 400") && told.is_empty(), "{told:#?}");
}

/// A body that is longer than any login does not make a transfer of it, of which several are active at once.
#[test]
fn a_long_login_is_no_way_to_guess_faster() {
    let server = TestServer::start();
    let mut body = pack(br#"{"u":"test","p":"guess"}"#);
    // One byte more than what is received whole before a worker gets it.
    let padding = (64 << 10) + 1 - body.len() - 8;
    body.extend_from_slice(
        &[&b"\x50\x2a\x4d\x18"[..], &(padding as u32).to_le_bytes(), &vec![0; padding]].concat(),
    );
    let head = |framing: &str| {
        format!("POST /sync/hostKey HTTP/1.1\r\nHost: x\r\n{}{framing}\r\n\r\n", sync_header("", ""))
    };
    let mut logins: Vec<Wire> = (0..6).map(|_| Wire::open(server.address)).collect();
    for login in &mut logins {
        login.send(head("Transfer-Encoding: chunked").as_bytes());
        login.send(&chunk(&body));
    }
    for login in &mut logins {
        login.send(b"0\r\n\r\n");
        assert_eq!(login.reply().status, 413);
    }
    let mut login = Wire::open(server.address);
    login.send(head("Content-Length: 60000000").as_bytes());
    login.send(&body[..20_000]);
    assert_eq!(login.reply().status, 413);
    // A short one is compared.
    log_in(&server, r#"{"u":"test","p":"guess"}"#).refused(403);
}
