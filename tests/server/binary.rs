//! Which server the tests start.

use std::env;
use std::path::PathBuf;

/// The one that was built with the tests, or ANKIPI_BIN: a program of another architecture behind a script that names its
/// emulator, for one.
pub fn binary() -> PathBuf {
    env::var_os("ANKIPI_BIN").map_or_else(|| env!("CARGO_BIN_EXE_ankipi").into(), PathBuf::from)
}
