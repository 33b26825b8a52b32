//! Before a SQLite file is opened: whether somebody writes to it, and how to read it without writing to the SD card.

use std::path::{Path, PathBuf};

/// Files that SQLite keeps beside a collection while it is open or after a crash.
pub const SIDE_SUFFIXES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The path with this text appended.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Whether the file has a journal or WAL: somebody is writing, or a crash left it.
pub fn has_side_files(path: &Path) -> bool {
    has_side_file(path, "-wal") || has_rollback_journal(path)
}

/// Whether the file has a rollback journal: it may then contain uncommitted changes.
pub fn has_rollback_journal(path: &Path) -> bool {
    has_side_file(path, "-journal")
}

fn has_side_file(path: &Path, suffix: &str) -> bool {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    Path::new(&name).exists()
}

/// `file:` URI to read a file without locks or a journal. Only for a file that nobody writes to.
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

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    use rusqlite::{Connection, OpenFlags};

    use super::*;

    #[test]
    fn a_file_of_over_4_gib_is_written_and_read_at_its_end() {
        const PAGE_BYTES: u64 = 65_536;
        const FILE_BYTES: u64 = 5 << 30;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(&format!("PRAGMA page_size = {PAGE_BYTES}; CREATE TABLE t (x)")).unwrap();
        drop(db);
        // Most of it a hole, which takes no room on the disk. The header has the number of pages at 28.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(FILE_BYTES).unwrap();
        let pages = u32::try_from(FILE_BYTES / PAGE_BYTES).unwrap();
        file.write_all_at(&pages.to_be_bytes(), 28).unwrap();
        let row = "x".repeat(3 * PAGE_BYTES as usize);
        Connection::open(&path).unwrap().execute("INSERT INTO t VALUES (?)", [&row]).unwrap();
        assert_eq!(path.metadata().unwrap().len(), FILE_BYTES + 3 * PAGE_BYTES);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(immutable_uri(&path), flags).unwrap();
        assert!(db.query_row("SELECT x FROM t", [], |found| found.get::<_, String>(0)).unwrap() == row);
    }
}
