//! Media sync through the socket, by a scripted client. What the real client does is in tests/real/test_media.py.

#[path = "../server/binary.rs"]
mod binary;
mod client;
mod crash;
mod hostile;
#[path = "../server/process_figures.rs"]
mod process_figures;
mod zip;

use std::fs;
use std::path::Path;
use std::process::Command;

use binary::binary;
use client::{Server, folder, sha1_hex};
use process_figures::bytes_written;
use serde_json::json;
use zip::{Entry, write_zip};

fn check(base: &Path, args: &[&str]) -> (bool, String) {
    let out =
        Command::new(binary()).env_clear().arg("check").args(args).arg("--base").arg(base).output().unwrap();
    let said = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn a_large_file_is_written_once_wherever_it_stands_in_its_zip() {
    let base = tempfile::tempdir().unwrap();
    let server = Server::start(base.path());
    let client = server.client();
    let written = || bytes_written(server.child.id());
    let noise = |seed: u64, bytes: usize| -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
    };
    let mut expected = std::collections::BTreeMap::new();
    for (round, position) in [0, 2, 4].into_iter().enumerate() {
        let sizes = |n: usize| if n == position { 5_000_000 } else { 40_000 };
        let files: Vec<(String, Vec<u8>)> =
            (0..5).map(|n| (format!("{round}-{n}"), noise(n as u64 + 1, sizes(n)))).collect();
        let changes: Vec<_> = files.iter().map(|(name, data)| (name.as_str(), Some(&data[..]))).collect();
        let before = written();
        client.upload(&changes);
        let bytes: u64 = files.iter().map(|(_, data)| data.len() as u64).sum();
        let times = (written() - before) as f64 / bytes as f64;
        assert!(times < 1.2, "round {round}: what came was written {times} times");
        expected.extend(files.clone());
        assert_eq!(folder(base.path()), expected);
        // The same again is recognised, and leaves nothing behind.
        client.upload(&changes);
        assert_eq!(folder(base.path()), expected);
        let left: Vec<_> = fs::read_dir(base.path().join("u"))
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|name| name.starts_with("media.new"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn each_effective_change_gets_the_next_usn() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.client();
    assert_eq!(client.json("begin", json!({"v": "test"}))["usn"], 0);
    assert_eq!(client.json("mediaChanges", json!({"lastUsn": 0})), json!([]));
    assert_eq!(client.upload(&[("a", Some(b"1")), ("b", Some(b"22")), ("gone", None)]), json!([3, 2]));
    assert_eq!(client.upload(&[("a", Some(b"1"))]), json!([1, 2]), "the same again is no change");
    assert_eq!(client.upload(&[("a", Some(b"new")), ("b", None)]), json!([2, 4]));
    let rows = [("a".to_owned(), 3, sha1_hex(b"new")), ("b".to_owned(), 4, String::new())];
    assert_eq!(client.changes(), rows);
    assert_eq!(client.json("mediaSanity", json!({"local": 1})), "OK");
    assert_eq!(client.json("mediaSanity", json!({"local": 2})), "mediaSanity");
    assert_eq!(client.upload(&[("b", Some(b"22"))]), json!([1, 5]));
    assert_eq!(client.json("begin", json!({"v": "test"}))["usn"], 5);
    assert_eq!(check(dir.path(), &["--deep"]), (true, check(dir.path(), &[]).1));
}

#[test]
fn zips_of_old_clients_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let text = b"some text ".repeat(20_000);
    let entries = [
        Entry::deflated("_meta", r#"[["deflated","7"],["described","x"],["gone",""]]"#.as_bytes()),
        Entry::deflated("7", &text),
        Entry::described("x", &text[1..]),
    ];
    // The library of 2.1.22 to 2.1.56 signs its zips.
    let zip = write_zip(&entries);
    let zip = [&zip[..zip.len() - 2], b"\x06\0zip-rs"].concat();
    let (status, body) = server.client().post("uploadChanges", &zip);
    assert_eq!((status, String::from_utf8(body).unwrap().as_str()), (200, r#"{"data":[3,2],"err":""}"#));
    assert!(folder(dir.path())["deflated"] == text && folder(dir.path())["described"] == text[1..]);
}

#[test]
fn a_download_stops_after_the_file_that_passes_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.client();
    let mib = vec![b'm'; 1024 * 1024];
    for name in ["a", "b", "c", "d"] {
        client.upload(&[(name, Some(&mib))]);
    }
    let (_, files) = client.download(&["a", "b", "c", "d"]);
    assert_eq!(files.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(files.values().all(|data| *data == mib));
    assert_eq!(client.download(&["d"]).1.len(), 1);
    assert_eq!(client.download(&[]), (200, Default::default()));
    assert_eq!(client.download(&["a"; 26]).0, 400);
    assert_eq!(client.download(&["../collection.anki2"]).0, 400);
}

#[test]
fn a_file_that_is_not_what_its_record_says_is_not_handed_out_and_can_be_mended() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.client();
    client.upload(&[("lost", Some(b"lost")), ("spoilt", Some(b"fine")), ("good", Some(b"good"))]);
    let media = dir.path().join("u/media");
    fs::remove_file(media.join("lost")).unwrap();
    fs::write(media.join("spoilt"), "bad!").unwrap();
    fs::write(media.join("new"), "from the owner").unwrap();
    // The others arrive, and the client goes on with the next names: one came for each that was asked for.
    let (status, files) = client.download(&["lost", "good", "never"]);
    assert_eq!((status, files.into_keys().collect::<Vec<_>>()), (200, vec!["good".to_owned()]));
    assert_eq!(client.download(&["spoilt"]).0, 409);
    let listed = |changes: Vec<(String, i64, String)>| -> Vec<String> {
        changes.into_iter().filter(|row| !row.2.is_empty()).map(|row| row.0).collect()
    };
    assert_eq!(listed(client.changes()), ["good"], "what is damaged is asked back from the devices");
    assert_eq!(fs::read(dir.path().join("u/damaged/spoilt")).unwrap(), b"bad!");
    let (ok, said) = check(dir.path(), &["u", "--fix"]);
    assert!(!ok && said.contains("another ankipi is running"), "{said}");
    client.upload(&[("lost", Some(b"lost"))]);
    assert_eq!(client.download(&["lost"]).1["lost"], b"lost");
    // Once more, and noticed by the check.
    fs::remove_file(media.join("lost")).unwrap();
    fs::write(media.join("good"), "bad!").unwrap();
    drop(server);
    let (ok, said) = check(dir.path(), &["--deep"]);
    assert!(!ok && ["lost", "good", "new"].iter().all(|name| said.contains(name)), "{said}");
    let (ok, said) = check(dir.path(), &["--deep", "--fix"]);
    assert!(ok, "{said}");
    let (ok, said) = check(dir.path(), &["--deep"]);
    assert!(ok && said.contains("in order") && said.contains("lost"), "{said}");
    let server = Server::start(dir.path());
    let client = server.client();
    assert_eq!(listed(client.changes()), ["new"], "nothing is deleted, and nothing damaged is recorded");
    // The client that has the files sends them again, also over one that the owner has put back meanwhile.
    fs::write(media.join("good"), "good").unwrap();
    client.upload(&[("lost", Some(b"lost")), ("spoilt", Some(b"fine")), ("good", Some(b"good"))]);
    assert_eq!(client.download(&["lost", "spoilt", "good", "new"]).1.len(), 4);
    drop(server);
    assert_eq!(check(dir.path(), &["--deep"]), (true, "u: in order\n".to_owned()));
}

#[test]
fn an_index_of_the_official_server_is_taken_over() {
    for version in [3, 4] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("u/media")).unwrap();
        fs::write(dir.path().join("u/media/a"), "one").unwrap();
        let sql = match version {
            3 => {
                "CREATE TABLE media (fname text NOT NULL PRIMARY KEY, csum blob NOT NULL, sz int NOT NULL,
                   usn int NOT NULL, deleted int NOT NULL);
                 CREATE INDEX ix_usn ON media (usn);
                 CREATE TABLE meta (usn int NOT NULL, sz int NOT NULL);
                 INSERT INTO media VALUES ('a', SUM, 3, 4, 0), ('b', SUM, 9, 5, 1);
                 INSERT INTO meta VALUES (5, 3);"
            }
            _ => {
                "CREATE TABLE media (fname text NOT NULL PRIMARY KEY, csum blob NOT NULL, size int NOT NULL,
                   usn int NOT NULL, mtime int NOT NULL);
                 CREATE INDEX ix_usn ON media (usn);
                 CREATE TABLE meta (last_usn int NOT NULL, total_bytes int NOT NULL, total_nonempty_files int NOT NULL);
                 INSERT INTO media VALUES ('a', SUM, 3, 4, 0), ('b', SUM, 0, 5, 0);
                 INSERT INTO meta VALUES (5, 3, 1);"
            }
        };
        let sql = sql.replace("SUM", &format!("x'{}'", sha1_hex(b"one")));
        // As the official server leaves it: everything in the WAL.
        let path = dir.path().join("u/media.db");
        let official = rusqlite::Connection::open(&path).unwrap();
        official.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").unwrap();
        official.execute_batch(&format!("{sql} PRAGMA user_version = {version};")).unwrap();
        let copies = ["media.db", "media.db-wal"].map(|name| {
            let from = dir.path().join("u").join(name);
            (fs::read(&from).unwrap(), from)
        });
        drop(official);
        copies.iter().for_each(|(data, path)| fs::write(path, data).unwrap());
        let server = Server::start(dir.path());
        let client = server.client();
        let rows = [("a".to_owned(), 4, sha1_hex(b"one")), ("b".to_owned(), 5, String::new())];
        assert_eq!(client.changes(), rows, "version {version}");
        assert_eq!(client.json("mediaSanity", json!({"local": 1})), "OK");
        assert_eq!(client.upload(&[("c", Some(b"c"))]), json!([1, 6]));
        drop(server);
        assert_eq!(check(dir.path(), &["--deep"]), (true, "u: in order\n".to_owned()));
    }
}

#[test]
fn changes_come_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let client = server.client();
    let names: Vec<String> = (0..1010).map(|n| format!("file {n}")).collect();
    for names in names.chunks(25) {
        let changes: Vec<_> = names.iter().map(|name| (name.as_str(), Some(name.as_bytes()))).collect();
        client.upload(&changes);
    }
    let usns: Vec<i64> = client.changes().iter().map(|row| row.1).collect();
    assert_eq!(usns, (1..=1010).collect::<Vec<_>>());
}
