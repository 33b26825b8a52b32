//! The command line: arguments in, `Command` out.

use crate::config::Flags;
use crate::error::{Error, Result};

/// What `ankipi --help` prints.
pub const HELP: &str = "\
ankipi - a small self-hosted sync server for Anki

Usage:
  SYNC_USER1=name:password ankipi [--base DIR] [--host ADDRESS] [--port PORT]

Options:
  --base DIR        the data folder             (SYNC_BASE, ~/.syncserver)
  --host ADDRESS    the address to listen on    (SYNC_HOST, 0.0.0.0; :: for IPv6)
  --port PORT       the port                    (SYNC_PORT, 8080)
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
    /// Print `HELP`.
    Help,
    /// Print the version.
    Version,
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
    match args.finish().first() {
        None => Ok(Command::Serve(flags)),
        Some(extra) => Err(Error::Broken(format!(
            "{} is not an option of ankipi; see ankipi --help",
            extra.to_string_lossy()
        ))),
    }
}

fn usage(err: pico_args::Error) -> Error {
    Error::Broken(format!("{err}; see ankipi --help"))
}
