//! The server is killed at random operations on the disk, also while it tidies up after the last time.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::disk::{Disk, Fault};
use crate::harness::TestServer;
use crate::history::{History, Step, found};
use crate::setting;

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let (kills, seed) = (setting("KILLS", 60), setting("SEED", 1));
    let base = Arc::new(tempfile::tempdir().unwrap());
    History::prepare(base.path());
    let disk = Disk::new();
    let vars = disk.vars(base.path(), false);
    let vars: Vec<_> = vars.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut server = TestServer::on(base.clone(), &vars);
    let mut history = History::new(seed, server.address);
    let (mut acknowledged, mut taken, mut at_start) = (0, 0, 0);
    let mut cut: BTreeMap<&str, u32> = BTreeMap::new();
    for kill in 0..kills {
        let countdown = 1 + history.dice.below(120) as i32;
        disk.set(Fault::Kill, countdown);
        let step = loop {
            let (step, outcome) = history.step();
            match outcome {
                Ok(()) => acknowledged += 1,
                Err(err) => {
                    assert!(disk.hits() > 0, "kill {kill}: a {} failed without a reason: {err}", step.name);
                    break step;
                }
            }
        };
        server.wait();
        drop(server);
        *cut.entry(step.name).or_default() += 1;
        server = restarted(&base, &vars, &disk, &mut history, &mut at_start);
        check(kill, &server, &mut history, &step, &mut taken);
    }
    history.converge();
    server.assert_syncs();
    println!(
        "{kills} kills in {cut:?} and {at_start} while starting: {acknowledged} acknowledged steps are all there, of those \
         cut off {taken} arrived"
    );
    assert!(cut.len() > 2, "the kills came at the wrong moments: {cut:?}");
}

/// Starts again, which now and then takes several attempts.
fn restarted(
    base: &Arc<tempfile::TempDir>,
    vars: &[(&str, &str)],
    disk: &Disk,
    history: &mut History,
    at_start: &mut u32,
) -> TestServer {
    while history.dice.below(3) == 0 {
        disk.set(Fault::Kill, 1 + history.dice.below(8) as i32);
        match TestServer::try_on(base.clone(), vars) {
            Ok(server) => drop(server),
            Err(log) => {
                assert!(disk.hits() > 0, "the server did not start:\n{log}");
                *at_start += 1;
            }
        }
    }
    disk.mend();
    let server = TestServer::on(base.clone(), vars);
    history.moved(server.address);
    server
}

fn check(kill: u64, server: &TestServer, history: &mut History, step: &Step, taken: &mut u32) {
    let mut now = found(server, &history.world.keys);
    assert!(step.allows(&now), "kill {kill}, {}: {}", step.name, step.difference(&now));
    now.keys.clone_from(&history.world.keys);
    *taken += u32::from(now != step.before);
    history.world = now;
}
