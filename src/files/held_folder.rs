//! A folder that is kept open, to notice when another one takes its place.

use std::fs;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::os;

/// A folder that is kept open: while it is, no other folder can get its inode number.
pub struct HeldFolder {
    _open: File,
    /// Device and inode.
    pub id: (u64, u64),
}

impl HeldFolder {
    /// Opens a folder. A symbolic link is an error.
    pub fn open(dir: &Path) -> Result<HeldFolder> {
        let open = || {
            let open = OpenOptions::new().read(true).custom_flags(os::NO_FOLLOW).open(dir)?;
            let meta = open.metadata()?;
            if meta.is_dir() {
                Ok(HeldFolder { _open: open, id: (meta.dev(), meta.ino()) })
            } else {
                Err(io::ErrorKind::NotADirectory.into())
            }
        };
        open().map_err(Error::io("opening", dir))
    }

    /// Whether this is the folder at that path.
    pub fn is_at(&self, dir: &Path) -> bool {
        fs::symlink_metadata(dir).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.id)
    }
}

/// Device and inode of what is at that path, by which a file or folder is told from others.
pub fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Whether there is anything at that path.
pub fn is_there(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(Error::Io("looking at", path.to_owned(), err)),
    }
}
