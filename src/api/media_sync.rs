//! Media sync: decode, one call into the media store, encode (sync-protocol.md 7).

use std::cell::Cell;
use std::io::{self, Write};

use serde::Serialize;

use crate::api::authentication::Call;
use crate::api::normal_sync::{check_empty, parse};
use crate::api::routes::Method;
use crate::api::{Answer, App, HEAD_ALONE, fail_reply, respond_with};
use crate::error::{Error, Result};
use crate::files::spool::Spool;
use crate::http::Request;
use crate::http::keep_client_waiting::WaitingReply;
use crate::http::response::{Packing, ReplyStream};
use crate::logging::access_log::AccessLog;
use crate::media::upload::Room;
use crate::messages::media::{
    BeginReply, BeginRequest, ChangeRow, ChangesRequest, FilesRequest, SANITY_FAILED, SANITY_OK,
    SanityRequest, Wrapped,
};
use crate::text::counted::counted;
use crate::text::hex::hex;

impl Answer {
    /// A media reply with this JSON.
    fn wrapped(dir: &std::path::Path, data: &impl Serialize, did: String) -> Result<Answer> {
        Answer::of(dir, &Wrapped::new(data), did)
    }
}

/// The size that a zip announces if its head must be sent before the files are read: what most zips stay under.
const USUAL_ZIP_BYTES: u64 = 3 << 20;

impl App {
    pub(super) fn media_begin(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        match call.packing() {
            // The version is in the header, too, and the reply does not depend on the body.
            Packing::Zstd => drop(parse::<BeginRequest>(body)?),
            // The version was in a field or in the query.
            Packing::Plain => check_empty(body)?,
        }
        let user = self.user(call)?;
        let usn = user.media.totals()?.last_usn;
        Answer::wrapped(
            &user.dir,
            &BeginReply { usn, media_key: &call.header.hkey },
            format!("media usn {usn}"),
        )
    }

    pub(super) fn media_changes(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let request: ChangesRequest = parse(body)?;
        let user = self.user(call)?;
        let spool_error = |err: io::Error| Error::Io("spooling a reply in", user.dir.clone(), err);
        let mut json = Spool::new(&user.dir);
        let mut rows = 0;
        json.write_all(b"{\"data\":[").map_err(spool_error)?;
        user.media.changes_after(request.last_usn, |change| {
            let comma: &[u8] = if rows == 0 { b"" } else { b"," };
            rows += 1;
            let sha1 = change.sha1.as_ref().map(|sha1| hex(sha1)).unwrap_or_default();
            json.write_all(comma).map_err(spool_error)?;
            serde_json::to_writer(&mut json, &ChangeRow(&change.name, change.usn, &sha1))
                .map_err(|err| spool_error(err.into()))
        })?;
        json.write_all(b"],\"err\":\"\"}").map_err(spool_error)?;
        Ok(Answer { json, did: format!("{} after usn {}", counted(rows, "change"), request.last_usn) })
    }

    pub(super) fn upload_changes(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let user = self.user(call)?;
        let storage_limits = self.storage_limits(call.method, call.user.as_deref())?;
        let reserved = Cell::new(None);
        let room = Room {
            free: &|bytes, written| {
                let limits = storage_limits.as_ref();
                reserved.set(limits.map(|limits| limits.reserve(bytes, written)).transpose()?);
                Ok(())
            },
            total: &|bytes| {
                storage_limits.as_ref().map_or(Ok(()), |storage_limits| storage_limits.check_media(bytes))
            },
        };
        let outcome = user.media.upload(body, &room)?;
        let did = format!(
            "{} in: {} of {} bytes, {} deleted; usn {}",
            counted(outcome.processed, "change"),
            counted(outcome.added, "file"),
            outcome.added_bytes,
            outcome.deleted,
            outcome.last_usn
        );
        Answer::wrapped(&user.dir, &(outcome.processed, outcome.last_usn), did)
    }

    pub(super) fn media_sanity(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        let request: SanityRequest = parse(body)?;
        let user = self.user(call)?;
        let (totals, denied) = user.media.totals_and_denied()?;
        let ours = totals.files;
        let (reply, did) = if request.files == ours {
            (SANITY_OK, format!("{} on both sides", counted(ours, "file")))
        } else if (ours - denied..ours).contains(&request.files) {
            // A device without them is not asked to look again: it gets them when the server may open them.
            (
                SANITY_OK,
                format!(
                    "{} there, {ours} here, of which {denied} cannot be opened",
                    counted(request.files, "file")
                ),
            )
        } else {
            let here = counted(ours, "file");
            (SANITY_FAILED, format!("{here} here, {} there: the client will look again", request.files))
        };
        Answer::wrapped(&user.dir, &reply, did)
    }

    /// Streams files. All other replies are JSON.
    pub(super) fn download_files(&self, mut request: Request, log: &mut AccessLog) -> Result<()> {
        let received = self.receive(Method::DownloadFiles, &mut request, log).and_then(|(call, mut body)| {
            let wanted: FilesRequest = parse(&mut body)?;
            Ok((self.user(&call)?, call, wanted.files))
        });
        let responder = request.into_responder();
        let (user, call, names) = match received {
            Ok(received) => received,
            Err(err) => return respond_with(responder, err),
        };
        let waiting = WaitingReply::new(responder, call.packing(), USUAL_ZIP_BYTES);
        // All files are read before the first byte is sent.
        let download = match waiting.while_doing(HEAD_ALONE, || user.media.download(names)) {
            Ok(download) => download,
            Err(err) => return fail_reply(waiting, err),
        };
        log.did(&format!("{}, {} bytes out", counted(download.files(), "file"), download.bytes()));
        let mut stream: ReplyStream = waiting.into_stream(download.bytes())?;
        download.write_to(&mut stream)?;
        log.sent(stream.finish()?);
        Ok(())
    }
}
