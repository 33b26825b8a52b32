//! All users by name: which of them have an account, and the open state of each.
//!
//! A user stays in memory when the account is removed or the folder is replaced, because an older request may still
//! run: it and those that follow must use the same lock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::collection::Journal;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::files::HeldFolder;
use crate::sync::daily_backup;
use crate::sync::user::{User, UserSettings};

/// All users, by name. Accounts are added and removed while the server runs.
pub struct Users {
    base: PathBuf,
    settings: UserSettings,
    session_idle: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The version of the accounts snapshot that this was taken from.
    version: u64,
    entries: BTreeMap<String, Arc<Entry>>,
    /// Which accounts exist, each with a tag that changes with its password.
    tags: BTreeMap<String, String>,
    /// The user of each folder, by device and inode.
    folders: Vec<((u64, u64), String)>,
}

/// One user, from the first request on.
#[derive(Default)]
struct Entry {
    user: OnceLock<Arc<User>>,
    /// The folder that is in use. Locked while it is prepared.
    folder: Mutex<Option<HeldFolder>>,
}

impl Users {
    /// No users yet.
    pub fn new(config: &Config) -> Result<Users> {
        let settings = UserSettings {
            backups: config.backups,
            daily: daily_backup::Policy::of(config),
            max_row_bytes: config.max_row_bytes,
            journal: Journal::of_disk(&config.base),
        };
        Ok(Users {
            base: config.base.clone(),
            settings,
            session_idle: config.session_idle,
            known: Mutex::default(),
        })
    }

    /// Takes over the names of the accounts, unless this version is known already. Each name comes with a tag that
    /// changes with the password. Rolls back the sessions of users whose account was removed or has another password.
    pub fn follow(&self, version: u64, accounts: impl Iterator<Item = (String, String)>) {
        let mut ended = Vec::new();
        {
            let mut known = self.lock();
            if known.version >= version {
                return;
            }
            known.version = version;
            let before = std::mem::replace(&mut known.tags, accounts.collect());
            for (name, tag) in before {
                let now = known.tags.get(&name);
                if now == Some(&tag) {
                    continue;
                }
                if now.is_none() {
                    log::info!("{name:?} has no account any more");
                    known.folders.retain(|(_, of)| *of != name);
                }
                ended.extend(known.entries.get(&name).and_then(|entry| entry.user.get()).cloned());
            }
        }
        ended.iter().for_each(|user| user.end());
    }

    /// The user of that name. `Forbidden` if there is no such account any more. `create` is
    /// called if there is no folder and was none.
    pub fn by_name(&self, name: &str, create: impl FnOnce(&Path) -> Result<()>) -> Result<Arc<User>> {
        let entry = {
            let mut known = self.lock();
            if !known.tags.contains_key(name) {
                return Err(Error::Forbidden(format!("{name:?} has no account any more")));
            }
            known.entries.entry(name.to_owned()).or_default().clone()
        };
        let mut held = entry.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = self.base.join(name);
        let is_same = held.as_ref().is_some_and(|folder| folder.is_at(&dir));
        if let (Some(user), Some(folder)) = (entry.user.get(), held.as_ref().filter(|_| is_same)) {
            self.claim(folder, name)?;
            return Ok(user.clone());
        }
        if !files::is_there(&dir)? {
            // The folder may come back. A new one in its place would be an empty collection for all devices.
            if held.is_some() {
                return Err(Error::Broken(format!(
                    "{} is gone: put it back, or make it anew (or restart ankipi) to begin with an empty one",
                    dir.display()
                )));
            }
            create(&dir)?;
        }
        let folder = usable_folder(&dir)?;
        self.claim(&folder, name)?;
        let user = match entry.user.get() {
            Some(user) => {
                log::info!("{name:?} has a new folder");
                user.switch_to_new_folder()?;
                user.clone()
            }
            None => {
                let user = Arc::new(User::open(&self.settings, &dir, name));
                entry.user.get_or_init(|| user).clone()
            }
        };
        *held = Some(folder);
        Ok(user)
    }

    /// Records the user of a folder. An error if it is already the folder of another user: on some file systems `Anna`
    /// and `anna` are one folder.
    fn claim(&self, folder: &HeldFolder, name: &str) -> Result<()> {
        let mut known = self.lock();
        match known.folders.iter().find(|(id, _)| *id == folder.id) {
            Some((_, owner)) if owner == name => Ok(()),
            Some((_, owner)) => Err(Error::Broken(format!(
                "the disk takes the folders of {owner:?} and {name:?} for one, so {name:?} cannot be used: give that \
                 user another name"
            ))),
            None => {
                known.folders.retain(|(_, of)| of != name);
                known.folders.push((folder.id, name.to_owned()));
                Ok(())
            }
        }
    }

    /// Rolls back sessions that had no request for too long, and closes unused media stores. Returns the time until the
    /// next check, or none if nothing is open.
    pub fn expire_sessions(&self) -> Option<Duration> {
        let users = self.all();
        let sessions = users.iter().filter_map(|user| user.expire(self.session_idle));
        sessions.chain(users.iter().filter_map(|user| user.media.close_if_idle())).min()
    }

    /// Rolls back every session and closes the media stores.
    pub fn end_sessions(&self) {
        self.all().iter().for_each(|user| user.end());
    }

    fn all(&self) -> Vec<Arc<User>> {
        self.lock().entries.values().filter_map(|entry| entry.user.get().cloned()).collect()
    }

    /// Locks what is known, to look something up or note it. Do not take another lock while holding it.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a user's folder. An error if it cannot be used.
pub fn usable_folder(dir: &Path) -> Result<HeldFolder> {
    files::refuse_link(dir)?;
    HeldFolder::open(dir)
}
