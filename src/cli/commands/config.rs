//! `ankipi config`: prints the settings and the origin of each.

use std::process::ExitCode;

use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::config::{Flags, Origin};
use crate::error::Result;

/// `ankipi config`
pub static CONFIG: Command = Command {
    name: "config",
    arguments: "",
    summary: "print all settings and where each comes from",
    help: "\
Prints the settings as the server would take them, from this environment and
the config file, in the form of a config file: above each that is set its
origin, and as comments those that are not, with their defaults. Passwords are
masked. Ends with 1 if any setting is wrong, and says which.

The environment of a service is not that of your terminal. Settings that its
unit or init script sets itself are not seen here.
",
    run,
};

/// A value with the quotes that a config file needs, which shells read, too.
fn as_in_file(value: &str) -> String {
    if value.contains(|c: char| c.is_whitespace() || "'\"\\$`#;&|<>()".contains(c)) {
        format!("'{}'", value.replace('\'', "'\\''"))
    } else {
        value.to_owned()
    }
}

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    invocation.words(0, 0)?;
    let settings = invocation.server_settings(Flags::new())?;
    for (key, value, origin) in settings.listing() {
        match origin {
            Origin::Default => say(&format!("#{key}={}\n", as_in_file(&value))),
            origin => say(&format!("# {origin}\n{key}={}\n", as_in_file(&value))),
        }
    }
    let faults = settings.faults();
    for fault in &faults {
        eprintln!("ankipi: {fault}");
    }
    Ok(ExitCode::from(if faults.is_empty() { 0 } else { FAILED }))
}
