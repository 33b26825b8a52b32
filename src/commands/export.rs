//! `ankipi export`: a user's collection and media as a package that Anki imports.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use super::data::{folder_of, is_syncing, size, wait_for_sync};
use super::progress::Progress;
use crate::cli::{Command, Invocation, say};
use crate::collection::download::Snapshot;
use crate::collection::{Collection, FILE_NAME};
use crate::error::{Error, Result};
use crate::{colpkg, fsutil, media};

/// `ankipi export`
pub static EXPORT: Command = Command {
    name: "export",
    arguments: "USER FILE.colpkg",
    summary: "write collection and media into a package for Anki",
    help: "\
Writes everything of a user into one file, which Anki imports (File > Import) in
place of its whole collection: a backup to take away. The server may run; if a
device syncs, the export waits until it is done.

Example:
  ankipi export anna /media/stick/anna.colpkg
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    let words = invocation.words(2, 2)?;
    let (name, file) = (&words[0], Path::new(&words[1]));
    if file.extension().is_none_or(|extension| extension != "colpkg") {
        return Err(Error::Usage(format!("the name {:?} must end in .colpkg, or Anki refuses it", words[1])));
    }
    let base = invocation.base()?;
    let dir = folder_of(&base, name)?;
    let collection = dir.join(FILE_NAME);
    if !collection.exists() {
        return Err(Error::Broken(format!("{name} has no collection yet")));
    }
    // No server starts meanwhile, unless one runs already.
    let lock = match fsutil::is_in_use(&base) {
        true => None,
        false => Some(fsutil::lock_data_folder(&base)?),
    };
    let mut progress = Progress::start();
    let snapshot = match &lock {
        Some(_) => {
            Collection::fold(&collection);
            Snapshot::open(&collection)?
        }
        None => open_between_syncs(&base, &dir, &mut progress)?,
    };
    progress.show_at_once("packing the collection");
    let packed = colpkg::write(&snapshot, &dir.join(media::FOLDER), file, &mut |files| {
        progress.show(&format!("{files} media files packed"));
    });
    progress.clear();
    let packed = packed?;
    say(&format!("{}: {} with {} media files\n", file.display(), size(packed.bytes), packed.files));
    Ok(ExitCode::SUCCESS)
}

/// Opens the collection when no device is in the middle of a sync; anew, if an upload took its place in that very moment.
fn open_between_syncs(base: &Path, dir: &Path, progress: &mut Progress) -> Result<Snapshot> {
    let path = dir.join(FILE_NAME);
    let place = || fs::metadata(&path).map(|meta| meta.ino()).ok();
    loop {
        wait_for_sync(base, dir, progress)?;
        let before = place();
        let snapshot = match Snapshot::open_beside_syncs(&path) {
            Ok(snapshot) => snapshot,
            // The next one has begun.
            Err(Error::Busy(_)) if is_syncing(base, dir) => continue,
            Err(err) => return Err(err),
        };
        if place() == before {
            return Ok(snapshot);
        }
    }
}
