//! Names of users. A name becomes the name of a folder beside ankipi's own files, so some names are reserved.

use crate::error::{Error, Result};

/// The file with the accounts, inside the data folder.
pub const USERS_FILE: &str = "users";

/// Prefix of files with what a request sent.
pub const SPOOL_PREFIX: &str = "spool-";

/// Prefix of a user's folder while it is being deleted.
pub const REMOVED_PREFIX: &str = ".removed-";

/// The maximum length of a name in bytes.
const MAX_BYTES: usize = 128;

/// A pattern of names that ankipi needs for files in the data folder.
#[derive(Clone, Copy)]
enum Reserved {
    Name(&'static str),
    Prefix(&'static str),
    Suffix(&'static str),
}

/// All reserved names. Names with a dot in front (`.ankipi.lock`, `REMOVED_PREFIX` and others) can never be users.
const RESERVED: &[Reserved] = &[
    Reserved::Name(USERS_FILE),
    Reserved::Prefix(SPOOL_PREFIX),
    // `users.new`, and the folder of an unfinished import.
    Reserved::Suffix(".new"),
];

/// Checks the name of a new user.
pub fn check_user_name(name: &str) -> Result<()> {
    check_folder_name(name)?;
    // On a stick with FAT, `Users` and `users` are one file.
    match pattern_of(&name.to_ascii_lowercase()) {
        Some(pattern) => Err(Error::Broken(format!("the name {name:?} is reserved: {pattern}"))),
        None => Ok(()),
    }
}

/// Checks that a folder of this name can be in the data folder.
pub fn check_folder_name(name: &str) -> Result<()> {
    let fits = !name.is_empty() && name.len() <= MAX_BYTES && !name.starts_with('.');
    if fits && !name.contains(|c: char| "/\\:".contains(c) || c.is_control()) {
        return Ok(());
    }
    Err(Error::Broken(format!(
        "the name {name:?} cannot be a folder's name: no slashes, colons or control characters, no dot in front, \
         at most {MAX_BYTES} bytes"
    )))
}

/// Why an account that exists cannot be used, if its name is reserved. Earlier releases reserved fewer names.
pub fn why_reserved(name: &str) -> Option<String> {
    pattern_of(name).map(|pattern| {
        format!(
            "the name is reserved: {pattern}. To go on under another name: `ankipi user remove {name}`, stop the \
             server, rename the folder, `ankipi user add` with the new name"
        )
    })
}

fn pattern_of(name: &str) -> Option<String> {
    RESERVED.iter().find_map(|reserved| {
        let (fits, pattern) = match reserved {
            Reserved::Name(own) => (name == *own, (*own).to_owned()),
            Reserved::Prefix(prefix) => (name.starts_with(prefix), format!("{prefix}*")),
            Reserved::Suffix(suffix) => (name.ends_with(suffix), format!("*{suffix}")),
        };
        fits.then(|| format!("ankipi's own files in the data folder are called {pattern}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_our_own_files_are_reserved() {
        for name in ["users", "Users", "users.new", "anna.new", "spool-1-2", "SPOOL-x"] {
            let err = check_user_name(name).unwrap_err().to_string();
            assert!(err.contains("reserved"), "{name}: {err}");
            check_folder_name(name).unwrap();
        }
        for name in [".ankipi.lock", ".ankipi.sock", ".removed-anna", "", "..", "a/b", "a:b", "a\nb"] {
            assert!(check_user_name(name).is_err() && check_folder_name(name).is_err(), "{name}");
        }
        for name in ["anna", "b\u{f6}b", "a b", "new", "user", "spool", "users2", "a.news"] {
            check_user_name(name).unwrap();
            assert_eq!(why_reserved(name), None);
        }
        // An account that worked goes on, where the file system keeps the names apart.
        assert_eq!(why_reserved("Users"), None);
        assert!(why_reserved("spool-x").unwrap().contains("spool-*"));
    }
}
