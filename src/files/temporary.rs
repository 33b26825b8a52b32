//! Files that are deleted when the value that names them is dropped.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::files::remove_if_there;

/// The path of a file that may exist. Dropping this deletes the file; a file that was renamed is not touched.
#[derive(Debug)]
pub struct TemporaryFile {
    path: PathBuf,
    is_kept: AtomicBool,
}

impl TemporaryFile {
    /// Takes over a path. The file need not exist yet.
    pub fn at(path: PathBuf) -> TemporaryFile {
        TemporaryFile { path, is_kept: AtomicBool::new(false) }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name in its folder, if that is UTF-8.
    pub fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// Leaves the file where it is when this is dropped, or, with false, deletes it after all.
    pub fn keep(&self, is_kept: bool) {
        self.is_kept.store(is_kept, Ordering::Relaxed);
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Relaxed)
            && let Err(err) = remove_if_there(&self.path)
        {
            log::warn!("{err}");
        }
    }
}
