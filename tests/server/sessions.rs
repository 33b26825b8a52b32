//! Sessions from `start` to `finish`, and every way in which they can end before.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use ankipi::limits_and_timeouts::MANY_ROWS_CACHE_KIB;
use serde_json::{Value, json};

use crate::client::{Device, Framed, STEPS, SlowDownload, Wire, pack};
use crate::harness::{OTHER_KEY, TestServer, collection, open, rows, run_to_end};

/// The notetype "Basic" of the rich collection: two fields, one template.
pub const BASIC: i64 = 1_795_428_020_052;

/// The row of a note of that notetype, modified then.
pub fn note(id: i64, modified: i64, fields: &str) -> Value {
    json!([id, format!("guid{id}"), BASIC, modified, 1, "", fields, "", "", 0, ""])
}

/// The row of a new card of a note with the same id, modified then.
pub fn card(id: i64, modified: i64) -> Value {
    json!([id, id, 1, 0, modified, 1, 0, 0, id, 0, 0, 0, 0, 0, 0, 0, 0, ""])
}

/// A chunk of notes.
pub fn notes(notes: &[Value]) -> String {
    json!({ "done": true, "notes": notes }).to_string()
}

/// Whether a note is in the committed state.
fn has_note(server: &TestServer, id: i64) -> bool {
    server.rows(&format!("SELECT count(*) FROM notes WHERE id = {id}")) == ["1"]
}

fn server() -> TestServer {
    TestServer::holding(&collection(""), &[])
}

/// With many rows the server begins anew with another journal, and applies what came before once more.
#[test]
fn what_came_before_many_rows_is_kept() {
    for is_read in [false, true] {
        let server = TestServer::holding(
            &collection(
                "INSERT INTO notes VALUES (6, 'g6', 1795428020052, 1, 0, '', 'x', '', 0, 0, ''), (7, 'g7', 1795428020052, 1, 0, '', 'x', '', 0, 0, '')",
            ),
            &[],
        );
        let desk = server.device();
        let download = is_read.then(|| SlowDownload::begin(&server.device()));
        for sync in 0..2 {
            let usn = desk.meta()["usn"].as_i64().unwrap();
            let start = json!({ "minUsn": usn, "lnewer": true, "graves": { "cards": [], "notes": [6], "decks": [] } });
            desk.call("start", &start.to_string()).ok();
            desk.apply_graves(r#"{"cards":[5],"notes":["7"],"decks":[]}"#).ok();
            desk.apply_changes(&format!(
                r#"{{"models":[],"decks":[[],[]],"tags":["new{sync}"],"conf":{{"a":1.50}},"crt":7}}"#
            ))
            .ok();
            let many: Vec<_> = (100..350).map(|id| note(id, 9 + sync, "front\u{1f}back")).collect();
            desk.apply_chunk(&json!({ "done": false, "notes": many }).to_string()).ok();
            desk.apply_chunk(&notes(&[note(400, 9 + sync, "front\u{1f}back")])).ok();
            assert!(is_read || server.file("collection.anki2-journal").exists());
            desk.finish();
            assert_eq!(server.rows("SELECT count(*), min(id) FROM notes WHERE id < 1000"), ["251|100"]);
            assert_eq!(server.rows("SELECT oid, type FROM graves ORDER BY oid"), ["5|0", "6|1", "7|1"]);
            assert_eq!(server.rows(&format!("SELECT count(*) FROM tags WHERE tag = 'new{sync}'")), ["1"]);
            assert_eq!(server.rows("SELECT crt, usn FROM col"), [format!("7|{}", usn + 1)]);
        }
        drop(download);
        server.assert_syncs();
    }
}

#[test]
fn what_one_device_sends_another_gets() {
    let server = server();
    let (desk, phone) = (server.device(), server.device());
    let usn = desk.begin();
    desk.apply_graves(r#"{"cards":[5],"notes":["6"],"decks":[]}"#).ok();
    desk.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":["new"],"conf":{"a":1.50},"crt":7}"#).ok();
    assert_eq!(desk.chunks().len(), 1);
    let chunk = json!({ "notes": [note(77, 9, "front\u{1f}back")], "cards": [card(77, 9)], "revlog": [[3, 77, 1, 2, 4, 5, 6, 7, 1]] });
    assert_eq!(desk.apply_chunk(&chunk.to_string()).ok(), Value::Null);
    assert!(!has_note(&server, 77), "seen before it is committed");
    desk.finish();
    assert!(has_note(&server, 77));
    assert_eq!(phone.meta()["usn"], usn + 1);
    let graves = phone.start(usn, false).ok();
    assert_eq!(graves, json!({ "cards": [5], "notes": [6], "decks": [] }));
    let changes = phone.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":[]}"#).ok();
    assert_eq!(
        changes,
        json!({ "models": [], "decks": [[], []], "tags": ["new"], "conf": { "a": 1.50, "lastUnburied": changes["conf"]["lastUnburied"] }, "crt": 7 })
    );
    let chunks = phone.chunks();
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0]["notes"][0][6], "front\u{1f}back");
    assert_eq!(chunks[0]["cards"][0], card(77, 9));
    assert_eq!(chunks[0]["revlog"], json!([[3, 77, usn, 2, 4, 5, 6, 7, 1]]));
    phone.finish();
    // The answer to finish is a bare number.
    let last = server.device();
    last.begin();
    let stamp = String::from_utf8(last.call("finish", "{}").unpacked()).unwrap();
    assert!(stamp.bytes().all(|byte| byte.is_ascii_digit()), "{stamp}");
    assert_eq!(last.meta()["mod"].to_string(), stamp);
}

#[test]
fn steps_need_the_key_of_the_open_session() {
    let server = server();
    let before = server.files();
    let bodies = [
        ("applyGraves", r#"{"chunk":{"cards":[],"notes":[],"decks":[]}}"#),
        ("applyChanges", r#"{"changes":{"models":[],"decks":[[],[]],"tags":[]}}"#),
        ("chunk", "{}"),
        ("applyChunk", r#"{"chunk":{}}"#),
        ("sanityCheck2", r#"{"client":[[0,0,0],1,2,3,4,5,6,7]}"#),
        ("finish", "{}"),
    ];
    assert_eq!(bodies.map(|(method, _)| method), STEPS);
    let (device, stranger) = (server.device(), server.device());
    let nameless = Device { skey: String::new(), ..server.device() };
    for is_open in [false, true] {
        if is_open {
            device.begin();
        }
        nameless.start(1, true).refused(400);
        for (method, body) in bodies {
            stranger.call(method, body).refused(409);
            nameless.call(method, body).refused(400);
            server.wait_for_refusal(&format!("/sync/{method}"), 409);
        }
        assert_eq!(stranger.call("abort", "{}").ok(), Value::Null);
        assert_eq!(nameless.call("abort", "{}").ok(), Value::Null);
    }
    device.call("chunk", "{}").ok();
    assert_eq!(device.call("abort", "{}").ok(), Value::Null);
    device.call("chunk", "{}").refused(409);
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn the_newest_start_wins() {
    let server = server();
    let (first, second) = (server.device(), server.device());
    first.begin();
    first.apply_chunk(&notes(&[note(1, 9, "first\u{1f}")])).ok();
    second.begin();
    first.apply_chunk(&notes(&[note(2, 9, "first\u{1f}")])).refused(409);
    first.call("abort", "{}").ok();
    first.call("finish", "{}").refused(409);
    second.apply_chunk(&notes(&[note(3, 9, "second\u{1f}")])).ok();
    // Also of its own session.
    second.begin();
    second.apply_chunk(&notes(&[note(4, 9, "second\u{1f}")])).ok();
    second.finish();
    assert_eq!([1, 2, 3, 4].map(|id| has_note(&server, id)), [false, false, false, true]);
    server.assert_syncs();
}

#[test]
fn a_malformed_start_takes_no_session() {
    let server = server();
    let (device, stranger) = (server.device(), server.device());
    device.begin();
    for graves in ["[]", "{}", r#"{"cards":["x"],"notes":[],"decks":[]}"#] {
        let body = format!(r#"{{"minUsn":1,"lnewer":true,"graves":{graves}}}"#);
        stranger.call("start", &body).refused(400);
    }
    device.apply_chunk(&notes(&[note(1, 9, "a\u{1f}b")])).ok();
    device.finish();
    assert!(has_note(&server, 1));
}

#[test]
fn a_request_that_does_not_parse_undoes_itself_and_nothing_else() {
    let server = server();
    let device = server.device();
    device.begin();
    device.apply_graves(r#"{"cards":[],"notes":[1795428020163],"decks":[]}"#).ok();
    device.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":["kept"]}"#).ok();
    device.apply_chunk(&notes(&[note(1, 9, "kept\u{1f}")])).ok();
    let (good, bad) = (note(2, 9, "lost\u{1f}"), json!([3]));
    device.apply_chunk(&notes(&[good, bad])).refused(400);
    device.apply_changes(r#"{"tags":["lost"],"conf":{"lost":1},"models":[],"decks":[[]]}"#).refused(400);
    device.apply_graves(r#"{"notes":[1795428020164],"cards":[],"decks":["x"]}"#).refused(400);
    device
        .call("applyChunk", &format!(r#"{{"chunk":{}}} x"#, notes(&[note(4, 9, "lost\u{1f}")])))
        .refused(400);
    device.apply_chunk(&notes(&[note(5, 9, "kept\u{1f}")])).ok();
    device.finish();
    assert_eq!(server.rows("SELECT id FROM notes WHERE id < 10"), ["1", "5"]);
    assert_eq!(server.rows("SELECT tag FROM tags WHERE tag IN ('kept', 'lost')"), ["kept"]);
    assert_eq!(server.rows("SELECT oid FROM graves"), ["1795428020163"]);
    assert_eq!(server.rows("SELECT count(*) FROM config WHERE KEY = 'lost'"), ["0"]);
    assert_eq!(server.rows("SELECT count(*) > 10 FROM config"), ["1"]);
    server.assert_syncs();
}

#[test]
fn an_operation_that_fails_ends_the_session() {
    let server = server();
    let before = server.files();
    let row = |id: i64, notetype: i64, fields: &str| {
        let mut row = note(id, 9, fields);
        row[2] = notetype.into();
        ("applyChunk", json!({ "chunk": { "notes": [note(7, 9, "a\u{1f}b"), row] } }))
    };
    let changes = |key: &str, value: Value| {
        let mut changes = json!({ "models": [], "decks": [[], []], "tags": ["x"] });
        changes[key] = value;
        ("applyChanges", json!({ "changes": changes }))
    };
    let objects: Value = serde_json::from_slice(include_bytes!("../vectors/rich18.objects.json")).unwrap();
    let of = |list: &str, id: i64| {
        let all = objects[list].as_array().unwrap();
        all.iter().find(|object| object["id"] == id).unwrap().clone()
    };
    let basic = of("notetypes", BASIC);
    let with = |object: &Value, key: &str, value: Value| {
        let mut object = object.clone();
        object["mod"] = 1_900_000_000.into();
        object[key] = value;
        object
    };
    let mut three_fields = basic["flds"].clone();
    three_fields.as_array_mut().unwrap().push(basic["flds"][0].clone());
    let cases = [
        (row(8, 12345, "a\u{1f}b"), "unknown notetype 12345"),
        (row(8, BASIC, "a"), "note 8 has 1 field, its notetype 2"),
        (row(8, BASIC, "a\u{1f}b\u{1f}c"), "note 8 has 3 fields, its notetype 2"),
        (changes("models", json!([with(&basic, "flds", three_fields)])), "another number of fields"),
        (changes("models", json!([with(&basic, "tmpls", json!([]))])), "notetype"),
        (changes("models", json!([with(&basic, "id", 0.into())])), "id 0"),
        (changes("decks", json!([[with(&of("decks", 1), "id", 0.into())], []])), "id 0"),
        (changes("decks", json!([[], [with(&of("deck_config", 1), "id", 0.into())]])), "id 0"),
        (changes("models", json!([null])), "notetype"),
        (changes("models", json!([{}])), "notetype"),
        (changes("decks", json!([[{}], []])), "deck"),
        (changes("decks", json!([[], [[]]])), "deck options"),
    ];
    for ((method, body), reason) in cases {
        let device = server.device();
        device.begin();
        device.apply_chunk(&notes(&[note(6, 9, "earlier\u{1f}")])).ok();
        device.call(method, &body.to_string()).refused(400);
        let line = server.wait_for_refusal(&format!("/sync/{method}"), 400);
        assert!(line.contains(reason), "{reason}: {line}");
        device.call("chunk", "{}").refused(409);
        device.call("finish", "{}").refused(409);
    }
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn a_bad_sanity_check_ends_the_session() {
    let server = server();
    let before = server.files();
    for client in [r#"[[0,0,0],999,7,5,0,7,8,3]"#, r#""deck had usn = -1""#] {
        let device = server.device();
        device.begin();
        device.apply_chunk(&notes(&[note(6, 9, "lost\u{1f}")])).ok();
        assert_eq!(device.call("sanityCheck2", &format!(r#"{{"client":{client}}}"#)).ok()["status"], "bad");
        server.wait_for_log("sanity check failed");
        device.call("finish", "{}").refused(409);
        device.call("abort", "{}").ok();
    }
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn a_silent_session_expires() {
    let server = TestServer::holding(&collection(""), &[("SYNC_SESSION_SECS", "1")]);
    let before = server.files();
    let device = server.device();
    device.begin();
    device.apply_chunk(&notes(&[note(6, 9, "lost\u{1f}")])).ok();
    server.wait_for_log("test: rolled back a sync that was silent");
    device.call("finish", "{}").refused(409);
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn meta_shows_the_committed_state_and_does_not_end_a_session() {
    let server = server();
    let (device, other) = (server.device(), server.device());
    let state = |device: &Device| {
        let meta = device.meta();
        ["mod", "scm", "usn", "empty"].map(|key| meta[key].clone())
    };
    let before = state(&other);
    device.begin();
    device.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":[],"conf":{},"crt":1}"#).ok();
    let all: Vec<String> = server.rows("SELECT id FROM cards");
    device.apply_graves(&format!(r#"{{"cards":[{}],"notes":[],"decks":[]}}"#, all.join(","))).ok();
    assert_eq!(state(&other), before);
    assert_eq!(state(&device), before);
    device.finish();
    let after = state(&other);
    assert_eq!((&after[2], &after[3]), (&json!(2), &json!(true)));
}

#[test]
fn an_upload_ends_the_session_and_keeps_what_it_replaced() {
    let server = server();
    let (device, other) = (server.device(), server.device());
    device.begin();
    device.apply_chunk(&notes(&[note(6, 9, "lost\u{1f}")])).ok();
    assert_eq!(other.upload(&collection("UPDATE col SET mod = 5, scm = 4, usn = 9")), "OK");
    device.call("finish", "{}").refused(409);
    let meta = other.meta();
    assert_eq!((&meta["mod"], &meta["scm"], &meta["usn"]), (&json!(5), &json!(4), &json!(9)));
    assert!(server.file("backups/collection-00001.anki2").exists());
    assert!(!has_note(&server, 6));
    server.assert_syncs();
}

#[test]
fn an_upload_settles_rows_that_are_marked_as_pending() {
    let server = TestServer::start();
    assert_eq!(server.device().upload(include_bytes!("../vectors/rich18.anki2")), "OK");
    for table in ["notes", "cards", "revlog", "graves", "tags", "decks", "notetypes", "deck_config"] {
        assert_eq!(server.rows(&format!("SELECT count(*) FROM {table} WHERE usn = -1")), ["0"], "{table}");
    }
    server.assert_syncs();
}

#[test]
fn a_download_is_one_state_while_another_device_syncs() {
    // More than socket buffers hold.
    let large = collection(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO notes SELECT i, 'g' || i, 1795428020052, 1, 0, '', 'old' || char(31) || hex(randomblob(4000)), 'old', 1, 0, ''
         FROM n",
    );
    let server = TestServer::holding(&large, &[]);
    let (reader, device) = (server.device(), server.device());
    device.begin();
    let mut wire = Wire::open(server.address);
    wire.send(&reader.request("download", Framed::Chunked(&pack(b"{}"))));
    let mut reply = wire.head();
    assert_eq!(reply.header("anki-original-size"), Some(large.len().to_string().as_str()));
    reply.body = wire.chunk().unwrap();
    device.call("chunk", "{}").refused(409);
    // The reader has stopped; another session changes what it has not read.
    device.begin();
    for first in (1..=2000).step_by(250) {
        let changed: Vec<_> = (first..first + 250).map(|id| note(id, 9, "new\u{1f}")).collect();
        device.apply_chunk(&notes(&changed)).ok();
    }
    device.finish();
    assert_eq!(server.rows("SELECT count(*) FROM notes WHERE flds LIKE 'new%'"), ["2000"]);
    wire.body(&mut reply);
    let file = reply.unpacked();
    assert_eq!(file.len(), large.len());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("c.anki2"), file).unwrap();
    let db = open(&dir.path().join("c.anki2"));
    assert_eq!(rows(&db, "PRAGMA integrity_check"), ["ok"]);
    assert_eq!(rows(&db, "SELECT count(*), min(usn) FROM notes WHERE flds LIKE 'old%'"), ["2000|0"]);
    assert_eq!(rows(&db, "SELECT usn FROM col"), ["1"]);
    drop(db);
    let fresh = server.device().download();
    fs::write(dir.path().join("d.anki2"), fresh).unwrap();
    assert_eq!(rows(&open(&dir.path().join("d.anki2")), "SELECT usn FROM col"), ["2"]);
    server.assert_syncs();
}

/// Reviews are spread over the index of their cards, which is larger than the usual page cache here.
#[test]
fn one_sync_of_many_reviews_at_a_time_has_memory_for_their_pages() {
    let server = TestServer::holding(
        &collection(
            "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
             INSERT INTO revlog SELECT 1600000000000 + i, 1700000000000 + i * 7919 % 100000, 0, 3, 1, 1, 2500, 1000, 0 FROM n",
        ),
        &[],
    );
    let (device, other) = (server.device(), Device::new(server.address, OTHER_KEY));
    assert_eq!(other.upload(&collection("")), "OK");
    let mut next = 1_700_000_000_000_i64;
    let mut pages_written = || {
        device.begin();
        let before = server.bytes_written();
        for _ in 0..20 {
            let reviews: Vec<_> = (next..next + 250)
                .map(|id| [id, 1_700_000_000_000 + id * 6101 % 100_000, -1, 3, 1, 1, 2500, 1000, 0])
                .collect();
            next += 250;
            device.apply_chunk(&json!({ "revlog": reviews }).to_string()).ok();
        }
        device.finish();
        (server.bytes_written() - before) / 4096
    };
    let alone = pages_written();
    other.begin();
    let many: Vec<_> = (1..=250).map(|id| note(id, 9, "front\u{1f}")).collect();
    other.apply_chunk(&notes(&many)).ok();
    let beside_another = pages_written();
    other.finish();
    let after_it = pages_written();
    println!("pages written: {alone} alone, {beside_another} beside another such sync, {after_it} after it");
    // Each page of the index is written twice: as it was, to the journal, and as it is.
    assert!(alone < 2000 && after_it < 2000, "{alone}, {after_it}");
    assert!(beside_another > 3000, "both had that memory: {beside_another}");
    let arrived = format!("SELECT count(*) FROM revlog WHERE id BETWEEN 1700000000000 AND {}", next - 1);
    assert_eq!(server.rows(&arrived), ["15000"]);
    server.assert_syncs();
}

#[test]
fn nothing_of_an_open_session_survives_a_kill() {
    let server = server();
    let device = server.device();
    device.begin();
    let file_bytes = || server.file("collection.anki2").metadata().unwrap().len();
    let before = file_bytes();
    // More than the page cache holds.
    let long = "x".repeat(MANY_ROWS_CACHE_KIB as usize * 1024 * 3 / 2 / 250) + "\u{1f}";
    let many: Vec<_> = (1..=250).map(|id| note(id, 9, &long)).collect();
    device.apply_chunk(&notes(&many)).ok();
    assert!(file_bytes() > before, "nothing was written before the commit");
    let server = server.kill_and_restart();
    let device = Device { address: server.address, ..device };
    device.call("finish", "{}").refused(409);
    assert_eq!(device.meta()["usn"], 1);
    assert_eq!(server.rows("SELECT count(*) FROM notes WHERE id <= 250"), ["0"]);
    assert_eq!(server.rows("PRAGMA integrity_check"), ["ok"]);
    server.assert_syncs();
}

#[test]
fn a_finished_sync_survives_a_kill() {
    let server = server();
    let device = server.device();
    device.begin();
    device.apply_chunk(&notes(&[note(6, 9, "kept\u{1f}")])).ok();
    device.finish();
    let server = server.kill_and_restart();
    assert!(has_note(&server, 6));
    server.assert_syncs();
}

#[test]
fn sigterm_leaves_a_tidy_folder() {
    let mut server = server();
    let device = server.device();
    device.begin();
    device.apply_chunk(&notes(&[note(6, 9, "lost\u{1f}")])).ok();
    let status = server.stop();
    assert_eq!(status.code(), Some(0));
    let names: Vec<_> = server
        .files()
        .into_keys()
        .map(|path| path.strip_prefix(server.base.path()).unwrap().to_str().unwrap().to_owned())
        .collect();
    let expected = [
        ".ankipi",
        ".ankipi.accounts.lock",
        ".ankipi.lock",
        "other",
        "other/media",
        "test",
        "test/collection.anki2",
        "test/media",
    ];
    assert_eq!(names, expected);
    assert!(!has_note(&server, 6));
}

#[test]
fn a_second_server_on_the_folder_or_the_port_says_what_to_do() {
    let server = TestServer::start();
    let output = run_to_end(server.base.path(), &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("another ankipi is running on") && text.contains("--base DIR"), "{text}");
    let taken = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let base = tempfile::tempdir().unwrap();
    let output = run_to_end(base.path(), &[("SYNC_PORT", &port)]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("another program has this port; choose one with --port"), "{text}");
    server.assert_syncs();
}

#[test]
fn two_devices_that_race_leave_one_whole_sync_each() {
    let server = server();
    let racers: Vec<_> = (0..4i64)
        .map(|racer| {
            let device = server.device();
            thread::spawn(move || {
                let mut finished = 0;
                for round in 0..10 {
                    let usn = device.meta()["usn"].as_i64().unwrap();
                    device.start(usn, true).ok();
                    let id = 1000 * (racer + 1) + 2 * round;
                    let first = device.apply_chunk(&notes(&[note(id, 9, "a\u{1f}")])).status;
                    let second = device.apply_chunk(&notes(&[note(id + 1, 9, "b\u{1f}")])).status;
                    let last = device.call("finish", "{}").status;
                    assert!([first, second, last].iter().all(|status| [200, 409].contains(status)));
                    finished += i64::from(last == 200);
                }
                finished
            })
        })
        .collect();
    let finished: i64 = racers.into_iter().map(|racer| racer.join().unwrap()).sum();
    assert_eq!(server.device().meta()["usn"], 1 + finished);
    let whole = server.rows("SELECT count(*) FROM notes WHERE id BETWEEN 1000 AND 9999");
    assert_eq!(whole, [(2 * finished).to_string()], "half a sync was committed");
    server.assert_syncs();
}
