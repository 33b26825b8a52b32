//! Replaces the collection by a checked upload, keeps the old one as a backup, and recovers after a crash.
//!
//! At any moment `collection.anki2` or `collection.anki2.new` is a complete, checked collection. The old collection
//! becomes the newest file in `backups/` by a rename; nothing is copied.

use std::fs;
use std::path::{Path, PathBuf};

use crate::collection::full::backups;
use crate::collection::full::backups::{
    BACKUPS, Kind, delete_old_replaced, newest_replaced, next_backup_path,
};
use crate::collection::{Collection, FILE_NAME, LOCK_TIMEOUT, new_collection};
use crate::error::{Error, Result};
use crate::files::spool;
use crate::files::sqlite_files::{SIDE_SUFFIXES, has_side_files, with_suffix};
use crate::files::{lock_for_replacement, remove_if_there, sync_folder};

/// Name prefix of uploads that are being received or checked.
const UPLOAD_PREFIX: &str = "collection.anki2.upload-";

/// Name prefix of copies for old clients.
const OLD_COPY_PREFIX: &str = "collection.anki2.schema11-";

/// Name of a checked upload that is about to become the collection.
const CHECKED: &str = "collection.anki2.new";

/// Name prefix of a copy that `ankipi restore` makes beside a running server.
pub(super) const RESTORE_PREFIX: &str = "collection.anki2.restoring";

/// Name of a checked copy that `ankipi restore` made beside a running server. The server puts it in place with the user's
/// next request, or when it starts: only it knows when nobody has the collection open.
const RESTORED: &str = "collection.anki2.restored";

/// Name prefix of journal files whose collection is missing.
const ORPHANED: &str = "collection.anki2.orphaned";

/// The path of the upload with this number.
pub fn upload_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{UPLOAD_PREFIX}{number}"))
}

/// The path of the copy for an old client with this number.
pub fn old_copy_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{OLD_COPY_PREFIX}{number}"))
}

/// The path of the copy that `ankipi restore` leaves for the server.
pub fn restored_path(dir: &Path) -> PathBuf {
    dir.join(RESTORED)
}

/// Replaces the collection in `dir` by a checked and synced file, and keeps the newest `keep` replaced ones, named by
/// `kind`. Only snapshots may have the old collection open; they continue to read it in the backups. Its journal files
/// move with it, if a snapshot or damage prevents their checkpoint.
///
/// After an error the old collection is still in place, except after `Unconfirmed`.
pub fn replace(dir: &Path, checked: &Path, keep: usize, kind: Kind) -> Result<()> {
    let (current, next) = (dir.join(FILE_NAME), dir.join(CHECKED));
    let _lock = lock_for_replacement(dir, LOCK_TIMEOUT);
    fs::rename(checked, &next).map_err(Error::io("renaming", checked))?;
    if current.exists() {
        let backup = match sync_folder(dir).and_then(|()| next_backup_path(dir, kind)) {
            Ok(backup) => backup,
            Err(err) => {
                let _ = fs::remove_file(&next);
                return Err(err);
            }
        };
        let put = move_with_side_files(&current, &backup)
            .and_then(|()| sync_folder(&dir.join(BACKUPS)))
            .and_then(|()| fs::rename(&next, &current).map_err(Error::io("renaming", &next)));
        if let Err(err) = put {
            return Err(undo_replacement(&backup, dir, err));
        }
    } else {
        sync_folder(dir)?;
        fs::rename(&next, &current).map_err(Error::io("renaming", &next))?;
    }
    sync_folder(dir).map_err(|err| Error::Unconfirmed(err.to_string()))?;
    // The new collection is in place and synced, so the upload has succeeded: only log the error.
    if let Err(err) = delete_old_replaced(dir, keep) {
        log::error!("the new collection is in place, but {err}");
    }
    Ok(())
}

/// Undoes a replacement that failed. If that fails too, there is no collection, and `recover` puts the new one in place
/// once the disk works again.
fn undo_replacement(backup: &Path, dir: &Path, err: Error) -> Error {
    let current = dir.join(FILE_NAME);
    if !current.exists() {
        // The file last: as long as it is missing, `recover` knows that the side files belong to the backup.
        let back = move_side_files(backup, &current)
            .and_then(|()| fs::rename(backup, &current).map_err(Error::io("renaming", backup)));
        if let Err(second) = back {
            return Error::Unconfirmed(format!("{err}; restoring the old collection failed too: {second}"));
        }
    }
    let _ = fs::remove_file(dir.join(CHECKED));
    err
}

/// Moves a collection and the side files that could not be checkpointed. The file moves first: after a crash in
/// between, `recover` moves the remaining side files to the newest backup. In the other order, the collection would
/// silently lack the commits in its WAL.
fn move_with_side_files(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("renaming", from))?;
    move_side_files(from, to)
}

fn move_side_files(from: &Path, to: &Path) -> Result<()> {
    for suffix in SIDE_SUFFIXES {
        let side_file = with_suffix(from, suffix);
        if side_file.exists() {
            fs::rename(&side_file, with_suffix(to, suffix)).map_err(Error::io("renaming", &side_file))?;
        }
    }
    Ok(())
}

/// Renames the side files of a collection that was replaced or taken away, so that they are not applied to the next one.
pub fn put_side_files_aside(dir: &Path) -> Result<()> {
    move_side_files(&dir.join(FILE_NAME), &dir.join(ORPHANED))
}

/// Finishes a replacement that was interrupted between its renames: its upload is complete, checked and synced. Returns
/// whether `dir` has a collection then.
pub fn recover(dir: &Path) -> Result<bool> {
    let (current, next) = (dir.join(FILE_NAME), dir.join(CHECKED));
    let is_there = |path: &Path| path.try_exists().map_err(Error::io("looking for", path));
    if is_there(&current)? {
        return Ok(true);
    }
    if !is_there(&next)? {
        // The owner removed the collection, but not its journal. SQLite would apply that to the next collection.
        if has_side_files(&current) {
            log::warn!(
                "{}: missing, but its journal exists; renaming that to {ORPHANED}-*",
                current.display()
            );
            put_side_files_aside(dir)?;
        }
        return Ok(false);
    }
    // The remaining side files belong to the old collection, which was moved to the backups.
    match newest_replaced(dir)? {
        Some(newest) => move_side_files(&current, &newest.path)?,
        None => {
            SIDE_SUFFIXES.iter().try_for_each(|suffix| remove_if_there(&with_suffix(&current, suffix)))?
        }
    }
    fs::rename(&next, &current).map_err(Error::io("renaming", &next))?;
    sync_folder(dir)?;
    log::warn!("{}: finished an upload that was interrupted after its check", dir.display());
    Ok(true)
}

/// Finishes an interrupted replacement, rolls back an interrupted sync and deletes temporary files in a user's folder.
/// Runs before the first request.
pub fn clean_up(dir: &Path) -> Result<()> {
    let current = dir.join(FILE_NAME);
    if recover(dir)? && has_side_files(&current) {
        log::warn!("{}: a sync was interrupted; recovering from its journal", current.display());
        Collection::recover_journal(&current);
    }
    for entry in fs::read_dir(dir).map_err(Error::io("reading", dir))? {
        let entry = entry.map_err(Error::io("reading", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let leftover = name.starts_with(UPLOAD_PREFIX)
            || name.starts_with(OLD_COPY_PREFIX)
            || name.starts_with(CHECKED)
            || name.starts_with(RESTORE_PREFIX)
            || name.starts_with(new_collection::TEMPORARY)
            || name.starts_with(spool::LEFTOVER_PREFIX);
        if leftover {
            log::warn!("{}: removed {name}, which an interrupted request had left", dir.display());
            remove_if_there(&entry.path())?;
        }
    }
    backups::remove_unfinished(dir)?;
    sync_folder(dir)
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::collection::full::backups::{Kind, backup_path, backups};
    use crate::collection::full::download::Snapshot;
    use crate::collection::{Journal, LOCK_TIMEOUT};
    use crate::files::lock_against_replacement;

    /// A folder with a collection whose crt is `created`.
    fn collection(dir: &Path, name: &str, created: i64) -> PathBuf {
        let scratch = tempfile::tempdir_in(dir).unwrap();
        crate::collection::new_collection::create(scratch.path()).unwrap();
        let made = scratch.path().join(FILE_NAME);
        rusqlite::Connection::open(&made).unwrap().execute("UPDATE col SET crt = ?1", [created]).unwrap();
        let path = dir.join(name);
        fs::rename(made, &path).unwrap();
        path
    }

    fn created(path: &Path) -> i64 {
        Collection::open_to_read(path)
            .unwrap()
            .db
            .query_row("SELECT crt FROM col", [], |row| row.get(0))
            .unwrap()
    }

    fn kept_numbers(dir: &Path) -> Vec<u32> {
        backups(dir).unwrap().into_iter().map(|backup| backup.number).collect()
    }

    /// A copy of a collection with its journal, made while it is open.
    fn as_a_crash_leaves(current: &Path, journal: &str) -> tempfile::TempDir {
        let crashed = tempfile::tempdir().unwrap();
        for suffix in ["", journal] {
            let from = with_suffix(current, suffix);
            fs::copy(&from, crashed.path().join(from.file_name().unwrap())).unwrap();
        }
        crashed
    }

    /// A collection as a crash during a sync leaves it. Its crt was 1 before the sync; uncommitted pages are in the
    /// file.
    fn crashed_while_syncing() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let current = collection(dir.path(), FILE_NAME, 1);
        let open = Collection::open_alone(&current).unwrap();
        open.begin().unwrap();
        open.db.execute("UPDATE col SET crt = 2", []).unwrap();
        // Larger than the page cache, so that SQLite writes pages before the commit.
        open.db.execute("INSERT INTO tags VALUES (?1, 0, 0, NULL)", ["x".repeat(4 << 20)]).unwrap();
        let crashed = as_a_crash_leaves(&current, "-journal");
        assert!(fs::metadata(crashed.path().join(FILE_NAME)).unwrap().len() > 2 << 20, "nothing was spilled");
        crashed
    }

    #[test]
    fn the_newest_backups_are_kept_and_the_first_upload_needs_none() {
        let dir = tempfile::tempdir().unwrap();
        for n in 1..=5 {
            let upload = collection(dir.path(), "collection.anki2.upload-7", n);
            replace(dir.path(), &upload, 3, Kind::Replaced).unwrap();
            assert_eq!(created(&dir.path().join(FILE_NAME)), n);
        }
        let folder = dir.path().join(BACKUPS);
        let kept: Vec<_> = kept_numbers(dir.path());
        assert_eq!(kept, [2, 3, 4]);
        assert_eq!(created(&backup_path(&folder, 4, Kind::Replaced)), 4);
    }

    #[test]
    fn nothing_is_replaced_while_a_command_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let current = collection(dir.path(), FILE_NAME, 1);
        let upload = collection(dir.path(), "collection.anki2.upload-7", 2);
        let in_place = lock_against_replacement(dir.path()).unwrap();
        thread::scope(|scope| {
            let replacing = scope.spawn(|| replace(dir.path(), &upload, 3, Kind::Replaced));
            thread::sleep(Duration::from_millis(100));
            assert_eq!(created(&current), 1, "replaced while the command had it open");
            drop(in_place);
            replacing.join().unwrap().unwrap();
        });
        assert_eq!(created(&current), 2);
    }

    #[test]
    fn a_backup_that_cannot_go_does_not_undo_the_upload() {
        let dir = tempfile::tempdir().unwrap();
        // A folder in place of a backup: deleting it as a file fails.
        fs::create_dir_all(backup_path(&dir.path().join(BACKUPS), 1, Kind::Replaced)).unwrap();
        for n in 1..=2 {
            let upload = collection(dir.path(), "collection.anki2.upload-7", n);
            replace(dir.path(), &upload, 0, Kind::Replaced).unwrap();
            assert_eq!(created(&dir.path().join(FILE_NAME)), n);
        }
    }

    #[test]
    fn an_upload_that_cannot_take_the_place_leaves_the_old_one_there() {
        let dir = tempfile::tempdir().unwrap();
        collection(dir.path(), FILE_NAME, 1);
        let upload = collection(dir.path(), "collection.anki2.upload-7", 2);
        fs::write(dir.path().join(BACKUPS), "where a folder should be").unwrap();
        replace(dir.path(), &upload, 3, Kind::Replaced).unwrap_err();
        assert_eq!(created(&dir.path().join(FILE_NAME)), 1);
    }

    #[test]
    fn a_commit_that_only_the_wal_holds_is_in_the_backup() {
        let dir = tempfile::tempdir().unwrap();
        let current = collection(dir.path(), FILE_NAME, 1);
        let _reader = Snapshot::open_beside_syncs(&current, LOCK_TIMEOUT).unwrap();
        let open = Collection::open(&current, Journal::Wal).unwrap();
        open.db.execute("UPDATE col SET crt = 2", []).unwrap();
        let crashed = as_a_crash_leaves(&current, "-wal");
        let upload = collection(crashed.path(), "collection.anki2.upload-0", 3);
        replace(crashed.path(), &upload, 3, Kind::Replaced).unwrap();
        assert_eq!(created(&crashed.path().join(FILE_NAME)), 3);
        assert_eq!(created(&backup_path(&crashed.path().join(BACKUPS), 1, Kind::Replaced)), 2);
    }

    #[test]
    fn what_was_not_committed_is_not_in_the_backup() {
        let crashed = crashed_while_syncing();
        let upload = collection(crashed.path(), "collection.anki2.upload-0", 3);
        replace(crashed.path(), &upload, 3, Kind::Replaced).unwrap();
        assert_eq!(created(&crashed.path().join(FILE_NAME)), 3);
        assert_eq!(created(&backup_path(&crashed.path().join(BACKUPS), 1, Kind::Replaced)), 1);
    }

    #[test]
    fn a_start_takes_back_what_was_not_committed() {
        let crashed = crashed_while_syncing();
        clean_up(crashed.path()).unwrap();
        let left = fs::read_dir(crashed.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), [FILE_NAME]);
        assert_eq!(created(&crashed.path().join(FILE_NAME)), 1);
    }

    #[test]
    fn a_crash_between_the_renames_ends_with_the_upload_in_place() {
        let dir = tempfile::tempdir().unwrap();
        collection(dir.path(), CHECKED, 8);
        fs::write(dir.path().join("collection.anki2-wal"), "of the old one").unwrap();
        fs::write(dir.path().join("collection.anki2.upload-3"), "half").unwrap();
        fs::write(dir.path().join("collection.anki2.schema11-4"), "half").unwrap();
        fs::write(dir.path().join("spool-1-1"), "half").unwrap();
        clean_up(dir.path()).unwrap();
        assert_eq!(created(&dir.path().join(FILE_NAME)), 8);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_wal_that_was_left_behind_goes_to_the_backup_that_it_belongs_to() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(BACKUPS)).unwrap();
        collection(dir.path(), "backups/collection-00004.anki2", 1);
        collection(dir.path(), CHECKED, 2);
        fs::write(dir.path().join("collection.anki2-wal"), "commits of the old one").unwrap();
        assert!(recover(dir.path()).unwrap());
        assert_eq!(created(&dir.path().join(FILE_NAME)), 2);
        let wal = fs::read(dir.path().join("backups/collection-00004.anki2-wal")).unwrap();
        assert_eq!(wal, b"commits of the old one");
    }

    #[test]
    fn a_checked_upload_that_was_not_acknowledged_gives_way_to_the_collection() {
        let dir = tempfile::tempdir().unwrap();
        collection(dir.path(), FILE_NAME, 1);
        collection(dir.path(), CHECKED, 2);
        clean_up(dir.path()).unwrap();
        assert_eq!(created(&dir.path().join(FILE_NAME)), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
