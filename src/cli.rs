//! The command line: arguments in, `Command` out.

use std::path::PathBuf;

use crate::config::Flags;
use crate::error::{Error, Result};
use crate::media::check::Depth;

/// What `ankipi --help` prints.
pub const HELP: &str = "\
ankipi - a small self-hosted sync server for Anki

Usage:
  SYNC_USER1=name:password ankipi [--base DIR] [--host ADDRESS] [--port PORT]
  ankipi check [USER] [--deep] [--fix] [--base DIR]
      looks at what is stored, says what is wrong, and ends with 1 if anything is

Options:
  --base DIR        the data folder             (SYNC_BASE, ~/.syncserver)
  --host ADDRESS    the address to listen on    (SYNC_HOST, 0.0.0.0; :: for IPv6)
  --port PORT       the port                    (SYNC_PORT, 8080)
  --deep            check: read every media file and compare its checksum
  --fix             check: mend the media in a way that all devices will see;
                    stop the server first
  -h, --help        this text
  -V, --version     the version

Environment:
  SYNC_USER1=name:password   an account; SYNC_USER2 and so on are more
  PASSWORDS_HASHED=1         passwords are PBKDF2 strings ($pbkdf2-sha256$...)
  MAX_SYNC_PAYLOAD_MEGS=100  largest upload in MiB; three times that unpacked
  MAX_SYNC_ROW_MEGS=8        largest single note, notetype or deck in MiB
  SYNC_BASE_PATH=/anki       a path in front of everything, for proxies
  SYNC_SESSION_SECS=300      a silent sync is given up after so long
  SYNC_BACKUPS=3             replaced collections kept for each user
  SYNC_IP_HEADER=x-real-ip   where a proxy tells the client's address (log)
  SYNC_LOG=info              error, warn, info, debug or trace

In Anki, Preferences > Syncing > Self-hosted sync server: http://THIS-HOST:8080/
The variables are those of Anki's own sync server, and so is the data folder.
";

/// What the user asked for.
#[derive(Debug)]
pub enum Command {
    /// Run the server.
    Serve(Flags),
    /// Look at what is stored.
    Check(CheckOptions),
    /// Print `HELP`.
    Help,
    /// Print the version.
    Version,
}

/// What to check.
#[derive(Debug)]
pub struct CheckOptions {
    /// `--base`
    pub base: Option<PathBuf>,
    /// The one user; otherwise all.
    pub user: Option<String>,
    /// `--deep`, `--fix`
    pub depth: Depth,
}

/// Reads the command line.
pub fn parse(mut args: pico_args::Arguments) -> Result<Command> {
    if args.contains(["-h", "--help"]) {
        return Ok(Command::Help);
    }
    if args.contains(["-V", "--version"]) {
        return Ok(Command::Version);
    }
    let flags = Flags {
        base: args
            .opt_value_from_os_str("--base", |dir| Ok::<_, pico_args::Error>(dir.into()))
            .map_err(usage)?,
        host: args.opt_value_from_str("--host").map_err(usage)?,
        port: args.opt_value_from_str("--port").map_err(usage)?,
    };
    let depth = Depth { deep: args.contains("--deep"), fix: args.contains("--fix") };
    let words: Vec<String> =
        args.finish().into_iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let check =
        |user: Option<&str>| CheckOptions { base: flags.base.clone(), user: user.map(str::to_owned), depth };
    match words[..] {
        [] if !depth.deep && !depth.fix => Ok(Command::Serve(flags)),
        [] => Err(not_an_option("--deep or --fix without check")),
        ["check"] => Ok(Command::Check(check(None))),
        ["check", user] if !user.starts_with('-') => Ok(Command::Check(check(Some(user)))),
        ["check", .., extra] | [extra, ..] => Err(not_an_option(extra)),
    }
}

fn not_an_option(what: &str) -> Error {
    Error::Broken(format!("{what} is not an option of ankipi; see ankipi --help"))
}

fn usage(err: pico_args::Error) -> Error {
    Error::Broken(format!("{err}; see ankipi --help"))
}
