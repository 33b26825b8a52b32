//! Which client a request is from, as far as its head tells: for the shares of connections and workers.
//!
//! A host key in the head names a user from its first request on. If a user were its address until a first request is
//! authenticated, the user could have the shares of both. This runs on the thread of the poll loop, so nothing is read from
//! the disk.

use std::net::IpAddr;

use crate::api::{App, client_address};
use crate::http::request_head::Fields;
use crate::messages::SyncHeader;

impl App {
    /// The address that a request comes from, and the user, if the key in its head is known.
    pub fn client_of(&self, peer: IpAddr, fields: &Fields) -> (IpAddr, Option<String>) {
        let address = client_address::resolve(peer, |name| fields.values(name), &self.config);
        let header = fields.values("anki-sync").next();
        let header = header.and_then(|text| serde_json::from_str::<SyncHeader>(text).ok());
        (address, header.and_then(|header| self.accounts.owner_of_key(&header.hkey)))
    }

    /// Whether connections of this peer are those of many clients.
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        client_address::is_trusted_proxy(peer, &self.config)
    }
}
