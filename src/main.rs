//! The `ankipi` binary: arguments -> command -> exit code.

use std::process::ExitCode;

use ankipi::{cli, sys};

fn main() -> ExitCode {
    sys::prepare_process();
    cli::run(pico_args::Arguments::from_env())
}
