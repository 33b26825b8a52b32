//! Host keys issued to devices: `SYNC_BASE/<user>/keys`.
//!
//! The first line ties the keys to the password: `for TAG`, where TAG is the tag of its hash. Keys with another tag are
//! void. Then follows one line for each device: `sha256-of-key first-use last-use client`. The last use is a day, or
//! `day,seconds,address`.

use std::fs;
use std::io;
use std::net::IpAddr;
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
    /// When and from where it synced then, as last noted. None if an older version wrote the file.
    pub seen: Option<Seen>,
    /// Anki's version and operating system, as the client reports them.
    pub client: String,
}

/// A use of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// In seconds since 1970.
    pub at: i64,
    /// The address of the client.
    pub address: IpAddr,
}

/// How often uses of a device are noted.
const NOTE_EVERY_SECS: i64 = 60 * 60;

impl Device {
    /// Whether a use should be noted.
    pub fn is_due(&self, now: &Seen) -> bool {
        self.last < clock::today() || self.seen.is_none_or(|seen| (now.at - seen.at).abs() >= NOTE_EVERY_SECS)
    }

    /// Notes a use.
    pub fn see(&mut self, now: Seen) {
        self.last = self.last.max(clock::today());
        self.seen = Some(now);
    }

    /// The last use, as it is written to the file.
    fn last_field(&self) -> String {
        match self.seen {
            Some(Seen { at, address }) => format!("{},{at},{address}", self.last),
            None => self.last.to_string(),
        }
    }

    /// The ID that `ankipi device` shows.
    pub fn id(&self) -> String {
        hex(&self.digest[..4])
    }
}

/// The devices of one user.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    tag: String,
    /// In the order of their logins.
    pub devices: Vec<Device>,
    /// What is damaged in the file. Then `devices` are those that could be read, and are not written.
    pub damage: Option<String>,
    /// Why nothing in the file can be read. It holds no valid key that could be lost, so a new login may overwrite it.
    pub junk: Option<String>,
}

impl Keys {
    /// Reads the keys issued under the password with this tag; all keys if no tag is given. An error if there is a file
    /// that cannot be read at all, or if the folder is none: its keys are unknown then.
    pub fn read(folder: &Path, tag: Option<&str>) -> Result<Keys> {
        files::refuse_link(folder)?;
        let path = folder.join(KEYS_FILE);
        let contents = match fs::read(&path) {
            Ok(contents) => contents,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Ok(Keys::none(tag.unwrap_or_default()));
            }
            Err(err) if err.kind() == io::ErrorKind::IsADirectory => return Ok(Keys::of_junk(&path, tag)),
            Err(err) => return Err(Error::Io("reading", path, err)),
        };
        let mut lines = contents.strip_suffix(b"\n").unwrap_or(&contents).split(|byte| *byte == b'\n');
        let mut keys = Keys::default();
        match lines.next().and_then(tag_of) {
            Some(found) if tag.is_none_or(|tag| tag == found) => keys.tag = found,
            Some(_) => return Ok(Keys::none(tag.unwrap_or_default())),
            None => keys.damaged(&path, 1),
        }
        for (number, line) in (2..).zip(lines) {
            match parse(line) {
                Some(device) => keys.devices.push(device),
                None => keys.damaged(&path, number),
            }
        }
        // Neither the password that it is for nor a single device.
        if keys.tag.is_empty() && keys.devices.is_empty() {
            return Ok(Keys::of_junk(&path, tag));
        }
        Ok(keys)
    }

    fn of_junk(path: &Path, tag: Option<&str>) -> Keys {
        let junk = format!("{} holds no key any more: its devices have to log in again", path.display());
        Keys { junk: Some(junk), ..Keys::none(tag.unwrap_or_default()) }
    }

    fn damaged(&mut self, path: &Path, line: usize) {
        self.damage.get_or_insert_with(|| {
            format!(
                "{} is damaged in line {line}; put a copy in its place, or log all devices of the user out with \
                 `ankipi device revoke USER --all`",
                path.display()
            )
        });
    }

    /// No keys, for the password with this tag.
    pub fn none(tag: &str) -> Keys {
        Keys { tag: tag.to_owned(), ..Keys::default() }
    }

    /// Replaces the file with these keys. An error if they come from a damaged file: some would be lost.
    pub fn write(&self, folder: &Path) -> Result<()> {
        if let Some(damage) = &self.damage {
            return Err(Error::Broken(damage.clone()));
        }
        let mut text = format!("for {}\n", self.tag);
        for device in &self.devices {
            text += &format!(
                "{} {} {} {}\n",
                hex(&device.digest),
                device.first,
                device.last_field(),
                device.client
            );
        }
        files::create_folder(folder)?;
        let path = folder.join(KEYS_FILE);
        if self.junk.is_some() || path.is_dir() {
            put_aside(folder, &path, KEYS_FILE);
        }
        files::replace_file(folder, KEYS_FILE, text.as_bytes())
    }

    /// Creates a key for a device, which logs in from this address.
    pub fn add(&mut self, client: &str, address: IpAddr) -> Result<String> {
        let mut random = [0u8; 20];
        os::random(&mut random).map_err(|err| Error::Broken(format!("no random bytes: {err}")))?;
        let key = hex(&random);
        let client = client.chars().filter(|c| !c.is_control()).take(80).collect();
        let today = clock::today();
        if self.devices.len() >= MAX_KEYS {
            let oldest = self.devices.iter().enumerate().min_by_key(|(_, device)| device.last);
            oldest.map(|(at, _)| at).map(|at| self.devices.remove(at));
        }
        let seen = Some(Seen { at: clock::now_secs(), address });
        let digest = Sha256::digest(&key).into();
        self.devices.push(Device { digest, first: today, last: today, seen, client });
        Ok(key)
    }

    /// The place of the device with this key. The duration does not reveal which device matches.
    pub fn find(&self, digest: &KeyDigest) -> Option<usize> {
        let mut found = None;
        for (at, device) in self.devices.iter().enumerate() {
            if device.digest.ct_eq(digest).to_bool() {
                found = Some(at);
            }
        }
        found
    }
}

fn tag_of(line: &[u8]) -> Option<String> {
    let tag = std::str::from_utf8(line).ok()?.strip_prefix("for ")?;
    unhex::<8>(tag).map(|_| tag.to_owned())
}

fn parse(line: &[u8]) -> Option<Device> {
    let mut fields = std::str::from_utf8(line).ok()?.splitn(4, ' ');
    let (digest, first) = (unhex(fields.next()?)?, fields.next()?.parse().ok()?);
    let mut last = fields.next()?.split(',');
    let day = last.next()?.parse().ok()?;
    let seen = match (last.next(), last.next(), last.next()) {
        (None, ..) => None,
        (Some(at), Some(address), None) => {
            Some(Seen { at: at.parse().ok()?, address: address.parse().ok()? })
        }
        _ => return None,
    };
    Some(Device { digest, first, last: day, seen, client: fields.next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const OLD: &str = "0123456789abcdef";
    const NEW: &str = "0123456789abcde0";

    #[test]
    fn keys_are_found_again_under_the_same_password_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Keys::read(dir.path(), Some(OLD)).unwrap();
        let key = keys.add("26.09.3,29bb700b,linux\nx y", HOME).unwrap();
        keys.write(dir.path()).unwrap();
        let digest: KeyDigest = Sha256::digest(&key).into();
        let again = Keys::read(dir.path(), Some(OLD)).unwrap();
        assert_eq!(again.devices[again.find(&digest).unwrap()].client, "26.09.3,29bb700b,linuxx y");
        assert_eq!(again.devices, keys.devices);
        assert!(Keys::read(dir.path(), Some(NEW)).unwrap().find(&digest).is_none());
        assert_eq!(Keys::read(dir.path(), None).unwrap().devices.len(), 1);
        assert!(!fs::read_to_string(dir.path().join(KEYS_FILE)).unwrap().contains(&key));
    }

    #[test]
    fn the_last_use_has_time_and_address_unless_an_older_version_wrote_it() {
        let line = |last: &str| format!("{} 2026-11-01 {last} 26.09,linux x", "0".repeat(64));
        let old = parse(line("2026-11-24").as_bytes()).unwrap();
        assert_eq!((old.last.to_string().as_str(), old.seen), ("2026-11-24", None));
        assert!(old.is_due(&Seen { at: 0, address: HOME }));
        let mut device = parse(line("2999-11-24,1764000000,fe80::1").as_bytes()).unwrap();
        let seen = device.seen.unwrap();
        assert_eq!((seen.at, seen.address.to_string().as_str()), (1_764_000_000, "fe80::1"));
        assert_eq!(device.last_field(), "2999-11-24,1764000000,fe80::1");
        assert!(!device.is_due(&Seen { at: seen.at + 3599, address: HOME }));
        device.see(Seen { at: seen.at + 3600, address: HOME });
        assert_eq!(device.last_field(), "2999-11-24,1764003600,127.0.0.1");
        for bad in ["2026-11-24,1764000000", "2026-11-24,x,::1", "2026-11-24,1,::1,", "2026-11-24,"] {
            assert!(parse(line(bad).as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_the_least_used_one_goes() {
        let mut keys = Keys::default();
        for _ in 0..MAX_KEYS {
            keys.add("", HOME).unwrap();
        }
        keys.devices[7].last = "2001-01-01".parse().unwrap();
        let gone = keys.devices[7].digest;
        keys.add("", HOME).unwrap();
        assert_eq!(keys.devices.len(), MAX_KEYS);
        assert!(keys.find(&gone).is_none());
    }

    #[test]
    fn a_damaged_file_tells_what_is_left_of_it_and_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys = Keys::none(OLD);
        for client in ["a", "b", "c"] {
            keys.add(client, HOME).unwrap();
        }
        keys.write(dir.path()).unwrap();
        let path = dir.path().join(KEYS_FILE);
        let good = fs::read(&path).unwrap();
        // One byte that is no UTF-8, in each place of the second line, and in the first.
        let line = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for (at, left, number) in [(line, 2, 2), (line + 70, 2, 2), (line + 87, 2, 2), (4, 3, 1)] {
            let mut bad = good.clone();
            bad[at] = 0xff;
            fs::write(&path, &bad).unwrap();
            let mut keys = Keys::read(dir.path(), Some(OLD)).unwrap();
            assert!(keys.damage.as_ref().unwrap().contains(&format!("line {number}")), "{:?}", keys.damage);
            assert_eq!(keys.devices.len(), left);
            keys.add("d", HOME).unwrap();
            keys.write(dir.path()).unwrap_err();
            assert_eq!(fs::read(&path).unwrap(), bad);
        }
        // Keys of an earlier password are void, whatever is in them.
        let mut bad = good;
        bad[line] = 0xff;
        fs::write(&path, &bad).unwrap();
        let void = Keys::read(dir.path(), Some(NEW)).unwrap();
        assert!(void.damage.is_none() && void.devices.is_empty());
        // What holds no key at all is put aside by the next login.
        for junk in ["", "\n", "junk", "fro 0123\n\n\n"] {
            fs::write(&path, junk).unwrap();
            let mut keys = Keys::read(dir.path(), Some(OLD)).unwrap();
            assert!(keys.damage.is_none() && keys.junk.is_some());
            keys.add("e", HOME).unwrap();
            keys.write(dir.path()).unwrap();
            let keys = Keys::read(dir.path(), Some(OLD)).unwrap();
            assert!(keys.junk.is_none() && keys.devices.len() == 1);
            assert_eq!(fs::read_to_string(dir.path().join("damaged/keys")).unwrap(), junk);
        }
    }
}
