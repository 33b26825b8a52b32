//! The server writes nothing outside the data folder, and other system users cannot read it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use crate::client::{Framed, Reply, Wire, pack, post, sync_header};
use crate::form::{Generation, OldDevice};
use crate::harness::{KEY, TestServer, collection, run_to_end};
use crate::zip::zip_of;

fn media(server: &TestServer, method: &str, body: &[u8]) -> Reply {
    let mut wire = Wire::open(server.address);
    wire.send(&post(&format!("/msync/{method}"), &sync_header(KEY, "s"), Framed::Chunked(&pack(body))));
    wire.reply()
}

#[test]
fn files_are_0600_and_folders_0700_whatever_the_umask() {
    let mut server = TestServer::start();
    let device = server.device();
    for _ in 0..2 {
        assert_eq!(device.upload(&collection("")), "OK");
    }
    media(&server, "uploadChanges", &zip_of(&[("a.txt", Some(b"a")), ("big", Some(&[7; 2 << 20]))])).ok();
    OldDevice::of(&server, Generation::KeyFirst).call("download", "{}");
    device.begin();
    // While all of it is in use, with its side files, and after.
    assert_modes(&server);
    device.call("abort", "{}").ok();
    server.stop();
    assert_modes(&server);
}

fn assert_modes(server: &TestServer) {
    let files = server.files();
    assert!(files.len() > 8, "{files:?}");
    for path in files.keys() {
        let metadata = fs::symlink_metadata(path).unwrap();
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        // A socket is for whoever may enter its folder.
        let is_socket = !metadata.is_dir() && !metadata.is_file();
        let mode = metadata.permissions().mode() & 0o777;
        assert!(mode == expected || is_socket && mode & 0o077 == 0, "{}: {mode:o}", path.display());
    }
}

/// A folder outside, with a file that must stay as it is.
struct Outside(tempfile::TempDir);

impl Outside {
    fn with(contents: &[u8]) -> Outside {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), contents).unwrap();
        Outside(dir)
    }

    fn file(&self) -> std::path::PathBuf {
        self.0.path().join("precious")
    }

    #[track_caller]
    fn assert_untouched(&self, contents: &[u8]) {
        assert!(fs::read(self.file()).unwrap() == contents, "what is outside was written to");
        let names: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["precious"]);
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

#[test]
fn a_media_file_that_is_a_link_is_replaced_or_removed_and_not_written_through() {
    let server = TestServer::start();
    media(&server, "uploadChanges", &zip_of(&[("a", Some(b"old")), ("b", Some(b"old"))])).ok();
    let outside = Outside::with(b"precious");
    for name in ["a", "b"] {
        fs::remove_file(server.file("media").join(name)).unwrap();
        symlink(outside.file(), server.file("media").join(name)).unwrap();
    }
    media(&server, "uploadChanges", &zip_of(&[("a", Some(b"new")), ("b", None)])).ok();
    outside.assert_untouched(b"precious");
    assert_eq!(fs::read(server.file("media/a")).unwrap(), b"new");
    assert!(!is_link(&server.file("media/a")) && !is_link(&server.file("media/b")));
}

#[test]
fn a_collection_that_is_a_link_is_not_followed() {
    let server = TestServer::start();
    let precious = collection("");
    let outside = Outside::with(&precious);
    symlink(outside.file(), server.file("collection.anki2")).unwrap();
    let device = server.device();
    for (method, json) in [
        ("meta", r#"{"v":11,"cv":"x"}"#),
        ("start", r#"{"minUsn":0,"lnewer":true,"graves":null}"#),
        ("download", "{}"),
    ] {
        assert_eq!(device.call(method, json).status, 500, "{method}");
        outside.assert_untouched(&precious);
    }
    server.wait_for_log("collection.anki2 is a symbolic link");
    // An upload takes the place of the link.
    assert_eq!(device.upload(&precious), "OK");
    outside.assert_untouched(&precious);
    assert!(!is_link(&server.file("collection.anki2")));
    server.assert_syncs();
    outside.assert_untouched(&precious);
}

#[test]
fn a_media_folder_or_index_that_is_a_link_is_not_followed() {
    for name in ["media", "media.db"] {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("test")).unwrap();
        let outside = Outside::with(b"precious");
        let target = if name == "media" { outside.0.path().to_owned() } else { outside.file() };
        symlink(target, base.path().join("test").join(name)).unwrap();
        let server = TestServer::on(Arc::new(base), &[]);
        let changes = zip_of(&[("a", Some(b"new")), ("precious", None)]);
        assert_eq!(media(&server, "uploadChanges", &changes).status, 500, "{name}");
        server.wait_for_log(&format!("{name} is a symbolic link"));
        outside.assert_untouched(b"precious");
        // It does not affect the collection.
        assert_eq!(server.device().upload(&collection("")), "OK");
        server.assert_syncs();
    }
}

#[test]
fn a_folder_of_backups_that_is_a_link_is_not_followed() {
    let server = TestServer::start();
    let outside = Outside::with(b"precious");
    // What would be forgotten, as the oldest of more than are kept.
    for number in 1..=9 {
        fs::write(outside.0.path().join(format!("collection-0000{number}.anki2")), "not ours").unwrap();
    }
    symlink(outside.0.path(), server.file("backups")).unwrap();
    let device = server.device();
    // The first one replaces nothing.
    assert_eq!(device.upload(&collection("")), "OK");
    let words = device.upload(&collection("UPDATE col SET crt = 7"));
    assert!(words.contains("backups is a symbolic link"), "{words}");
    assert!(fs::read(outside.file()).unwrap() == b"precious");
    assert_eq!(fs::read_dir(outside.0.path()).unwrap().count(), 10, "what is outside was changed");
    assert_eq!(server.rows("SELECT count(*) FROM col WHERE crt = 7"), ["0"]);
    server.assert_syncs();
    fs::remove_file(server.file("backups")).unwrap();
    assert_eq!(device.upload(&collection("UPDATE col SET crt = 7")), "OK");
    assert_eq!(fs::read_dir(server.file("backups")).unwrap().count(), 1);
}

#[test]
fn our_own_files_are_not_written_through_links() {
    let phc = "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHRzYWx0$sVaWem31qy3rw+Ldi3plA/XzhMSNi9/XHnnD1Ytj05o";
    let base = tempfile::tempdir().unwrap();
    fs::create_dir(base.path().join("test")).unwrap();
    let outside = Outside::with(b"precious");
    let names = [
        "keys",
        "keys.new",
        "media.pending",
        "media.pending.new",
        "media.new-0",
        "media.new-1",
        "collection.anki2.empty",
        "collection.anki2.upload-0",
        "collection.anki2-wal",
        "collection.anki2-journal",
        "media.db-wal",
        "spool-0-0",
    ];
    for name in names {
        symlink(outside.file(), base.path().join("test").join(name)).unwrap();
    }
    let vars = [
        ("SYNC_USER1", &format!("test:{phc}")[..]),
        ("SYNC_USER2", &format!("other:{phc}")),
        ("PASSWORDS_HASHED", "1"),
    ];
    let server = TestServer::on(Arc::new(base), &vars);
    let mut device = server.device();
    // The statuses depend on what the server could clear away. In no case is anything written elsewhere.
    let login = device.call("hostKey", r#"{"u":"test","p":"secret"}"#);
    if login.status == 200 {
        device.key = login.ok()["key"].as_str().unwrap().to_owned();
        device.call("upload", "{}");
        device.send_raw("upload", Framed::Chunked(&pack(&collection(""))));
        device.call("start", r#"{"minUsn":0,"lnewer":true,"graves":null}"#);
    }
    outside.assert_untouched(b"precious");
}

#[test]
fn a_lock_file_that_is_a_link_is_not_followed() {
    let base = tempfile::tempdir().unwrap();
    let outside = Outside::with(b"precious");
    symlink(outside.file(), base.path().join(".ankipi.lock")).unwrap();
    let output = run_to_end(base.path(), &[]);
    assert!(!output.status.success());
    outside.assert_untouched(b"precious");
}

#[test]
fn a_users_folder_that_is_a_link_is_not_followed() {
    let base = Arc::new(tempfile::tempdir().unwrap());
    let outside = Outside::with(b"precious");
    symlink(outside.0.path(), base.path().join("test")).unwrap();
    let server = TestServer::on(base, &[]);
    server.wait_for_log("test is a symbolic link");
    let device = server.device();
    device.call("meta", r#"{"v":11,"cv":"x"}"#).refused(500);
    device.send_raw("upload", Framed::Chunked(&pack(&collection("")))).refused(500);
    outside.assert_untouched(b"precious");
    assert_eq!(fs::read_dir(outside.0.path()).unwrap().count(), 1, "nothing is made behind it");
}

#[test]
fn user_names_cannot_leave_the_data_folder() {
    let outer = tempfile::tempdir().unwrap();
    let base = outer.path().join("base");
    for name in ["..", ".", "../x", "/x", "a/b", "a\\b", "", ".hidden", "a/../../x"] {
        let output = run_to_end(&base, &[("SYNC_USER1", &format!("{name}:secret"))]);
        assert!(!output.status.success(), "{name:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("SYNC_USER1"), "{name:?}: {said}");
    }
    let found: Vec<_> = fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(found.is_empty() || found == ["base"], "{found:?}");
}

#[test]
fn media_names_cannot_leave_the_folder() {
    let server = TestServer::start();
    media(&server, "uploadChanges", &zip_of(&[("a", Some(b"a"))])).ok();
    let before = server.files();
    for name in ["..", ".", "../x", "/tmp/ankipi-x", "a/b", "a\\b", "../collection.anki2", "x\0y", "a\n"] {
        for data in [Some(&b"x"[..]), None] {
            let status = media(&server, "uploadChanges", &zip_of(&[(name, data)])).status;
            assert_eq!(status, 400, "{name:?}");
        }
        let ask = serde_json::json!({ "files": [name] }).to_string();
        assert_ne!(media(&server, "downloadFiles", ask.as_bytes()).status, 200, "{name:?}");
    }
    assert_eq!(server.files(), before);
}
