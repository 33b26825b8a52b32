//! Keep-alive bytes: while a request takes long, another thread sends bytes that keep its client from timing out.
//!
//! Clients time out when neither the reply's head nor a decoded byte came for 30 s (sync-protocol.md 2.1). This is a
//! thread and not a callback of SQLite, because a slow disk can block the caller inside one read or sync. One thread
//! serves all requests. It is started on demand and ends when no request has been waiting for a while. Starting one for
//! each request took as long as a small request itself.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::http::response::{Packing, ReplyStream, Responder};

/// Time before the first keep-alive bytes, and between two: two thirds of the shortest client timeout.
pub const INTERVAL: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(20) };

/// Stack of the thread that sends keep-alive bytes.
const STACK_BYTES: usize = 64 * 1024;

/// The keep-alive bytes to send, by their number from 1. An empty slice sends only the head; `None` sends nothing.
pub type KeepAliveBytes = fn(u32) -> Option<&'static [u8]>;

/// A reply that may take long: it can send keep-alive bytes before its content.
pub struct WaitingReply(Arc<Mutex<Reply>>);

struct Reply {
    state: State,
    /// Number of keep-alive bytes sent.
    sent_bytes: usize,
    /// The size to announce if the head must be sent before the length is known.
    likely_bytes: u64,
    /// Whether the work is still running. After it, no keep-alive bytes may be sent.
    waits: bool,
}

enum State {
    /// Nothing is sent yet.
    Silent(Responder, Packing),
    /// The head is sent.
    Begun(ReplyStream),
    /// The client is gone.
    Gone(Error),
    /// Taken by `into_stream` or `into_responder`, or while bytes are being sent.
    Taken,
}

impl WaitingReply {
    /// Nothing is sent yet. `likely_bytes` is announced if the head must be sent before the length is known.
    pub fn new(responder: Responder, packing: Packing, likely_bytes: u64) -> WaitingReply {
        WaitingReply(Arc::new(Mutex::new(Reply {
            state: State::Silent(responder, packing),
            sent_bytes: 0,
            likely_bytes,
            waits: false,
        })))
    }

    /// Runs `work`, and sends keep-alive bytes after each interval until it returns.
    pub fn while_doing<T>(&self, keep_alive: KeepAliveBytes, work: impl FnOnce() -> T) -> T {
        let _waiting = Waiting::begin(self.0.clone(), keep_alive);
        work()
    }

    /// Number of keep-alive bytes sent so far. Final once `while_doing` has returned.
    pub fn sent_bytes(&self) -> usize {
        lock(&self.0).sent_bytes
    }

    /// The reply, to write its content. `original_bytes` goes into the head, if that is not sent yet.
    pub fn into_stream(self, original_bytes: u64) -> Result<ReplyStream> {
        match self.take() {
            State::Silent(responder, packing) => Ok(responder.stream(packing, original_bytes)),
            State::Begun(stream) => Ok(stream),
            State::Gone(err) => Err(err),
            State::Taken => Err(Error::Broken("a reply was taken twice".to_owned())),
        }
    }

    /// The responder, to reply with another status; `None` if the head is sent.
    pub fn into_responder(self) -> Option<Responder> {
        match self.take() {
            State::Silent(responder, _) => Some(responder),
            State::Begun(_) | State::Gone(_) | State::Taken => None,
        }
    }

    fn take(&self) -> State {
        std::mem::replace(&mut lock(&self.0).state, State::Taken)
    }
}

impl Reply {
    /// Sends the head if it is not sent yet, then the keep-alive bytes; nothing if the work is done.
    fn send(&mut self, bytes: &[u8]) {
        if !self.waits {
            return;
        }
        let mut stream = match std::mem::replace(&mut self.state, State::Taken) {
            State::Silent(responder, packing) => {
                responder.stream_of_unknown_length(packing, self.likely_bytes)
            }
            State::Begun(stream) => stream,
            gone => {
                self.state = gone;
                return;
            }
        };
        self.state = match stream.write_all(bytes).and_then(|()| stream.flush()) {
            Ok(()) => {
                self.sent_bytes += bytes.len();
                State::Begun(stream)
            }
            Err(err) => State::Gone(Error::Disconnected(err)),
        };
    }
}

/// A reply whose work is running.
struct Entry {
    reply: Arc<Mutex<Reply>>,
    keep_alive: KeepAliveBytes,
    sent: u32,
    due: Instant,
}

/// All replies whose work is running, and whether the thread runs.
static ALL: Mutex<(Vec<Entry>, bool)> = Mutex::new((Vec::new(), false));

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keep-alive bytes are sent for this reply until this is dropped.
struct Waiting(Arc<Mutex<Reply>>);

impl Waiting {
    fn begin(reply: Arc<Mutex<Reply>>, keep_alive: KeepAliveBytes) -> Waiting {
        lock(&reply).waits = true;
        if let Err(err) = Waiting::enter(&reply, keep_alive) {
            // Without the thread the work still runs, and usually ends before the client's timeout.
            log::warn!("cannot start the thread for keep-alive bytes, slow requests may time out: {err}");
        }
        Waiting(reply)
    }

    fn enter(reply: &Arc<Mutex<Reply>>, keep_alive: KeepAliveBytes) -> io::Result<()> {
        let mut all = lock(&ALL);
        all.0.push(Entry { reply: reply.clone(), keep_alive, sent: 0, due: Instant::now() + INTERVAL });
        if !all.1 {
            thread::Builder::new().name("keep-alive".to_owned()).stack_size(STACK_BYTES).spawn(watch)?;
            all.1 = true;
        }
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // This lock also waits until bytes that are being sent have left.
        lock(&self.0).waits = false;
        lock(&ALL).0.retain(|entry| !Arc::ptr_eq(&entry.reply, &self.0));
    }
}

/// Sends keep-alive bytes for all replies. A new one is due only after the next wake-up, so it need not wake the thread.
fn watch() {
    let mut wake = Instant::now() + INTERVAL;
    loop {
        thread::sleep(wake.saturating_duration_since(Instant::now()));
        let now = Instant::now();
        let mut due = Vec::new();
        {
            let mut all = lock(&ALL);
            if all.0.is_empty() {
                all.1 = false;
                return;
            }
            for entry in all.0.iter_mut().filter(|entry| entry.due <= now) {
                entry.sent += 1;
                entry.due = now + INTERVAL;
                due.extend((entry.keep_alive)(entry.sent).map(|bytes| (entry.reply.clone(), bytes)));
            }
            wake = all.0.iter().map(|entry| entry.due).min().unwrap_or(now + INTERVAL);
        }
        for (reply, bytes) in due {
            // A panic must end only its own request: the thread serves all.
            if catch_unwind(AssertUnwindSafe(|| lock(&reply).send(bytes))).is_err() {
                log::error!("a reply failed while keep-alive bytes were sent");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_wire::Wire;

    fn wait_until(is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < INTERVAL * 400, "no keep-alive bytes");
            thread::sleep(INTERVAL / 10);
        }
    }

    /// A reply of "text" to a client who waits until keep-alive bytes came this many times; what it saw.
    fn replied(times: usize) -> String {
        let wire = Wire::default();
        let waiting = WaitingReply::new(wire.responder(), Packing::Plain, 0);
        waiting.while_doing(|_| Some(b" "), || wait_until(|| waiting.sent_bytes() >= times));
        let mut stream = waiting.into_stream(4).unwrap();
        stream.write_all(b"text").unwrap();
        stream.finish().unwrap();
        wire.text()
    }

    #[test]
    fn whoever_waits_gets_signs_of_life_and_then_the_reply() {
        // The second time the thread of the first one may have ended.
        for pause in [Duration::ZERO, INTERVAL * 3] {
            thread::sleep(pause);
            thread::scope(|scope| {
                let began = Instant::now();
                let quick = scope.spawn(move || (replied(0), began.elapsed()));
                let slow: Vec<_> = (1..4).map(|times| (times, scope.spawn(move || replied(times)))).collect();
                let (quick, took) = quick.join().unwrap();
                // A busy machine may let it wait, too.
                assert!(took >= INTERVAL || quick.ends_with("Content-Length: 4\r\n\r\ntext"), "{quick}");
                for (times, seen) in slow {
                    let seen = seen.join().unwrap();
                    assert!(seen.ends_with("4\r\ntext\r\n0\r\n\r\n"), "{seen}");
                    assert_eq!(seen.matches("HTTP/1.1").count(), 1, "{seen}");
                    assert!(seen.matches("1\r\n \r\n").count() >= times, "{seen}");
                }
            });
        }
    }

    #[test]
    fn no_sign_follows_once_the_work_is_done() {
        let wire = Wire::default();
        let waiting = WaitingReply::new(wire.responder(), Packing::Plain, 0);
        waiting.while_doing(|_| Some(b" "), || ());
        // Bytes that the thread was about to send.
        lock(&waiting.0).send(b" ");
        assert_eq!((waiting.sent_bytes(), wire.text()), (0, String::new()));
    }

    #[test]
    fn a_reply_that_panics_ends_its_own_request_only() {
        struct Panicking(Arc<Mutex<u32>>);
        impl Write for Panicking {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                *lock(&self.0) += 1;
                panic!("while sending");
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let tried = Arc::default();
        let panicking = Box::new(Panicking(Arc::clone(&tried)));
        let waiting = WaitingReply::new(Responder::new(panicking, false, String::new()), Packing::Plain, 0);
        waiting.while_doing(|_| Some(b" "), || wait_until(|| *lock(&tried) > 0));
        assert!(waiting.into_stream(1).is_err());
        replied(1);
    }

    #[test]
    fn a_client_that_went_away_gets_no_more() {
        struct Gone(Arc<Mutex<u32>>);
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                *lock(&self.0) += 1;
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let tried = Arc::default();
        let gone = Box::new(Gone(Arc::clone(&tried)));
        let waiting = WaitingReply::new(Responder::new(gone, false, String::new()), Packing::Zstd, 2);
        waiting.while_doing(
            |_| Some(b" "),
            || {
                wait_until(|| *lock(&tried) > 0);
                thread::sleep(INTERVAL * 3);
            },
        );
        assert_eq!(*lock(&tried), 1);
        assert_eq!(waiting.sent_bytes(), 0);
        assert!(matches!(waiting.into_stream(1).map(drop), Err(Error::Disconnected(_))));
    }
}
