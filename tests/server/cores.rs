//! Short steps of a sync are answered on one core of the processor, so that none must be woken. What takes long uses the others.

use std::thread;
use std::time::Instant;

use crate::client::SlowDownload;
use crate::harness::{EVENT_TIMEOUT, TestServer};
use crate::readers::large;

/// Waits until the threads on other cores than the main thread are these.
#[track_caller]
fn wait_until(server: &TestServer, is_expected: impl Fn(&[String]) -> bool) {
    let deadline = Instant::now() + EVENT_TIMEOUT;
    loop {
        let threads = server.threads_elsewhere();
        if is_expected(&threads) {
            return;
        }
        assert!(Instant::now() < deadline, "elsewhere: {threads:?}");
        thread::yield_now();
    }
}

#[test]
fn short_steps_share_a_core_and_a_download_leaves_it() {
    if thread::available_parallelism().unwrap().get() == 1 {
        return; // then all share it
    }
    let server = TestServer::holding(&large(2000, 4000), &[]);
    let device = server.device();
    // A step may begin before the one before it has ended. Then it goes elsewhere, and its worker returns with the next one.
    let wait = |is_expected: &dyn Fn(&[String]) -> bool| {
        wait_until(&server, |threads| {
            device.meta();
            is_expected(threads)
        });
    };
    wait(&<[String]>::is_empty);
    let download = SlowDownload::begin(&device);
    wait(&|threads| matches!(threads, [one] if one.starts_with("worker-")));
    drop(download);
    wait(&<[String]>::is_empty);
}
