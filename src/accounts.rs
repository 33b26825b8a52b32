//! Who may log in, and which host key belongs to whom.
//!
//! Accounts come from SYNC_USERn. A plain one has the host key of the official server, so that its clients stay
//! logged in when the server is exchanged, in both directions. With PASSWORDS_HASHED the official key would be a digest
//! of the stored hash, which would make that hash a password; there each login gets a random key, whose SHA-256 is
//! kept in `SYNC_BASE/<user>/keys`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ctutils::CtEq;
use pbkdf2::password_hash::PasswordVerifier;
use pbkdf2::phc::PasswordHash;
use pbkdf2::{Pbkdf2, pbkdf2_hmac_array};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::config::{Config, UserSetting};
use crate::error::{Error, Result};
use crate::fsutil;
use crate::sys;

/// The rounds of the official server, spent on every attempt that has no stored hash to say otherwise.
const ROUNDS: u32 = 600_000;

/// The file of host keys in a user's folder: one line per login, `sha256-of-key client`.
const KEYS_FILE: &str = "keys";

/// The host keys of one account are forgotten, oldest first, beyond this many logins.
const MAX_KEYS: usize = 200;

/// The SHA-256 of a host key.
type KeyDigest = [u8; 32];

enum Secret {
    Plain {
        password: String,
        official_key: String,
    },
    /// A PHC string.
    Hashed(String),
}

struct Account {
    name: String,
    folder: PathBuf,
    secret: Secret,
    keys: Mutex<Vec<StoredKey>>,
}

struct StoredKey {
    digest: KeyDigest,
    client: String,
}

/// All accounts.
pub struct Accounts {
    accounts: Vec<Account>,
    /// Held while a password is hashed: one at a time, so that a burst of logins leaves the board its other cores.
    hashing: Mutex<()>,
}

impl Accounts {
    /// Sets up the accounts of the configuration and reads their stored keys.
    pub fn open(config: &Config) -> Result<Accounts> {
        let accounts = config.users.iter().map(|user| Account::open(config, user)).collect::<Result<_>>()?;
        Ok(Accounts { accounts, hashing: Mutex::new(()) })
    }

    /// Checks a password and returns the host key for the client (spec, sync-protocol.md 6.1). Takes as long for an
    /// unknown user as for a wrong password.
    pub fn log_in(&self, name: &str, password: &str, client: &str) -> Result<String> {
        let account = self.accounts.iter().find(|account| account.name == name);
        {
            let _one_at_a_time = lock(&self.hashing);
            match account.map(|account| &account.secret) {
                Some(Secret::Hashed(phc)) => check_hashed(name, phc, password)?,
                Some(Secret::Plain { password: expected, .. }) => {
                    spend_time(password);
                    if !same_digest(&Sha256::digest(password), &Sha256::digest(expected)) {
                        return Err(wrong_password(name));
                    }
                }
                None => {
                    // As long as for a wrong password of the accounts that there are.
                    match self.accounts.first().map(|account| &account.secret) {
                        Some(Secret::Hashed(phc)) => drop(check_hashed(name, phc, password)),
                        _ => spend_time(password),
                    }
                    return Err(Error::Forbidden(format!("login failed user={name:?} reason=unknown user")));
                }
            }
        }
        match account {
            Some(Account { secret: Secret::Plain { official_key, .. }, .. }) => Ok(official_key.clone()),
            Some(account) => account.new_key(client),
            None => Err(wrong_password(name)),
        }
    }

    /// The user whose host key this is.
    pub fn user_of_key(&self, key: &str) -> Result<&str> {
        let digest: KeyDigest = Sha256::digest(key).into();
        let mut found = None;
        for account in &self.accounts {
            // No early return: how long the search takes must not tell how far it got.
            if account.has_key(&digest) {
                found = Some(account.name.as_str());
            }
        }
        found.ok_or_else(|| Error::Forbidden("unknown host key".to_owned()))
    }

    /// The names of all accounts.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.accounts.iter().map(|account| account.name.as_str())
    }
}

impl Account {
    fn open(config: &Config, user: &UserSetting) -> Result<Account> {
        let folder = config.base.join(&user.name);
        let (secret, keys) = if config.passwords_hashed {
            if let Err(err) = PasswordHash::new(&user.password) {
                return Err(Error::Broken(format!(
                    "PASSWORDS_HASHED is set, but the password of '{}' is not a PHC string ($pbkdf2-sha256$...): {err}",
                    user.name
                )));
            }
            (Secret::Hashed(user.password.clone()), read_keys(&folder.join(KEYS_FILE))?)
        } else {
            let official_key = hex(&Sha1::digest(format!("{}:{}", user.name, user.password)));
            (Secret::Plain { password: user.password.clone(), official_key }, Vec::new())
        };
        Ok(Account { name: user.name.clone(), folder, secret, keys: Mutex::new(keys) })
    }

    fn has_key(&self, digest: &KeyDigest) -> bool {
        match &self.secret {
            Secret::Plain { official_key, .. } => same_digest(digest, &Sha256::digest(official_key)),
            Secret::Hashed(_) => {
                let keys = lock(&self.keys);
                keys.iter().fold(false, |found, key| found | same_digest(digest, &key.digest))
            }
        }
    }

    /// Makes a key for a device and stores its digest durably before the device learns it.
    fn new_key(&self, client: &str) -> Result<String> {
        let mut random = [0u8; 20];
        sys::random(&mut random).map_err(|err| Error::Broken(format!("no random bytes: {err}")))?;
        let key = hex(&random);
        let client = client.chars().filter(|c| !c.is_control()).take(80).collect();
        let mut keys = lock(&self.keys);
        keys.push(StoredKey { digest: Sha256::digest(&key).into(), client });
        let surplus = keys.len().saturating_sub(MAX_KEYS);
        keys.drain(..surplus);
        let lines: String = keys.iter().map(|key| format!("{} {}\n", hex(&key.digest), key.client)).collect();
        fsutil::create_folder(&self.folder)?;
        fsutil::replace_file(&self.folder, KEYS_FILE, lines.as_bytes())?;
        Ok(key)
    }
}

fn read_keys(path: &Path) -> Result<Vec<StoredKey>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(Error::Io("reading", path.to_owned(), err)),
    };
    let mut keys = Vec::new();
    for line in text.lines() {
        let (digest, client) = line.split_once(' ').unwrap_or((line, ""));
        match unhex(digest) {
            Some(digest) => keys.push(StoredKey { digest, client: client.to_owned() }),
            None => log::warn!("{}: skipped a line that is not a key", path.display()),
        }
    }
    Ok(keys)
}

fn check_hashed(name: &str, phc: &str, password: &str) -> Result<()> {
    let hash =
        PasswordHash::new(phc).map_err(|err| Error::Broken(format!("stored hash of {name:?}: {err}")))?;
    Pbkdf2::default().verify_password(password.as_bytes(), &hash).map_err(|_| wrong_password(name))
}

/// A plain password is in the environment for everyone on the board to read: hashing it gains nothing but the time
/// that makes guessing slow, and that time must be the same with and without an account.
fn spend_time(password: &str) {
    std::hint::black_box(pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), b"ankipi", ROUNDS));
}

fn wrong_password(name: &str) -> Error {
    Error::Forbidden(format!("login failed user={name:?} reason=wrong password"))
}

/// Takes as long whatever the two hold: ctutils has no branch on either, and hides the result from the optimiser until it is
/// read. Both are digests, so that neither their length nor, should a branch slip in after all, a common prefix tells
/// anything of a password or key: whoever tries one cannot steer its digest.
fn same_digest(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).to_bool()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<KeyDigest> {
    let mut digest = KeyDigest::default();
    if text.len() != 2 * digest.len() || !text.is_ascii() {
        return None;
    }
    for (i, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn accounts(base: &Path, vars: &[(&str, &str)]) -> Accounts {
        let base = [("SYNC_BASE", base.to_str().unwrap())];
        let vars = vars.iter().chain(&base).map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Accounts::open(&Config::load(vars, Flags::default()).unwrap()).unwrap()
    }

    /// 1000 rounds; the password is "secret".
    const PHC: &str =
        "$pbkdf2-sha256$i=1000,l=32$c2FsdHNhbHRzYWx0$sVaWem31qy3rw+Ldi3plA/XzhMSNi9/XHnnD1Ytj05o";

    #[test]
    fn a_plain_account_has_the_official_key() {
        let dir = tempfile::tempdir().unwrap();
        let accounts = accounts(dir.path(), &[("SYNC_USER1", "test:secret")]);
        let key = accounts.log_in("test", "secret", "").unwrap();
        assert_eq!(key, "523322844031c7adb91401e307edd32ad150d563");
        assert_eq!(accounts.user_of_key(&key).unwrap(), "test");
        for (name, password) in [("test", "Secret"), ("test", ""), ("tes", "secret")] {
            assert_eq!(accounts.log_in(name, password, "").unwrap_err().status(), 403);
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
        let (a, b) =
            (first.log_in("test", "secret", "x").unwrap(), first.log_in("test", "secret", "y").unwrap());
        assert_ne!(a, b);
        let again = accounts(dir.path(), &vars);
        assert_eq!(again.user_of_key(&a).unwrap(), "test");
        assert_eq!(again.user_of_key(&b).unwrap(), "test");
        let hash_as_password = hex(&Sha1::digest(format!("test:{PHC}")));
        assert_eq!(again.user_of_key(&hash_as_password).unwrap_err().status(), 403);
        assert_eq!(again.log_in("test", "wrong", "").unwrap_err().status(), 403);
    }
}
