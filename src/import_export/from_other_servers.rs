//! Imports the data of other sync servers.
//!
//! ankisyncd (Python) and anki-sync-server-rs have the same layout: `auth.db` with names and salted hashes, and for
//! each user `collections/NAME/` with collection.anki2, collection.media/ and collection.media.server.db. The source is
//! never changed.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::accounts::password::Hash;
use crate::collection::FILE_NAME;
use crate::collection::full::restore;
use crate::error::{Error, Result};
use crate::files;
use crate::files::sqlite_files::{has_side_files, immutable_uri};
use crate::media::import_folder::{ImportedMedia, import as import_media};

/// Which server a data folder belongs to.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// Anki's own server, or ankipi.
    Official,
    /// ankisyncd or anki-sync-server-rs.
    Ankisyncd,
}

/// Recognises a data folder. The error names the files that were looked for.
pub fn recognise(source: &Path) -> Result<Source> {
    if source.join(COLLECTIONS).is_dir() {
        return Ok(Source::Ankisyncd);
    }
    let mut folders = fs::read_dir(source).map_err(Error::io("reading", source))?.flatten();
    if folders.any(|folder| folder.path().join(FILE_NAME).exists()) {
        return Ok(Source::Official);
    }
    Err(Error::Broken(format!(
        "{dir} is not the data folder of a known sync server: it has neither {dir}/{COLLECTIONS}/ (ankisyncd, \
         anki-sync-server-rs) nor {dir}/NAME/{FILE_NAME} (Anki's own server)",
        dir = source.display()
    )))
}

const COLLECTIONS: &str = "collections";

/// One user of ankisyncd.
pub struct User {
    /// The name as found. Not checked to be a valid user name.
    pub name: String,
    folder: PathBuf,
    /// None if `auth.db` has no usable hash of the user.
    pub hash: Option<Hash>,
}

/// The users that have a folder with a collection, sorted by name.
pub fn users(source: &Path) -> Result<Vec<User>> {
    let auth = source.join("auth.db");
    let auth = auth.exists().then(|| open_to_read(&auth)).transpose()?;
    let collections = source.join(COLLECTIONS);
    let mut users = Vec::new();
    for entry in fs::read_dir(&collections).map_err(Error::io("reading", &collections))? {
        let folder = entry.map_err(Error::io("reading", &collections))?.path();
        let Some(name) = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned) else {
            continue;
        };
        if !folder.join(FILE_NAME).exists() {
            continue;
        }
        let stored: Option<String> = match &auth {
            Some(auth) => auth
                .query_row("SELECT hash FROM auth WHERE username = ?1", [&name], |row| row.get(0))
                .optional()?,
            None => None,
        };
        let hash = stored.and_then(|stored| Hash::of_ankisyncd(&name, &stored));
        users.push(User { name, folder, hash });
    }
    users.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(users)
}

/// Copies a user's collection and media into the data folder, all or nothing. `add_account` is called when the copy is complete,
/// before it gets its name: after a crash, a folder with the user's name has its account, and without one, the next run starts
/// anew. Call only while no server runs.
pub fn import<T>(
    user: &User,
    base: &Path,
    max_row_bytes: u64,
    add_account: impl FnOnce() -> Result<T>,
) -> Result<(ImportedMedia, T)> {
    let (dir, unfinished) = (base.join(&user.name), base.join(format!("{}.new", user.name)));
    if dir.exists() {
        return Err(Error::Broken(format!("{} exists already", dir.display())));
    }
    // Left over from an interrupted import.
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(Error::io("deleting", &unfinished))?;
    }
    files::create_folder(&unfinished)?;
    let copied =
        restore::copy_checked(&user.folder.join(FILE_NAME), &unfinished.join(FILE_NAME), max_row_bytes);
    let taken = copied.and_then(|()| {
        let last_usn = last_media_usn(&user.folder.join("collection.media.server.db"));
        import_media(&unfinished, &user.folder.join("collection.media"), last_usn)
    });
    if taken.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    let taken = taken?;
    files::give_tree_to_owner(base, &unfinished)?;
    files::sync_folder(&unfinished)?;
    let account = add_account()?;
    fs::rename(&unfinished, &dir).map_err(Error::io("renaming", &unfinished))?;
    files::sync_folder(base)?;
    Ok((taken, account))
}

/// The last media usn of the other server. 0 if it cannot be read; then clients compare all their media files once.
fn last_media_usn(path: &Path) -> i32 {
    // The column's name differs between ankisyncd and versions of anki-sync-server-rs.
    let ask = |db: &Connection, column: &str| -> Option<i32> {
        db.query_row(&format!("SELECT {column} FROM meta"), [], |row| row.get(0)).ok()
    };
    let found = open_to_read(path).ok().and_then(|db| ask(&db, "lastUsn").or_else(|| ask(&db, "last_usn")));
    found.filter(|usn| (0..i32::MAX / 2).contains(usn)).unwrap_or(0)
}

/// Opens a database without creating side files. If a crash left a journal, it is opened normally, to read that too.
fn open_to_read(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = if has_side_files(path) {
        Connection::open_with_flags(path, flags)
    } else {
        Connection::open_with_flags(immutable_uri(path), flags | OpenFlags::SQLITE_OPEN_URI)
    };
    opened.map_err(|err| Error::Broken(format!("opening {}: {err}", path.display())))
}
