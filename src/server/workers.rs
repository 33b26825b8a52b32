//! The fixed set of threads that answer requests. tiny_http hands them out.

use crate::api::App;
use crate::compression::zstd_decoder;
use crate::error::{Error, Result};
use crate::http::Request;
use crate::limits_and_timeouts::WORKERS;
use crate::os;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Stack of a worker. SQLite and serde on one row need far less; unused stack costs address space, not memory.
pub(super) const WORKER_STACK_BYTES: usize = 512 * 1024;

/// How long a stop waits for the workers' last requests after the connection layer has ended. With the connection layer's `stop_wait` this
/// makes 10 seconds: init systems kill the process after that.
const LAST_REQUEST_WAIT: Duration = Duration::from_secs(1);

/// How long after a request the freed memory is kept, if nothing is open. A device without changes sends one request for its
/// collection, and the next for its media.
const KEEP_FREED_MEMORY: Duration = Duration::from_secs(1);

/// The threads that answer requests.
pub(super) struct Workers {
    backend: Arc<tiny_http::Server>,
    stopping: Arc<AtomicBool>,
    /// Disconnected once the last worker thread has ended.
    ended: mpsc::Receiver<()>,
}

impl Workers {
    pub(super) fn start(app: &Arc<App>, backend: tiny_http::Server) -> Result<Workers> {
        let (backend, stopping) = (Arc::new(backend), Arc::new(AtomicBool::new(false)));
        let (alive, ended) = mpsc::channel();
        for number in 0..WORKERS {
            let (app, backend, stopping, alive) =
                (app.clone(), backend.clone(), stopping.clone(), alive.clone());
            let work_until_end = move || {
                work(&app, &backend, &stopping);
                drop(alive);
            };
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .stack_size(WORKER_STACK_BYTES)
                .spawn(work_until_end)
                .map_err(|err| Error::Broken(format!("starting a worker thread: {err}")))?;
        }
        Ok(Workers { backend, stopping, ended })
    }

    /// Tells each worker to end after its current request. Returns whether all ended within `LAST_REQUEST_WAIT`.
    pub(super) fn stop(self) -> bool {
        self.stopping.store(true, Ordering::Relaxed);
        (0..WORKERS).for_each(|_| self.backend.unblock());
        self.ended.recv_timeout(LAST_REQUEST_WAIT) == Err(RecvTimeoutError::Disconnected)
    }
}

/// Answers requests until `stopping`. Between requests it rolls back sessions that timed out. Without open sessions it soon
/// releases the freed memory that was kept for the next request, and then sleeps until there is one.
fn work(app: &App, backend: &tiny_http::Server, stopping: &AtomicBool) {
    // Memory that was freed at the start is kept, too.
    let mut keeps_memory = true;
    while !stopping.load(Ordering::Relaxed) {
        let next = app.users().expire_sessions();
        let request = match next {
            Some(wait) => backend.recv_timeout(wait),
            None if keeps_memory => backend.recv_timeout(KEEP_FREED_MEMORY),
            None => backend.recv().map(Some),
        };
        match request {
            Ok(Some(request)) => {
                keeps_memory = true;
                // A panic ends this request and its user's session, but not the worker.
                drop(catch_unwind(AssertUnwindSafe(|| app.answer(Request::new(request)))));
            }
            // `unblock` was called, or the time is over: a session may have timed out.
            _ if next.is_none() => {
                zstd_decoder::release_kept();
                os::release_freed_memory();
                keeps_memory = false;
            }
            _ => {}
        }
    }
}
