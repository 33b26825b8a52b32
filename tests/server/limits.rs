//! Quotas, the free disk, and who may sync at all.

use crate::client::{Framed, Wire, pack, post, sync_header};
use crate::form::{form, request};
use crate::harness::{KEY, TestServer, collection};

/// Pseudo-random bytes, which no encoder makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

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
    // Not a zip, but looked at.
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
