//! The wall clock in the protocol's units.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 on a board whose clock is before that.
pub fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Seconds since 1970.
pub fn now_secs() -> i64 {
    now_millis() / 1000
}
