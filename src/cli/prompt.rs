//! Passwords and answers from whoever runs a command: never from the command line, which everyone on the machine can read.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use crate::config::read_secret;
use crate::error::{Error, Result};
use crate::os::EchoOff;

/// What to say to who types a password behind a command.
pub const NOT_HERE: &str = "a password on the command line would show in the list of processes and in the history of the \
                            shell: leave it out to be asked for it, or pipe it in, or use --password-file FILE";

/// A new password: from the file, from standard input if that is no terminal, or asked for twice.
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
    match password.is_empty() {
        true => Err(Error::Broken("the password is empty; nothing was changed".to_owned())),
        false => Ok(password),
    }
}

/// A password that there is already: from standard input if that is no terminal, or asked for.
pub fn known_password() -> Result<String> {
    match io::stdin().is_terminal() {
        true => hidden_line("Password: "),
        false => line(),
    }
}

/// Asks a question that only a `y` at a terminal answers with yes.
pub fn confirm(question: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    show(&format!("{question} [y/N] "));
    Ok(matches!(line()?.trim(), "y" | "Y" | "yes"))
}

fn hidden_line(prompt: &str) -> Result<String> {
    // Before the prompt: what is typed until then is discarded.
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

/// The next line of standard input, without its end.
fn line() -> Result<String> {
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.map_err(|err| Error::Broken(format!("reading standard input: {err}")))?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}
