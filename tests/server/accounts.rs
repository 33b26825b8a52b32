//! Users and devices that come and go while the server runs, and who guesses passwords.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use crate::client::{Device, Framed, Reply, Wire, pack, post, sync_header};
use crate::form::{Generation, OldDevice, form, gzip, request as form_request};
use crate::harness::{PATIENCE, TestServer, add_user, ankipi, collection, done, open, rows, said};
use crate::zip::zip_of;

fn log_in(server: &TestServer, user: &str, password: &str) -> Reply {
    Device::new(server.address, "").call("hostKey", &format!(r#"{{"u":"{user}","p":"{password}"}}"#))
}

/// A device of an account with a key of its own.
fn device(server: &TestServer, user: &str, password: &str) -> Device {
    let key = log_in(server, user, password).ok()["key"].as_str().unwrap().to_owned();
    Device::new(server.address, &key)
}

/// The same login, as a proxy on this machine hands it on.
fn log_in_from(server: &TestServer, address: &str, user: &str, password: &str) -> Reply {
    let body = pack(format!(r#"{{"u":"{user}","p":"{password}"}}"#).as_bytes());
    let headers = sync_header("", "") + &format!("X-Forwarded-For: 6.6.6.6, {address}\r\n");
    let mut wire = Wire::open(server.address);
    wire.send(&post("/sync/hostKey", &headers, Framed::Length(&body)));
    wire.reply()
}

fn ids(listing: &str) -> Vec<&str> {
    listing.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect()
}

#[test]
fn a_server_without_accounts_runs_and_says_how_to_make_one() {
    let server = TestServer::with(&[("SYNC_USER1", ""), ("SYNC_USER2", "")]);
    server.wait_for_log("ankipi user add NAME --base ");
    log_in(&server, "anna", "x").refused(403);
    add_user(server.base.path(), "anna", "x");
    assert_eq!(device(&server, "anna", "x").meta()["empty"], true);
    let old = OldDevice::of(&server, Generation::KeyFirst).call("hostKey", r#"{"u":"anna","p":"x"}"#);
    assert!(old.status == 200 && old.text().contains("key"), "{old:?}");
}

#[test]
fn an_account_works_at_once_and_its_removal_does_too() {
    let server = TestServer::start();
    let base = server.base.path();
    // Somebody else's open sync is not touched by any of it.
    let other = server.device();
    other.begin();
    add_user(base, "anna", "word");
    assert!(base.join("anna").is_dir());
    assert_eq!(fs::metadata(base.join("users")).unwrap().permissions().mode() & 0o777, 0o600);
    let anna = device(&server, "anna", "word");
    anna.begin();
    anna.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":["lost"]}"#).ok();
    let journal = base.join("anna/collection.anki2-wal");
    assert!(journal.exists());
    assert!(done(base, &["user", "list"], "").contains("anna        1  2"));
    assert!(done(base, &["user", "remove", "anna"], "").contains("the data stays"));
    anna.call("chunk", "{}").refused(403);
    server.wait_for_log("\"anna\" has no account any more");
    log_in(&server, "anna", "word").refused(403);
    assert!(base.join("anna/collection.anki2").exists());
    assert!(!journal.exists(), "the sync was not rolled back");
    other.call("chunk", "{}").ok();
    other.call("abort", "{}").ok();

    // The same name with the same password is another account.
    add_user(base, "anna", "word");
    anna.call("chunk", "{}").refused(403);
    device(&server, "anna", "word").meta();
    server.assert_syncs();
}

#[test]
fn data_is_deleted_only_by_who_says_so_twice() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path();
    add_user(base, "anna", "word");
    fs::write(base.join("anna/collection.anki2"), "x").unwrap();
    let output = ankipi(base, &[], &["user", "remove", "anna", "--delete-data"], "y\n");
    assert!(output.status.code() == Some(1) && said(&output).contains("--yes"), "{}", said(&output));
    assert!(done(base, &["user", "list"], "").contains("anna"));
    done(base, &["user", "remove", "anna", "--delete-data", "--yes"], "");
    assert!(!base.join("anna").exists());
    assert!(done(base, &["user", "list"], "").contains("no account"));
}

#[test]
fn who_comes_back_after_everything_was_deleted_starts_afresh() {
    let server = TestServer::start();
    let base = server.base.path();
    add_user(base, "anna", "word");
    let anna = device(&server, "anna", "word");
    assert_eq!(anna.upload(&collection("")), "OK");
    anna.begin();
    done(base, &["user", "remove", "anna", "--delete-data", "--yes"], "");
    anna.call("chunk", "{}").refused(403);
    assert!(!base.join("anna").exists());
    add_user(base, "anna", "word");
    let anna = device(&server, "anna", "word");
    assert_eq!(anna.meta()["empty"], true);
    assert_eq!(anna.upload(&collection("")), "OK");
    anna.begin();
    anna.call("abort", "{}").ok();
    assert!(base.join("anna/media").is_dir());
}

/// Waits until a request that sends its body has come so far that a file of this name is in the folder.
fn wait_for_file(folder: &Path, prefix: &str) {
    let is_there = || {
        let names =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.into_iter().any(|name| name.starts_with(prefix))
    };
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "no {prefix}");
        thread::yield_now();
    }
}

#[test]
fn what_arrives_whole_only_after_its_account_was_removed_changes_nothing() {
    let server = TestServer::start();
    let base = server.base.path();
    // Longer than what is received whole before a worker gets it.
    let long = "INSERT INTO config VALUES ('noise', 0, 0, randomblob(200000))";
    let old_upload = |key: &str| {
        let data = gzip(&collection(long));
        let form = form(&[("k", key.as_bytes()), ("c", b"1"), ("data", &data)]);
        form_request("/sync/upload", &form)
    };
    let upload = |key: &str| {
        Device::new(server.address, key).request("upload", Framed::Chunked(&pack(&collection(long))))
    };
    // More than stays in memory, and does not pack.
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(4_000_000)
    .collect();
    let media = |key: &str| {
        let body = pack(&zip_of(&[("noise", Some(&noise)), ("more", Some(b"more"))]));
        post("/msync/uploadChanges", &sync_header(key, "s"), Framed::Chunked(&body))
    };
    type Request<'r> = &'r dyn Fn(&str) -> Vec<u8>;
    let requests: [(&str, Request, &str); 3] = [
        ("upload", &upload, "collection.anki2.upload-"),
        ("upload in a form", &old_upload, "collection.anki2.upload-"),
        ("media", &media, "media.new-"),
    ];
    for (what, request, file) in requests {
        for how in [&["user", "remove", "anna"][..], &["user", "remove", "anna", "--delete-data", "--yes"]] {
            add_user(base, "anna", "word");
            let anna = device(&server, "anna", "word");
            assert_eq!(anna.upload(&collection("UPDATE col SET crt = 7")), "OK");
            let bytes = request(&anna.key);
            let (most, rest) = bytes.split_at(bytes.len() - 10);
            let mut wire = Wire::open(server.address);
            wire.send(most);
            wait_for_file(&base.join("anna"), file);
            done(base, how, "");
            wire.send(rest);
            let status = wire.reply().status;
            // Where even its folder is gone, there may be an error before the key is looked at again.
            assert!(status == 403 || how.len() > 3 && status >= 500, "{what}, {how:?}: {status}");
            match how.len() {
                3 => {
                    let kept = open(&base.join("anna/collection.anki2"));
                    assert_eq!(rows(&kept, "SELECT crt FROM col"), ["7"], "{what}");
                    assert_eq!(fs::read_dir(base.join("anna/media")).unwrap().count(), 0, "{what}");
                    fs::remove_dir_all(base.join("anna")).unwrap();
                }
                _ => assert!(!base.join("anna").exists(), "{what}: the folder came back"),
            }
        }
    }
    server.assert_syncs();
}

#[test]
fn a_revoked_device_is_logged_out_and_the_others_are_not() {
    let server = TestServer::start();
    let base = server.base.path();
    add_user(base, "anna", "word");
    let (desk, phone) = (device(&server, "anna", "word"), device(&server, "anna", "word"));
    let listing = done(base, &["device", "list", "anna"], "");
    assert!(listing.contains("26.09.3,29bb700b,linux"), "{listing}");
    let ids = ids(&listing);
    assert_eq!(ids.len(), 2);
    let keys = fs::read_to_string(base.join("anna/keys")).unwrap();
    assert!(!keys.contains(&desk.key) && !listing.contains(&desk.key), "a key is stored as it is");

    let missing = ankipi(base, &[], &["device", "revoke", "anna", ids[0], "00000000"], "");
    assert!(said(&missing).contains("no device 00000000"), "{}", said(&missing));
    desk.meta();
    done(base, &["device", "revoke", "anna", ids[0]], "");
    desk.call("meta", "{}").refused(403);
    phone.meta();

    done(base, &["user", "passwd", "anna", "--rounds", "100000"], "new");
    phone.call("meta", "{}").refused(403);
    log_in(&server, "anna", "word").refused(403);
    let (desk, phone) = (device(&server, "anna", "new"), device(&server, "anna", "new"));
    done(base, &["device", "revoke", "anna", "--all"], "");
    desk.call("meta", "{}").refused(403);
    phone.call("meta", "{}").refused(403);
    assert!(done(base, &["device", "list"], "").contains("No device"));
    server.assert_syncs();
}

#[test]
fn keys_and_accounts_survive_a_kill() {
    let server = TestServer::start();
    add_user(server.base.path(), "anna", "word");
    let desk = device(&server, "anna", "word");
    let server = server.kill_and_restart();
    Device::new(server.address, &desk.key).meta();
}

#[test]
fn a_sync_without_changes_writes_no_key() {
    let server = TestServer::start();
    add_user(server.base.path(), "anna", "word");
    let desk = device(&server, "anna", "word");
    desk.meta();
    let before = server.files();
    for _ in 0..5 {
        desk.meta();
    }
    assert_eq!(server.files(), before);
}

#[test]
fn a_damaged_accounts_file_costs_only_the_damaged_line() {
    let server = TestServer::start();
    let base = server.base.path();
    add_user(base, "anna", "word");
    let desk = device(&server, "anna", "word");
    let users = fs::read_to_string(base.join("users")).unwrap();
    fs::write(base.join("users"), format!("bob:plain\n{users}")).unwrap();
    desk.meta();
    server.wait_for_log("users line 1 is left out");
    let output = ankipi(base, &[], &["user", "add", "carl", "--rounds", "100000"], "x");
    assert!(!output.status.success() && said(&output).contains("line 1"), "{}", said(&output));
}

#[test]
fn guessing_is_slowed_down_for_the_guesser_and_not_for_the_owner() {
    let server = TestServer::with(&[("SYNC_IP_HEADER", "RightmostXForwardedFor")]);
    add_user(server.base.path(), "anna", "word");
    for _ in 0..4 {
        log_in_from(&server, "192.0.2.1", "anna", "guess").refused(403);
    }
    let started = Instant::now();
    for _ in 0..20 {
        log_in_from(&server, "192.0.2.1", "anna", "word").refused(503);
    }
    // No hash is made for these; the shortest delay is a second.
    assert!(started.elapsed().as_millis() < 1000, "{:?}", started.elapsed());
    server.wait_for_log(r#"login failed user="anna" ip=192.0.2.1 reason=throttled"#);
    log_in_from(&server, "192.0.2.2", "anna", "word").ok();
    log_in_from(&server, "192.0.2.1", "test", "secret").ok();
}

#[test]
fn a_stranger_cannot_say_whose_address_it_is() {
    let server =
        TestServer::with(&[("SYNC_IP_HEADER", "X-Forwarded-For"), ("SYNC_TRUSTED_PROXIES", "192.0.2.0/24")]);
    log_in_from(&server, "203.0.113.5", "nobody", "x").refused(403);
    server.wait_for_log(r#"user="nobody" ip=127.0.0.1 "#);
    server.wait_for_log("add it to SYNC_TRUSTED_PROXIES");
}

#[test]
fn an_account_can_come_from_a_file_or_a_credential() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("me");
    fs::write(&file, "test:from file\n").unwrap();
    let credentials = dir.path().to_str().unwrap();
    for (path, directory) in [(file.to_str().unwrap(), ""), ("me", credentials)] {
        let server = TestServer::with(&[
            ("SYNC_USER1", ""),
            ("SYNC_USER1_FILE", path),
            ("CREDENTIALS_DIRECTORY", directory),
        ]);
        log_in(&server, "test", "from file").ok();
    }
}
