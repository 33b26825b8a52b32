//! `ankipi device`: the devices that are logged in.

use std::path::Path;
use std::process::ExitCode;

use crate::accounts::device_keys::{Device, Keys};
use crate::accounts::users_file;
use crate::accounts::users_file::Hashes;
use crate::cli::command::{Command, Invocation, say};
use crate::config::check_user_name;
use crate::error::{Error, Result};

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
    let hashes = users_file::read(&base, |fault| eprintln!("ankipi: {fault}"))?;
    let names = match user {
        Some(name) => vec![name],
        None => users_with_keys(&base)?,
    };
    let mut rows = Vec::new();
    for name in names {
        rows.extend(keys(&base, &hashes, &name)?.devices.into_iter().map(|device| (name.clone(), device)));
    }
    if rows.is_empty() {
        say("No device is logged in.\n");
        return Ok(ExitCode::SUCCESS);
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(4);
    say(&format!("{:<width$}  ID        LOGIN       LAST USE    CLIENT\n", "USER"));
    for (name, device) in rows {
        let Device { first, last, client, .. } = &device;
        say(&format!("{name:<width$}  {}  {first}  {last}  {client}\n", device.id()));
    }
    Ok(ExitCode::SUCCESS)
}

fn revoke(mut invocation: Invocation) -> Result<ExitCode> {
    let all = invocation.has("--all");
    let mut ids = invocation.words(1, usize::MAX)?;
    let name = ids.remove(0);
    if all != ids.is_empty() {
        return Err(Error::Usage("give either the IDs of devices or --all".to_owned()));
    }
    let base = invocation.base()?;
    let lock = users_file::lock(&base)?;
    let hashes = users_file::read(&base, |fault| eprintln!("ankipi: {fault}"))?;
    let mut keys = keys(&base, &hashes, &name)?;
    for id in &ids {
        if !keys.devices.iter().any(|device| device.id() == *id) {
            return Err(Error::Broken(format!(
                "{name} has no device {id}; nothing was changed. `ankipi device list {name}` lists them"
            )));
        }
    }
    let before = keys.devices.len();
    keys.devices.retain(|device| !all && !ids.contains(&device.id()));
    let gone = before - keys.devices.len();
    keys.write(&base.join(&name))?;
    users_file::touch(&base)?;
    drop(lock);
    say(&format!("{gone} of {before} devices of {name} have to log in again\n"));
    Ok(ExitCode::SUCCESS)
}

/// The valid keys. If only the server's environment knows the password, all keys.
fn keys(base: &Path, hashes: &Hashes, name: &str) -> Result<Keys> {
    check_user_name(name)?;
    let folder = base.join(name);
    if !folder.is_dir() {
        return Err(Error::Broken(format!("there is nothing of a user {name:?} in {}", base.display())));
    }
    let tag = hashes.get(name).map(|hash| hash.tag());
    Keys::read(&folder, tag.as_deref())
}

fn users_with_keys(base: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(base).map_err(Error::io("reading", base))? {
        let entry = entry.map_err(Error::io("reading", base))?;
        if let (Ok(name), true) = (entry.file_name().into_string(), entry.path().join("keys").is_file()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
