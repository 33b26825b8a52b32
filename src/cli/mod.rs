//! The command line: finds the command and passes it the remaining arguments.
//!
//! Here: `command` (what a command is), `commands` (one file for each family), prompts, progress. This module does not know
//! any command itself. Imports everything below it, `server` for `serve`.

pub mod command;
mod commands;
mod progress;
mod prompt;

use std::fmt::Write as _;
use std::process::ExitCode;

use pico_args::Arguments;

use crate::cli::command::{Command, FAILED, Invocation, WRONG_USAGE, say};
use crate::cli::commands::{COMMANDS, DEFAULT, PASSWORD_OPTIONS};
use crate::config::SETTINGS;
use crate::config::did_you_mean::nearest;
use crate::error::{Error, Result};
use crate::os;

/// Runs the command that the arguments name.
pub fn run(mut args: Arguments) -> ExitCode {
    let wants_help = args.contains(["-h", "--help"]);
    let wants_version = args.contains(["-V", "--version"]);
    let mut invocation = Invocation::new(args);
    let words = match take_shared(&mut invocation) {
        Ok(words) => words,
        Err(err) => return fail(&err, None),
    };
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let wants_help = wants_help || words.first() == Some(&"help");
    let words = words.strip_prefix(&["help"]).unwrap_or(&words);
    if wants_version {
        return print(&format!("ankipi {} for {}\n", os::VERSION, os::TARGET));
    }
    let command = match (words, find(words)) {
        ([], _) if wants_help => return print(&overview()),
        ([], _) => DEFAULT,
        (_, Found::Command(command)) => command,
        ([family, ..], Found::Family) if wants_help || words.len() == 1 => {
            return print(&family_help(family));
        }
        (_, Found::Family | Found::Nothing) => return fail(&unknown(words), None),
    };
    if wants_help {
        return print(&help(command));
    }
    match (command.run)(invocation) {
        Ok(code) => code,
        Err(err) => fail(&err, Some(command)),
    }
}

/// Takes the options of every command, and the words of the command's name.
fn take_shared(invocation: &mut Invocation) -> Result<Vec<String>> {
    invocation.base = invocation.path("--base")?;
    invocation.config = invocation.path("--config")?;
    let mut words: Vec<String> = Vec::new();
    // Further words are arguments of the command.
    while words.last().is_none_or(|last| last == "help" || family(last).next().is_some()) && words.len() < 3 {
        match invocation.args.subcommand().map_err(|err| Error::Usage(err.to_string()))? {
            Some(word) => words.push(word),
            None => break,
        }
    }
    Ok(words)
}

enum Found {
    Command(&'static Command),
    /// The words begin the names of several commands.
    Family,
    Nothing,
}

fn find(words: &[&str]) -> Found {
    let name = words.join(" ");
    if let Some(command) = COMMANDS.iter().copied().find(|command| command.name == name) {
        return Found::Command(command);
    }
    if words.first().is_some_and(|first| family(first).next().is_some()) {
        Found::Family
    } else {
        Found::Nothing
    }
}

/// The commands whose names are this word and a second one.
fn family(word: &str) -> impl Iterator<Item = &'static Command> {
    COMMANDS
        .iter()
        .copied()
        .filter(move |command| command.name.strip_prefix(word).is_some_and(|rest| rest.starts_with(' ')))
}

fn unknown(words: &[&str]) -> Error {
    let typed = words.join(" ");
    let meant = match nearest(&typed, COMMANDS.iter().map(|command| command.name)) {
        Some(name) => format!("; did you mean `ankipi {name}`?"),
        None => "; `ankipi --help` lists what there is".to_owned(),
    };
    Error::Usage(format!("{typed:?} is not a command of ankipi{meant}"))
}

fn fail(err: &Error, command: Option<&Command>) -> ExitCode {
    eprintln!("ankipi: {err}");
    match (err, command) {
        (Error::Usage(_), Some(command)) => {
            eprintln!("Usage: {}\n`ankipi {} --help` says more.", usage(command), command.name);
            ExitCode::from(WRONG_USAGE)
        }
        (Error::Usage(_), None) => ExitCode::from(WRONG_USAGE),
        _ => ExitCode::from(FAILED),
    }
}

fn print(text: &str) -> ExitCode {
    say(text);
    ExitCode::SUCCESS
}

const SHARED_OPTIONS: &str = "
Options of every command:
  --base DIR        the data folder (SYNC_BASE; otherwise that of the server
                    that runs on this machine, otherwise ~/.syncserver)
  --config FILE     a file with settings, one KEY=VALUE on a line
                    (ANKIPI_CONFIG; otherwise that of the package, if there is
                    one: /etc/ankipi.conf, /etc/conf.d/ankipi with OpenRC, or
                    /var/etc/ankipi.conf on OpenWrt)
  -h, --help        say what a command does
  -V, --version     print the version, and the processor that it is for
";

/// What `ankipi --help` prints.
fn overview() -> String {
    let mut text = "\
ankipi - a small self-hosted sync server for Anki

Usage: ankipi [COMMAND] [OPTIONS]

Without a command it runs the server. To begin, make an account and start it:
  ankipi user add me
  ankipi

Commands:
"
    .to_owned();
    text.push_str(&table(COMMANDS.iter().copied()));
    text.push_str(SHARED_OPTIONS);
    text.push_str(
        "
`ankipi COMMAND --help` says more, and `ankipi serve --help` lists all settings.
Commands end with 0 if all is well, with 1 if they failed or found something
that is not in order, and with 2 if the command line is wrong.
In Anki, Preferences > Syncing > Self-hosted sync server: http://THIS-HOST:8080/
",
    );
    text
}

fn family_help(word: &str) -> String {
    format!(
        "Usage: ankipi {word} COMMAND\n\nCommands:\n{}\n`ankipi {word} COMMAND --help` says more.\n",
        table(family(word))
    )
}

fn table<'c>(commands: impl Iterator<Item = &'c Command>) -> String {
    let mut text = String::new();
    for command in commands {
        let _ = writeln!(text, "  {:<20}  {}", command.name, command.summary);
    }
    text
}

fn usage(command: &Command) -> String {
    format!("ankipi {} {}", command.name, command.arguments).trim_end().to_owned()
}

/// What `ankipi COMMAND --help` prints.
fn help(command: &Command) -> String {
    let mut text = format!("ankipi {} - {}\n\nUsage: {}\n", command.name, command.summary, usage(command));
    let own = command.help.replace("{settings}", &settings_table());
    let own = own.replace("{password options}", PASSWORD_OPTIONS);
    for part in [own.as_str(), SHARED_OPTIONS] {
        let _ = write!(text, "\n{}\n", part.trim());
    }
    text
}

/// The text that replaces `{settings}` in a help text.
fn settings_table() -> String {
    let mut text = String::new();
    for setting in SETTINGS {
        let _ = writeln!(text, "  {:<21}  {}", setting.key, setting.summary);
        let notes = [
            if setting.default.is_empty() { String::new() } else { format!("default {}", setting.default) },
            if setting.flag.is_empty() { String::new() } else { format!("also {}", setting.flag) },
        ];
        let notes: Vec<_> = notes.into_iter().filter(|note| !note.is_empty()).collect();
        if !notes.is_empty() {
            let _ = writeln!(text, "  {:<21}    {}", "", notes.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The widest line of help.
    const COLUMNS: usize = 80;

    #[test]
    fn every_help_fits_on_a_terminal_and_names_its_usage() {
        let mut texts = vec![overview(), family_help("user"), family_help("device")];
        texts.extend(COMMANDS.iter().map(|command| help(command)));
        for text in texts {
            for line in text.lines() {
                assert!(line.chars().count() <= COLUMNS, "{} columns: {line}", line.chars().count());
                assert!(!line.contains('{') && line == line.trim_end(), "{line:?}");
            }
            assert!(
                text.contains("Usage: ankipi") && text.ends_with('\n') && !text.ends_with("\n\n"),
                "{text}"
            );
        }
    }
}
