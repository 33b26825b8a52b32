//! `ankipi user`: the accounts in the accounts file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use crate::accounts;
use crate::accounts::device_keys::{KEYS_FILE, Keys};
use crate::accounts::known_accounts::{AccountSettings, Snapshot};
use crate::accounts::password::Hash;
use crate::accounts::users_file;
use crate::accounts::users_file::UsersFile;
use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::commands::hash_password::Hashing;
use crate::cli::commands::user_folders::must_exist;
use crate::cli::prompt;
use crate::config::user_name::{REMOVED_PREFIX, check_folder_name};
use crate::config::{Flags, USERS_FILE, check_user_name};
use crate::error::{Error, Result};
use crate::files;
use crate::files::data_folder;

/// `ankipi user add`
pub static ADD: Command = Command {
    name: "user add",
    arguments: "NAME [--password-file FILE] [--rounds N | --calibrate]",
    summary: "make an account and ask for its password",
    help: "\
Makes an account, which a running server knows at once. The password is asked
for, or read from standard input if that is no terminal. Only its hash is kept,
in the file `users` of the data folder. The name becomes the name of a folder.

{password options}

Example:
  ankipi user add anna
",
    run: add,
};

/// `ankipi user passwd`
pub static PASSWD: Command = Command {
    name: "user passwd",
    arguments: "NAME [--password-file FILE] [--rounds N | --calibrate]",
    summary: "change a password, which logs all devices out",
    help: "\
Changes the password of an account that `ankipi user add` made. A running server
knows it at once, and every device has to log in again.

{password options}
",
    run: passwd,
};

/// `ankipi user remove`
pub static REMOVE: Command = Command {
    name: "user remove",
    arguments: "NAME [--delete-data] [--yes]",
    summary: "remove an account; its data stays unless you say so",
    help: "\
Removes an account. A running server refuses its devices at once, and a sync
that is under way is rolled back.

Options:
  --delete-data   also delete the collection, the media and the backups; asks
                  before it does
  --yes           do not ask
",
    run: remove,
};

/// `ankipi user list`
pub static LIST: Command = Command {
    name: "user list",
    arguments: "",
    summary: "list the accounts and when they were last used",
    help: "\
Lists the accounts of the file `users`, of these settings, and (for root and the
user of the server) of the running server's environment, the number of
devices that are logged in, and the day (UTC) when one of them was last used.
Devices of plain SYNC_USERn accounts cannot be told apart, so none are counted.
",
    run: list,
};

fn add(invocation: Invocation) -> Result<ExitCode> {
    let is_new = |users: &UsersFile, name: &str| match users.get(name) {
        Some(Ok(_)) => {
            Err(Error::Broken(format!("there is an account {name:?} already; see `ankipi user passwd`")))
        }
        Some(Err(why)) => {
            Err(Error::Broken(format!("{why}; `ankipi user passwd {name}` gives the account a new password")))
        }
        None => Ok(()),
    };
    let Typed { name, hash, base, is_of_settings } = account(invocation, is_new)?;
    users_file::change(&base, |users| {
        // Another process may have been faster.
        is_new(users, &name)?;
        if let Some(other) =
            accounts::in_one_folder(&base, users.accounts().keys().map(String::as_str), &name)
        {
            return Err(Error::Broken(format!("{name}: {}", accounts::share_a_folder(other))));
        }
        void_damaged_keys(&base.join(&name), &hash)?;
        users.set(&name, hash);
        // Created here, so that the folder has the owner of the data folder, whoever runs this.
        files::create_folder(&base.join(&name))
    })?;
    let file = base.join(USERS_FILE);
    if is_of_settings {
        say(&format!("the account is in {}, but {}\n", file.display(), has_no_effect(&name)));
    } else {
        say(&format!("{name} can log in now; the account is in {}\n", file.display()));
    }
    if !files::is_in_use(&base) {
        say(&format!(
            "No server runs on {} yet. Start the service of the package, or type: ankipi --base {}\n",
            base.display(),
            base.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// A new password voids all keys. But a damaged keys file does not say for which password its keys are, so it is voided
/// here.
fn void_damaged_keys(folder: &Path, new: &Hash) -> Result<()> {
    match Keys::read(folder, None) {
        Ok(Keys { damage: None, .. }) => Ok(()),
        _ => Keys::none(&new.tag()).write(folder),
    }
}

fn passwd(invocation: Invocation) -> Result<ExitCode> {
    let is_there = |users: &UsersFile, name: &str| match users.get(name) {
        Some(_) => Ok(()),
        None => Err(unknown(name)),
    };
    let Typed { name, hash, base, is_of_settings } = account(invocation, is_there)?;
    users_file::change(&base, |users| {
        // It may have been removed while the password was typed.
        is_there(users, &name)?;
        void_damaged_keys(&base.join(&name), &hash)?;
        users.set(&name, hash);
        Ok(())
    })?;
    if is_of_settings {
        say(&format!(
            "{name} has a new password in {}, but {}\n",
            base.join(USERS_FILE).display(),
            has_no_effect(&name)
        ));
    } else {
        say(&format!("{name} has a new password; all devices have to log in again\n"));
    }
    Ok(ExitCode::SUCCESS)
}

fn has_no_effect(name: &str) -> String {
    format!("has no effect while a SYNC_USERn names {name}, too: the password there is used")
}

/// An account as the command line names it.
struct Typed {
    name: String,
    hash: Hash,
    base: PathBuf,
    /// Whether a SYNC_USERn of these settings or of the running server has that name. It beats the file.
    is_of_settings: bool,
}

/// The named account and its new hash. `check` runs before the password is asked for.
fn account(mut invocation: Invocation, check: impl FnOnce(&UsersFile, &str) -> Result<()>) -> Result<Typed> {
    let hashing = Hashing::take(&mut invocation)?;
    let mut words = invocation.words(1, usize::MAX)?;
    if words.len() > 1 {
        return Err(Error::Usage(prompt::NOT_HERE.to_owned()));
    }
    let name = words.remove(0);
    check_user_name(&name)?;
    if name.trim() != name {
        return Err(Error::Broken(format!(
            "{name:?}: Anki takes off blanks around a name, so it could never log in"
        )));
    }
    let settings = invocation.settings(Flags::new())?;
    let base = settings.base()?;
    if data_folder::init(&base)? {
        eprintln!("ankipi: {} is a new data folder", base.display());
    }
    check(&users_file::read(&base)?.0, &name)?;
    let hash = hashing.new_hash(settings.credentials())?;
    let config = invocation.settings_with_accounts_of_server().and_then(|settings| settings.config());
    let is_of_settings = config.is_ok_and(|config| config.users.iter().any(|user| user.name == name));
    Ok(Typed { name, hash, base, is_of_settings })
}

fn remove(mut invocation: Invocation) -> Result<ExitCode> {
    let deletes_data = invocation.has("--delete-data");
    let is_sure = invocation.has("--yes");
    let name = invocation.words(1, 1)?.remove(0);
    check_folder_name(&name)?;
    let base = invocation.base()?;
    let folder = base.join(&name);
    let is_known = users_file::read(&base)?.0.get(&name).is_some();
    // The account may have been removed earlier, without its data.
    let has_data_to_delete = deletes_data && folder.is_dir();
    let keys = folder.join(KEYS_FILE);
    if !is_known && !has_data_to_delete && !keys.is_file() {
        return Err(unknown(&name));
    }
    let question = format!("Delete everything in {}?", folder.display());
    if deletes_data && !is_sure && !prompt::confirm(&question)? {
        eprintln!(
            "ankipi: nothing was removed; to delete {} without being asked, add --yes",
            folder.display()
        );
        return Ok(ExitCode::from(FAILED));
    }
    let lock = users_file::lock(&base)?;
    // Before the account: keys without an account would be those of an account that was lost.
    let has_keys = keys.is_file();
    if has_keys {
        files::remove_if_there(&keys)?;
        files::sync_folder(&folder)?;
    }
    if is_known {
        users_file::change_locked(&base, |users| Ok(users.remove(&name)))?;
    } else if has_keys {
        users_file::touch(&base)?;
    }
    if has_data_to_delete {
        // Renamed first, so that a running server loses the whole folder at once and does not write into a half-deleted
        // one.
        let doomed = base.join(format!("{REMOVED_PREFIX}{name}"));
        files::remove_folder(&doomed)?;
        fs::rename(&folder, &doomed).map_err(Error::io("renaming", &folder))?;
        files::sync_folder(&base)?;
        drop(lock);
        files::remove_folder(&doomed)?;
        say(&format!("{name} and all data are gone\n"));
    } else {
        say(&format!("{name} cannot log in any more; the data stays in {}\n", folder.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn list(mut invocation: Invocation) -> Result<ExitCode> {
    invocation.words(0, 0)?;
    let settings = invocation.settings_with_accounts_of_server()?;
    let base = settings.base()?;
    must_exist(&base)?;
    let snapshot = Snapshot::read(&base, Arc::new(AccountSettings::of(&settings.config()?)), None)?;
    let mut rows = Vec::new();
    for account in snapshot.accounts() {
        let devices = &account.keys.devices;
        let last = devices.iter().map(|device| device.last).max();
        let last = last.map_or("-".to_owned(), |day| day.to_string());
        let origin = match (&account.closed, account.is_of_settings) {
            (Some(_), _) => "closed",
            (None, true) => "settings",
            (None, false) => "users",
        };
        rows.push((account.name.clone(), devices.len(), last, origin));
    }
    if rows.is_empty() {
        say(&format!(
            "There is no account in {}. `ankipi user add NAME` makes one.{}\n",
            base.display(),
            if files::is_in_use(&base) {
                " (Accounts of the running server's environment are known to root and to the server's user.)"
            } else {
                ""
            }
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let width = rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0).max(4);
    say(&format!("{:<width$}  DEVICES  LAST USE    FROM\n", "NAME"));
    for (name, count, last, origin) in rows {
        say(&format!("{name:<width$}  {count:>7}  {last:<10}  {origin}\n"));
    }
    snapshot.faults().iter().for_each(|fault| eprintln!("ankipi: {fault}"));
    Ok(ExitCode::SUCCESS)
}

fn unknown(name: &str) -> Error {
    Error::Broken(format!(
        "there is no account {name:?} in the accounts file; those of SYNC_USERn are changed where they are set. \
         `ankipi user list` lists them all"
    ))
}
