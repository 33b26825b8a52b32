//! The data folder, and how it is recognised. A server must not begin an empty one where the disk with the real one is
//! not mounted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::USERS_FILE;
use crate::error::{Error, Result};
use crate::files::id_of;
use crate::text::hex::hex;
use crate::{files, os};

/// The name of the collection in a user's folder, as on the official server.
pub const COLLECTION_FILE: &str = "collection.anki2";

/// The name of the index of the media in a user's folder, as on the official server.
pub const MEDIA_INDEX_FILE: &str = "media.db";

/// The file that says "this is a data folder": it holds a random id, and the version that made it.
const MARK: &str = ".ankipi";

/// Whether this is a data folder of ours or of Anki's own server: it has the mark, accounts, or the data of a user.
pub fn is_known(base: &Path) -> bool {
    let has = |name: &str| base.join(name).exists();
    let holds_user = |dir: &Path| dir.join(COLLECTION_FILE).exists() || dir.join(MEDIA_INDEX_FILE).exists();
    let mut entries = fs::read_dir(base).into_iter().flatten().flatten();
    has(MARK) || has(USERS_FILE) || entries.any(|entry| holds_user(&entry.path()))
}

/// Makes the folder a data folder: creates it if it is missing, and marks it. Returns whether it was not a data folder
/// before.
pub fn init(base: &Path) -> Result<bool> {
    let is_new = !is_known(base);
    files::create_folder(base).map_err(|err| unusable(base, err))?;
    if !base.join(MARK).exists() {
        let mut id = [0; 16];
        os::random(&mut id).map_err(|err| Error::Broken(format!("no random bytes: {err}")))?;
        let text = format!("data folder of ankipi\nid {}\nversion {}\n", hex(&id), os::VERSION);
        files::replace_file(base, MARK, text.as_bytes())?;
    }
    Ok(is_new)
}

/// Prepares the folder for a server. With `must_be_known`, errors if it is not recognised: then its disk is not
/// mounted.
pub fn open(base: &Path, must_be_known: bool) -> Result<DataFolder> {
    if must_be_known && !is_known(base) {
        return Err(Error::Broken(format!(
            "{dir} is not the data folder: it has neither accounts nor collections. If these are on another disk, mount \
             it, and start ankipi again. If ankipi has not run here before, make it the data folder with\n  \
             ankipi init {dir}\n(SYNC_REQUIRE_DATA is set, so that no empty server starts where a disk is missing){hidden}",
            dir = base.display(),
            hidden = if is_hidden_by_systemd(base) { HIDDEN } else { "" }
        )));
    }
    files::create_folder(base).map_err(|err| unusable(base, err))?;
    let id = id_of(base).map_err(Error::io("looking at", base))?;
    Ok(DataFolder { base: base.to_owned(), id })
}

const HIDDEN: &str = "\nThe service of the package sees nothing below /home, /root and /run/user (ProtectHome=): move the folder, for \
                      example to /srv/ankipi, or set ProtectHome=no by `systemctl edit ankipi`";

/// Whether this is a service of systemd, and the folder one that services mostly may not see.
fn is_hidden_by_systemd(base: &Path) -> bool {
    let is_service = std::env::var_os("INVOCATION_ID").is_some();
    is_service && ["/home", "/root", "/run/user"].iter().any(|hidden| base.starts_with(hidden))
}

fn unusable(base: &Path, err: Error) -> Error {
    match &err {
        Error::Io(_, _, cause) if cause.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            files::locks::read_only(base)
        }
        _ => Error::Broken(format!("the data folder cannot be used: {err}; choose another with --base DIR")),
    }
}

/// The data folder of a running server.
pub struct DataFolder {
    base: PathBuf,
    id: (u64, u64),
}

impl DataFolder {
    /// Marks the folder, once the server holds its lock. A full disk does not keep the server from starting.
    pub fn mark(&self) {
        if let Err(err) = init(&self.base) {
            log::warn!("the data folder is not marked as one: {err}");
        }
    }

    /// Errors if the path leads to another folder than at the start: the disk was unmounted, and what is below its mount
    /// point would look like a server without data.
    pub fn check(&self) -> Result<()> {
        match id_of(&self.base) {
            Ok(id) if id == self.id => Ok(()),
            Ok(_) => Err(Error::Busy(format!(
                "{} is another folder than when ankipi started: was its disk unmounted? Mount it and restart ankipi",
                self.base.display()
            ))),
            Err(err) => Err(Error::Busy(format!("the data folder {} is gone: {err}", self.base.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_folder_is_no_data_folder_until_it_is_made_one() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("a/b");
        let err = open(&base, true).map(drop).unwrap_err().to_string();
        assert!(err.contains("mount") && err.contains(&format!("ankipi init {}", base.display())), "{err}");
        assert!(!base.exists(), "a folder was made below the mount point");
        assert!(init(&base).unwrap() && !init(&base).unwrap());
        let mark = fs::read(base.join(MARK)).unwrap();
        open(&base, true).unwrap().mark();
        assert_eq!(fs::read(base.join(MARK)).unwrap(), mark, "the id changed");
    }

    #[test]
    fn folders_of_other_servers_and_before_the_mark_are_known() {
        let of_user = |name: &str| format!("anna/{name}");
        for path in [USERS_FILE.to_owned(), of_user(COLLECTION_FILE), of_user(MEDIA_INDEX_FILE)] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("anna")).unwrap();
            assert!(open(dir.path(), true).is_err());
            fs::write(dir.path().join(&path), "").unwrap();
            open(dir.path(), true).unwrap().mark();
            assert!(dir.path().join(MARK).exists(), "{path}");
        }
    }

    #[test]
    fn a_disk_that_is_unmounted_is_missed_and_welcome_again() {
        let dir = tempfile::tempdir().unwrap();
        let (base, disk) = (dir.path().join("base"), dir.path().join("disk"));
        let folder = open(&base, false).unwrap();
        folder.check().unwrap();
        fs::rename(&base, &disk).unwrap();
        assert!(folder.check().unwrap_err().to_string().contains("gone"));
        fs::create_dir(&base).unwrap();
        assert!(folder.check().unwrap_err().to_string().contains("unmounted"));
        fs::remove_dir(&base).unwrap();
        fs::rename(&disk, &base).unwrap();
        folder.check().unwrap();
    }
}
