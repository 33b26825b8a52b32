//! `ankipi device`: the devices that are logged in.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::accounts::device_keys::{Device, KEYS_FILE, Keys};
use crate::accounts::password::Hash;
use crate::accounts::users_file;
use crate::accounts::users_file::UsersFile;
use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::commands::user_folders::must_exist;
use crate::config::Settings;
use crate::config::user_name::check_folder_name;
use crate::error::{Error, Result};
use crate::files;
use crate::os::clock;
use crate::text::counted::counted;

/// `ankipi device list`
pub static LIST: Command = Command {
    name: "device list",
    arguments: "[USER]",
    summary: "list the devices that are logged in",
    help: "\
Lists the devices of one user or of all: their numbers, the day when they logged
in, when and from which address they were last used (UTC, noted once an hour),
and which Anki they run. Devices of plain SYNC_USERn accounts share one key, as
on Anki's own server, and are not listed.
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
knows the password can get a new key: see `ankipi user passwd`. Devices of plain
SYNC_USERn accounts share one key, made of the password: they can only be logged
out by another password in the settings. So can the key of Anki's own server,
where SYNC_OFFICIAL_KEYS accepts it. Then this says so, and ends with 1.

Options:
  --all     all devices of the user

Example:
  ankipi device revoke anna 5a0c4d12
",
    run: revoke,
};

fn list(mut invocation: Invocation) -> Result<ExitCode> {
    let user = invocation.words(0, 1)?.pop();
    let settings = invocation.settings_with_accounts_of_server()?;
    let base = settings.base()?;
    must_exist(&base)?;
    let (users, _) = users_file::read(&base)?;
    let shared = with_shared_key(&settings)?;
    let mut official = with_official_key(&settings)?;
    official.retain(|name| user.as_ref().is_none_or(|user| user == name));
    let names = match user {
        Some(name) if shared.contains(&name) => {
            say(&format!("{}\n", shared_key(&name)));
            return Ok(ExitCode::SUCCESS);
        }
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
    let say_unlisted = || {
        let shared = shared.iter().map(|name| shared_key(name));
        shared
            .chain(official.iter().map(|name| official_key(name)))
            .for_each(|line| say(&format!("{line}\n")));
    };
    if rows.is_empty() {
        if failed == 0 && shared.is_empty() {
            say("No device is logged in.\n");
        }
        say_unlisted();
        return Ok(outcome);
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(4);
    say(&format!("{:<width$}  ID        LOGIN       LAST USE          {:<15}  CLIENT\n", "USER", "FROM"));
    for (name, device) in rows {
        let Device { first, last, seen, client, .. } = &device;
        let (when, from) = match seen {
            Some(seen) => (clock::moment(seen.at), seen.address.to_string()),
            None => (last.to_string(), "-".to_owned()),
        };
        say(&format!("{name:<width$}  {}  {first}  {when:<16}  {from:<15}  {client}\n", device.id()));
    }
    say_unlisted();
    Ok(outcome)
}

fn revoke(mut invocation: Invocation) -> Result<ExitCode> {
    let all = invocation.has("--all");
    let mut ids = invocation.words(1, usize::MAX)?;
    let name = ids.remove(0);
    if all != ids.is_empty() {
        return Err(Error::Usage("give either the IDs of devices or --all".to_owned()));
    }
    let settings = invocation.settings_with_accounts_of_server()?;
    let base = settings.base()?;
    must_exist(&base)?;
    let official = with_official_key(&settings)?;
    if with_shared_key(&settings)?.contains(&name) {
        return Err(Error::Broken(format!(
            "nothing was changed. {}. To log them out, change that password and restart the server",
            shared_key(&name)
        )));
    }
    let _lock = users_file::lock(&base)?;
    let (users, _) = users_file::read(&base)?;
    let folder = folder_of(&base, &name)?;
    if users.get(&name).is_none() && !folder.join(KEYS_FILE).exists() {
        return Err(Error::Broken(format!(
            "nothing was changed: there are no keys of {name:?} in {}. If the account is a SYNC_USERn of the server with a \
             plain password, all its devices share one key: change that password and restart the server",
            base.display()
        )));
    }
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
        let outcome = match before {
            Ok(count) => format!("all devices of {name} ({count}) have to log in again\n"),
            Err(_) => format!("all devices of {name} have to log in again\n"),
        };
        say(&outcome);
        if official.contains(&name) {
            eprintln!(
                "ankipi: {}: it goes on working. To log out who has it, make another hash of a new password with `ankipi \
                 hash-password`, put it in the setting, and restart the server",
                official_key(&name)
            );
            return Ok(ExitCode::from(FAILED));
        }
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
    say(&format!("{gone} of {} of {name} must log in again\n", counted(before, "device")));
    Ok(ExitCode::SUCCESS)
}

/// The accounts whose devices share one key, which is made of the name and the password.
fn with_shared_key(settings: &Settings) -> Result<Vec<String>> {
    let config = settings.config()?;
    let plain = if config.passwords_hashed { Vec::new() } else { config.users };
    Ok(plain.into_iter().map(|user| user.name).collect())
}

/// The accounts for which the key of Anki's own server is accepted, too. It is made of the name and the hash.
fn with_official_key(settings: &Settings) -> Result<Vec<String>> {
    let config = settings.config()?;
    let accept = config.passwords_hashed && config.official_keys;
    Ok(if accept { config.users.into_iter().map(|user| user.name).collect() } else { Vec::new() })
}

fn official_key(name: &str) -> String {
    format!(
        "with SYNC_OFFICIAL_KEYS, {name:?} also has the key of Anki's own server, which is made of the hash of the password and \
         is not listed"
    )
}

fn shared_key(name: &str) -> String {
    format!(
        "{name:?} is a SYNC_USERn with a plain password: all its devices share one key, as on Anki's own server, and are not \
         told apart"
    )
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
