//! Downloads, exports and checks while devices change the collection: each sees one consistent snapshot.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Device, SlowDownload};
use crate::harness::{TestServer, collection, done, open, open_bytes, rows};
use crate::sessions::{note, notes};

/// A collection with this many notes `old`, each of twice so many bytes that do not compress well.
fn large(notes: u32, bytes: u32) -> Vec<u8> {
    collection(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {notes})
         INSERT INTO notes SELECT i, 'g' || i, 1795428020052, 1, 0, '', 'old ' || char(31) || hex(randomblob({bytes})),
           'old', 1, 0, '' FROM n"
    ))
}

/// Gives the notes from 1 on other fields, in an open sync.
fn rewrite(device: &Device, last: i64, modified: i64, fields: &str) {
    for first in (1..=last).step_by(250) {
        let changed: Vec<_> =
            (first..(first + 250).min(last + 1)).map(|id| note(id, modified, fields)).collect();
        device.apply_chunk(&notes(&changed)).ok();
    }
}

fn assert_old(file: &[u8], expected: u32) {
    let db = open_bytes(file);
    assert_eq!(rows(&db, "PRAGMA integrity_check(3)"), ["ok"]);
    let counts = rows(&db, "SELECT count(*), sum(flds LIKE 'old%') FROM notes NOT INDEXED WHERE id <= 2000");
    assert_eq!(counts, [format!("{expected}|{expected}")]);
}

#[test]
fn an_upload_that_fails_does_not_forget_who_reads() {
    for is_synced_before in [false, true] {
        let server = TestServer::holding(&large(2000, 4000), &[]);
        let device = server.device();
        let download = SlowDownload::begin(&server.device());
        if is_synced_before {
            device.begin();
            rewrite(&device, 2000, 9, "new\u{1f}");
            device.finish();
        }
        fs::write(server.file("backups"), "in the way").unwrap();
        assert_ne!(server.device().upload(&large(5, 10)), "OK");
        fs::remove_file(server.file("backups")).unwrap();
        assert!(!server.file("collection.anki2.new").exists());
        device.begin();
        rewrite(&device, 2000, 10, "newer\u{1f}");
        device.finish();
        assert_old(&download.end(), 2000);
        assert_eq!(server.rows("SELECT count(*) FROM notes WHERE flds LIKE 'newer%'"), ["2000"]);
        server.assert_syncs();
    }
}

#[test]
fn an_empty_journal_that_a_power_cut_left_is_in_nobodys_way() {
    let base = Arc::new(tempfile::tempdir().unwrap());
    fs::create_dir(base.path().join("test")).unwrap();
    fs::write(base.path().join("test/collection.anki2"), large(2000, 4000)).unwrap();
    let journal = base.path().join("test/collection.anki2-journal");
    for left in [&b""[..], &[0; 4096]] {
        fs::write(&journal, left).unwrap();
        assert!(done(base.path(), &["check", "--fix"], "").contains("test: in order"));
        let server = TestServer::on(base.clone(), &[]);
        assert!(!journal.exists());
        let (download, device) = (SlowDownload::begin(&server.device()), server.device());
        device.begin();
        device.finish();
        assert_old(&download.end(), 2000);
    }
}

#[test]
fn the_journal_of_a_collection_that_is_gone_is_not_applied_to_the_next_one() {
    let base = Arc::new(tempfile::tempdir().unwrap());
    fs::create_dir(base.path().join("test")).unwrap();
    let path = base.path().join("test/collection.anki2");
    fs::write(&path, large(200, 4000)).unwrap();
    let db = open(&path);
    db.execute_batch("PRAGMA cache_size = -100; BEGIN; UPDATE notes SET flds = 'lost'").unwrap();
    fs::remove_file(&path).unwrap();
    // Closing it would remove the journal.
    std::mem::forget(db);
    let server = TestServer::on(base.clone(), &[]);
    assert_eq!(server.device().meta()["empty"], true);
    let db = open_bytes(&server.device().download());
    assert_eq!(rows(&db, "PRAGMA integrity_check(3)"), ["ok"]);
    assert!(server.file("collection.anki2.orphaned-journal").exists());
}

#[test]
fn a_sync_beside_a_download_survives_a_kill() {
    let server = TestServer::holding(&large(2000, 4000), &[]);
    let device = server.device();
    let download = SlowDownload::begin(&server.device());
    device.begin();
    rewrite(&device, 2000, 9, "new\u{1f}");
    device.finish();
    assert!(server.file("collection.anki2-wal").metadata().unwrap().len() > 0);
    let server = server.kill_and_restart();
    drop(download);
    wait_for_one_file(&server);
    assert_eq!(server.rows("SELECT count(*) FROM notes WHERE flds LIKE 'new%'"), ["2000"]);
    server.assert_syncs();
}

/// The notes of a file, which must be sound, are all of one sync.
fn assert_one_state(file: &[u8]) {
    let db = open_bytes(file);
    assert_eq!(rows(&db, "PRAGMA integrity_check(3)"), ["ok"]);
    let first_words =
        "SELECT DISTINCT substr(flds, 1, instr(flds, ' ')) FROM notes NOT INDEXED WHERE id <= 250";
    assert_eq!(rows(&db, first_words).len(), 1);
}

/// What an export packed.
fn packed(package: &Path) -> Vec<u8> {
    let unzip = "import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read('collection.anki21b'))";
    let output = Command::new("python3").args(["-c", unzip]).arg(package).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut file = Vec::new();
    zstd::Decoder::new(&output.stdout[..]).unwrap().read_to_end(&mut file).unwrap();
    file
}

/// Ends the work of the other threads, also if its holder panics.
struct EndOfWork<'w>(&'w AtomicBool);

impl Drop for EndOfWork<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until the collection has no side files, as some seconds after the last sync.
fn wait_for_one_file(server: &TestServer) {
    let started = Instant::now();
    loop {
        let left: Vec<_> =
            fs::read_dir(server.file("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        if !left.iter().any(|name| name.to_str().unwrap().contains('-')) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{left:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// One device syncs, two read slowly, and now and then one uploads, while the owner exports, checks and looks.
#[test]
fn whoever_reads_sees_one_state_whatever_others_do() {
    const TIME: Duration = Duration::from_secs(6);
    let server = TestServer::holding(&large(500, 6000), &[]);
    let is_over = AtomicBool::new(false);
    let (mut syncs, mut downloads, mut uploads, mut commands) = (0, 0, 0, 0);
    thread::scope(|scope| {
        let end_of_work = EndOfWork(&is_over);
        let syncing = scope.spawn(|| {
            let (device, mut done) = (server.device(), 0);
            for n in 1.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let usn = device.meta()["usn"].as_i64().unwrap();
                let started = device.start(usn, true);
                // The upload may come before the sync has begun.
                assert!([200, 503].contains(&started.status), "{} {}", started.status, server.log());
                if started.status == 503 {
                    continue;
                }
                let fields = format!("sync{n} {}\u{1f}", "q".repeat(3000));
                let rows: Vec<_> = (1..=250).map(|id| note(id, 100 + n, &fields)).collect();
                // A download or an upload in between ends the session.
                let ended = [device.apply_chunk(&notes(&rows)).status, device.call("finish", "{}").status];
                assert!(ended.iter().all(|status| [200, 409].contains(status)), "{ended:?}");
                done += usize::from(ended.iter().all(|status| *status == 200));
            }
            done
        });
        let reading = [(), ()].map(|()| {
            scope.spawn(|| {
                let mut done = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let download = SlowDownload::begin(&server.device());
                    thread::sleep(Duration::from_millis(300));
                    assert_one_state(&download.end());
                    thread::sleep(Duration::from_millis(1000));
                    done += 1;
                }
                done
            })
        });
        let uploading = scope.spawn(|| {
            let (file, mut done) = (large(500, 6000), 0);
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(server.device().upload(&file), "OK");
                thread::sleep(Duration::from_millis(700));
                done += 1;
            }
            done
        });
        let started = Instant::now();
        let base = server.base.path();
        // An emulated board is slow.
        while started.elapsed() < TIME || commands < 3 {
            let package = base.join("test.colpkg");
            done(base, &["export", "test", package.to_str().unwrap()], "");
            assert_one_state(&packed(&package));
            fs::remove_file(package).unwrap();
            assert!(done(base, &["check", "test"], "").contains("test: in order"));
            let looked = done(base, &["status"], "");
            assert!(looked.contains(" notes, ") || looked.contains("a device syncs right now"), "{looked}");
            commands += 1;
        }
        drop(end_of_work);
        syncs = syncing.join().unwrap();
        downloads = reading.into_iter().map(|thread| thread.join().unwrap()).sum();
        uploads = uploading.join().unwrap();
    });
    println!("{syncs} syncs, {downloads} downloads, {uploads} uploads, {commands} exports, checks and looks");
    assert!(syncs > 0 && downloads > 2 && uploads > 2);
    wait_for_one_file(&server);
    server.assert_syncs();
}
