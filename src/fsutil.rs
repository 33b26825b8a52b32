//! Files that survive a power cut: every rename is of a synced file and is followed by a sync of the folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// A large file is written to the disk in steps of this size, so that a small board never owes the card more than that:
/// one sync of 300 MB at the end can take longer than clients wait.
const SYNC_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// Held by the server that runs on a data folder.
const LOCK_FILE: &str = ".ankipi.lock";

/// Creates the folder and those above it, for the owner's eyes only (the process's umask sees to the mode).
pub fn create_folder(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io("creating", dir))
}

/// Refuses what is a symbolic link: opened or filled, it would lead out of the data folder.
pub fn refuse_link(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => Err(Error::Broken(format!(
            "{} is a symbolic link, and links inside the data folder are not followed: put what it points to in its place",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Locks a data folder until the file is closed. One server per data folder: two would each keep sessions that the other
/// knows nothing of.
pub fn lock_data_folder(base: &Path) -> Result<File> {
    let path = base.join(LOCK_FILE);
    refuse_link(&path)?;
    let file = File::create(&path).map_err(Error::io("creating", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Broken(format!(
            "another ankipi is running on {}: stop it first, or use another folder with --base DIR",
            base.display()
        ))),
        Err(TryLockError::Error(err)) => Err(Error::Io("locking", path, err)),
    }
}

/// Whether a server runs on a data folder.
pub fn is_in_use(base: &Path) -> bool {
    File::open(base.join(LOCK_FILE))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Makes renames, links and deletions in this folder durable.
pub fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("syncing", dir))
}

/// Replaces `dir/name` so that a power cut leaves either the old file or the new one.
pub fn replace_file(dir: &Path, name: &str, contents: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.new"));
    // One that a crash left, or a link that would be followed.
    remove_if_there(&temporary)?;
    let write = || {
        let mut file = File::create_new(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(Error::io("replacing", &path))?;
    sync_folder(dir)
}

/// Deletes a file; that there is none is fine.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::Io("deleting", path.to_owned(), err)),
        _ => Ok(()),
    }
}

/// A new file that is synced as it grows.
pub struct GentleFile {
    file: File,
    unsynced: u64,
}

impl GentleFile {
    /// Creates the file, which must not exist.
    pub fn create(path: &Path) -> Result<GentleFile> {
        let open = OpenOptions::new().write(true).create_new(true).open(path);
        Ok(GentleFile { file: open.map_err(Error::io("creating", path))?, unsynced: 0 })
    }

    /// The file, whose last part is not synced.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl Write for GentleFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.file.write(data)?;
        self.unsynced += count as u64;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
