//! The steps of a normal sync: decode, call the session once, encode.
//!
//! A body with rows is parsed twice: first to check that it is well-formed, before the session is touched, then to
//! apply it row by row. The alternative, a savepoint for each step, would write each changed page once more.

use std::io::{self, Write as _};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::authentication::Call;
use crate::api::quota_and_free_space::StorageLimits;
use crate::api::{Answer, App};
use crate::error::{Error, Result};
use crate::files::spool::Spool;
use crate::messages;
use crate::messages::{SanityReply, SanityRequest, Source, changes, chunk, graves};
use crate::sync::session::{Session, Step};

/// The JSON of a request, which is parsed once or twice.
enum Json<'b> {
    /// All of it is in memory. It was checked once to be UTF-8.
    Memory(&'b str),
    /// Part of it is in a file.
    Spooled(&'b mut Spool),
}

impl<'b> Json<'b> {
    fn bytes(&self) -> u64 {
        match self {
            Json::Memory(text) => text.len() as u64,
            Json::Spooled(spool) => spool.len(),
        }
    }

    fn of(body: &'b mut Spool) -> Result<Json<'b>> {
        // Two steps, because one match would borrow the body for both arms.
        if body.memory().is_none() {
            return Ok(Json::Spooled(body));
        }
        let text = std::str::from_utf8(body.memory().unwrap_or_default());
        text.map(Json::Memory).map_err(|err| Error::BadRequest(format!("unexpected JSON: {err}")))
    }

    /// All of it, if it is in memory.
    fn text(&self) -> Option<&str> {
        match self {
            Json::Memory(text) => Some(text),
            Json::Spooled(_) => None,
        }
    }

    /// A reader that begins at the start.
    fn source(&mut self) -> Result<Source<'_>> {
        match self {
            Json::Memory(text) => Ok(Source::Memory(text)),
            Json::Spooled(body) => {
                body.reader().map(Source::Stream).map_err(Error::io("reading", "spooled request".as_ref()))
            }
        }
    }
}

/// Parses a body of a few keys.
pub fn parse<T: DeserializeOwned>(body: &mut Spool) -> Result<T> {
    match Json::of(body)?.source()? {
        Source::Memory(json) => serde_json::from_str(json),
        Source::Stream(json) => serde_json::from_reader(json),
    }
    .map_err(|err| messages::shape_error(&err))
}

impl Answer {
    /// A reply with the JSON of a value.
    pub fn of(dir: &Path, value: &impl Serialize, did: String) -> Result<Answer> {
        // Values are small, and serde writes a few bytes at a time.
        let mut json = Spool::new(dir);
        serde_json::to_vec(value)
            .map_err(io::Error::from)
            .and_then(|bytes| json.write_all(&bytes))
            .map_err(Error::io("spooling a reply in", dir))?;
        Ok(Answer { json, did })
    }

    /// A reply of `null`, which some clients require.
    fn null(dir: &Path, did: String) -> Result<Answer> {
        Answer::of(dir, &(), did)
    }
}

impl App {
    pub(super) fn start(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let mut sent = Json::of(body)?;
        // Checked to its end first, so that a malformed request does not replace the session of another device.
        let request = graves::read_start(sent.source()?, |_, _| Ok(()))?;
        let user = self.user(call)?;
        let mut json = Spool::new(&user.dir);
        let buried =
            user.start(&call.header.skey, request.client_usn, request.client_is_newer, |session| {
                session.collection.begin_day(session.stamps().usn)?;
                session.collection.write_graves(session.unseen(), &mut json)?;
                let buried =
                    session.collection.apply_graves_in_start(sent.source()?, session.stamps().usn)?;
                session.note_step(Step::Start, sent.text());
                Ok(buried)
            })?;
        Ok(Answer { json, did: format!("from usn {}, {buried} graves in", request.client_usn) })
    }

    pub(super) fn apply_graves(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let mut sent = Json::of(body)?;
        graves::check_chunk(sent.source()?)?;
        let user = self.user(call)?;
        let buried = user.step(&call.header.skey, |session| {
            let buried = session.collection.apply_graves(sent.source()?, session.stamps().usn)?;
            session.note_step(Step::Graves, sent.text());
            Ok(buried)
        })?;
        Answer::null(&user.dir, format!("{buried} graves in"))
    }

    pub(super) fn apply_changes(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let mut sent = Json::of(body)?;
        changes::check(sent.source()?, self.config.max_row_bytes)?;
        let (user, body_bytes) = (self.user(call)?, sent.bytes());
        let storage_limits = self.storage_limits(call.method, call.user.as_deref())?;
        let mut json = Spool::new(&user.dir);
        user.step(&call.header.skey, |session| {
            // Our changes are written first, before those of the client are applied.
            session.collection.write_changes(session.unseen(), !session.client_is_newer, &mut json)?;
            session.shapes.clear();
            let (usn, max_row_bytes) = (session.stamps().usn, self.config.max_row_bytes);
            session.collection.apply_changes(sent.source()?, usn, max_row_bytes)?;
            session.note_step(Step::Changes, sent.text());
            check_collection(storage_limits.as_ref(), session, body_bytes)
        })?;
        Ok(Answer { did: String::new(), json })
    }

    pub(super) fn chunk(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        check_empty(body)?;
        let user = self.user(call)?;
        let mut json = Spool::new(&user.dir);
        let counts = user.step(&call.header.skey, |session| {
            let unseen = session.unseen();
            session.collection.write_chunk(unseen, &mut session.cursor, &mut json)
        })?;
        Ok(Answer { json, did: format!("out: {counts}") })
    }

    pub(super) fn apply_chunk(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let mut sent = Json::of(body)?;
        let rows = chunk::check(sent.source()?, self.config.max_row_bytes)?;
        let (user, body_bytes) = (self.user(call)?, sent.bytes());
        let storage_limits = self.storage_limits(call.method, call.user.as_deref())?;
        let counts = user.step(&call.header.skey, |session| {
            session.prepare_for_rows(rows, self.config.max_row_bytes)?;
            let counts = session.collection.apply_chunk(
                sent.source()?,
                session.client_usn,
                session.stamps().usn,
                &mut session.shapes,
                self.config.max_row_bytes,
            )?;
            check_collection(storage_limits.as_ref(), session, body_bytes)?;
            Ok(counts)
        })?;
        Answer::null(&user.dir, format!("in: {counts}"))
    }

    pub(super) fn sanity_check(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let request: SanityRequest = parse(body)?;
        let user = self.user(call)?;
        let server = user.step(&call.header.skey, |session| session.collection.sanity_counts())?;
        let client = request.client.counts();
        let reply = SanityReply::new(client, server);
        if !reply.is_ok() {
            // The client will start a full sync, so its changes are rolled back.
            user.abort(&call.header.skey);
            log::warn!(
                "{}: sanity check failed, client {client:?}, server {server:?}",
                call.user.as_deref().unwrap_or("-")
            );
        }
        let did = if reply.is_ok() { "counts agree" } else { "counts differ: rolled back" };
        Answer::of(&user.dir, &reply, did.to_owned())
    }

    pub(super) fn finish(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        check_empty(body)?;
        let user = self.user(call)?;
        let stamp =
            user.last_step(&call.header.skey, |session| session.collection.finish(session.stamps()))?;
        Answer::of(&user.dir, &stamp, "committed".to_owned())
    }

    pub(super) fn abort(&self, call: &Call) -> Result<Answer> {
        let user = self.user(call)?;
        user.abort(&call.header.skey);
        Answer::null(&user.dir, String::new())
    }
}

/// Fails, and so ends the session, if a step has taken the user over the quota.
fn check_collection(
    storage_limits: Option<&StorageLimits<'_>>,
    session: &Session,
    body_bytes: u64,
) -> Result<()> {
    match storage_limits {
        Some(storage_limits) if storage_limits.has_quota() => {
            storage_limits.check_collection(session.collection.bytes()?, body_bytes)
        }
        _ => Ok(()),
    }
}

/// Requests without content hold `{}`, `{"_pad":null}` or nothing.
pub fn check_empty(body: &mut Spool) -> Result<()> {
    if body.is_empty() { Ok(()) } else { parse::<serde::de::IgnoredAny>(body).map(drop) }
}
