//! The power goes: whatever was not synced may be on the disk or not, in any order.
//!
//! A history is recorded with all that the server did to its disk. From that, disks are made as a power cut after any of
//! the operations may leave them, and a server is started on each. What this takes for granted is less than what file
//! systems promise:
//! - Data: of what was written since the file's last sync, any 512 bytes have arrived or not; the rest reads as zeros.
//! - Names: what was done in one folder arrives in order, up to some point behind the folder's last sync; folders do not
//!   wait for each other. With a journal, a rename from one to another is in both or in none; without one (FAT, ext2) the file
//!   may have both names, or none. Syncing a file says nothing of its name.
//! - A folder whose making is lost takes everything in it with it.
//!
//! Every other time the power goes again while the server recovers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, FileSystem};
use crate::harness::TestServer;
use crate::history::{Dice, History, Kind, Step, found};
use crate::setting;

/// One thing that the server did; paths are relative to the data folder.
#[derive(Debug)]
enum Op {
    Create {
        path: String,
        inode: u64,
    },
    MakeFolder {
        path: String,
        inode: u64,
    },
    Write {
        inode: u64,
        at: usize,
        data: Vec<u8>,
    },
    Truncate {
        inode: u64,
        len: usize,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        path: String,
    },
    Sync {
        inode: u64,
    },
    /// Of everything.
    SyncAll,
}

/// What was recorded, each with the length of the log after it.
struct Trace {
    ops: Vec<(u64, Op)>,
    /// Folders by inode, and files with their contents, from before the first operation.
    folders: BTreeMap<u64, String>,
    files: BTreeMap<String, (u64, Vec<u8>)>,
}

impl Trace {
    fn of_start(base: &Path) -> Trace {
        let mut trace = Trace { ops: Vec::new(), folders: BTreeMap::new(), files: BTreeMap::new() };
        trace.gather(base, "");
        trace
    }

    fn gather(&mut self, base: &Path, folder: &str) {
        let path = base.join(folder);
        self.folders.insert(fs::metadata(&path).unwrap().ino(), folder.to_owned());
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{folder}/{}", entry.file_name().to_str().unwrap());
            let name = name.trim_start_matches('/').to_owned();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                self.gather(base, &name);
            } else if !name.ends_with(".lock") {
                self.files.insert(name, (meta.ino(), fs::read(entry.path()).unwrap()));
            }
        }
    }

    fn read(&mut self, log: &Path, base: &Path) {
        let (log, base) = (fs::read(log).unwrap(), base.to_str().unwrap());
        let mut at = 0;
        while at < log.len() {
            let number = |from: usize| u64::from_le_bytes(log[at + from..at + from + 8].try_into().unwrap());
            let short = |from: usize| {
                usize::from(u16::from_le_bytes(log[at + from..at + from + 2].try_into().unwrap()))
            };
            let (kind, inode, place) = (log[at], number(1), number(9) as usize);
            let (from_size, to_size) = (short(17), short(19));
            let size = u32::from_le_bytes(log[at + 21..at + 25].try_into().unwrap()) as usize;
            at += 25;
            let mut take = |size: usize| {
                at += size;
                &log[at - size..at]
            };
            let path = |bytes: &[u8]| {
                let path = std::str::from_utf8(bytes).unwrap();
                path.strip_prefix(base).unwrap_or(path).trim_start_matches('/').to_owned()
            };
            let (from, to, data) = (path(take(from_size)), path(take(to_size)), take(size).to_vec());
            let op = match kind {
                b'C' => Op::Create { path: from, inode },
                b'M' => Op::MakeFolder { path: from, inode },
                b'W' => Op::Write { inode, at: place, data },
                b'T' => Op::Truncate { inode, len: place },
                b'R' => Op::Rename { from, to },
                b'U' => Op::Unlink { path: from },
                b'S' => Op::Sync { inode },
                b'A' => Op::SyncAll,
                _ => panic!("operation {kind}"),
            };
            self.ops.push((at as u64, op));
        }
    }
}

/// The folder of a path.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl Op {
    /// The folders whose names it changes.
    fn folders(&self) -> Vec<&str> {
        match self {
            Op::Create { path, .. } | Op::MakeFolder { path, .. } | Op::Unlink { path } => vec![parent(path)],
            Op::Rename { from, to } => vec![parent(from), parent(to)],
            _ => Vec::new(),
        }
    }
}

/// How unlucky a cut is.
#[derive(Clone, Copy, Debug)]
enum Luck {
    /// Only what was synced is there.
    None,
    /// Everything is there.
    All,
    /// Some of what was not synced.
    Some,
}

impl Luck {
    fn of(dice: &mut Dice) -> Luck {
        [Luck::None, Luck::All, Luck::Some, Luck::Some][dice.below(4) as usize]
    }
}

/// What is on a disk.
#[derive(Default)]
struct Image {
    folders: BTreeSet<String>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Image {
    /// After the first `count` operations.
    fn after(kind: FileSystem, trace: &Trace, count: usize, luck: Luck, dice: &mut Dice) -> Image {
        let ops = &trace.ops[..count];
        let arrived = arrived_names(kind, trace, ops, luck, dice);
        let mut image = Image { folders: trace.folders.values().cloned().collect(), files: BTreeMap::new() };
        // A file's number is used again when the file is gone: `objects` says whose it is.
        let mut objects: Vec<Vec<u8>> = Vec::new();
        let mut by_inode: BTreeMap<u64, usize> = BTreeMap::new();
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for (name, (inode, contents)) in &trace.files {
            by_inode.insert(*inode, objects.len());
            names.insert(name.clone(), objects.len());
            objects.push(contents.clone());
        }
        // As the server saw them.
        let mut real_names = names.clone();
        let synced_until = last_syncs(ops);
        let mut generations: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, (_, op)) in ops.iter().enumerate() {
            let arrives = |dice: &mut Dice, inode: &u64| match luck {
                _ if synced_until
                    .get(&(*inode, generations.get(inode).copied().unwrap_or(0)))
                    .is_some_and(|sync| index < *sync) =>
                {
                    true
                }
                Luck::None => false,
                Luck::All => true,
                Luck::Some => dice.below(2) == 0,
            };
            match op {
                Op::Create { path, inode } => {
                    *generations.entry(*inode).or_default() += 1;
                    by_inode.insert(*inode, objects.len());
                    real_names.insert(path.clone(), objects.len());
                    if arrived[index].to {
                        names.insert(path.clone(), objects.len());
                    }
                    objects.push(Vec::new());
                }
                Op::MakeFolder { path, .. } if arrived[index].to => drop(image.folders.insert(path.clone())),
                Op::Rename { from, to } => {
                    let object = real_names.remove(from).expect("a file that is known");
                    real_names.insert(to.clone(), object);
                    if arrived[index].from {
                        names.remove(from);
                    }
                    if arrived[index].to {
                        names.insert(to.clone(), object);
                    }
                }
                Op::Unlink { path } => {
                    real_names.remove(path);
                    if arrived[index].from {
                        names.remove(path);
                    }
                }
                Op::Write { inode, at, data } => {
                    let Some(object) = by_inode.get(inode) else { continue };
                    for (n, sector) in data.chunks(512).enumerate() {
                        if arrives(dice, inode) {
                            let (file, at) = (&mut objects[*object], at + n * 512);
                            let len = file.len().max(at + sector.len());
                            file.resize(len, 0);
                            file[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
                Op::Truncate { inode, len } => {
                    let Some(object) = by_inode.get(inode) else { continue };
                    if arrives(dice, inode) {
                        objects[*object].resize(*len, 0);
                    }
                }
                _ => {}
            }
        }
        let folders = image.folders.clone();
        let is_there = |name: &str| {
            std::iter::successors(Some(parent(name)), |folder| (!folder.is_empty()).then(|| parent(folder)))
                .all(|folder| folders.contains(folder))
        };
        image.folders.retain(|folder| is_there(folder));
        image.files = names
            .into_iter()
            .filter(|(name, _)| is_there(name))
            .map(|(name, object)| (name, objects[object].clone()))
            .collect();
        image
    }

    /// Whether there is one with something in it.
    fn has_wal(&self) -> bool {
        self.files
            .iter()
            .any(|(name, contents)| name.ends_with("-wal") && contents.iter().any(|byte| *byte != 0))
    }

    fn write(&self, base: &Path) {
        for folder in &self.folders {
            fs::create_dir_all(base.join(folder)).unwrap();
        }
        for (name, contents) in &self.files {
            fs::write(base.join(name), contents).unwrap();
        }
    }
}

/// The last sync of each file, by its number and how often that was given.
fn last_syncs(ops: &[(u64, Op)]) -> BTreeMap<(u64, usize), usize> {
    let mut generations: BTreeMap<u64, usize> = BTreeMap::new();
    let mut written: BTreeSet<u64> = BTreeSet::new();
    let mut syncs = BTreeMap::new();
    for (index, (_, op)) in ops.iter().enumerate() {
        match op {
            Op::Create { inode, .. } => *generations.entry(*inode).or_default() += 1,
            Op::Write { inode, .. } | Op::Truncate { inode, .. } => drop(written.insert(*inode)),
            Op::SyncAll => {
                for inode in &written {
                    syncs.insert((*inode, generations.get(inode).copied().unwrap_or(0)), index);
                }
            }
            Op::Sync { inode } => {
                syncs.insert((*inode, generations.get(inode).copied().unwrap_or(0)), index);
            }
            _ => {}
        }
    }
    syncs
}

/// Whether what an operation did to names has arrived: in the folder that a name is gone from, and in the one that has a new name.
#[derive(Clone, Copy)]
struct Arrived {
    from: bool,
    to: bool,
}

/// What of each operation has arrived.
fn arrived_names(
    kind: FileSystem,
    trace: &Trace,
    ops: &[(u64, Op)],
    luck: Luck,
    dice: &mut Dice,
) -> Vec<Arrived> {
    let mut folders = trace.folders.clone();
    let mut touching: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    // Up to which operation the names of a folder have arrived.
    let mut until: BTreeMap<String, usize> = BTreeMap::new();
    for (index, (_, op)) in ops.iter().enumerate() {
        for folder in op.folders() {
            touching.entry(folder).or_default().push(index);
        }
        match op {
            Op::MakeFolder { path, inode } => drop(folders.insert(*inode, path.clone())),
            Op::Sync { inode } => {
                if let Some(folder) = folders.get(inode) {
                    until.insert(folder.clone(), index);
                }
            }
            Op::SyncAll => until.extend(folders.values().map(|folder| (folder.clone(), index))),
            _ => {}
        }
    }
    for (folder, indexes) in &touching {
        let end = match luck {
            Luck::None => continue,
            Luck::All => ops.len(),
            Luck::Some => indexes[dice.below(indexes.len() as u64) as usize] + dice.below(2) as usize,
        };
        let until = until.entry((*folder).to_owned()).or_default();
        *until = end.max(*until);
    }
    // With a journal, a rename between two folders that has arrived in one has arrived in the other, with all before it.
    let mut is_settled = kind != FileSystem::Xfs;
    while !is_settled {
        is_settled = true;
        for (index, (_, op)) in ops.iter().enumerate() {
            let folders = op.folders();
            if folders.iter().any(|folder| until.get(*folder).is_some_and(|until| index < *until)) {
                for folder in folders {
                    let until = until.entry(folder.to_owned()).or_default();
                    if *until <= index {
                        *until = index + 1;
                        is_settled = false;
                    }
                }
            }
        }
    }
    let arrived = |(index, (_, op)): (usize, &(u64, Op))| {
        let in_folder = |folder: Option<&&str>| {
            folder.is_some_and(|folder| until.get(*folder).is_some_and(|until| index < *until))
        };
        let folders = op.folders();
        Arrived { from: in_folder(folders.first()), to: in_folder(folders.last()) }
    };
    ops.iter().enumerate().map(arrived).collect()
}

/// A step of a recorded history, and between which lengths of the log it was done.
struct Recorded {
    from: u64,
    to: u64,
    step: Step,
}

fn record(kind: FileSystem, seed: u64, steps: usize, is_read: bool) -> (Trace, Vec<Recorded>) {
    let base = Arc::new(tempfile::tempdir().unwrap());
    History::prepare(base.path());
    let mut trace = Trace::of_start(base.path());
    let disk = Disk::recorded(kind);
    let mut server = disk.start(&base);
    let mut history = History::new(seed, server.address, is_read);
    let mut recorded = Vec::new();
    for _ in 0..steps {
        let from = disk.log_bytes();
        let (step, outcome) = history.step();
        outcome.unwrap();
        recorded.push(Recorded { from, to: disk.log_bytes(), step });
    }
    server.stop();
    trace.read(&disk.log_path(), base.path());
    (trace, recorded)
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    cut_power(false);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes_while_a_device_downloads() {
    cut_power(true);
}

/// Cuts the power in the middle of what two devices do, while a third one may download.
fn cut_power(is_read: bool) {
    let (cuts, seed) = (setting("POWER_CUTS", 60), setting("SEED", 1));
    let mut dice = Dice(seed);
    let (mut tried, mut in_flight, mut twice, mut recovery, mut with_wal) = (0, 0, 0, 0, 0);
    while tried < cuts {
        // Of each history 30 disks: half of all are of one kind, half of the other.
        let kind = if tried % 60 < 30 { FileSystem::Xfs } else { FileSystem::Fat };
        let (trace, recorded) = record(kind, dice.below(1 << 32), 30, is_read);
        for _ in 0..30 {
            // Every other one the moment after an answer, when all of it must be there.
            let count = match dice.below(2) {
                0 => 1 + dice.below(trace.ops.len() as u64) as usize,
                _ => {
                    let end = recorded[dice.below(recorded.len() as u64) as usize].to;
                    trace.ops.partition_point(|(at, _)| *at <= end)
                }
            };
            let luck = Luck::of(&mut dice);
            let mut base = Arc::new(tempfile::tempdir().unwrap());
            let image = Image::after(kind, &trace, count, luck, &mut dice);
            with_wal += u64::from(image.has_wal());
            image.write(base.path());
            let now = trace.ops[count - 1].0;
            let mut place = format!(
                "{kind:?}, seed {seed}, cut {tried}, after {count} of {} operations, {luck:?}",
                trace.ops.len()
            );
            // And again while the server tidies up after it, now and then more than once.
            while dice.below(2) == 0
                && let Some(again) = cut_again(kind, &base, &mut dice)
            {
                place +=
                    &format!(", then after {} of {} operations, {:?}", again.count, again.of, again.luck);
                (twice, recovery, base) = (twice + 1, recovery + again.of, again.base);
            }
            in_flight += u32::from(check(&base, &recorded, now, &place));
            tried += 1;
        }
    }
    println!(
        "{cuts} power cuts, {in_flight} of them in the middle of a step, and {twice} more in the {recovery} operations of \
         the recovery: everything acknowledged is there"
    );
    assert!(in_flight > 0 && twice > 10);
    if is_read {
        println!("a WAL was beside a collection at {with_wal} of them");
        assert!(with_wal > cuts / 4);
    }
}

/// A disk on which the power went once more.
struct Again {
    base: Arc<tempfile::TempDir>,
    count: usize,
    of: usize,
    luck: Luck,
}

/// Cuts the power at some operation of a server that starts on what a power cut left, and answers its first requests, as
/// a part of what was interrupted is mended then. None if it had nothing to write.
fn cut_again(kind: FileSystem, base: &Arc<tempfile::TempDir>, dice: &mut Dice) -> Option<Again> {
    let mut trace = Trace::of_start(base.path());
    let disk = Disk::recorded(kind);
    let mut server = disk.start(base);
    found(&server, &[]);
    server.stop();
    trace.read(&disk.log_path(), base.path());
    if trace.ops.is_empty() {
        return None;
    }
    let count = 1 + dice.below(trace.ops.len() as u64) as usize;
    let luck = Luck::of(dice);
    let again = Arc::new(tempfile::tempdir().unwrap());
    Image::after(kind, &trace, count, luck, dice).write(again.path());
    Some(Again { base: again, count, of: trace.ops.len(), luck })
}

/// Starts a server on what a power cut left; tells whether a step was under way.
fn check(base: &Arc<tempfile::TempDir>, recorded: &[Recorded], now: u64, place: &str) -> bool {
    let last = recorded.iter().rfind(|one| one.to <= now);
    let next = recorded.iter().find(|one| one.from < now && now < one.to);
    let step = match (next, last) {
        (Some(next), _) => next.step.clone(),
        (None, Some(last)) => Step { before: last.step.after.clone(), ..last.step.clone() },
        (None, None) => Step { kind: Kind::Sync, before: Default::default(), after: Default::default() },
    };
    let server = TestServer::on(base.clone(), &[]);
    let now = found(&server, &step.before.keys);
    assert!(step.allows(&now), "{place}, {:?}: {}", step.kind, step.difference(&now));
    server.assert_syncs();
    next.is_some()
}

#[test]
fn every_rename_is_of_a_synced_file_and_followed_by_a_sync_of_its_folder() {
    [FileSystem::Xfs, FileSystem::Fat].into_iter().for_each(renames_are_synced);
}

fn renames_are_synced(kind: FileSystem) {
    let seed = setting("SEED", 1);
    let (trace, recorded) = record(kind, seed, 60, false);
    let mut folders = trace.folders.clone();
    let mut names: BTreeMap<String, u64> =
        trace.files.iter().map(|(name, (inode, _))| (name.clone(), *inode)).collect();
    let mut unsynced_files = BTreeSet::new();
    let mut unsynced_folders: BTreeMap<String, String> = BTreeMap::new();
    let (mut renames, mut syncs) = (0, 0);
    let mut ends = recorded.iter().map(|one| (one.to, one.step.kind)).peekable();
    for (at, op) in &trace.ops {
        while let Some((_, name)) = ends.next_if(|(to, _)| to < at) {
            assert!(
                unsynced_folders.is_empty(),
                "{name:?} was acknowledged before these were synced: {unsynced_folders:?}"
            );
        }
        match op {
            Op::Create { path, inode } => drop(names.insert(path.clone(), *inode)),
            Op::MakeFolder { path, inode } => {
                folders.insert(*inode, path.clone());
                unsynced_folders.insert(parent(path).to_owned(), format!("{op:?}"));
            }
            Op::Write { inode, .. } | Op::Truncate { inode, .. } => drop(unsynced_files.insert(*inode)),
            Op::SyncAll => {
                syncs += 1;
                unsynced_files.clear();
                unsynced_folders.clear();
            }
            Op::Sync { inode } => {
                syncs += 1;
                unsynced_files.remove(inode);
                if let Some(folder) = folders.get(inode) {
                    unsynced_folders.remove(folder);
                }
            }
            Op::Rename { from, to } => {
                renames += 1;
                let inode = names.remove(from).expect("a file that is known");
                // What a WAL holds beyond its last commit is worth nothing.
                assert!(!unsynced_files.contains(&inode) || to.ends_with("-wal"), "not synced before {op:?}");
                names.insert(to.clone(), inode);
                if from.contains("/media.new-") {
                    let list = names.get(&format!("{}/media.db-wal", parent(from)));
                    assert!(
                        list.is_some_and(|inode| !unsynced_files.contains(inode)),
                        "the list of renames is not durable before {op:?}"
                    );
                    if kind == FileSystem::Xfs {
                        // The next start does it again, from the list and the new file.
                        assert!(
                            !unsynced_folders.contains_key(parent(from)),
                            "no name to rename again in {op:?}"
                        );
                        continue;
                    }
                }
                // The folder that it comes from may keep its old name as well: uploads that are not wanted are deleted.
                unsynced_folders.insert(parent(to).to_owned(), format!("{op:?}"));
            }
            Op::Unlink { path } => drop(names.remove(path)),
        }
    }
    println!("{kind:?}: {renames} renames and {syncs} syncs in {} operations: all in order", trace.ops.len());
    assert!(renames > 20);
}
