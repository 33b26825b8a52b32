//! Compression, both ways, with all its bounds: zstd (protocol 11), gzip and deflate (older clients, zips).
//!
//! Knows no HTTP and no files: everything here is a `Read` or a `Write` around another one. Imports nothing of ours but
//! `error` and `os`.

pub mod gzip;
pub mod inflate;
pub mod zstd_decoder;
pub mod zstd_encoder;
