//! Which client a request is from, as far as its head tells: for the shares of connections and workers.
//!
//! A host key in the head names a user only after a request with it was authenticated; until then the client is its
//! address. Keys are kept as keyed hashes, and nothing is read from the disk: this runs on the thread of the poll loop.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::api::{App, client_address};
use crate::http::request_head::Fields;
use crate::messages::SyncHeader;

/// Maximum number of keys that are remembered. Then all are forgotten, and soon learned again.
const MAX_KEYS: usize = 512;

/// The users of the host keys that were used lately.
#[derive(Default)]
pub struct UsersOfKeys {
    users: Mutex<HashMap<u64, String>>,
    hasher: RandomState,
}

impl UsersOfKeys {
    /// Notes that a key was found good.
    pub fn learn(&self, key: &str, user: &str) {
        let mut users = self.lock();
        let key = self.hasher.hash_one(key);
        if users.get(&key).is_some_and(|known| known == user) {
            return;
        }
        if users.len() >= MAX_KEYS {
            users.clear();
        }
        users.insert(key, user.to_owned());
    }

    fn user(&self, key: &str) -> Option<String> {
        self.lock().get(&self.hasher.hash_one(key)).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, String>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl App {
    /// The address that a request comes from, and the user, if the key in its head is known.
    pub fn client_of(&self, peer: IpAddr, fields: &Fields) -> (IpAddr, Option<String>) {
        let address = client_address::resolve(peer, |name| fields.values(name), &self.config);
        let header = fields.values("anki-sync").next();
        let header = header.and_then(|text| serde_json::from_str::<SyncHeader>(text).ok());
        (address, header.and_then(|header| self.users_of_keys.user(&header.hkey)))
    }

    /// Whether connections of this peer are those of many clients.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        client_address::is_trusted_proxy(peer, &self.config)
    }
}
