//! What the connection layer must ask `api`: what a request costs, which client sent it, and which peers are proxies.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use crate::config::network::network_of;
use crate::http::request_head::Fields;
use crate::limits_and_timeouts::{SyncStep, Weight};

/// The client of a request, for its share of connections and workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address; for IPv6 the /64 network.
    pub address: IpAddr,
    /// The same for all requests of one client. A client is a user if the user is known, otherwise an address.
    pub id: u64,
    /// Whether the client is a user, who has shown a key.
    pub is_user: bool,
}

impl Client {
    /// A client of which only the address is known.
    pub fn at(address: IpAddr) -> Client {
        let address = network_of(address);
        Client { address, id: hash_of(&address), is_user: false }
    }

    /// A user, at this address.
    pub fn user(name: &str, address: IpAddr) -> Client {
        Client { address: network_of(address), id: hash_of(&name), is_user: true }
    }
}

fn hash_of(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Answers questions of the poll loop, on its thread: quickly, and without waiting for a disk.
pub trait Policy: Send {
    /// What a request costs, by its path.
    fn weight(&self, path: &str) -> Weight;

    /// What a request is to a sync, by its path. None if it is not a part of one.
    fn sync_step(&self, _path: &str) -> Option<SyncStep> {
        None
    }

    /// Whose request this is, by the peer's address and the head.
    fn client(&self, peer: IpAddr, _fields: &Fields) -> Client {
        Client::at(peer)
    }

    /// Whether an incomplete reply to this request tells so by itself, so that its connection to tiny_http may be kept.
    fn replies_tell_their_end(&self, _fields: &Fields) -> bool {
        false
    }

    /// Whether connections of this peer are those of many clients, so that only their requests count for an address.
    fn is_proxy(&self, _peer: IpAddr) -> bool {
        false
    }
}

impl<F: Fn(&str) -> Weight + Send> Policy for F {
    fn weight(&self, path: &str) -> Weight {
        self(path)
    }
}
