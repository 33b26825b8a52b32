//! Files that are deleted when the value that names them is dropped.

use std::path::{Path, PathBuf};

use crate::files::remove_if_there;

/// The path of a file that may exist. Dropping this deletes the file; a file that was renamed is not touched.
#[derive(Debug)]
pub struct TemporaryFile(PathBuf);

impl TemporaryFile {
    /// Takes over a path. The file need not exist yet.
    pub fn at(path: PathBuf) -> TemporaryFile {
        TemporaryFile(path)
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Err(err) = remove_if_there(&self.0) {
            log::warn!("{err}");
        }
    }
}
