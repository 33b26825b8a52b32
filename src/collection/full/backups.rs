//! Collections that were replaced, kept in the user's folder `backups`: their names, how many are kept.
//!
//! Not here: putting one back (`restore`).

use crate::error::{Error, Result};
use crate::files::sqlite_files::{SIDE_SUFFIXES, with_suffix};
use crate::files::{create_folder, refuse_link, remove_if_there};
use std::fs::{self};
use std::path::{Path, PathBuf};

/// The folder for replaced collections, in the user's folder.
pub(super) const BACKUPS: &str = "backups";

/// The folder of the backups, which may not exist. A symbolic link is refused: its target may be on another disk, where
/// a rename fails, or belong to another user.
pub(super) fn backups_folder(dir: &Path) -> Result<PathBuf> {
    let backups = dir.join(BACKUPS);
    refuse_link(&backups)?;
    Ok(backups)
}

/// The numbers of the existing backups, oldest first.
pub(super) fn backup_numbers(backups: &Path) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(backups).map_err(Error::io("reading", backups))? {
        let name = entry.map_err(Error::io("reading", backups))?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("collection-")?.strip_suffix(".anki2")?.parse().ok());
        numbers.extend::<Option<u32>>(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Backups have numbers instead of dates, because many boards do not know the date.
pub(super) fn backup_path(backups: &Path, number: u32) -> PathBuf {
    backups.join(format!("collection-{number:05}.anki2"))
}

/// A replaced collection.
pub struct Backup {
    /// Higher numbers are newer.
    pub number: u32,
    /// Path of the file.
    pub path: PathBuf,
}

/// The backups in a user's folder, oldest first.
pub fn backups(dir: &Path) -> Result<Vec<Backup>> {
    let backups = backups_folder(dir)?;
    if !backups.exists() {
        return Ok(Vec::new());
    }
    let of_number = |number| Backup { number, path: backup_path(&backups, number) };
    Ok(backup_numbers(&backups)?.into_iter().map(of_number).collect())
}

/// The path of the next backup. Creates the folder of the backups if it is missing.
pub(super) fn next_backup_path(dir: &Path) -> Result<PathBuf> {
    let backups = backups_folder(dir)?;
    create_folder(&backups)?;
    let number = backup_numbers(&backups)?.last().map_or(1, |last| last + 1);
    Ok(backup_path(&backups, number))
}

pub(super) fn delete_old_backups(dir: &Path, keep: usize) -> Result<()> {
    let backups = backups_folder(dir)?;
    if !backups.exists() {
        return Ok(());
    }
    let numbers = backup_numbers(&backups)?;
    for number in &numbers[..numbers.len().saturating_sub(keep)] {
        let backup = backup_path(&backups, *number);
        remove_if_there(&backup)?;
        for suffix in SIDE_SUFFIXES {
            remove_if_there(&with_suffix(&backup, suffix))?;
        }
    }
    Ok(())
}
