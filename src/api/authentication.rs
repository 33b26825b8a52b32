//! Admission: who sends a request, how its body is encoded, and whether it is allowed, before the body is unpacked.
//!
//! There are three kinds of requests (sync-protocol.md 3 and 4). Protocol 11 puts everything in a header. Protocols 8
//! to 10 send a form, whose fields may come before or after the data. One method has a query.

use std::net::IpAddr;

use crate::api::quota_and_free_space::{Meter, StorageLimits};
use crate::api::routes::Method;
use crate::api::{App, SYNC_VERSIONS};
use crate::error::{Error, Result};
use crate::files::spool::Spool;
use crate::http::body::{Body, BodyLimits, Sent, WireForm};
use crate::http::form;
use crate::http::form::Fields;
use crate::http::response::Packing;
use crate::http::{Request, Verb};
use crate::logging::access_log::AccessLog;
use crate::messages;
use crate::messages::SyncHeader;

/// The protocol version assumed for forms. Only `meta` tells which of 8 to 10 it is, and nothing else depends on it.
const FORM_VERSION: u64 = 10;

/// An admitted request: who sent it, and its parameters.
pub struct Call {
    /// The requested method.
    pub method: Method,
    /// The header of protocol 11. For older protocols it is filled from the form or the query.
    pub header: SyncHeader,
    /// The account's name; None for `hostKey`.
    pub user: Option<String>,
    /// The client's address.
    pub address: IpAddr,
}

impl Call {
    fn new(method: Method, header: SyncHeader, user: Option<String>, address: IpAddr) -> Result<Call> {
        if method.needs_session() && header.skey.is_empty() {
            Err(Error::bad("a sync step without a session key"))
        } else {
            Ok(Call { method, header, user, address })
        }
    }

    /// The encoding of the reply that the client expects.
    pub fn packing(&self) -> Packing {
        match self.header.sync_version {
            ..11 => Packing::Plain,
            11.. => Packing::Zstd,
        }
    }
}

impl App {
    /// Authenticates a request and checks whether it is allowed.
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
        let sent = Sent { whole: request.whole_bytes(), more_follow: method.comes_in_series() };
        Ok((call, Body::zstd(request.body(), sent, caps)))
    }

    /// Clients with the media sync of 2.1.22 to 2.1.56 send `begin` like this.
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
        // Few forms name the client, so its user agent is used.
        let agent = request.header("user-agent").unwrap_or_default().to_owned();
        log.client(&agent);
        let boundary = request.header("content-type").and_then(form::boundary).ok_or(Error::Altered(
            "no anki-sync header, and no form: something between the client and us drops headers",
        ))?;
        let caps = method.caps(&self.config);
        let declared = request.declared_bytes();
        caps.check_declared(declared)?;
        let mut fields = Fields::default();
        let mut form = WireForm::new(request.body(), &boundary, caps);
        let has_data = form.read_fields(&mut fields)?;
        let mut user = None;
        if let Some(hkey) = &fields.hkey {
            // If the key comes first, it is checked before any data is stored.
            user = self.user_of_key(method, hkey, log)?;
            self.check_declared(method, user.as_deref(), caps, declared)?;
        }
        let storage_limits = match &user {
            Some(name) => self.storage_limits(method, Some(name))?,
            None => Some(StorageLimits::of_disk(&self.config)),
        };
        let mut meter = Meter::new(storage_limits.as_ref());
        let mut before = |bytes| meter.add(bytes);
        let body = match (has_data, fields.is_gzip) {
            (false, _) => Body::nothing(caps),
            // Fields after the data have no meaning here, so the body can be streamed.
            (true, Some(is_gzip)) if method == Method::Upload && user.is_some() => form.into_body(is_gzip),
            // The data is not unpacked, so it is spooled where it will be used.
            (true, Some(false)) => {
                let spool = self.spool(method, user.as_deref())?;
                form.into_spooled_body(&mut fields, spool, &mut before)?
            }
            (true, _) => form.into_spooled_body(&mut fields, Spool::new(&self.config.base), &mut before)?,
        };
        let header = header_of(Fields { client: fields.client.or(Some(agent)), ..fields });
        log.client(&header.client);
        if user.is_none() {
            user = self.user_of_key(method, &header.hkey, log)?;
        }
        Ok((Call::new(method, header, user, log.address())?, body))
    }

    /// Refuses a body whose declared length is over a limit.
    fn check_declared(
        &self,
        method: Method,
        user: Option<&str>,
        caps: BodyLimits,
        declared: Option<u64>,
    ) -> Result<()> {
        caps.check_declared(declared)?;
        match (self.storage_limits(method, user)?, declared) {
            (Some(storage_limits), Some(bytes)) => storage_limits.check(bytes, 0),
            _ => Ok(()),
        }
    }

    /// The account of a host key; None for `hostKey`, which requests one.
    fn user_of_key(&self, method: Method, hkey: &str, log: &mut AccessLog) -> Result<Option<String>> {
        if method == Method::HostKey {
            return Ok(None);
        }
        self.notice_changed_accounts()?;
        let user = self.accounts.user_of_key(hkey, log.address())?;
        log.user(&user);
        Ok(Some(user))
    }
}

/// The fields of a form as a header of protocol 11.
fn header_of(fields: Fields) -> SyncHeader {
    SyncHeader {
        sync_version: FORM_VERSION,
        hkey: fields.hkey.unwrap_or_default(),
        client: fields.client.unwrap_or_default(),
        skey: fields.skey.unwrap_or_default(),
    }
}
