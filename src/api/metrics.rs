//! `/metrics`: a few numbers in the text format of Prometheus (version 0.0.4), if SYNC_METRICS is set.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::os;
use crate::os::clock;

/// Counters since the start. They are under a lock, because MIPS has no 64-bit atomics.
pub struct Metrics {
    started: Instant,
    counts: Mutex<Counts>,
}

#[derive(Clone, Default)]
struct Counts {
    /// Responses by class of status: 1xx to 5xx.
    requests: [u64; 5],
    /// By `LOGIN_RESULTS`.
    logins: [u64; 3],
    received_bytes: u64,
    sent_bytes: u64,
    busy: Duration,
    /// Seconds since 1970 by user. As long as there are accounts.
    last_syncs: BTreeMap<String, i64>,
}

const LOGIN_RESULTS: [&str; 3] = ["ok", "refused", "throttled"];

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

    /// Counts a login.
    pub fn login<T>(&self, outcome: &Result<T>) {
        let result = match outcome {
            Ok(_) => 0,
            Err(Error::Throttled(_)) => 2,
            Err(_) => 1,
        };
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).logins[result] += 1;
    }

    /// Notes that a device of this user has synced now.
    pub fn synced(&self, user: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.last_syncs.insert(user.to_owned(), clock::now_secs());
    }

    /// The metrics as text. Names of users are in it if not everybody may read it.
    pub fn text(&self, config: &Config, accounts: usize) -> String {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let up = self.started.elapsed();
        // Computed from the uptime, because a board without a battery-backed clock starts in 1970.
        let started = clock::now_secs().saturating_sub_unsigned(up.as_secs());
        let mut text = Text(String::new());
        let build = format!("{{version=\"{}\",target=\"{}\"}}", os::VERSION, os::TARGET);
        text.family("ankipi_build_info", "gauge", "Version and target of the program.", [(build, 1)]);
        let classes = (1..).zip(counts.requests).filter(|(class, _)| *class > 1);
        text.family(
            "ankipi_requests_total",
            "counter",
            "Answered requests by class of status.",
            classes.map(|(class, count)| (format!("{{status=\"{class}xx\"}}"), count)),
        );
        text.family(
            "ankipi_logins_total",
            "counter",
            "Logins by result.",
            LOGIN_RESULTS
                .iter()
                .zip(counts.logins)
                .map(|(result, count)| (format!("{{result=\"{result}\"}}"), count)),
        );
        if !config.shows_metrics_to_everyone() && !counts.last_syncs.is_empty() {
            text.family(
                "ankipi_last_sync_timestamp_seconds",
                "gauge",
                "When a device of the user last synced since the start.",
                counts
                    .last_syncs
                    .iter()
                    .map(|(user, secs)| (format!("{{user=\"{}\"}}", escaped(user)), secs)),
            );
        }
        let (received, sent, busy) = (counts.received_bytes, counts.sent_bytes, counts.busy.as_secs_f64());
        text.number("ankipi_received_bytes_total", "counter", "Bytes of request bodies, as sent.", received);
        text.number("ankipi_sent_bytes_total", "counter", "Bytes of reply bodies, as sent.", sent);
        text.number("ankipi_busy_seconds_total", "counter", "Time spent on requests.", busy);
        text.number("ankipi_accounts", "gauge", "Accounts.", accounts);
        if let Ok(free) = os::free_bytes(&config.base) {
            text.number("ankipi_free_disk_bytes", "gauge", "Free space where the data is.", free);
        }
        text.number("process_start_time_seconds", "gauge", "When the server started, since 1970.", started);
        if let Some(bytes) = resident_bytes() {
            text.number("process_resident_memory_bytes", "gauge", "Resident memory.", bytes);
        }
        text.0
    }
}

struct Text(String);

impl Text {
    /// Adds a metric with a value for each set of labels.
    fn family<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        values: impl IntoIterator<Item = (String, V)>,
    ) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    fn number(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help, [(String::new(), value)]);
    }
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
