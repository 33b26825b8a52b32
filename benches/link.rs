//! A slow link: the loopback interface of a network namespace, with the packets of Ethernet and a bottleneck.
//!
//! A proxy would acknowledge what a slow client has not got yet.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::Result;

/// Set inside the namespace.
const INSIDE: &str = "ANKIPI_BENCH_LINK";

/// The most that passes at once, and the largest packet before the kernel splits it. With the usual 64 KB, whole replies would
/// pass at once, whatever the speed.
const LEAST_BURST_BYTES: f64 = 6_000.0;
const PACKET_BYTES: u32 = 4096;

/// Runs this program again behind the link, unless it is there. Needs root, and `unshare`, `ip` and `tc` (util-linux, iproute2).
pub fn enter(megabytes_per_sec: f64) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let bytes_per_sec = megabytes_per_sec * 1e6;
    // The bytes of a millisecond: enough for the kernel to keep to the speed.
    let burst = LEAST_BURST_BYTES.max(bytes_per_sec / 1000.0);
    let script = format!(
        "ip link set lo up mtu 1500 gso_max_size {PACKET_BYTES} gro_max_size {PACKET_BYTES} && \
         tc qdisc add dev lo root tbf rate {:.0}bit burst {burst:.0} latency 50ms && \
         exec \"$0\" \"$@\"",
        bytes_per_sec * 8.0
    );
    let failed = Command::new("unshare")
        .args(["--net", "sh", "-c", &script])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(format!("--link needs root and the programs unshare, ip and tc: {failed}").into())
}
