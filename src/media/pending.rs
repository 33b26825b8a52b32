//! The list of changes that are being put in place, and what is done with it after a crash or a power cut.
//!
//! It is a table in the index. A row stays until a flush of the disk that came after its rename or deletion. All that is
//! done here looks at the current state, so that repeating it is harmless, and so is an old row.
//!
//! An upload that failed because the disk reported an error may have its files in the kernel's memory alone: after that error, the
//! kernel takes them for written. So they are copied, and the copies made durable.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::files;
use crate::files::FsyncingFile;
use crate::files::damaged::put_aside;
use crate::files::spool::unused_path;
use crate::files::temporary::TemporaryFile;
use crate::media::file_paths::FilePaths;
use crate::media::index::{FILE_NAME, MediaDb, Record};
use crate::media::lost_files::{self, Fault};
use crate::media::name::MediaName;
use crate::media::upload::sync_file;
use crate::media::{STAGED_PREFIX, Sha1Sum, file_sha1, is_damage, is_file, ready_folder};
use crate::text::counted::counted;
use crate::text::hex::unhex;

/// The file in which earlier releases kept the list, before they recorded the changes.
const EARLIER_LIST: &str = "media.pending";

/// A change that is being put in place.
struct Pending {
    name: MediaName,
    /// The temporary file that becomes it.
    staged: Option<PathBuf>,
    intended: Intended,
}

/// What the file is to be.
enum Intended {
    /// What its record says.
    AsRecorded,
    /// A file with these contents, which is still to be recorded. Zeros, which no file has, if the text is no checksum.
    New(Sha1Sum),
    /// Deleted.
    Deleted,
}

impl Intended {
    /// SHA-1 of the contents; None if there is to be no file.
    fn sha1(&self, db: &MediaDb, name: &MediaName) -> Result<Option<Sha1Sum>> {
        Ok(match self {
            Intended::New(sha1) => Some(*sha1),
            Intended::AsRecorded => db.record(name)?.filter(Record::is_live).map(|record| record.sha1),
            Intended::Deleted => None,
        })
    }
}

/// An element of `EARLIER_LIST`.
#[derive(Deserialize)]
struct EarlierChange {
    name: String,
    /// Hexadecimal; None if the file is to be deleted.
    sha1: Option<String>,
    staged: Option<String>,
}

/// The temporary files that are listed.
pub fn temporary_files(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(listed(dir)?.into_iter().filter_map(|pending| pending.staged).collect())
}

/// The names whose files are not in place yet.
pub fn unfinished(dir: &Path, paths: &FilePaths, db: &MediaDb) -> Result<Vec<MediaName>> {
    let mut list = listed_by_earlier_release(dir)?;
    list.extend(listed_in(db, dir)?);
    let is_unfinished = |pending: &Pending| match (&pending.staged, &pending.intended) {
        (Some(staged), _) if is_file(staged) => true,
        (_, Intended::Deleted) => has_own_file(paths, &pending.name, db).unwrap_or(false),
        (_, Intended::New(_)) => true,
        _ => false,
    };
    list.retain(is_unfinished);
    Ok(list.into_iter().map(|pending| pending.name).collect())
}

/// Empties the list in the index. Call when all is in place, durably.
pub fn clear(db: &MediaDb) -> Result<()> {
    let mut recording = db.begin()?;
    recording.clear_pending()?;
    recording.commit().map(drop)
}

/// Finishes what was interrupted, so that records and files agree, and empties the list.
pub fn finish(dir: &Path, paths: &FilePaths) -> Result<()> {
    let list = listed(dir)?;
    if list.is_empty() {
        return files::remove_if_there(&dir.join(EARLIER_LIST));
    }
    ready_folder(dir)?;
    let db = MediaDb::open(dir)?;
    for Pending { name, staged, intended } in &list {
        let Some(sha1) = intended.sha1(&db, name)? else { continue };
        let has_contents =
            |path: &Path| Ok::<_, Error>(readable_file(path)?.is_some_and(|found| found.sha1 == sha1));
        let is_in_place = has_own_file(paths, name, &db)? && has_contents(&paths.path_of(name))?;
        let source = match staged {
            // Also of a live record: the rename of its file may be what was lost.
            Some(staged) if !is_in_place && has_contents(staged)? => staged.clone(),
            None if is_in_place => paths.path_of(name),
            _ => continue,
        };
        let copy = TemporaryFile::at(unused_path(dir));
        let placed = match copy_durably(&source, copy.path()) {
            Err(err) if is_lack_of_room(&err) => {
                sync_file(&source)?;
                &source
            }
            copied => copied.map(|()| copy.path())?,
        };
        if *placed != paths.path_of(name) {
            paths.put(placed, name, paths.ignores_case() && db.has_twin(name)?)?;
        }
    }
    let mut recording = db.begin()?;
    let mut gone = Vec::new();
    let (mut recorded, mut other_changes) = (0, 0);
    for Pending { name, intended, .. } in &list {
        let record = db.record(name)?.filter(Record::is_live);
        let is_there = has_own_file(paths, name, &db)?;
        match (intended, record) {
            (Intended::Deleted, None) if is_there => gone.push(paths.path_of(name)),
            (Intended::New(sha1), record) if is_there => {
                if let Some(found) = readable_file(&paths.path_of(name))?.filter(|found| found.sha1 == *sha1)
                    && record.as_ref() != Some(&found)
                {
                    recording.put(name, &found)?;
                    recorded += 1;
                }
            }
            (Intended::AsRecorded, Some(record)) => {
                match lost_files::fault(paths, name, &record)? {
                    None => continue,
                    Some(Fault::Denied) => drop(recording.deny(name)?),
                    Some(fault) => lost_files::forget_file(dir, paths, &db, &mut recording, name, &fault)?,
                }
                other_changes += 1;
            }
            _ => {}
        }
    }
    // Renames may not be durable yet, nor what was recorded: the process may have been killed before the flush.
    paths.sync_renames()?;
    let committed = match recorded + other_changes {
        0 => {
            drop(recording);
            Ok(())
        }
        _ => recording.commit().map(drop),
    };
    sync_if_there(&dir.join(format!("{FILE_NAME}-wal")))?;
    let finished = committed.and_then(|()| {
        gone.iter().try_for_each(|path| files::remove_if_there(path))?;
        paths.sync()?;
        clear(&db)
    });
    match finished {
        Ok(()) => {}
        Err(err) if is_damage(&err) => return Err(err),
        Err(err) => {
            // A full disk, for instance. The next start reads the list again, and until then no file is sent that is not right.
            log::warn!("{}: the list of changes stays in the index of the media: {err}", dir.display());
            return Ok(());
        }
    }
    if recorded + gone.len() > 0 {
        log::warn!(
            "{}: finished a media upload that was interrupted: {} recorded, {} removed",
            dir.display(),
            counted(recorded, "file"),
            gone.len()
        );
    }
    list.iter()
        .filter_map(|pending| pending.staged.as_ref())
        .try_for_each(|staged| files::remove_if_there(staged))?;
    files::remove_if_there(&dir.join(EARLIER_LIST))
}

/// Whether there is a file of this name that is not the file of another one.
fn has_own_file(paths: &FilePaths, name: &MediaName, db: &MediaDb) -> Result<bool> {
    Ok(is_file(&paths.path_of(name)) && !paths.is_of_twin(name, db)?)
}

fn copy_durably(from: &Path, to: &Path) -> Result<()> {
    let mut copy = FsyncingFile::create(to)?;
    File::open(from)
        .and_then(|mut source| io::copy(&mut source, &mut copy))
        .and_then(|_| copy.into_file().sync_all())
        .map_err(Error::io("copying", from))
}

/// Without room for a copy, the file itself is taken: then the disk was full, which is no error that loses what it has taken.
fn is_lack_of_room(err: &Error) -> bool {
    matches!(err, Error::Io(_, _, err) if [libc::ENOSPC, libc::EDQUOT].map(Some).contains(&err.raw_os_error()))
}

fn sync_if_there(path: &Path) -> Result<()> {
    if path.exists() { sync_file(path) } else { Ok(()) }
}

/// Reads both lists.
fn listed(dir: &Path) -> Result<Vec<Pending>> {
    let mut list = listed_by_earlier_release(dir)?;
    if MediaDb::is_missing(dir) {
        return Ok(list);
    }
    list.extend(listed_in(&MediaDb::open_to_read(dir)?, dir)?);
    Ok(list)
}

fn listed_in(db: &MediaDb, dir: &Path) -> Result<Vec<Pending>> {
    let mut list = Vec::new();
    for (name, staged) in db.pending()? {
        let Ok(name) = MediaName::parse(name) else { continue };
        let intended = match db.record(&name)? {
            Some(record) if record.is_live() => Intended::AsRecorded,
            Some(_) => Intended::Deleted,
            None => continue,
        };
        list.push(Pending { name, staged: staged.and_then(|name| staged_path(dir, &name)), intended });
    }
    Ok(list)
}

fn listed_by_earlier_release(dir: &Path) -> Result<Vec<Pending>> {
    let path = dir.join(EARLIER_LIST);
    let json = match fs::read(&path) {
        Ok(json) => json,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) if err.kind() == ErrorKind::IsADirectory => {
            put_aside(dir, &path, EARLIER_LIST);
            return Ok(Vec::new());
        }
        Err(err) => return Err(Error::Io("reading", path, err)),
    };
    // A power cut before the flush can leave this. Nothing was put in place yet.
    if json.is_empty() {
        return Ok(Vec::new());
    }
    let changes: Vec<EarlierChange> = serde_json::from_slice(&json).unwrap_or_else(|err| {
        log::warn!(
            "{}: ignored, as it is not whole. If the power was not cut during an upload, the disk may be failing: {err}",
            path.display()
        );
        Vec::new()
    });
    let pending = |change: EarlierChange| {
        let intended = change.sha1.map(|text| Intended::New(unhex(&text).unwrap_or_default()));
        Some(Pending {
            name: MediaName::parse(change.name).ok()?,
            staged: change.staged.and_then(|name| staged_path(dir, &name)),
            intended: intended.unwrap_or(Intended::Deleted),
        })
    };
    Ok(changes.into_iter().filter_map(pending).collect())
}

/// The path of a temporary file. The list may be damaged: no other file may be taken for one.
fn staged_path(dir: &Path, name: &str) -> Option<PathBuf> {
    (name.starts_with(STAGED_PREFIX) && !name.contains('/')).then(|| dir.join(name))
}

/// A record of this file as it is now. None if there is none, if the disk cannot read it, or if the server may not.
fn readable_file(path: &Path) -> Result<Option<Record>> {
    match file_sha1(path) {
        Err(Error::Io(_, _, err))
            if [libc::EIO, libc::EACCES, libc::EPERM].map(Some).contains(&err.raw_os_error()) =>
        {
            log::warn!("{}: {err}; its device sends the file again", path.display());
            Ok(None)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::files::damaged::DAMAGED_FOLDER;
    use crate::media::check::{Depth, Listener, check};
    use crate::media::test_store::{healed, row, store, sum, zip_of};
    use crate::media::upload::Room;
    use crate::media::{FOLDER, MediaStore};
    use crate::text::hex::hex;

    /// What an earlier release left that was interrupted.
    fn earlier_list(dir: &Path, changes: &[(&str, Option<&str>, Option<&str>)]) {
        let changes: Vec<_> = changes
            .iter()
            .map(|(name, contents, staged)| {
                let sha1 = contents.map(|contents| hex(&sum(contents)));
                serde_json::json!({ "name": name, "sha1": sha1, "staged": staged })
            })
            .collect();
        let mut list = serde_json::to_vec(&changes).unwrap();
        // Some disks got it in a file that was longer.
        list.resize(list.len().next_multiple_of(4096), b' ');
        fs::write(dir.join(EARLIER_LIST), list).unwrap();
    }

    fn list(dir: &Path, changes: &[(&str, Option<&str>)]) {
        let db = MediaDb::open(dir).unwrap();
        let mut recording = db.begin().unwrap();
        recording.list_pending(0, changes.iter().copied()).unwrap();
        recording.commit().unwrap();
    }

    fn listed_names(dir: &Path) -> Vec<(String, Option<String>)> {
        MediaDb::open_to_read(dir).unwrap().pending().unwrap()
    }

    fn upload(store: &MediaStore, dir: &Path, changes: &[(&str, Option<&str>)]) {
        store.upload(&zip_of(dir, changes), &Room::UNLIMITED).unwrap();
    }

    fn file(dir: &Path, name: &str) -> PathBuf {
        dir.join(FOLDER).join(name)
    }

    #[test]
    fn renames_that_a_power_cut_undid_are_done_again() {
        let (dir, store) = store();
        let dir = dir.path();
        upload(&store, dir, &[("a", Some("2")), ("c", Some("3"))]);
        drop(store);
        let staged = |name: &str| {
            let listed = listed_names(dir).into_iter().rfind(|(listed, _)| listed == name);
            dir.join(listed.and_then(|(_, staged)| staged).unwrap())
        };
        fs::rename(file(dir, "a"), staged("a")).unwrap();
        fs::write(file(dir, "a"), "1").unwrap();
        fs::rename(file(dir, "c"), staged("c")).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let unflushed = inode(&staged("c"));
        let other_file = File::open(staged("c")).unwrap();
        assert_eq!(healed(dir), [row("b", 2, Some("1")), row("a", 3, Some("2")), row("c", 4, Some("3"))]);
        // The disk may have refused to write that one.
        assert_ne!(inode(&file(dir, "c")), unflushed);
        drop(other_file);
    }

    /// Of what is flushed at the same time, the record may have arrived and the contents not.
    #[test]
    fn a_record_whose_contents_a_power_cut_took_is_forgotten() {
        for left in [None, Some("?")] {
            let (dir, store) = store();
            let dir = dir.path();
            upload(&store, dir, &[("c", Some("3"))]);
            drop(store);
            fs::remove_file(file(dir, "c")).unwrap();
            if let (Some(left), Some((_, Some(staged)))) = (left, listed_names(dir).pop()) {
                fs::write(dir.join(staged), left).unwrap();
            }
            let sent_again = row("ankipi:forgot", 4, None);
            assert_eq!(healed(dir), [row("a", 1, Some("1")), row("b", 2, Some("1")), sent_again]);
            let left = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
            assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(STAGED_PREFIX)));
            let store = MediaStore::open(dir);
            upload(&store, dir, &[("c", Some("3"))]);
            drop(store);
            assert_eq!(healed(dir).pop(), Some(row("c", 5, Some("3"))));
        }
    }

    #[test]
    fn deleted_files_that_are_still_there_are_removed() {
        let (dir, store) = store();
        let dir = dir.path();
        upload(&store, dir, &[("b", None)]);
        drop(store);
        fs::write(file(dir, "b"), "1").unwrap();
        assert_eq!(healed(dir), [row("a", 1, Some("1")), row("b", 3, None)]);
        assert!(!file(dir, "b").exists());
    }

    #[test]
    fn old_rows_and_odd_ones_do_no_harm() {
        let (dir, store) = store();
        let dir = dir.path();
        drop(store);
        let odd = [
            ("a", Some("media.new-7")),
            ("b", Some("../outside")),
            ("../c", None),
            ("d", None),
            ("e", Some("x")),
        ];
        list(dir, &odd);
        fs::write(dir.join("media.new-7"), "other contents").unwrap();
        fs::write(file(dir, "d"), "which the index does not know").unwrap();
        assert_eq!(healed(dir), [row("a", 1, Some("1")), row("b", 2, Some("1"))]);
        assert!(!dir.join("media.new-7").exists() && file(dir, "d").exists());
    }

    #[test]
    fn the_list_stays_short_while_single_files_come() {
        let (dir, store) = store();
        let dir = dir.path();
        for number in 0..3 * 50 {
            upload(&store, dir, &[(&format!("{number}.jpg"), Some("x"))]);
            // Two uploads, of which the first has two files.
            assert!(listed_names(dir).len() <= 3);
        }
        assert!(listed_names(dir).iter().any(|(name, _)| name == "149.jpg"));
        drop(store);
        assert_eq!(healed(dir).len(), 152);
    }

    /// A store without files that takes its disk for one that ignores case.
    fn store_that_ignores_case() -> (tempfile::TempDir, MediaStore) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(FOLDER.to_ascii_uppercase())).unwrap();
        let store = MediaStore::open(dir.path());
        (dir, store)
    }

    /// On a disk that ignores case, a file whose rename is lost must not go where its twin is.
    #[test]
    fn a_rename_that_is_lost_spares_the_twin() {
        let (dir, store) = store_that_ignores_case();
        let dir = dir.path();
        upload(&store, dir, &[("A", Some("1")), ("a", Some("2"))]);
        drop(store);
        let odd = FilePaths::new(dir).path_of(&MediaName::parse("a".to_owned()).unwrap());
        assert!(!odd.starts_with(dir.join(FOLDER)));
        let staged = listed_names(dir).pop().and_then(|(_, staged)| staged).unwrap();
        fs::rename(&odd, dir.join(staged)).unwrap();
        drop(MediaStore::open(dir));
        assert_eq!(fs::read(odd).unwrap(), b"2");
        assert_eq!(fs::read(file(dir, "A")).unwrap(), b"1");
    }

    /// On such a disk, a picture gets another case by a deletion and an upload.
    #[test]
    fn a_deletion_that_is_done_again_spares_the_twin() {
        let (dir, store) = store_that_ignores_case();
        let dir = dir.path();
        upload(&store, dir, &[("Cat.jpg", Some("1"))]);
        upload(&store, dir, &[("Cat.jpg", None)]);
        upload(&store, dir, &[("cat.jpg", Some("2"))]);
        drop(store);
        list(dir, &[("Cat.jpg", None)]);
        // There it is by this name, too.
        fs::hard_link(file(dir, "cat.jpg"), file(dir, "Cat.jpg")).unwrap();
        let store = MediaStore::open(dir);
        assert_eq!(fs::read(file(dir, "Cat.jpg")).unwrap(), b"2");
        // A record of that name whose file is lost does not take it along either.
        let name = MediaName::parse("Cat.jpg".to_owned()).unwrap();
        let db = MediaDb::open(dir).unwrap();
        let mut recording = db.begin().unwrap();
        recording.put(&name, &Record { sha1: sum("3"), bytes: 1 }).unwrap();
        recording.list_pending(0, [("Cat.jpg", None)].into_iter()).unwrap();
        recording.commit().unwrap();
        drop((db, store));
        let store = MediaStore::open(dir);
        assert_eq!(fs::read(file(dir, "Cat.jpg")).unwrap(), b"2");
        // The deletion of what is awaited from the devices neither.
        upload(&store, dir, &[("Cat.jpg", None)]);
        assert_eq!(fs::read(file(dir, "Cat.jpg")).unwrap(), b"2");
        assert_eq!(store.totals().unwrap().files, 1);
    }

    /// One that is not where a name of its case would be is no twin to spare.
    #[test]
    fn a_file_is_deleted_though_its_twin_is_elsewhere() {
        let (dir, store) = store_that_ignores_case();
        let dir = dir.path();
        upload(&store, dir, &[("A", Some("1")), ("a", Some("2"))]);
        upload(&store, dir, &[("A", None)]);
        assert!(!file(dir, "A").exists());
        assert_eq!(store.totals().unwrap().files, 1);
    }

    /// Recovering may need the room that temporary files of another upload take.
    #[test]
    fn what_recovering_does_not_need_is_removed_before_it_may_fail() {
        let (dir, store) = store();
        let dir = dir.path();
        drop(store);
        list(dir, &[("a", Some("media.new-4"))]);
        fs::write(dir.join("media.new-4"), "1").unwrap();
        fs::write(dir.join("media.new-5"), "of another upload").unwrap();
        // A folder that cannot be put aside is where the file belongs, and there is no other place for it.
        fs::write(dir.join(DAMAGED_FOLDER), "").unwrap();
        fs::write(dir.join("media.odd"), "").unwrap();
        fs::remove_file(file(dir, "a")).unwrap();
        fs::create_dir(file(dir, "a")).unwrap();
        drop(MediaStore::open(dir));
        assert!(dir.join("media.new-4").exists() && !dir.join("media.new-5").exists());
        fs::remove_dir(file(dir, "a")).unwrap();
        assert_eq!(healed(dir), [row("a", 1, Some("1")), row("b", 2, Some("1"))]);
    }

    #[test]
    fn a_check_does_not_take_a_file_on_its_way_for_lost() {
        struct Findings(Vec<String>, Vec<String>);
        impl Listener for Findings {
            fn problem(&mut self, what: String) {
                self.0.push(what);
            }
            fn note(&mut self, what: String) {
                self.1.push(what);
            }
            fn progress(&mut self, _: u64, _: u64) {}
        }
        let (dir, store) = store();
        let dir = dir.path();
        upload(&store, dir, &[("c", Some("3"))]);
        let findings = || {
            let mut found = Findings(Vec::new(), Vec::new());
            check(dir, Depth::default(), &mut found).unwrap();
            found
        };
        let Findings(problems, notes) = findings();
        assert!(problems.is_empty() && notes.is_empty(), "{problems:?} {notes:?}");
        let staged = dir.join(listed_names(dir).pop().and_then(|(_, staged)| staged).unwrap());
        fs::rename(file(dir, "c"), &staged).unwrap();
        let Findings(problems, notes) = findings();
        assert!(problems.is_empty() && notes[0].contains("1 media file"), "{problems:?} {notes:?}");
        fs::remove_file(staged).unwrap();
        assert_eq!(findings().0, ["\"c\" is missing"]);
    }

    #[test]
    fn what_an_earlier_release_left_is_finished() {
        // Before its renames, with and without its temporary files.
        let (dir, interrupted) = store();
        drop(interrupted);
        earlier_list(dir.path(), &[("a", Some("2"), None), ("b", None, None), ("c", Some("3"), None)]);
        fs::write(dir.path().join("media.new-0"), "2").unwrap();
        assert_eq!(healed(dir.path()), [row("a", 1, Some("1")), row("b", 2, Some("1"))]);
        assert!(!dir.path().join("media.new-0").exists());
        let staged = [
            ("a", Some("2"), Some("media.new-7")),
            ("c", Some("3"), Some("media.new-8")),
            ("d", Some("4"), Some("../x")),
        ];
        earlier_list(dir.path(), &staged);
        fs::write(dir.path().join("media.new-7"), "2").unwrap();
        fs::write(dir.path().join("media.new-8"), "3").unwrap();
        let expected = [row("b", 2, Some("1")), row("a", 3, Some("2")), row("c", 4, Some("3"))];
        assert_eq!(healed(dir.path()), expected);
        // Between its renames and the record; after the record of a deletion; long ago; damaged.
        earlier_list(dir.path(), &[("e", Some("5"), None), ("f", Some("6"), None)]);
        fs::write(file(dir.path(), "e"), "5").unwrap();
        assert_eq!(healed(dir.path()).pop(), Some(row("e", 5, Some("5"))));
        let store = MediaStore::open(dir.path());
        upload(&store, dir.path(), &[("b", None)]);
        store.close();
        drop(store);
        earlier_list(dir.path(), &[("b", None, None), ("a", Some("0"), None), ("../c", Some("1"), None)]);
        fs::write(file(dir.path(), "b"), "1").unwrap();
        assert_eq!(healed(dir.path()).pop(), Some(row("b", 6, None)));
        assert!(!file(dir.path(), "b").exists());
        fs::write(dir.path().join(EARLIER_LIST), "[{\"na").unwrap();
        assert_eq!(healed(dir.path()).len(), 4);
    }
}
