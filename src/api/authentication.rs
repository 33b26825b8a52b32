//! The door: whose request it is and how it is encoded, and that it may come in, before its body is unpacked.
//!
//! Three ways in (sync-protocol.md 3 and 4): protocol 11 tells everything in a header; protocols 8 to 10 send a form, in
//! which the fields may stand before the data or behind them; and one method has a query.

use std::net::IpAddr;

use crate::api::routes::Method;
use crate::api::{App, SYNC_VERSIONS};
use crate::error::{Error, Result};
use crate::files::spool::Spool;
use crate::http::body::{Body, Caps, WireForm};
use crate::http::form;
use crate::http::form::Fields;
use crate::http::response::Packing;
use crate::http::{Request, Verb};
use crate::logging::access_log::AccessLog;
use crate::messages;
use crate::messages::SyncHeader;

/// The protocol version of forms. Only `meta` tells which of 8 to 10 it is, and nothing else depends on it.
const FORM_VERSION: u64 = 10;

/// A request that has passed the door: who it is from, and what came with it.
pub struct Call {
    /// What it asks for.
    pub method: Method,
    /// What a header of protocol 11 says, or would say.
    pub header: SyncHeader,
    /// The account's name; none for `hostKey`.
    pub user: Option<String>,
    /// The client's.
    pub address: IpAddr,
}

impl Call {
    fn new(method: Method, header: SyncHeader, user: Option<String>, address: IpAddr) -> Result<Call> {
        match method.is_step() && header.skey.is_empty() {
            true => Err(Error::bad("a sync step without a session key")),
            false => Ok(Call { method, header, user, address }),
        }
    }

    /// How the client expects its reply.
    pub fn packing(&self) -> Packing {
        match self.header.sync_version {
            ..11 => Packing::Plain,
            11.. => Packing::Zstd,
        }
    }
}

impl App {
    /// Checks whose request it is, and whether it may come in.
    pub(super) fn admit<'r>(
        &self,
        method: Method,
        request: &'r mut Request,
        log: &mut AccessLog,
    ) -> Result<(Call, Body<'r>)> {
        if request.verb() == Verb::Get {
            return self.admit_query(method, request, log);
        }
        let Some(header) = request.header("anki-sync") else {
            return self.admit_form(method, request, log);
        };
        let header: SyncHeader = serde_json::from_str(header)
            .map_err(|err| Error::bad(format!("anki-sync header: {}", messages::shape_error(&err))))?;
        log.client(&header.client);
        if !SYNC_VERSIONS.contains(&header.sync_version) {
            return Err(Error::bad(format!("anki-sync header of version {}", header.sync_version)));
        }
        let user = self.user_of_key(method, &header.hkey, log)?;
        let call = Call::new(method, header, user, log.address())?;
        let caps = method.caps(&self.config);
        self.check_declared(method, call.user.as_deref(), caps, request.declared_bytes())?;
        Ok((call, Body::zstd(request.body(), method.comes_in_series(), caps)))
    }

    /// Clients whose media sync is that of 2.1.22 to 2.1.56 begin it so.
    fn admit_query<'r>(
        &self,
        method: Method,
        request: &Request,
        log: &mut AccessLog,
    ) -> Result<(Call, Body<'r>)> {
        let field = |name: &str| request.query(name);
        let header = header_of(Fields { hkey: field("k"), client: field("v"), ..Fields::default() });
        log.client(&header.client);
        let user = self.user_of_key(method, &header.hkey, log)?;
        Ok((Call::new(method, header, user, log.address())?, Body::nothing(method.caps(&self.config))))
    }

    fn admit_form<'r>(
        &self,
        method: Method,
        request: &'r mut Request,
        log: &mut AccessLog,
    ) -> Result<(Call, Body<'r>)> {
        // Few forms tell which client they are from.
        let agent = request.header("user-agent").unwrap_or_default().to_owned();
        log.client(&agent);
        let boundary = request.header("content-type").and_then(form::boundary).ok_or_else(|| {
            Error::bad("no anki-sync header, and no form: something between the client and us drops headers")
        })?;
        let caps = method.caps(&self.config);
        let declared = request.declared_bytes();
        caps.check_declared(declared)?;
        let mut fields = Fields::default();
        let mut form = WireForm::new(request.body(), &boundary, caps);
        let has_data = form.read_fields(&mut fields)?;
        let mut user = None;
        if let Some(hkey) = &fields.hkey {
            // Before anything is kept, where the key comes first.
            user = self.user_of_key(method, hkey, log)?;
            self.check_declared(method, user.as_deref(), caps, declared)?;
        }
        let body = match (has_data, fields.is_gzip) {
            (false, _) => Body::nothing(caps),
            // Nothing that may follow the data has a meaning here.
            (true, Some(is_gzip)) if method == Method::Upload && user.is_some() => form.into_body(is_gzip),
            // It stays as it is, so it may go where it is used.
            (true, Some(false)) => {
                let spool = self.spool(method, user.as_deref())?;
                form.into_spooled_body(&mut fields, spool)?
            }
            (true, _) => form.into_spooled_body(&mut fields, Spool::new(&self.config.base))?,
        };
        let header = header_of(Fields { client: fields.client.or(Some(agent)), ..fields });
        log.client(&header.client);
        if user.is_none() {
            user = self.user_of_key(method, &header.hkey, log)?;
        }
        Ok((Call::new(method, header, user, log.address())?, body))
    }

    /// Refuses a body by the length that the client declared.
    fn check_declared(
        &self,
        method: Method,
        user: Option<&str>,
        caps: Caps,
        declared: Option<u64>,
    ) -> Result<()> {
        caps.check_declared(declared)?;
        match (self.ration(method, user)?, declared) {
            (Some(ration), Some(bytes)) => ration.check(bytes, 0),
            _ => Ok(()),
        }
    }

    /// The account of a host key; none for `hostKey`, which asks for one.
    fn user_of_key(&self, method: Method, hkey: &str, log: &mut AccessLog) -> Result<Option<String>> {
        if method == Method::HostKey {
            return Ok(None);
        }
        self.notice_changed_accounts();
        let user = self.accounts.user_of_key(hkey)?;
        log.user(&user);
        Ok(Some(user))
    }
}

/// What a form says, as a header of protocol 11 would.
fn header_of(fields: Fields) -> SyncHeader {
    SyncHeader {
        sync_version: FORM_VERSION,
        hkey: fields.hkey.unwrap_or_default(),
        client: fields.client.unwrap_or_default(),
        skey: fields.skey.unwrap_or_default(),
    }
}
