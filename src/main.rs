//! The `ankipi` binary.

fn main() {}
