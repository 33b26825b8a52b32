//! Bad input at every endpoint: the right status, a log line, flat memory, untouched files, and the next sync succeeds.

use std::io::Write;

use crate::client::{Device, Framed, LARGE, METHODS, STEPS, Wire, chunk, noise, pack};
use crate::harness::{KEY, OTHER_KEY, TestServer, collection};

const MIB: usize = 1 << 20;

/// The unpacked content of a zstd frame: some bytes, then one byte repeated.
struct Bomb {
    fuse: String,
    filler: u8,
    bytes: usize,
}

impl Bomb {
    /// A run of 128 KiB takes four bytes, which is the most that the format packs: 1 GiB takes 32 KiB.
    const RUN: usize = 128 << 10;

    fn packed(&self) -> Vec<u8> {
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3];
        let mut block = |kind: u32, size: usize, last: bool, content: &[u8]| {
            let header = u32::from(last) | kind << 1 | (size as u32) << 3;
            frame.extend_from_slice(&header.to_le_bytes()[..3]);
            frame.extend_from_slice(content);
        };
        block(0, self.fuse.len(), false, self.fuse.as_bytes());
        let runs = self.bytes / Bomb::RUN;
        (1..=runs).for_each(|run| block(1, Bomb::RUN, run == runs, &[self.filler]));
        frame
    }
}

/// Starts of bodies that open something without closing it, so that a parser waits for more.
fn fuses(method: &str) -> Vec<(&'static str, u8)> {
    let mut fuses =
        vec![("", b' '), ("", b'['), (r#"{"x":"#, b'['), (r#"{"x":""#, b'a'), ("{\"", b'a'), ("", b'1')];
    fuses.extend(match method {
        "start" => {
            [(r#"{"minUsn":""#, b'a'), (r#"{"minUsn":1,"lnewer":true,"graves":{"cards":["#, b'1')].to_vec()
        }
        "applyGraves" => {
            vec![(r#"{"chunk":{"cards":[""#, b'1'), (r#"{"chunk":{""#, b'a'), (r#"{"chunk":"#, b'[')]
        }
        "applyChanges" => vec![
            (r#"{"changes":{"models":["#, b'['),
            (r#"{"changes":{"tags":[""#, b'a'),
            (r#"{"changes":{"conf":{""#, b'a'),
            (r#"{"changes":{"decks":[[{"name":""#, b'a'),
        ],
        "applyChunk" => vec![
            (r#"{"chunk":{"notes":[[1,""#, b'a'),
            (r#"{"chunk":{"cards":["#, b'['),
            (r#"{"chunk":{"revlog":""#, b'a'),
        ],
        _ => Vec::new(),
    });
    fuses
}

#[test]
fn bombs_go_off_in_flat_memory() {
    let server = TestServer::holding(&collection(""), &[("MAX_SYNC_PAYLOAD_MEGS", "16")]);
    let (before, device) = (server.files(), server.device());
    device.start(1, true).ok();
    device.call("abort", "{}").ok();
    let peak = server.memory_kib("VmHWM:");
    let mut bombs = 0;
    for method in METHODS {
        let path = format!("/sync/{method}");
        for (fuse, filler) in fuses(method) {
            // Over every limit, and just below the limit of this server.
            for bytes in [1 << 30, 47 * MIB] {
                let bomb = Bomb { fuse: fuse.to_owned(), filler, bytes }.packed();
                if STEPS.contains(&method) {
                    device.start(1, true).ok();
                }
                let reply = device.send_raw(method, Framed::Chunked(&bomb));
                bombs += 1;
                if method == "upload" && bytes == 47 * MIB {
                    assert!(reply.unpacked().starts_with(b"Our server refused this upload"));
                    continue;
                }
                assert!(matches!(reply.status, 400 | 413), "{method} {fuse}: {}", reply.status);
                let line = server.wait_for_refusal(&path, reply.status);
                assert!(line.len() < 1000, "a client can fill the log's disk");
                if bytes == 1 << 30 {
                    reply.refused(413);
                    assert!(line.contains("is over the limit of"), "{line}");
                    assert_eq!(line.contains("MAX_SYNC_PAYLOAD_MEGS"), LARGE.contains(&method), "{line}");
                }
                let growth = server.memory_kib("VmHWM:") - peak;
                assert!(growth < 24 * 1024, "{method} {fuse} of {bytes}: {growth} KiB");
            }
        }
    }
    device.call("abort", "{}").ok();
    let (after, now) = (server.memory_kib("VmHWM:"), server.memory_kib("RssAnon:"));
    println!("{bombs} bombs: VmHWM {peak} -> {after} KiB, RssAnon now {now} KiB");
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

/// Encoders of other programs: large windows, parallel ones that make several frames, seekable ones with skippable frames.
#[test]
fn whatever_is_zstd_is_taken_within_the_memory_of_one_client() {
    let server = TestServer::holding(&collection(""), &[]);
    let device = server.device();
    let encode = |window_log: u32, data: &[u8]| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let meta = br#"{"v":11,"cv":"x"}"#;
    let (start, end) = meta.split_at(5);
    let bodies = [
        encode(24, meta),
        encode(27, meta),
        [encode(20, start), encode(27, end)].concat(),
        [b"\x50\x2a\x4d\x18\x03\0\0\0abc", &encode(20, meta)[..], b"\x5f\x2a\x4d\x18\0\0\0\0"].concat(),
    ];
    for body in &bodies {
        device.send_raw("meta", Framed::Chunked(body)).ok();
    }
    // An upload in which the encoder used its large window.
    let noise = noise(9 << 20);
    let reply = device.send_raw("upload", Framed::Chunked(&encode(27, &[&noise[..], &noise].concat())));
    let text = String::from_utf8(reply.unpacked()).unwrap();
    assert!(text.contains("a window of 128 MiB") && text.starts_with("Our server refused"), "{text}");
    let line = server.wait_for_log("a window of 128 MiB");
    assert!(line.contains("/sync/upload 200"), "{line}");
    // Other methods send no text that users see.
    device.send_raw("start", Framed::Chunked(&encode(27, &[&noise[..], &noise].concat()))).refused(413);
    let peak = server.memory_kib("VmHWM:");
    println!("windows of 128 MiB: VmHWM {peak} KiB");
    assert!(peak < 40 * 1024, "{peak} KiB");
    server.assert_syncs();
}

/// Few of them are in memory at once, however many come and whoever sends them.
#[test]
fn windows_of_many_small_bodies_stay_within_the_memory_of_the_server() {
    let server = TestServer::holding(&collection(""), &[]);
    let peak = server.memory_kib("VmHWM:");
    let mut frame = Bomb { fuse: String::new(), filler: b' ', bytes: 4 * MIB }.packed();
    assert!(frame.len() < 1000);
    frame[5] = 13 << 3; // a window of 8 MiB
    std::thread::scope(|scope| {
        for n in 0..12 {
            let device = Device::new(server.address, [KEY, OTHER_KEY][n % 2]);
            let frame = &frame;
            scope.spawn(move || device.send_raw("applyChunk", Framed::Chunked(frame)).refused(400));
        }
    });
    let growth = server.memory_kib("VmHWM:") - peak;
    println!("12 windows of 8 MiB: VmHWM grew by {growth} KiB");
    assert!(growth < 14 * 1024, "{growth} KiB");
    server.assert_syncs();
}

#[test]
fn bodies_that_do_not_decode_are_400() {
    let server = TestServer::holding(&collection(""), &[]);
    let (before, device) = (server.files(), server.device());
    let peak = server.memory_kib("VmHWM:");
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(br#"{"_pad":null}"#).unwrap();
    let good = encoder.finish().unwrap();
    let mut wrong_checksum = good.clone();
    *wrong_checksum.last_mut().unwrap() ^= 1;
    let bodies: [(&str, Vec<u8>); 8] = [
        ("nothing", Vec::new()),
        ("raw JSON", b"{}".to_vec()),
        ("gzip", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]),
        ("a magic number", good[..4].to_vec()),
        ("a truncated frame", good[..good.len() - 5].to_vec()),
        ("garbage after the frame", [&good[..], b"\0"].concat()),
        ("a wrong checksum", wrong_checksum),
        ("a reserved block type", vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3, 0xff, 0xff, 0xff]),
    ];
    for method in METHODS {
        for (what, body) in &bodies {
            for framed in [Framed::Chunked(body), Framed::Length(body)] {
                let reply = device.send_raw(method, framed);
                assert_eq!(reply.status, 400, "{method}: {what}");
                let line = server.wait_for_refusal(&format!("/sync/{method}"), 400);
                assert!(line.contains("cannot be decoded"), "{line}");
            }
        }
    }
    let growth = server.memory_kib("VmHWM:") - peak;
    println!("undecodable bodies: VmHWM grew by {growth} KiB");
    assert!(growth < 4 * 1024, "{growth} KiB");
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn bodies_over_the_limit_are_413_and_the_log_names_the_variable() {
    let server = TestServer::holding(&collection(""), &[("MAX_SYNC_PAYLOAD_MEGS", "1")]);
    let (before, device) = (server.files(), server.device());
    let (large, small) = (pack(&noise(MIB + MIB / 16)), pack(&noise(65 * 1024)));
    let blown = pack(&vec![b' '; 3 * MIB + 1]);
    let peak = server.memory_kib("VmHWM:");
    for method in METHODS {
        let path = format!("/sync/{method}");
        let (sent, unpacked) = if LARGE.contains(&method) {
            ("as sent is over the limit of 1048576 bytes", "unpacked is over the limit of 3145728 bytes")
        } else {
            ("as sent is over the limit of 65536 bytes", "unpacked is over the limit of 65536 bytes")
        };
        let check = |what: &str| {
            let line = server.wait_for_refusal(&path, 413);
            assert!(line.contains(what), "{line}");
            assert_eq!(line.contains("MAX_SYNC_PAYLOAD_MEGS raises it"), LARGE.contains(&method), "{line}");
        };
        let over = if LARGE.contains(&method) { &large } else { &small };
        device.send_raw(method, Framed::Chunked(over)).refused(413);
        check(sent);
        device.send_raw(method, Framed::Chunked(&blown)).refused(413);
        check(unpacked);
        // A body is refused by its declared length, before it arrives.
        let mut wire = Wire::open(server.address);
        let request = device.request(method, Framed::Length(&[0; 2 * MIB]));
        wire.send(&request[..request.len() - 2 * MIB + 16 * 1024]);
        wire.reply().refused(413);
        check(sent);
    }
    let growth = server.memory_kib("VmHWM:") - peak;
    println!("bodies over the limit: VmHWM grew by {growth} KiB");
    assert!(growth < 6 * 1024, "{growth} KiB");
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn a_row_over_its_limit_is_413_and_the_session_survives_it() {
    let server = TestServer::holding(&collection(""), &[("MAX_SYNC_ROW_MEGS", "1")]);
    let (before, device) = (server.files(), server.device());
    let long = "x".repeat(MIB + 10_000);
    let cases = [
        (
            "applyChunk",
            format!(r#"{{"chunk":{{"notes":[[1,"g",1795428020052,1,1,"","{long}","","",0,""]]}}}}"#),
        ),
        ("applyChunk", format!(r#"{{"chunk":{{"cards":[[1,1,1,0,1,1,0,0,0,0,0,0,0,0,0,0,0,"{long}"]]}}}}"#)),
        (
            "applyChanges",
            format!(r#"{{"changes":{{"models":[{{"css":"{long}"}}],"decks":[[],[]],"tags":[]}}}}"#),
        ),
        (
            "applyChanges",
            format!(r#"{{"changes":{{"models":[],"decks":[[{{"desc":"{long}"}}],[]],"tags":[]}}}}"#),
        ),
        ("applyChanges", format!(r#"{{"changes":{{"models":[],"decks":[[],[]],"tags":["{long}"]}}}}"#)),
        (
            "applyChanges",
            format!(r#"{{"changes":{{"models":[],"decks":[[],[]],"tags":[],"conf":{{"k":"{long}"}}}}}}"#),
        ),
    ];
    device.begin();
    for (method, body) in cases {
        device.call(method, &body).refused(413);
        let line = server.wait_for_refusal(&format!("/sync/{method}"), 413);
        assert!(line.contains("over the limit of 1048576 bytes; MAX_SYNC_ROW_MEGS raises it"), "{line}");
        device.call("chunk", "{}").ok();
    }
    device.call("abort", "{}").ok();
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

/// Bodies that are not JSON, or JSON of another shape, for each method that reads its body.
fn wrong_shapes(method: &str) -> Vec<String> {
    let mut bodies: Vec<String> = ["", " ", "nonsense", "{", "{}}", "{\"a\":}", "{'a':1}", "\u{1}", "{} {}"]
        .map(str::to_owned)
        .to_vec();
    if ["chunk", "finish"].contains(&method) {
        return bodies.split_off(2);
    }
    let valid: &[&str] = match method {
        "hostKey" => &[r#"{"u":"","p":""}"#],
        "meta" => &[r#"{"v":11,"cv":""}"#],
        "start" => &[r#"{"minUsn":1,"lnewer":true,"graves":{"cards":[],"notes":[],"decks":[]}}"#],
        "applyGraves" => &[r#"{"chunk":{"cards":[],"notes":[],"decks":[]}}"#],
        "applyChanges" => &[r#"{"changes":{"models":[],"decks":[[],[]],"tags":[]}}"#],
        "applyChunk" => &[r#"{"chunk":{}}"#],
        _ => &[r#"{"client":[[0,0,0],1,2,3,4,5,6,7]}"#],
    };
    // Every value of a valid body, replaced by one of every other kind.
    for valid in valid {
        bodies.extend(["null", "[]", "1", "\"x\"", "{}", "[[[[[[]]]]]]"].map(str::to_owned));
        bodies.push(valid[..valid.len() - 1].to_owned());
        bodies.push("[".repeat(200) + &"]".repeat(200));
        for (name, _) in valid.match_indices("\":") {
            let (head, tail) = valid.split_at(name + 2);
            let end = value_end(tail);
            for other in
                ["{\"x\":[]}", "[{}]", "1.5e400", "\"\u{fffd}\"", "\"\\ud800\"", "[[1,2,3],4]", "true"]
            {
                bodies.push(format!("{head}{other}{}", &tail[end..]));
            }
        }
    }
    bodies.extend(
        match method {
            "applyChunk" => vec![
                r#"{"chunk":{"cards":[[1,2,3]]}}"#,
                r#"{"chunk":{"cards":[[1,2,3,0,4,5,2,1,6,7,0,1,0,1,0,0,0,"",1]]}}"#,
                r#"{"chunk":{"notes":[["x","A",2,3,4,"","f","","",0,""]]}}"#,
                r#"{"chunk":{"notes":[{}]}}"#,
                r#"{"chunk":{"notes":"x"}}"#,
                r#"{"chunk":{"revlog":[[1,2,3,4,5,6,7]]}}"#,
                r#"{"chunk":{"revlog":[null]}}"#,
            ],
            "applyChanges" => vec![
                r#"{"changes":{"models":[],"decks":[[],[]],"tags":[null]}}"#,
                r#"{"changes":{"models":[],"decks":[[],[]],"tags":[],"conf":[]}}"#,
                r#"{"changes":{"models":[],"decks":[[],[]],"tags":[],"crt":{}}}"#,
            ],
            "applyGraves" => vec![
                r#"{"chunk":{"cards":[1]}}"#,
                r#"{"chunk":{"cards":["x"],"notes":[],"decks":[]}}"#,
                r#"{"chunk":{"cards":[[]],"notes":[],"decks":[]}}"#,
            ],
            "sanityCheck2" => vec![r#"{"client":[[0,0,0],1]}"#],
            "start" => vec![
                r#"{"minUsn":99999999999,"lnewer":true}"#,
                r#"{"minUsn":1}"#,
                r#"{"minUsn":1,"lnewer":true,"graves":{"cards":[{}],"notes":[],"decks":[]}}"#,
            ],
            _ => Vec::new(),
        }
        .iter()
        .map(|body| (*body).to_owned()),
    );
    bodies
}

/// Where the JSON value at the start of this text ends.
fn value_end(text: &str) -> usize {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    values.next().unwrap().unwrap();
    values.byte_offset()
}

#[test]
fn wrong_shapes_are_400_and_the_session_survives_them() {
    let server = TestServer::holding(&collection(""), &[]);
    let (before, device) = (server.files(), server.device());
    let peak = server.memory_kib("VmHWM:");
    device.begin();
    let mut requests = 0;
    for method in METHODS.iter().filter(|method| !["abort", "upload", "download"].contains(method)) {
        // A login of the right shape takes its time on purpose.
        let is_login = |body: &str| *method == "hostKey" && body.contains('\u{fffd}');
        for body in wrong_shapes(method).into_iter().filter(|body| !is_login(body)) {
            let reply = device.call(method, &body);
            // Unknown keys and odd texts whose meaning is clear.
            let tolerated = ["sanityCheck2", "meta"].contains(method) && body.contains('\u{fffd}')
                || body == r#"{"chunk":{"x":[]}}"#
                // The shape is valid; its content ends the session (sessions.rs).
                || [r#""models":[{"#, r#""models":[["#].iter().any(|models| body.contains(models))
                || *method == "start" && reply.status == 200;
            if tolerated {
                device.begin();
                continue;
            }
            assert_eq!(reply.status, 400, "{method} {body}");
            let line = server.wait_for_refusal(&format!("/sync/{method}"), 400);
            assert!(line.len() < 1000, "{line}");
            requests += 1;
            assert_eq!(device.call("chunk", "{}").status, 200, "{method} {body} ended the session");
        }
    }
    device.call("abort", "{}").ok();
    let growth = server.memory_kib("VmHWM:") - peak;
    println!("{requests} wrong shapes: VmHWM grew by {growth} KiB");
    assert!(growth < 4 * 1024, "{growth} KiB");
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn a_json_version_that_does_not_exist_is_501() {
    let server = TestServer::start();
    for version in [0, 7, 12, 1u64 << 40] {
        server.device().call("meta", &format!(r#"{{"v":{version},"cv":""}}"#)).refused(501);
        server.wait_for_refusal("/sync/meta", 501);
    }
}

#[test]
fn uploads_that_are_no_collection_are_refused_with_a_sentence() {
    let server = TestServer::holding(&collection(""), &[]);
    let (before, device) = (server.files(), server.device());
    let good = collection("");
    let uploads: [(Vec<u8>, &str); 6] = [
        (Vec::new(), "it is empty"),
        (b"{}".to_vec(), "not an SQLite file"),
        (noise(100_000), "not an SQLite file"),
        (good[..good.len() / 2].to_vec(), "it is cut off"),
        (
            collection("CREATE TRIGGER evil AFTER INSERT ON notes BEGIN DELETE FROM cards; END"),
            "trigger 'evil'",
        ),
        (collection("DROP TABLE revlog"), "'revlog'"),
    ];
    for (file, reason) in uploads {
        let text = device.upload(&file);
        assert!(text.starts_with("Our server refused") && text.contains(reason), "{reason}: {text}");
        server.wait_for_log(reason);
    }
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn a_request_that_ends_early_changes_nothing() {
    let server = TestServer::holding(&collection(""), &[]);
    let (before, device) = (server.files(), server.device());
    device.begin();
    for method in METHODS.iter().filter(|method| **method != "finish" && **method != "abort") {
        // More than the connection layer receives before it hands a request over.
        let body = pack(&noise(80_000));
        let mut wire = Wire::open(server.address);
        let request = device.request(method, Framed::Length(&body));
        wire.send(&request[..request.len() - 1]);
        drop(wire);
        // Small bodies are received whole, or the request never gets to a worker.
        if LARGE.contains(method) {
            server.wait_for_log(&format!("/sync/{method} 500 "));
        }
    }
    device.call("chunk", "{}").ok();
    device.call("abort", "{}").ok();
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn malformed_chunks_are_400() {
    let server = TestServer::holding(&collection(""), &[]);
    let before = server.files();
    for method in METHODS {
        for broken in [&b"xyz\r\n"[..], b"-1\r\n", b"5\r\nabcdefgh\r\n", b"fffffffffffffffff\r\n"] {
            let device = server.device();
            let request = device.request(method, Framed::Chunked(b""));
            let mut wire = Wire::open(server.address);
            wire.send(&request[..request.len() - chunk(b"").len()]);
            wire.send(broken);
            assert_eq!(wire.reply().status, 400, "{method} {broken:?}");
        }
    }
    server.wait_for_log("400 malformed chunk");
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn a_cut_chunked_upload_is_not_taken() {
    let server = TestServer::holding(&collection(""), &[]);
    let before = server.files();
    let large = collection("UPDATE notes SET flds = hex(randomblob(20000)) || flds");
    let request = server.device().request("upload", Framed::Chunked(&pack(&large)));
    for end in [request.len() - 5, request.len() - 6, request.len() - 4096] {
        let mut wire = Wire::open(server.address);
        wire.send(&request[..end]);
        drop(wire);
        server.wait_for_refusal("/sync/upload", 500);
    }
    assert_eq!(server.files(), before);
    server.assert_syncs();
}
