//! Imports the media of another server: copies the files and records each as new to all clients.
//!
//! Usns continue after those of the other server. Clients that were in sync with it request all changes since then, and
//! find that they have them already.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::{FsyncingFile, create_folder};
use crate::limits_and_timeouts::MEDIA_FILE_BYTES;
use crate::media::file_paths::FilePaths;
use crate::media::index::MediaDb;
use crate::media::name::MediaName;
use crate::media::{FOLDER, STAGED_PREFIX, Totals, file_sha1};

/// The result of an import.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ImportedMedia {
    /// Files that were copied.
    pub files: u64,
    /// Files left out, because no client accepts their name or length.
    pub unusable: u64,
}

/// Copies the files of `from`, which may be missing, into a user's folder that has no media yet.
pub fn import(dir: &Path, from: &Path, last_usn: i32) -> Result<ImportedMedia> {
    let folder = dir.join(FOLDER);
    create_folder(&folder)?;
    let (paths, staged) = (FilePaths::new(dir), dir.join(format!("{STAGED_PREFIX}import")));
    let db = MediaDb::open(dir)?;
    let mut recording = db.begin()?;
    recording.recount(Totals { last_usn, bytes: 0, files: 0 });
    let mut taken = ImportedMedia::default();
    let entries = match fs::read_dir(from) {
        Ok(entries) => Some(entries),
        Err(err) if err.kind() == io::ErrorKind::NotFound => None,
        Err(err) => return Err(Error::Io("reading", from.to_owned(), err)),
    };
    for entry in entries.into_iter().flatten() {
        let entry = entry.map_err(Error::io("reading", from))?;
        let meta = entry.metadata().map_err(Error::io("looking at", &entry.path()))?;
        // Clients treat an empty file as missing.
        if !meta.is_file() || meta.len() == 0 {
            continue;
        }
        let name = entry.file_name().into_string().ok().and_then(|name| MediaName::parse(name).ok());
        let Some(name) = name.filter(|_| meta.len() <= MEDIA_FILE_BYTES) else {
            log::warn!("{} is left out: no client takes that name or length", entry.path().display());
            taken.unusable += 1;
            continue;
        };
        copy_file(&entry.path(), &staged)?;
        let is_taken = paths.ignores_case() && fs::symlink_metadata(name.path_in(&folder)).is_ok();
        paths.put(&staged, &name, is_taken)?;
        if let Some(record) = file_sha1(&paths.path_of(&name))? {
            recording.put(&name, &record)?;
            taken.files += 1;
        }
    }
    paths.sync()?;
    recording.commit()?;
    Ok(taken)
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(Error::io("opening", from))?;
    let mut copy = FsyncingFile::create(to)?;
    io::copy(&mut source, &mut copy)
        .and_then(|_| copy.into_file().sync_all())
        .map_err(Error::io("copying to", to))
}
