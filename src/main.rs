//! The `ankipi` binary: arguments -> command -> exit code.

use std::process::ExitCode;

use ankipi::{cli, os};

fn main() -> ExitCode {
    os::prepare_process();
    cli::run(pico_args::Arguments::from_env())
}
