//! The `ankipi` binary: arguments -> command -> exit code.

use std::process::ExitCode;

use ankipi::cli::{self, Command};
use ankipi::config::{Config, Flags};
use ankipi::error::Result;
use ankipi::{logging, server, sys};

fn main() -> ExitCode {
    sys::prepare_process();
    match cli::parse(pico_args::Arguments::from_env()).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("ankipi: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Help => print!("{}", cli::HELP),
        Command::Version => println!("ankipi {}", env!("CARGO_PKG_VERSION")),
        Command::Serve(flags) => return serve(flags),
    }
    Ok(())
}

fn serve(flags: Flags) -> Result<()> {
    // A variable that is not text is none of ours.
    let vars = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let config = Config::load(vars, flags)?;
    logging::start(config.log_level);
    server::run(config)
}
