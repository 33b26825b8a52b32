//! `ankipi init`: makes a folder the data folder.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::command::{Command, Invocation, say};
use crate::error::Result;
use crate::files::data_folder;

/// `ankipi init`
pub static INIT: Command = Command {
    name: "init",
    arguments: "[DIR]",
    summary: "make a folder the data folder",
    help: "\
Makes DIR (otherwise SYNC_BASE, --base) the data folder: creates it, and marks
it with the file `.ankipi`. Needed once, before the first start, where the
setting SYNC_REQUIRE_DATA is on, as in the services of the packages: these never
begin an empty folder by themselves, because a disk might only not be mounted.
`ankipi user add` marks the folder, too, and so does a start without that
setting.

Example:
  ankipi init /mnt/stick/ankipi
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    let base = match invocation.words(0, 1)?.pop() {
        Some(dir) => PathBuf::from(dir),
        None => invocation.base()?,
    };
    let is_new = data_folder::init(&base)?;
    let what = if is_new {
        "is a new data folder now"
    } else {
        "is a data folder already; its data stay as they are"
    };
    say(&format!("{} {what}\n", base.display()));
    Ok(ExitCode::SUCCESS)
}
