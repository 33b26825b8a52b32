//! The steps of a normal sync: decode, one call into the session, encode.
//!
//! A body with rows is parsed twice: once to see that it is well-formed, before the session is touched, and once to
//! apply it row by row. The other way, a savepoint for each step, writes every page that the step touches once more.

use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::admission::Call;
use super::{Answer, App};
use crate::error::{Error, Result};
use crate::spool::Spool;
use crate::wire::{self, SanityReply, SanityRequest, Source, changes, chunk, graves};

/// Parses a body that holds a few keys.
pub fn parse<T: DeserializeOwned>(body: &mut Spool) -> Result<T> {
    match source(body)? {
        Source::Memory(json) => serde_json::from_slice(json),
        Source::Stream(json) => serde_json::from_reader(json),
    }
    .map_err(|err| wire::shape_error(&err))
}

fn source(body: &mut Spool) -> Result<Source<'_>> {
    // Two steps, because one match would borrow the body for both arms.
    if body.memory().is_some() {
        return Ok(Source::Memory(body.memory().unwrap_or_default()));
    }
    body.reader().map(Source::Stream).map_err(Error::io("reading", "spooled request".as_ref()))
}

impl Answer {
    /// The JSON of a value.
    pub fn of(dir: &Path, value: &impl Serialize, did: String) -> Result<Answer> {
        let mut json = Spool::new(dir);
        serde_json::to_writer(&mut json, value)
            .map_err(|err| Error::Io("spooling a reply in", dir.to_owned(), err.into()))?;
        Ok(Answer { json, did })
    }

    /// `null`, which some clients insist on.
    fn null(dir: &Path, did: String) -> Result<Answer> {
        Answer::of(dir, &(), did)
    }
}

impl App {
    pub(super) fn start(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        // Read to its end before it may take the session of another device.
        let request = graves::read_start(source(body)?, |_, _| Ok(()))?;
        let user = self.user(call)?;
        let mut json = Spool::new(&user.dir);
        let buried =
            user.start(&call.header.skey, request.client_usn, request.client_is_newer, |session| {
                session.collection.begin_day(session.stamps().usn)?;
                session.collection.write_graves(session.unseen(), &mut json)?;
                session.collection.apply_graves_in_start(source(body)?, session.stamps().usn)
            })?;
        Ok(Answer { json, did: format!("from usn {}, {buried} graves in", request.client_usn) })
    }

    pub(super) fn apply_graves(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        graves::check_chunk(source(body)?)?;
        let user = self.user(call)?;
        let buried = user.step(&call.header.skey, |session| {
            session.collection.apply_graves(source(body)?, session.stamps().usn)
        })?;
        Answer::null(&user.dir, format!("{buried} graves in"))
    }

    pub(super) fn apply_changes(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        changes::check(source(body)?, self.config.max_row_bytes)?;
        let user = self.user(call)?;
        let mut json = Spool::new(&user.dir);
        user.step(&call.header.skey, |session| {
            // Ours first, as they were before the client's.
            session.collection.write_changes(session.unseen(), !session.client_is_newer, &mut json)?;
            session.shapes.clear();
            session.collection.apply_changes(source(body)?, session.stamps().usn, self.config.max_row_bytes)
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
        chunk::check(source(body)?, self.config.max_row_bytes)?;
        let user = self.user(call)?;
        let counts = user.step(&call.header.skey, |session| {
            session.collection.apply_chunk(
                source(body)?,
                session.client_usn,
                session.stamps().usn,
                &mut session.shapes,
                self.config.max_row_bytes,
            )
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
            // The client will want a full sync; what it sent must not be half kept.
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
        // A bare number without white space around it.
        let mut json = Spool::new(&user.dir);
        write!(json, "{stamp}").map_err(Error::io("spooling a reply in", &user.dir))?;
        Ok(Answer { json, did: "committed".to_owned() })
    }

    pub(super) fn abort(&self, call: &Call) -> Result<Answer> {
        let user = self.user(call)?;
        user.abort(&call.header.skey);
        Answer::null(&user.dir, String::new())
    }
}

/// Requests without content hold `{}`, `{"_pad":null}` or nothing.
pub fn check_empty(body: &mut Spool) -> Result<()> {
    match body.is_empty() {
        true => Ok(()),
        false => parse::<serde::de::IgnoredAny>(body).map(drop),
    }
}
