//! The path of the file of a media name.
//!
//! Normally the file is in `media/` under its own name, as on the official server. Two kinds of names cannot be there:
//!
//! - The file system rejects the name. FAT has no emoji, eCryptfs has no names of more than 143 bytes.
//! - The file system ignores case, and another media file has the name already. On FAT, `A.jpg` is the file `a.jpg`.
//!
//! Such a file is stored in `media.odd/`. Its name there is the SHA-1 of the media name, which every file system can hold.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::files;
use crate::files::damaged::{is_about_name, put_aside};
use crate::media::FOLDER;
use crate::media::index::MediaDb;
use crate::media::name::MediaName;
use crate::text::hex::hex;

/// The folder of the files that `media/` cannot hold, in the user's folder.
const ODD_FOLDER: &str = "media.odd";

/// Names read from the index at a time.
const NAMES_AT_ONCE: u32 = 500;

/// Finds the files of one user.
pub struct FilePaths {
    dir: PathBuf,
    /// Whether the file system ignores case in names.
    ignores_case: bool,
    /// Whether `media.odd/` exists. Without it no path in it is looked up.
    has_odd: AtomicBool,
}

impl FilePaths {
    /// Looks at the folder again, because another one may have taken its place.
    pub fn recheck_folder(&self) {
        self.has_odd.store(self.dir.join(ODD_FOLDER).is_dir(), Ordering::Relaxed);
    }

    /// The paths in a user's folder.
    pub fn new(dir: &Path) -> FilePaths {
        FilePaths {
            // `media` found by another spelling. Nobody makes a folder of this name.
            ignores_case: fs::symlink_metadata(dir.join(FOLDER.to_ascii_uppercase())).is_ok(),
            has_odd: AtomicBool::new(dir.join(ODD_FOLDER).is_dir()),
            dir: dir.to_owned(),
        }
    }

    /// Whether two names may be one file.
    pub fn ignores_case(&self) -> bool {
        self.ignores_case
    }

    /// `media/`.
    pub fn folder(&self) -> PathBuf {
        self.dir.join(FOLDER)
    }

    /// Where the file of this name is, or where it would be.
    pub fn path_of(&self, name: &MediaName) -> PathBuf {
        if self.has_odd.load(Ordering::Relaxed) {
            let odd = self.odd_path(name);
            if fs::symlink_metadata(&odd).is_ok() {
                return odd;
            }
        }
        name.path_in(&self.folder())
    }

    /// Whether `path_of` this name leads to the file of another name, as the file system ignores case.
    pub fn is_of_twin(&self, name: &MediaName, db: &MediaDb) -> Result<bool> {
        let is_in_folder = |name: &MediaName| self.path_of(name) == name.path_in(&self.folder());
        Ok(self.ignores_case && is_in_folder(name) && db.has_twin_that(name, is_in_folder)?)
    }

    /// Whether there is a file of this name and length.
    pub fn has_file(&self, name: &MediaName, bytes: u64) -> bool {
        fs::symlink_metadata(self.path_of(name)).is_ok_and(|meta| meta.is_file() && meta.len() == bytes)
    }

    fn odd_path(&self, name: &MediaName) -> PathBuf {
        self.dir.join(ODD_FOLDER).join(hex(&Sha1::digest(name.as_str())))
    }

    /// The files that `media/` cannot hold, with their names.
    pub fn odd_files(&self) -> Result<Vec<(MediaName, PathBuf)>> {
        let mut found = Vec::new();
        if !self.has_odd.load(Ordering::Relaxed) {
            return Ok(found);
        }
        let index = MediaDb::open_to_read(&self.dir)?;
        let mut last = String::new();
        loop {
            let names = index.live_names_after(&last, NAMES_AT_ONCE)?;
            let Some(newest) = names.last() else {
                return Ok(found);
            };
            last.clone_from(newest);
            for name in names.into_iter().filter_map(|name| MediaName::parse(name).ok()) {
                let path = self.odd_path(&name);
                if path.is_file() {
                    found.push((name, path));
                }
            }
        }
    }

    /// Renames a file to its place. `is_taken` says that another media file has the path of this name.
    pub fn put(&self, staged: &Path, name: &MediaName, is_taken: bool) -> Result<()> {
        let plain = name.path_in(&self.folder());
        let path = self.path_of(name);
        let refusal = if is_taken && path == plain {
            io::Error::other("another file has that name there, as this disk ignores case")
        } else {
            // A folder of this name would be in the way for ever.
            if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
                put_aside(&self.dir, &path, name.as_str());
            }
            match fs::rename(staged, &path) {
                Ok(()) => return Ok(()),
                Err(err) if is_about_name(&err) => err,
                Err(err) => return Err(Error::Io("renaming", staged.to_owned(), err)),
            }
        };
        files::create_folder(&self.dir.join(ODD_FOLDER))?;
        self.has_odd.store(true, Ordering::Relaxed);
        let odd = self.odd_path(name);
        fs::rename(staged, &odd).map_err(Error::io("renaming", staged))?;
        log::warn!(
            "media/ cannot hold the name {:?} ({refusal}): the file is {}",
            name.as_str(),
            odd.display()
        );
        Ok(())
    }

    /// Makes renames into these folders durable, and then that the files have no other name: without a journal, a file system
    /// may keep one without the other.
    pub fn sync_renames(&self) -> Result<()> {
        self.sync()?;
        files::sync_folder(&self.dir)
    }

    /// Makes new names and deletions in these folders durable.
    pub fn sync(&self) -> Result<()> {
        files::sync_folder(&self.folder())?;
        if self.has_odd.load(Ordering::Relaxed) {
            files::sync_folder(&self.dir.join(ODD_FOLDER))?;
        }
        Ok(())
    }
}
