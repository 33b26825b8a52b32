//! Memory does not grow with the number of requests, also if one thread allocates it and another frees it, and little with that
//! of open syncs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;

use sha1::{Digest, Sha1};

use crate::client::Device;
use crate::harness::{TestServer, collection, open_bytes, rows};

/// Clients at once.
const CLIENTS: usize = 4;

/// Requests of each in one round.
const REQUESTS: usize = 500;

/// Rounds after the first, in which the allocator takes what it needs.
const ROUNDS: usize = 3;

/// Allowed growth after those rounds: a third of a KiB for each request, of which each takes some hundred KiB.
const GROWTH_KIB: u64 = 2048;

#[test]
fn what_requests_take_they_give_back_however_many_come_at_once() {
    let server = TestServer::start();
    let round = || {
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                let device = server.device();
                scope.spawn(move || (0..REQUESTS).for_each(|_| drop(device.meta())));
            }
        });
        server.memory_kib("RssAnon:")
    };
    let first = round();
    let later: Vec<u64> = (0..ROUNDS).map(|_| round()).collect();
    println!("{} requests a round: {first} KiB after the first, then {later:?}", CLIENTS * REQUESTS);
    assert!(later[ROUNDS - 1] <= first + GROWTH_KIB, "memory grows");
}

/// Most memory of an idle server, with the pages of its program. It was 1900 when nine functions of its start lay apart from those
/// that `cross/build/order.ld` puts side by side.
const IDLE_KIB: u64 = 1536;

#[test]
fn an_idle_program_for_boards_keeps_its_budget() {
    let server = TestServer::start();
    if server.loads_libraries() {
        println!("SKIPPED: the program is not static, so the pages of libraries count");
        return;
    }
    let mut page = TcpStream::connect(server.address).unwrap();
    page.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    page.read_to_end(&mut Vec::new()).unwrap();
    let most = server.memory_kib("VmHWM:");
    println!("{most} KiB");
    assert!(most <= IDLE_KIB, "{most} KiB idle: make cross/build/order.ld anew by cross/build/order.sh");
}

/// Users of the test of open syncs, and after how many the growth is measured.
const USERS: usize = 24;
const USERS_BEFORE: usize = 8;

/// Allowed growth for each open sync. With all that SQLite keeps, it takes 600 KiB and more.
const SESSION_KIB: u64 = 320;

#[test]
fn an_open_sync_takes_little_memory_while_many_are_open() {
    // Enough rows that counting them fills the page cache.
    let numbers = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 6000)";
    let file = collection(&format!(
        "{numbers} INSERT INTO cards SELECT 1700000000000 + i, nid, did, ord, mod, 0, type, queue, due, ivl, factor, reps,
           lapses, left, odue, odid, flags, data FROM n, (SELECT * FROM cards LIMIT 1);
         {numbers} INSERT INTO revlog SELECT 1700000000000 + i, i, 0, 3, 1, 1, 2500, 1000, 0 FROM n"
    ));
    let counts = rows(
        &open_bytes(&file),
        "SELECT (SELECT count(*) FROM cards), (SELECT count(*) FROM notes), (SELECT count(*) FROM revlog), 0,
           (SELECT count(*) FROM notetypes), (SELECT count(*) FROM decks), (SELECT count(*) FROM deck_config)",
    );
    let counts = format!(r#"{{"client":[[0,0,0],{}]}}"#, counts[0].replace('|', ","));
    let base = Arc::new(tempfile::tempdir().unwrap());
    let mut vars = Vec::new();
    for n in 1..=USERS {
        fs::create_dir(base.path().join(format!("crowd{n}"))).unwrap();
        fs::write(base.path().join(format!("crowd{n}/collection.anki2")), &file).unwrap();
        vars.push((format!("SYNC_USER{n}"), format!("crowd{n}:secret")));
    }
    let vars: Vec<_> = vars.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let server = TestServer::on(base, &vars);
    let device = |n: usize| {
        let digest = Sha1::digest(format!("crowd{n}:secret"));
        Device::new(server.address, &digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let devices: Vec<Device> = (1..=USERS).map(device).collect();
    let all_but_the_last_step = |device: &Device| {
        device.begin();
        device.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":[]}"#).ok();
        device.chunks();
        device.apply_chunk(r#"{"done":true}"#).ok();
        assert_eq!(device.call("sanityCheck2", &counts).ok()["status"], "ok");
    };
    devices[..USERS_BEFORE].iter().for_each(all_but_the_last_step);
    let before = server.memory_kib("RssAnon:");
    devices[USERS_BEFORE..].iter().for_each(all_but_the_last_step);
    let each = (server.memory_kib("RssAnon:") - before) / (USERS - USERS_BEFORE) as u64;
    println!("{each} KiB for each open sync");
    assert!(each <= SESSION_KIB, "{each} KiB for each open sync");
    devices.iter().for_each(Device::finish);
}
