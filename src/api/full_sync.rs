//! Full syncs: upload or download of a whole collection, streamed between file and socket.

use std::fs;
use std::io::Write;

use crate::api::authentication::Call;
use crate::api::quota_and_free_space;
use crate::api::quota_and_free_space::{LimitedWriter, StorageLimits};
use crate::api::routes::Method;
use crate::api::{App, HEAD_ALONE, fail_reply, refuse, respond_with};
use crate::collection::FILE_NAME;
use crate::collection::full::upload;
use crate::collection::full::upload::UploadFault;
use crate::error::{Error, Result};
use crate::files::FsyncingFile;
use crate::files::temporary::TemporaryFile;
use crate::http::Request;
use crate::http::keep_client_waiting::WaitingReply;
use crate::http::response::{Packing, ReplyStream};
use crate::logging::access_log::AccessLog;

/// Clients take exactly this reply as success.
const ACCEPTED: &str = "OK";

impl App {
    pub(super) fn upload(&self, mut request: Request, log: &mut AccessLog) -> Result<()> {
        let (call, scratch) = match self.receive_file(&mut request, log) {
            Ok(received) => received,
            Err(Error::Window(reason)) => {
                log.did(&format!("upload refused: {reason}"));
                let text = refusal(&reason, "Please upload with a smaller window.");
                // Only protocol 11 has zstd.
                let mut stream = request.into_responder().stream(Packing::Zstd, text.len() as u64);
                stream.write_all(text.as_bytes()).map_err(Error::Disconnected)?;
                log.sent(stream.finish()?);
                return Ok(());
            }
            Err(err) => return refuse(request, err),
        };
        let user = match self.user(&call) {
            Ok(user) => user,
            Err(err) => return refuse(request, err),
        };
        let waiting = WaitingReply::new(request.into_responder(), call.packing(), ACCEPTED.len() as u64);
        let outcome = waiting.while_doing(upload_keep_alive, || {
            match upload::check(scratch.path(), self.config.max_row_bytes)? {
                Ok(()) => user.replace_collection(scratch.path()).map(Ok),
                Err(unfit) => Ok(Err(unfit)),
            }
        });
        let text = match outcome {
            Ok(Ok(())) => {
                log.did("collection replaced");
                ACCEPTED.to_owned()
            }
            Ok(Err(UploadFault { reason, advice })) => {
                log.did(&format!("upload refused: {reason}"));
                refusal(&reason, advice)
            }
            Err(Error::Unconfirmed(err)) => {
                log::error!("an upload is in place, but a power cut may undo it: {err}");
                log.did("collection replaced, unconfirmed");
                "Our server has this upload, but its disk did not confirm that it is safe. Please upload again.".to_owned()
            }
            Err(err) => {
                // After any other error the old collection is still in place. This is the only reply whose text users
                // see.
                log::error!("upload failed: {err}");
                log.did("upload failed");
                refusal(
                    &format!("the server could not store it ({err})"),
                    "Please try again later; whoever runs the server finds more in its log.",
                )
            }
        };
        let letters_sent = waiting.sent_bytes();
        let mut stream = waiting.into_stream(text.len() as u64)?;
        stream.write_all(&text.as_bytes()[letters_sent..]).map_err(Error::Disconnected)?;
        log.sent(stream.finish()?);
        Ok(())
    }

    /// Admits an upload and writes its body to a file.
    fn receive_file(&self, request: &mut Request, log: &mut AccessLog) -> Result<(Call, TemporaryFile)> {
        let (call, body) = self.admit(Method::Upload, request, log)?;
        let scratch = TemporaryFile::at(self.user(&call)?.next_upload_path());
        let storage_limits = self.storage_limits(Method::Upload, call.user.as_deref())?;
        let mut file = FsyncingFile::create(scratch.path())?;
        let mut sink = LimitedWriter::new(&mut file, storage_limits.as_ref());
        let received =
            body.read_into(&mut sink, quota_and_free_space::error_of(Error::io("writing", scratch.path())))?;
        log.received(received);
        self.confirm(&call)?;
        storage_limits.as_ref().map_or(Ok(()), |limits| limits.check_whole(received.decoded))?;
        Ok((call, scratch))
    }

    pub(super) fn download(&self, mut request: Request, log: &mut AccessLog) -> Result<()> {
        let admitted = self.receive(Method::Download, &mut request, log);
        let responder = request.into_responder();
        let (call, user) = match admitted.and_then(|(call, _)| Ok((self.user(&call)?, call))) {
            Ok((user, call)) => (call, user),
            Err(err) => return respond_with(responder, err),
        };
        // The size of the download, unless the collection is upgraded first.
        let likely_bytes = fs::metadata(user.dir.join(FILE_NAME)).map_or(0, |meta| meta.len());
        let waiting = WaitingReply::new(responder, call.packing(), likely_bytes);
        // The copy for old clients is made first, and a collection of an old schema is upgraded first. The response head may
        // be sent meanwhile.
        let begun = waiting.while_doing(HEAD_ALONE, || match call.packing() {
            Packing::Zstd => user.download(),
            Packing::Plain => {
                let _reserved = StorageLimits::of_disk(&self.config).reserve(likely_bytes, 0)?;
                user.download_for_old_clients()
            }
        });
        let download = match begun {
            Ok(download) => download,
            Err(err) => return fail_reply(waiting, err),
        };
        log.did(&format!("collection of {} bytes", download.bytes()));
        let mut stream: ReplyStream = waiting.into_stream(download.bytes())?;
        download.send(&mut stream)?;
        log.sent(stream.finish()?);
        Ok(())
    }
}

/// A text for the user. It begins with the first letter of `ACCEPTED`, which may be sent already.
fn refusal(reason: &str, advice: &str) -> String {
    format!("Our server refused this upload: {reason}. The collection on the server is unchanged. {advice}")
}

/// Keep-alive bytes while an upload is checked. The reply has exactly two letters, so only two are possible: the head,
/// then the first letter. After that the client waits for one more of its timeouts.
fn upload_keep_alive(number: u32) -> Option<&'static [u8]> {
    match number {
        1 => Some(b""),
        2 => Some(&ACCEPTED.as_bytes()[..1]),
        _ => None,
    }
}
