//! `ankipi export`: a user's collection and media as a package that Anki imports.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::command::{Command, Invocation, say};
use crate::cli::commands::user_folders::{folder_of, lock_if_unused, open_to_copy, size};
use crate::cli::progress::Progress;
use crate::collection::FILE_NAME;
use crate::error::{Error, Result};
use crate::import_export::write_colpkg;
use crate::media;
use crate::media::file_paths::FilePaths;

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
    let lock = lock_if_unused(&base)?;
    let mut progress = Progress::start();
    let snapshot = open_to_copy(&dir, lock.is_some(), &mut progress)?;
    let odd = FilePaths::new(&dir).odd_files()?;
    progress.show_at_once("packing the collection");
    let packed = write_colpkg::write(&snapshot, &dir.join(media::FOLDER), &odd, file, &mut |files| {
        progress.show(&format!("{files} media files packed"));
    });
    progress.clear();
    let packed = packed?;
    say(&format!("{}: {} with {} media files\n", file.display(), size(packed.bytes), packed.files));
    Ok(ExitCode::SUCCESS)
}
