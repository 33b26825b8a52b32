//! Files that survive a power cut: every rename is of a synced file and is followed by a sync of the folder.

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

/// A large file is written to the disk in steps of this size, so that a small board never owes the card more than that:
/// one sync of 300 MB at the end can take longer than clients wait.
const SYNC_EVERY_BYTES: u64 = 16 * 1024 * 1024;

/// Held by the server that runs on a data folder.
const LOCK_FILE: &str = ".ankipi.lock";

/// Creates the folder and those above it where they are missing, durably, for the owner's eyes only (the process's umask
/// sees to the mode).
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
        // Unless somebody else made the folder just now.
        Err(err) if !dir.is_dir() => Err(err),
        _ => File::open(dir).and_then(|made| give_to_owner_of(parent, &made)),
    }
    .map_err(Error::io("creating", dir))?;
    // Else a power cut takes the folder with all that is acknowledged in it.
    sync_folder(parent)
}

/// Creates or truncates a file in `dir` that the owner of the folder can use, too: root runs `ankipi user add` for a
/// server that is not root. A link in its place is an error: what it leads to is none of ours.
pub fn create_for_owner(dir: &Path, path: &Path) -> io::Result<File> {
    let mut create = OpenOptions::new();
    create.write(true).create(true).truncate(true).custom_flags(os::NO_FOLLOW);
    let file = create.open(path)?;
    give_to_owner_of(dir, &file)?;
    Ok(file)
}

fn give_to_owner_of(dir: &Path, file: &File) -> io::Result<()> {
    let (owner, is) = (fs::metadata(dir)?, file.metadata()?);
    match owner.uid() == is.uid() {
        true => Ok(()),
        // Who is not root cannot, and need not: the file is as good as any other that they make.
        false => match fchown(file, Some(owner.uid()), Some(owner.gid())) {
            Err(err) if err.kind() != io::ErrorKind::PermissionDenied => Err(err),
            _ => Ok(()),
        },
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
    // Not truncated before it is ours: it tells the number of the process that holds it.
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

/// The number of the process that holds the data folder, if one does; it may be one of another container.
pub fn holder(base: &Path) -> Option<u32> {
    is_in_use(base).then(|| fs::read_to_string(base.join(LOCK_FILE)).ok()?.parse().ok()).flatten()
}

/// Whether a server runs on a data folder.
pub fn is_in_use(base: &Path) -> bool {
    File::open(base.join(LOCK_FILE))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Keeps files in a user's folder from being replaced while another program than the server opens one: SQLite takes the
/// journal beside a path for that of the file which it opened there before. Held until it is dropped. None where the
/// file system has no locks.
pub fn keep_in_place(dir: &Path) -> Option<File> {
    let folder = File::open(dir).ok()?;
    folder.lock_shared().ok().map(|()| folder)
}

/// Waits until nobody keeps what is in the folder in place; nobody does until what this returns is dropped. None after
/// `patience`, when whoever keeps it must have been stopped, and where the file system has no locks.
pub fn wait_to_replace(dir: &Path, patience: Duration) -> Option<File> {
    let folder = File::open(dir).ok()?;
    let started = Instant::now();
    loop {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(TryLockError::WouldBlock) if started.elapsed() < patience => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(err) => {
                log::warn!("{}: replacing what another program may be opening: {err}", dir.display());
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
    // One that a crash left, or a link that would be followed.
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

    /// Writes over what is there already.
    pub fn patch(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(data, at)
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
