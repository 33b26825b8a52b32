//! `ankipi backup list` and `ankipi restore`: the collections that full uploads replaced.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use crate::cli::command::{Command, Invocation, say};
use crate::cli::commands::user_folders::{folder_of, look_into, size, these_users};
use crate::collection::full::backups::{Backup, backups};
use crate::collection::full::restore::restore;
use crate::collection::{Collection, FILE_NAME};
use crate::config::Flags;
use crate::error::{Error, Result};
use crate::files;
use crate::os::clock;

/// `ankipi backup list`
pub static LIST: Command = Command {
    name: "backup list",
    arguments: "[USER]",
    summary: "list the collections that uploads replaced",
    help: "\
Each full upload from a device keeps the collection that it replaces, the last
three for each user (SYNC_BACKUPS). Lists them, of one user or of all: number,
last change (UTC), notes, cards and size; the highest number is the newest. The
last line of each user is the collection that is in use.
",
    run: list,
};

/// `ankipi restore`
pub static RESTORE: Command = Command {
    name: "restore",
    arguments: "USER NUMBER",
    summary: "go back to a backup",
    help: "\
Puts a backup in the place of the user's collection, which is kept as the newest
backup. Stop the server first. `ankipi backup list` tells the numbers.

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
    let names = these_users(&base, user)?;
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    say(&format!("{:<width$}  NUMBER  LAST CHANGE        NOTES   CARDS     SIZE\n", "USER"));
    for name in names {
        let dir = base.join(&name);
        for Backup { number, path } in backups(&dir)? {
            say(&format!("{name:<width$}  {number:>6}  {}\n", facts(&path, Collection::open_to_read(&path))));
        }
        let current = dir.join(FILE_NAME);
        if current.exists() {
            say(&format!("{name:<width$}  in use  {}\n", facts(&current, look_into(&base, &dir))));
        }
    }
    Ok(ExitCode::SUCCESS)
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
    let _lock = files::lock_data_folder(&config.base)?;
    let Some(backup) = backups(&dir)?.into_iter().find(|backup| backup.number == number) else {
        return Err(Error::Broken(format!(
            "{name} has no backup {number}; `ankipi backup list {name}` tells which there are"
        )));
    };
    restore(&dir, &backup.path, config.backups, config.max_row_bytes)?;
    say(&format!(
        "Restored backup {number} of {name}. Start the server, sync each device, and choose Download there.\n"
    ));
    Ok(ExitCode::SUCCESS)
}
