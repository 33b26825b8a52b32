//! Users and devices that come and go while the server runs, and who guesses passwords.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use ankipi::text::hex::hex;
use sha1::{Digest, Sha1};

use crate::client::{Device, Framed, Reply, Wire, noise, pack, post, sync_header};
use crate::form::{Generation, OldDevice, form, gzip, request as form_request};
use crate::harness::{
    EVENT_TIMEOUT, OTHER_KEY, TestServer, add_user, ankipi, collection, done, open_beside_server, rows, said,
};
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
    // After the devices, the listing names the users whose devices share one key.
    let devices = listing.lines().filter(|line| !line.starts_with('"'));
    devices.skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect()
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
    let listing = done(base, &["user", "list"], "");
    assert!(
        listing.lines().any(|line| line.starts_with("anna ") && line.split_whitespace().nth(1) == Some("1"))
    );
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
    let deadline = Instant::now() + EVENT_TIMEOUT;
    while !is_there() {
        assert!(Instant::now() < deadline, "no {prefix}");
        thread::yield_now();
    }
}

#[test]
fn what_arrives_whole_only_after_its_key_was_lost_changes_nothing() {
    let server = TestServer::start();
    let base = server.base.path();
    // Longer than a body that is received whole before a worker gets it.
    let long = "INSERT INTO config VALUES ('noise', 0, 0, randomblob(200000))";
    let old_upload = |key: &str| {
        let data = gzip(&collection(long));
        let form = form(&[("k", key.as_bytes()), ("c", b"1"), ("data", &data)]);
        form_request("/sync/upload", &form)
    };
    let upload = |key: &str| {
        Device::new(server.address, key).request("upload", Framed::Chunked(&pack(&collection(long))))
    };
    // More than a spool keeps in memory, and it does not compress.
    let noise = noise(4_000_000);
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
        for how in [
            &["user", "remove", "anna"][..],
            &["user", "remove", "anna", "--delete-data", "--yes"],
            &["device", "revoke", "anna", "--all"],
            &["user", "passwd", "anna", "--rounds", "100000"],
        ] {
            let deletes_all = how.contains(&"--delete-data");
            add_user(base, "anna", "word");
            let anna = device(&server, "anna", "word");
            assert_eq!(anna.upload(&collection("UPDATE col SET crt = 7")), "OK");
            let bytes = request(&anna.key);
            let (most, rest) = bytes.split_at(bytes.len() - 10);
            let mut wire = Wire::open(server.address);
            wire.send(most);
            wait_for_file(&base.join("anna"), file);
            done(base, how, "another word");
            wire.send(rest);
            let status = wire.reply().status;
            // Where even its folder is gone, there may be an error before the key is looked at again.
            assert!(status == 403 || deletes_all && status >= 500, "{what}, {how:?}: {status}");
            if deletes_all {
                assert!(!base.join("anna").exists(), "{what}: the folder came back");
            } else {
                let kept = open_beside_server(&base.join("anna/collection.anki2"));
                assert_eq!(rows(&kept, "SELECT crt FROM col"), ["7"], "{what}, {how:?}");
                assert_eq!(fs::read_dir(base.join("anna/media")).unwrap().count(), 0, "{what}, {how:?}");
                // The next one begins with a new account.
                ankipi(base, &[], &["user", "remove", "anna"], "");
                fs::remove_dir_all(base.join("anna")).unwrap();
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
    let left = done(base, &["device", "list"], "");
    assert!(!left.contains("anna"), "{left}");
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
    for name in ["anna", "bob"] {
        add_user(base, name, "word");
    }
    let (anna, bob) = (device(&server, "anna", "word"), device(&server, "bob", "word"));
    // carl came from ankisyncd: the first login replaces his hash.
    rewrite_users(base, |users| format!("{}{ANKISYNCD}\n", users.replace("bob:$pbkdf2", "bob:$pbkdf3")));
    anna.meta();
    bob.call("meta", "{}").refused(500);
    server.wait_for_log("the account \"bob\" is closed: ");
    log_in(&server, "bob", "word").refused(500);
    device(&server, "carl", "pw").meta();
    assert!(fs::read_to_string(base.join("users")).unwrap().contains("bob:$pbkdf3"));
    let status = said(&ankipi(base, &[], &["status"], ""));
    assert!(status.contains("closed: ") && status.contains("line 2 cannot be read"), "{status}");
    add_user(base, "dora", "word");
    device(&server, "dora", "word").meta();
    // With a good line everything is as before.
    rewrite_users(base, |users| users.replace("bob:$pbkdf3", "bob:$pbkdf2"));
    bob.meta();
    rewrite_users(base, |users| users.replace("bob:$pbkdf2", "bob:$pbkdf3"));
    done(base, &["user", "passwd", "bob", "--rounds", "100000"], "new");
    bob.call("meta", "{}").refused(403);
    device(&server, "bob", "new").meta();
    server.assert_syncs();
}

/// A line of the accounts file as `ankipi import` makes it from ankisyncd's `auth.db`, for the password "pw".
const ANKISYNCD: &str = "carl:$ankisyncd$6361726c$\
    c10296bc5d206b72ea6d7c537ed4b02a061dadbb20595bb22ddcfcd1eb4816760123456789abcdef";

/// Replaces the accounts file, as `ankipi user` does.
pub fn rewrite_users(base: &Path, change: impl FnOnce(String) -> String) {
    let users = change(fs::read_to_string(base.join("users")).unwrap());
    fs::write(base.join("users.next"), users).unwrap();
    fs::rename(base.join("users.next"), base.join("users")).unwrap();
}

/// Makes one byte of a file unreadable as text; returns what was there before.
pub fn damage(path: &Path, at: usize) -> Vec<u8> {
    let good = fs::read(path).unwrap();
    let mut bad = good.clone();
    bad[at] = 0xff;
    fs::write(path, bad).unwrap();
    good
}

#[test]
fn a_key_that_was_handed_out_is_good_while_accounts_change() {
    let server = TestServer::start();
    let base = server.base.path();
    // A login takes long enough that all of this happens meanwhile.
    done(base, &["user", "add", "anna", "--rounds", "2000000"], "word");
    add_user(base, "bob", "word");
    let bob = device(&server, "bob", "word");
    rewrite_users(base, |users| format!("{users}{ANKISYNCD}\n"));
    for (name, password) in [("anna", "word"), ("carl", "pw")] {
        let login = thread::scope(|scope| {
            let login = scope.spawn(|| device(&server, name, password));
            server.wait_for_work(5);
            add_user(base, &format!("{name}2"), "x");
            // The server reads the accounts again at one of these; the login of carl changes them, too.
            while !login.is_finished() {
                bob.meta();
            }
            login.join().unwrap()
        });
        login.meta();
    }
    server.assert_syncs();
}

#[test]
fn a_login_brings_back_neither_an_account_nor_a_password_of_before() {
    let server = TestServer::start();
    let base = server.base.path();
    // Each has a name of its own: one name's wrong passwords are slowed down.
    type Change<'c> = (&'c str, &'c [&'c str], &'c str);
    let changes: [Change; 4] = [
        ("anna", &["user", "remove", "anna"], ""),
        ("bob", &["user", "remove", "bob", "--delete-data", "--yes"], ""),
        ("dora", &["user", "passwd", "dora", "--rounds", "100000"], "new"),
        ("carl", &["user", "remove", "carl", "--delete-data", "--yes"], ""),
    ];
    for (name, change, input) in changes {
        match name {
            "carl" => fs::write(base.join("users"), format!("{ANKISYNCD}\n")).unwrap(),
            _ => drop(done(base, &["user", "add", name, "--rounds", "2000000"], "pw")),
        }
        let reply = thread::scope(|scope| {
            let login = scope.spawn(|| log_in(&server, name, "pw"));
            server.wait_for_work(5);
            done(base, change, input);
            login.join().unwrap()
        });
        // If the login was faster, its key is one from before the change.
        if reply.status == 200 {
            let key = reply.ok()["key"].as_str().unwrap().to_owned();
            Device::new(server.address, &key).call("meta", "{}").refused(403);
        } else {
            reply.refused(403);
        }
        log_in(&server, name, "pw").refused(403);
        let users = fs::read_to_string(base.join("users")).unwrap();
        match input {
            "" => assert!(!users.contains(name), "{change:?}: {users}"),
            new => drop(device(&server, name, new).meta()),
        }
        assert!(
            !change.contains(&"--delete-data") || !base.join(name).exists(),
            "{change:?}: the folder came back"
        );
        // Clean up what is left of the account.
        ankipi(base, &[], &["user", "remove", name, "--delete-data", "--yes"], "");
    }
    server.assert_syncs();
}

#[test]
fn a_new_account_of_an_old_name_has_none_of_the_old_media() {
    let server = TestServer::start();
    let base = server.base.path();
    let upload = |device: &Device, name: &str| {
        let zip = zip_of(&[(name, Some(b"picture"))]);
        device.try_call("/msync/uploadChanges", &zip).unwrap().ok()
    };
    let usn = |device: &Device| {
        let begin = device.try_call("/msync/begin", br#"{"v":"x"}"#).unwrap().ok();
        begin["data"]["usn"].as_i64().unwrap()
    };
    let changes = |device: &Device| {
        device.try_call("/msync/mediaChanges", br#"{"lastUsn":0}"#).unwrap().ok()["data"]
            .as_array()
            .unwrap()
            .len()
    };
    for round in 0..2 {
        add_user(base, "anna", "word");
        let anna = device(&server, "anna", "word");
        assert_eq!((usn(&anna), changes(&anna)), (0, 0), "round {round}");
        assert_eq!(upload(&anna, "a.png")["data"], serde_json::json!([1, 1]));
        upload(&anna, "b.png");
        anna.begin();
        // No request between the two: the server cannot notice the first.
        done(base, &["user", "remove", "anna", "--delete-data", "--yes"], "");
    }
    // An account of the settings, whose folder somebody deletes and makes anew.
    let test = server.device();
    upload(&test, "a.png");
    fs::remove_dir_all(base.join("test")).unwrap();
    test.call("meta", r#"{"v":11,"cv":"x"}"#).refused(500);
    fs::create_dir(base.join("test")).unwrap();
    assert_eq!((usn(&test), changes(&test)), (0, 0));
    upload(&test, "b.png");
    assert_eq!(test.meta()["empty"], true);
    assert_eq!(test.upload(&collection("")), "OK");
    server.assert_syncs();
}

#[test]
fn damaged_keys_close_their_account_and_no_other() {
    let server = TestServer::start();
    let base = server.base.path().to_owned();
    let mut keys = Vec::new();
    for name in ["anna", "bob"] {
        add_user(&base, name, "word");
        keys.push([(); 2].map(|()| device(&server, name, "word").key));
    }
    let good = damage(&base.join("anna/keys"), 30);
    let listing = said(&ankipi(&base, &[], &["device", "list"], ""));
    let bobs: Vec<_> = listing.lines().filter(|line| line.starts_with("bob")).collect();
    assert!(bobs.len() == 2 && listing.contains("anna/keys is damaged in line 2"), "{listing}");
    let id = bobs[0].split_whitespace().nth(1).unwrap();
    done(&base, &["device", "revoke", "bob", id], "");
    let check = |server: &TestServer| {
        let call = |key: &str| Device::new(server.address, key).call("meta", r#"{"v":11,"cv":"x"}"#).status;
        let (anna, bob) = (keys[0].each_ref().map(|key| call(key)), keys[1].each_ref().map(|key| call(key)));
        assert!(anna.iter().all(|status| [500, 503].contains(status)), "{anna:?}");
        assert!([403, 503].contains(&bob[0]) && bob[1] == 200, "{bob:?}");
        log_in(server, "anna", "word").refused(500);
        log_in(server, "anna", "wrong").refused(403);
        device(server, "bob", "word").meta();
        server.wait_for_log("the account \"anna\" is closed: ");
        bob[0]
    };
    assert_eq!(check(&server), 403);
    let server = server.kill_and_restart();
    check(&server);
    let status = said(&ankipi(&base, &[], &["status"], ""));
    assert!(status.contains("closed: ") && status.contains("anna/keys is damaged in line 2"), "{status}");
    // With the good file back, the devices are still logged in: at once, if another change is noticed.
    fs::write(base.join("anna/keys"), &good).unwrap();
    let server = server.kill_and_restart();
    for key in &keys[0] {
        Device::new(server.address, key).meta();
    }
    Device::new(server.address, &keys[1][0]).call("meta", "{}").refused(403);
    // Or without it.
    damage(&base.join("anna/keys"), 30);
    done(&base, &["device", "revoke", "anna", "--all"], "");
    Device::new(server.address, &keys[0][0]).call("meta", "{}").refused(403);
    device(&server, "anna", "word").meta();
    server.assert_syncs();
}

#[test]
fn a_keys_file_that_is_put_right_is_noticed() {
    let server = TestServer::start();
    let base = server.base.path();
    add_user(base, "anna", "word");
    let anna = device(&server, "anna", "word");
    let good = damage(&base.join("anna/keys"), 30);
    add_user(base, "bob", "word");
    anna.call("meta", "{}").refused(500);
    fs::write(base.join("anna/keys"), good).unwrap();
    let deadline = Instant::now() + EVENT_TIMEOUT;
    while anna.call("meta", r#"{"v":11,"cv":"x"}"#).status != 200 {
        assert!(Instant::now() < deadline, "it is never read again");
    }
    server.wait_for_log("put right: the account \"anna\"");
}

#[test]
fn a_folder_that_cannot_be_used_concerns_its_user_only() {
    let base = Arc::new(tempfile::tempdir().unwrap());
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), base.path().join("other")).unwrap();
    add_user(base.path(), "anna", "word");
    fs::remove_dir(base.path().join("anna")).unwrap();
    fs::write(base.path().join("anna"), "a file").unwrap();
    let server = TestServer::on(base, &[]);
    server.assert_syncs();
    for (name, password) in [("other", "word"), ("anna", "word")] {
        server.wait_for_log(&format!("the account {name:?} is closed: "));
        log_in(&server, name, password).refused(500);
        let status = said(&ankipi(server.base.path(), &[("SYNC_USER1", "other:word")], &["status"], ""));
        assert!(status.split(name).nth(1).unwrap().contains("closed: "), "{status}");
    }
    Device::new(server.address, OTHER_KEY).call("meta", r#"{"v":11,"cv":"x"}"#).refused(500);
    fs::remove_file(server.base.path().join("other")).unwrap();
    Device::new(server.address, OTHER_KEY).meta();
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_that_is_none_logs_no_device_out() {
    let mut server = TestServer::start();
    add_user(server.base.path(), "anna", "word");
    let key = device(&server, "anna", "word").key;
    let (folder, aside) = (server.base.path().join("anna"), server.base.path().join("aside"));
    fs::rename(&folder, &aside).unwrap();
    type Put<'p> = &'p dyn Fn() -> io::Result<()>;
    let puts: [Put; 2] = [&|| fs::write(&folder, "a file"), &|| symlink("/nowhere", &folder)];
    for put in puts {
        put().unwrap();
        server = server.kill_and_restart();
        server.wait_for_log("the account \"anna\" is closed: ");
        let status = Device::new(server.address, &key).call("meta", r#"{"v":11,"cv":"x"}"#).status;
        assert_eq!(status, 503);
        server.assert_syncs();
        fs::remove_file(&folder).unwrap();
    }
    fs::rename(&aside, &folder).unwrap();
    let server = server.kill_and_restart();
    Device::new(server.address, &key).meta();
}

#[test]
fn names_of_our_own_files_are_nobodys_and_old_accounts_with_them_are_told() {
    let server = TestServer::start();
    let base = server.base.clone();
    // What the server and its commands leave in the data folder.
    add_user(base.path(), "anna", "word");
    server.device().upload(&collection(""));
    let users = ["anna", "test", "other"];
    for entry in fs::read_dir(base.path()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let output = ankipi(base.path(), &[], &["user", "add", &name, "--rounds", "100000"], "x");
        assert!(users.contains(&&*name) || !output.status.success(), "{name}");
    }
    for name in ["users", "Users", "users.new", "spool-x", "x.new", ".x"] {
        let output = ankipi(base.path(), &[], &["user", "add", name, "--rounds", "100000"], "x");
        assert!(!output.status.success(), "{name}");
    }
    // Earlier releases allowed this name.
    rewrite_users(base.path(), |users| users.replace("anna:", "spool-x:"));
    fs::rename(base.path().join("anna"), base.path().join("spool-x")).unwrap();
    fs::write(base.path().join("spool-x/collection.anki2"), collection("")).unwrap();
    fs::write(base.path().join("spool-1-1"), "left over").unwrap();
    let server = server.kill_and_restart();
    server.wait_for_log("the account \"spool-x\" is closed: the name is reserved");
    log_in(&server, "spool-x", "word").refused(500);
    assert!(base.path().join("spool-x/collection.anki2").exists() && !base.path().join("spool-1-1").exists());
    let status = said(&ankipi(base.path(), &[], &["status"], ""));
    assert!(status.contains("closed: the name is reserved"), "{status}");
    done(base.path(), &["user", "remove", "spool-x"], "");
    server.assert_syncs();
    drop(server);
    let server = TestServer::on(base, &[("SYNC_USER2", "spool-x:word")]);
    log_in(&server, "spool-x", "word").refused(500);
    server.assert_syncs();
}

#[test]
fn a_hangup_takes_accounts_and_what_their_passwords_are_together() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("conf");
    // 1000 rounds; the password is "secret".
    let phc = "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHRzYWx0$sVaWem31qy3rw+Ldi3plA/XzhMSNi9/XHnnD1Ytj05o";
    fs::write(&config, "SYNC_USER1=test:old\n").unwrap();
    let server = TestServer::with_config(Arc::new(tempfile::tempdir().unwrap()), &config);
    log_in(&server, "test", "old").ok();
    let hashed = format!("SYNC_USER1='test:{phc}'\nPASSWORDS_HASHED=1\n");
    fs::write(&config, &hashed).unwrap();
    server.hang_up("reloaded the log level and 1 account");
    log_in(&server, "test", phc).refused(403);
    log_in(&server, "test", "old").refused(403);
    log_in(&server, "test", "secret").ok();
    let official = hex(&Sha1::digest(format!("test:{phc}")));
    Device::new(server.address, &official).call("meta", "{}").refused(403);
    fs::write(
        &config,
        format!("{hashed}SYNC_OFFICIAL_KEYS=yes\nSYNC_BACKUPS=7\nSYNC_HOST=::1\nSYNC_PORT=1\n"),
    )
    .unwrap();
    server.hang_up("in effect only after a restart: SYNC_BACKUPS");
    Device::new(server.address, &official).meta();
    // The environment sets port and address, and overrides the file.
    assert!(
        server.log().contains("SYNC_PORT (")
            && server.log().contains("has no effect: the environment sets it")
    );
    fs::write(&config, "SYNC_USER1=test:secret\nPASSWORDS_HASHED=1\n").unwrap();
    server.hang_up("reload failed, keeping the old settings: PASSWORDS_HASHED is set");
    Device::new(server.address, &official).meta();
}

#[test]
fn a_hangup_without_a_config_file_says_that_nothing_can_change() {
    let server = TestServer::start();
    server.hang_up("restart it to apply changes, or start it with --config FILE");
    server.assert_syncs();
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
