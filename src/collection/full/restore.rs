//! Going back to a backup, in a way that every device notices.
//!
//! A collection that merely went back in time would take part in the next normal sync as if nothing had happened. With
//! a schema stamp of its own it asks each device for a full sync, in which the user chooses.

use std::fs::File;
use std::path::Path;

use rusqlite::params;

use crate::collection::full::replace;
use crate::collection::full::replace::{SIDE_SUFFIXES, with_suffix};
use crate::collection::full::upload;
use crate::collection::{Collection, FILE_NAME};
use crate::error::{Error, Result};
use crate::files::{GentleFile, give_all, remove_if_there};
use crate::os::clock;

/// Puts a copy of `backup` in the place of the collection in `dir`, which becomes the newest backup. No server may run.
pub fn restore(dir: &Path, backup: &Path, keep: usize, max_row_bytes: u64) -> Result<()> {
    replace::clean_up(dir)?;
    let copy = replace::upload_path(dir, 0);
    copy_checked(backup, &copy, max_row_bytes)?;
    if let Err(err) = make_new(dir, &copy) {
        remove_with_side_files(&copy)?;
        return Err(err);
    }
    // What is replaced is kept, whatever the settings say: this command is for second thoughts.
    replace::replace(dir, &copy, keep.max(1))?;
    give_all(dir, dir)
}

/// Makes a copy of a collection that is not in use, checked as an upload is and brought to our schema. It is on the disk
/// when this returns.
pub fn copy_checked(from: &Path, to: &Path, max_row_bytes: u64) -> Result<()> {
    let made = copy_whole(from, to).and_then(|()| fold_and_check(from, to, max_row_bytes));
    if made.is_err() {
        remove_with_side_files(to)?;
    }
    made
}

fn remove_with_side_files(path: &Path) -> Result<()> {
    SIDE_SUFFIXES.iter().chain([&""]).try_for_each(|suffix| remove_if_there(&with_suffix(path, suffix)))
}

/// With the side files, which hold the newest commits of a collection that could not be folded.
fn copy_whole(from: &Path, to: &Path) -> Result<()> {
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

/// Gives the copy stamps that no device holds.
fn make_new(dir: &Path, copy: &Path) -> Result<()> {
    let current = dir.join(FILE_NAME);
    // Also where the clock of the board is wrong.
    let now = match current.exists().then(|| Collection::open_to_read(&current)?.stamps()) {
        Some(Ok(stamps)) => clock::now_millis().max(stamps.schema + 1).max(stamps.modified + 1),
        // A damaged collection is a reason to be here.
        Some(Err(_)) | None => clock::now_millis(),
    };
    let restored = Collection::open(copy)?;
    let stamps = restored.stamps()?;
    let now = now.max(stamps.schema + 1).max(stamps.modified + 1);
    restored.db.execute("UPDATE col SET scm = ?1, mod = ?1", params![now])?;
    drop(restored);
    File::open(copy).and_then(|file| file.sync_all()).map_err(Error::io("syncing", copy))
}
