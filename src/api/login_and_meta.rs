//! `hostKey` and `meta`, the two methods before each sync.

use std::io::Write as _;

use crate::api::authentication::Call;
use crate::api::{Answer, App, SYNC_VERSIONS};
use crate::collection::Meta;
use crate::error::{Error, Result};
use crate::files::access::Concerns;
use crate::files::spool::Spool;
use crate::http::Request;
use crate::http::response::Packing;
use crate::logging::access_log::{AccessLog, printable};
use crate::messages::{LoginReply, LoginRequest, MetaReply, MetaRequest};
use crate::os::clock;
use crate::sync::user::{HELP_WITH_DAMAGE, User};

/// What a user reads whose collection is damaged on the server.
const DAMAGED: &str = "The collection on the server is damaged. What is on this device is not. Please tell whoever runs \
                       the server: its log and 'ankipi check' say what to do.";

/// What a user reads if the server may not use the files of the collection or of the media.
const DENIED: &str = "The sync server may not use the files of your collection: they belong to another user of its machine, \
                      or have the wrong mode. Nothing is damaged, neither there nor on this device. Please tell whoever \
                      runs the server: its log and 'ankipi check' say what to type.";
const DENIED_MEDIA: &str = "Your cards are synced, but the sync server may not use files of your media: they belong to \
                            another user of its machine, or have the wrong mode. Nothing is damaged, neither there nor \
                            on this device. Please tell whoever runs the server: its log and 'ankipi check' say what to \
                            type.";

impl App {
    pub(super) fn host_key(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let request: LoginRequest = super::normal_sync::parse(body)?;
        let outcome =
            self.accounts.log_in(&request.user, &request.password, &call.header.client, call.address);
        self.metrics.login(&outcome);
        let key = outcome?;
        // Nobody logs in to an account whose folder cannot be used.
        self.user_named(&request.user)?;
        Answer::of(&self.config.base, &LoginReply { key }, format!("logged in {:?}", request.user))
    }

    /// Refuses a `meta` whose sender is not known. If the reason is that the server may not read the file with the
    /// keys, the user's message says so.
    pub(super) fn refuse_meta(&self, request: Request, err: Error, log: &mut AccessLog) -> Result<()> {
        // The error of a known user is not about the files of others.
        let user = Some(log.user_name()).filter(|user| *user != "-");
        let denied = self.denied_files(user).filter(|denied| denied.concerns == Concerns::All);
        let Some(denied) = denied else { return super::refuse(request, err) };
        log::error!("{}", denied.text);
        log.did("refused: the server may not use its files");
        let now = clock::now_secs();
        let reply = MetaReply {
            modified: 0,
            schema: 0,
            usn: 0,
            now,
            message: DENIED,
            go_on: false,
            host_number: 0,
            empty: false,
            media_usn: 0,
        };
        let packing = if request.header("anki-sync").is_some() { Packing::Zstd } else { Packing::Plain };
        let json = serde_json::to_vec(&reply).map_err(|err| Error::Broken(err.to_string()))?;
        let mut stream = request.into_responder().stream(packing, json.len() as u64);
        stream.write_all(&json).map_err(Error::Disconnected)?;
        log.sent(stream.finish()?);
        Ok(())
    }

    pub(super) fn meta(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let request: MetaRequest = super::normal_sync::parse(body)?;
        if !SYNC_VERSIONS.contains(&request.sync_version) {
            return Err(Error::UnsupportedVersion(request.sync_version));
        }
        let name = call.user.as_deref().unwrap_or_default();
        let denied = self.newly_denied_files(name);
        if let Some(denied) = &denied {
            log::error!("{name:?} cannot sync: {}", denied.text);
        }
        let is_all_denied = denied.as_ref().is_some_and(|denied| denied.concerns == Concerns::All);
        let user = if is_all_denied { None } else { Some(self.user(call)?) };
        let (media_usn, denied_media) = user.as_ref().map_or((0, 0), |user| media_of(user, name));
        let (meta, trouble) = match user.as_ref().map(|user| user.meta()) {
            None => (None, DENIED),
            Some(Err(err)) if err.is_damage() => {
                log::error!("{name:?}: {err}; {HELP_WITH_DAMAGE}");
                (None, DAMAGED)
            }
            Some(meta) => (meta?, if denied.is_some() || denied_media > 0 { DENIED_MEDIA } else { "" }),
        };
        let unset_clock = self.clock_doubt().map(|doubt| {
            format!("The sync server cannot sync now: {doubt}. Please set it, or wait until it is set, and sync again.")
        });
        let too_old = meta.as_ref().and_then(|meta| why_too_old(meta, request.sync_version));
        let message = unset_clock.as_deref().or(too_old).unwrap_or(trouble);
        // The client compares this with its own clock, and reports its own clock as wrong. So a message reports an
        // unset clock of the server.
        let now = clock::now_millis();
        // Before the first upload: reports an empty collection, created just now, so that clients offer to upload.
        let (modified, schema, usn) = meta.map_or((0, now, 0), |meta| {
            let stamps = meta.stamps;
            (stamps.modified_for_clients(), stamps.schema, stamps.usn)
        });
        let reply = MetaReply {
            modified,
            schema,
            usn,
            now: now / 1000,
            message,
            go_on: message.is_empty() || message == DENIED_MEDIA,
            host_number: 0,
            empty: meta.is_none_or(|meta| meta.is_empty),
            media_usn,
        };
        let did = match call.packing() {
            _ if unset_clock.is_some() => "refused: the clock is not set".to_owned(),
            _ if is_all_denied => "refused: the server may not use the user's files".to_owned(),
            Packing::Zstd => format!("usn {usn}"),
            // Most old clients report their version only here.
            Packing::Plain => {
                format!("usn {usn} for {}, protocol {}", printable(&request.client), request.sync_version)
            }
        };
        Answer::of(&self.config.base, &reply, did)
    }
}

/// The message for a client that is too old for this collection.
fn why_too_old(meta: &Meta, sync_version: u64) -> Option<&'static str> {
    if meta.needs_v2_scheduler && sync_version < 9 {
        Some("This Anki is too old for your collection's scheduler (v2). Please update Anki on this device.")
    } else if meta.needs_timezones && sync_version < 10 {
        Some(
            "This Anki is too old for your collection's time zone setting. Please update Anki on this device.",
        )
    } else {
        None
    }
}

/// The last usn of a user's media, and how many files the server may not open. A damaged media store must not keep the
/// collection from syncing, so its error is only logged. The media sync that follows returns it.
fn media_of(user: &User, name: &str) -> (i32, i64) {
    user.media.totals_and_denied().map_or_else(
        |err| {
            log::error!("{name:?}: the media cannot be used: {err}");
            (0, 0)
        },
        |(totals, denied)| (totals.last_usn, denied),
    )
}
