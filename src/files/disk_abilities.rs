//! What the disk of the data folder can do. Network shares, FUSE file systems and the disks of other systems lack some
//! of what a Linux disk has. This is tested at the start, worked around where possible, and reported once in the log
//! and in `ankipi status` (docs/disks-and-proxies.md).
//!
//! The two abilities that decide how files are written are kept for the whole process: all data is on one disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::files::spool::unused_path;
use crate::os;

/// Set when the disk refused to sync a folder because it has no such operation.
static CANNOT_SYNC_FOLDERS: AtomicBool = AtomicBool::new(false);

static SHARED_MEMORY: OnceLock<bool> = OnceLock::new();

/// Syncs a folder. If the disk has no such operation, that is not an error: it is remembered, and `synchronous` is
/// lowered, too.
pub fn sync_open_folder(folder: &File) -> io::Result<()> {
    match folder.sync_all() {
        Err(err) if os::is_unsupported(&err) => {
            CANNOT_SYNC_FOLDERS.store(true, Ordering::Relaxed);
            Ok(())
        }
        synced => synced,
    }
}

/// The value of `PRAGMA synchronous` with which a commit is durable. EXTRA is FULL, and syncs the folder after the rollback
/// journal was deleted; where folders cannot be synced, SQLite would fail each commit.
pub fn synchronous() -> &'static str {
    if CANNOT_SYNC_FOLDERS.load(Ordering::Relaxed) { "FULL" } else { "EXTRA" }
}

/// Whether files of this folder can be mapped into memory, shared and writable, as SQLite needs it for the index of a WAL.
pub fn has_shared_memory(dir: &Path) -> bool {
    *SHARED_MEMORY.get_or_init(|| {
        let path = unused_path(dir);
        let probe = || {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            file.set_len(4096)?;
            Ok::<_, io::Error>(os::can_be_shared_memory(&file))
        };
        let answer = probe();
        let _ = fs::remove_file(&path);
        // If nothing can be written here, another check reports it.
        answer.unwrap_or(true)
    })
}

/// What the disk of this folder cannot do, and what follows: one sentence each. Writes a few small files and deletes them.
///
/// Errors: if nothing can be written.
pub fn shortcomings(base: &Path) -> io::Result<Vec<&'static str>> {
    let dir = unused_path(base);
    fs::create_dir(&dir)?;
    let found = probe(base, &dir);
    fs::remove_dir_all(&dir)?;
    found
}

fn probe(base: &Path, dir: &Path) -> io::Result<Vec<&'static str>> {
    let mut found = Vec::new();
    sync_open_folder(&File::open(base)?)?;
    if CANNOT_SYNC_FOLDERS.load(Ordering::Relaxed) {
        found.push("it cannot sync folders: a power cut may undo what was acknowledged in the last seconds");
    }
    if !has_shared_memory(base) {
        found.push("it has no shared memory for files: syncs write more, and each full download first copies the collection");
    }
    let file = File::create(dir.join("a"))?;
    if file.try_lock().is_err() {
        found.push(
            "it has no file locks: a second ankipi is noticed on this machine only, and commands beside the running \
             server are less safe",
        );
    }
    if dir.join("A").exists() {
        found.push("it does not tell a.jpg from A.jpg: of two such media files only one can be stored");
    }
    let can_hold = |name: &str| File::create(dir.join(name)).is_ok();
    if !can_hold("a:b?\"*|<>") || !can_hold(&"\u{e9}".repeat(120)) || !can_hold("\u{1f600}") {
        found.push("it cannot hold every name: media files with other names than it allows are not stored");
    }
    let is_private = |mode| -> io::Result<bool> {
        fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(mode))?;
        Ok(fs::metadata(dir.join("a"))?.permissions().mode() & 0o777 == mode)
    };
    if !is_private(0o600).unwrap_or(false) || !is_private(0o640).unwrap_or(false) {
        found.push("it has no file modes: every user of this machine may be able to read the collections");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_of_linux_lacks_nothing_and_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(shortcomings(dir.path()).unwrap(), Vec::<&str>::new());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(shortcomings(&dir.path().join("missing")).is_err());
    }
}
