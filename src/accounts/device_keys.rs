//! Host keys issued to devices: `SYNC_BASE/<user>/keys`.
//!
//! The first line ties the keys to the password: `for TAG`, where TAG is the tag of its hash. Keys with another tag are
//! void. Then follows one line for each device: `sha256-of-key first-use last-use client`.

use std::fs;
use std::io;
use std::path::Path;

use ctutils::CtEq;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files::damaged::put_aside;
use crate::os::clock;
use crate::os::clock::Day;
use crate::text::hex::{hex, unhex};
use crate::{files, os};

/// The name of the keys file in a user's folder.
pub const KEYS_FILE: &str = "keys";

/// Maximum devices of a user. One more login drops the device that was unused for the longest time.
const MAX_KEYS: usize = 200;

/// The SHA-256 of a host key.
pub type KeyDigest = [u8; 32];

/// What is known of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// SHA-256 of its key.
    pub digest: KeyDigest,
    /// The day of its login.
    pub first: Day,
    /// The last day on which it synced.
    pub last: Day,
    /// Anki's version and operating system, as the client reports them.
    pub client: String,
}

impl Device {
    /// The ID that `ankipi device` shows.
    pub fn id(&self) -> String {
        hex(&self.digest[..4])
    }
}

/// The devices of one user.
#[derive(Debug, Default)]
pub struct Keys {
    tag: String,
    /// In the order of their logins.
    pub devices: Vec<Device>,
}

impl Keys {
    /// Reads the keys issued under the password with this tag; all keys if no tag is given.
    pub fn read(folder: &Path, tag: Option<&str>) -> Result<Keys> {
        let path = folder.join(KEYS_FILE);
        // A file that is damaged holds fewer keys: devices whose key is gone log in again.
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(err) if [io::ErrorKind::NotFound, io::ErrorKind::IsADirectory].contains(&err.kind()) => {
                String::new()
            }
            Err(err) => return Err(Error::Io("reading", path, err)),
        };
        let mut lines = text.lines();
        let found = lines.next().and_then(|line| line.strip_prefix("for ")).unwrap_or_default();
        let tag = tag.unwrap_or(found).to_owned();
        if found != tag {
            return Ok(Keys { tag, devices: Vec::new() });
        }
        let mut devices = Vec::new();
        for line in lines {
            match parse(line) {
                Some(device) => devices.push(device),
                None => log::warn!("{}: left out a line that is not a key", path.display()),
            }
        }
        Ok(Keys { tag, devices })
    }

    /// Replaces the file with these keys.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = format!("for {}\n", self.tag);
        for device in &self.devices {
            text += &format!("{} {} {} {}\n", hex(&device.digest), device.first, device.last, device.client);
        }
        files::create_folder(folder)?;
        let path = folder.join(KEYS_FILE);
        if path.is_dir() {
            put_aside(folder, &path, KEYS_FILE);
        }
        files::replace_file(folder, KEYS_FILE, text.as_bytes())
    }

    /// Creates a key for a device.
    pub fn add(&mut self, client: &str) -> Result<String> {
        let mut random = [0u8; 20];
        os::random(&mut random).map_err(|err| Error::Broken(format!("no random bytes: {err}")))?;
        let key = hex(&random);
        let client = client.chars().filter(|c| !c.is_control()).take(80).collect();
        let today = clock::today();
        if self.devices.len() >= MAX_KEYS {
            let oldest = self.devices.iter().enumerate().min_by_key(|(_, device)| device.last);
            oldest.map(|(at, _)| at).map(|at| self.devices.remove(at));
        }
        self.devices.push(Device { digest: Sha256::digest(&key).into(), first: today, last: today, client });
        Ok(key)
    }

    /// The device with this key. The duration does not reveal which device matches.
    pub fn find(&mut self, digest: &KeyDigest) -> Option<&mut Device> {
        let mut found = None;
        for device in &mut self.devices {
            if device.digest.ct_eq(digest).to_bool() {
                found = Some(device);
            }
        }
        found
    }
}

fn parse(line: &str) -> Option<Device> {
    let mut fields = line.splitn(4, ' ');
    Some(Device {
        digest: unhex(fields.next()?)?,
        first: fields.next()?.parse().ok()?,
        last: fields.next()?.parse().ok()?,
        client: fields.next()?.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_again_under_the_same_password_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Keys::read(dir.path(), Some("old")).unwrap();
        let key = keys.add("26.09.3,29bb700b,linux\nx y").unwrap();
        keys.write(dir.path()).unwrap();
        let digest: KeyDigest = Sha256::digest(&key).into();
        let mut again = Keys::read(dir.path(), Some("old")).unwrap();
        assert_eq!(again.find(&digest).unwrap().client, "26.09.3,29bb700b,linuxx y");
        assert_eq!(again.devices, keys.devices);
        assert!(Keys::read(dir.path(), Some("new")).unwrap().find(&digest).is_none());
        assert_eq!(Keys::read(dir.path(), None).unwrap().devices.len(), 1);
        assert!(!fs::read_to_string(dir.path().join(KEYS_FILE)).unwrap().contains(&key));
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_the_least_used_one_goes() {
        let mut keys = Keys::default();
        for _ in 0..MAX_KEYS {
            keys.add("").unwrap();
        }
        keys.devices[7].last = "2001-01-01".parse().unwrap();
        let gone = keys.devices[7].digest;
        keys.add("").unwrap();
        assert_eq!(keys.devices.len(), MAX_KEYS);
        assert!(keys.find(&gone).is_none());
    }
}
