//! Storage limits of a request: the user's quota, and the space to keep free on the disk.
//!
//! They are checked for a body by its declared length, while it is written, and when it is whole; for what is unpacked of
//! it (media) before that is written; and for the collection, before a step's changes may stay.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::api::routes::Method;
use crate::collection;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files::free_space::{self, Reserved};
use crate::limits_and_timeouts::{STORAGE_SPARE_BYTES, STORAGE_SPARE_REQUEST_BYTES, STORAGE_STEP_BYTES};
use crate::os::clock;
use crate::os::clock::Day;
use crate::sync::user::User;

/// What each user has stored beyond a limit today, in small requests.
#[derive(Default)]
pub struct SpareStorage(Mutex<HashMap<PathBuf, (Day, u64)>>);

impl SpareStorage {
    /// Takes so many bytes of what a user may store beyond the limits today. Returns whether there were so many left.
    fn take(&self, dir: &Path, bytes: u64) -> bool {
        let today = clock::today();
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (day, taken) = spare.entry(dir.to_owned()).or_insert((today, 0));
        if *day != today {
            (*day, *taken) = (today, 0);
        }
        let sum = taken.saturating_add(bytes);
        let is_left = sum <= STORAGE_SPARE_BYTES;
        if is_left {
            *taken = sum;
        }
        is_left
    }
}

/// The limits for one request.
pub struct StorageLimits<'s> {
    dir: PathBuf,
    min_free: u64,
    quota: Option<Quota>,
    /// What small requests may store beyond the limits. None for a client that is not authenticated.
    spare: Option<&'s SpareStorage>,
}

/// The quota of a user, and how it is used.
struct Quota {
    bytes: u64,
    media: u64,
    /// Without a collection that this request replaces.
    collection: u64,
}

impl Quota {
    fn left(&self) -> u64 {
        self.bytes.saturating_sub(self.media.saturating_add(self.collection))
    }

    fn exceeded(&self) -> Error {
        Error::TooLarge(format!(
            "this would take the user over the quota of {} bytes; SYNC_QUOTA_MEGS raises it",
            self.bytes
        ))
    }
}

impl<'s> StorageLimits<'s> {
    /// The limits for this method; None for methods that store nothing.
    pub fn of(
        method: Method,
        user: &User,
        config: &Config,
        spare: &'s SpareStorage,
    ) -> Result<Option<StorageLimits<'s>>> {
        if method.has_small_body() {
            return Ok(None);
        }
        let quota = match config.quota_bytes {
            Some(bytes) => Some(Quota {
                bytes,
                media: u64::try_from(user.media.totals()?.bytes).unwrap_or(0),
                // Backups do not count: the server makes them.
                collection: match method {
                    Method::Upload => 0,
                    _ => fs::metadata(user.dir.join(collection::FILE_NAME)).map_or(0, |meta| meta.len()),
                },
            }),
            None => None,
        };
        Ok(Some(StorageLimits {
            dir: user.dir.clone(),
            min_free: config.min_free_bytes,
            quota,
            spare: Some(spare),
        }))
    }

    /// The limit of the disk alone, for a client that is not authenticated yet, and for copies that the server makes.
    pub fn of_disk(config: &Config) -> StorageLimits<'s> {
        StorageLimits { dir: config.base.clone(), min_free: config.min_free_bytes, quota: None, spare: None }
    }

    /// Refuses to store `bytes` bytes, of which `written` are already on the disk. Small requests pass; see `check_whole`.
    pub fn check(&self, bytes: u64, written: u64) -> Result<()> {
        if self.spare.is_some() && bytes <= STORAGE_SPARE_REQUEST_BYTES {
            return Ok(());
        }
        match &self.quota {
            Some(quota) if bytes > quota.left() => Err(quota.exceeded()),
            _ => self.check_free(bytes, written),
        }
    }

    /// Refuses to write `bytes` bytes, of which `written` are already on the disk, if too little stays free.
    pub fn check_free(&self, bytes: u64, written: u64) -> Result<()> {
        free_space::check(&self.dir, self.min_free, bytes, written)
    }

    /// As `check_free`, with room for what other requests may still write. The bytes are kept for this one until the result is
    /// dropped.
    pub fn reserve(&self, bytes: u64, written: u64) -> Result<Reserved> {
        free_space::reserve(&self.dir, self.min_free, bytes, written)
    }

    /// Checks a body of this length, all of which has arrived. A small one may go beyond the limits, for as long as there
    /// is something left of the day's spare bytes.
    pub fn check_whole(&self, bytes: u64) -> Result<()> {
        let checked = match &self.quota {
            Some(quota) if bytes > quota.left() => Err(quota.exceeded()),
            _ => self.check_free(bytes, bytes),
        };
        match (checked, self.spare) {
            (Err(_), Some(spare)) if bytes <= STORAGE_SPARE_REQUEST_BYTES && spare.take(&self.dir, bytes) => {
                Ok(())
            }
            (checked, _) => checked,
        }
    }

    /// Whether `check_collection` may fail.
    pub fn has_quota(&self) -> bool {
        self.quota.is_some()
    }

    /// Checks the size that a collection has after a step with a body of this length: rows may take more than their JSON.
    pub fn check_collection(&self, collection: u64, body: u64) -> Result<()> {
        match &self.quota {
            Some(quota)
                if body > STORAGE_SPARE_REQUEST_BYTES
                    && collection > quota.collection
                    && collection.saturating_add(quota.media) > quota.bytes =>
            {
                Err(quota.exceeded())
            }
            _ => Ok(()),
        }
    }

    /// Checks the size that all media files of the user would have.
    pub fn check_media(&self, media: u64) -> Result<()> {
        match &self.quota {
            Some(quota) if media.saturating_add(quota.collection) > quota.bytes => Err(quota.exceeded()),
            _ => Ok(()),
        }
    }
}

/// Counts what is written, and says when a limit is exceeded.
pub struct Meter<'r> {
    storage_limits: Option<&'r StorageLimits<'r>>,
    written: u64,
    check_at: u64,
    /// What it may write until the next check.
    reserved: Option<Reserved>,
}

impl<'r> Meter<'r> {
    /// Nothing is written yet.
    pub fn new(storage_limits: Option<&'r StorageLimits<'r>>) -> Meter<'r> {
        Meter { storage_limits, written: 0, check_at: STORAGE_SPARE_REQUEST_BYTES, reserved: None }
    }

    /// Call before so many bytes more are written.
    pub fn add(&mut self, bytes: usize) -> Result<()> {
        let sum = self.written + bytes as u64;
        if let (Some(storage_limits), true) = (self.storage_limits, sum > self.check_at) {
            storage_limits.check(sum, self.written)?;
            self.reserved = None;
            self.reserved = Some(storage_limits.reserve(sum + STORAGE_STEP_BYTES, self.written)?);
            self.check_at = sum + STORAGE_STEP_BYTES;
        }
        self.written = sum;
        Ok(())
    }
}

/// A writer that fails when a limit is exceeded.
pub struct LimitedWriter<'r, W> {
    inner: W,
    meter: Meter<'r>,
}

impl<'r, W: Write> LimitedWriter<'r, W> {
    /// Counts the bytes written to `inner`.
    pub fn new(inner: W, storage_limits: Option<&'r StorageLimits<'r>>) -> LimitedWriter<'r, W> {
        LimitedWriter { inner, meter: Meter::new(storage_limits) }
    }
}

impl<W: Write> Write for LimitedWriter<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.meter.add(data.len()).map_err(io::Error::other)?;
        self.inner.write_all(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// For `map_err` on errors of a `LimitedWriter`: keeps its own errors, and passes those of `inner` through `other`.
pub fn error_of(other: impl FnOnce(io::Error) -> Error) -> impl FnOnce(io::Error) -> Error {
    |err| err.downcast::<Error>().unwrap_or_else(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os;

    /// Each has checked the free space before it writes, and none has written yet.
    #[test]
    fn bodies_that_arrive_together_leave_the_reserve_free() {
        let _turn = free_space::turn_of_test();
        let dir = std::env::temp_dir();
        // Other programs may use or free tens of megabytes meanwhile.
        let min_free = os::free_bytes(&dir).unwrap().saturating_sub(100 << 20);
        let limits = StorageLimits { dir, min_free, quota: None, spare: None };
        let mut meters: Vec<_> = (0..200).map(|_| Meter::new(Some(&limits))).collect();
        let taken = meters.iter_mut().position(|meter| meter.add(70_000).is_err()).expect("a refusal");
        assert!((10..190).contains(&taken), "{taken}");
        drop(meters);
        Meter::new(Some(&limits)).add(70_000).unwrap();
        // What a zip unpacks to, or a copy, is known before.
        let first = limits.reserve(60 << 20, 0).unwrap();
        assert!(limits.reserve(60 << 20, 0).is_err());
        drop(first);
        limits.reserve(60 << 20, 0).unwrap();
    }
}
