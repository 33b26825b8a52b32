//! Names of users. Each is the name of a folder inside the data folder, so names of our own files are reserved.

use crate::error::{Error, Result};

/// The file with the accounts, inside the data folder.
pub const USERS_FILE: &str = "users";

/// Checks a user name, which becomes the name of a folder.
pub fn check_user_name(name: &str) -> Result<()> {
    let fits = !name.is_empty() && name.len() <= 128 && !name.starts_with('.');
    let is_ours = [USERS_FILE].contains(&name) || name.ends_with(".new");
    if fits && !is_ours && !name.contains(|c: char| "/\\:".contains(c) || c.is_control()) {
        return Ok(());
    }
    Err(Error::Broken(format!(
        "the name {name:?} cannot be a folder's name: no slashes, colons or control characters, no dot in front, \
         at most 128 bytes, and neither `users` nor something.new"
    )))
}
