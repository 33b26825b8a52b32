//! Memory does not grow with the number of requests, also if one thread allocates it and another frees it.

use std::thread;

use crate::harness::TestServer;

/// Clients at once.
const CLIENTS: usize = 4;

/// Requests of each in one round.
const REQUESTS: usize = 500;

/// Rounds after the first, in which the allocator takes what it needs.
const ROUNDS: usize = 3;

/// Allowed growth after those rounds: a third of a KiB for each request, of which each takes some hundred KiB.
const GROWTH_KIB: u64 = 2048;

#[test]
fn what_requests_take_they_give_back_however_many_come_at_once() {
    let server = TestServer::start();
    let round = || {
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                let device = server.device();
                scope.spawn(move || (0..REQUESTS).for_each(|_| drop(device.meta())));
            }
        });
        server.memory_kib("RssAnon:")
    };
    let first = round();
    let later: Vec<u64> = (0..ROUNDS).map(|_| round()).collect();
    println!("{} requests a round: {first} KiB after the first, then {later:?}", CLIENTS * REQUESTS);
    assert!(later[ROUNDS - 1] <= first + GROWTH_KIB, "memory grows");
}
