//! Files that survive a power cut: a file is synced before it is renamed, and its folder is synced after (but see
//! `replace_file_unsynced`).

use crate::error::{Error, Result};
use crate::files::disk_abilities::sync_open_folder;
use crate::files::owner::{create_for_owner, give_to_owner_of};
use crate::os;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// A large file is synced after each step of this size. One sync of 300 MB at the end can take longer than the clients'
/// timeout on a slow SD card.
const SYNC_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// Files that are overwritten have a multiple of this length: a block of most disks, for the next contents to fit.
const OVERWRITTEN_BYTES: usize = 4096;

/// Longer files are replaced.
const MOST_OVERWRITTEN_BYTES: usize = 64 * 1024;

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
    write_and_rename(dir, name, contents, File::sync_all)?;
    sync_folder(dir)
}

/// Replaces `dir/name`, and leaves it to the caller to make that durable. Until then a power cut may leave anything in it.
pub fn replace_file_unsynced(dir: &Path, name: &str, contents: &[u8]) -> Result<()> {
    write_and_rename(dir, name, contents, |_| Ok(()))
}

fn write_and_rename(
    dir: &Path,
    name: &str,
    contents: &[u8],
    sync: impl Fn(&File) -> io::Result<()>,
) -> Result<()> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.new"));
    // A crash may have left one. A symbolic link must not be followed.
    remove_if_there(&temporary)?;
    let write = || {
        let mut file = create_for_owner(dir, &temporary)?;
        file.write_all(contents)?;
        sync(&file)?;
        fs::rename(&temporary, &path)
    };
    write().map_err(Error::io("replacing", &path))
}

/// Replaces `dir/name` as `replace_file` does, but in place if it is long enough: `contents` are followed by spaces then. That
/// is one flush in place of two, and writes one block. A power cut may leave a mixture of the old contents and the new.
pub fn overwrite_file(dir: &Path, name: &str, contents: &[u8]) -> Result<()> {
    match overwrite(&dir.join(name), contents) {
        Some(written) => {
            written.and_then(|file| file.sync_data()).map_err(Error::io("replacing", &dir.join(name)))
        }
        None => {
            let mut padded = contents.to_vec();
            padded.resize(contents.len().next_multiple_of(OVERWRITTEN_BYTES), b' ');
            replace_file(dir, name, &padded)
        }
    }
}

/// The same without the flush: until the next sync of the file, a power cut may undo this. A file that cannot be overwritten is
/// deleted.
pub fn overwrite_or_remove(dir: &Path, name: &str, contents: &[u8]) -> Result<()> {
    let path = dir.join(name);
    match overwrite(&path, contents) {
        Some(written) => written.map(drop).map_err(Error::io("replacing", &path)),
        None => remove_if_there(&path),
    }
}

/// None if there is no such file, or if it is too short or of another kind.
fn overwrite(path: &Path, contents: &[u8]) -> Option<io::Result<File>> {
    let file = OpenOptions::new().write(true).custom_flags(os::NO_FOLLOW).open(path).ok()?;
    let meta = file.metadata().ok().filter(|meta| meta.is_file() && meta.nlink() == 1)?;
    let bytes = usize::try_from(meta.len())
        .ok()
        .filter(|bytes| (contents.len()..=MOST_OVERWRITTEN_BYTES).contains(bytes))?;
    let mut padded = contents.to_vec();
    padded.resize(bytes, b' ');
    Some(file.write_all_at(&padded, 0).map(|()| file))
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
    use super::*;

    #[test]
    fn a_file_is_overwritten_where_it_is_unless_that_would_change_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let inode = || fs::metadata(&path).unwrap().ino();
        let text = || fs::read_to_string(&path).unwrap();
        overwrite_file(dir.path(), "list", b"a long one").unwrap();
        let (first, bytes) = (inode(), text().len());
        assert_eq!((text().trim_end(), bytes), ("a long one", OVERWRITTEN_BYTES));
        // Another file, as numbers of deleted ones are used again.
        fs::write(dir.path().join("other"), "").unwrap();
        overwrite_file(dir.path(), "list", b"short").unwrap();
        assert_eq!((text().trim_end(), text().len(), inode()), ("short", bytes, first));
        let longer = "x".repeat(bytes + 1);
        overwrite_file(dir.path(), "list", longer.as_bytes()).unwrap();
        assert_eq!((text().trim_end(), text().len()), (longer.as_str(), 2 * bytes));
        // A copy of the folder may share the file.
        let copy = dir.path().join("copy");
        fs::hard_link(&path, &copy).unwrap();
        overwrite_file(dir.path(), "list", b"new").unwrap();
        assert_eq!(text().trim_end(), "new");
        assert_eq!(fs::read_to_string(&copy).unwrap().trim_end(), longer);
        overwrite_or_remove(dir.path(), "list", b"[]").unwrap();
        assert_eq!(text().trim_end(), "[]");
        // Nor is a link followed.
        fs::rename(&path, dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", &path).unwrap();
        overwrite_or_remove(dir.path(), "list", b"through the link").unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_to_string(dir.path().join("real")).unwrap().trim_end(), "[]");
    }
}
