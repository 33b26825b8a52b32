//! Gives files that root makes to the server's user, and refuses symbolic links.

use crate::error::{Error, Result};
use crate::os;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

/// Creates or truncates a file in `dir` and gives it to the owner of the folder: root may run `ankipi user add` for a
/// server that is not root. A symbolic link in its place is an error: its target must not be overwritten.
pub fn create_for_owner(dir: &Path, path: &Path) -> io::Result<File> {
    let mut create = OpenOptions::new();
    create.write(true).create(true).truncate(true).custom_flags(os::NO_FOLLOW);
    let file = create.open(path)?;
    give_to_owner_of(dir, &file)?;
    Ok(file)
}

pub(crate) fn give_to_owner_of(dir: &Path, file: &File) -> io::Result<()> {
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
pub fn give_tree_to_owner(dir: &Path, tree: &Path) -> Result<()> {
    let give = |path: &Path| File::open(path).and_then(|file| give_to_owner_of(dir, &file));
    give(tree).map_err(Error::io("giving away", tree))?;
    for entry in fs::read_dir(tree).map_err(Error::io("reading", tree))? {
        let entry = entry.map_err(Error::io("reading", tree))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io("reading", tree))?);
        if kind.is_dir() {
            give_tree_to_owner(dir, &path)?;
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
