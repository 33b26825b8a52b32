//! The server notices when another program changes a user's files, and then forgets what it remembered: tools of the
//! owner, a restored copy, a folder that was removed.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Device;
use crate::harness::{TestServer, collection, open};

/// Time after which a change of a file also changes its time.
const SETTLED: Duration = Duration::from_millis(50);

/// A server whose `meta` comes from memory.
fn server() -> (TestServer, Device) {
    let server = TestServer::holding(&collection("UPDATE col SET mod = 1000"), &[]);
    let device = server.device();
    for _ in 0..2 {
        thread::sleep(SETTLED);
        assert_eq!(device.meta()["mod"], 1000);
    }
    (server, device)
}

#[test]
fn meta_tells_what_somebody_else_did_to_the_collection() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("a commit", |path| open(path).execute_batch("UPDATE col SET mod = 2000").unwrap()),
        ("a commit in WAL mode", |path| {
            let db = open(path);
            db.execute_batch("PRAGMA journal_mode = WAL; UPDATE col SET mod = 2000").unwrap();
        }),
        ("a commit that is still in its WAL", |path| {
            let db = open(path);
            db.execute_batch("PRAGMA journal_mode = WAL; UPDATE col SET mod = 2000").unwrap();
            std::mem::forget(db);
        }),
        ("a file that takes its place", |path| {
            let copy = path.with_extension("copy");
            fs::write(&copy, collection("UPDATE col SET mod = 2000")).unwrap();
            fs::rename(copy, path).unwrap();
        }),
        ("a file that is written over it, as cp does, with its old time", |path| {
            let modified = fs::metadata(path).unwrap().modified().unwrap();
            fs::write(path, collection("UPDATE col SET mod = 2000")).unwrap();
            File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
        }),
        ("a folder that takes the place of the user's", |path| {
            let dir = path.parent().unwrap();
            fs::rename(dir, dir.with_extension("old")).unwrap();
            fs::create_dir(dir).unwrap();
            fs::write(path, collection("UPDATE col SET mod = 2000")).unwrap();
        }),
    ];
    for (what, change) in changes {
        let (server, device) = server();
        change(&server.file("collection.anki2"));
        assert_eq!(device.meta()["mod"], 2000, "{what}");
        // And between syncs, whatever is kept open for the next one.
        let (server, device) = self::server();
        device.begin();
        device.finish();
        let after = device.meta()["mod"].as_i64().unwrap();
        assert!(after > 2000);
        change(&server.file("collection.anki2"));
        assert_eq!(device.meta()["mod"], 2000, "{what}, after a sync");
        server.assert_syncs();
    }
}

#[test]
fn meta_tells_that_a_collection_is_gone() {
    let (server, device) = server();
    fs::remove_file(server.file("collection.anki2")).unwrap();
    assert_eq!(device.meta()["empty"], true);
}

#[test]
fn begin_and_media_changes_tell_what_somebody_else_did_to_the_index() {
    let (server, device) = server();
    let call = |method: &str, body: &str| -> Value {
        device.try_call(&format!("/msync/{method}"), body.as_bytes()).unwrap().ok()["data"].clone()
    };
    let usn = || call("begin", r#"{"v":"26.09.3,29bb700b,linux"}"#)["usn"].clone();
    let changes =
        |last: i64| call("mediaChanges", &json!({ "lastUsn": last }).to_string()).as_array().unwrap().len();
    assert_eq!((usn(), changes(0)), (0.into(), 0));
    // As another server leaves it.
    let path = server.file("media.db");
    let db = open(&path);
    db.execute_batch(
        "CREATE TABLE media (fname text NOT NULL PRIMARY KEY, csum blob NOT NULL, size int NOT NULL, usn int NOT NULL,
           mtime int NOT NULL);
         CREATE INDEX ix_usn ON media (usn);
         CREATE TABLE meta (last_usn int NOT NULL, total_bytes int NOT NULL, total_nonempty_files int NOT NULL);
         INSERT INTO meta VALUES (0, 0, 0);
         PRAGMA user_version = 4;",
    )
    .unwrap();
    for n in 1..4 {
        db.execute_batch(&format!(
            "INSERT INTO media VALUES ('gone {n}', zeroblob(20), 0, {n}, 0); UPDATE meta SET last_usn = {n}"
        ))
        .unwrap();
        assert_eq!((usn(), changes(0), changes(n)), (n.into(), n as usize, 0));
        thread::sleep(SETTLED);
        assert_eq!((usn(), changes(n - 1), device.meta()["media_usn"].clone()), (n.into(), 1, n.into()));
    }
    drop(db);
    fs::remove_file(path).unwrap();
    assert_eq!((usn(), changes(0)), (0.into(), 0));
}
