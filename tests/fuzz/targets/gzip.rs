#![no_main]
#[allow(dead_code, reason = "the others have targets of their own")]
#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::gzip(data));
