//! Shared by the commands that read users' data.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::progress::Progress;
use crate::collection::full::download::Snapshot;
use crate::collection::{COMMAND_LOCK_TIMEOUT, Collection, FILE_NAME};
use crate::error::{Error, Result};
use crate::files;
use crate::media;
use crate::media::index;

/// Maximum wait for syncs to end: twice the default timeout of a silent sync.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Errors if there is no data folder.
pub fn must_exist(base: &Path) -> Result<()> {
    if base.exists() {
        return Ok(());
    }
    Err(Error::Broken(format!(
        "there is no data folder {}: name the one of the server with --base DIR, or mount its disk. `ankipi config` shows \
         where this name comes from",
        base.display()
    )))
}

/// Names of the users with stored data, sorted.
pub fn users_in(base: &Path) -> Result<Vec<String>> {
    must_exist(base)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(base).map_err(Error::io("reading", base))? {
        let entry = entry.map_err(Error::io("reading", base))?;
        if let (Ok(name), true) = (entry.file_name().into_string(), holds_data(&entry.path())) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// One user, who must have stored data, or all of them.
pub fn selected_users(base: &Path, user: Option<String>) -> Result<Vec<String>> {
    match user {
        Some(name) => folder_of(base, &name).map(|_| vec![name]),
        None => users_in(base),
    }
}

/// The folder of a user. An error if nothing is stored for that user.
pub fn folder_of(base: &Path, name: &str) -> Result<PathBuf> {
    must_exist(base)?;
    let dir = base.join(name);
    if !name.contains('/') && !name.starts_with('.') && holds_data(&dir) {
        Ok(dir)
    } else {
        Err(Error::Broken(format!(
            "there is nothing of a user {name:?} in {}; `ankipi status` lists who is there",
            base.display()
        )))
    }
}

/// Opens a user's collection for a short read.
pub fn open_for_short_read(base: &Path, dir: &Path) -> Result<Collection> {
    let collection = dir.join(FILE_NAME);
    let _in_place = files::lock_against_replacement(dir);
    if files::is_in_use(base) {
        Collection::open_beside_server(&collection)
    } else {
        Collection::open_to_read(&collection)
    }
}

/// Locks the data folder, unless a server runs: none can start then, until the lock is dropped.
pub fn lock_if_unused(base: &Path) -> Result<Option<files::locks::DataFolderLock>> {
    if files::is_in_use(base) { Ok(None) } else { files::lock_data_folder(base).map(Some) }
}

/// Opens a user's collection to copy all of it.
pub fn open_to_copy(dir: &Path, is_unused: bool, progress: &mut Progress) -> Result<Snapshot> {
    if !is_unused {
        return open_between_syncs(dir, progress);
    }
    let collection = dir.join(FILE_NAME);
    Collection::recover_journal(&collection);
    Snapshot::open(&collection)
}

/// Opens a user's collection to read all of it while a server runs. Waits until no device is in the middle of a sync.
pub fn open_between_syncs(dir: &Path, progress: &mut Progress) -> Result<Snapshot> {
    let started = Instant::now();
    loop {
        let in_place = files::lock_against_replacement(dir);
        let opened = Snapshot::open_beside_syncs(&dir.join(FILE_NAME), COMMAND_LOCK_TIMEOUT);
        drop(in_place);
        match opened {
            Err(Error::Busy(_)) if started.elapsed() < MAX_WAIT => {}
            Err(Error::Busy(_)) => {
                return Err(Error::Busy(
                    "devices have been syncing for ten minutes; try again later".to_owned(),
                ));
            }
            opened => return opened,
        }
        progress.show("waiting for a device that syncs");
        thread::sleep(Duration::from_millis(100));
    }
}

fn holds_data(dir: &Path) -> bool {
    [FILE_NAME, index::FILE_NAME, media::FOLDER].iter().any(|name| dir.join(name).exists())
}

/// Formats a number of bytes for people: 812 B, 3.4 KB, 120 MB.
pub fn size(bytes: u64) -> String {
    let mut amount = bytes as f64;
    let mut units = ["B", "KB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if amount < 999.5 {
            break;
        }
        (amount, unit) = (amount / 1000.0, next);
    }
    if amount < 9.95 && unit != "B" { format!("{amount:.1} {unit}") } else { format!("{amount:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collection::new_collection::create as create_new;

    #[test]
    fn a_collection_is_not_opened_while_another_takes_its_place() {
        let base = tempfile::tempdir().unwrap();
        create_new(base.path()).unwrap();
        let replacing = files::lock_for_replacement(base.path(), Duration::ZERO).unwrap();
        thread::scope(|scope| {
            let look = scope.spawn(|| open_for_short_read(base.path(), base.path()).map(drop));
            let read = scope.spawn(|| open_between_syncs(base.path(), &mut Progress::start()).map(drop));
            thread::sleep(Duration::from_millis(100));
            assert!(!look.is_finished() && !read.is_finished(), "opened in the midst of it");
            drop(replacing);
            look.join().unwrap().unwrap();
            read.join().unwrap().unwrap();
        });
    }

    #[test]
    fn sizes_have_two_or_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KB"),
            (9_949, "9.9 KB"),
            (9_950, "10 KB"),
            (999_600, "1.0 MB"),
            (123_456_789, "123 MB"),
            (u64::MAX, "18446744 TB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }
}
