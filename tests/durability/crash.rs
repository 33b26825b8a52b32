//! Kills the server at random disk operations, also while it recovers from the previous kill.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use crate::disk::{Disk, Fault};
use crate::harness::TestServer;
use crate::history::{History, Kind};
use crate::setting;

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    kill(false);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed_while_a_device_downloads() {
    kill(true);
}

/// The history of `cargo test`.
const DEFAULT_SEED: u64 = 1;

/// Kills the server in the middle of what two devices do, while a third one may download.
fn kill(is_read: bool) {
    let (kills, seed) = (setting("KILLS", 60), setting("SEED", DEFAULT_SEED));
    let base = Arc::new(tempfile::tempdir().unwrap());
    History::prepare(base.path());
    let disk = Disk::new();
    let mut server = disk.start(&base);
    let mut history = History::new(seed, server.address, is_read);
    let (mut acknowledged, mut taken, mut at_start) = (0, 0, 0);
    let (mut with_wal, mut backups_with_wal) = (0, BTreeSet::new());
    let mut cut: BTreeMap<Kind, u32> = BTreeMap::new();
    for kill in 0..kills {
        let within = [120, 120, 1500][history.dice.below(3) as usize];
        let countdown = 1 + history.dice.below(within) as i32;
        disk.set(Fault::Kill, countdown);
        let step = loop {
            let (step, outcome) = history.step();
            match outcome {
                Ok(()) => acknowledged += 1,
                Err(err) => {
                    assert!(disk.hits() > 0, "kill {kill}: {:?} failed without a reason: {err}", step.kind);
                    break step;
                }
            }
        };
        server.wait();
        let has_bytes = |name: &str| fs::metadata(server.file(name)).is_ok_and(|meta| meta.len() > 0);
        with_wal += u64::from(has_bytes("collection.anki2-wal"));
        let backups = fs::read_dir(server.file("backups")).into_iter().flatten();
        backups_with_wal.extend(
            backups
                .map(|file| file.unwrap().file_name())
                .filter(|name| name.as_encoded_bytes().ends_with(b"-wal")),
        );
        drop(server);
        *cut.entry(step.kind).or_default() += 1;
        server = restarted(&base, &disk, &mut history, &mut at_start);
        taken += u32::from(history.resume(&step, &server, &format!("seed {seed}, kill {kill}")));
    }
    history.converge();
    server.assert_syncs();
    println!(
        "{kills} kills in {cut:?} and {at_start} while starting: {acknowledged} acknowledged steps are all there, of those \
         cut off {taken} arrived"
    );
    assert!(cut.len() > 2, "the kills came at the wrong moments: {cut:?}");
    if is_read {
        println!("a WAL was beside the collection at {with_wal} of them; beside {backups_with_wal:?}");
        assert!(with_wal > kills / 8);
        // Not every history has an upload beside a download; that of `cargo test` has.
        assert!(seed != DEFAULT_SEED || !backups_with_wal.is_empty());
    }
}

/// Restarts the server. As recovery may be killed too, this can take several attempts.
fn restarted(
    base: &Arc<tempfile::TempDir>,
    disk: &Disk,
    history: &mut History,
    at_start: &mut u32,
) -> TestServer {
    while history.dice.below(3) == 0 {
        disk.set(Fault::Kill, 1 + history.dice.below(8) as i32);
        match disk.try_start(base) {
            Ok(server) => drop(server),
            Err(log) => {
                assert!(disk.hits() > 0, "the server did not start:\n{log}");
                *at_start += 1;
            }
        }
    }
    disk.mend();
    let server = disk.start(base);
    history.moved(server.address);
    server
}
