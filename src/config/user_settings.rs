//! The accounts of the settings: SYNC_USERn and SYNC_USERn_FILE.

use std::fs;
use std::path::Path;

use crate::config::user_name::check_folder_name;
use crate::config::{Origin, Settings};
use crate::error::{Error, Result};

/// One account of the settings.
#[derive(Clone, PartialEq, Eq)]
pub struct UserSetting {
    /// Also the name of the user's folder.
    pub name: String,
    /// The password, or its PHC string with PASSWORDS_HASHED.
    pub password: String,
}

impl std::fmt::Debug for UserSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:***", self.name)
    }
}

/// The number of an account's key, and whether its value names a file.
fn account_number(key: &str) -> Option<(u32, bool)> {
    let rest = key.strip_prefix("SYNC_USER")?;
    let number = rest.strip_suffix("_FILE");
    Some((number.unwrap_or(rest).parse().ok()?, number.is_some()))
}

/// Whether a key declares an account.
pub fn is_account(key: &str) -> bool {
    account_number(key).is_some()
}

/// The keys of accounts in the order of their numbers.
fn numbered(settings: &Settings) -> Vec<(&str, bool)> {
    let mut keys: Vec<_> =
        settings.keys().filter_map(|key| account_number(key).map(|number| (number, key))).collect();
    keys.sort_unstable();
    keys.into_iter().map(|((_, is_file), key)| (key, is_file)).collect()
}

/// All accounts. Reads the files of SYNC_USERn_FILE.
pub fn accounts(settings: &Settings) -> Result<Vec<UserSetting>> {
    let mut users: Vec<UserSetting> = Vec::new();
    for (key, is_file) in numbered(settings) {
        let text = &settings.values[key].text;
        let value =
            if is_file { read_secret(Path::new(text), settings.credentials())? } else { text.clone() };
        let Some((name, password)) = value.split_once(':').filter(|(_, password)| !password.is_empty())
        else {
            let place = if is_file { format!("{key}: the file {text}") } else { key.to_owned() };
            return Err(Error::Broken(format!("{place} must read name:password")));
        };
        // A reserved name closes that account alone (`accounts`).
        check_folder_name(name).map_err(|err| Error::Broken(format!("{key}: {err}")))?;
        if users.iter().any(|user| user.name == name) {
            return Err(Error::Broken(format!("{key}: there is an account '{name}' already")));
        }
        users.push(UserSetting { name: name.to_owned(), password: password.to_owned() });
    }
    Ok(users)
}

/// Warns of an environment variable whose quotes, blanks or line end were taken literally: `docker --env-file` and some
/// scripts keep them. The value is not shown: it may hold a password.
pub fn warning_of_literal_quotes(key: &str, value: &str) -> Option<String> {
    let is_quoted = ['"', '\'']
        .iter()
        .any(|quote| value.len() > 1 && value.starts_with(*quote) && value.ends_with(*quote));
    // Blanks around other values do not count.
    let name = if is_account(key) { value.split_once(':').map_or("", |(name, _)| name) } else { "" };
    let what = if is_quoted {
        "is in quotes, which count as part of it"
    } else if !is_account(key) {
        return None;
    } else if value.ends_with('\r') {
        "ends with a carriage return, which counts as part of it: the file has line ends of Windows"
    } else if value.trim() != value {
        "begins or ends with a blank, which counts as part of it"
    } else if name.trim() != name {
        "has a blank in front of the colon: Anki takes off blanks around a name, so nobody can log in"
    } else {
        return None;
    };
    Some(format!("the value of {key} (environment) {what}"))
}

/// The accounts with masked passwords.
pub fn listing(settings: &Settings) -> impl Iterator<Item = (String, String, Origin)> {
    numbered(settings).into_iter().map(|(key, is_file)| {
        let value = &settings.values[key];
        let shown = match (is_file, value.text.split_once(':')) {
            (true, _) => value.text.clone(),
            (false, Some((name, _))) => format!("{name}:***"),
            (false, None) => "***".to_owned(),
        };
        (key.to_owned(), shown, value.origin.clone())
    })
}

/// Reads a secret from a file, without its line end. A relative path may be the name of a systemd credential.
pub fn read_secret(path: &Path, credentials: Option<&Path>) -> Result<String> {
    let credential = credentials.map(|dir| dir.join(path)).filter(|path| path.exists());
    let path = credential.as_deref().unwrap_or(path);
    let text = fs::read_to_string(path).map_err(Error::io("reading the secret in", path))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}
