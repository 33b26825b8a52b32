//! Connections to tiny_http that are used for several requests, one after the other.
//!
//! A new connection costs as much as a small request: a connect, an accept on another thread, two more descriptors, and a
//! task for a third thread. A sync is about ten small requests.
//!
//! tiny_http gives each open connection a thread, and has four. If two connections arrive at once, it may start no thread
//! for the second, which then waits until one is free. So at most three may be kept. The threads of other connections are
//! free again as soon as the head is read.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::server::connections::buffered_socket::{Got, read_some};

/// Most connections that are kept, in use or not.
pub const MAX_KEPT: usize = 3;

/// How long an unused one stays open. The requests of a sync follow each other faster, on slow links too.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// A connection to tiny_http.
pub struct BackendStream {
    pub socket: UnixStream,
    /// Counts for `MAX_KEPT` as long as it lives.
    place: Option<Arc<()>>,
}

impl BackendStream {
    /// A connection that is closed after one request.
    pub fn for_one_request(socket: UnixStream) -> BackendStream {
        BackendStream { socket, place: None }
    }

    /// Whether it may be used for another request after this one.
    pub fn is_kept(&self) -> bool {
        self.place.is_some()
    }
}

/// The connections that are kept.
#[derive(Default)]
pub struct KeptBackends {
    unused: Vec<(BackendStream, Instant)>,
    places: Arc<()>,
}

impl KeptBackends {
    /// A connection for a request: an unused one, or a new one. It is kept only if `may_keep`, and if there are fewer than
    /// `MAX_KEPT`. This never blocks: `max_active` is far below the backlog of the listener.
    pub fn open(&mut self, path: &Path, may_keep: bool) -> io::Result<BackendStream> {
        while let Some((stream, _)) = self.unused.pop_if(|_| may_keep) {
            // tiny_http has closed it, or sent what nobody asked for, if there is anything to read.
            if read_some(&stream.socket, &mut [0]) == Got::Nothing {
                return Ok(stream);
            }
        }
        let socket = UnixStream::connect(path)?;
        socket.set_nonblocking(true)?;
        let mut stream = BackendStream::for_one_request(socket);
        if may_keep && Arc::strong_count(&self.places) <= MAX_KEPT {
            stream.place = Some(self.places.clone());
        }
        Ok(stream)
    }

    /// Takes back a connection after a request that was sent whole and answered whole.
    pub fn give_back(&mut self, stream: BackendStream, now: Instant) {
        if stream.is_kept() {
            self.unused.push((stream, now));
        }
    }

    /// How many are open and unused.
    pub fn unused(&self) -> usize {
        self.unused.len()
    }

    /// When `close_old` has something to close.
    pub fn deadline(&self) -> Option<Instant> {
        self.unused.first().and_then(|(_, since)| since.checked_add(KEPT_FOR))
    }

    /// Closes those that were not used for a while.
    pub fn close_old(&mut self, now: Instant) {
        self.unused.retain(|(_, since)| now.saturating_duration_since(*since) < KEPT_FOR);
    }

    /// Closes all unused ones.
    pub fn close_unused(&mut self) {
        self.unused = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn listener() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("http");
        let listener = UnixListener::bind(&path).unwrap();
        (folder, path, listener)
    }

    #[test]
    fn three_are_kept_and_used_again() {
        let (_folder, path, _listener) = listener();
        let (mut kept, now) = (KeptBackends::default(), Instant::now());
        let four: Vec<_> = (0..4).map(|_| kept.open(&path, true).unwrap()).collect();
        assert_eq!(four.iter().filter(|stream| stream.is_kept()).count(), MAX_KEPT);
        four.into_iter().for_each(|stream| kept.give_back(stream, now));
        assert_eq!(kept.unused(), MAX_KEPT);
        assert!(!kept.open(&path, false).unwrap().is_kept());
        assert_eq!(kept.unused(), MAX_KEPT);
        let again = kept.open(&path, true).unwrap();
        assert!(again.is_kept() && kept.unused() == MAX_KEPT - 1);
        drop(again);
        kept.close_unused();
        assert!(kept.unused() == 0 && kept.deadline().is_none());
        assert!(kept.open(&path, true).unwrap().is_kept());
    }

    #[test]
    fn one_that_ended_or_speaks_unasked_is_not_used_again() {
        let (_folder, path, listener) = listener();
        let (mut kept, now) = (KeptBackends::default(), Instant::now());
        for speaks in [false, true] {
            let stream = kept.open(&path, true).unwrap();
            let mut theirs = listener.accept().unwrap().0;
            kept.give_back(stream, now);
            if speaks {
                theirs.write_all(b"x").unwrap();
            } else {
                drop(theirs);
            }
            drop(kept.open(&path, true).unwrap());
            assert!(listener.accept().is_ok() && kept.unused() == 0);
        }
    }

    #[test]
    fn unused_ones_are_closed_after_a_while() {
        let (_folder, path, _listener) = listener();
        let (mut kept, now) = (KeptBackends::default(), Instant::now());
        let both = [kept.open(&path, true).unwrap(), kept.open(&path, true).unwrap()];
        for (stream, seconds) in both.into_iter().zip([0, 2]) {
            kept.give_back(stream, now + Duration::from_secs(seconds));
        }
        assert_eq!(kept.deadline(), Some(now + KEPT_FOR));
        kept.close_old(now + KEPT_FOR);
        assert_eq!(kept.unused(), 1);
        kept.close_old(now + KEPT_FOR + Duration::from_secs(2));
        assert_eq!(kept.unused(), 0);
    }
}
