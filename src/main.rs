//! The `ankipi` binary: arguments -> command -> exit code.

use std::process::ExitCode;

use ankipi::cli::{self, Command};
use ankipi::config::{Config, Flags};
use ankipi::error::Result;
use ankipi::{check, logging, server, sys};

fn main() -> ExitCode {
    sys::prepare_process();
    match cli::parse(pico_args::Arguments::from_env()).and_then(run) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("ankipi: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Help => print!("{}", cli::HELP),
        Command::Version => println!("ankipi {}", env!("CARGO_PKG_VERSION")),
        Command::Serve(flags) => serve(flags)?,
        Command::Check(options) => {
            logging::start(log::LevelFilter::Warn);
            let base = Config::base_folder(variables(), options.base)?;
            if !check::check(&base, options.user.as_deref(), options.depth)? {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(flags: Flags) -> Result<()> {
    let config = Config::load(variables(), flags)?;
    logging::start(config.log_level);
    server::run(config)
}

/// The environment. A variable that is not text is none of ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}
