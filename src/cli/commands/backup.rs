//! `ankipi backup list`, `backup make` and `restore`: copies of collections, whichever way they were made.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::commands::packing::pack;
use crate::cli::commands::user_folders::{
    folder_of, lock_if_unused, open_for_short_read, open_to_copy, selected_users, size,
};
use crate::cli::progress::Progress;
use crate::collection::full::backups::{self, Backup, Kind, backups};
use crate::collection::full::download::Snapshot;
use crate::collection::full::restore::{is_waiting, leave_for_server, restore};
use crate::collection::{Collection, FILE_NAME};
use crate::config::Flags;
use crate::error::{Error, Result};
use crate::files;
use crate::files::FsyncingFile;
use crate::import_export::write_colpkg::UNFINISHED_SUFFIX;
use crate::os::clock;
use crate::text::counted::counted;

/// How many copies `ankipi backup make` keeps by default.
const DEFAULT_KEEP: usize = 7;

/// A package that is not complete and was not written to for so long belongs to a command that was interrupted.
const INTERRUPTED_AFTER: Duration = Duration::from_secs(12 * 60 * 60);

/// `ankipi backup list`
pub static LIST: Command = Command {
    name: "backup list",
    arguments: "[USER]",
    summary: "list the kept copies of the collections",
    help: "\
Lists the copies that are kept of one user's collection or of all: number, last
change (UTC), notes, cards, size, and when and by what each was made; the
highest number is the newest. The last line of each user is the collection in
use.

Copies are made before the first sync of a day (SYNC_BACKUP_DAYS, and
SYNC_BACKUP_WEEKS for older ones), of each collection that a full upload, a
restore or an import replaces (SYNC_BACKUPS), and by `ankipi backup make`.
",
    run: list,
};

/// `ankipi backup make`
pub static MAKE: Command = Command {
    name: "backup make",
    arguments: "[--to DIR] [--keep N] [USER]",
    summary: "copy collections now, for cron and the like",
    help: "\
Copies the collections of one user or of all, as the last sync left them. The
server may run; if a device syncs, it waits until that is done. Without --to the
copies are kept beside the collections, for `ankipi restore`, without media.

Options:
  --to DIR    write into this folder instead, for each user one package with
              collection and media, NAME-DATE.colpkg, which Anki and `ankipi
              import` read
  --keep N    keep the newest N copies of each user that this command has made
              in that place, at least 1 (7)

Media files that cannot be read are named and left out of a package. Then no
older package is deleted, and the command ends with 1.

Example, in a line of cron:
  0 4 * * *   ankipi backup make --base /var/lib/ankipi --to /mnt/stick
",
    run: make,
};

/// `ankipi restore`
pub static RESTORE: Command = Command {
    name: "restore",
    arguments: "USER NUMBER",
    summary: "go back to a backup",
    help: "\
Puts a backup in the place of the user's collection, which is kept as the newest
backup. `ankipi backup list` tells the numbers. The server may run: it takes the
backup with the next request of one of the user's devices, and ends a sync that
is under way.

With the next sync each device asks whether to download or to upload: download,
or the device's collection takes the place of the restored one. Media files are
left as they are.

Example:
  ankipi restore anna 3
",
    run: restore_one,
};

fn list(mut invocation: Invocation) -> Result<ExitCode> {
    let user = invocation.words(0, 1)?.pop();
    let base = invocation.base()?;
    let names = selected_users(&base, user)?;
    if names.is_empty() {
        say(&format!("Nothing is stored in {} yet.\n", base.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    say(&format!("{:<width$}  NUMBER  LAST CHANGE        NOTES   CARDS     SIZE  MADE\n", "USER"));
    for name in names {
        let dir = base.join(&name);
        for Backup { number, kind, path, .. } in backups(&dir)? {
            let facts = facts(&path, Collection::open_to_read(&path));
            say(&format!("{name:<width$}  {number:>6}  {facts}  {}, {}\n", made_on(&path), kind.made_by()));
        }
        let current = dir.join(FILE_NAME);
        if current.exists() {
            say(&format!("{name:<width$}  in use  {}\n", facts(&current, open_for_short_read(&base, &dir))));
        }
        if is_waiting(&dir) {
            say(&format!("{name:<width$}  a restored one is taken with the next request of a device\n"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The day on which a backup got its name.
fn made_on(path: &Path) -> String {
    fs::metadata(path).map_or("-".to_owned(), |meta| {
        let moment = clock::moment(meta.ctime());
        moment.split(' ').next().unwrap_or_default().to_owned()
    })
}

fn facts(path: &Path, collection: Result<Collection>) -> String {
    let bytes = fs::metadata(path).map_or(0, |meta| meta.len());
    let read = || {
        let collection = collection?;
        Ok::<_, Error>((collection.stamps()?.modified / 1000, collection.counts()?))
    };
    match read() {
        Ok((changed, (notes, cards))) => {
            format!("{}  {notes:>7} {cards:>7} {:>8}", clock::moment(changed), size(bytes))
        }
        Err(err) => format!("cannot be read: {err}"),
    }
}

fn restore_one(mut invocation: Invocation) -> Result<ExitCode> {
    let words = invocation.words(2, 2)?;
    let (name, which) = (&words[0], &words[1]);
    let Ok(number) = which.parse::<u32>() else {
        return Err(Error::Usage(format!("{which:?} is not the number of a backup")));
    };
    let config = invocation.settings(Flags::new())?.config()?;
    let dir = folder_of(&config.base, name)?;
    let Some(backup) = backups(&dir)?.into_iter().find(|backup| backup.number == number) else {
        return Err(Error::Broken(format!(
            "{name} has no backup {number}; `ankipi backup list {name}` tells which there are"
        )));
    };
    let mut progress = Progress::start();
    progress.show_at_once(&format!("{name}: checking and copying backup {number}"));
    if files::is_in_use(&config.base) {
        let left = leave_for_server(&dir, &backup.path, config.max_row_bytes);
        progress.clear();
        left?;
        say(&format!(
            "Restored backup {number} of {name}; the server takes it with the next request of a device. Sync each device, \
             and choose Download there.\n"
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let _lock = files::lock_data_folder(&config.base)?;
    let restored = restore(&dir, &backup.path, config.backups, config.max_row_bytes, Kind::Restored);
    progress.clear();
    restored?;
    say(&format!(
        "Restored backup {number} of {name}. Start the server, sync each device, and choose Download there.\n"
    ));
    Ok(ExitCode::SUCCESS)
}

fn make(mut invocation: Invocation) -> Result<ExitCode> {
    let to = invocation.path("--to")?;
    let keep = match invocation.option("--keep")? {
        Some(text) => match text.parse::<usize>() {
            Ok(keep) if keep > 0 => keep,
            _ => return Err(Error::Usage(format!("--keep {text}: a number above 0"))),
        },
        None => DEFAULT_KEEP,
    };
    let user = invocation.words(0, 1)?.pop();
    let base = invocation.base()?;
    if let Some(to) = to.as_deref().filter(|to| !to.is_dir()) {
        return Err(Error::Broken(format!(
            "there is no folder {}: make it, or mount its disk. Nothing was copied",
            to.display()
        )));
    }
    let mut names = selected_users(&base, user)?;
    names.retain(|name| base.join(name).join(FILE_NAME).exists());
    if names.is_empty() {
        say(&format!("There is no collection in {} yet, so nothing was copied.\n", base.display()));
    }
    let mut failed = false;
    for name in names {
        match make_one(&base, &name, to.as_deref(), keep) {
            Ok(what) => say(&format!("{name}: {what}\n")),
            Err(err) => {
                failed = true;
                eprintln!("ankipi: {name}: no complete backup: {err}");
            }
        }
    }
    Ok(ExitCode::from(if failed { FAILED } else { 0 }))
}

/// Makes one backup; returns what was made.
fn make_one(base: &Path, name: &str, to: Option<&Path>, keep: usize) -> Result<String> {
    let dir = base.join(name);
    let mut progress = Progress::start();
    let lock = lock_if_unused(base)?;
    let snapshot = open_to_copy(&dir, lock.is_some(), &mut progress)?;
    progress.show_at_once(&format!("{name}: copying the collection"));
    if let Some(to) = to {
        return pack_into(to, &snapshot, base, name, keep, &mut progress);
    }
    let unfinished = backups::unfinished_path(&dir, &format!("made-{}", std::process::id()))?;
    let copied = || {
        let mut copy = FsyncingFile::create(&unfinished)?;
        snapshot.copy_to(&mut copy, &unfinished)?;
        copy.into_file().sync_all().map_err(Error::io("syncing", &unfinished))?;
        backups::store(&dir, &unfinished, Kind::Made)
    };
    let made = copied();
    progress.clear();
    if made.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    let made = made?;
    files::give_tree_to_owner(&dir, &dir.join("backups"))?;
    backups::delete_old_made(&dir, keep)?;
    Ok(format!("backup {} of {}", made.number, size(snapshot.len())))
}

/// Writes a package into the folder `to`, and deletes all but the newest `keep` of the user there.
fn pack_into(
    to: &Path,
    snapshot: &Snapshot,
    base: &Path,
    name: &str,
    keep: usize,
    progress: &mut Progress,
) -> Result<String> {
    let stamp = clock::stamp(clock::now_secs()).replace(['-', ':'], "");
    let path = to.join(format!("{name}-{stamp}.colpkg"));
    let packed = pack(snapshot, base, name, &path, progress)?;
    let what =
        format!("{}, {} with {}", path.display(), size(packed.bytes), counted(packed.files, "media file"));
    if packed.left_out > 0 {
        return Err(Error::Broken(format!(
            "{what} lacks {} that could not be read; no older package was deleted",
            counted(packed.left_out, "media file")
        )));
    }
    for unfinished in packages_of(name, to, UNFINISHED_SUFFIX)? {
        let age =
            fs::metadata(&unfinished).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > INTERRUPTED_AFTER) {
            files::remove_if_there(&unfinished)?;
        }
    }
    let mut older = packages_of(name, to, "")?;
    older.retain(|other| *other != path);
    older.truncate((older.len() + 1).saturating_sub(keep));
    older.iter().try_for_each(|path| files::remove_if_there(path))?;
    Ok(what)
}

/// The packages of a user that this command made, oldest first, with this behind their names.
fn packages_of(name: &str, folder: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let is_ours = |path: &PathBuf| {
        let stamp = path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('-')?;
        let stamp = stamp.strip_suffix(suffix)?.strip_suffix("Z.colpkg")?;
        let (date, time) = stamp.split_once('T')?;
        let digits =
            |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
        (digits(date, 8) && digits(time, 6)).then_some(())
    };
    let mut packages = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("reading", folder))? {
        let path = entry.map_err(Error::io("reading", folder))?.path();
        packages.extend(is_ours(&path).map(|()| path));
    }
    packages.sort_unstable();
    Ok(packages)
}
