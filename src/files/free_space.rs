//! Free space of the disk, and who may still write how much of it.
//!
//! Several writers at once would each find the same space free. So each reserves what it is going to write, until it is
//! written.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};
use crate::os;

/// Bytes that writers have reserved and not written yet, all together.
static RESERVED: Mutex<u64> = Mutex::new(0);

fn all_reserved() -> MutexGuard<'static, u64> {
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Errors if writing `bytes` bytes, of which `written` are on the disk already, would leave less than `min_free` free at `dir`.
pub fn check(dir: &Path, min_free: u64, bytes: u64, written: u64) -> Result<()> {
    let free = os::free_bytes(dir).map_err(Error::io("asking for the free space at", dir))?;
    if free.saturating_add(written) < bytes.saturating_add(min_free) {
        Err(Error::DiskFull(format!(
            "only {free} bytes are free at {}, and SYNC_MIN_FREE_MEGS keeps {min_free} of them",
            dir.display()
        )))
    } else {
        Ok(())
    }
}

/// As `check`, with room for what others have reserved. The bytes are kept for the caller until the result is dropped.
pub fn reserve(dir: &Path, min_free: u64, bytes: u64, written: u64) -> Result<Reserved> {
    let reserved = Reserved(bytes.saturating_sub(written));
    let others = {
        let mut all = all_reserved();
        let others = *all;
        *all = others.saturating_add(reserved.0);
        others
    };
    check(dir, min_free, bytes.saturating_add(others), written)?;
    Ok(reserved)
}

/// Bytes that the holder may write. Given back when it is dropped.
pub struct Reserved(u64);

impl Reserved {
    /// Gives so many of the bytes back, because they are written or not needed.
    pub fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.0);
        self.0 -= bytes;
        let mut all = all_reserved();
        *all = all.saturating_sub(bytes);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.give_back(self.0);
    }
}

/// For tests that compare what is reserved: one at a time.
#[cfg(test)]
pub fn turn_of_test() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
