//! Nothing is lost: random histories of two devices, and of a third that downloads slowly, on a server that is
//! killed, whose power is cut, or whose disk fails.
//!
//! The server runs with `disk.c` preloaded, which sees every change of the data folder.
//!
//!   KILLS=600         how often `crash` kills the server (60)
//!   POWER_CUTS=1000   how many disks `power` makes of one history (60)
//!   SEED=7            another history
//!
//! Each test prints what it survived: `cargo test --test durability -- --nocapture`.

#[path = "../server/binary.rs"]
mod binary;
#[path = "../server/client.rs"]
#[allow(dead_code, reason = "shared with tests/server, which needs more of it")]
mod client;
#[path = "../server/harness.rs"]
#[allow(dead_code, reason = "shared with tests/server, which needs more of it")]
mod harness;
#[path = "../server/process_figures.rs"]
#[allow(dead_code, reason = "shared with tests/server, which needs it")]
mod process_figures;
#[path = "../media/zip.rs"]
#[allow(dead_code, reason = "shared with tests/media, which needs more of it")]
mod zip;

mod crash; // kill -9 at any operation on the disk
mod disk; // the preloaded disk, from the test's side
mod failing; // a disk that is full or fails at the n-th operation
mod history; // what two devices do, and what the server must hold then
mod power; // what a power cut may leave on the disk

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}
