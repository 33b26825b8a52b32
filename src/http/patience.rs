//! Keeping a client waiting: work that may take long runs on a thread of its own while this one sends signs of life.
//!
//! Clients give up when neither the reply's header nor a decoded byte came for 30 s (sync-protocol.md 2.1). A thread
//! and not a callback of SQLite, because a disk that is slow holds the caller inside one read or sync.

use std::io::Write;
use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::reply::{Packing, ReplyStream, Responder};
use crate::error::{Error, Result};

/// How long a client has waited when it gets the first sign, and then between two: two thirds of the shortest timer.
pub const INTERVAL: Duration = Duration::from_secs(20);

/// Stack of the working thread: SQLite and serde on one row need far less.
const STACK_BYTES: usize = 256 * 1024;

/// Runs `work`; calls `sign_of_life` with 1, 2, 3 ... after each interval until it is done.
pub fn wait_for<T: Send>(work: impl FnOnce() -> T + Send, mut sign_of_life: impl FnMut(u32)) -> T {
    thread::scope(|scope| {
        let (done, waiting) = channel();
        let work = move || {
            let outcome = work();
            // The receiver outlives the scope.
            let _ = done.send(());
            outcome
        };
        let worker = match thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work) {
            Ok(worker) => worker,
            Err(err) => panic!("no thread to work on: {err}"),
        };
        let mut signs = 0;
        while let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(INTERVAL) {
            signs += 1;
            sign_of_life(signs);
        }
        worker.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// A reply that its client may have to wait for.
pub struct WaitingReply {
    state: State,
    packing: Packing,
}

enum State {
    /// Nothing was sent.
    Silent(Responder),
    /// The head is out.
    Begun(ReplyStream),
    /// The client went away.
    Gone(Error),
}

impl WaitingReply {
    /// Nothing is sent yet.
    pub fn new(responder: Responder, packing: Packing) -> WaitingReply {
        WaitingReply { state: State::Silent(responder), packing }
    }

    /// Sends the head if it is not out, then `sign`, which may be empty. Returns whether it was sent.
    pub fn sign_of_life(&mut self, sign: &[u8]) -> bool {
        let packing = self.packing;
        let sent = match std::mem::replace(&mut self.state, State::Gone(Error::NotFound)) {
            State::Silent(responder) => Ok(responder.stream_of_unknown_length(packing)),
            State::Begun(stream) => Ok(stream),
            State::Gone(err) => Err(err),
        }
        .and_then(|mut stream| match stream.write_all(sign).and_then(|()| stream.flush()) {
            Ok(()) => Ok(stream),
            Err(err) => Err(Error::Disconnected(err)),
        });
        let is_sent = sent.is_ok();
        self.state = sent.map_or_else(State::Gone, State::Begun);
        is_sent
    }

    /// The reply, to write the rest of; `original_bytes` is told if the head is not out.
    pub fn into_stream(self, original_bytes: u64) -> Result<ReplyStream> {
        match self.state {
            State::Silent(responder) => Ok(responder.stream(self.packing, original_bytes)),
            State::Begun(stream) => Ok(stream),
            State::Gone(err) => Err(err),
        }
    }

    /// The way to answer with another status, if the head is not out.
    pub fn into_responder(self) -> Option<Responder> {
        match self.state {
            State::Silent(responder) => Some(responder),
            State::Begun(_) | State::Gone(_) => None,
        }
    }
}
