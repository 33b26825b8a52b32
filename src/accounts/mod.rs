//! Who may log in, and which host key belongs to whom.
//!
//! Here: `known_accounts`, `password` (hashes), `login_throttle`, `device_keys`, `users_file`. Not here: folders of users
//! (`sync::users`), HTTP. Imports `config`, `files`, `text`, `os`.
//!
//! Accounts come from SYNC_USERn and from the accounts file. A SYNC_USERn account with a plain password has the host
//! key that the official server computes. So its clients stay logged in when either server replaces the other. With
//! PASSWORDS_HASHED that key would be a digest of the stored hash, so the hash would be as good as the password.
//! Therefore accounts with a hash, and so all of the accounts file, get a random key at each login. Its SHA-256 is
//! stored in `SYNC_BASE/<user>/keys`.
//!
//! All accounts are in one `Snapshot`, which requests read without waiting. A change holds `writing`, reads the newest
//! state, looks the account up by name, writes, and replaces the snapshot. So a slow login cannot restore an account or
//! a password that was changed meanwhile, and no key is lost between two changes.
//!
//! Other processes change the accounts file and the keys (`ankipi user`, `ankipi device`). Each request compares the
//! stamp of the accounts file (one stat) and reads everything again if the stamp has changed. Only logins and the first
//! request of a device on a new day write.

pub mod device_keys;
pub mod known_accounts;
pub mod login_throttle;
pub mod password;
pub mod users_file;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

use crate::error::{Error, Result};
use crate::files;
use crate::os::clock;
use crate::text::hex::hex;
use device_keys::{KeyDigest, Keys, Seen};
use known_accounts::{Account, AccountSettings, Secret, Snapshot};
use login_throttle::Throttle;
use password::Hash;

/// How often a login is tried again because its account is changed while the password is hashed.
const MAX_LOGIN_TRIES: u32 = 3;

/// All accounts.
pub struct Accounts {
    base: PathBuf,
    /// Locked to look at it or to replace it, never longer.
    current: Mutex<Arc<Snapshot>>,
    /// Held while a new snapshot is made.
    writing: Mutex<()>,
    throttle: Mutex<Throttle>,
    /// Held while a password is hashed. Only one is hashed at a time, so that a burst of logins leaves the other cores
    /// free. The server admits one login at a time, so no worker waits for this lock.
    hashing: Mutex<()>,
}

impl Accounts {
    /// Reads the accounts of the settings and of the accounts file. Only a wrong account in the settings is an error.
    /// Any other fault closes its account and is logged.
    pub fn open(base: PathBuf, settings: AccountSettings) -> Result<Accounts> {
        let snapshot = Snapshot::read(&base, Arc::new(settings), None)?;
        snapshot.faults().iter().for_each(|fault| log::error!("{fault}"));
        Ok(Accounts {
            base,
            current: Mutex::new(Arc::new(snapshot)),
            writing: Mutex::new(()),
            throttle: Mutex::default(),
            hashing: Mutex::new(()),
        })
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        lock(&self.current).clone()
    }

    /// Reads the accounts again if another process has changed them. An error if the accounts file cannot be examined.
    pub fn refresh(&self) -> Result<()> {
        let seen = self.current();
        if seen.is_retry_due() || !seen.is_current(&self.base)? {
            self.refreshed(&lock(&self.writing))?;
        }
        Ok(())
    }

    /// The newest state, while nobody else changes it.
    fn refreshed(&self, _writing: &MutexGuard<'_, ()>) -> Result<Arc<Snapshot>> {
        let before = self.current();
        let is_changed = !before.is_current(&self.base)?;
        if is_changed || before.is_retry_due() {
            self.replace(Snapshot::read(&self.base, before.settings().clone(), Some(&before))?);
        }
        if is_changed {
            log::info!("reloaded the accounts: there are {}", self.count());
        }
        Ok(self.current())
    }

    /// Replaces the snapshot, and logs the faults that are new or gone.
    fn replace(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        let before = std::mem::replace(&mut *lock(&self.current), snapshot.clone());
        let (old, new) = (before.faults(), snapshot.faults());
        new.iter().filter(|fault| !old.contains(fault)).for_each(|fault| log::error!("{fault}"));
        old.iter().filter(|fault| !new.contains(fault)).for_each(|fault| log::info!("put right: {fault}"));
    }

    /// Replaces all settings of accounts. On an error the old ones stay.
    pub fn reload(&self, settings: AccountSettings) -> Result<()> {
        let _writing = lock(&self.writing);
        let snapshot = Snapshot::read(&self.base, Arc::new(settings), Some(&self.current()))?;
        self.replace(snapshot);
        Ok(())
    }

    /// Runs `work` if there is an account with this name. Other processes cannot change accounts meanwhile.
    pub fn while_there_is<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _lock = users_file::lock(&self.base)?;
        self.refresh()?;
        self.current().get(name).ok_or_else(no_account)?;
        work()
    }

    /// Checks a password and returns the host key for the client (spec, sync-protocol.md 6.1). An unknown user takes as
    /// long as a wrong password.
    ///
    /// Errors: `Forbidden`; `Throttled` while the user or the address has to wait; others if the account is closed.
    pub fn log_in(&self, name: &str, password: &str, client: &str, address: IpAddr) -> Result<String> {
        let is_account = self.current().get(name).is_some();
        let wait = lock(&self.throttle).delay(name, is_account, address, Instant::now());
        if let Some(wait) = wait {
            let secs = wait.as_secs() + 1;
            return Err(failure(name, address, "throttled", Error::Throttled(secs)));
        }
        for _ in 0..MAX_LOGIN_TRIES {
            self.refresh()?;
            let seen = self.current();
            let account = seen.get(name);
            let secret = account.and_then(|account| account.secret.as_ref());
            let is_correct = self.compare(secret, password, &seen);
            // Hashing takes long. If the account has changed meanwhile, the comparison does not count.
            self.refresh()?;
            if tag_in(&self.current(), name) != tag_in(&seen, name) {
                continue;
            }
            match account {
                Some(account) if is_correct => {
                    lock(&self.throttle).succeeded(name, address);
                    account.check_open()?;
                    match self.key_for(account, password, client, address)? {
                        Some(key) => return Ok(key),
                        None => continue,
                    }
                }
                // The account has no password to compare with.
                Some(account) if account.secret.is_none() => account.check_open()?,
                None if seen.file_fault.is_some() => {
                    return Err(Error::Broken("who may log in cannot be read".to_owned()));
                }
                _ => {}
            }
            lock(&self.throttle).failed(name, account.is_some(), address, Instant::now());
            let reason = if account.is_some() { "wrong password" } else { "unknown user" };
            return Err(failure(
                name,
                address,
                reason,
                Error::Forbidden("wrong name or password".to_owned()),
            ));
        }
        Err(Error::Busy(format!("the account {name:?} is changed again and again; try again")))
    }

    /// Whether this is the password. Without a secret, the password is compared with that of another account, so that an
    /// unknown user takes as long as a wrong password.
    fn compare(&self, secret: Option<&Secret>, password: &str, accounts: &Snapshot) -> bool {
        let _one_at_a_time = lock(&self.hashing);
        if let Some(secret) = secret {
            return secret.fits(password);
        }
        let other = accounts.accounts().find_map(|other| other.secret.as_ref());
        std::hint::black_box(other.map(|other| other.fits(password)));
        false
    }

    /// The key of a new login, whose password fits this account. It is durable before the client receives it. None if
    /// the account has another password by now, or none.
    fn key_for(
        &self,
        account: &Account,
        password: &str,
        client: &str,
        address: IpAddr,
    ) -> Result<Option<String>> {
        let hash = match &account.secret {
            Some(Secret::Plain(plain)) => {
                return Ok(Some(hex(&Sha1::digest(format!("{}:{plain}", account.name)))));
            }
            Some(Secret::Hashed(hash)) => hash,
            None => return Ok(None),
        };
        let tag = if hash.is_weak() {
            self.replace_weak_hash(&account.name, hash, password)?
        } else {
            Some(hash.tag())
        };
        match tag {
            Some(tag) => self.change_keys(&account.name, &tag, |keys| keys.add(client, address)),
            None => Ok(None),
        }
    }

    /// Replaces a hash imported from another server by a PBKDF2 hash, whose tag it returns. None if the account has
    /// another hash by now. This needs the password, so it happens at a login.
    fn replace_weak_hash(&self, name: &str, weak: &Hash, password: &str) -> Result<Option<String>> {
        let strong = {
            let _one_at_a_time = lock(&self.hashing);
            Hash::of(password, password::DEFAULT_ROUNDS)?
        };
        let tag = strong.tag();
        let is_replaced = users_file::change(&self.base, |users| {
            let is_same = users.get(name) == Some(&Ok(weak.clone()));
            if is_same {
                users.set(name, strong);
            }
            Ok(is_same)
        })?;
        if !is_replaced {
            return Ok(None);
        }
        log::info!("{name:?}: the password is stored with a stronger hash now");
        Ok(Some(tag))
    }

    /// Changes the keys of an account, as the file holds them now. None if the account has another password by now.
    fn change_keys<T>(
        &self,
        name: &str,
        tag: &str,
        change: impl FnOnce(&mut Keys) -> Result<T>,
    ) -> Result<Option<T>> {
        let _lock = users_file::lock(&self.base)?;
        let writing = lock(&self.writing);
        let now = self.refreshed(&writing)?;
        let Some(account) = now.get(name).filter(|account| account.tag() == tag) else {
            return Ok(None);
        };
        account.check_open()?;
        let mut keys = Keys::read(&account.folder, Some(tag))?;
        let outcome = change(&mut keys)?;
        keys.write(&account.folder)?;
        self.replace(now.with_keys(account, keys));
        Ok(Some(outcome))
    }

    /// The name of the user with this host key, which a client at this address has sent.
    pub fn user_of_key(&self, key: &str, address: IpAddr) -> Result<String> {
        let digest: KeyDigest = Sha256::digest(key).into();
        let now = self.current();
        let Some(account) = now.owner(&digest) else {
            if now.is_orphaned(&digest) {
                return Err(Error::Busy(
                    "the account of this device is missing: the log says what to type".to_owned(),
                ));
            }
            return Err(match now.unread_keys() {
                // The key may be in a file that cannot be read. After a 403 the client would forget its key.
                Some(why) => Error::Busy(format!("unknown host key, but not all are known: {why}")),
                None => Error::Forbidden("unknown host key".to_owned()),
            });
        };
        account.check_open()?;
        match self.note_use(account, &digest, address) {
            Ok(Some(())) => {}
            Ok(None) => return Err(no_account()),
            Err(err) => log::warn!("{:?}: cannot store when a device was last used: {err}", account.name),
        }
        Ok(account.name.clone())
    }

    /// Whose host key this is, by the current snapshot; nothing is read from the disk. To count requests, not to allow them:
    /// the account may be closed, or removed meanwhile.
    pub fn owner_of_key(&self, key: &str) -> Option<String> {
        self.current().owner(&Sha256::digest(key).into()).map(|account| account.name.clone())
    }

    /// Stores when and from where a device was last used, once an hour: a sync without changes should write nothing. None
    /// if the account has another password by now.
    fn note_use(&self, account: &Account, digest: &KeyDigest, address: IpAddr) -> Result<Option<()>> {
        let now = Seen { at: clock::now_secs(), address };
        if account.keys.find(digest).is_none_or(|at| !account.keys.devices[at].is_due(&now)) {
            return Ok(Some(()));
        }
        let note = |keys: &mut Keys| {
            if let Some(at) = keys.find(digest) {
                keys.devices[at].see(now);
            }
            Ok(())
        };
        let stored = self.change_keys(&account.name, &account.tag(), note);
        if stored.is_err() {
            // Note it in memory nevertheless. Otherwise each request would try to store it again.
            let _writing = lock(&self.writing);
            let now = self.current();
            if let Some(account) = now.get(&account.name) {
                let mut keys = account.keys.clone();
                note(&mut keys)?;
                self.replace(now.with_keys(account, keys));
            }
        }
        stored
    }

    /// The number of accounts.
    pub fn count(&self) -> usize {
        self.current().accounts().count()
    }
}

fn tag_in(snapshot: &Snapshot, name: &str) -> Option<String> {
    snapshot.get(name).map(|account| account.tag())
}

fn no_account() -> Error {
    Error::Forbidden("the user has no account any more".to_owned())
}

/// Maximum length of a name in the log. Clients choose the names.
const MAX_LOGGED_CHARS: usize = 128;

/// Logs the line that cross/fail2ban reads. The name is quoted and escaped as in Rust, so that it cannot forge a line.
fn failure(name: &str, address: IpAddr, reason: &str, err: Error) -> Error {
    let name: String = name.chars().take(MAX_LOGGED_CHARS).collect();
    log::warn!(target: "login", "login failed user={name:?} ip={address} reason={reason}");
    err
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name among `others` whose folder is that of `name`: on file systems that do not tell case apart (exFAT, vfat, some network
/// shares), `Anna` and `anna` are one. Creates the folder of the other, which exists anyway once somebody has logged in.
pub fn in_one_folder<'n>(
    base: &Path,
    mut others: impl Iterator<Item = &'n str>,
    name: &str,
) -> Option<&'n str> {
    let folded = |name: &str| name.nfc().collect::<String>().to_lowercase();
    let id = |name: &str| files::id_of(&base.join(name)).ok();
    others.find(|other| {
        *other != name
            && folded(other) == folded(name)
            && files::create_folder(&base.join(other)).is_ok()
            && id(other).is_some()
            && id(other) == id(name)
    })
}

/// Why an account is left out or refused.
pub fn share_a_folder(other: &str) -> String {
    format!(
        "the file system of the data folder does not tell capital from small letters, and there its folder is that of \
         {other:?}; choose another name"
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Flags, Settings};

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// 1000 rounds; the password is "secret".
    const PHC: &str =
        "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHRzYWx0$sVaWem31qy3rw+Ldi3plA/XzhMSNi9/XHnnD1Ytj05o";

    fn accounts(base: &Path, vars: &[(&str, &str)]) -> Accounts {
        let base = [("SYNC_BASE", base.to_str().unwrap())];
        let vars = vars.iter().chain(&base).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let config = Settings::read(None, vars, Flags::new()).unwrap().config().unwrap();
        Accounts::open(config.base.clone(), AccountSettings::of(&config)).unwrap()
    }

    fn set(base: &Path, name: &str, hash: Option<&Hash>) {
        users_file::change(base, |users| {
            match hash {
                Some(hash) => users.set(name, hash.clone()),
                None => drop(users.remove(name)),
            }
            Ok(())
        })
        .unwrap();
    }

    /// Whether the accounts were read again.
    fn refresh(accounts: &Accounts) -> bool {
        let before = accounts.current().version;
        accounts.refresh().unwrap();
        accounts.current().version > before
    }

    fn names(accounts: &Accounts) -> Vec<String> {
        accounts.current().accounts().map(|account| account.name.clone()).collect()
    }

    #[test]
    fn a_plain_account_has_the_official_key() {
        let dir = tempfile::tempdir().unwrap();
        let accounts = accounts(dir.path(), &[("SYNC_USER1", "test:secret")]);
        let key = accounts.log_in("test", "secret", "", HOME).unwrap();
        assert_eq!(key, "523322844031c7adb91401e307edd32ad150d563");
        assert_eq!(accounts.user_of_key(&key, HOME).unwrap(), "test");
        for (name, password) in [("test", "Secret"), ("test", ""), ("tes", "secret")] {
            assert_eq!(accounts.log_in(name, password, "", HOME).unwrap_err().status(), 403);
        }
        for key in ["", "test", "523322844031c7adb91401e307edd32ad150d564"] {
            assert_eq!(accounts.user_of_key(key, HOME).unwrap_err().status(), 403);
        }
    }

    #[test]
    fn keys_of_a_hashed_account_are_random_and_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let vars = [("SYNC_USER1", &*format!("test:{PHC}")), ("PASSWORDS_HASHED", "1")];
        let first = accounts(dir.path(), &vars);
        let log_in = |client| first.log_in("test", "secret", client, HOME).unwrap();
        let (a, b) = (log_in("x"), log_in("y"));
        assert_ne!(a, b);
        let again = accounts(dir.path(), &vars);
        assert_eq!(again.user_of_key(&a, HOME).unwrap(), "test");
        assert_eq!(again.user_of_key(&b, HOME).unwrap(), "test");
        let official = hex(&Sha1::digest(format!("test:{PHC}")));
        assert_eq!(again.user_of_key(&official, HOME).unwrap_err().status(), 403);
        assert_eq!(again.log_in("test", "wrong", "", HOME).unwrap_err().status(), 403);
        let switched_on = [vars[0], vars[1], ("SYNC_OFFICIAL_KEYS", "yes")];
        assert_eq!(accounts(dir.path(), &switched_on).user_of_key(&official, HOME).unwrap(), "test");
    }

    #[test]
    fn accounts_come_change_and_go_while_the_server_runs() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let accounts = accounts(base, &[]);
        assert!(!refresh(&accounts));
        accounts.log_in("anna", "one", "", HOME).unwrap_err();
        set(base, "anna", Some(&Hash::of("one", 1000).unwrap()));
        assert!(refresh(&accounts) && !refresh(&accounts));
        let key = accounts.log_in("anna", "one", "", HOME).unwrap();
        assert_eq!(accounts.user_of_key(&key, HOME).unwrap(), "anna");
        set(base, "bob", Some(&Hash::of("x", 1000).unwrap()));
        assert!(refresh(&accounts));
        assert_eq!(accounts.user_of_key(&key, HOME).unwrap(), "anna", "another account's change loses keys");
        set(base, "anna", Some(&Hash::of("one", 1000).unwrap()));
        assert!(refresh(&accounts));
        assert_eq!(
            accounts.user_of_key(&key, HOME).unwrap_err().status(),
            403,
            "a new password keeps old keys"
        );
        set(base, "anna", None);
        assert!(refresh(&accounts));
        assert_eq!(names(&accounts), ["bob"]);
    }

    #[test]
    fn guessing_is_slowed_down_and_a_right_password_does_not_help_then() {
        let dir = tempfile::tempdir().unwrap();
        let vars = [("SYNC_USER1", &*format!("test:{PHC}")), ("PASSWORDS_HASHED", "1")];
        let accounts = accounts(dir.path(), &vars);
        let statuses: Vec<u16> =
            (0..5).map(|_| accounts.log_in("test", "x", "", HOME).unwrap_err().status()).collect();
        assert_eq!(statuses, [403, 403, 403, 403, 503]);
        assert_eq!(accounts.log_in("test", "secret", "", HOME).unwrap_err().status(), 503);
        accounts.log_in("test", "secret", "", IpAddr::V4([192, 0, 2, 1].into())).unwrap();
    }

    #[test]
    fn the_day_of_the_last_use_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let hash = Hash::of("one", 1000).unwrap();
        set(base, "anna", Some(&hash));
        let accounts = accounts(base, &[]);
        let key = accounts.log_in("anna", "one", "", HOME).unwrap();
        let folder = base.join("anna");
        let mut keys = Keys::read(&folder, None).unwrap();
        keys.devices[0].last = "2001-02-03".parse().unwrap();
        keys.write(&folder).unwrap();
        users_file::touch(base).unwrap();
        assert!(refresh(&accounts));
        accounts.user_of_key(&key, HOME).unwrap();
        assert_eq!(Keys::read(&folder, None).unwrap().devices[0].last, clock::today());
        std::fs::remove_file(folder.join(device_keys::KEYS_FILE)).unwrap();
        accounts.user_of_key(&key, HOME).unwrap();
        assert!(!folder.join(device_keys::KEYS_FILE).exists(), "written twice on one day");
    }
}
