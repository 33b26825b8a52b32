//! The accounts file, `SYNC_BASE/users`: one line `name:PHC` for each account that `ankipi user` made.
//!
//! The file is replaced as a whole, which changes its stamp. A running server compares the stamp at its next request.
//! `touch` changes the stamp when only device keys have changed. A line that cannot be read concerns its account only,
//! and is kept as it is when other lines change.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::accounts::password::Hash;
use crate::config::USERS_FILE;
use crate::config::user_name::check_folder_name;
use crate::error::{Error, Result};
use crate::files;

/// Locked while accounts or keys are read and written, never longer.
const LOCK_FILE: &str = ".ankipi.accounts.lock";

/// Maximum wait for the lock. A process that holds it for longer must be suspended.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Identifies a version of the accounts file. Equal stamps mean an unchanged file.
#[derive(Clone, Debug, Default)]
pub struct Stamp {
    /// None if the file is missing.
    id: Option<FileId>,
    /// Keeps the file open: while it is, no later file can get the same inode number.
    _held: Option<Arc<File>>,
}

/// Device, inode, size, and the times of the last change of contents and of owner or mode.
type FileId = (u64, u64, u64, (i64, i64), (i64, i64));

fn id_of(meta: &Metadata) -> FileId {
    let times = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    (meta.dev(), meta.ino(), meta.size(), times.0, times.1)
}

impl Stamp {
    /// Whether the accounts file is still the one with this stamp (one stat).
    pub fn is_current(&self, base: &Path) -> Result<bool> {
        let path = base.join(USERS_FILE);
        match fs::metadata(&path) {
            Ok(meta) => Ok(self.id == Some(id_of(&meta))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(self.id.is_none()),
            Err(err) => Err(Error::Io("looking at", path, err)),
        }
    }
}

/// What a line says of its account: the hash, or why there is none.
pub type Entry = std::result::Result<Hash, String>;

/// The accounts file as it was read.
#[derive(Default)]
pub struct UsersFile {
    /// All lines as they are, without their ends. An account is known by its name.
    lines: Vec<(Option<String>, Vec<u8>)>,
    accounts: BTreeMap<String, Entry>,
    /// Lines that name no account, in words.
    pub faults: Vec<String>,
}

impl UsersFile {
    fn parse(path: &Path, contents: &[u8]) -> UsersFile {
        let mut users = UsersFile::default();
        let text = contents.strip_suffix(b"\n").unwrap_or(contents);
        let lines =
            if contents.is_empty() { Vec::new() } else { text.split(|byte| *byte == b'\n').collect() };
        for (number, line) in (1..).zip(lines) {
            let trimmed = line.trim_ascii();
            let name = if trimmed.is_empty() || trimmed.starts_with(b"#") {
                None
            } else {
                let name = name_of(line);
                match &name {
                    Ok(name) => users.take(path, number, name, &line[name.len() + 1..]),
                    Err(fault) => users.faults.push(format!("{} line {number}: {fault}", path.display())),
                }
                name.ok()
            };
            users.lines.push((name, line.to_owned()));
        }
        users
    }

    fn take(&mut self, path: &Path, number: usize, name: &str, hash: &[u8]) {
        let line = format!("{} line {number}", path.display());
        let entry = if self.accounts.contains_key(name) {
            Err(format!("{line} is a second one for this account"))
        } else {
            std::str::from_utf8(hash)
                .map_err(|_| "it is not UTF-8".to_owned())
                .and_then(|hash| Hash::parse_stored(hash.trim_end()))
                .map_err(|fault| format!("{line} cannot be read: {fault}"))
        };
        self.accounts.insert(name.to_owned(), entry);
    }

    /// All accounts, by name.
    pub fn accounts(&self) -> &BTreeMap<String, Entry> {
        &self.accounts
    }

    /// What the file says of an account.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.accounts.get(name)
    }

    /// Replaces the lines of an account, or adds one.
    pub fn set(&mut self, name: &str, hash: Hash) {
        let line = format!("{name}:{}", hash.as_str()).into_bytes();
        let is_of = |found: &(Option<String>, _)| found.0.as_deref() == Some(name);
        match self.lines.iter().position(is_of) {
            Some(at) => {
                self.lines[at].1 = line;
                let mut number = 0..;
                self.lines.retain(|found| number.next() == Some(at) || !is_of(found));
            }
            None => self.lines.push((Some(name.to_owned()), line)),
        }
        self.accounts.insert(name.to_owned(), Ok(hash));
    }

    /// Removes the lines of an account. Returns whether there were any.
    pub fn remove(&mut self, name: &str) -> bool {
        self.lines.retain(|(found, _)| found.as_deref() != Some(name));
        self.accounts.remove(name).is_some()
    }

    fn write(&self, base: &Path) -> Result<()> {
        let contents: Vec<u8> =
            self.lines.iter().flat_map(|(_, line)| [line.as_slice(), b"\n"].concat()).collect();
        files::replace_file(base, USERS_FILE, &contents)
    }
}

/// The name in front of the first colon.
fn name_of(line: &[u8]) -> std::result::Result<String, String> {
    let end = line.iter().position(|byte| *byte == b':').ok_or("a line must read name:hash")?;
    let name = std::str::from_utf8(&line[..end]).map_err(|_| "the name is not UTF-8")?;
    check_folder_name(name).map_err(|err| err.to_string())?;
    Ok(name.to_owned())
}

/// Reads the accounts and the stamp of the file. The file may be missing.
pub fn read(base: &Path) -> Result<(UsersFile, Stamp)> {
    let path = base.join(USERS_FILE);
    let read = || -> io::Result<_> {
        let mut file = File::open(&path)?;
        // Taken before the contents are read. If the file is changed meanwhile, the next comparison notices it.
        let id = id_of(&file.metadata()?);
        let mut contents = Vec::new();
        file.read_to_end(&mut contents)?;
        Ok((UsersFile::parse(&path, &contents), Stamp { id: Some(id), _held: Some(Arc::new(file)) }))
    };
    match read() {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Default::default()),
        outcome => outcome.map_err(refused(base, "reading", &path)),
    }
}

/// Locks accounts and keys against other processes until the file is closed.
pub fn lock(base: &Path) -> Result<File> {
    let path = base.join(LOCK_FILE);
    let refused = || refused(base, "locking", &path);
    let file = files::create_for_owner(base, &path).map_err(refused())?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < MAX_WAIT => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Busy(format!(
                    "another process has been changing the accounts for {} s ({} is locked); try again",
                    MAX_WAIT.as_secs(),
                    path.display()
                )));
            }
            // The file system has no locks.
            Err(TryLockError::Error(err)) if crate::os::has_no_locks(&err) => return Ok(file),
            Err(TryLockError::Error(err)) => return Err(refused()(err)),
        }
    }
}

/// For `map_err`: says what to do if permission is denied.
fn refused<'p>(base: &'p Path, verb: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + 'p {
    move |err| match err.kind() {
        io::ErrorKind::PermissionDenied => Error::Broken(format!(
            "no permission to use {} ({verb} {}: {err}): run this as the user of the server, or with sudo",
            base.display(),
            path.display()
        )),
        _ => Error::Io(verb, path.to_owned(), err),
    }
}

/// Changes the accounts. Nothing is written if `change` fails.
pub fn change<T>(base: &Path, change: impl FnOnce(&mut UsersFile) -> Result<T>) -> Result<T> {
    let _lock = lock(base)?;
    change_locked(base, change)
}

/// The same while the caller holds the lock.
pub fn change_locked<T>(base: &Path, change: impl FnOnce(&mut UsersFile) -> Result<T>) -> Result<T> {
    let (mut users, _) = read(base)?;
    let outcome = change(&mut users)?;
    users.write(base)?;
    Ok(outcome)
}

/// Makes a running server reload accounts and keys. The caller holds the lock.
pub fn touch(base: &Path) -> Result<()> {
    change_locked(base, |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_every_change_has_a_stamp_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let mut stamps = vec![read(base).unwrap().1];
        let hash = Hash::of("x", 1000).unwrap();
        for name in ["anna", "b\u{f6}b"] {
            change(base, |users| {
                users.set(name, hash.clone());
                Ok(())
            })
            .unwrap();
            stamps.push(read(base).unwrap().1);
        }
        // Same contents, same length, as fast as can be.
        for _ in 0..50 {
            touch(base).unwrap();
            assert!(!stamps.last().unwrap().is_current(base).unwrap());
            stamps.push(read(base).unwrap().1);
            assert!(stamps.last().unwrap().is_current(base).unwrap());
        }
        let (users, _) = read(base).unwrap();
        assert_eq!(users.accounts().keys().collect::<Vec<_>>(), ["anna", "b\u{f6}b"]);
        assert_eq!(users.get("anna"), Some(&Ok(hash)));
        assert!(users.faults.is_empty());
    }

    #[test]
    fn a_line_that_cannot_be_read_concerns_its_account_only_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (base, path) = (dir.path(), dir.path().join(USERS_FILE));
        let good = Hash::of("x", 1000).unwrap();
        let text = [
            format!("# c\n\nanna:{0}\nbob\n../up:{0}\ncarl:secret\nd\u{f6}ra:", good.as_str()).as_bytes(),
            b"\xff\n",
            format!("emil:{0}\nemil:{0}\nfritz", good.as_str()).as_bytes(),
            b"\xff:x\n",
        ]
        .concat();
        fs::write(&path, &text).unwrap();
        let (users, _) = read(base).unwrap();
        assert_eq!(users.accounts().keys().collect::<Vec<_>>(), ["anna", "carl", "d\u{f6}ra", "emil"]);
        assert_eq!(users.faults.len(), 3, "{:?}", users.faults);
        assert_eq!(users.get("anna"), Some(&Ok(good.clone())));
        for (name, why) in [("carl", "line 6"), ("d\u{f6}ra", "line 7"), ("emil", "line 9 is a second")] {
            let fault = users.get(name).unwrap().as_ref().unwrap_err();
            assert!(fault.contains(why), "{name}: {fault}");
        }
        touch(base).unwrap();
        assert_eq!(fs::read(&path).unwrap(), text);
        change(base, |users| {
            assert!(users.remove("anna") && !users.remove("anna"));
            users.set("emil", good.clone());
            users.set("gabi", good.clone());
            Ok(())
        })
        .unwrap();
        let (users, _) = read(base).unwrap();
        assert_eq!(users.accounts().keys().collect::<Vec<_>>(), ["carl", "d\u{f6}ra", "emil", "gabi"]);
        assert_eq!((users.faults.len(), users.get("emil")), (3, Some(&Ok(good))));
        assert!(fs::read(&path).unwrap().starts_with(b"# c\n\nbob\n../up:"));
    }
}
