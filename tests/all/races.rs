//! Two devices of one user whose requests come in any order, uploads and downloads among them: what is acknowledged
//! happens, in the order of the acknowledgements, and what is not does not.

use std::collections::BTreeSet;

use crate::client::{Device, Framed, pack};
use crate::harness::{TestServer, collection, open_bytes, rows};

/// Histories that are tried.
const SEEDS: u64 = 40;

/// What one device does, request by request.
struct Actor {
    device: Device,
    mark: i64,
    job: Job,
    step: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Sync,
    Upload,
    Download,
}

/// The tags that a collection has are its state: a sync adds one, an upload brings one of its own alone.
type State = BTreeSet<String>;

fn tag(mark: i64) -> String {
    format!("mark{mark}")
}

fn state_of(file: &[u8]) -> State {
    rows(&open_bytes(file), "SELECT tag FROM tags WHERE tag LIKE 'mark%'").into_iter().collect()
}

impl Actor {
    /// Sends the next request; tells whether the job is over. `state` is what everybody should see after it.
    fn go_on(&mut self, state: &mut State, what: &str) -> bool {
        let (device, mark) = (&self.device, self.mark);
        match self.job {
            Job::Upload => {
                let sql = format!("INSERT INTO tags VALUES ('{}', 0, 0, NULL)", tag(mark));
                let reply = device.send_raw("upload", Framed::Chunked(&pack(&collection(&sql))));
                assert_eq!(reply.unpacked(), b"OK", "{what}");
                *state = State::from([tag(mark)]);
                true
            }
            Job::Download => {
                assert_eq!(&state_of(&device.download()), state, "{what}: a download");
                true
            }
            Job::Sync => {
                self.step += 1;
                let changes = format!(r#"{{"models":[],"decks":[[],[]],"tags":["{}"]}}"#, tag(mark));
                let reply = match self.step {
                    1 => device.start(0, true),
                    2 => device.apply_graves(r#"{"cards":[],"notes":[],"decks":[]}"#),
                    3 => device.apply_changes(&changes),
                    4 => device.apply_chunk(r#"{"done":true}"#),
                    5 => device.call("chunk", "{}"),
                    _ => device.call("finish", "{}"),
                };
                if self.step > 1 && reply.status == 409 {
                    // Another device came in between: it says so, and nothing of this one stays.
                    device.call("abort", "{}").ok();
                    return true;
                }
                assert_eq!(reply.status, 200, "{what}: step {}", self.step);
                if self.step > 5 {
                    state.insert(tag(mark));
                }
                self.step > 5
            }
        }
    }
}

#[test]
fn requests_of_two_devices_in_any_order_end_in_the_state_of_what_was_acknowledged() {
    let server = TestServer::holding(&collection(""), &[("SYNC_BACKUPS", "1")]);
    let (mut state, mut random, mut mark) = (State::new(), 1_u64, 0);
    let mut below = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let (mut finished, mut taken_over) = (0, 0);
    for seed in 0..SEEDS {
        let mut actors: Vec<Actor> = (0..2 + seed % 2)
            .map(|_| {
                mark += 1;
                let job = [Job::Sync, Job::Sync, Job::Upload, Job::Download][below(4) as usize];
                Actor { device: server.device(), mark, job, step: 0 }
            })
            .collect();
        let jobs: Vec<_> = actors.iter().map(|actor| actor.job).collect();
        while !actors.is_empty() {
            let at = below(actors.len() as u64) as usize;
            if actors[at].go_on(&mut state, &format!("history {seed} of {jobs:?}")) {
                let done = actors.swap_remove(at);
                let is_in = state.contains(&tag(done.mark));
                finished += usize::from(done.job == Job::Sync && is_in);
                taken_over += usize::from(done.job == Job::Sync && !is_in);
            }
        }
        let held: State = server.rows("SELECT tag FROM tags WHERE tag LIKE 'mark%'").into_iter().collect();
        assert_eq!(held, state, "history {seed} of {jobs:?}");
    }
    println!("{SEEDS} histories: {finished} syncs acknowledged, {taken_over} taken over");
    assert!(finished > 10 && taken_over > 10);
    let log = server.log();
    assert!(!log.lines().any(|line| line.contains(" 500 ")), "{log}");
    server.assert_syncs();
}
