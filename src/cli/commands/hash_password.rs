//! `ankipi hash-password`, and what is shared by all commands that take a new password.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::accounts::password;
use crate::accounts::password::Hash;
use crate::cli::command::{Command, Invocation, say};
use crate::cli::prompt;
use crate::config::Flags;
use crate::error::{Error, Result};

/// `ankipi hash-password`
pub static HASH_PASSWORD: Command = Command {
    name: "hash-password",
    arguments: "[--password-file FILE] [--rounds N | --calibrate]",
    summary: "turn a password into a string for PASSWORDS_HASHED",
    help: "\
Asks for a password, or reads it from standard input, and prints its hash. With
PASSWORDS_HASHED=1, that goes behind the name instead of the password:

  SYNC_USER1='anna:$pbkdf2-sha256$i=600000,l=32$...$...'

In a file, keep the single quotes: a shell would take the $ for its own.

{password options}
",
    run,
};

/// The text that replaces `{password options}` in a help text.
pub const PASSWORD_OPTIONS: &str = "\
Options:
  --password-file FILE   take the password from this file; - is standard input,
                         and a bare name may be a credential of systemd
  --rounds N             iterations of the hash: at least 100000, usually 600000
  --calibrate            measure this machine, and take as many as it does in a
                         second (at least 100000)";

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    let hashing = Hashing::take(&mut invocation)?;
    if !invocation.words(0, usize::MAX)?.is_empty() {
        return Err(Error::Usage(prompt::NOT_HERE.to_owned()));
    }
    let settings = invocation.server_settings(Flags::new())?;
    say(&format!("{}\n", hashing.new_hash(settings.credentials())?.as_str()));
    Ok(ExitCode::SUCCESS)
}

/// How a new password is read and hashed.
pub struct Hashing {
    file: Option<PathBuf>,
    rounds: Option<u32>,
}

impl Hashing {
    /// Takes the options.
    pub fn take(invocation: &mut Invocation) -> Result<Hashing> {
        if invocation.option("--password")?.is_some() {
            return Err(Error::Usage(prompt::NOT_HERE.to_owned()));
        }
        let file = invocation.path("--password-file")?;
        let rounds = invocation.option("--rounds")?;
        let calibrate = invocation.has("--calibrate");
        let rounds = match (rounds, calibrate) {
            (Some(_), true) => {
                return Err(Error::Usage("--rounds and --calibrate exclude each other".to_owned()));
            }
            (Some(text), false) => Some(parse_rounds(&text)?),
            (None, true) => None,
            (None, false) => Some(password::DEFAULT_ROUNDS),
        };
        Ok(Hashing { file, rounds })
    }

    /// Reads the password and hashes it.
    pub fn new_hash(&self, credentials: Option<&Path>) -> Result<Hash> {
        let new = prompt::new_password(self.file.as_deref(), credentials)?;
        let rounds = self.rounds.unwrap_or_else(|| {
            let rounds = password::calibrate();
            eprintln!("This machine does {rounds} iterations in about a second, or as few as are safe.");
            rounds
        });
        Hash::of(&new, rounds)
    }
}

fn parse_rounds(text: &str) -> Result<u32> {
    let rounds = text.parse().ok().filter(|rounds| *rounds >= password::MIN_ROUNDS);
    rounds.ok_or_else(|| {
        Error::Usage(format!("--rounds {text} is not a number of at least {}", password::MIN_ROUNDS))
    })
}
