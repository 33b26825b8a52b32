//! Files that survive a power cut: a file is synced before it is renamed, and its folder is synced after.

pub mod spool;
pub mod sqlite_files;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::os;

/// A large file is synced after each step of this size. One sync of 300 MB at the end can take longer than the clients'
/// timeout on a slow SD card.
const SYNC_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// Lock file of the server that runs on a data folder.
const LOCK_FILE: &str = ".ankipi.lock";

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

/// Creates or truncates a file in `dir` and gives it to the owner of the folder: root may run `ankipi user add` for a
/// server that is not root. A symbolic link in its place is an error: its target must not be overwritten.
pub fn create_for_owner(dir: &Path, path: &Path) -> io::Result<File> {
    let mut create = OpenOptions::new();
    create.write(true).create(true).truncate(true).custom_flags(os::NO_FOLLOW);
    let file = create.open(path)?;
    give_to_owner_of(dir, &file)?;
    Ok(file)
}

fn give_to_owner_of(dir: &Path, file: &File) -> io::Result<()> {
    let (owner, is) = (fs::metadata(dir)?, file.metadata()?);
    if owner.uid() == is.uid() {
        return Ok(());
    }
    match fchown(file, Some(owner.uid()), Some(owner.gid())) {
        // Only root may do this. For other users it is not needed: all their files belong to them.
        Err(err) if err.kind() != io::ErrorKind::PermissionDenied => Err(err),
        _ => Ok(()),
    }
}

/// Gives a folder and everything in it to the owner of `dir`, for a server that is not root.
pub fn give_all(dir: &Path, tree: &Path) -> Result<()> {
    let give = |path: &Path| File::open(path).and_then(|file| give_to_owner_of(dir, &file));
    give(tree).map_err(Error::io("giving away", tree))?;
    for entry in fs::read_dir(tree).map_err(Error::io("reading", tree))? {
        let entry = entry.map_err(Error::io("reading", tree))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io("reading", tree))?);
        if kind.is_dir() {
            give_all(dir, &path)?;
        } else if kind.is_file() {
            give(&path).map_err(Error::io("giving away", &path))?;
        }
    }
    Ok(())
}

/// Errors if the path is a symbolic link: reading or writing through it would leave the data folder.
pub fn refuse_link(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => Err(Error::Broken(format!(
            "{} is a symbolic link, and links inside the data folder are not followed: put what it points to in its place",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Locks a data folder until the returned file is closed. Only one server may run on a data folder: two would not know of
/// each other's sessions.
pub fn lock_data_folder(base: &Path) -> Result<File> {
    let path = base.join(LOCK_FILE);
    refuse_link(&path)?;
    // Not truncated before it is locked: it contains the process id of the server that holds the lock.
    let open =
        OpenOptions::new().write(true).create(true).truncate(false).custom_flags(os::NO_FOLLOW).open(&path);
    let mut file = open.map_err(|err| match err.kind() {
        io::ErrorKind::PermissionDenied => Error::Broken(format!(
            "the data folder {dir} cannot be written to: give it to the user that ankipi runs as \
             (`chown -R USER {dir}`), or use another with --base DIR",
            dir = base.display()
        )),
        io::ErrorKind::ReadOnlyFilesystem => Error::Broken(format!(
            "the data folder {} is on a disk that is mounted read-only: remount it (`mount -o remount,rw`), or use \
             another with --base DIR",
            base.display()
        )),
        _ => Error::Io("creating", path.clone(), err),
    })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::Broken(format!(
                "another ankipi is running on {}: stop it first, or use another folder with --base DIR",
                base.display()
            )));
        }
        Err(TryLockError::Error(err)) => return Err(Error::Io("locking", path, err)),
    }
    let sign = |file: &mut File| {
        give_to_owner_of(base, file)?;
        file.set_len(0)?;
        write!(file, "{}", std::process::id())
    };
    sign(&mut file).map_err(Error::io("writing", &path))?;
    Ok(file)
}

/// The process id of the server that runs on the data folder, if one does. It may be an id of another container.
pub fn holder(base: &Path) -> Option<u32> {
    is_in_use(base).then(|| fs::read_to_string(base.join(LOCK_FILE)).ok()?.parse().ok()).flatten()
}

/// Whether a server runs on a data folder.
pub fn is_in_use(base: &Path) -> bool {
    File::open(base.join(LOCK_FILE))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Shared lock on a user's folder: while it is held, the server does not replace files in it. For a process other than the
/// server that opens one: if the file were replaced after SQLite opened it, SQLite would use the journal of the new file
/// for the old one. `None` if the file system has no locks.
pub fn keep_in_place(dir: &Path) -> Option<File> {
    let folder = File::open(dir).ok()?;
    folder.lock_shared().ok().map(|()| folder)
}

/// Exclusive lock on a user's folder, to replace files in it: waits until all locks of `keep_in_place` are released. `None`
/// after `timeout` (the process that holds one must be suspended), and if the file system has no locks.
pub fn wait_to_replace(dir: &Path, timeout: Duration) -> Option<File> {
    let folder = File::open(dir).ok()?;
    let started = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(TryLockError::WouldBlock) if started.elapsed() < timeout => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(err) => {
                log::warn!(
                    "{}: no lock on the folder, replacing its files while another program may be opening them: {err}",
                    dir.display()
                );
                return None;
            }
        }
    }
}

/// Makes renames, links and deletions in this folder durable.
pub fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("syncing", dir))
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

/// Deletes a file; not an error if it does not exist.
pub fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(Error::Io("deleting", path.to_owned(), err)),
        _ => Ok(()),
    }
}

/// A new file that is synced after every `SYNC_EVERY_BYTES`.
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

    /// Overwrites bytes that were written before.
    pub fn patch(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(data, at)
    }

    /// Returns the file. What was written since the last sync is not synced yet.
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
