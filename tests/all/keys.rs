//! Every endpoint with every kind of key that is not good: no data of anybody, and nothing changes.

use std::sync::Arc;

use serde_json::json;

use crate::client::{Device, Framed, METHODS, Reply, Wire, pack, post, sync_header};
use crate::harness::{KEY, OTHER_KEY, TestServer, add_user, collection, done};
use crate::zip::zip_of;

const MEDIA_METHODS: [&str; 5] = ["begin", "mediaChanges", "uploadChanges", "downloadFiles", "mediaSanity"];

/// What stands in the files of `test` and may not come back to anybody else.
const SECRET: &str = "known to test alone";

/// Each endpoint with a body that it takes.
fn requests() -> Vec<(String, Vec<u8>)> {
    let sync = METHODS.iter().filter(|method| **method != "hostKey").map(|method| {
        let body = match *method {
            "meta" => br#"{"v":11,"cv":"anki,26.09.3 (29bb700b),linux"}"#.to_vec(),
            "start" => br#"{"minUsn":0,"lnewer":true,"graves":null}"#.to_vec(),
            "applyGraves" => br#"{"chunk":{"cards":[],"notes":[],"decks":[]}}"#.to_vec(),
            "applyChanges" => br#"{"changes":{"models":[],"decks":[[],[]],"tags":["attack"]}}"#.to_vec(),
            "applyChunk" => br#"{"chunk":{"done":true}}"#.to_vec(),
            "sanityCheck2" => br#"{"client":[[0,0,0],0,0,0,0,0,0,0]}"#.to_vec(),
            "upload" => collection(""),
            _ => br#"{"_pad":null}"#.to_vec(),
        };
        (format!("/sync/{method}"), body)
    });
    let media = MEDIA_METHODS.iter().map(|method| {
        let body = match *method {
            "begin" => br#"{"v":"anki"}"#.to_vec(),
            "mediaChanges" => br#"{"lastUsn":0}"#.to_vec(),
            "uploadChanges" => zip_of(&[("attack", Some(b"1")), ("secret.txt", None)]),
            "downloadFiles" => br#"{"files":["secret.txt"]}"#.to_vec(),
            _ => br#"{"local":1}"#.to_vec(),
        };
        (format!("/msync/{method}"), body)
    });
    sync.chain(media).collect()
}

fn send(server: &TestServer, path: &str, headers: &str, body: &[u8]) -> Reply {
    let mut wire = Wire::open(server.address);
    wire.send(&post(path, headers, Framed::Chunked(&pack(body))));
    wire.reply()
}

fn tells(reply: &Reply) -> bool {
    let plain = zstd::decode_all(&reply.body[..]).unwrap_or_default();
    [&plain, &reply.body]
        .iter()
        .any(|bytes| bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()))
}

fn log_in(server: &TestServer, name: &str) -> String {
    let reply =
        Device::new(server.address, "").call("hostKey", &json!({"u": name, "p": "secret"}).to_string());
    reply.ok()["key"].as_str().unwrap().to_owned()
}

#[test]
fn no_key_that_is_not_good_reads_or_changes_anything() {
    let base = Arc::new(tempfile::tempdir().unwrap());
    for name in ["revoked", "removed"] {
        add_user(base.path(), name, "secret");
    }
    let server = TestServer::on(base.clone(), &[]);
    let mut owner = server.device();
    assert_eq!(
        owner.upload(&collection(&format!(
            "UPDATE notes SET sfld = '{SECRET}', flds = '{SECRET}' || char(31)"
        ))),
        "OK"
    );
    let zip = zip_of(&[("secret.txt", Some(SECRET.as_bytes()))]);
    assert_eq!(send(&server, "/msync/uploadChanges", &sync_header(KEY, "s"), &zip).status, 200);
    let (revoked, removed) = (log_in(&server, "revoked"), log_in(&server, "removed"));
    done(base.path(), &["device", "revoke", "revoked", "--all"], "");
    done(base.path(), &["user", "remove", "removed"], "");
    // An open session, which none of this may disturb.
    owner.skey = "session".to_owned();
    owner.begin();
    let before = server.files();
    let keys = [
        ("none", String::new()),
        ("wrong", "0".repeat(40)),
        ("upper case", KEY.to_uppercase()),
        ("the password", "secret".to_owned()),
        ("the name", "test".to_owned()),
        ("revoked", revoked),
        ("of a removed user", removed),
    ];
    let mut tried = 0;
    for (path, body) in requests() {
        for (kind, key) in &keys {
            let reply = send(&server, &path, &sync_header(key, "session"), &body);
            assert_eq!(reply.status, 403, "{path} with a key that is {kind}");
            assert!(!tells(&reply), "{path} tells {kind}");
            tried += 1;
        }
        let reply = send(&server, &path, "", &body);
        assert_eq!(reply.status, 400, "{path} without a header");
        tried += 1;
    }
    assert_eq!(server.files(), before);
    // Another user's good key, under the session key of the first.
    let others: Vec<_> = requests();
    for (path, body) in &others {
        let reply = send(&server, path, &sync_header(OTHER_KEY, "session"), body);
        assert!(!tells(&reply), "{path} tells another user");
        tried += 1;
    }
    let owned = |files: std::collections::BTreeMap<std::path::PathBuf, u64>| {
        files.into_iter().filter(|(path, _)| path.starts_with(base.path().join("test"))).collect::<Vec<_>>()
    };
    assert_eq!(owned(server.files()), owned(before));
    owner.finish();
    println!("{tried} requests with keys that are not good");
    server.assert_syncs();
}
