//! `/metrics`: a few numbers in the text form of Prometheus, if SYNC_METRICS is on.

use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::os;

/// Counters since the start. They are under a lock, because MIPS has no 64-bit atomics.
pub struct Metrics {
    started: Instant,
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    /// Responses by class of status: 1xx to 5xx.
    requests: [u64; 5],
    received_bytes: u64,
    sent_bytes: u64,
    busy: Duration,
}

impl Metrics {
    /// All counters are zero.
    pub fn start() -> Metrics {
        Metrics { started: Instant::now(), counts: Mutex::default() }
    }

    /// Counts a response.
    pub fn count(&self, status: u16, received_bytes: u64, sent_bytes: u64, took: Duration) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        counts.requests[class] += 1;
        counts.received_bytes += received_bytes;
        counts.sent_bytes += sent_bytes;
        counts.busy += took;
    }

    /// The metrics as text.
    pub fn text(&self, base: &Path, accounts: usize) -> String {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from(
            "# HELP ankipi_requests_total Answered requests by class of status.\n\
             # TYPE ankipi_requests_total counter\n",
        );
        for (class, count) in (1..).zip(counts.requests).filter(|(class, _)| *class > 1) {
            let _ = writeln!(text, "ankipi_requests_total{{status=\"{class}xx\"}} {count}");
        }
        let mut add = |name: &str, kind: &str, help: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        add(
            "ankipi_received_bytes_total",
            "counter",
            "Bytes of request bodies, as sent.",
            &counts.received_bytes,
        );
        add("ankipi_sent_bytes_total", "counter", "Bytes of reply bodies, as sent.", &counts.sent_bytes);
        add("ankipi_busy_seconds_total", "counter", "Time spent on requests.", &counts.busy.as_secs_f64());
        add("ankipi_uptime_seconds", "gauge", "Time since the start.", &self.started.elapsed().as_secs());
        add("ankipi_accounts", "gauge", "Accounts.", &accounts);
        if let Ok(free) = os::free_bytes(base) {
            add("ankipi_free_disk_bytes", "gauge", "Free space where the data is.", &free);
        }
        if let Some(bytes) = resident_bytes() {
            add("process_resident_memory_bytes", "gauge", "Resident memory.", &bytes);
        }
        text
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
