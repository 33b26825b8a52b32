//! Keeping a client waiting: work that may take long runs on a thread of its own while this one sends signs of life.
//!
//! Clients give up when neither the reply's header nor a decoded byte came for 30 s (sync-protocol.md 2.1). A thread
//! and not a callback of SQLite, because a disk that is slow holds the caller inside one read or sync.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

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
