//! Quotas, free disk space, and the networks that may sync.

use crate::client::{Framed, Reply, Wire, noise, pack, post, sync_header};
use crate::form::{Generation, OldDevice, form, form_header, open_form, request};
use crate::harness::{KEY, TestServer, collection};
use crate::zip::{Entry, write_zip};

#[test]
fn an_upload_over_the_quota_is_refused_from_its_declared_size_before_it_is_sent() {
    let server = TestServer::with(&[("SYNC_QUOTA_MEGS", "1")]);
    let before = server.files();
    let mut wire = Wire::open(server.address);
    wire.send(
        format!(
            "POST /sync/upload HTTP/1.1\r\nHost: x\r\n{}Content-Length: 2000000\r\n\r\n",
            sync_header(KEY, "")
        )
        .as_bytes(),
    );
    wire.send(&[0; 32 * 1024]);
    wire.reply().refused(413);
    assert!(server.wait_for_refusal("/sync/upload", 413).contains("SYNC_QUOTA_MEGS"));
    assert_eq!(server.files(), before);
}

#[test]
fn an_upload_that_tells_no_size_is_stopped_on_its_way() {
    let server = TestServer::with(&[("SYNC_QUOTA_MEGS", "2")]);
    assert_eq!(server.device().upload(&collection("")), "OK");
    let before = server.files();
    server.device().send_raw("upload", Framed::Chunked(&pack(&noise(4 << 20)))).refused(413);
    // Small when sent, large when unpacked.
    server.device().send_raw("upload", Framed::Length(&pack(&vec![0; 8 << 20]))).refused(413);
    // The access line is written after the clean-up.
    for _ in 0..2 {
        server.wait_for_refusal("/sync/upload", 413);
    }
    assert_eq!(server.files(), before);
    server.assert_syncs();
}

#[test]
fn media_count_towards_the_quota_and_deletions_always_get_through() {
    let server = TestServer::with(&[("SYNC_QUOTA_MEGS", "1")]);
    let send = |zip: &[u8]| {
        let mut wire = Wire::open(server.address);
        wire.send(&post("/msync/uploadChanges", &sync_header(KEY, ""), Framed::Length(&pack(zip))));
        wire.reply()
    };
    send(&noise(2 << 20)).refused(413);
    // Not a zip, but within the limits: it is parsed.
    send(b"no zip").refused(400);
}

#[test]
fn a_form_over_the_quota_is_refused_once_its_key_is_read() {
    let server = TestServer::with(&[("SYNC_QUOTA_MEGS", "1")]);
    let before = server.files();
    let parts = [("sk", KEY.as_bytes()), ("c", b"0"), ("data", &noise(2 << 20)[..])];
    let mut wire = Wire::open(server.address);
    wire.send(&request("/msync/uploadChanges", &form(&parts))[..32 * 1024]);
    wire.reply().refused(413);
    server.wait_for_refusal("/msync/uploadChanges", 413);
    assert_eq!(server.files(), before);
}

#[test]
fn the_disk_keeps_its_reserve_and_reviews_still_get_through() {
    let server = TestServer::with(&[("SYNC_MIN_FREE_MEGS", "1000000000")]);
    let before = server.files();
    server.device().send_raw("upload", Framed::Length(&pack(&noise(1 << 20)))).refused(507);
    assert!(server.wait_for_refusal("/sync/upload", 507).contains("SYNC_MIN_FREE_MEGS"));
    server.device().send_raw("upload", Framed::Chunked(&pack(&noise(4 << 20)))).refused(507);
    server.wait_for_refusal("/sync/upload", 507);
    assert_eq!(server.files(), before);
    let device = server.device();
    device.begin();
    device.apply_chunk(r#"{"done":true}"#).ok();
}

#[test]
fn who_is_not_in_the_allowed_networks_finds_nothing_and_stays_logged_in() {
    let server =
        TestServer::with(&[("SYNC_ALLOW", "192.168.0.0/16, fd00::/8"), ("SYNC_IP_HEADER", "XRealIp")]);
    let meta = |address: &str| {
        let headers = sync_header(KEY, "") + &format!("X-Real-IP: {address}\r\n");
        let mut wire = Wire::open(server.address);
        let body = pack(br#"{"v":11,"cv":"anki,26.09.3 (29bb700b),linux"}"#);
        wire.send(&post("/sync/meta", &headers, Framed::Length(&body)));
        wire.reply()
    };
    meta("192.168.3.4").ok();
    meta("fd00::1").ok();
    meta("192.0.2.1").refused(404);
    server.device().call("meta", "{}").refused(404);
}

fn send_media(server: &TestServer, zip: &[u8]) -> Reply {
    let mut wire = Wire::open(server.address);
    wire.send(&post("/msync/uploadChanges", &sync_header(KEY, ""), Framed::Length(&pack(zip))));
    wire.reply()
}

/// A zip of these files, deflated, or deletions.
fn media_zip(files: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let numbered = || files.iter().enumerate().map(|(n, (name, data))| (n.to_string(), name, data));
    let meta: Vec<_> = numbered().map(|(n, name, data)| (name, data.map(|_| n))).collect();
    let mut entries = vec![Entry::stored("_meta", &serde_json::to_vec(&meta).unwrap())];
    entries.extend(numbered().filter_map(|(n, _, data)| Some(Entry::deflated(&n, (*data)?))));
    write_zip(&entries)
}

#[test]
fn what_is_unpacked_of_media_counts_and_replaced_files_do_not() {
    let server = TestServer::with(&[("SYNC_QUOTA_MEGS", "1")]);
    let before = server.files();
    let zeros = vec![0; 12 << 20];
    let bomb = media_zip(&[("a.png", Some(&zeros)), ("b.png", Some(&zeros)), ("c.png", Some(&zeros))]);
    assert!(bomb.len() < 60_000);
    for _ in 0..4 {
        send_media(&server, &bomb).refused(413);
        assert!(server.wait_for_refusal("/msync/uploadChanges", 413).contains("SYNC_QUOTA_MEGS"));
    }
    assert_eq!(server.files(), before);
    // Up to the quota it is taken; there a file may still be replaced, or deleted, but none added.
    let most = vec![1; 900 << 10];
    send_media(&server, &media_zip(&[("a.png", Some(&most))])).ok();
    send_media(&server, &media_zip(&[("a.png", Some(&vec![2; 900 << 10]))])).ok();
    send_media(&server, &media_zip(&[("b.png", Some(&vec![3; 200 << 10]))])).refused(413);
    send_media(&server, &media_zip(&[("b.png", Some(&most)), ("a.png", None)])).ok();
    server.assert_syncs();
}

#[test]
fn what_is_unpacked_of_media_leaves_the_reserve_of_the_disk() {
    let server = TestServer::with(&[("SYNC_MIN_FREE_MEGS", "1000000000")]);
    let before = server.files();
    send_media(&server, &media_zip(&[("a.png", Some(&vec![0; 12 << 20]))])).refused(507);
    assert!(server.wait_for_refusal("/msync/uploadChanges", 507).contains("SYNC_MIN_FREE_MEGS"));
    // Deletions are accepted over the quota.
    send_media(&server, &media_zip(&[("a.png", None)])).ok();
    assert!(server.files().keys().all(|path| before.contains_key(path) || !path.ends_with("a.png")));
}

#[test]
fn changes_and_rows_stay_within_the_quota_however_they_are_sent() {
    let server = TestServer::holding(&collection(""), &[("SYNC_QUOTA_MEGS", "1")]);
    let before = server.rows("SELECT count(*), (SELECT count(*) FROM config) FROM notes");
    let text = "x".repeat(900 << 10);
    let changes = format!(r#"{{"models":[],"decks":[[],[]],"tags":[],"conf":{{"a":"{text}"}},"crt":1}}"#);
    let note = format!(
        r#"{{"done":true,"notes":[[1,"abcdefghij",1577836800001,1,-1,"","{text}\u001fx","",0,0,""]]}}"#
    );
    for (method, body) in [("applyChanges", changes), ("applyChunk", note)] {
        let device = server.device();
        device.begin();
        let (what, body) = if method == "applyChanges" { ("changes", body) } else { ("chunk", body) };
        let json = format!(r#"{{"{what}":{body}}}"#);
        device.send_raw(method, Framed::Chunked(&pack(json.as_bytes()))).refused(413);
        let line = server.wait_for_refusal(&format!("/sync/{method}"), 413);
        assert!(line.contains("SYNC_QUOTA_MEGS"), "{line}");
        device.call("abort", "{}").ok();
    }
    assert_eq!(server.rows("SELECT count(*), (SELECT count(*) FROM config) FROM notes"), before);
    server.assert_syncs();
}

#[test]
fn small_requests_go_beyond_the_limits_and_not_for_ever() {
    let server = TestServer::holding(&collection(""), &[("SYNC_MIN_FREE_MEGS", "1000000000")]);
    let device = server.device();
    device.begin();
    let row = format!(r#"{{"done":false,"x":"{}"}}"#, "x".repeat(60_000));
    let taken = (0..100).take_while(|_| device.apply_chunk(&row).status == 200).count();
    assert!((60..=72).contains(&taken), "{taken} requests of 60 KB");
    assert!(server.wait_for_refusal("/sync/applyChunk", 507).contains("SYNC_MIN_FREE_MEGS"));
}

#[test]
fn a_form_of_nobody_leaves_the_reserve_of_the_disk() {
    let server = TestServer::with(&[("SYNC_MIN_FREE_MEGS", "1000000000")]);
    let before = server.files();
    for path in ["/sync/upload", "/sync/applyChunk", "/msync/uploadChanges"] {
        let mut wire = Wire::open(server.address);
        wire.send(
            format!("POST {path} HTTP/1.1\r\n{}Content-Length: 50000000\r\n\r\n", form_header()).as_bytes(),
        );
        wire.send(&open_form(&[("data", &noise(300 << 10))]));
        wire.reply().refused(507);
        server.wait_for_refusal(path, 507);
    }
    assert_eq!(server.files(), before);
}

#[test]
fn the_copy_for_an_old_client_leaves_the_reserve_of_the_disk() {
    let server = TestServer::holding(&collection(""), &[("SYNC_MIN_FREE_MEGS", "1000000000")]);
    let device = OldDevice::of(&server, Generation::KeyFirst);
    device.call("download", "{}").refused(507);
    assert!(server.wait_for_refusal("/sync/download", 507).contains("SYNC_MIN_FREE_MEGS"));
}
