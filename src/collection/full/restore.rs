//! Restores a backup in a way that every device notices.
//!
//! If the old file were only copied back, the next normal sync would not notice, and device and server would differ
//! for good. So the restored collection gets a new schema stamp: each device must do a full sync, and its user chooses
//! the direction.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rusqlite::params;

use crate::collection::full::backups::Kind;
use crate::collection::full::replace;
use crate::collection::full::upload;
use crate::collection::{Collection, FILE_NAME};
use crate::error::{Error, Result};
use crate::files::owner::give_to_owner_of;
use crate::files::sqlite_files::{SIDE_SUFFIXES, remove_with_side_files, with_suffix};
use crate::files::{
    FsyncingFile, give_tree_to_owner, lock_against_replacement, remove_if_there, sync_folder,
};
use crate::os::clock;

/// Replaces the collection in `dir` by a copy of `backup`. The old collection becomes the newest backup, of this kind. Call
/// only while no server runs.
pub fn restore(dir: &Path, backup: &Path, keep: usize, max_row_bytes: u64, kind: Kind) -> Result<()> {
    replace::clean_up(dir)?;
    let copy = temporary_path(dir);
    copy_with_new_stamps(dir, backup, &copy, max_row_bytes)?;
    withdraw_waiting(dir)?;
    // Keeps the replaced collection even if backups are turned off, so that the restore can be undone.
    replace::replace(dir, &copy, keep.max(1), kind)?;
    give_tree_to_owner(dir, dir)
}

/// Makes a copy of `backup`, which the running server puts in place at the user's next request
/// (`put_waiting_in_place`).
pub fn leave_for_server(dir: &Path, backup: &Path, max_row_bytes: u64) -> Result<()> {
    let copy = temporary_path(dir);
    copy_with_new_stamps(dir, backup, &copy, max_row_bytes)?;
    let put = || {
        let file = File::open(&copy).map_err(Error::io("opening", &copy))?;
        give_to_owner_of(dir, &file).map_err(Error::io("giving away", &copy))?;
        fs::rename(&copy, replace::restored_path(dir)).map_err(Error::io("renaming", &copy))?;
        sync_folder(dir)
    };
    let put = put();
    if put.is_err() {
        remove_if_there(&copy)?;
    }
    put
}

/// Whether a copy from `leave_for_server` is waiting. One system call.
pub fn is_waiting(dir: &Path) -> bool {
    replace::restored_path(dir).exists()
}

/// Deletes a waiting copy, before a later restore or import: the next start of the server would put it in the place of that.
fn withdraw_waiting(dir: &Path) -> Result<()> {
    remove_if_there(&replace::restored_path(dir))
}

/// Puts the waiting copy in place. Call only while no connection of this process is open.
pub fn put_waiting_in_place(dir: &Path, keep: usize) -> Result<()> {
    log::info!("{}: a backup was restored; every device will be asked for a full sync", dir.display());
    replace::replace(dir, &replace::restored_path(dir), keep.max(1), Kind::Restored)
}

/// Checks a collection as an upload is checked, and gives it new stamps. `from` is where it came from, for the error.
pub fn check_and_stamp(dir: &Path, from: &Path, copy: &Path, max_row_bytes: u64) -> Result<()> {
    checkpoint_and_check(from, copy, max_row_bytes)?;
    set_new_stamps(dir, copy)
}

/// Replaces the collection in `dir` by one that `check_and_stamp` has checked. Call only while no server runs.
pub fn put_imported(dir: &Path, copy: &Path, keep: usize) -> Result<()> {
    replace::recover(dir)?;
    Collection::recover_journal(&dir.join(FILE_NAME));
    withdraw_waiting(dir)?;
    replace::replace(dir, copy, keep.max(1), Kind::Imported)?;
    give_tree_to_owner(dir, dir)
}

/// Where a copy is made before it is checked. The path contains the process id, because two commands may run at once.
pub fn temporary_path(dir: &Path) -> PathBuf {
    dir.join(format!("{}-{}", replace::RESTORE_PREFIX, std::process::id()))
}

fn copy_with_new_stamps(dir: &Path, backup: &Path, copy: &Path, max_row_bytes: u64) -> Result<()> {
    copy_checked(backup, copy, max_row_bytes)?;
    let stamped = set_new_stamps(dir, copy);
    if stamped.is_err() {
        remove_with_side_files(copy)?;
    }
    stamped
}

/// Copies a collection that is not in use; the copy is checked like an upload and upgraded to schema 18. It is on disk
/// when this returns.
pub fn copy_checked(from: &Path, to: &Path, max_row_bytes: u64) -> Result<()> {
    let made = copy_with_side_files(from, to).and_then(|()| checkpoint_and_check(from, to, max_row_bytes));
    if made.is_err() {
        remove_with_side_files(to)?;
    }
    made
}

/// Copies the file and its journal files, which may hold commits that are not in the file yet.
fn copy_with_side_files(from: &Path, to: &Path) -> Result<()> {
    for suffix in SIDE_SUFFIXES.iter().copied().filter(|suffix| *suffix != "-shm").chain([""]) {
        let (from, to) = (with_suffix(from, suffix), with_suffix(to, suffix));
        if !from.exists() {
            continue;
        }
        let mut source = File::open(&from).map_err(Error::io("opening", &from))?;
        let mut copy = FsyncingFile::create(&to)?;
        std::io::copy(&mut source, &mut copy)
            .and_then(|_| copy.into_file().sync_all())
            .map_err(Error::io("copying to", &to))?;
    }
    Ok(())
}

fn checkpoint_and_check(from: &Path, copy: &Path, max_row_bytes: u64) -> Result<()> {
    Collection::recover_journal(copy);
    upload::check(copy, max_row_bytes)?
        .map_err(|fault| Error::Broken(format!("{} cannot be used: {}", from.display(), fault.reason)))
}

/// Gives the copy new stamps, later than those of the backup and of the current collection, so that no device has them.
fn set_new_stamps(dir: &Path, copy: &Path) -> Result<()> {
    let current = dir.join(FILE_NAME);
    let _in_place = lock_against_replacement(dir);
    // Do not rely on the clock alone, because it may be behind.
    let now = match current.exists().then(|| Collection::open_beside_server(&current)?.stamps()) {
        Some(Ok(stamps)) => clock::now_millis().max(stamps.schema + 1).max(stamps.modified + 1),
        // Busy with a sync, or damaged, which may be the reason for the restore. Then the clock decides.
        Some(Err(_)) | None => clock::now_millis(),
    };
    let restored = Collection::open_alone(copy)?;
    let stamps = restored.stamps()?;
    let now = now.max(stamps.schema + 1).max(stamps.modified + 1);
    restored.db.execute("UPDATE col SET scm = ?1, mod = ?1", params![now])?;
    drop(restored);
    File::open(copy).and_then(|file| file.sync_all()).map_err(Error::io("syncing", copy))
}
