//! Random histories of two devices of one account, in the real protocol, and what the server must hold after each step.
//!
//! A step whose last request was answered is acknowledged. One that was not is wholly there or wholly absent; of a media
//! upload, that is said of each file, as each is a change of its own in the protocol.
//!
//! A reader, if there is one, is slow: its download stays open across steps, while syncs write to a WAL and uploads move
//! the file under it. If it is read to its end it holds what was acknowledged when it was begun. There is one at a time,
//! as the server does two bulk transfers at once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use ankipi::limits_and_timeouts::MANY_ROWS_CACHE_KIB;
use serde_json::{Value, json};

use crate::client::{Device, Reply, SlowDownload};
use crate::harness::{KEY, TestServer, add_user, collection, open, open_bytes, rows};
use crate::zip::{read_zip, zip_of};

/// Numbers that look random and are the same in each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

const BASIC: i64 = 1_795_428_020_052;

/// What a sync changes that puts pages on the disk before its commit: more than the largest page cache of the server.
const BEYOND_CACHE_BYTES: usize = MANY_ROWS_CACHE_KIB as usize * 1024 * 9 / 8;

/// Reviews that an upload has if there is a reader, of numbers that do not compress: more than the buffers between
/// server and client hold.
const BALLAST_ROWS: u32 = 12_000;

/// An account whose logins write keys; the devices use the other one.
pub const HASHED: (&str, &str) = ("third", "password");

/// Notes by id: when they were modified, and their fields.
pub type Notes = BTreeMap<i64, (i64, String)>;

/// The state that the server must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    pub notes: Notes,
    /// What the newest backup holds.
    pub backup: Notes,
    pub media: BTreeMap<String, Vec<u8>>,
    /// Host keys that logins were given.
    pub keys: Vec<String>,
}

/// The kinds of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Sync,
    /// A sync of more than the server's page cache holds: what is not committed is on the disk.
    Bulk,
    /// A sync that ends before its end, as when a phone loses its network.
    GivenUp,
    Upload,
    Media,
    Login,
    /// A slow download begins, ends or is given up.
    Read,
    /// A quick download of what the last sync has left in the WAL: the server brings it into the file first.
    Fold,
}

/// What a step changes, if all of it arrives.
#[derive(Clone, Debug)]
pub struct Step {
    pub kind: Kind,
    pub before: World,
    pub after: World,
}

impl Step {
    /// Whether the server may hold this if nothing is known of the step's end.
    pub fn allows(&self, found: &World) -> bool {
        let holds = |world: &World| found.notes == world.notes && found.backup == world.backup;
        let names = self.before.media.keys().chain(self.after.media.keys()).chain(found.media.keys());
        let media = names.into_iter().all(|name| {
            let now = found.media.get(name);
            now == self.before.media.get(name) || now == self.after.media.get(name)
        });
        (holds(&self.before) || holds(&self.after))
            && media
            && self.before.keys.iter().all(|key| found.keys.contains(key))
    }

    /// In which ids and names the server differs from what was before and from what should have come.
    pub fn difference(&self, found: &World) -> String {
        let notes = |from: &Notes, to: &Notes| -> Vec<i64> {
            from.iter().filter(|(id, note)| to.get(id) != Some(note)).map(|(id, _)| *id).collect()
        };
        let sizes = |world: &World| -> BTreeMap<String, usize> {
            world.media.iter().map(|(name, data)| (name.clone(), data.len())).collect()
        };
        let side = |world: &World| {
            let (lost, extra) = (notes(&world.notes, &found.notes), notes(&found.notes, &world.notes));
            let [backup, media] = [world.backup == found.backup, world.media == found.media];
            format!(
                "notes lost {lost:?}, not expected {extra:?}, backup the same: {backup}, media the same: {media} {:?}",
                sizes(world)
            )
        };
        format!(
            "against before: {}; against after: {}; media found: {:?}; keys {} of {}",
            side(&self.before),
            side(&self.after),
            sizes(found),
            found.keys.len(),
            self.before.keys.len()
        )
    }
}

struct Side {
    device: Device,
    usn: i64,
    schema: i64,
    notes: Notes,
    /// Changed since the last sync; none is deleted.
    pending: BTreeMap<i64, Option<(i64, String)>>,
}

/// A slow download, and what it must hold.
struct Reader {
    download: SlowDownload,
    notes: Notes,
}

pub struct History {
    pub dice: Dice,
    sides: [Side; 2],
    /// Whether somebody downloads slowly now and then.
    is_read: bool,
    reader: Option<Reader>,
    /// The acknowledged state.
    pub world: World,
    stamp: i64,
}

impl History {
    pub fn new(seed: u64, address: SocketAddr, is_read: bool) -> History {
        let side = || Side {
            device: Device::new(address, KEY),
            usn: 0,
            schema: 0,
            notes: Notes::new(),
            pending: BTreeMap::new(),
        };
        History {
            dice: Dice(seed),
            sides: [side(), side()],
            is_read,
            reader: None,
            world: World::default(),
            stamp: 1000,
        }
    }

    /// Prepares a data folder.
    pub fn prepare(base: &Path) {
        add_user(base, HASHED.0, HASHED.1);
    }

    /// The devices find another server, at another port. A download from the one before is over.
    pub fn moved(&mut self, address: SocketAddr) {
        self.reader = None;
        self.sides.iter_mut().for_each(|side| side.device.address = address);
    }

    /// Does a step of a random kind; before it, a reader may come or go.
    pub fn step(&mut self) -> (Step, io::Result<()>) {
        let is_new = self.sides.iter().all(|side| side.schema == 0);
        if self.is_read
            && !is_new
            && let Err(err) = self.read()
        {
            return (self.nothing(Kind::Read), Err(err));
        }
        let kind = match self.dice.below(20) {
            _ if is_new => Kind::Upload,
            0 => Kind::Upload,
            1 => Kind::GivenUp,
            2 => Kind::Login,
            3 => Kind::Bulk,
            9 => Kind::Fold,
            4..9 => Kind::Media,
            17.. if self.reader.is_some() => Kind::Upload,
            _ => Kind::Sync,
        };
        self.step_of(kind)
    }

    /// Does a step. Either it is acknowledged, and what the server must hold is in `world`; or it failed, and what the
    /// server may hold is in the step.
    pub fn step_of(&mut self, kind: Kind) -> (Step, io::Result<()>) {
        let side = self.dice.below(2) as usize;
        self.work(side);
        let mut step = self.nothing(kind);
        let outcome = match kind {
            Kind::Upload => self.upload(side, &mut step),
            Kind::GivenUp => self.give_up(side),
            Kind::Login => self.log_in(&mut step),
            Kind::Media => self.media(side, &mut step),
            Kind::Bulk => {
                self.rewrite(side);
                self.sync(side, &mut step)
            }
            Kind::Sync => self.sync(side, &mut step),
            Kind::Read => self.read(),
            Kind::Fold => self.fold(side),
        };
        if outcome.is_ok() {
            self.world = step.after.clone();
        }
        (step, outcome)
    }

    /// A step that changes nothing.
    pub fn nothing(&self, kind: Kind) -> Step {
        Step { kind, before: self.world.clone(), after: self.world.clone() }
    }

    /// Takes what the server holds after a step that failed, which must be allowed; tells whether something had come.
    pub fn resume(&mut self, step: &Step, server: &TestServer, place: &str) -> bool {
        let mut now = found(server, &self.world.keys);
        assert!(step.allows(&now), "{place}, {:?}: {}", step.kind, step.difference(&now));
        // Of a login that was not answered nobody knows the key.
        now.keys.clone_from(&self.world.keys);
        self.world = now;
        self.world != step.before
    }

    /// Both devices sync until they have seen each other's changes; then they hold what the server holds. A reader reads to
    /// the end.
    pub fn converge(&mut self) {
        for side in [0, 1, 0] {
            let mut step = self.nothing(Kind::Sync);
            self.sync(side, &mut step).unwrap();
            self.world = step.after;
        }
        for side in &self.sides {
            assert_eq!(side.notes, self.world.notes, "a device and the server differ");
        }
        self.reader.take().map_or(Ok(()), Reader::end).unwrap();
    }

    /// Begins a download, reads it to its end, or gives it up.
    fn read(&mut self) -> io::Result<()> {
        match (self.dice.below(8), self.reader.take()) {
            (0..6, None) => {
                let download = SlowDownload::try_begin(&self.sides[0].device)?;
                self.reader = Some(Reader { download, notes: self.world.notes.clone() });
            }
            (0, Some(reader)) => drop(reader),
            (1..3, Some(reader)) => reader.end()?,
            (_, reader) => self.reader = reader,
        }
        Ok(())
    }

    fn fold(&mut self, side: usize) -> io::Result<()> {
        let file = answered(self.sides[side].device.try_call("/sync/download", b"{}")?)?;
        assert!(notes_of(&open_bytes(&file)) == self.world.notes, "a download is not what was acknowledged");
        Ok(())
    }

    /// What a person does on a device.
    fn work(&mut self, side: usize) {
        for _ in 0..self.dice.below(6) {
            self.stamp += 1;
            let length = [3, 30, 3000][self.dice.below(3) as usize];
            let fields = format!("{}{}\u{1f}b", "x".repeat(length), self.stamp);
            let kind = self.dice.below(4);
            let side_ref = &mut self.sides[side];
            let ids: Vec<i64> = side_ref.notes.keys().copied().collect();
            let chosen = (!ids.is_empty()).then(|| ids[self.dice.below(ids.len() as u64) as usize]);
            match (kind, chosen) {
                (0, Some(id)) => {
                    side_ref.notes.remove(&id);
                    side_ref.pending.insert(id, None);
                }
                (1, Some(id)) => side_ref.change(id, (self.stamp, fields)),
                _ => side_ref.change(self.stamp, (self.stamp, fields)),
            }
        }
    }

    /// What an add-on does: the same 600 notes each time.
    fn rewrite(&mut self, side: usize) {
        self.stamp += 1;
        for id in 1..=600 {
            let fields = format!("{}{}\u{1f}b", "y".repeat(BEYOND_CACHE_BYTES / 600), self.stamp);
            self.sides[side].change(id, (self.stamp, fields));
        }
    }

    fn sync(&mut self, side: usize, step: &mut Step) -> io::Result<()> {
        let side = &mut self.sides[side];
        let meta = side.json("/sync/meta", r#"{"v":11,"cv":"anki,26.09.3 (29bb700b),linux"}"#)?;
        if meta["scm"] != side.schema {
            // What was not synced is given up, as by a person who chooses to download.
            return side.download(&meta);
        }
        let usn = meta["usn"].as_i64().unwrap();
        side.begin()?;
        let deleted: Vec<i64> =
            side.pending.iter().filter(|(_, new)| new.is_none()).map(|(id, _)| *id).collect();
        side.json(
            "/sync/applyGraves",
            &json!({"chunk": {"cards": [], "notes": deleted, "decks": []}}).to_string(),
        )?;
        side.json("/sync/applyChanges", r#"{"changes":{"models":[],"decks":[[],[]],"tags":[]}}"#)?;
        loop {
            let chunk = side.json("/sync/chunk", r#"{"_pad":null}"#)?;
            for row in chunk["notes"].as_array().into_iter().flatten() {
                let (id, modified) = (row[0].as_i64().unwrap(), row[3].as_i64().unwrap());
                let older = side.notes.get(&id).is_none_or(|ours| ours.0 < modified);
                if older && side.pending.get(&id) != Some(&None) {
                    side.pending.remove(&id);
                    side.notes.insert(id, (modified, row[6].as_str().unwrap().to_owned()));
                }
            }
            if chunk["done"] == true {
                break;
            }
        }
        let changed: Vec<Value> =
            side.pending.iter().filter_map(|(id, new)| Some(row(*id, new.as_ref()?))).collect();
        let halves = changed.split_at(changed.len() / 2);
        for (half, done) in [(halves.0, false), (halves.1, true)] {
            side.json("/sync/applyChunk", &json!({"chunk": {"done": done, "notes": half}}).to_string())?;
        }
        step.after.notes = side.notes.clone();
        side.json("/sync/finish", r#"{"_pad":null}"#)?;
        side.pending.clear();
        side.usn = usn + 1;
        Ok(())
    }

    fn give_up(&mut self, side: usize) -> io::Result<()> {
        let side = &mut self.sides[side];
        let meta = side.json("/sync/meta", r#"{"v":11,"cv":"anki,26.09.3 (29bb700b),linux"}"#)?;
        if meta["scm"] == side.schema {
            side.begin()?;
            let never = "never ".repeat(BEYOND_CACHE_BYTES / 400 / 6) + "\u{1f}";
            let never: Vec<Value> = (1..=400).map(|id| row(id, &(i64::MAX, never.clone()))).collect();
            side.json("/sync/applyChunk", &json!({"chunk": {"done": true, "notes": never}}).to_string())?;
        }
        Ok(())
    }

    fn upload(&mut self, side: usize, step: &mut Step) -> io::Result<()> {
        self.stamp += 1;
        let side = &mut self.sides[side];
        let mut sql = format!(
            "DELETE FROM cards; DELETE FROM notes; DELETE FROM revlog; UPDATE col SET scm = {}; BEGIN;",
            self.stamp
        );
        for (id, (modified, fields)) in &side.notes {
            sql += &format!(
                "INSERT INTO notes VALUES ({id}, 'guid{id}', {BASIC}, {modified}, 0, '', '{fields}', '', 0, 0, '');"
            );
        }
        if self.is_read {
            sql += &format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {BALLAST_ROWS})
                 INSERT INTO revlog SELECT i, random(), 0, 1, random(), random(), random(), random(), 0 FROM n;"
            );
        }
        let file = collection(&(sql + "COMMIT"));
        step.after.notes = side.notes.clone();
        step.after.backup = step.before.notes.clone();
        let reply = side.device.try_call("/sync/upload", &file)?;
        said(reply, "OK")?;
        side.pending.clear();
        (side.schema, side.usn) = (self.stamp, 1);
        Ok(())
    }

    fn media(&mut self, side: usize, step: &mut Step) -> io::Result<()> {
        let mut changes: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
        for _ in 0..1 + self.dice.below(12) {
            let name = format!("file {}", self.dice.below(25));
            let length = [100, 5_000, 60_000][self.dice.below(3) as usize];
            let data = vec![self.dice.below(256) as u8; length];
            changes.insert(name, (self.dice.below(4) > 0).then_some(data));
        }
        let list: Vec<_> = changes.iter().map(|(name, data)| (name.as_str(), data.as_deref())).collect();
        let zip = zip_of(&list);
        for (name, data) in changes {
            match data {
                Some(data) => step.after.media.insert(name, data),
                None => step.after.media.remove(&name),
            };
        }
        self.sides[side].json_of("/msync/uploadChanges", &zip).map(drop)
    }

    fn log_in(&mut self, step: &mut Step) -> io::Result<()> {
        let device = Device::new(self.sides[0].device.address, "");
        let body = json!({"u": HASHED.0, "p": HASHED.1}).to_string();
        let reply = answered(device.try_call("/sync/hostKey", body.as_bytes())?)?;
        let reply: Value = serde_json::from_slice(&reply).unwrap();
        step.after.keys.push(reply["key"].as_str().unwrap().to_owned());
        Ok(())
    }
}

impl Reader {
    fn end(self) -> io::Result<()> {
        let db = open_bytes(&self.download.try_end()?);
        assert_eq!(rows(&db, "PRAGMA integrity_check"), ["ok"]);
        assert!(notes_of(&db) == self.notes, "a download is not what was there when it was begun");
        Ok(())
    }
}

impl Side {
    fn change(&mut self, id: i64, note: (i64, String)) {
        self.notes.insert(id, note.clone());
        self.pending.insert(id, Some(note));
    }

    fn begin(&mut self) -> io::Result<()> {
        let start = format!(r#"{{"minUsn":{},"lnewer":true,"graves":null}}"#, self.usn);
        let graves = self.json("/sync/start", &start)?;
        for id in graves["notes"].as_array().unwrap() {
            let id = id.as_i64().unwrap();
            self.notes.remove(&id);
            self.pending.remove(&id);
        }
        Ok(())
    }

    fn download(&mut self, meta: &Value) -> io::Result<()> {
        let file = answered(self.device.try_call("/sync/download", b"{}")?)?;
        self.notes = notes_of(&open_bytes(&file));
        self.pending.clear();
        self.schema = meta["scm"].as_i64().unwrap();
        self.usn = meta["usn"].as_i64().unwrap();
        Ok(())
    }

    fn json(&self, path: &str, body: &str) -> io::Result<Value> {
        self.json_of(path, body.as_bytes())
    }

    fn json_of(&self, path: &str, body: &[u8]) -> io::Result<Value> {
        let reply = answered(self.device.try_call(path, body)?)?;
        Ok(serde_json::from_slice(&reply).unwrap())
    }
}

/// The body of a good answer; a server whose disk fails may give another one.
fn answered(reply: Reply) -> io::Result<Vec<u8>> {
    match reply.status {
        // The power may be cut while the body is being sent.
        200 => Ok(zstd::decode_all(&reply.body[..])?),
        status => Err(io::Error::other(format!("status {status}"))),
    }
}

fn said(reply: Reply, text: &str) -> io::Result<()> {
    let body = answered(reply)?;
    if body == text.as_bytes() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&body))) }
}

fn row(id: i64, note: &(i64, String)) -> Value {
    json!([id, format!("guid{id}"), BASIC, note.0, 1, "", note.1, "", "", 0, ""])
}

fn notes_of(db: &rusqlite::Connection) -> Notes {
    let mut select = db.prepare("SELECT id, mod, flds FROM notes").unwrap();
    let notes = select.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
    notes.collect::<rusqlite::Result<_>>().unwrap()
}

/// What a server that was just started holds, seen through its socket; its files must be in order.
pub fn found(server: &TestServer, keys: &[String]) -> World {
    let device = server.device();
    let db = open_bytes(&device.download());
    assert_eq!(rows(&db, "PRAGMA integrity_check"), ["ok"]);
    let notes = notes_of(&db);
    let mut media = BTreeMap::new();
    for name in index(&device) {
        let body = json!({ "files": [name] }).to_string();
        let zip = answered(device.try_call("/msync/downloadFiles", body.as_bytes()).unwrap()).unwrap();
        let mut entries = read_zip(&zip);
        entries.remove("_meta");
        media.insert(name, entries.into_values().next().expect("the file itself"));
    }
    let folder: Vec<_> = fs::read_dir(server.file("media"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(folder.len(), media.len(), "files without a record: {folder:?}");
    let known = |key: &&String| {
        let device = Device::new(server.address, key);
        device.try_call("/sync/meta", br#"{"v":11,"cv":"anki,26.09.3 (29bb700b),linux"}"#).unwrap().status
            == 200
    };
    let keys = keys.iter().filter(known).cloned().collect();
    World { notes, backup: newest_backup(&server.file("backups")), media, keys }
}

/// The notes of the collection that was replaced last; it must be in order, with the WAL that it may have.
fn newest_backup(folder: &Path) -> Notes {
    let names = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    // The copy of before the first sync of the day has its name only when it is whole.
    for daily in names.iter().filter(|name| name.starts_with("day-") && name.ends_with(".anki2")) {
        assert_eq!(rows(&open(&folder.join(daily)), "PRAGMA integrity_check"), ["ok"], "{daily}");
    }
    let is_replaced = |name: &&String| name.starts_with("collection-") && name.ends_with(".anki2");
    let Some(newest) = names.iter().filter(is_replaced).max() else {
        return Notes::new();
    };
    // Opening it would bring the two into one file.
    let copy = tempfile::tempdir().unwrap();
    for name in names.iter().filter(|name| name.starts_with(newest)) {
        fs::copy(folder.join(name), copy.path().join(name)).unwrap();
    }
    let db = open(&copy.path().join(newest));
    assert_eq!(rows(&db, "PRAGMA integrity_check"), ["ok"], "{newest}");
    notes_of(&db)
}

/// The names of the files that the index has.
fn index(device: &Device) -> Vec<String> {
    let (mut names, mut last) = (BTreeMap::new(), 0);
    loop {
        let body = json!({ "lastUsn": last }).to_string();
        let page = answered(device.try_call("/msync/mediaChanges", body.as_bytes()).unwrap()).unwrap();
        let page: Value = serde_json::from_slice(&page).unwrap();
        let page: Vec<(String, i64, String)> = serde_json::from_value(page["data"].clone()).unwrap();
        let Some(end) = page.last() else { break };
        last = end.1;
        names.extend(page.into_iter().map(|(name, _, sum)| (name, !sum.is_empty())));
    }
    names.into_iter().filter(|(_, is_live)| *is_live).map(|(name, _)| name).collect()
}
