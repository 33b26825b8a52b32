//! Moves damaged files out of the way, and keeps them for the owner.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::error::Error;
use crate::files::durable::{create_folder, sync_folder};
use crate::files::sqlite_files::SIDE_SUFFIXES;

/// The folder of damaged files, in the user's folder.
pub const DAMAGED_FOLDER: &str = "damaged";

/// Moves a damaged file or folder to `damaged/`, and keeps it for the owner. One of each name is kept. A failure is
/// logged.
pub fn put_aside(dir: &Path, path: &Path, name: &str) {
    let damaged = dir.join(DAMAGED_FOLDER);
    let moved = create_folder(&damaged).and_then(|()| {
        let mut to = damaged.join(name);
        if fs::symlink_metadata(&to).is_ok_and(|there| there.is_dir() || path.is_dir()) {
            let taken = |number: &u32| fs::symlink_metadata(damaged.join(format!("{number}-{name}"))).is_ok();
            let free = (1..).find(|number| !taken(number)).unwrap_or_default();
            to = damaged.join(format!("{free}-{name}"));
        }
        match fs::rename(path, &to) {
            Err(err) if is_about_name(&err) => {
                fs::rename(path, damaged.join(path.file_name().unwrap_or_default()))
            }
            moved => moved,
        }
        .map_err(Error::io("putting aside", path))?;
        // Before what takes its place is durable: a file system without a journal could keep that, and lose this.
        sync_folder(&damaged)
    });
    if let Err(err) = moved {
        log::error!("{err}");
    }
}

/// Moves folders out of the way that have the names of journals of this SQLite file. Returns whether there were any.
pub fn put_folders_aside(dir: &Path, name: &str) -> bool {
    let mut found = false;
    for suffix in SIDE_SUFFIXES {
        let name = format!("{name}{suffix}");
        let path = dir.join(&name);
        if path.is_dir() {
            log::error!("{} is a folder: it is put aside in {DAMAGED_FOLDER}/", path.display());
            put_aside(dir, &path, &name);
            found = true;
        }
    }
    found
}

/// Whether a file system said that it cannot hold the name.
pub fn is_about_name(err: &io::Error) -> bool {
    matches!(err.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidFilename)
        || [libc::EILSEQ, libc::EPERM].map(Some).contains(&err.raw_os_error())
}
