//! `ankipi export`: a user's collection and media as a package that Anki imports.

use std::path::Path;
use std::process::ExitCode;

use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::commands::packing::pack;
use crate::cli::commands::user_folders::{folder_of, lock_if_unused, open_to_copy, size};
use crate::cli::progress::Progress;
use crate::collection::FILE_NAME;
use crate::error::{Error, Result};
use crate::text::counted::counted;

/// `ankipi export`
pub static EXPORT: Command = Command {
    name: "export",
    arguments: "USER FILE.colpkg",
    summary: "write collection and media into a package for Anki",
    help: "\
Writes everything of a user into one file, which Anki imports (File > Import) in
place of its whole collection: a backup to take away. The server may run; if a
device syncs, the export waits until it is done. Media files that cannot be read
are named and left out; then the command ends with 1.

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
    progress.show_at_once("packing the collection");
    let packed = pack(&snapshot, &base, name, file, &mut progress)?;
    let files = counted(packed.files, "media file");
    say(&format!("{}: {} with {files}\n", file.display(), size(packed.bytes)));
    if packed.left_out == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "ankipi: the package lacks {}, because they could not be read",
        counted(packed.left_out, "media file")
    );
    Ok(ExitCode::from(FAILED))
}
