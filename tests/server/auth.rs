//! Every endpoint, in every encoding, with every kind of wrong key. The reply is a refusal, or the other user's own
//! data. No data of the first user is sent, and nothing on the disk changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::client::{Device, Framed, Reply, Wire, pack, post, sync_header};
use crate::form::{form, form_header, gzip};
use crate::harness::{KEY, OTHER_KEY, TestServer, collection};
use crate::zip::zip_of;

/// A word that is in every kind of row of the first user.
const MARK: &str = "marmalade";

/// All methods but the login, with a body that would do something.
fn endpoints() -> Vec<(&'static str, Vec<u8>)> {
    let json = |text: &str| text.as_bytes().to_vec();
    vec![
        ("/sync/meta", json(r#"{"v":11,"cv":"anki,26.09.3 (29bb700b),linux"}"#)),
        ("/sync/start", json(r#"{"minUsn":0,"lnewer":false,"graves":null}"#)),
        ("/sync/applyGraves", json(r#"{"chunk":{"cards":[],"notes":[],"decks":[]}}"#)),
        ("/sync/applyChanges", json(r#"{"changes":{"models":[],"decks":[[],[]],"tags":[]}}"#)),
        ("/sync/chunk", json("{}")),
        ("/sync/applyChunk", json(r#"{"chunk":{"done":true}}"#)),
        ("/sync/sanityCheck2", json(r#"{"client":[[0,0,0],0,0,0,0,0,0,0]}"#)),
        ("/sync/finish", json("{}")),
        ("/sync/abort", json("{}")),
        ("/sync/download", json("{}")),
        ("/sync/upload", collection("DELETE FROM notes; DELETE FROM cards")),
        ("/msync/begin", json(r#"{"v":"anki,26.09.3 (29bb700b),linux"}"#)),
        ("/msync/mediaChanges", json(r#"{"lastUsn":0}"#)),
        ("/msync/downloadFiles", json(&format!(r#"{{"files":["{MARK}.txt"]}}"#))),
        ("/msync/mediaSanity", json(r#"{"local":0}"#)),
        ("/msync/uploadChanges", removal()),
    ]
}

/// A media zip that deletes the file of the first user.
fn removal() -> Vec<u8> {
    zip_of(&[(&format!("{MARK}.txt"), None)])
}

/// Where a request has its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Header,
    KeyFirst,
    DataFirst,
}

const ENCODINGS: [Encoding; 3] = [Encoding::Header, Encoding::KeyFirst, Encoding::DataFirst];

/// Sends a request; none as the key leaves it out altogether.
fn send(to: SocketAddr, path: &str, body: &[u8], encoding: Encoding, key: Option<&str>, skey: &str) -> Reply {
    let is_media = path.starts_with("/msync/");
    let request = match encoding {
        Encoding::Header => {
            let header = key.map(|key| sync_header(key, skey)).unwrap_or_default();
            post(path, &header, Framed::Chunked(&pack(body)))
        }
        Encoding::KeyFirst | Encoding::DataFirst => {
            let packed = if is_media { body.to_vec() } else { gzip(body) };
            let name = if is_media { "sk" } else { "k" };
            let c: &[u8] = if is_media { b"0" } else { b"1" };
            let mut parts = vec![("c", c), ("s", skey.as_bytes())];
            parts.extend(key.map(|key| (name, key.as_bytes())));
            let at = if encoding == Encoding::KeyFirst { parts.len() } else { 0 };
            parts.insert(at, ("data", &packed));
            post(path, &form_header(), Framed::Length(&form(&parts)))
        }
    };
    let mut wire = Wire::open(to);
    wire.send(&request);
    wire.reply()
}

/// A server whose first user has rows, a media file, and a sync under way.
fn in_use(vars: &[(&str, &str)]) -> (TestServer, Device) {
    let marked = collection(&format!(
        "UPDATE notes SET flds = '{MARK}' || flds; UPDATE notetypes SET name = '{MARK}' || id; INSERT INTO tags VALUES ('{MARK}', 0, 0, NULL)"
    ));
    let server = TestServer::holding(&marked, vars);
    let zip = zip_of(&[(&format!("{MARK}.txt"), Some(MARK.as_bytes()))]);
    let reply = send(server.address, "/msync/uploadChanges", &zip, Encoding::Header, Some(KEY), "x");
    assert_eq!(reply.ok()["data"][0], 1);
    let device = server.device();
    device.begin();
    (server, device)
}

/// The files of the first user.
fn own_files(server: &TestServer) -> BTreeMap<PathBuf, u64> {
    let own = server.base.path().join("test");
    server.files().into_iter().filter(|(path, _)| path.starts_with(&own)).collect()
}

fn assert_tells_nothing(reply: &Reply, case: &str) {
    let plain = zstd::decode_all(&reply.body[..]).unwrap_or_default();
    for bytes in [&reply.body, &plain] {
        let found = bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes());
        assert!(!found, "{case}: what is not theirs");
    }
}

#[test]
fn without_a_key_of_an_account_nothing_is_told_and_nothing_changes() {
    let (server, device) = in_use(&[]);
    let before = server.files();
    let upper = KEY.to_uppercase();
    let long = format!("{KEY}{KEY}");
    let keys =
        [None, Some(""), Some("0"), Some(&upper[..]), Some(&KEY[..39]), Some(&long[..]), Some("test:secret")];
    for (path, body) in endpoints() {
        for encoding in ENCODINGS {
            for key in keys {
                let case = format!("{path} {encoding:?} {key:?}");
                let reply = send(server.address, path, &body, encoding, key, &device.skey);
                // Without header and form the request belongs to no protocol.
                let is_nothing = key.is_none() && encoding == Encoding::Header;
                assert_eq!(reply.status, if is_nothing { 422 } else { 403 }, "{case}");
                assert_tells_nothing(&reply, &case);
            }
        }
    }
    for query in ["", "?k=", "?k=0", "?v=x"] {
        let mut wire = Wire::open(server.address);
        wire.send(format!("GET /msync/begin{query} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        wire.reply().refused(403);
    }
    assert_eq!(server.files(), before);
    // The sync that was under way never noticed.
    device.call("chunk", "{}").ok();
}

#[test]
fn the_key_of_another_user_reaches_nothing_of_the_first() {
    let (server, device) = in_use(&[]);
    let before = own_files(&server);
    for (path, body) in endpoints() {
        for encoding in ENCODINGS {
            let case = format!("{path} {encoding:?}");
            let reply = send(server.address, path, &body, encoding, Some(OTHER_KEY), &device.skey);
            assert!(matches!(reply.status, 200 | 400 | 404 | 409), "{case}: {}", reply.status);
            assert_tells_nothing(&reply, &case);
            assert_eq!(own_files(&server), before, "{case}");
        }
    }
    device.call("chunk", "{}").ok();
}

#[test]
fn the_key_of_a_removed_user_is_nobodys() {
    let (server, device) = in_use(&[]);
    drop(device);
    let base = server.base.clone();
    drop(server);
    let server = TestServer::on(base, &[("SYNC_USER1", "new:word")]);
    let before = server.files();
    for (path, body) in endpoints() {
        for encoding in ENCODINGS {
            let reply = send(server.address, path, &body, encoding, Some(KEY), "x");
            reply.refused(403);
        }
    }
    assert_eq!(server.files(), before);
}

#[test]
fn a_session_that_expired_or_never_was_is_409() {
    let (server, device) = in_use(&[("SYNC_SESSION_SECS", "1")]);
    server.wait_for_log("rolled back a sync");
    let before = server.files();
    for (path, body) in endpoints() {
        let needs_session = path.starts_with("/sync/")
            && !["meta", "start", "abort", "upload", "download"].iter().any(|name| path.ends_with(name));
        for encoding in ENCODINGS.into_iter().filter(|_| needs_session) {
            for skey in [&device.skey[..], "never"] {
                send(server.address, path, &body, encoding, Some(KEY), skey).refused(409);
            }
            send(server.address, path, &body, encoding, Some(KEY), "").refused(400);
        }
    }
    assert_eq!(server.files(), before);
    server.assert_syncs();
}
