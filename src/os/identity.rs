//! Who this process is, and the names of users of this machine.

#![allow(unsafe_code)]

use std::fs;

/// The user as whom this process acts.
pub fn effective_user() -> u32 {
    // SAFETY: takes nothing, changes nothing, cannot fail.
    unsafe { libc::geteuid() }
}

/// The name of a user, if /etc/passwd has one.
pub fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}
