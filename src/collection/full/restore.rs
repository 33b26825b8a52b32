//! Restores a backup in a way that every device notices.
//!
//! If the old file were only copied back, the next normal sync would not notice, and device and server would differ
//! for good. So the restored collection gets a new schema stamp: each device must do a full sync, and its user chooses
//! the direction.

use std::fs::File;
use std::path::Path;

use rusqlite::params;

use crate::collection::full::replace;
use crate::collection::full::upload;
use crate::collection::{Collection, FILE_NAME};
use crate::error::{Error, Result};
use crate::files::sqlite_files::{SIDE_SUFFIXES, with_suffix};
use crate::files::{GentleFile, give_all, remove_if_there};
use crate::os::clock;

/// Replaces the collection in `dir` by a copy of `backup`. The old collection becomes the newest backup. Call only
/// while no server runs.
pub fn restore(dir: &Path, backup: &Path, keep: usize, max_row_bytes: u64) -> Result<()> {
    replace::clean_up(dir)?;
    let copy = replace::upload_path(dir, 0);
    copy_checked(backup, &copy, max_row_bytes)?;
    if let Err(err) = set_new_stamps(dir, &copy) {
        remove_with_side_files(&copy)?;
        return Err(err);
    }
    // Keeps the replaced collection even if backups are turned off, so that the restore can be undone.
    replace::replace(dir, &copy, keep.max(1))?;
    give_all(dir, dir)
}

/// Copies a collection that is not in use; the copy is checked like an upload and upgraded to schema 18. It is on disk
/// when this returns.
pub fn copy_checked(from: &Path, to: &Path, max_row_bytes: u64) -> Result<()> {
    let made = copy_with_side_files(from, to).and_then(|()| fold_and_check(from, to, max_row_bytes));
    if made.is_err() {
        remove_with_side_files(to)?;
    }
    made
}

fn remove_with_side_files(path: &Path) -> Result<()> {
    SIDE_SUFFIXES.iter().chain([&""]).try_for_each(|suffix| remove_if_there(&with_suffix(path, suffix)))
}

/// Copies the file and its journal files, which may hold commits that are not in the file yet.
fn copy_with_side_files(from: &Path, to: &Path) -> Result<()> {
    for suffix in SIDE_SUFFIXES.iter().copied().filter(|suffix| *suffix != "-shm").chain([""]) {
        let (from, to) = (with_suffix(from, suffix), with_suffix(to, suffix));
        if !from.exists() {
            continue;
        }
        let mut source = File::open(&from).map_err(Error::io("opening", &from))?;
        let mut copy = GentleFile::create(&to)?;
        std::io::copy(&mut source, &mut copy)
            .and_then(|_| copy.into_file().sync_all())
            .map_err(Error::io("copying to", &to))?;
    }
    Ok(())
}

fn fold_and_check(from: &Path, copy: &Path, max_row_bytes: u64) -> Result<()> {
    Collection::fold(copy);
    upload::check(copy, max_row_bytes)?
        .map_err(|unfit| Error::Broken(format!("{} cannot be used: {}", from.display(), unfit.reason)))
}

/// Gives the copy new stamps, later than those of the backup and of the current collection, so that no device has them.
fn set_new_stamps(dir: &Path, copy: &Path) -> Result<()> {
    let current = dir.join(FILE_NAME);
    // Not the clock alone: it may be behind.
    let now = match current.exists().then(|| Collection::open_to_read(&current)?.stamps()) {
        Some(Ok(stamps)) => clock::now_millis().max(stamps.schema + 1).max(stamps.modified + 1),
        // A damaged collection is ignored: it may be the reason for the restore.
        Some(Err(_)) | None => clock::now_millis(),
    };
    let restored = Collection::open_alone(copy)?;
    let stamps = restored.stamps()?;
    let now = now.max(stamps.schema + 1).max(stamps.modified + 1);
    restored.db.execute("UPDATE col SET scm = ?1, mod = ?1", params![now])?;
    drop(restored);
    File::open(copy).and_then(|file| file.sync_all()).map_err(Error::io("syncing", copy))
}
