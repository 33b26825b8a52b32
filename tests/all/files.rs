//! What is in the data folder is for its owner only, and a link in it does not lead a write outside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;

use crate::client::{Device, Framed, Wire, pack, post, sync_header};
use crate::harness::{KEY, TestServer, add_user, collection};
use crate::sessions::note;
use crate::zip::zip_of;

fn send_media(server: &TestServer, changes: &[(&str, Option<&[u8]>)]) -> u16 {
    let mut wire = Wire::open(server.address);
    let body = pack(&zip_of(changes));
    wire.send(&post("/msync/uploadChanges", &sync_header(KEY, "s"), Framed::Chunked(&body)));
    wire.reply().status
}

fn log_in(server: &TestServer, name: &str) -> u16 {
    Device::new(server.address, "").call("hostKey", &json!({"u": name, "p": "secret"}).to_string()).status
}

fn modes(dir: &Path, found: &mut BTreeMap<String, u32>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        found.insert(entry.path().display().to_string(), meta.permissions().mode() & 0o777);
        if meta.is_dir() {
            modes(&entry.path(), found);
        }
    }
}

#[test]
fn files_and_folders_are_for_their_owner_only() {
    let base = std::sync::Arc::new(tempfile::tempdir().unwrap());
    add_user(base.path(), "third", "secret");
    let server = TestServer::on(base.clone(), &[]);
    for _ in 0..2 {
        assert_eq!(server.device().upload(&collection("")), "OK");
    }
    assert_eq!(send_media(&server, &[("a", Some(b"1")), ("b", Some(&[7; 3_000_000]))]), 200);
    assert_eq!(log_in(&server, "third"), 200);
    let device = server.device();
    device.begin();
    device.apply_chunk(&json!({ "done": true, "notes": [note(5, 9, "a\u{1f}")] }).to_string()).ok();
    // In the middle of a sync, with all side files; then after it.
    for _ in 0..2 {
        let mut found = BTreeMap::new();
        modes(base.path(), &mut found);
        assert!(found.len() > 10, "{found:?}");
        for (path, mode) in &found {
            let meta = fs::symlink_metadata(path).unwrap();
            let expected = if meta.is_dir() || meta.file_type().is_socket() { 0o700 } else { 0o600 };
            assert_eq!(mode & !expected, 0, "{path} is {mode:o}");
        }
        device.call("finish", "{}");
    }
}

#[test]
fn a_link_in_the_data_folder_leads_no_write_outside() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let base = std::sync::Arc::new(tempfile::tempdir().unwrap());
    add_user(base.path(), "third", "secret");
    let server = TestServer::on(base.clone(), &[]);
    assert_eq!(server.device().upload(&collection("")), "OK");
    assert_eq!(send_media(&server, &[("old", Some(b"1"))]), 200);
    let links = [
        "third/keys.new",
        "test/media.pending.new",
        "test/media/a",
        "test/media/old",
        "test/collection.anki2.new",
        "test/collection.anki2.upload-1",
        "test/collection.anki2.upload-2",
        "test/media.new-1",
        "test/media.new-2",
        "test/media.new-3",
    ];
    for link in links {
        let path = base.path().join(link);
        let _ = fs::remove_file(&path);
        symlink(&victim, &path).unwrap();
    }
    // Whether these succeed is not the question.
    log_in(&server, "third");
    for _ in 0..4 {
        send_media(&server, &[("a", Some(b"attack")), ("old", None), ("new", Some(b"attack"))]);
        let mut wire = Wire::open(server.address);
        wire.send(&server.device().request("upload", Framed::Chunked(&pack(&collection("")))));
        wire.reply();
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    // Once the links are gone everything works.
    for link in links {
        let path = base.path().join(link);
        if path.is_symlink() {
            fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(log_in(&server, "third"), 200);
    assert_eq!(send_media(&server, &[("a", Some(b"mine"))]), 200);
    assert_eq!(fs::read(server.file("media/a")).unwrap(), b"mine");
    server.assert_syncs();
    // The lock of the next start.
    drop(server);
    fs::remove_file(base.path().join(".ankipi.lock")).unwrap();
    symlink(&victim, base.path().join(".ankipi.lock")).unwrap();
    assert!(TestServer::try_on(base.clone(), &[]).is_err());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}
