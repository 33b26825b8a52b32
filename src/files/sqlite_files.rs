//! Before a SQLite file is opened: whether somebody writes to it, and how to read it without writing to the SD card.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Result;
use crate::files::durable::remove_if_there;
use crate::os;
use crate::os::clock;

/// Files that SQLite keeps beside a collection while it is open or after a crash.
pub const SIDE_SUFFIXES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The path with this text appended.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Deletes an SQLite file and its side files; not an error if they do not exist.
pub fn remove_with_side_files(path: &Path) -> Result<()> {
    remove_if_there(path)?;
    SIDE_SUFFIXES.iter().try_for_each(|suffix| remove_if_there(&with_suffix(path, suffix)))
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

/// Bytes of the header of an SQLite file. It holds a counter of commits, the number of pages and that of changes to the
/// schema.
const HEADER_BYTES: usize = 100;

/// File systems tell times in steps: ext4 and most others in steps of a few ms. Two changes within one step have the same
/// time.
pub const FINE_STEP: Duration = Duration::from_millis(20);

/// On FAT the steps are of 2 s, and times have no parts of seconds.
const COARSE_STEP: Duration = Duration::from_secs(3);

/// Which file it is, its length and its times: whoever writes into the file or puts another one in its place changes
/// that. Found out without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileTimes {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileTimes {
    /// Of the file at this path; none if there is no such file.
    pub fn of(path: &Path) -> Option<FileTimes> {
        fs::symlink_metadata(path)
            .ok()
            .filter(fs::Metadata::is_file)
            .map(|metadata| FileTimes::from(&metadata))
    }

    /// Whether both are of one file, whatever was written into it.
    pub fn is_same_file(&self, other: &FileTimes) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl From<&fs::Metadata> for FileTimes {
    fn from(metadata: &fs::Metadata) -> FileTimes {
        FileTimes {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What tells one state of an SQLite file from any other, found out without SQLite: which file it is, its length and
/// times, and its header.
///
/// A commit with a rollback journal changes the header. One in a WAL may not, but then there is a WAL beside the file, or
/// it was brought into the file and the times are others.
#[derive(Clone, PartialEq, Eq)]
pub struct FileState {
    times: FileTimes,
    header: [u8; HEADER_BYTES],
}

impl FileState {
    /// The state of a file; none if there is no such file, or if a journal or a WAL beside it may say more than the file.
    ///
    /// Call this only while this process holds no lock of SQLite on the file: closing any descriptor of a file drops
    /// all locks that the process has on it.
    pub fn of(path: &Path) -> Option<FileState> {
        if has_side_files(path) {
            return None;
        }
        let file = OpenOptions::new().read(true).custom_flags(os::NO_FOLLOW).open(path).ok()?;
        let metadata = file.metadata().ok()?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).ok()?;
        Some(FileState { times: FileTimes::from(&metadata), header })
    }

    /// Whether the file is in rollback mode, so that the next writer uses a rollback journal.
    pub fn is_in_rollback_mode(&self) -> bool {
        self.header[18] == 1
    }

    /// Whether the file is old enough that a later change gets another time.
    fn is_settled(&self) -> bool {
        let step = if self.times.modified.1 == 0 { COARSE_STEP } else { FINE_STEP };
        let (secs, nanos) = self.times.modified;
        // 32-bit programs see negative times of files from 2038 on.
        if secs < 0 {
            return false;
        }
        // A time in the future cannot be compared.
        let age = clock::wall_millis() - secs.saturating_mul(1000) - nanos / 1_000_000;
        u64::try_from(age).is_ok_and(|age| Duration::from_millis(age) > step)
    }
}

/// A value that was read from an SQLite file. It is valid for as long as the file is in the same state.
pub struct Remembered<T> {
    state: FileState,
    value: T,
}

impl<T> Remembered<T> {
    /// Remembers what was read from a file that was in state `before` when that began. None if that cannot be relied on:
    /// the file was changed meanwhile, or a moment ago.
    pub fn new(path: &Path, before: Option<FileState>, value: T) -> Option<Remembered<T>> {
        let state =
            before.filter(|before| before.is_settled() && FileState::of(path).as_ref() == Some(before))?;
        Some(Remembered { state, value })
    }

    /// Remembers what was read from a file that had these times when nobody else could write to it. None if somebody has
    /// written since, or if the file was changed a moment ago.
    pub fn since(path: &Path, times: FileTimes, value: T) -> Option<Remembered<T>> {
        let state = FileState::of(path).filter(|state| state.times == times && state.is_settled())?;
        Some(Remembered { state, value })
    }

    /// As `of`, for a file that this process has locked through SQLite and has not written to. Looks at no contents, because
    /// closing a descriptor would drop the lock.
    pub fn of_locked(&self, path: &Path) -> Option<&T> {
        let has_empty_wal = fs::metadata(with_suffix(path, "-wal")).map_or(true, |wal| wal.len() == 0);
        (has_empty_wal && FileTimes::of(path) == Some(self.state.times)).then_some(&self.value)
    }

    /// What was read, if the file is still in the same state.
    pub fn of(&self, path: &Path) -> Option<&T> {
        (FileState::of(path).as_ref() == Some(&self.state)).then_some(&self.value)
    }
}

#[cfg(test)]
mod tests {
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

    /// A file that was changed a while ago, and what is remembered of it.
    fn remembered(dir: &Path) -> (std::path::PathBuf, Remembered<i64>) {
        let path = dir.join("db");
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
            .unwrap();
        std::thread::sleep(2 * FINE_STEP);
        let remembered = Remembered::new(&path, FileState::of(&path), 1).expect("a file that nobody changes");
        assert_eq!(remembered.of(&path), Some(&1));
        (path, remembered)
    }

    #[test]
    fn whatever_changes_a_file_ends_what_is_remembered_of_it() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 8] = [
            ("a commit", |path| Connection::open(path).unwrap().execute_batch("UPDATE t SET x = 2").unwrap()),
            ("a commit in a WAL that was brought into the file", |path| {
                Connection::open(path)
                    .unwrap()
                    .execute_batch("PRAGMA journal_mode = WAL; UPDATE t SET x = 2")
                    .unwrap();
            }),
            ("a commit that is in a WAL", |path| {
                let db = Connection::open(path).unwrap();
                db.execute_batch("PRAGMA journal_mode = WAL; UPDATE t SET x = 2").unwrap();
                // Closing it would remove the WAL.
                std::mem::forget(db);
            }),
            ("a journal", |path| std::fs::write(path.with_file_name("db-journal"), "x").unwrap()),
            ("a copy of the same bytes in its place", |path| {
                let copy = path.with_file_name("copy");
                std::fs::copy(path, &copy).unwrap();
                std::fs::rename(copy, path).unwrap();
            }),
            ("its removal", |path| std::fs::remove_file(path).unwrap()),
            ("a page that was written over", |path| {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(&[7; 10], 5000).unwrap();
            }),
            ("a link in its place", |path| {
                std::fs::rename(path, path.with_file_name("moved")).unwrap();
                std::os::unix::fs::symlink("moved", path).unwrap();
            }),
        ];
        for (what, change) in changes {
            let dir = tempfile::tempdir().unwrap();
            let (path, remembered) = remembered(dir.path());
            change(&path);
            assert_eq!(remembered.of(&path), None, "{what}");
        }
    }

    #[test]
    fn nothing_is_remembered_of_a_file_that_was_changed_meanwhile_or_just_now() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = remembered(dir.path());
        let before = FileState::of(&path);
        Connection::open(&path).unwrap().execute("UPDATE t SET x = 2", []).unwrap();
        assert!(Remembered::new(&path, before, 1).is_none());
        // As on FAT, whose next change may have the same time.
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let now =
            std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap().as_secs();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(now)).unwrap();
        assert!(Remembered::new(&path, FileState::of(&path), 1).is_none());
    }
}
