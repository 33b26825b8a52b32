//! Devices of one user whose requests come in any order, uploads and downloads among them, and whose bodies come in
//! pieces between each other's: acknowledged changes are kept, in the order of the acknowledgements, and no others. The
//! same while the user is removed.

use std::collections::{BTreeSet, VecDeque};
use std::fs;

use crate::client::{Device, Framed, Reply, Wire, pack};
use crate::harness::{TestServer, add_user, collection, done, open_beside_server, open_bytes, rows};

/// Histories of whole requests.
const SEEDS: u64 = 40;

/// Histories of requests in pieces, and of those in which the user is removed.
const SEEDS_IN_PIECES: u64 = 15;

/// How much larger uploads are than other requests: then they are still on their way to one device when others have
/// done much.
const UPLOAD_TIMES: usize = 60;

/// Maximum concurrent uploads and downloads of the server. A third would wait for the others, which wait for this test.
const MAX_BULK: usize = 2;

/// Numbers that look random and are the same in each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Hex digits, which pack to half their number.
    fn noise(&mut self, digits: usize) -> String {
        (0..digits).map(|_| char::from_digit(self.below(16) as u32, 16).unwrap()).collect()
    }
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

/// What one device does, request by request, and these piece by piece.
struct Actor {
    device: Device,
    mark: i64,
    job: Job,
    step: usize,
    /// In how many pieces a request is sent.
    pieces: usize,
    /// Makes requests long enough that the server begins on them before their end.
    noise: String,
    request: Option<(Wire, VecDeque<Vec<u8>>)>,
    /// A download on its way, and what it must hold.
    reply: Option<(Wire, Reply, State)>,
}

/// The progress of an actor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    GoesOn,
    Done,
    /// The server no longer accepts its key.
    LoggedOut,
    /// The user's folder is gone as well.
    Failed,
}

impl Actor {
    fn new(device: Device, mark: i64, job: Job, pieces: usize, noise: String) -> Actor {
        Actor { device, mark, job, step: 0, pieces, noise, request: None, reply: None }
    }

    /// Sends or reads the next piece. `state` is what everybody should see after it.
    fn go_on(&mut self, state: &mut State, what: &str) -> Progress {
        if let Some((mut wire, mut reply, expected)) = self.reply.take() {
            // About as many pieces as the file has hundreds of kilobytes.
            for _ in 0..8 {
                match wire.chunk() {
                    Some(piece) => reply.body.extend(piece),
                    None => {
                        assert_eq!(state_of(&reply.unpacked()), expected, "{what}: a download");
                        return Progress::Done;
                    }
                }
            }
            self.reply = Some((wire, reply, expected));
            return Progress::GoesOn;
        }
        let (mut wire, mut pieces) = match self.request.take() {
            Some(request) => request,
            None => {
                self.step += 1;
                let bytes = self.next_request();
                let size = bytes.len().div_ceil(self.pieces);
                (Wire::open(self.device.address), bytes.chunks(size).map(<[u8]>::to_vec).collect())
            }
        };
        wire.send(&pieces.pop_front().expect("a request is not empty"));
        if !pieces.is_empty() {
            self.request = Some((wire, pieces));
            return Progress::GoesOn;
        }
        let mut reply = wire.head();
        match (self.job, reply.status) {
            (_, 403) => Progress::LoggedOut,
            (_, 500..) => Progress::Failed,
            (Job::Download, 200) => {
                self.reply = Some((wire, reply, state.clone()));
                Progress::GoesOn
            }
            (Job::Upload, 200) => {
                wire.body(&mut reply);
                assert_eq!(reply.unpacked(), b"OK", "{what}");
                *state = State::from([tag(self.mark)]);
                Progress::Done
            }
            // Another device came in between: it says so, and nothing of this one stays.
            (Job::Sync, 409) if self.step > 1 => {
                self.device.call("abort", "{}").ok();
                Progress::Done
            }
            (Job::Sync, 200) if self.step <= 5 => Progress::GoesOn,
            (Job::Sync, 200) => {
                state.insert(tag(self.mark));
                Progress::Done
            }
            (job, status) => panic!("{what}: step {} of {job:?}: {status}", self.step),
        }
    }

    fn next_request(&self) -> Vec<u8> {
        let (device, noise) = (&self.device, &self.noise);
        let request =
            |method: &str, json: String| device.request(method, Framed::Chunked(&pack(json.as_bytes())));
        match (self.job, self.step) {
            (Job::Upload, _) => {
                let sql = format!("INSERT INTO tags VALUES ('{}', 0, 0, NULL);", tag(self.mark));
                let file = collection(&(sql + &enlarge(noise.len() * UPLOAD_TIMES)));
                device.request("upload", Framed::Chunked(&pack(&file)))
            }
            (Job::Download, _) => request("download", "{}".to_owned()),
            (Job::Sync, 1) => request("start", r#"{"minUsn":0,"lnewer":true,"graves":null}"#.to_owned()),
            (Job::Sync, 2) => {
                request("applyGraves", r#"{"chunk":{"cards":[],"notes":[],"decks":[]}}"#.to_owned())
            }
            (Job::Sync, 3) => request(
                "applyChanges",
                format!(
                    r#"{{"changes":{{"models":[],"decks":[[],[]],"tags":["{}"]}},"_pad":"{noise}"}}"#,
                    tag(self.mark)
                ),
            ),
            (Job::Sync, 4) => {
                request("applyChunk", format!(r#"{{"chunk":{{"done":true}},"_pad":"{noise}"}}"#))
            }
            (Job::Sync, 5) => request("chunk", "{}".to_owned()),
            (Job::Sync, _) => request("finish", "{}".to_owned()),
        }
    }
}

/// What makes a collection larger by about so many bytes, which pack to half.
fn enlarge(bytes: usize) -> String {
    format!(
        "UPDATE notes SET flds = hex(randomblob({})) || char(31) || 'b' WHERE id = (SELECT max(id) FROM notes)",
        bytes / 2
    )
}

/// Jobs for this many devices.
fn jobs(count: u64, dice: &mut Dice) -> Vec<Job> {
    let mut jobs = Vec::new();
    while jobs.len() < count as usize {
        let job = [Job::Sync, Job::Sync, Job::Upload, Job::Download][dice.below(4) as usize];
        if job == Job::Sync || jobs.iter().filter(|job| **job != Job::Sync).count() < MAX_BULK {
            jobs.push(job);
        }
    }
    jobs
}

/// Runs histories whose requests come in this many pieces, and tells how many syncs were acknowledged and how many
/// taken over.
fn run(server: &TestServer, mut state: State, seeds: u64, pieces: usize, noise: usize) -> (usize, usize) {
    let (mut dice, mut mark) = (Dice(1), 0);
    let (mut finished, mut taken_over) = (0, 0);
    for seed in 0..seeds {
        let jobs = jobs(2 + seed % 3, &mut dice);
        let mut actors: Vec<Actor> = Vec::new();
        for job in &jobs {
            mark += 1;
            actors.push(Actor::new(server.device(), mark, *job, pieces, dice.noise(noise)));
        }
        while !actors.is_empty() {
            let at = dice.below(actors.len() as u64) as usize;
            match actors[at].go_on(&mut state, &format!("history {seed} of {jobs:?}")) {
                Progress::GoesOn => {}
                Progress::LoggedOut | Progress::Failed => panic!("history {seed} of {jobs:?}: refused"),
                Progress::Done => {
                    let done = actors.swap_remove(at);
                    let is_in = state.contains(&tag(done.mark));
                    finished += usize::from(done.job == Job::Sync && is_in);
                    taken_over += usize::from(done.job == Job::Sync && !is_in);
                }
            }
        }
        let held: State = server.rows("SELECT tag FROM tags WHERE tag LIKE 'mark%'").into_iter().collect();
        assert_eq!(held, state, "history {seed} of {jobs:?}");
    }
    let log = server.log();
    assert!(!log.contains("ERROR"), "{log}");
    server.assert_syncs();
    (finished, taken_over)
}

#[test]
fn requests_of_several_devices_in_any_order_end_in_the_state_of_what_was_acknowledged() {
    let server = TestServer::holding(&collection(""), &[("SYNC_BACKUPS", "1")]);
    let (finished, taken_over) = run(&server, State::new(), SEEDS, 1, 10);
    println!("{SEEDS} histories: {finished} syncs acknowledged, {taken_over} taken over");
    assert!(finished > 10 && taken_over > 10);
}

#[test]
fn requests_that_come_in_pieces_between_each_other_end_in_that_state_too() {
    let server = TestServer::holding(&collection(&enlarge(6_000_000)), &[("SYNC_BACKUPS", "1")]);
    let (finished, taken_over) = run(&server, State::new(), SEEDS_IN_PIECES, 5, 100_000);
    println!("{SEEDS_IN_PIECES} histories: {finished} syncs acknowledged, {taken_over} taken over");
    assert!(finished > 3 && taken_over > 3);
}

#[test]
fn a_user_who_is_removed_at_any_moment_has_what_was_acknowledged_or_nothing_where_all_was_deleted() {
    let server = TestServer::start();
    let base = server.base.path();
    // Somebody else syncs through all of it.
    let other = Actor::new(server.device(), 0, Job::Sync, 1, String::new());
    let (mut others, mut other_state) = (vec![other], State::new());
    let (mut dice, mut mark, mut cut) = (Dice(2), 0, 0);
    for seed in 0..SEEDS_IN_PIECES {
        add_user(base, "anna", "word");
        let login = Device::new(server.address, "").call("hostKey", r#"{"u":"anna","p":"word"}"#);
        let key = login.ok()["key"].as_str().unwrap().to_owned();
        let first = collection("INSERT INTO tags VALUES ('mark0', 0, 0, NULL)");
        assert_eq!(Device::new(server.address, &key).upload(&first), "OK");
        let mut state = State::from([tag(0)]);
        let jobs = jobs(3, &mut dice);
        let mut actors: Vec<Actor> = Vec::new();
        for job in &jobs {
            mark += 1;
            actors.push(Actor::new(Device::new(server.address, &key), mark, *job, 3, dice.noise(100_000)));
        }
        let (deletes_data, last) = (seed % 2 == 1, 1 + dice.below(25));
        let mut turn = 0;
        while !actors.is_empty() {
            if turn == last {
                let how: &[&str] = if deletes_data { &["--delete-data", "--yes"] } else { &[] };
                done(base, &[&["user", "remove", "anna"], how].concat(), "");
            }
            turn += 1;
            let what = format!("history {seed} of {jobs:?}, turn {turn}, removed in {last}");
            let at = dice.below(actors.len() as u64 + 1) as usize;
            let Some(actor) = actors.get_mut(at) else {
                if others[0].go_on(&mut other_state, &what) == Progress::Done {
                    mark += 1;
                    others[0] = Actor::new(server.device(), mark, Job::Sync, 1, String::new());
                }
                continue;
            };
            let (before, is_sending) = (state.clone(), actor.reply.is_none());
            let progress = actor.go_on(&mut state, &what);
            if turn > last {
                assert_eq!(state, before, "{what}: acknowledged after the removal");
                let ends_a_request = actor.request.is_none() && is_sending;
                let is_refused = match progress {
                    Progress::LoggedOut => true,
                    Progress::Failed => deletes_data,
                    _ => !ends_a_request,
                };
                assert!(is_refused, "{what}: not refused");
            } else {
                assert!(matches!(progress, Progress::GoesOn | Progress::Done), "{what}: refused");
            }
            cut += usize::from(turn > last && progress != Progress::Done && progress != Progress::GoesOn);
            if progress != Progress::GoesOn {
                actors.swap_remove(at);
            }
        }
        if turn <= last {
            done(base, &["user", "remove", "anna", "--delete-data", "--yes"], "");
        } else if deletes_data {
            assert!(!base.join("anna").exists(), "history {seed} of {jobs:?}: the folder came back");
        } else {
            let file = open_beside_server(&base.join("anna/collection.anki2"));
            let held: State =
                rows(&file, "SELECT tag FROM tags WHERE tag LIKE 'mark%'").into_iter().collect();
            assert_eq!(held, state, "history {seed} of {jobs:?}");
            drop(file);
            fs::remove_dir_all(base.join("anna")).unwrap();
        }
    }
    println!("{SEEDS_IN_PIECES} removals, {cut} devices logged out in the middle");
    assert!(cut > 10);
    server.assert_syncs();
}
