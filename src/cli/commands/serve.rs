//! `ankipi serve`: runs the server.

use std::process::ExitCode;

use crate::cli::command::{Command, Invocation};
use crate::cli::commands::healthcheck;
use crate::config::{Flags, SETTINGS};
use crate::error::Result;
use crate::{logging, server};

/// `ankipi serve`
pub static SERVE: Command = Command {
    name: "serve",
    arguments: "[--host ADDRESS] [--port PORT] [--healthcheck]",
    summary: "run the server (also without a command)",
    help: "\
Runs until it is stopped. Accounts come from `ankipi user add`, or from the
settings: SYNC_USER1=name:password, SYNC_USER2 and so on, or
SYNC_USER1_FILE=PATH with a file that holds name:password.

Settings are variables of the environment or lines of the config file; those of
Anki's own sync server mean the same here.

{settings}
`ankipi config` prints what they are set to.

  --healthcheck  run nothing: ask the server with these settings whether
                 it is well, and end with 0 or 1 (for containers)
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    let is_check = invocation.has("--healthcheck");
    let mut flags = Flags::new();
    for setting in SETTINGS.iter().filter(|setting| setting.key != "SYNC_BASE") {
        if let Some(option) = setting.flag.split(' ').next().filter(|option| !option.is_empty()) {
            flags.extend(invocation.option(option)?.map(|value| (setting.key, value)));
        }
    }
    invocation.words(0, 0)?;
    let config = invocation.server_settings(flags.clone())?.config()?;
    if is_check {
        return healthcheck::run(&config);
    }
    logging::start(config.log_level, config.log_split);
    server::run(config, move || invocation.server_settings(flags.clone())?.config())?;
    Ok(ExitCode::SUCCESS)
}
