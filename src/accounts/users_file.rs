//! The accounts file, `SYNC_BASE/users`: one line `name:PHC` for each account that `ankipi user` made.
//!
//! The file is replaced as a whole, which changes its stamp. A running server compares the stamp at its next request.
//! `touch` changes the stamp when only device keys have changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::accounts::password::Hash;
use crate::config::{USERS_FILE, check_user_name};
use crate::error::{Error, Result};
use crate::files;

/// Locked while accounts or keys are read and written, never longer.
const LOCK_FILE: &str = ".ankipi.accounts.lock";

/// Identifies a version of the accounts file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp(Option<(u64, u64, i64, i64)>);

impl Stamp {
    /// The stamp of the accounts file now (one stat). The file may be missing.
    pub fn of(base: &Path) -> Result<Stamp> {
        let path = base.join(USERS_FILE);
        match fs::metadata(&path) {
            Ok(meta) => Ok(Stamp(Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec())))),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Stamp(None)),
            Err(err) => Err(Error::Io("looking at", path, err)),
        }
    }
}

/// Accounts by name.
pub type Hashes = BTreeMap<String, Hash>;

/// Reads the accounts. A wrong line is reported to `fault` and skipped.
pub fn read(base: &Path, mut fault: impl FnMut(String)) -> Result<Hashes> {
    let path = base.join(USERS_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Hashes::new()),
        Err(err) => return Err(refused(base, "reading", &path)(err)),
    };
    let mut hashes = Hashes::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let account = match line.split_once(':') {
            Some((name, phc)) => check_user_name(name)
                .map_err(|err| err.to_string())
                .and_then(|()| Hash::parse_stored(phc.trim_end()).map(|hash| (name.to_owned(), hash))),
            None => Err("a line must read name:hash".to_owned()),
        };
        match account {
            Ok((name, hash)) => drop(hashes.insert(name, hash)),
            Err(err) => fault(format!("{} line {number} is left out: {err}", path.display())),
        }
    }
    Ok(hashes)
}

/// Locks accounts and keys against other processes until the file is closed.
pub fn lock(base: &Path) -> Result<File> {
    let path = base.join(LOCK_FILE);
    let lock = || {
        let file = files::create_for_owner(base, &path)?;
        files::lock_if_possible(&file)?;
        Ok(file)
    };
    lock().map_err(refused(base, "locking", &path))
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

/// Changes the accounts. Nothing is written if `change` fails. A line that cannot be read is an error, because writing
/// would lose it.
pub fn change<T>(base: &Path, change: impl FnOnce(&mut Hashes) -> Result<T>) -> Result<T> {
    let _lock = lock(base)?;
    let mut faults = Vec::new();
    let mut hashes = read(base, |fault| faults.push(fault))?;
    if let Some(fault) = faults.pop() {
        return Err(Error::Broken(format!("{fault}; correct or delete that line first")));
    }
    let outcome = change(&mut hashes)?;
    write(base, &hashes)?;
    Ok(outcome)
}

/// Makes a running server reload accounts and keys.
pub fn touch(base: &Path) -> Result<()> {
    let path = base.join(USERS_FILE);
    let contents = match fs::read(&path) {
        Ok(contents) => contents,
        Err(err) if err.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(err) => return Err(Error::Io("reading", path, err)),
    };
    files::replace_file(base, USERS_FILE, &contents)
}

fn write(base: &Path, hashes: &Hashes) -> Result<()> {
    let lines: String = hashes.iter().map(|(name, hash)| format!("{name}:{}\n", hash.as_str())).collect();
    files::replace_file(base, USERS_FILE, lines.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_every_change_has_a_stamp_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        let mut stamps = vec![Stamp::of(base).unwrap()];
        let hash = Hash::of("x", 1000).unwrap();
        for name in ["anna", "b\u{f6}b"] {
            change(base, |hashes| Ok(hashes.insert(name.to_owned(), hash.clone()))).unwrap();
            stamps.push(Stamp::of(base).unwrap());
        }
        touch(base).unwrap();
        stamps.push(Stamp::of(base).unwrap());
        for pair in stamps.windows(2) {
            assert_ne!(pair[0], pair[1]);
        }
        let hashes = read(base, |fault| panic!("{fault}")).unwrap();
        assert_eq!(hashes.keys().collect::<Vec<_>>(), ["anna", "b\u{f6}b"]);
        assert_eq!(hashes["anna"], hash);
    }

    #[test]
    fn bad_lines_are_left_out_and_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let good = Hash::of("x", 1000).unwrap();
        let text = format!("# c\n\nanna:{0}\nbob\n../up:{0}\ncarl:secret\n", good.as_str());
        fs::write(dir.path().join(USERS_FILE), &text).unwrap();
        let mut faults = Vec::new();
        let hashes = read(dir.path(), |fault| faults.push(fault)).unwrap();
        assert_eq!(hashes.keys().collect::<Vec<_>>(), ["anna"]);
        assert_eq!(faults.len(), 3, "{faults:?}");
        change(dir.path(), |_| Ok(())).unwrap_err();
        assert_eq!(fs::read_to_string(dir.path().join(USERS_FILE)).unwrap(), text);
    }
}
