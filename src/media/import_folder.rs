//! Imports the media of another server: copies the files and records each as new to all clients.
//!
//! Usns continue after those of the other server. Clients that were in sync with it request all changes since then, and
//! find that they have them already.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::error::{Error, Result};
use crate::files::{FsyncingFile, create_folder, remove_if_there};
use crate::limits_and_timeouts::MEDIA_FILE_BYTES;
use crate::media::file_paths::FilePaths;
use crate::media::index::MediaDb;
use crate::media::name::MediaName;
use crate::media::{BLOCK_BYTES, FOLDER, STAGED_PREFIX, Totals, file_sha1};

/// The result of an import.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ImportedMedia {
    /// Files that were copied.
    pub files: u64,
    /// Files left out, because no client accepts their name or length.
    pub unusable: u64,
    /// Files left out, because they cannot be read.
    pub unreadable: u64,
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
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            Err(err) => {
                taken.leave_out(&entry.path(), &err);
                continue;
            }
        };
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
        if let Err(err) = copy_file(&entry.path(), &staged)? {
            taken.leave_out(&entry.path(), &err);
            continue;
        }
        let is_taken = paths.ignores_case() && fs::symlink_metadata(name.path_in(&folder)).is_ok();
        paths.put(&staged, &name, is_taken)?;
        if let Some(record) = file_sha1(&paths.path_of(&name))? {
            recording.put(&name, &record)?;
            taken.files += 1;
        }
    }
    paths.sync_renames()?;
    recording.commit()?;
    Ok(taken)
}

impl ImportedMedia {
    fn leave_out(&mut self, path: &Path, err: &io::Error) {
        log::error!("{} is left out: it cannot be read: {err}", path.display());
        self.unreadable += 1;
    }
}

/// Copies a file. The inner result says whether it can be read.
fn copy_file(from: &Path, to: &Path) -> Result<io::Result<()>> {
    let mut source = match File::open(from) {
        Ok(source) => source,
        Err(err) => return Ok(Err(err)),
    };
    let mut copy = FsyncingFile::create(to)?;
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match source.read(&mut block) {
            Ok(0) => break,
            Ok(count) => copy.write_all(&block[..count]).map_err(Error::io("copying to", to))?,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return remove_if_there(to).map(|()| Err(err)),
        }
    }
    copy.into_file().sync_all().map_err(Error::io("copying to", to)).map(Ok)
}
