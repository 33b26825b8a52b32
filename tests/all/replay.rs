//! Requests of the real client 26.9.3, byte for byte, compared with what the official server answered.
//!
//! One small history (spec, captures/README.md): a wrong login, a login, an upload, two syncs of the first device, one
//! of the second.

use serde_json::Value;

use crate::client::{Reply, Wire};
use crate::harness::{TestServer, collection};

macro_rules! capture {
    ($folder:literal, $name:literal) => {
        (
            $name,
            &include_bytes!(concat!("../vectors/captures-", $folder, "/", $name, ".req"))[..],
            &include_bytes!(concat!("../vectors/captures-", $folder, "/", $name, ".resp"))[..],
        )
    };
}

type Capture = (&'static str, &'static [u8], &'static [u8]);

/// Sends the request on a fresh connection, as it is.
fn replay(server: &TestServer, request: &[u8]) -> Reply {
    let mut wire = Wire::open(server.address);
    wire.send(request);
    wire.reply()
}

/// The status and the unpacked body of a recorded answer.
fn recorded(answer: &[u8]) -> (u16, Vec<u8>) {
    let mut wire = Wire::of(answer.to_vec());
    let reply = wire.reply();
    let body = if reply.status == 200 { reply.unpacked() } else { reply.body };
    (reply.status, body)
}

#[test]
fn a_recorded_history_is_answered_as_by_the_official_server() {
    let server = TestServer::start();
    let history: [Capture; 26] = [
        capture!("26.9.3", "01-sync-hostKey-403"),
        capture!("26.9.3", "02-sync-hostKey-200"),
        capture!("26.9.3", "03-sync-meta-200"),
        capture!("26.9.3", "04-sync-upload-200"),
        capture!("26.9.3", "05-sync-meta-200"),
        capture!("26.9.3", "06-sync-download-200"),
        capture!("26.9.3", "07-sync-start-200"),
        capture!("26.9.3", "08-sync-applyGraves-200"),
        capture!("26.9.3", "09-sync-applyChanges-200"),
        capture!("26.9.3", "10-sync-chunk-200"),
        capture!("26.9.3", "11-sync-applyChunk-200"),
        capture!("26.9.3", "12-sync-sanityCheck2-200"),
        capture!("26.9.3", "13-sync-finish-200"),
        capture!("26.9.3", "14-sync-start-200"),
        capture!("26.9.3", "15-sync-applyChanges-200"),
        capture!("26.9.3", "16-sync-chunk-200"),
        capture!("26.9.3", "17-sync-applyChunk-200"),
        capture!("26.9.3", "18-sync-sanityCheck2-200"),
        capture!("26.9.3", "19-sync-finish-200"),
        capture!("26.9.3", "20-sync-start-200"),
        capture!("26.9.3", "21-sync-applyGraves-200"),
        capture!("26.9.3", "22-sync-applyChanges-200"),
        capture!("26.9.3", "23-sync-chunk-200"),
        capture!("26.9.3", "24-sync-applyChunk-200"),
        capture!("26.9.3", "25-sync-sanityCheck2-200"),
        capture!("26.9.3", "26-sync-finish-200"),
    ];
    for (name, request, answer) in history {
        if name == "07-sync-start-200" {
            // The official server counts a download as a change.
            server.assert_syncs();
        }
        let (status, theirs) = recorded(answer);
        let ours = replay(&server, request);
        assert_eq!(ours.status, status, "{name}");
        if status != 200 {
            continue;
        }
        let ours = ours.unpacked();
        if name.contains("upload") {
            assert_eq!(ours, b"OK");
        } else if name.contains("download") {
            assert_eq!(ours.len() % 4096, 0);
            assert_eq!(&ours[..16], &theirs[..16]);
        } else {
            assert_eq!(comparable(name, &ours), comparable(name, &theirs), "{name}");
        }
    }
    server.assert_syncs();
}

/// What must be equal in two answers: all of it but clocks and the order of rows.
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
        "03-sync-meta-200" => without(&mut value, &["ts", "scm", "mod"]),
        _ if name.contains("meta") => without(&mut value, &["ts"]),
        _ if name.contains("finish") => value = value.is_u64().into(),
        _ => without(&mut value, &["lastUnburied"]),
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
    // The recording lacks the start of these two.
    replay(&server, capture!("26.9.3", "41-sync-abort-200").1).ok();
    replay(&server, capture!("26.9.3", "43-sync-abort-200").1).ok();
    replay(&server, include_bytes!("../vectors/captures-26.9.3/40-sync-applyChunk-500.req")).refused(409);
    replay(&server, capture!("26.9.3", "42-sync-sanityCheck2-200").1).refused(409);
}

#[test]
fn constructed_requests_get_the_official_status() {
    let server = TestServer::start();
    let requests: [Capture; 8] = [
        capture!("constructed", "20-v11-meta-content-length"),
        capture!("constructed", "21-v11-bad-key"),
        capture!("constructed", "22-v11-header-v12"),
        capture!("constructed", "23-v11-meta-v12"),
        capture!("constructed", "24-v11-chunk-without-start"),
        capture!("constructed", "25-v11-start-no-session"),
        capture!("constructed", "26-v11-upload-garbage"),
        capture!("constructed", "29-health"),
    ];
    for (name, request, answer) in requests {
        let theirs = Wire::of(answer.to_vec()).reply();
        let ours = replay(&server, request);
        assert_eq!(ours.status, theirs.status, "{name}");
        if name.contains("upload") {
            assert_ne!(ours.unpacked(), b"OK");
            assert_ne!(theirs.unpacked(), b"OK");
        }
    }
}
