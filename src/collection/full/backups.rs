//! The backups of a collection in the user's folder `backups`: their names, what made them, how many are kept.
//!
//! Not here: making the daily ones (`sync::daily_backup`), putting one back (`restore`).

use crate::error::{Error, Result};
use crate::files::sqlite_files::remove_with_side_files;
use crate::files::{create_folder, lock_for_replacement, refuse_link, remove_if_there, sync_folder};
use crate::os::clock::{self, Day};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The folder for the copies, in the user's folder.
pub(super) const BACKUPS: &str = "backups";

/// End of the name of a copy that is being made.
const UNFINISHED: &str = ".new";

/// Timeout for the lock under which a finished copy gets its number. A full upload or another copy may hold it.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// What made a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A full upload replaced it.
    Replaced,
    /// `ankipi restore` replaced it.
    Restored,
    /// `ankipi import` replaced it.
    Imported,
    /// The server copied it before the first sync of a day.
    Daily,
    /// `ankipi backup make` copied it.
    Made,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Replaced, Kind::Restored, Kind::Imported, Kind::Daily, Kind::Made];

    /// How names of such backups begin.
    fn prefix(self) -> &'static str {
        match self {
            Kind::Replaced => "collection",
            Kind::Restored => "restore",
            Kind::Imported => "import",
            Kind::Daily => "day",
            Kind::Made => "made",
        }
    }

    /// Whether this was the collection itself before it was replaced, and not a copy of it.
    fn was_in_use(self) -> bool {
        !matches!(self, Kind::Daily | Kind::Made)
    }

    /// For people.
    pub fn made_by(self) -> &'static str {
        match self {
            Kind::Replaced => "an upload replaced it",
            Kind::Restored => "a restore replaced it",
            Kind::Imported => "an import replaced it",
            Kind::Daily => "before the first sync of the day",
            Kind::Made => "ankipi backup make",
        }
    }
}

/// A copy of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Higher numbers are newer.
    pub number: u32,
    /// What made it.
    pub kind: Kind,
    /// The day on which it was made. Replaced collections have no day in their names, because their rename must not
    /// depend on the clock.
    pub day: Option<Day>,
    /// Path of the file.
    pub path: PathBuf,
}

impl Backup {
    /// Numbers tell the order, as many boards do not know the date: `collection-00007.anki2`, `day-00008-2026-11-28.anki2`.
    fn parse(path: PathBuf) -> Option<Backup> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".anki2")?;
        let (prefix, rest) = stem.split_once('-')?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.prefix() == prefix)?;
        let (number, day) = match rest.split_once('-') {
            Some((number, day)) => (number, Some(day.parse().ok()?)),
            None => (rest, None),
        };
        Some(Backup { number: number.parse().ok()?, kind, day, path })
    }
}

/// The folder of the backups, which may not exist. A symbolic link is refused: its target may be on another disk, where
/// a rename fails, or belong to another user.
pub(super) fn backups_folder(dir: &Path) -> Result<PathBuf> {
    let backups = dir.join(BACKUPS);
    refuse_link(&backups)?;
    Ok(backups)
}

/// The path of a new backup with this number.
pub(super) fn backup_path(backups: &Path, number: u32, kind: Kind) -> PathBuf {
    let prefix = kind.prefix();
    backups.join(if kind.was_in_use() {
        format!("{prefix}-{number:05}.anki2")
    } else {
        format!("{prefix}-{number:05}-{}.anki2", clock::today())
    })
}

/// The backups in a user's folder, oldest first.
pub fn backups(dir: &Path) -> Result<Vec<Backup>> {
    let folder = backups_folder(dir)?;
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut backups = Vec::new();
    for entry in fs::read_dir(&folder).map_err(Error::io("reading", &folder))? {
        backups.extend(Backup::parse(entry.map_err(Error::io("reading", &folder))?.path()));
    }
    backups.sort_unstable_by_key(|backup| backup.number);
    Ok(backups)
}

/// The path of the next backup. Creates the folder of the backups if it is missing.
pub(super) fn next_backup_path(dir: &Path, kind: Kind) -> Result<PathBuf> {
    let folder = backups_folder(dir)?;
    create_folder(&folder)?;
    let number = backups(dir)?.last().map_or(1, |last| last.number + 1);
    Ok(backup_path(&folder, number, kind))
}

/// The newest collection that was in use and then replaced.
pub(super) fn newest_replaced(dir: &Path) -> Result<Option<Backup>> {
    Ok(backups(dir)?.into_iter().rfind(|backup| backup.kind.was_in_use()))
}

/// A path for a copy that is being made, in the folder of the backups, which is created if it is missing. `name` keeps
/// processes apart.
pub fn unfinished_path(dir: &Path, name: &str) -> Result<PathBuf> {
    let folder = backups_folder(dir)?;
    create_folder(&folder)?;
    Ok(folder.join(format!("{name}{UNFINISHED}")))
}

/// Gives a complete and synced copy its name as the newest backup. It is durable when this returns.
pub fn store(dir: &Path, unfinished: &Path, kind: Kind) -> Result<Backup> {
    // A full upload that is put in place picks a number, too.
    let _lock = lock_for_replacement(dir, STORE_TIMEOUT);
    let path = next_backup_path(dir, kind)?;
    fs::rename(unfinished, &path).map_err(Error::io("renaming", unfinished))?;
    sync_folder(&backups_folder(dir)?)?;
    Backup::parse(path).ok_or_else(|| Error::Broken("a backup has no name".to_owned()))
}

/// Removes copies that were not finished.
pub(super) fn remove_unfinished(dir: &Path) -> Result<()> {
    let folder = backups_folder(dir)?;
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Deletes all but the newest `keep` collections that were in use.
pub(super) fn delete_old_replaced(dir: &Path, keep: usize) -> Result<()> {
    delete_all_but(dir, keep, Kind::was_in_use)
}

/// Deletes all but the newest `keep` that `ankipi backup make` made.
pub fn delete_old_made(dir: &Path, keep: usize) -> Result<()> {
    delete_all_but(dir, keep, |kind| kind == Kind::Made)
}

fn delete_all_but(dir: &Path, keep: usize, which: fn(Kind) -> bool) -> Result<()> {
    let mut backups = backups(dir)?;
    backups.retain(|backup| which(backup.kind));
    backups.truncate(backups.len().saturating_sub(keep));
    backups.iter().try_for_each(|backup| remove_with_side_files(&backup.path))
}

/// Deletes old daily copies: keeps the newest `days`, and of those before them the newest of each week, for `weeks` weeks.
/// Only the order and the dates of the copies count, not the clock: one that is wrong must not delete them all.
pub fn delete_old_daily(dir: &Path, days: usize, weeks: usize) -> Result<()> {
    let mut daily = backups(dir)?;
    daily.retain(|backup| backup.kind == Kind::Daily);
    daily.truncate(daily.len().saturating_sub(days));
    let mut kept = Vec::new();
    for backup in daily.iter().rev() {
        let week = backup.day.map(Day::week);
        if kept.contains(&week) || kept.len() >= weeks {
            remove_with_side_files(&backup.path)?;
        } else {
            kept.push(week);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |backup: Backup| backup.path.file_name().unwrap().to_string_lossy().into_owned();
        backups(dir).unwrap().into_iter().map(name).collect()
    }

    #[test]
    fn names_tell_kind_number_and_day() {
        let dir = tempfile::tempdir().unwrap();
        for kind in Kind::ALL {
            let unfinished = unfinished_path(dir.path(), "x").unwrap();
            fs::write(&unfinished, "").unwrap();
            let stored = store(dir.path(), &unfinished, kind).unwrap();
            assert_eq!((stored.kind, stored.day.is_some()), (kind, !kind.was_in_use()));
            assert_eq!(backups(dir.path()).unwrap().last(), Some(&stored));
        }
        fs::write(dir.path().join("backups/of-somebody-else.anki2"), "").unwrap();
        fs::write(dir.path().join("backups/day-1.new"), "").unwrap();
        assert_eq!(
            backups(dir.path()).unwrap().iter().map(|backup| backup.number).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5]
        );
        assert_eq!(newest_replaced(dir.path()).unwrap().unwrap().kind, Kind::Imported);
        remove_unfinished(dir.path()).unwrap();
        assert!(!dir.path().join("backups/day-1.new").exists());
        delete_old_replaced(dir.path(), 1).unwrap();
        delete_old_made(dir.path(), 0).unwrap();
        assert_eq!(names(dir.path())[0], "import-00003.anki2");
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn a_week_of_days_is_kept_and_then_weeks() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(BACKUPS)).unwrap();
        let mut newest = Vec::new();
        for number in 0..100u32 {
            let date = Day::from_number(20_000 + i32::try_from(number).unwrap());
            let name = format!("day-{number:05}-{date}.anki2");
            fs::write(dir.path().join(BACKUPS).join(&name), "").unwrap();
            newest.push(name);
            delete_old_daily(dir.path(), 7, 4).unwrap();
            let kept = names(dir.path());
            assert!(kept.ends_with(&newest[newest.len().saturating_sub(7)..]), "{kept:?}");
            assert!(kept.len() <= 11);
        }
        let kept = names(dir.path());
        assert_eq!(kept.len(), 11);
        let days: Vec<_> = backups(dir.path()).unwrap().into_iter().map(|backup| backup.number).collect();
        // The last one of the weeks is of the one that is not over.
        assert!(days[..3].windows(2).all(|pair| pair[1] - pair[0] == 7), "{days:?}");
        // A clock far ahead adds one, and takes no more than usual.
        fs::write(dir.path().join(BACKUPS).join("day-00100-2099-01-01.anki2"), "").unwrap();
        delete_old_daily(dir.path(), 7, 4).unwrap();
        assert_eq!(names(dir.path()).len(), 11);
    }
}
