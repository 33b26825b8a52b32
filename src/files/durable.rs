//! Files that survive a power cut: a file is synced before it is renamed, and its folder is synced after.

use crate::error::{Error, Result};
use crate::files::disk_abilities::sync_open_folder;
use crate::files::owner::{create_for_owner, give_to_owner_of};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

/// A large file is synced after each step of this size. One sync of 300 MB at the end can take longer than the clients'
/// timeout on a slow SD card.
const SYNC_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// Stack of a thread that does nothing but flush.
const FLUSHER_STACK_BYTES: usize = 64 * 1024;

/// Creates the folder and its missing parents, durably. Only the owner can read them: the process's umask sets the mode.
pub fn create_folder(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => dir,
    };
    create_folder(parent)?;
    match fs::create_dir(dir) {
        // Not an error if another process has created the folder meanwhile.
        Err(err) if !dir.is_dir() => Err(err),
        _ => File::open(dir).and_then(|made| give_to_owner_of(parent, &made)),
    }
    .map_err(Error::io("creating", dir))?;
    // Without this sync a power cut could lose the folder with all that was acknowledged in it.
    sync_folder(parent)
}

/// Makes renames, links and deletions in this folder durable, where the disk can do that.
pub fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| sync_open_folder(&dir)).map_err(Error::io("syncing", dir))
}

/// Replaces `dir/name` so that a power cut leaves either the old file or the new one.
pub fn replace_file(dir: &Path, name: &str, contents: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.new"));
    // A crash may have left one. A symbolic link must not be followed.
    remove_if_there(&temporary)?;
    let write = || {
        let mut file = create_for_owner(dir, &temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(Error::io("replacing", &path))?;
    sync_folder(dir)
}

/// Makes something durable.
pub type Flush<'f> = dyn Fn() -> Result<()> + Sync + 'f;

/// Does the flushes at the same time, each on a thread of its own if there may be one, and `meanwhile` on this one: a disk makes
/// several flushes that it gets at once in little more time than one. An error of `meanwhile` comes before theirs.
pub fn flush_at_once<T>(flushes: &[&Flush<'_>], meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
    thread::scope(|scope| {
        let start = |flush| {
            let thread = thread::Builder::new().name("flush".to_owned()).stack_size(FLUSHER_STACK_BYTES);
            thread.spawn_scoped(scope, flush)
        };
        let started: Vec<_> = flushes.iter().map(|flush| start(*flush)).collect();
        let done = meanwhile()?;
        for (started, flush) in started.into_iter().zip(flushes) {
            match started {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|_| Err(Error::Broken("a flush panicked".to_owned())))?
                }
                Err(_) => flush()?,
            }
        }
        Ok(done)
    })
}

/// Deletes a file; not an error if it does not exist.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::Io("deleting", path.to_owned(), err)),
        _ => Ok(()),
    }
}

/// Deletes a folder and all that is in it; not an error if it does not exist.
pub fn remove_folder(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::Io("deleting", dir.to_owned(), err)),
        _ => Ok(()),
    }
}

/// A new file that is synced after every `SYNC_EVERY_BYTES`.
pub struct FsyncingFile {
    file: File,
    unsynced: u64,
}

impl FsyncingFile {
    /// Creates the file, which must not exist.
    pub fn create(path: &Path) -> Result<FsyncingFile> {
        let open = OpenOptions::new().write(true).create_new(true).open(path);
        Ok(FsyncingFile { file: open.map_err(Error::io("creating", path))?, unsynced: 0 })
    }

    /// Overwrites bytes that were written before.
    pub fn patch(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(data, at)
    }

    /// Cuts the end of the file off, and goes on writing there.
    pub fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.file.seek(SeekFrom::Start(bytes)).map(drop)
    }

    /// Returns the file. What was written since the last sync is not synced yet.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl Write for FsyncingFile {
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn flushes_run_at_the_same_time_and_each_of_their_errors_is_one() {
        let all_run = Barrier::new(3);
        let waits = || {
            all_run.wait();
            Ok(())
        };
        let fails = || Err(Error::Broken("no disk".to_owned()));
        let done = flush_at_once(&[&waits, &waits], || waits().map(|()| 7));
        assert_eq!(done.unwrap(), 7);
        assert!(flush_at_once(&[&fails, &|| Ok(())], || Ok(())).is_err());
        assert!(flush_at_once(&[&|| Ok(()), &fails], || Ok(())).is_err());
        assert!(flush_at_once(&[&|| Ok(())], fails).is_err());
    }
}
