//! What clients before 2.1.57 send: forms in every order, odd JSON, zips of Java, and addresses of AnkiDroid.
//!
//! What they really sent is in replay.rs, and real ones are in tests/real.

use serde_json::json;

use crate::client::{Framed, Wire, chunk, pack, post, sync_header};
use crate::form::Generation::{DataFirst, KeyFirst};
use crate::form::{BOUNDARY, OldDevice, Parts, form, form_header, gzip, json, open_form, plain, request};
use crate::harness::{KEY, TestServer, collection, open_bytes, rows};
use crate::zip::{Entry, write_zip, zip_of};

const MIB: usize = 1 << 20;

#[test]
fn a_whole_sync_passes_whatever_the_order_of_fields() {
    for generation in [KeyFirst, DataFirst] {
        let server = TestServer::holding(&collection(""), &[]);
        let device = OldDevice::of(&server, generation);
        let login = gzip(br#"{"u":"test","p":"secret"}"#);
        let login: &Parts = match generation {
            KeyFirst => &[("c", b"1"), ("data", &login)],
            DataFirst => &[("data", &login), ("c", b"1")],
        };
        assert_eq!(plain(&device.send("/sync/hostKey", login)), format!(r#"{{"key":"{KEY}"}}"#));
        let counts = "SELECT (SELECT count(*) FROM cards), (SELECT count(*) FROM notes), (SELECT count(*) FROM revlog)";
        let before = server.rows(counts);
        let (note, card) =
            (server.rows("SELECT max(nid) FROM cards"), server.rows("SELECT max(id) FROM cards"));
        // Graves in `start`, as protocol 8 and AnkiDroid send them, with the ids of AnkiMobile.
        let start = format!(
            r#"{{"minUsn":1.0,"lnewer":true,"graves":{{"cards":["{}"],"notes":["{}"],"decks":[]}}}}"#,
            card[0], note[0]
        );
        assert_eq!(json(&device.call("start", &start)), json!({"cards": [], "decks": [], "notes": []}));
        assert_eq!(
            plain(&device.call("applyGraves", r#"{"chunk":{"notes":[],"cards":[],"decks":[]}}"#)),
            "null"
        );
        let changes =
            json(&device.call("applyChanges", r#"{"changes":{"models":[],"decks":[[],[]],"tags":[]}}"#));
        assert!(changes["models"].is_array());
        assert_eq!(plain(&device.call("chunk", "{}")), r#"{"done":true}"#);
        // Numbers as SQLite and Java write them. A finished list is empty or left out.
        let rows = r#"{"chunk":{"done":false,"notes":[],"cards":[],"revlog":[[1600000000000.0,1,"1",3,10.9,-60.0,2500.0,1e3,null]]}}"#;
        assert_eq!(plain(&device.call("applyChunk", rows)), "null");
        assert_eq!(plain(&device.call("applyChunk", r#"{"chunk":{"done":true}}"#)), "null");
        let sanity = sanity_of(&server, &before[0]);
        assert_eq!(json(&device.call("sanityCheck2", &sanity))["status"], "ok");
        let stamp = device.call("finish", "{}");
        assert!(plain(&stamp).bytes().all(|byte| byte.is_ascii_digit()), "{:?}", stamp.text());
        let meta = device.meta(10);
        assert_eq!((&meta["mod"], &meta["usn"]), (&json(&stamp), &json!(2)));
        let review = server.rows("SELECT * FROM revlog WHERE id = 1600000000000");
        assert_eq!(review, ["1600000000000|1|1|3|10|-60|2500|1000|0"]);
        assert!(server.rows(&format!("SELECT id FROM cards WHERE id = {}", card[0])).is_empty());
        server.wait_for_log("for ankidroid,2.15.6,android:11:Pixel, protocol 10");
        assert!(!server.log().contains(KEY), "the log tells the key");
    }
}

/// The request of a device that counts one card, one note less and one review more than these; as floats.
fn sanity_of(server: &TestServer, before: &str) -> String {
    let counts: Vec<i64> = before.split('|').map(|count| count.parse().unwrap()).collect();
    let others = server.rows(
        "SELECT (SELECT count(*) FROM notetypes) || '.0,' || (SELECT count(*) FROM decks) || ',' || count(*) FROM deck_config",
    );
    format!(
        r#"{{"client":[[0,0,0],{}.0,{},{},7,{}],"full":true}}"#,
        counts[0] - 1,
        counts[1] - 1,
        counts[2] + 1,
        others[0]
    )
}

#[test]
fn a_device_whose_own_check_failed_is_told_so_and_its_sync_undone() {
    let server = TestServer::holding(&collection(""), &[]);
    let (before, device) = (server.files(), OldDevice::of(&server, KeyFirst));
    device.call("start", r#"{"minUsn":1,"lnewer":true}"#);
    let bad = json(&device.call("sanityCheck2", r#"{"client":"deck had usn = -1"}"#));
    assert_eq!(bad["status"], "bad");
    device.call("finish", "{}").refused(409);
    // AnkiDroid aborts sessions that have ended, and 2.1 does so with any key.
    assert_eq!(plain(&device.call("abort", "{}")), "null");
    assert_eq!(plain(&device.send("/sync/abort", &[("k", KEY.as_bytes()), ("c", b"1")])), "null");
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn a_collection_goes_up_and_comes_down_in_every_form() {
    let eleven = include_bytes!("../vectors/rich11.anki2");
    for generation in [KeyFirst, DataFirst] {
        let server = TestServer::start();
        let device = OldDevice::of(&server, generation);
        assert_eq!(plain(&device.send_packed("upload", &gzip(eleven))), "OK");
        let notes = "SELECT id, guid, mid, mod, flds FROM notes ORDER BY id";
        assert_eq!(server.rows(notes), rows(&open_bytes(eleven), notes));
        assert_eq!(server.rows("SELECT ver FROM col"), ["18"]);
        let key = ("k", KEY.as_bytes());
        let whole: [&[u8]; 4] = [
            &form(&[key, ("v", b"ankidroid,2.15.6"), ("c", b"1")]),
            &form(&[("data", &gzip(b"{}")), ("c", b"1"), key, ("s", b"`9SJQ;e")]),
            &form(&[("data", b""), ("c", b"1"), key]),
            // Anki 2.0 leaves out the end of the form.
            &open_form(&[key, ("c", b"1"), ("v", b"ankidesktop,2.0.52")]),
        ];
        for body in whole {
            let mut wire = Wire::open(server.address);
            wire.send(&request("/sync/download", body));
            let reply = wire.reply();
            assert_eq!(reply.status, 200);
            assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
            assert_eq!(&reply.body[18..20], [1, 1], "old clients do not look for side files");
            let db = open_bytes(&reply.body);
            assert_eq!(rows(&db, "SELECT ver FROM col"), ["11"]);
            assert_eq!(rows(&db, notes), rows(&open_bytes(eleven), notes));
        }
        // Without the field `c`, the data are not compressed.
        let raw = device.send("/sync/upload", &[key, ("data", eleven)]);
        assert_eq!(plain(&raw), "OK");
    }
}

#[test]
fn a_large_collection_passes_in_flat_memory() {
    let large = collection(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO notes SELECT i, 'guid' || i, mid, mod, 0, '', flds || hex(randomblob(5000)), sfld, csum, 0, ''
           FROM n, (SELECT * FROM notes LIMIT 1)",
    );
    let packed = gzip(&large);
    for generation in [KeyFirst, DataFirst] {
        let server = TestServer::start();
        let device = OldDevice::of(&server, generation);
        // One warm-up request: SQLite and the heap allocate what they always need.
        device.send_packed("upload", &gzip(&collection("")));
        let peak = server.memory_kib("VmHWM:");
        assert_eq!(plain(&device.send_packed("upload", &packed)), "OK");
        assert_eq!(device.send_packed("download", b"").status, 200);
        let growth = server.memory_kib("VmHWM:") - peak;
        println!("{generation:?}: {} bytes in {}, VmHWM grew by {growth} KiB", large.len(), packed.len());
        assert!(large.len() > 30_000_000 && growth < 3 * 1024, "{growth} KiB");
    }
}

#[test]
fn media_pass_in_every_form_and_with_the_zips_of_java() {
    for generation in [KeyFirst, DataFirst] {
        let server = TestServer::start();
        let device = OldDevice::of(&server, generation);
        let text = b"some text ".repeat(20_000);
        let java = write_zip(&[
            Entry::described("0", &text),
            Entry::described("2", b"two"),
            Entry::described("_meta", r#"[["a.txt","0"],["gone",""],["b.txt","2"]]"#.as_bytes()),
        ]);
        assert_eq!(plain(&device.media("/msync/uploadChanges", &java)), r#"{"data":[3,2],"err":""}"#);
        let changes = json(&device.media("/msync/mediaChanges", br#"{"lastUsn":0.0}"#));
        assert_eq!((&changes["data"][0][0], &changes["data"][1][1]), (&json!("a.txt"), &json!(2)));
        let gone = zip_of(&[("b.txt", None)]);
        assert_eq!(plain(&device.media("/msync/uploadChanges", &gone)), r#"{"data":[1,3],"err":""}"#);
        let ok = r#"{"data":"OK","err":""}"#;
        assert_eq!(plain(&device.media("/msync/mediaSanity", br#"{"local":1.0}"#)), ok);
        let files = device.media("/msync/downloadFiles", br#"{"files":["a.txt"]}"#);
        assert_eq!(files.status, 200);
        assert_eq!(files.header("content-length"), Some(files.body.len().to_string().as_str()));
        assert!(crate::zip::read_zip(&files.body)["0"] == text);
    }
}

#[test]
fn media_sync_begins_by_get_and_post_at_every_address_that_people_type() {
    let server = TestServer::with(&[("SYNC_BASE_PATH", "/anki")]);
    let begun = format!(r#"{{"data":{{"usn":0,"sk":"{KEY}"}},"err":""}}"#);
    let device = OldDevice::of(&server, KeyFirst);
    for path in [
        "/msync/begin",
        "/msync//begin",
        "/msync/begin/",
        "/begin",
        "//begin",
        "/anki/msync/begin",
        "/anki/msync//begin",
        "/anki/begin",
    ] {
        let parts: [&Parts; 3] = [
            &[("k", KEY.as_bytes()), ("v", b"ankidroid,2.15.6"), ("c", b"1"), ("data", &gzip(b"{}"))],
            &[("c", b"1"), ("data", &gzip(b"{}")), ("v", b"ankidesktop,2.0.52"), ("k", KEY.as_bytes())],
            &[("k", KEY.as_bytes())],
        ];
        for parts in parts {
            assert_eq!(plain(&device.send(path, parts)), begun, "{path}");
        }
        let mut wire = Wire::open(server.address);
        for query in [
            format!("k={KEY}&v=anki%2C2.1.25%2Clinux"),
            format!("v=anki%2C2.1.44+%28b2b3275f%29%2Clinux&k={KEY}&x"),
            format!("k={}%{:x}&v=", &KEY[..39], KEY.as_bytes()[39]),
        ] {
            wire.send(format!("GET {path}?{query} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
            assert_eq!(plain(&wire.reply()), begun, "{path}?{query}");
        }
    }
    for path in ["/mediaSanity", "/anki/msync/mediaSanity"] {
        assert_eq!(plain(&device.media(path, br#"{"local":0}"#)), r#"{"data":"OK","err":""}"#);
    }
    server.wait_for_log(" test anki,2.1.44?(b2b3275f),linux /msync/begin 200 ");
    assert!(!server.log().contains(KEY), "the log tells the key");
    for (line, status, allow) in [
        (format!("HEAD /msync/begin?k={KEY}&v=x"), 405, Some("GET, POST")),
        (format!("PUT /begin?k={KEY}"), 405, Some("GET, POST")),
        (format!("GET /msync/mediaChanges?k={KEY}"), 405, Some("POST")),
        (format!("GET /sync/meta?k={KEY}"), 405, Some("POST")),
        ("GET /msync/begin".to_owned(), 403, None),
        ("GET /msync/begin?k=unknown&v=x".to_owned(), 403, None),
        ("GET /other/begin".to_owned(), 404, None),
    ] {
        let mut wire = Wire::open(server.address);
        wire.send(format!("{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").as_bytes());
        let reply = wire.head();
        assert_eq!((reply.status, reply.header("allow")), (status, allow), "{line}");
    }
}

#[test]
fn meta_refuses_what_an_old_client_would_damage() {
    let server = TestServer::holding(&collection("DELETE FROM config WHERE key = 'creationOffset'"), &[]);
    let device = OldDevice::of(&server, KeyFirst);
    for version in [0, 7, 12] {
        device.call("meta", &format!(r#"{{"v":{version},"cv":"x"}}"#)).refused(501);
    }
    for (key, value, versions) in [
        ("schedVer", "1", [true, true, true, true]),
        ("schedVer", "2", [false, true, true, true]),
        ("creationOffset", "-60", [false, false, true, true]),
    ] {
        // As a client would: its config replaces the server's.
        json(&device.call("start", r#"{"minUsn":0,"lnewer":false}"#));
        let mut config = json(
            &device.call("applyChanges", r#"{"changes":{"models":[],"decks":[[],[]],"tags":[]}}"#),
        )["conf"]
            .take();
        config[key] = value.parse::<i64>().unwrap().into();
        device.call("start", r#"{"minUsn":0,"lnewer":true}"#);
        let changes = json!({"changes": {"models": [], "decks": [[], []], "tags": [], "conf": config}});
        plain(&device.call("applyChanges", &changes.to_string()));
        plain(&device.call("finish", "{}"));
        for (version, goes_on) in (8..).zip(versions) {
            let meta = device.meta(version);
            assert_eq!(meta["cont"], goes_on, "{key} {value} for {version}");
            assert_eq!(meta["msg"].as_str().unwrap().is_empty(), goes_on);
            assert_eq!(meta["hostNum"], 0);
        }
    }
}

#[test]
fn malformed_forms_are_refused_with_a_line_and_change_nothing() {
    let server = TestServer::holding(&collection(""), &[]);
    let before = server.files();
    let (key, skey, c) = (("k", KEY.as_bytes()), ("s", &b"x"[..]), ("c", &b"1"[..]));
    let packed = gzip(br#"{"chunk":{"done":true}}"#);
    let long = vec![b'x'; 5000];
    let whole = form(&[key, skey, c, ("data", &packed)]);
    let close = format!("--{BOUNDARY}--");
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("nothing", Vec::new(), 400, "does not begin with its boundary"),
        ("JSON", b"{}".to_vec(), 400, "does not begin with its boundary"),
        ("zstd", pack(b"{}"), 400, "does not begin with its boundary"),
        ("another boundary", form(&[])[1..].to_vec(), 400, "does not begin"),
        ("an end and no more", close.clone().into_bytes(), 403, "unknown host key"),
        ("cut within the data", whole[..whole.len() - close.len() - 5].to_vec(), 400, "cut off"),
        ("no end after the data", open_form(&[key, skey, c, ("data", &packed)]), 400, "cut off"),
        ("cut within a header", whole[..40].to_vec(), 400, "cut off"),
        (
            "cut within a boundary",
            form(&[key, skey])[..form(&[key, skey]).len() - 9].to_vec(),
            400,
            "has lines",
        ),
        ("data twice", form(&[key, skey, c, ("data", &packed), ("data", &packed)]), 400, "data twice"),
        ("two keys", form(&[key, ("data", &packed), key]), 400, "a field twice"),
        ("two kinds of keys", form(&[key, ("sk", b"x"), ("data", &packed)]), 400, "a field twice"),
        ("a long key", form(&[("k", &long), ("data", &packed)]), 400, "too long"),
        ("a long name", form(&[(&"n".repeat(5000), b"")]), 400, "too long"),
        ("many parts", form(&[("x", &b""[..]); 40]), 400, "too many parts"),
        ("a key that is no text", form(&[("k", b"\xff"), ("data", &packed)]), 400, "not UTF-8"),
        ("a key with lines", form(&[("k", b"a\r\nb"), ("data", &packed)]), 400, "has lines"),
        ("a name twice as long", b"--Anki-sync-boundary-x\r\n\r\n".to_vec(), 400, "follows a boundary"),
        ("an unknown key", form(&[("k", b"unknown"), skey, c, ("data", &packed)]), 403, "unknown host key"),
        (
            "an unknown key after the data",
            form(&[("data", &packed), c, ("k", b"unknown"), skey]),
            403,
            "unknown",
        ),
        ("no key", form(&[skey, c, ("data", &packed)]), 403, "unknown host key"),
        ("no session key", form(&[key, c, ("data", &packed)]), 400, "without a session key"),
        (
            "an empty session key",
            form(&[key, ("s", b""), c, ("data", &packed)]),
            400,
            "without a session key",
        ),
        ("no session", form(&[key, skey, c, ("data", &packed)]), 409, "no open sync session"),
        ("raw JSON said to be gzip", form(&[key, skey, c, ("data", b"{}")]), 400, "it is not gzip"),
        ("gzip said to be raw", form(&[key, skey, ("c", b"0"), ("data", &packed)]), 400, "unexpected JSON"),
        ("gzip not said to be", form(&[key, skey, ("data", &packed)]), 400, "unexpected JSON"),
        ("cut gzip", form(&[key, skey, c, ("data", &packed[..packed.len() - 1])]), 400, "cut off"),
        ("two members", form(&[key, skey, c, ("data", &packed.repeat(2))]), 400, "follows the gzip data"),
        ("a flipped bit", form(&[key, skey, c, ("data", &flipped(&packed))]), 400, "checksum"),
        ("no data", form(&[key, skey, c]), 400, "unexpected JSON"),
    ];
    for path in ["/sync/applyChunk", "/sync/start"] {
        for (what, body, status, said) in &cases {
            if path.ends_with("start") && *status == 409 {
                continue;
            }
            for framed in [Framed::Length(body), Framed::Chunked(body)] {
                let mut wire = Wire::open(server.address);
                wire.send(&post(path, &form_header(), framed));
                assert_eq!(wire.reply().status, *status, "{what}");
                let line = server.wait_for_refusal(path, *status);
                assert!(line.contains(said), "{what}: {line}");
                assert!(line.len() < 500, "a client can fill the log's disk");
            }
        }
    }
    for (content_type, said) in [
        ("", "no anki-sync header, and no form"),
        ("Content-Type: application/octet-stream\r\n", "no form"),
        ("Content-Type: multipart/form-data\r\n", "no form"),
        ("Content-Type: multipart/form-data; boundary=\r\n", "no form"),
        (&format!("Content-Type: multipart/form-data; boundary={}\r\n", "b".repeat(71)), "no form"),
        ("Content-Type: multipart/form-data; boundary=other\r\n", "does not begin"),
    ] {
        let mut wire = Wire::open(server.address);
        wire.send(&post("/sync/applyChunk", content_type, Framed::Length(&whole)));
        let status = if said.ends_with("no form") { 422 } else { 400 };
        wire.reply().refused(status);
        let line = server.wait_for_refusal("/sync/applyChunk", status);
        assert!(line.contains(said), "{content_type}: {line}");
    }
    assert_eq!(server.files(), before);
    assert!(!server.log().contains(KEY), "the log tells the key");
    server.assert_syncs();
}

/// With a bit changed in the checksum.
fn flipped(packed: &[u8]) -> Vec<u8> {
    let mut flipped = packed.to_vec();
    let at = flipped.len() - 6;
    flipped[at] ^= 1;
    flipped
}

#[test]
fn an_unknown_key_is_refused_before_the_data_that_follow_it() {
    let server = TestServer::start();
    for path in ["/sync/upload", "/sync/applyChunk", "/msync/uploadChanges"] {
        let mut wire = Wire::open(server.address);
        let head = format!("POST {path} HTTP/1.1\r\n{}Transfer-Encoding: chunked\r\n\r\n", form_header());
        wire.send(head.as_bytes());
        let parts = form(&[("k", b"unknown"), ("c", b"1"), ("data", &[0; 80 * 1024])]);
        // Without an end: a server that waited for it would wait for ever.
        wire.send(&chunk(&parts[..70 * 1024]));
        wire.reply().refused(403);
        let line = server.wait_for_refusal(path, 403);
        assert!(line.contains("unknown host key"), "{line}");
    }
}

#[test]
fn limits_hold_for_forms_and_the_log_names_the_variable() {
    let server = TestServer::holding(&collection(""), &[("MAX_SYNC_PAYLOAD_MEGS", "1")]);
    let before = server.files();
    let peak = server.memory_kib("VmHWM:");
    let large: Vec<u8> =
        (0..(MIB + MIB / 16) as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let blown = gzip(&vec![b' '; 3 * MIB + 1]);
    let (mut key, unknown) = (("k", KEY.as_bytes()), ("k", &b"unknown"[..]));
    let c = ("c", &b"1"[..]);
    for path in ["/sync/upload", "/sync/applyChunk", "/sync/start", "/msync/uploadChanges"] {
        let is_media = path.starts_with("/msync");
        if is_media {
            key.0 = "sk";
        }
        let too_large = if is_media { large.repeat(5) } else { large.clone() };
        let skey = ("s", &b"x"[..]);
        for (data, c, what) in [
            (&too_large, ("c", &b"0"[..]), "as sent is over"),
            (&blown, c, "unpacked is over the limit of 3145728 bytes"),
        ] {
            let data = ("data", &data[..]);
            for parts in [[key, skey, c, data], [data, c, key, skey]] {
                for framed in [Framed::Chunked(&form(&parts)), Framed::Length(&form(&parts))] {
                    let mut wire = Wire::open(server.address);
                    wire.send(&post(path, &form_header(), framed));
                    wire.reply().refused(413);
                    let line = server.wait_for_refusal(path, 413);
                    assert!(
                        line.contains(what) && line.contains("; MAX_SYNC_PAYLOAD_MEGS raises it"),
                        "{line}"
                    );
                }
            }
        }
        // Bodies without a valid key are not decompressed.
        let parts = [("data", &blown[..]), c, unknown, skey];
        let mut wire = Wire::open(server.address);
        wire.send(&request(path, &form(&parts)));
        wire.reply().refused(403);
        server.wait_for_refusal(path, 403);
    }
    for path in ["/sync/hostKey", "/sync/meta", "/msync/mediaChanges"] {
        let data = ("data", &gzip(&vec![b' '; 70_000])[..]);
        OldDevice::of(&server, KeyFirst).send(path, &[("k", KEY.as_bytes()), c, data]).refused(413);
        let line = server.wait_for_refusal(path, 413);
        assert!(line.contains("unpacked is over the limit of 65536 bytes"), "{line}");
    }
    let growth = server.memory_kib("VmHWM:") - peak;
    println!("forms over the limit: VmHWM grew by {growth} KiB");
    assert!(growth < 6 * 1024, "{growth} KiB");
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn forms_and_headers_share_a_connection() {
    let server = TestServer::holding(&collection(""), &[]);
    let mut wire = Wire::open(server.address);
    let meta = gzip(br#"{"v":10,"cv":"x"}"#);
    let old = request("/sync/meta", &form(&[("data", &meta), ("c", b"1"), ("k", KEY.as_bytes())]));
    let new = post("/sync/meta", &sync_header(KEY, "s"), Framed::Chunked(&pack(br#"{"v":11,"cv":"x"}"#)));
    for _ in 0..3 {
        wire.send(&old);
        assert_eq!(json(&wire.reply())["usn"], 1);
        wire.send(&new);
        assert_eq!(wire.reply().ok()["usn"], 1);
        // A refusal whose body was read keeps the connection, too.
        wire.send(&request(
            "/sync/applyChunk",
            &form(&[("data", &meta), ("c", b"1"), ("k", KEY.as_bytes())]),
        ));
        wire.reply().refused(400);
    }
}
