//! kill -9 at random moments of uploads: the store recovers, and no acknowledged file is lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ankipi::media::check::{Depth, Listener, check};
use serde_json::json;

use crate::client::{Client, Server, folder, sha1_hex};
use crate::zip::zip_of;

const KILLS: u32 = 200;

/// Problems are counted, notes are not problems.
#[derive(Default)]
struct Findings {
    problems: Vec<String>,
    interrupted: u32,
}

impl Listener for Findings {
    fn problem(&mut self, what: String) {
        self.problems.push(what);
    }

    fn note(&mut self, what: String) {
        assert!(what.contains("interrupted"), "{what}");
        self.interrupted += 1;
    }

    fn progress(&mut self, _: u64, _: u64) {}
}

fn findings(base: &Path) -> Findings {
    let mut findings = Findings::default();
    check(&base.join("u"), Depth { deep: true, fix: false }, &mut findings).unwrap();
    findings
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

type Changes = BTreeMap<String, Option<Vec<u8>>>;

/// Adds, replaces and deletes some of 40 files.
fn random_changes(dice: &mut Dice) -> Changes {
    let count = 1 + dice.below(25);
    let mut change = || {
        let name = format!("file {}", dice.below(40));
        let length = 1 + dice.below(60_000) as usize;
        let data = vec![dice.below(256) as u8; length];
        (name, (dice.below(4) > 0).then_some(data))
    };
    (0..count).map(|_| change()).collect()
}

#[test]
fn a_kill_at_any_moment_of_an_upload_heals() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path();
    let mut dice = Dice(7);
    let mut expected: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let (mut interrupted, mut cut, mut usual) = (0, 0, Duration::from_millis(20));
    for kill in 0..KILLS {
        let mut server = Server::start(base);
        let healed = findings(base);
        assert!(healed.problems.is_empty() && healed.interrupted == 0, "kill {kill}: {:?}", healed.problems);
        // Uploads until one is cut off.
        loop {
            let changes = random_changes(&mut dice);
            let zip = zip_of(
                &changes.iter().map(|(name, data)| (name.as_str(), data.as_deref())).collect::<Vec<_>>(),
            );
            let socket = server.client().connect();
            let uploading = thread::spawn(move || {
                let started = Instant::now();
                (Client::post_on(socket, "uploadChanges", &zip), zip, started.elapsed())
            });
            let is_last = dice.below(3) > 0;
            if is_last {
                thread::sleep(Duration::from_micros(dice.below(1 + usual.as_micros() as u64)));
                server.kill();
                let found = findings(base);
                assert!(found.problems.is_empty(), "kill {kill}: {:?}", found.problems);
                interrupted += found.interrupted;
                server = Server::start(base);
            }
            let (reply, zip, took) = uploading.join().unwrap();
            match reply {
                Some((status, _)) => {
                    assert_eq!(status, 200, "kill {kill}");
                    // An average: one slow upload must not send most kills after the end of the next ones.
                    usual = (usual * 3 + took) / 4;
                }
                None => {
                    cut += 1;
                    assert_eq!(server.client().post("uploadChanges", &zip).0, 200, "sent again");
                }
            }
            for (name, data) in changes {
                match data {
                    Some(data) => expected.insert(name, data),
                    None => expected.remove(&name),
                };
            }
            if is_last {
                break;
            }
        }
        assert!(folder(base) == expected, "kill {kill}");
        let client = server.client();
        let rows = client.changes();
        let live: BTreeMap<_, _> =
            rows.iter().filter(|row| !row.2.is_empty()).map(|row| (&row.0, &row.2)).collect();
        assert_eq!(live.len(), expected.len());
        assert!(live.iter().all(|(name, sum)| **sum == sha1_hex(&expected[*name])), "kill {kill}");
        assert_eq!(client.json("mediaSanity", json!({"local": expected.len()})), "OK");
        server.kill();
    }
    println!("{KILLS} kills: {cut} uploads cut off, {interrupted} of them while they were put in place");
    assert!(cut > KILLS / 4 && interrupted > 0, "the kills came at the wrong moments: {cut}, {interrupted}");
}
