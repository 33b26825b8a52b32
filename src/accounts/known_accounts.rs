//! All that is known of the accounts at one moment. A snapshot never changes; a newer one replaces it as a whole.
//!
//! A fault concerns one account and closes it: nobody can log in to it or sync with it, and the others go on. Its
//! devices get an error and not "unknown key", so that they are still logged in once the fault is repaired. The same holds
//! for devices whose account is missing: a folder that holds keys had an account, which the accounts file may have lost.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ctutils::CtEq;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::accounts::device_keys::{KeyDigest, Keys};
use crate::accounts::password;
use crate::accounts::password::Hash;
use crate::accounts::users_file;
use crate::accounts::users_file::{Stamp, UsersFile};
use crate::config::user_name;
use crate::config::{Config, USERS_FILE, UserSetting};
use crate::error::{Error, Result};
use crate::text::counted::counted;
use crate::text::hex::hex;

/// After a file could not be read, it is tried again after so long. Only a change of the accounts file is noticed at
/// once.
const RETRY_FAULTS: Duration = Duration::from_secs(1);

/// The settings of accounts. They are replaced together: a password means something else with PASSWORDS_HASHED.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountSettings {
    users: Vec<UserSetting>,
    passwords_hashed: bool,
    official_keys: bool,
}

impl AccountSettings {
    /// Those of a configuration.
    pub fn of(config: &Config) -> AccountSettings {
        AccountSettings {
            users: config.users.clone(),
            passwords_hashed: config.passwords_hashed,
            official_keys: config.official_keys,
        }
    }
}

/// What a login is compared with.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The password itself.
    Plain(String),
    /// Its hash.
    Hashed(Hash),
}

impl Secret {
    /// Whether this is the password. Takes as long for any password.
    pub fn fits(&self, password: &str) -> bool {
        match self {
            Secret::Hashed(hash) => hash.fits(password),
            Secret::Plain(expected) => {
                password::spend_login_time(password);
                password::same(password, expected)
            }
        }
    }
}

/// One account.
#[derive(Clone)]
pub struct Account {
    /// Also the name of its folder.
    pub name: String,
    /// The user's folder.
    pub folder: PathBuf,
    /// It is a SYNC_USERn and not in the accounts file.
    pub is_of_settings: bool,
    /// None if it cannot be read. Then the account is closed.
    pub secret: Option<Secret>,
    /// SHA-256 of the official host key; None if that key is not accepted.
    official: Option<KeyDigest>,
    /// Empty for accounts with a plain password. If the account is closed, the keys that are known nevertheless.
    pub keys: Keys,
    /// The keys file could not be read, or not all of it.
    is_damaged: bool,
    /// There may be keys that were never read.
    has_unknown_keys: bool,
    /// Why nobody can use the account.
    pub closed: Option<String>,
}

impl Account {
    /// Whether a key is one of this account.
    pub fn has_key(&self, digest: &KeyDigest) -> bool {
        let is_official = self.official.is_some_and(|official| official.ct_eq(digest).to_bool());
        is_official | self.keys.find(digest).is_some()
    }

    /// Changes with the password.
    pub fn tag(&self) -> String {
        match &self.secret {
            Some(Secret::Hashed(hash)) => hash.tag(),
            Some(Secret::Plain(_)) => self.official.map(|official| hex(&official)).unwrap_or_default(),
            None => String::new(),
        }
    }

    /// Errors if the account is closed.
    pub fn check_open(&self) -> Result<()> {
        match &self.closed {
            Some(why) => Err(Error::Broken(format!("the account {:?} is closed: {why}", self.name))),
            None => Ok(()),
        }
    }

    fn of_setting(base: &Path, user: &UserSetting, settings: &AccountSettings) -> Result<Account> {
        let official: KeyDigest =
            Sha256::digest(hex(&Sha1::digest(format!("{}:{}", user.name, user.password)))).into();
        if settings.passwords_hashed {
            let hash = Hash::parse(&user.password).map_err(|err| {
                Error::Broken(format!(
                    "PASSWORDS_HASHED is set, but the password of '{}' is {err}. `ankipi hash-password` makes one",
                    user.name
                ))
            })?;
            let official = settings.official_keys.then_some(official);
            let account = Account::hashed(base, &user.name, Ok(hash), official);
            return Ok(Account { is_of_settings: true, ..account });
        }
        Ok(Account {
            folder: base.join(&user.name),
            is_of_settings: true,
            name: user.name.clone(),
            secret: Some(Secret::Plain(user.password.clone())),
            official: Some(official),
            keys: Keys::default(),
            is_damaged: false,
            has_unknown_keys: false,
            closed: user_name::why_reserved(&user.name),
        })
    }

    fn hashed(base: &Path, name: &str, hash: users_file::Entry, official: Option<KeyDigest>) -> Account {
        let folder = base.join(name);
        // If the hash cannot be read, any of the keys may be good.
        let read = Keys::read(&folder, hash.as_ref().ok().map(Hash::tag).as_deref());
        let (keys, unreadable) = match read {
            Ok(keys) => (keys, None),
            Err(err) => (Keys::default(), Some(err.to_string())),
        };
        let damage = unreadable.or_else(|| keys.damage.clone());
        Account {
            name: name.to_owned(),
            folder,
            is_of_settings: false,
            official,
            keys,
            is_damaged: damage.is_some(),
            has_unknown_keys: damage.is_some(),
            closed: user_name::why_reserved(name).or_else(|| hash.as_ref().err().cloned()).or(damage),
            secret: hash.ok().map(Secret::Hashed),
        }
    }

    /// For a closed account: takes over keys that were known before their file was damaged.
    fn remember_keys(&mut self, before: &Account) {
        if self.has_unknown_keys && !before.has_unknown_keys && self.secret == before.secret {
            self.keys.devices = before.keys.devices.clone();
            self.has_unknown_keys = false;
        }
    }
}

/// All accounts at one moment.
pub struct Snapshot {
    /// Grows with each snapshot.
    pub version: u64,
    settings: Arc<AccountSettings>,
    stamp: Stamp,
    read_at: Instant,
    accounts: BTreeMap<String, Arc<Account>>,
    /// Keys in folders that no account has.
    orphaned: Vec<Keys>,
    /// Why the accounts file could not be read. Then the accounts in it are unknown.
    pub file_fault: Option<String>,
    /// A line of the accounts file that names no account. It may be one whose name is damaged.
    nameless_line: Option<String>,
    /// Faults for the log that close no account.
    notes: Vec<String>,
}

impl Snapshot {
    /// Reads everything. Only wrong settings are an error.
    pub fn read(base: &Path, settings: Arc<AccountSettings>, before: Option<&Snapshot>) -> Result<Snapshot> {
        let read_at = Instant::now();
        let (users, stamp, file_fault) = match users_file::read(base) {
            Ok((users, stamp)) => (users, stamp, None),
            Err(err) => (UsersFile::default(), Stamp::default(), Some(err.to_string())),
        };
        let (nameless_line, mut notes) = (users.faults.first().cloned(), users.faults.clone());
        let mut accounts = BTreeMap::new();
        let mut add = |name: &str, mut account: Account| {
            if let Some(before) = before.and_then(|before| before.accounts.get(name)) {
                account.remember_keys(before);
            }
            accounts.insert(name.to_owned(), Arc::new(account));
        };
        for user in &settings.users {
            add(&user.name, Account::of_setting(base, user, &settings)?);
        }
        for (name, entry) in users.accounts() {
            if settings.users.iter().any(|user| user.name == *name) {
                notes.push(format!("{name:?} is in SYNC_USERn and in the accounts file: SYNC_USERn is used"));
            } else {
                add(name, Account::hashed(base, name, entry.clone(), None));
            }
        }
        let mut orphaned = Vec::new();
        if file_fault.is_none() {
            for (name, keys) in keys_without_account(base, &accounts) {
                notes.push(format!(
                    "{name:?} has no account, but its folder holds the keys of {}: they cannot sync, and stay \
                     logged in. If the account is lost, put a copy of {} (or its SYNC_USERn) in place, or type \
                     `ankipi user add {name}`, after which the devices log in again. If it shall be gone, type `ankipi \
                     user remove {name}`",
                    counted(keys.devices.len(), "device"),
                    base.join(USERS_FILE).display()
                ));
                orphaned.push(keys);
            }
        }
        Ok(Snapshot {
            version: before.map_or(1, |before| before.version + 1),
            accounts,
            orphaned,
            settings,
            stamp,
            read_at,
            file_fault,
            nameless_line,
            notes,
        })
    }

    /// The same with other keys of one account.
    pub fn with_keys(&self, account: &Account, keys: Keys) -> Snapshot {
        let mut accounts = self.accounts.clone();
        accounts.insert(account.name.clone(), Arc::new(Account { keys, ..account.clone() }));
        Snapshot {
            version: self.version + 1,
            settings: self.settings.clone(),
            stamp: self.stamp.clone(),
            read_at: self.read_at,
            accounts,
            orphaned: self.orphaned.clone(),
            file_fault: self.file_fault.clone(),
            nameless_line: self.nameless_line.clone(),
            notes: self.notes.clone(),
        }
    }

    /// Whether the accounts file has not changed since.
    pub fn is_current(&self, base: &Path) -> Result<bool> {
        if self.file_fault.is_some() { Ok(true) } else { self.stamp.is_current(base) }
    }

    /// Whether a file that could not be read should be tried again.
    pub fn is_retry_due(&self) -> bool {
        let is_damaged =
            self.file_fault.is_some() || self.accounts.values().any(|account| account.is_damaged);
        is_damaged && self.read_at.elapsed() >= RETRY_FAULTS
    }

    /// The settings that it was made of.
    pub fn settings(&self) -> &Arc<AccountSettings> {
        &self.settings
    }

    /// All accounts.
    pub fn accounts(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.accounts.values()
    }

    /// The account with this host key.
    pub fn owner(&self, digest: &KeyDigest) -> Option<&Arc<Account>> {
        let mut found = None;
        for account in self.accounts() {
            // No early return: the duration must not reveal which account matches.
            if account.has_key(digest) {
                found = Some(account);
            }
        }
        found
    }

    /// The account of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Account>> {
        self.accounts.get(name)
    }

    /// Why some keys could not be read. Then a key that is not found may still be valid. None if all keys were read.
    pub fn unread_keys(&self) -> Option<&str> {
        let of_accounts = self.accounts.values().filter(|account| account.has_unknown_keys);
        let why = of_accounts.filter_map(|account| account.closed.as_deref());
        self.file_fault.as_deref().into_iter().chain(why).chain(self.nameless_line.as_deref()).next()
    }

    /// Whether a key is of a device whose account is missing.
    pub fn is_orphaned(&self, digest: &KeyDigest) -> bool {
        // No early return: the duration must not reveal which folder matches.
        self.orphaned.iter().fold(false, |found, keys| found | keys.find(digest).is_some())
    }

    fn closed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.accounts.values().filter_map(|account| Some((&*account.name, account.closed.as_deref()?)))
    }

    /// Every fault, as a line for the log.
    pub fn faults(&self) -> Vec<String> {
        let junk = self.accounts.values().filter_map(|account| account.keys.junk.clone());
        let file = self.file_fault.iter().map(|why| format!("the accounts cannot be read: {why}"));
        let closed = self.closed().map(|(name, why)| format!("the account {name:?} is closed: {why}"));
        file.chain(closed).chain(junk).chain(self.notes.iter().cloned()).collect()
    }
}

/// The folders in the data folder that hold keys of devices, and that no account has: their names and keys.
fn keys_without_account(base: &Path, accounts: &BTreeMap<String, Arc<Account>>) -> Vec<(String, Keys)> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let others =
        names.filter(|name| user_name::check_user_name(name).is_ok() && !accounts.contains_key(name));
    let with_keys = others.filter_map(|name| {
        let keys = Keys::read(&base.join(&name), None).ok().filter(|keys| !keys.devices.is_empty())?;
        Some((name, keys))
    });
    let mut found: Vec<_> = with_keys.collect();
    found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    found
}
