//! Reads passwords and answers of the user, never from the command line, which everyone on the machine can read.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use crate::config::read_secret;
use crate::error::{Error, Result};
use crate::os::EchoOff;

/// Error text for a password on the command line.
pub const NOT_HERE: &str = "a password on the command line would show in the list of processes and in the history of the \
                            shell: leave it out to be asked for it, or pipe it in, or use --password-file FILE";

/// Reads a new password: from the file, from standard input if that is not a terminal, or by asking twice.
pub fn new_password(file: Option<&Path>, credentials: Option<&Path>) -> Result<String> {
    let stdin = io::stdin();
    let password = match file {
        Some(path) if path != Path::new("-") => read_secret(path, credentials)?,
        None if stdin.is_terminal() => {
            let password = hidden_line("Password: ")?;
            if hidden_line("The same again: ")? != password {
                return Err(Error::Broken("the two differ; nothing was changed".to_owned()));
            }
            password
        }
        _ => line()?,
    };
    if password.is_empty() {
        Err(Error::Broken("the password is empty; nothing was changed".to_owned()))
    } else {
        Ok(password)
    }
}

/// Reads an existing password: from standard input if that is not a terminal, or by asking.
pub fn known_password() -> Result<String> {
    if io::stdin().is_terminal() { hidden_line("Password: ") } else { line() }
}

/// Asks a question. True only if the user types `y` at a terminal.
pub fn confirm(question: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    show(&format!("{question} [y/N] "));
    Ok(matches!(line()?.trim(), "y" | "Y" | "yes"))
}

fn hidden_line(prompt: &str) -> Result<String> {
    // Switched off before the prompt, which discards what was typed until then.
    let echo_off =
        EchoOff::on(&io::stdin()).map_err(|err| Error::Broken(format!("switching the echo off: {err}")))?;
    show(prompt);
    let line = line();
    drop(echo_off);
    show("\n");
    line
}

fn show(text: &str) {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Reads the next line of standard input, without its line end.
fn line() -> Result<String> {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.map_err(|err| Error::Broken(format!("reading standard input: {err}")))?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}
