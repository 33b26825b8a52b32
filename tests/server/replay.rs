//! Requests of real clients, byte for byte, compared with what the official server answered.
//!
//! One small history for each generation of clients (spec, captures/README.md): a wrong login, a login, an upload, two
//! syncs of the first device, one of the second, media. And requests that were made by hand, as AnkiDroid made them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::client::{Reply, Wire};
use crate::harness::{TestServer, collection, open_bytes, rows};
use crate::zip;

/// An exchange between a client and the official server.
struct Exchange {
    /// `NN-service-method-status`
    name: String,
    request: Vec<u8>,
    /// None where the recording injected a fault, or where the answer is a whole collection.
    answer: Option<Vec<u8>>,
}

/// The exchanges of a recording, in order.
fn recording(client: &str) -> Vec<Exchange> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/captures-{client}"));
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut requests: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|ext| ext == "req")).collect();
    requests.sort();
    let exchange = |path: &PathBuf| Exchange {
        // The names hold dots.
        name: path.file_name().unwrap().to_str().unwrap().trim_end_matches(".req").to_owned(),
        request: fs::read(path).unwrap(),
        answer: fs::read(path.to_str().unwrap().replace(".req", ".resp")).ok(),
    };
    let exchanges: Vec<_> = requests.iter().map(exchange).collect();
    assert!(!exchanges.is_empty());
    exchanges
}

/// Sends the request on a fresh connection, as it is.
fn replay(server: &TestServer, request: &[u8]) -> Reply {
    let mut wire = Wire::open(server.address);
    wire.send(request);
    wire.reply()
}

/// The content of a 200, whose form must be that of the protocol.
fn content(reply: &Reply, is_plain: bool) -> Vec<u8> {
    if !is_plain {
        return reply.unpacked();
    }
    assert_eq!(reply.header("anki-original-size"), None);
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    reply.body.clone()
}

/// Replays a history up to the fault that the recording injected.
fn tell(client: &str, is_plain: bool) {
    let server = TestServer::start();
    let history = recording(client);
    for Exchange { name, request, answer } in history.iter().take_while(|one| !one.name.ends_with("-500")) {
        if name == "07-sync-start-200" && client != "src2.0.52" {
            // The official server counts a download as a change, unless it refuses it.
            server.assert_syncs();
        }
        let ours = replay(&server, request);
        if name.contains("download-") {
            assert_collection(&content(&ours, is_plain), is_plain);
            continue;
        }
        let theirs = Wire::of(answer.clone().unwrap()).reply();
        assert_eq!(ours.status, theirs.status, "{client} {name}");
        if ours.status != 200 {
            continue;
        }
        let (ours, theirs) = (content(&ours, is_plain), content(&theirs, is_plain));
        if name.contains("upload-") {
            assert_eq!(ours, b"OK", "{client}: {}", String::from_utf8_lossy(&ours));
        } else if name.contains("downloadFiles") {
            assert_eq!(unzipped(&ours), unzipped(&theirs), "{client} {name}");
        } else if ["null", "OK"].iter().any(|exact| theirs == exact.as_bytes()) {
            assert_eq!(ours, theirs, "{client} {name}");
        } else {
            assert_eq!(comparable(name, &ours), comparable(name, &theirs), "{client} {name}");
        }
    }
    server.assert_syncs();
}

/// Looks into a downloaded collection: old clients want the old format, and none wants side files.
fn assert_collection(file: &[u8], is_plain: bool) {
    assert_eq!((&file[..16], &file[18..20]), (&b"SQLite format 3\0"[..], &[1, 1][..]));
    let schema = rows(&open_bytes(file), "SELECT ver FROM col");
    assert_eq!(schema, [if is_plain { "11" } else { "18" }]);
}

/// The files of a media zip, by their names.
fn unzipped(zip: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut entries = zip::read_zip(zip);
    let names: BTreeMap<String, String> = serde_json::from_slice(&entries.remove("_meta").unwrap()).unwrap();
    entries.into_iter().map(|(entry, data)| (names[&entry].clone(), data)).collect()
}

#[test]
fn a_history_of_protocol_8_is_answered_as_by_the_official_server() {
    tell("src2.0.52", true);
}

#[test]
fn a_history_of_protocol_9_is_answered_as_by_the_official_server() {
    tell("src2.1.15", true);
}

#[test]
fn histories_of_protocol_10_are_answered_as_by_the_official_server() {
    for client in ["2.1.25", "2.1.28", "2.1.56"] {
        tell(client, true);
    }
}

#[test]
fn a_history_of_protocol_11_is_answered_as_by_the_official_server() {
    tell("26.9.3", false);
}

/// The parts of two answers that must be equal: everything but clocks and the order of rows.
fn comparable(name: &str, answer: &[u8]) -> Value {
    fn without(value: &mut Value, keys: &[&str]) {
        match value {
            Value::Object(map) => {
                keys.iter().for_each(|key| drop(map.remove(*key)));
                map.values_mut().for_each(|value| without(value, keys));
            }
            Value::Array(list) => list.iter_mut().for_each(|value| without(value, keys)),
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_slice(answer).unwrap();
    match name {
        // Of an account without a collection. To 2.0 the official server says here that its own, which it made just
        // now, is too new.
        _ if name.contains("03-sync-meta") || name.contains("02-ankidroid-meta") => {
            without(&mut value, &["ts", "scm", "mod", "msg", "cont"]);
        }
        "20-v11-meta-content-length" => without(&mut value, &["ts", "scm", "mod", "usn", "empty"]),
        _ if name.contains("meta") => without(&mut value, &["ts"]),
        _ if name.contains("finish") => value = value.is_u64().into(),
        _ => without(&mut value, &["lastUnburied"]),
    }
    // The official server rewrites a card's data, where it drops what it does not know.
    for card in value.pointer_mut("/cards").and_then(Value::as_array_mut).into_iter().flatten() {
        if card[17] == "{}" {
            card[17] = "".into();
        }
    }
    for list in ["/revlog", "/cards", "/notes", "/models", "/decks/0", "/decks/1", "/tags"] {
        if let Some(rows) = value.pointer_mut(list).and_then(Value::as_array_mut) {
            rows.sort_by_key(Value::to_string);
        }
    }
    value
}

#[test]
fn the_end_of_a_sync_that_failed_is_answered_as_by_the_official_server() {
    let server = TestServer::holding(&collection(""), &[]);
    // The recording lacks the start of these.
    for Exchange { name, request, .. } in
        recording("26.9.3").iter().skip_while(|one| !one.name.ends_with("-500"))
    {
        let expected = if name.contains("abort") { 200 } else { 409 };
        assert_eq!(replay(&server, request).status, expected, "{name}");
    }
}

#[test]
fn constructed_requests_get_the_official_answers() {
    let server = TestServer::start();
    for Exchange { name, request, answer } in recording("constructed") {
        let ours = replay(&server, &request);
        let Some(answer) = answer.filter(|_| !name.contains("download-unterminated")) else {
            // Anki 2.0's own form of a download, which the official server cannot read.
            assert_collection(&content(&ours, true), true);
            continue;
        };
        let theirs = Wire::of(answer).reply();
        if name.contains("double-slash") {
            // AnkiDroid up to 2.11 with a slash at the end of its address: 404 there.
            assert_eq!(
                content(&ours, true),
                br#"{"data":{"usn":3,"sk":"523322844031c7adb91401e307edd32ad150d563"},"err":""}"#
            );
            continue;
        }
        assert_eq!(ours.status, theirs.status, "{name}");
        if name.contains("upload-garbage") {
            assert_ne!(ours.unpacked(), b"OK");
        } else if theirs.status == 200 && !name.contains("health") {
            let is_plain = !name.contains("v11");
            let (ours, theirs) = (content(&ours, is_plain), content(&theirs, is_plain));
            assert_eq!(comparable(&name, &ours), comparable(&name, &theirs), "{name}");
        }
    }
}
