//! Files that are not as modern clients leave them: old schemas, in uploads and in place, and rows that are out of
//! order.

use std::fs;

use serde_json::{Value, json};

use crate::client::{Framed, Wire, post};
use crate::harness::{KEY, TestServer, collection, open, rows};

const OLD: &[u8] = include_bytes!("../vectors/old_2.1.15_schema11.anki2");

/// A collection with `sql` run on it.
fn changed(file: &[u8], sql: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("collection.anki2");
    fs::write(&path, file).unwrap();
    let db = open(&path);
    db.execute_batch(sql).unwrap();
    db.close().unwrap();
    fs::read(&path).unwrap()
}

/// What SQL finds in a downloaded file.
fn rows_of(file: &[u8], sql: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("collection.anki2");
    fs::write(&path, file).unwrap();
    rows(&open(&path), sql)
}

/// A download as a client of 2.1.15 asks for it.
fn download_as_old_client(server: &TestServer) -> Vec<u8> {
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"k\"\r\n\r\n{KEY}\r\n\
         --b\r\nContent-Disposition: form-data; name=\"v\"\r\n\r\nankidesktop,2.1.15,lin\r\n--b--\r\n"
    );
    let mut wire = Wire::open(server.address);
    wire.send(&post(
        "/sync/download",
        "Content-Type: multipart/form-data; boundary=b\r\n",
        Framed::Length(form.as_bytes()),
    ));
    let reply = wire.reply();
    assert_eq!(reply.status, 200);
    reply.body
}

const STAMPS: &str = "SELECT mod, scm, usn FROM col";

#[test]
fn an_upload_in_the_old_form_is_there_for_new_and_old_clients() {
    let server = TestServer::start();
    let device = server.device();
    assert_eq!(device.upload(OLD), "OK");
    server.assert_syncs();
    let new = device.download();
    let old = download_as_old_client(&server);
    assert_eq!(rows_of(&new, "SELECT ver FROM col"), ["18"]);
    assert_eq!(rows_of(&old, "SELECT ver FROM col"), ["11"]);
    assert_eq!(rows_of(&old, STAMPS), rows_of(&new, STAMPS));
    let notes = "SELECT * FROM notes ORDER BY id";
    assert_eq!(
        rows_of(&old, notes),
        rows_of(OLD, notes).into_iter().map(|row| row.replace("|-1|", "|0|")).collect::<Vec<_>>()
    );
    // Neither is anything left of the copy nor did the live file change.
    assert_eq!(server.rows(STAMPS), rows_of(&new, STAMPS));
    let names: Vec<_> =
        fs::read_dir(server.file("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("schema11")), "{names:?}");
}

#[test]
fn a_collection_that_the_official_server_left_in_the_old_form_is_upgraded_where_it_is() {
    for version in ["old_2.1.15_schema11", "mid_schema14", "mid_schema17"] {
        let path = format!("{}/tests/vectors/{version}.anki2", env!("CARGO_MANIFEST_DIR"));
        let found = fs::read(path).unwrap();
        let server = TestServer::holding(&found, &[]);
        let stamps = rows_of(&found, STAMPS);
        let meta = server.device().meta();
        assert_eq!(format!("{}|{}|{}", meta["mod"], meta["scm"], meta["usn"]), stamps[0], "{version}");
        server.wait_for_log("upgrading from schema");
        assert_eq!(server.rows("SELECT ver FROM col"), ["18"]);
        server.assert_syncs();
        // The file is unchanged except for its journal mode.
        let backup = fs::read(server.file("backups/collection-00001.anki2")).unwrap();
        assert_eq!(rows_of(&backup, "SELECT ver FROM col"), rows_of(&found, "SELECT ver FROM col"));
        assert!(backup.len() >= found.len());
    }
}

#[test]
fn an_old_collection_that_cannot_be_upgraded_stays_and_the_log_says_why() {
    let broken = changed(OLD, "UPDATE col SET models = replace(models, '\"css\"', '\"c_s\"')");
    let server = TestServer::holding(&broken, &[]);
    server.device().start(0, true).refused(500);
    let line = server.wait_for_log("cannot be upgraded");
    assert!(line.contains("\"css\" is missing") && line.contains("Upload the collection anew"), "{line}");
    assert_eq!(server.rows("SELECT ver FROM col"), ["11"]);
    let names: Vec<_> =
        fs::read_dir(server.file("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("upload")), "{names:?}");
    // The remedy that the message names works.
    assert_eq!(server.device().upload(&collection("")), "OK");
    server.assert_syncs();
}

#[test]
fn data_of_a_card_that_is_not_text_goes_out_empty() {
    let bad = collection(
        "UPDATE cards SET data = CAST(x'ff' AS TEXT); UPDATE cards SET data = x'7b7d' WHERE id % 2",
    );
    let server = TestServer::start();
    assert_eq!(server.device().upload(&bad), "OK");
    let device = server.device();
    device.start(0, false).ok();
    device.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":[]}"#).ok();
    let cards: Vec<Value> = device
        .chunks()
        .iter()
        .flat_map(|chunk| chunk["cards"].as_array().cloned().unwrap_or_default())
        .collect();
    assert!(!cards.is_empty() && cards.iter().all(|card| card[17] == json!("")), "{cards:?}");
}

#[test]
fn a_refusal_says_what_helps_against_it_and_keeps_the_log_in_lines() {
    let cases = [
        (
            collection("CREATE VIEW \"v\nERROR forged\" AS SELECT 1"),
            "the view 'v\\nERROR forged'",
            "new profile",
        ),
        (collection("UPDATE col SET ver = 19"), "newer than this server", "update ankipi"),
        (collection("UPDATE col SET ver = 9"), "too old", "Anki 2.1.25 or newer"),
        (collection("UPDATE notes SET flds = x'ff'"), "not text", "Check Database"),
        (vec![], "it is empty", "upload again from there"),
        (collection("")[..100_000].to_vec(), "cut off", "Please upload again"),
    ];
    let server = TestServer::start();
    for (file, reason, advice) in cases {
        let said = server.device().upload(&file);
        assert!(said.contains(reason) && said.contains(advice), "{said}");
        assert_eq!(said.contains("Check Database"), advice == "Check Database", "{said}");
        let line = server.wait_for_log(reason);
        assert!(line.contains("upload refused"), "{line}");
    }
    assert!(!server.log().lines().any(|line| line.starts_with("ERROR")), "{}", server.log());
}

#[test]
fn a_note_of_many_megabytes_is_refused_without_being_read() {
    let server = TestServer::start();
    let file =
        collection("UPDATE notes SET flds = hex(zeroblob(40000000)) WHERE id = (SELECT min(id) FROM notes)");
    let id = rows_of(&file, "SELECT min(id) FROM notes").remove(0);
    let said = server.device().upload(&file);
    assert!(said.contains(&format!("row {id} of table notes has 800000")), "{said}");
    assert!(said.contains("MAX_SYNC_ROW_MEGS"), "{said}");
    assert!(server.memory_kib("VmHWM") < 40_000, "{} KiB", server.memory_kib("VmHWM"));
    let generous = TestServer::with(&[("MAX_SYNC_ROW_MEGS", "100")]);
    assert_eq!(generous.device().upload(&file), "OK");
}

#[test]
fn a_note_of_many_megabytes_that_is_in_place_stops_its_sync_alone() {
    let file =
        collection("UPDATE notes SET flds = hex(zeroblob(40000000)) WHERE id = (SELECT max(id) FROM notes)");
    let server = TestServer::holding(&file, &[]);
    let device = server.device();
    device.start(0, false).ok();
    device.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":[]}"#).ok();
    device.call("chunk", "{}").refused(413);
    assert!(server.wait_for_log("/sync/chunk 413").contains("MAX_SYNC_ROW_MEGS"));
    assert!(server.memory_kib("VmHWM") < 40_000, "{} KiB", server.memory_kib("VmHWM"));
}

#[test]
fn an_old_client_gets_an_empty_collection_before_the_first_upload() {
    let server = TestServer::start();
    let file = download_as_old_client(&server);
    assert_eq!(rows_of(&file, "SELECT ver, (SELECT count(*) FROM cards) FROM col"), ["11|0"]);
    let models = rows_of(&file, "SELECT models FROM col").remove(0);
    assert!(serde_json::from_str::<Value>(&models).unwrap()["1600000000000"]["flds"].is_array(), "{models}");
}

#[test]
fn an_upload_in_place_is_acknowledged_though_an_old_backup_stays() {
    let server = TestServer::holding(&collection(""), &[("SYNC_BACKUPS", "0")]);
    // A folder is not deleted as a file is.
    fs::create_dir_all(server.file("backups/collection-00001.anki2")).unwrap();
    assert_eq!(server.device().upload(&collection("UPDATE col SET crt = 77")), "OK");
    server.wait_for_log("the new collection is in place, but");
    assert_eq!(server.rows("SELECT crt FROM col"), ["77"]);
    server.assert_syncs();
}
