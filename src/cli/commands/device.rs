//! `ankipi device`: the devices that are logged in.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::accounts::device_keys::{Device, KEYS_FILE, Keys};
use crate::accounts::password::Hash;
use crate::accounts::users_file;
use crate::accounts::users_file::UsersFile;
use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::config::user_name::check_folder_name;
use crate::error::{Error, Result};
use crate::files;

/// `ankipi device list`
pub static LIST: Command = Command {
    name: "device list",
    arguments: "[USER]",
    summary: "list the devices that are logged in",
    help: "\
Lists the devices of one user or of all: their numbers, when they logged in and
when they were last used (days, UTC), and which Anki they run. Devices of plain
SYNC_USERn accounts share one key, as on Anki's own server, and are not listed.
",
    run: list,
};

/// `ankipi device revoke`
pub static REVOKE: Command = Command {
    name: "device revoke",
    arguments: "USER ID... | USER --all",
    summary: "log devices out",
    help: "\
Makes the keys of these devices worthless, also on a running server, at once:
they have to log in again. `ankipi device list` tells the numbers. A device that
knows the password can get a new key: see `ankipi user passwd`.

Options:
  --all     all devices of the user

Example:
  ankipi device revoke anna 5a0c4d12
",
    run: revoke,
};

fn list(mut invocation: Invocation) -> Result<ExitCode> {
    let user = invocation.words(0, 1)?.pop();
    let base = invocation.base()?;
    let (users, _) = users_file::read(&base)?;
    let names = match user {
        Some(name) => vec![name],
        None => users_with_keys(&base)?,
    };
    let (mut rows, mut failed) = (Vec::new(), 0);
    for name in names {
        match keys(&base, &users, &name) {
            Ok(keys) => {
                keys.damage.iter().chain(&keys.junk).for_each(|fault| eprintln!("ankipi: {fault}"));
                failed += usize::from(keys.damage.is_some());
                rows.extend(keys.devices.into_iter().map(|device| (name.clone(), device)));
            }
            Err(err) => {
                eprintln!("ankipi: {err}");
                failed += 1;
            }
        }
    }
    let outcome = ExitCode::from(if failed == 0 { 0 } else { FAILED });
    if rows.is_empty() {
        if failed == 0 {
            say("No device is logged in.\n");
        }
        return Ok(outcome);
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(4);
    say(&format!("{:<width$}  ID        LOGIN       LAST USE    CLIENT\n", "USER"));
    for (name, device) in rows {
        let Device { first, last, client, .. } = &device;
        say(&format!("{name:<width$}  {}  {first}  {last}  {client}\n", device.id()));
    }
    Ok(outcome)
}

fn revoke(mut invocation: Invocation) -> Result<ExitCode> {
    let all = invocation.has("--all");
    let mut ids = invocation.words(1, usize::MAX)?;
    let name = ids.remove(0);
    if all != ids.is_empty() {
        return Err(Error::Usage("give either the IDs of devices or --all".to_owned()));
    }
    let base = invocation.base()?;
    let _lock = users_file::lock(&base)?;
    let (users, _) = users_file::read(&base)?;
    let folder = folder_of(&base, &name)?;
    if all {
        let before = keys(&base, &users, &name).map(|keys| keys.devices.len());
        match tag_of(&users, &name) {
            Some(tag) => Keys::none(&tag).write(&folder)?,
            // Only the server knows the password. Whatever it is, there are no keys then.
            None => {
                files::remove_if_there(&folder.join(KEYS_FILE)).and_then(|()| files::sync_folder(&folder))?
            }
        }
        users_file::touch(&base)?;
        say(&match before {
            Ok(count) => format!("all {count} devices of {name} have to log in again\n"),
            Err(_) => format!("all devices of {name} have to log in again\n"),
        });
        return Ok(ExitCode::SUCCESS);
    }
    let mut keys = keys(&base, &users, &name)?;
    for id in &ids {
        if !keys.devices.iter().any(|device| device.id() == *id) {
            return Err(Error::Broken(format!(
                "{name} has no device {id}; nothing was changed. `ankipi device list {name}` lists them"
            )));
        }
    }
    let before = keys.devices.len();
    keys.devices.retain(|device| !ids.contains(&device.id()));
    let gone = before - keys.devices.len();
    keys.write(&folder)?;
    users_file::touch(&base)?;
    say(&format!("{gone} of {before} devices of {name} have to log in again\n"));
    Ok(ExitCode::SUCCESS)
}

/// The valid keys. If only the server's environment knows the password, all keys.
fn keys(base: &Path, users: &UsersFile, name: &str) -> Result<Keys> {
    Keys::read(&folder_of(base, name)?, tag_of(users, name).as_deref())
}

fn tag_of(users: &UsersFile, name: &str) -> Option<String> {
    users.get(name)?.as_ref().ok().map(Hash::tag)
}

fn folder_of(base: &Path, name: &str) -> Result<PathBuf> {
    check_folder_name(name)?;
    let folder = base.join(name);
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(Error::Broken(format!("there is nothing of a user {name:?} in {}", base.display())))
    }
}

fn users_with_keys(base: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(base).map_err(Error::io("reading", base))? {
        let entry = entry.map_err(Error::io("reading", base))?;
        if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().join(KEYS_FILE).exists()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
