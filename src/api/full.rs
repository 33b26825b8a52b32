//! Full syncs: a whole collection up or down, streamed between file and socket.

use std::io::Write;
use std::path::Path;

use super::access_log::AccessLog;
use super::{App, Call, refuse, respond_with};
use crate::collection::upload::{self, Unfit};
use crate::error::{Error, Result};
use crate::fsutil::{self, GentleFile};
use crate::http::Request;
use crate::http::body::{self, Received};
use crate::http::patience::{self, WaitingReply};
use crate::http::reply::{Packing, ReplyStream};

/// The reply that clients take for success, to the letter.
const ACCEPTED: &str = "OK";

impl App {
    pub(super) fn upload(&self, call: &Call, mut request: Request, log: &mut AccessLog) -> Result<()> {
        let user = match self.user(call) {
            Ok(user) => user,
            Err(err) => return refuse(request, err),
        };
        let scratch = Scratch(&user.next_upload_path());
        match self.receive_file(call, &mut request, scratch.0) {
            Ok(received) => log.received(received),
            Err(err) => return refuse(request, err),
        }
        let mut reply = UploadReply {
            waiting: WaitingReply::new(request.into_responder(), call.packing()),
            letters_out: 0,
        };
        let outcome = patience::wait_for(
            || match upload::check(scratch.0, self.config.max_row_bytes)? {
                Ok(()) => user.replace_collection(scratch.0).map(Ok),
                Err(unfit) => Ok(Err(unfit)),
            },
            |signs| reply.sign_of_life(signs),
        );
        let text = match outcome {
            Ok(Ok(())) => {
                log.did("collection replaced");
                ACCEPTED.to_owned()
            }
            Ok(Err(Unfit { reason, advice })) => {
                log.did(&format!("upload refused: {reason}"));
                refusal(&reason, advice)
            }
            Err(err) => {
                // Whatever went wrong here, the old collection stands, and this is the one reply whose text users see.
                log::error!("upload failed: {err}");
                log.did("upload failed");
                refusal(
                    &format!("the server could not store it ({err})"),
                    "Please try again later; whoever runs the server finds more in its log.",
                )
            }
        };
        log.sent(reply.finish(&text)?);
        Ok(())
    }

    fn receive_file(&self, call: &Call, request: &mut Request, path: &Path) -> Result<Received> {
        let mut file = GentleFile::create(path)?;
        let caps = call.method.caps(&self.config);
        body::receive(request.body(), caps, &mut file, Error::io("writing", path))
    }

    pub(super) fn download(&self, call: &Call, mut request: Request, log: &mut AccessLog) -> Result<()> {
        let begun = self.receive(call, &mut request, log).and_then(|_| {
            let user = self.user(call)?;
            match call.packing() {
                Packing::Zstd => user.download(),
                Packing::Plain => user.download_for_old_clients(),
            }
        });
        let responder = request.into_responder();
        let download = match begun {
            Ok(download) => download,
            Err(err) => return respond_with(responder, err),
        };
        log.did(&format!("collection of {} bytes", download.bytes()));
        let mut stream: ReplyStream = responder.stream(call.packing(), download.bytes());
        download.send(&mut stream)?;
        log.sent(stream.finish()?);
        Ok(())
    }
}

/// Sentences for the user. They begin with the first letter of `ACCEPTED`, which may be on its way already.
fn refusal(reason: &str, advice: &str) -> String {
    format!("Our server refused this upload: {reason}. The collection on the server is unchanged. {advice}")
}

/// A file that exists until this is dropped, unless it was renamed.
struct Scratch<'p>(&'p Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Err(err) = fsutil::remove_if_there(self.0) {
            log::warn!("{err}");
        }
    }
}

/// The reply to an upload. It is exactly two letters, so there is little to say while a check goes on: the head, then
/// the first letter. After that clients have one more interval of patience.
struct UploadReply {
    waiting: WaitingReply,
    letters_out: usize,
}

impl UploadReply {
    fn sign_of_life(&mut self, signs: u32) {
        let sign = match signs {
            1 => &b""[..],
            2 => &ACCEPTED.as_bytes()[..1],
            _ => return,
        };
        if self.waiting.sign_of_life(sign) {
            self.letters_out = sign.len();
        }
    }

    /// Sends what is left of `text`.
    fn finish(self, text: &str) -> Result<u64> {
        let letters_out = self.letters_out;
        let mut stream = self.waiting.into_stream(text.len() as u64)?;
        stream.write_all(&text.as_bytes()[letters_out..]).map_err(Error::Disconnected)?;
        stream.finish()
    }
}
