//! What every SQLite file of a user needs before it is opened: is somebody writing to it, and how to read it without
//! leaving a trace on the SD card.

use std::path::Path;

/// Whether a writer has the file open, or a crash left its journal behind.
pub fn has_side_files(path: &Path) -> bool {
    ["-wal", "-journal"].iter().any(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        Path::new(&name).exists()
    })
}

/// `file:` URI of a file that nobody writes to.
pub fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(*byte))
            }
            _ => write!(uri, "%{byte:02x}").expect("writing to a string does not fail"),
        }
    }
    uri.push_str("?immutable=1");
    uri
}
