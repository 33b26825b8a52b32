//! The commands of the command line, one module for each family. A command is declared here and nowhere else.

mod check;
mod config;
mod serve;

use crate::cli::Command;

/// What runs when no command is named.
pub static DEFAULT: &Command = &serve::SERVE;

/// All commands, in the order in which `--help` lists them.
pub static COMMANDS: &[&Command] = &[&serve::SERVE, &config::CONFIG, &check::CHECK];
