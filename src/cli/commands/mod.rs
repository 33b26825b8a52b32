//! The commands of the command line, one module for each family. A command is declared here and nowhere else.

mod backup;
mod check;
mod config;
mod device;
mod doctor;
mod export;
mod hash_password;
mod healthcheck;
mod import;
mod init;
mod packing;
mod serve;
mod status;
mod user;
mod user_folders;

use crate::cli::command::Command;
pub use hash_password::PASSWORD_OPTIONS;

/// The command that runs if none is named.
pub static DEFAULT: &Command = &serve::SERVE;

/// All commands, in the order in which `--help` lists them.
pub static COMMANDS: &[&Command] = &[
    &serve::SERVE,
    &init::INIT,
    &user::ADD,
    &user::PASSWD,
    &user::REMOVE,
    &user::LIST,
    &device::LIST,
    &device::REVOKE,
    &hash_password::HASH_PASSWORD,
    &config::CONFIG,
    &status::STATUS,
    &doctor::DOCTOR,
    &check::CHECK,
    &backup::LIST,
    &backup::MAKE,
    &backup::RESTORE,
    &export::EXPORT,
    &import::IMPORT,
];
