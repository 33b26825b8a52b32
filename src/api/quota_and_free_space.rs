//! Storage limits of a request: the user's quota, and the space to keep free on the disk.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::api::routes::Method;
use crate::collection;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::os;
use crate::sync::session::User;

/// Always allowed: reviews, and the deletions that bring a user below the quota again.
const ALWAYS_BYTES: u64 = 64 * 1024;

/// Bytes written between two checks of the free space.
const STEP_BYTES: u64 = 1024 * 1024;

/// The limits for one request.
pub struct Ration {
    dir: PathBuf,
    min_free: u64,
    /// Bytes left of the quota, and the quota.
    quota: Option<(u64, u64)>,
}

impl Ration {
    /// The limits for this method; None for methods that store almost nothing.
    pub fn of(method: Method, user: &User, config: &Config) -> Result<Option<Ration>> {
        if !matches!(method, Method::Upload | Method::UploadChanges | Method::ApplyChunk) {
            return Ok(None);
        }
        let quota = match config.quota_bytes {
            Some(quota) => Some((quota.saturating_sub(other_bytes_of(method, user)?), quota)),
            None => None,
        };
        Ok(Some(Ration { dir: user.dir.clone(), min_free: config.min_free_bytes, quota }))
    }

    /// Refuses to store `bytes` bytes, of which `written` are already on the disk.
    pub fn check(&self, bytes: u64, written: u64) -> Result<()> {
        if bytes <= ALWAYS_BYTES {
            return Ok(());
        }
        if let Some((_, quota)) = self.quota.filter(|(left, _)| bytes > *left) {
            return Err(Error::TooLarge(format!(
                "this would take the user over the quota of {quota} bytes; SYNC_QUOTA_MEGS raises it"
            )));
        }
        let free = os::free_bytes(&self.dir).map_err(Error::io("asking for the free space at", &self.dir))?;
        if free.saturating_add(written) < bytes.saturating_add(self.min_free) {
            Err(Error::DiskFull(format!(
                "only {free} bytes are free at {}, and SYNC_MIN_FREE_MEGS keeps {} of them",
                self.dir.display(),
                self.min_free
            )))
        } else {
            Ok(())
        }
    }
}

/// Bytes that the user stores, without those that this request replaces. Backups do not count: the server makes them.
fn other_bytes_of(method: Method, user: &User) -> Result<u64> {
    let media = u64::try_from(user.media.totals()?.bytes).unwrap_or(0);
    let collection = match method {
        Method::Upload => 0,
        _ => fs::metadata(user.dir.join(collection::FILE_NAME)).map_or(0, |meta| meta.len()),
    };
    Ok(media.saturating_add(collection))
}

/// A writer that fails when a limit is exceeded.
pub struct Rationed<'r, W> {
    inner: W,
    ration: Option<&'r Ration>,
    written: u64,
    check_at: u64,
}

impl<'r, W: Write> Rationed<'r, W> {
    /// Counts the bytes written to `inner`.
    pub fn new(inner: W, ration: Option<&'r Ration>) -> Rationed<'r, W> {
        Rationed { inner, ration, written: 0, check_at: STEP_BYTES }
    }
}

impl<W: Write> Write for Rationed<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let (Some(ration), true) = (self.ration, self.written >= self.check_at) {
            ration.check(self.written + data.len() as u64, self.written).map_err(io::Error::other)?;
            self.check_at = self.written + STEP_BYTES;
        }
        let count = self.inner.write(data)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// For `map_err` on errors of a `Rationed` writer: keeps its own errors, and passes those of `inner` through `other`.
pub fn error_of(other: impl FnOnce(io::Error) -> Error) -> impl FnOnce(io::Error) -> Error {
    |err| err.downcast::<Error>().unwrap_or_else(other)
}
