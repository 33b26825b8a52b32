//! Data of other sync servers: where they keep what, and how it comes here.
//!
//! ankisyncd (Python) and anki-sync-server-rs share one layout: `auth.db` with names and salted hashes, and for each user
//! `collections/NAME/` with collection.anki2, collection.media/ and collection.media.server.db. The source is only read.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::accounts::password::Hash;
use crate::collection::FILE_NAME;
use crate::collection::full::restore;
use crate::error::{Error, Result};
use crate::files;
use crate::files::sqlite_files::{has_side_files, immutable_uri};
use crate::media::take_over::{Taken, import as import_media};

/// What a folder is.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// A data folder of Anki's own server, or of ours.
    Official,
    /// Of ankisyncd or anki-sync-server-rs.
    Ankisyncd,
}

/// Tells what a folder is; an error says what was looked for.
pub fn recognise(source: &Path) -> Result<Source> {
    if source.join(COLLECTIONS).is_dir() {
        return Ok(Source::Ankisyncd);
    }
    let mut folders = fs::read_dir(source).map_err(Error::io("reading", source))?.flatten();
    match folders.any(|folder| folder.path().join(FILE_NAME).exists()) {
        true => Ok(Source::Official),
        false => Err(Error::Broken(format!(
            "{dir} is not the folder of a sync server that is known here: neither {dir}/{COLLECTIONS}/ (ankisyncd, \
             anki-sync-server-rs) nor {dir}/NAME/{FILE_NAME} (Anki's own server)",
            dir = source.display()
        ))),
    }
}

const COLLECTIONS: &str = "collections";

/// One user of ankisyncd.
pub struct User {
    /// Checked by nobody yet.
    pub name: String,
    folder: PathBuf,
    /// None if `auth.db` does not know the user.
    pub hash: Option<Hash>,
}

/// The users that have a folder, by name.
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

/// Brings a user's collection and media into the data folder, whole or not at all. No server may run.
pub fn import(user: &User, base: &Path, max_row_bytes: u64) -> Result<Taken> {
    let (dir, unfinished) = (base.join(&user.name), base.join(format!("{}.new", user.name)));
    if dir.exists() {
        return Err(Error::Broken(format!(
            "there is something of {} in {} already",
            user.name,
            base.display()
        )));
    }
    // Of an attempt that was interrupted.
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
    files::give_all(base, &unfinished)?;
    files::sync_folder(&unfinished)?;
    fs::rename(&unfinished, &dir).map_err(Error::io("renaming", &unfinished))?;
    files::sync_folder(base)?;
    Ok(taken)
}

/// Where the usns of the other server have come to; 0 if it does not tell, which costs clients a comparison of all files.
fn last_media_usn(path: &Path) -> i32 {
    // ankisyncd and versions of anki-sync-server-rs name it differently.
    let ask = |db: &Connection, column: &str| -> Option<i32> {
        db.query_row(&format!("SELECT {column} FROM meta"), [], |row| row.get(0)).ok()
    };
    let found = open_to_read(path).ok().and_then(|db| ask(&db, "lastUsn").or_else(|| ask(&db, "last_usn")));
    found.filter(|usn| (0..i32::MAX / 2).contains(usn)).unwrap_or(0)
}

/// Opens a database without a trace beside it, unless a crash left something there that must be read, too.
fn open_to_read(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = match has_side_files(path) {
        true => Connection::open_with_flags(path, flags),
        false => Connection::open_with_flags(immutable_uri(path), flags | OpenFlags::SQLITE_OPEN_URI),
    };
    opened.map_err(|err| Error::Broken(format!("opening {}: {err}", path.display())))
}
