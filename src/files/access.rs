//! Files that the server may not use: they belong to another user, or have the wrong mode, as after a copy by root.
//!
//! Nothing is damaged then, and one command repairs it. So each place that meets such a file reports its owner and the
//! command to type: the start of the server, its log, `check`, `status`, `doctor`.

use std::fmt::Write as _;
use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::data_folder::{COLLECTION_FILE, MEDIA_INDEX_FILE};
use crate::files::sqlite_files::SIDE_SUFFIXES;
use crate::os;

/// How many media files are looked at. A copy made by root has the same owner everywhere.
const MEDIA_FILES_LOOKED_AT: usize = 32;

/// The bit of `CapEff` in /proc that stands for the right to use files whatever their modes.
const CAP_DAC_OVERRIDE: u64 = 1 << 1;

/// A user of this machine, as whom a server runs.
pub struct ServerUser {
    uid: u32,
    /// Empty if they are not known.
    groups: Vec<u32>,
    /// Whether modes and owners do not count, as for root outside of most containers.
    overrides_modes: bool,
    knowledge: Knowledge,
}

/// How the user of the server is known.
#[derive(PartialEq, Eq)]
enum Knowledge {
    /// It is the user of this process: the kernel is asked what it may do.
    ThisProcess,
    /// The process of the server was seen.
    Seen,
    /// No server runs: the owner of the data folder is taken for its user.
    Guessed,
}

impl ServerUser {
    /// The user of this process.
    pub fn this_process() -> ServerUser {
        let uid = os::effective_user();
        let knowledge = Knowledge::ThisProcess;
        ServerUser { uid, groups: Vec::new(), overrides_modes: uid == 0, knowledge }
    }

    /// The user of the server that runs on the data folder, as the process `server`. If no server is visible: the owner
    /// of the folder if this process is root, otherwise the user of this process.
    pub fn of(base: &Path, server: Option<u32>) -> ServerUser {
        let running = server.and_then(|process| fs::read_to_string(format!("/proc/{process}/status")).ok());
        // In a container the number may be that of another process here. The program is also called anki-sync-server.
        if let Some(status) = running.filter(|status| status.starts_with("Name:\tanki")) {
            let numbers = |key: &str| -> Vec<u32> {
                let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
                line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
            };
            // Each line: real, effective, saved, for files.
            if let Some(uid) = numbers("Uid:").get(3) {
                let mut groups = numbers("Groups:");
                groups.extend(numbers("Gid:").get(3));
                let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
                let capabilities =
                    capabilities.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
                let overrides_modes = capabilities.map_or(*uid == 0, |all| all & CAP_DAC_OVERRIDE != 0);
                return ServerUser { uid: *uid, groups, overrides_modes, knowledge: Knowledge::Seen };
            }
        }
        match fs::metadata(base) {
            Ok(meta) if os::effective_user() == 0 => ServerUser {
                uid: meta.uid(),
                groups: vec![meta.gid()],
                overrides_modes: meta.uid() == 0,
                knowledge: Knowledge::Guessed,
            },
            _ => ServerUser::this_process(),
        }
    }

    fn may(&self, path: &Path, meta: &Metadata, write: bool, enter: bool) -> bool {
        if meta.uid() == self.uid && has_bits(meta.mode() >> 6, write, enter) {
            return true;
        }
        if self.knowledge == Knowledge::ThisProcess {
            // Other errors are not about owners and modes.
            return !os::check_access(path, write, enter)
                .is_err_and(|err| err.kind() == ErrorKind::PermissionDenied);
        }
        let class = match meta {
            _ if self.overrides_modes => return true,
            meta if meta.uid() == self.uid => 6,
            meta if self.groups.contains(&meta.gid()) => 3,
            _ => 0,
        };
        has_bits(meta.mode() >> class, write, enter)
    }
}

/// Whether the last three bits of a mode allow this.
fn has_bits(mode: u32, write: bool, enter: bool) -> bool {
    let wanted = 0o4 | if write { 0o2 } else { 0 } | if enter { 0o1 } else { 0 };
    mode & wanted == wanted
}

/// What cannot be synced because of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// Neither collection nor media.
    All,
    /// Only the media.
    Media,
}

/// A file or folder that the server may not use.
#[derive(Debug)]
pub struct Denied {
    /// What cannot be synced because of a file.
    pub concerns: Concerns,
    /// Its owner, and the command to type.
    pub text: String,
}

/// When the files that matter most were last changed, their owner and mode included, and the folders that hold the others: who
/// copies files into a folder, or gives a whole folder to another user, changes the folder too.
#[derive(PartialEq, Eq)]
pub struct Stamps([Option<(u64, i64, i64)>; 4]);

impl Stamps {
    /// As they are now, of a user's files.
    pub fn of(base: &Path, name: &str) -> Stamps {
        let dir = base.join(name);
        let stamp = |path: &Path| {
            let meta = fs::symlink_metadata(path).ok()?;
            Some((meta.ino(), meta.ctime(), meta.ctime_nsec()))
        };
        let of_file = |file: &str| stamp(&dir.join(file));
        Stamps([stamp(&dir), of_file("media"), of_file(COLLECTION_FILE), of_file(MEDIA_INDEX_FILE)])
    }
}

/// The first file or folder of a user that the server may not use. Looks at few files, and opens none of them: closing a
/// file that SQLite has open would release its locks.
pub fn denied_to(who: &ServerUser, base: &Path, name: &str) -> Option<Denied> {
    let dir = base.join(name);
    let (all, media) = (Concerns::All, Concerns::Media);
    let first = |concerns, paths: &[PathBuf]| {
        paths.iter().find_map(|path| denied_at(who, base, path)).map(|text| Denied { concerns, text })
    };
    let database = |name: &str| -> Vec<PathBuf> {
        [""].iter().chain(&SIDE_SUFFIXES).map(|suffix| dir.join(format!("{name}{suffix}"))).collect()
    };
    first(all, std::slice::from_ref(&dir))
        .or_else(|| first(all, &database(COLLECTION_FILE)))
        .or_else(|| first(all, &["keys", "backups"].map(|name| dir.join(name))))
        .or_else(|| first(media, &[dir.join("media")]))
        .or_else(|| first(media, &database(MEDIA_INDEX_FILE)))
        .or_else(|| first(media, &["media.pending", "media.odd", "damaged"].map(|name| dir.join(name))))
        .or_else(|| {
            let files = fs::read_dir(dir.join("media")).into_iter().flatten().flatten();
            let mut files = files.take(MEDIA_FILES_LOOKED_AT).map(|entry| entry.path());
            files
                .find_map(|path| denied_to_read(who, base, &path))
                .map(|text| Denied { concerns: media, text })
        })
}

/// A file that the server may not read. None if it may, or if there is no such file.
pub fn denied_to_read(who: &ServerUser, base: &Path, path: &Path) -> Option<String> {
    let meta = fs::symlink_metadata(path).ok()?;
    let is_readable = !meta.is_file() || who.may(path, &meta, false, false);
    (!is_readable).then(|| describe(who, base, path, &meta, "read"))
}

/// What the server may not use in the data folder itself: the folder, or the file with the accounts.
pub fn denied_in_base(who: &ServerUser, base: &Path, users_file: &str) -> Option<String> {
    denied_at(who, base, base).or_else(|| denied_at(who, base, &base.join(users_file)))
}

/// The file if the server may not use it. None also if there is no such file, and for links, which are refused elsewhere.
pub(super) fn denied_at(who: &ServerUser, base: &Path, path: &Path) -> Option<String> {
    let meta = fs::symlink_metadata(path).ok()?;
    let meta = if path == base { fs::metadata(path).ok()? } else { meta };
    if !meta.is_file() && !meta.is_dir() {
        return None;
    }
    let enter = meta.is_dir();
    if !who.may(path, &meta, false, enter) {
        Some(describe(who, base, path, &meta, "read"))
    } else if !who.may(path, &meta, true, enter) {
        Some(describe(who, base, path, &meta, "write to"))
    } else {
        None
    }
}

/// Errors if the data folder is another user's and this process may not use it: all that is in it would seem to be missing.
/// For commands: a packaged server has a user of its own, and `sudo` is easily forgotten.
pub fn refuse_stranger(base: &Path) -> Result<()> {
    let refuse = |owner: &str, how: &str| {
        let me = os::effective_user();
        let me = os::user_name(me).unwrap_or_else(|| me.to_string());
        Err(Error::Broken(format!(
            "the user {me} may not use {}{owner}. Type the same with sudo in front{how}",
            base.display()
        )))
    };
    let meta = match fs::metadata(base) {
        Ok(meta) => meta,
        Err(err) if err.kind() == ErrorKind::PermissionDenied => return refuse("", ""),
        Err(_) => return Ok(()),
    };
    let is_denied =
        os::check_access(base, true, true).is_err_and(|err| err.kind() == ErrorKind::PermissionDenied);
    if meta.uid() == os::effective_user() || !is_denied {
        return Ok(());
    }
    let owner = os::user_name(meta.uid()).unwrap_or_else(|| meta.uid().to_string());
    refuse(&format!(", which belongs to {owner}"), &format!(", or as {owner}"))
}

/// The owner of a file, and the command to type.
fn describe(who: &ServerUser, base: &Path, path: &Path, meta: &Metadata, verb: &str) -> String {
    let name = |uid: u32| os::user_name(uid).unwrap_or_else(|| uid.to_string());
    let server = name(who.uid);
    let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
    let is_owner = meta.uid() == who.uid;
    let mut text = format!("{} ", path.display());
    if is_owner {
        let _ = write!(text, "has the mode {:04o}", meta.mode() & 0o7777);
    } else {
        let _ = write!(text, "belongs to {}", name(meta.uid()));
    }
    let which = if who.knowledge == Knowledge::Guessed {
        format!("a server that runs as the user {server}, who owns the data folder,")
    } else {
        format!("the server, which runs as the user {server},")
    };
    let _ = write!(text, ", so that {which} cannot {verb} it. Nothing is damaged. Type this as root: ");
    let owner_may = has_bits(meta.mode() >> 6, verb != "read", meta.is_dir());
    if !is_owner {
        // With the colon, chown also sets the user's group. It needs a name for that.
        let colon = if os::user_name(who.uid).is_some() { ":" } else { "" };
        let _ = write!(text, "chown -R {server}{colon} {}", quoted(&base));
    }
    if is_owner || !owner_may {
        let and = if is_owner { "" } else { " && " };
        let _ = write!(text, "{and}chmod -R u+rwX {}", quoted(&base));
    }
    text
}

/// A path, quoted for a shell if needed.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_alphanumeric() || "/._-+@:,".contains(c)) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn stamps_change_with_the_mode_of_each_file_and_with_what_a_folder_holds() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("anna");
        fs::create_dir_all(dir.join("media")).unwrap();
        fs::write(dir.join("collection.anki2"), "").unwrap();
        fs::write(dir.join("media.db"), "").unwrap();
        let stamps = || Stamps::of(base.path(), "anna");
        let mut before = stamps();
        assert!(stamps() == before);
        let mut expect_change = |what: &str, change: &dyn Fn()| {
            // The kernel's clock for files has steps of some milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            assert!(stamps() != before, "{what}");
            before = stamps();
        };
        for name in [".", "media", "collection.anki2", "media.db"] {
            let path = dir.join(name);
            expect_change(name, &|| {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
            });
        }
        expect_change("keys", &|| fs::write(dir.join("keys"), "").unwrap());
        expect_change("a.jpg", &|| fs::write(dir.join("media/a.jpg"), "").unwrap());
        expect_change("gone", &|| fs::remove_file(dir.join("media.db")).unwrap());
    }

    #[test]
    fn the_first_file_that_the_server_may_not_use_is_named_with_the_remedy() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("anna");
        fs::create_dir_all(dir.join("media")).unwrap();
        for name in ["collection.anki2", "media.db", "keys", "media/a.jpg"] {
            fs::write(dir.join(name), "").unwrap();
        }
        let owner = fs::metadata(&dir).unwrap().uid();
        let seen = |uid| ServerUser {
            uid,
            groups: Vec::new(),
            overrides_modes: uid == 0,
            knowledge: Knowledge::Seen,
        };
        let (own, stranger) = (seen(owner.max(1)), seen(64_000));
        let text = denied_to(&stranger, base.path(), "anna").unwrap().text;
        assert!(text.contains(&format!("chown -R 64000 {}", base.path().display())), "{text}");
        if owner == 0 {
            // Root may use everything.
            assert!(denied_to(&seen(0), base.path(), "anna").is_none());
            return;
        }
        assert!(denied_to(&own, base.path(), "anna").is_none());
        fs::set_permissions(dir.join("media.db"), fs::Permissions::from_mode(0o400)).unwrap();
        let denied = denied_to(&own, base.path(), "anna").unwrap();
        assert_eq!(denied.concerns, Concerns::Media);
        assert!(denied.text.contains("chmod -R u+rwX") && !denied.text.contains("chown"), "{}", denied.text);
    }

    #[test]
    fn paths_are_quoted_for_a_shell() {
        assert_eq!(quoted(Path::new("/var/lib/ankipi")), "/var/lib/ankipi");
        assert_eq!(quoted(Path::new("/it's here")), "'/it'\\''s here'");
    }
}
