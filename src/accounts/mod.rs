//! Who may log in, and which host key belongs to whom.
//!
//! Here: `password` (hashes), `login_throttle`, `device_keys`, `users_file`. Not here: the folders of users
//! (`sync::session`), HTTP. Imports `config`, `files`, `text`, `os`.
//!
//! Accounts come from SYNC_USERn and from the accounts file. A SYNC_USERn account with a plain password has the host
//! key that the official server computes. So its clients stay logged in when either server replaces the other. With
//! PASSWORDS_HASHED that key would be a digest of the stored hash, so the hash would be as good as the password.
//! Therefore accounts with a hash, and so all of the accounts file, get a random key at each login. Its SHA-256 is
//! stored in `SYNC_BASE/<user>/keys`.
//!
//! Other processes change the accounts file and the keys (`ankipi user`, `ankipi device`). Each request compares the
//! stamp of the accounts file (one stat) and reloads everything if the stamp has changed. Nothing else here reads
//! files. Only logins and the first request of a device on a new day write.

pub mod device_keys;
pub mod login_throttle;
pub mod password;
pub mod users_file;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ctutils::CtEq;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use unicode_normalization::UnicodeNormalization;

use crate::config::{Config, UserSetting};
use crate::error::{Error, Result};
use crate::files;
use crate::os::clock;
use crate::text::hex::hex;
use device_keys::{KeyDigest, Keys};
use login_throttle::Throttle;
use password::Hash;
use users_file::Stamp;

enum Secret {
    Plain(String),
    Hashed(Hash),
}

struct Account {
    name: String,
    folder: PathBuf,
    secret: Secret,
    /// SHA-256 of the official host key; None if that key is not accepted.
    official: Option<KeyDigest>,
    /// Empty for accounts with a plain password.
    keys: Mutex<Keys>,
}

/// The accounts as last read.
#[derive(Default)]
struct Known {
    /// The SYNC_USERn accounts.
    settings: Vec<UserSetting>,
    stamp: Option<Stamp>,
    accounts: Vec<Arc<Account>>,
}

/// All accounts.
pub struct Accounts {
    base: PathBuf,
    passwords_hashed: bool,
    official_keys: bool,
    known: Mutex<Known>,
    throttle: Mutex<Throttle>,
    /// Held while a password is hashed. Only one is hashed at a time, so that a burst of logins leaves the other cores
    /// free. The server admits one login at a time, so no worker waits for this lock.
    hashing: Mutex<()>,
}

impl Accounts {
    /// Loads the accounts of the settings and of the accounts file. A wrong account in the settings is an error. A
    /// wrong line of the accounts file is only logged, because the file can be corrected while the server runs.
    pub fn open(config: &Config) -> Result<Accounts> {
        let accounts = Accounts {
            base: config.base.clone(),
            passwords_hashed: config.passwords_hashed,
            official_keys: config.official_keys,
            known: Mutex::default(),
            throttle: Mutex::default(),
            hashing: Mutex::new(()),
        };
        let stamp = Stamp::of(&accounts.base)?;
        let settings = config.users.clone();
        *lock(&accounts.known) = Known { stamp: Some(stamp), accounts: accounts.read(&settings)?, settings };
        Ok(accounts)
    }

    /// Reloads accounts and keys if another process changed them. Returns whether anything changed.
    pub fn refresh(&self) -> bool {
        let mut known = lock(&self.known);
        let stamp = match Stamp::of(&self.base) {
            Ok(stamp) if known.stamp == Some(stamp) => return false,
            Ok(stamp) => stamp,
            Err(err) => {
                log::error!("reload failed, keeping the old accounts: {err}");
                return false;
            }
        };
        // Stored even if reading fails, so that the error is logged once and not by each request.
        known.stamp = Some(stamp);
        match self.read(&known.settings) {
            Ok(accounts) => {
                log::info!("reloaded the accounts: there are {}", accounts.len());
                known.accounts = accounts;
                true
            }
            Err(err) => {
                log::error!("reload failed, keeping the old accounts: {err}");
                false
            }
        }
    }

    /// Replaces the accounts of the settings. On an error the old ones stay.
    pub fn reload(&self, settings: Vec<UserSetting>) -> Result<()> {
        let stamp = Stamp::of(&self.base)?;
        let accounts = self.read(&settings)?;
        *lock(&self.known) = Known { stamp: Some(stamp), accounts, settings };
        Ok(())
    }

    fn read(&self, settings: &[UserSetting]) -> Result<Vec<Arc<Account>>> {
        let mut accounts = Vec::new();
        for user in settings {
            accounts.push(Arc::new(self.of_setting(user)?));
        }
        for (name, hash) in users_file::read(&self.base, |fault| log::error!("{fault}"))? {
            if settings.iter().any(|user| user.name == name) {
                log::warn!("{name:?} is in SYNC_USERn and in the accounts file: SYNC_USERn is used")
            } else {
                accounts.push(Arc::new(Account::hashed(&self.base, name, hash, None)?))
            }
        }
        self.leave_out_those_in_one_folder(&mut accounts);
        Ok(accounts)
    }

    /// Two accounts in one folder would write to it under two locks. The first one keeps it.
    fn leave_out_those_in_one_folder(&self, accounts: &mut Vec<Arc<Account>>) {
        let mut names: Vec<String> = Vec::new();
        accounts.retain(|account| {
            let other =
                in_one_folder(&self.base, names.iter().map(String::as_str), &account.name).map(str::to_owned);
            if let Some(other) = &other {
                log::error!("the account {:?} is left out: {}", account.name, share_a_folder(other));
            }
            names.push(account.name.clone());
            other.is_none()
        });
    }

    fn of_setting(&self, user: &UserSetting) -> Result<Account> {
        let official: KeyDigest =
            Sha256::digest(hex(&Sha1::digest(format!("{}:{}", user.name, user.password)))).into();
        if self.passwords_hashed {
            let hash = Hash::parse(&user.password).map_err(|err| {
                Error::Broken(format!(
                    "PASSWORDS_HASHED is set, but the password of '{}' is {err}. `ankipi hash-password` makes one",
                    user.name
                ))
            })?;
            return Account::hashed(
                &self.base,
                user.name.clone(),
                hash,
                self.official_keys.then_some(official),
            );
        }
        Ok(Account {
            folder: self.base.join(&user.name),
            name: user.name.clone(),
            secret: Secret::Plain(user.password.clone()),
            official: Some(official),
            keys: Mutex::default(),
        })
    }

    /// Checks a password and returns the host key for the client (spec, sync-protocol.md 6.1). An unknown user takes as
    /// long as a wrong password.
    ///
    /// Errors: `Forbidden`; `Busy` while the user or the address has to wait.
    pub fn log_in(&self, name: &str, password: &str, client: &str, address: IpAddr) -> Result<String> {
        let wait = lock(&self.throttle).delay(name, address, Instant::now());
        if let Some(wait) = wait {
            let secs = wait.as_secs() + 1;
            return Err(failure(
                name,
                address,
                "throttled",
                Error::Busy(format!("must wait {secs} s to log in")),
            ));
        }
        let (account, any_account) = {
            let known = lock(&self.known);
            let account = known.accounts.iter().find(|account| account.name == name);
            (account.cloned(), known.accounts.first().cloned())
        };
        let is_correct = {
            let _one_at_a_time = lock(&self.hashing);
            match (&account, any_account) {
                (Some(account), _) => account.secret.fits(password),
                // Compare with another account, so that an unknown user takes as long as a wrong password.
                (None, any_account) => {
                    std::hint::black_box(any_account.map(|any_account| any_account.secret.fits(password)));
                    false
                }
            }
        };
        match account {
            Some(account) if is_correct => {
                lock(&self.throttle).succeeded(name, address);
                let account = self.with_strong_hash(account, password)?;
                self.key_for(&account, client)
            }
            account => {
                lock(&self.throttle).failed(name, address, Instant::now());
                let reason = if account.is_some() { "wrong password" } else { "unknown user" };
                Err(failure(name, address, reason, Error::Forbidden("wrong name or password".to_owned())))
            }
        }
    }

    /// Replaces a hash imported from another server by a PBKDF2 hash. This needs the password, so it happens at a
    /// login.
    fn with_strong_hash(&self, account: Arc<Account>, password: &str) -> Result<Arc<Account>> {
        match &account.secret {
            Secret::Hashed(hash) if hash.is_weak() => {
                let hash = {
                    let _one_at_a_time = lock(&self.hashing);
                    Hash::of(password, password::DEFAULT_ROUNDS)?
                };
                users_file::change(&self.base, |hashes| {
                    Ok(hashes.insert(account.name.clone(), hash.clone()))
                })?;
                log::info!("{:?}: the password is stored with a stronger hash now", account.name);
                Ok(Arc::new(Account::hashed(&self.base, account.name.clone(), hash, None)?))
            }
            _ => Ok(account),
        }
    }

    /// The key of a new login. It is durable before the client receives it.
    fn key_for(&self, account: &Account, client: &str) -> Result<String> {
        match &account.secret {
            Secret::Plain(password) => Ok(hex(&Sha1::digest(format!("{}:{password}", account.name)))),
            Secret::Hashed(hash) => self.change_keys(account, hash, |keys| keys.add(client)),
        }
    }

    /// Changes the keys as they are in the file now: another process may have revoked some.
    fn change_keys<T>(
        &self,
        account: &Account,
        hash: &Hash,
        change: impl FnOnce(&mut Keys) -> Result<T>,
    ) -> Result<T> {
        let _lock = users_file::lock(&self.base)?;
        let mut keys = Keys::read(&account.folder, Some(&hash.tag()))?;
        let outcome = change(&mut keys)?;
        keys.write(&account.folder)?;
        *lock(&account.keys) = keys;
        Ok(outcome)
    }

    /// The name of the user with this host key.
    pub fn user_of_key(&self, key: &str) -> Result<String> {
        let digest: KeyDigest = Sha256::digest(key).into();
        let accounts = lock(&self.known).accounts.clone();
        let mut found = None;
        for account in &accounts {
            // No early return: the duration must not reveal which account matches.
            if account.has_key(&digest) {
                found = Some(account);
            }
        }
        let account = found.ok_or_else(|| Error::Forbidden("unknown host key".to_owned()))?;
        if let Err(err) = self.note_use(account, &digest) {
            log::warn!("{:?}: cannot store the day of the last use: {err}", account.name);
        }
        Ok(account.name.clone())
    }

    /// Stores the day of the last use, once a day.
    fn note_use(&self, account: &Account, digest: &KeyDigest) -> Result<()> {
        let Secret::Hashed(hash) = &account.secret else { return Ok(()) };
        let today = clock::today();
        // The day in memory changes even if writing fails, so that not each request tries again.
        let set_day = |keys: &mut Keys| match keys.find(digest) {
            Some(device) if device.last < today => {
                device.last = today;
                true
            }
            _ => false,
        };
        let is_new_day = set_day(&mut lock(&account.keys));
        if is_new_day {
            self.change_keys(account, hash, |keys| {
                set_day(keys);
                Ok(())
            })
        } else {
            Ok(())
        }
    }

    /// The names of all accounts.
    pub fn names(&self) -> Vec<String> {
        lock(&self.known).accounts.iter().map(|account| account.name.clone()).collect()
    }
}

/// The name among `others` whose folder is that of `name`: on file systems that do not tell case apart (exFAT, vfat, some network
/// shares), `Anna` and `anna` are one. Creates the folder of the other, which exists anyway once somebody has logged in.
pub fn in_one_folder<'n>(
    base: &Path,
    mut others: impl Iterator<Item = &'n str>,
    name: &str,
) -> Option<&'n str> {
    let folded = |name: &str| name.nfc().collect::<String>().to_lowercase();
    let id = |name: &str| fs::metadata(base.join(name)).map(|meta| (meta.dev(), meta.ino())).ok();
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

impl Account {
    fn hashed(base: &Path, name: String, hash: Hash, official: Option<KeyDigest>) -> Result<Account> {
        let folder = base.join(&name);
        let keys = Mutex::new(Keys::read(&folder, Some(&hash.tag()))?);
        Ok(Account { name, folder, secret: Secret::Hashed(hash), official, keys })
    }

    fn has_key(&self, digest: &KeyDigest) -> bool {
        let is_official = self.official.is_some_and(|official| official.ct_eq(digest).to_bool());
        is_official | lock(&self.keys).find(digest).is_some()
    }
}

impl Secret {
    fn fits(&self, password: &str) -> bool {
        match self {
            Secret::Hashed(hash) => hash.fits(password),
            Secret::Plain(expected) => {
                password::spend_time(password);
                password::same(password, expected)
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Settings};

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// 1000 rounds; the password is "secret".
    const PHC: &str =
        "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHRzYWx0$sVaWem31qy3rw+Ldi3plA/XzhMSNi9/XHnnD1Ytj05o";

    fn accounts(base: &Path, vars: &[(&str, &str)]) -> Accounts {
        let base = [("SYNC_BASE", base.to_str().unwrap())];
        let vars = vars.iter().chain(&base).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Accounts::open(&Settings::read(None, vars, Flags::new()).unwrap().config().unwrap()).unwrap()
    }

    fn set(base: &Path, name: &str, hash: Option<&Hash>) {
        users_file::change(base, |hashes| {
            hash.map(|hash| hashes.insert(name.to_owned(), hash.clone()))
                .unwrap_or_else(|| hashes.remove(name));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_plain_account_has_the_official_key() {
        let dir = tempfile::tempdir().unwrap();
        let accounts = accounts(dir.path(), &[("SYNC_USER1", "test:secret")]);
        let key = accounts.log_in("test", "secret", "", HOME).unwrap();
        assert_eq!(key, "523322844031c7adb91401e307edd32ad150d563");
        assert_eq!(accounts.user_of_key(&key).unwrap(), "test");
        for (name, password) in [("test", "Secret"), ("test", ""), ("tes", "secret")] {
            assert_eq!(accounts.log_in(name, password, "", HOME).unwrap_err().status(), 403);
        }
        for key in ["", "test", "523322844031c7adb91401e307edd32ad150d564"] {
            assert_eq!(accounts.user_of_key(key).unwrap_err().status(), 403);
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
        assert_eq!(again.user_of_key(&a).unwrap(), "test");
        assert_eq!(again.user_of_key(&b).unwrap(), "test");
        let official = hex(&Sha1::digest(format!("test:{PHC}")));
        assert_eq!(again.user_of_key(&official).unwrap_err().status(), 403);
        assert_eq!(again.log_in("test", "wrong", "", HOME).unwrap_err().status(), 403);
        let switched_on = [vars[0], vars[1], ("SYNC_OFFICIAL_KEYS", "yes")];
        assert_eq!(accounts(dir.path(), &switched_on).user_of_key(&official).unwrap(), "test");
    }

    #[test]
    fn accounts_come_change_and_go_while_the_server_runs() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let accounts = accounts(base, &[]);
        assert!(!accounts.refresh());
        accounts.log_in("anna", "one", "", HOME).unwrap_err();
        set(base, "anna", Some(&Hash::of("one", 1000).unwrap()));
        assert!(accounts.refresh() && !accounts.refresh());
        let key = accounts.log_in("anna", "one", "", HOME).unwrap();
        assert_eq!(accounts.user_of_key(&key).unwrap(), "anna");
        set(base, "bob", Some(&Hash::of("x", 1000).unwrap()));
        assert!(accounts.refresh());
        assert_eq!(accounts.user_of_key(&key).unwrap(), "anna", "another account's change loses keys");
        set(base, "anna", Some(&Hash::of("one", 1000).unwrap()));
        assert!(accounts.refresh());
        assert_eq!(accounts.user_of_key(&key).unwrap_err().status(), 403, "a new password keeps old keys");
        set(base, "anna", None);
        assert!(accounts.refresh());
        assert_eq!(accounts.names(), ["bob"]);
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
        accounts.refresh();
        accounts.user_of_key(&key).unwrap();
        assert_eq!(Keys::read(&folder, None).unwrap().devices[0].last, clock::today());
        std::fs::remove_file(folder.join(device_keys::KEYS_FILE)).unwrap();
        accounts.user_of_key(&key).unwrap();
        assert!(!folder.join(device_keys::KEYS_FILE).exists(), "written twice on one day");
    }
}
