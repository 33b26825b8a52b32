//! A zip of changes from a client. Each file is first written to a temporary file. Then all of them are moved into the
//! folder and recorded in the index. The header of `media` explains the order of these steps.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::files;
use crate::files::GentleFile;
use crate::files::spool::Spool;
use crate::files::temporary::TemporaryFile;
use crate::media::index::{MediaDb, Record};
use crate::media::name::{BadName, MediaName};
use crate::media::zip;
use crate::media::zip::{Entry, META, ZipReader};
use crate::media::{Intent, MAX_FILES, MediaStore, PENDING, Sha1Sum, State};
use crate::os::WholeFileSystem;
use crate::text::hex::hex;

/// The result of an upload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Changes in the zip. All of them were handled.
    pub processed: usize,
    /// The last usn afterwards.
    pub last_usn: i32,
    /// Files that are new or have new contents.
    pub added: usize,
    /// Their length in bytes.
    pub added_bytes: u64,
    /// Files that were deleted.
    pub deleted: usize,
}

/// A change that is ready to be put in place.
struct Staged {
    name: MediaName,
    change: Change,
}

enum Change {
    Delete,
    /// New contents, in a temporary file.
    Put(Record, StagedFile),
    /// The index and the folder already had these contents when they were checked.
    Same(Record),
}

/// New contents on their way into the folder.
struct StagedFile {
    file: TemporaryFile,
    /// The file, still to be synced. None for the file of the spool.
    unsynced: Option<File>,
}

/// How much of a zip stays in memory. Clients stop filling a zip below this size, so only one with a large file is
/// spooled to disk.
const SPOOL_BYTES: usize = 3 * 1024 * 1024;

impl MediaStore {
    /// A spool for a zip of changes. A large stored file is spooled to the temporary file that is renamed later, so
    /// that it is written once.
    pub fn spool(&self) -> Spool {
        Spool::with_file(self.next_staged_path(), SPOOL_BYTES, zip::large_contents)
    }

    /// Applies the changes of a zip: all of them, or on an error none.
    pub fn upload(&self, body: &Spool) -> Result<Outcome> {
        let zip = ZipReader::open(body)?;
        let pairs = read_meta(&zip)?;
        let processed = pairs.len();
        // Opened before anything is written, so that it tells of all errors.
        let disk = WholeFileSystem::of(&self.dir);
        let mut staged: Vec<Staged> = Vec::with_capacity(processed);
        for (name, entry) in pairs {
            let change = match entry {
                Some(entry) => self.stage(&zip, entry, &name)?,
                None => Change::Delete,
            };
            // The last change of a name wins.
            staged.retain(|other| other.name != name);
            staged.push(Staged { name, change });
        }
        sync(&staged, body, disk.as_ref()).map_err(|(path, err)| Error::Io("syncing", path, err))?;
        let outcome = self.put_in_place(&staged)?;
        Ok(Outcome { processed, ..outcome })
    }

    /// Writes an entry to a temporary file, unless the store already has it.
    fn stage(&self, zip: &ZipReader, entry: &Entry, name: &MediaName) -> Result<Change> {
        let known = self.read(|db| db.record(name))?.filter(|record| record.bytes == entry.bytes());
        let known = known.filter(|_| self.has_file(name, entry.bytes()));
        let file_of_spool = zip.file_of(entry)?;
        if known.is_some() || file_of_spool.is_some() {
            let sha1 = unpack(zip, entry, |_| Ok(()))?;
            if let Some(known) = known.filter(|known| known.sha1 == sha1) {
                return Ok(Change::Same(known));
            }
            if let Some(path) = file_of_spool {
                let staged = StagedFile { file: TemporaryFile::at(path.to_owned()), unsynced: None };
                return Ok(Change::Put(Record { sha1, bytes: entry.bytes() }, staged));
            }
        }
        let path = self.next_staged_path();
        let mut file = GentleFile::create(&path)?;
        let mut staged = StagedFile { file: TemporaryFile::at(path), unsynced: None };
        let sha1 = unpack(zip, entry, |block| {
            file.write_all(block).map_err(Error::io("writing", staged.file.path()))
        })?;
        staged.unsynced = Some(file.into_file());
        Ok(Change::Put(Record { sha1, bytes: entry.bytes() }, staged))
    }

    fn has_file(&self, name: &MediaName, bytes: u64) -> bool {
        fs::symlink_metadata(name.path_in(&self.folder()))
            .is_ok_and(|meta| meta.is_file() && meta.len() == bytes)
    }

    fn put_in_place(&self, staged: &[Staged]) -> Result<Outcome> {
        let mut state = self.lock()?;
        let db = state.writer(&self.dir)?;
        let mut changes = Vec::with_capacity(staged.len());
        for Staged { name, change } in staged {
            let live = db.record(name)?.filter(Record::is_live);
            match change {
                Change::Same(record) if live.as_ref() == Some(record) => {}
                Change::Same(_) => {
                    return Err(Error::Busy("another device changed the same media files".to_owned()));
                }
                Change::Delete if live.is_none() => {}
                _ => changes.push(Effective { name, change, live }),
            }
        }
        if changes.is_empty() {
            return Ok(Outcome { last_usn: db.totals()?.last_usn, ..Outcome::default() });
        }
        state.needs_recovery = true;
        let outcome = self.put_changes_in_place(&mut state, &changes)?;
        state.needs_recovery = false;
        Ok(outcome)
    }

    fn put_changes_in_place(&self, state: &mut State, changes: &[Effective]) -> Result<Outcome> {
        let folder = self.folder();
        files::replace_file(&self.dir, PENDING, &intents(changes)?)?;
        for Effective { name, change, .. } in changes {
            if let Change::Put(_, StagedFile { file, .. }) = change {
                let path = name.path_in(&folder);
                fs::rename(file.path(), &path).map_err(Error::io("renaming", file.path()))?;
            }
        }
        files::sync_folder(&folder)?;
        let outcome = record(state.writer(&self.dir)?, changes)?;
        if outcome.deleted > 0 {
            for Effective { name, .. } in changes.iter().filter(|one| matches!(one.change, Change::Delete)) {
                files::remove_if_there(&name.path_in(&folder))?;
            }
            files::sync_folder(&folder)?;
        }
        files::remove_if_there(&self.dir.join(PENDING))?;
        Ok(outcome)
    }
}

/// Passes the contents of an entry to `sink` and returns their SHA-1.
fn unpack(zip: &ZipReader, entry: &Entry, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<Sha1Sum> {
    let mut sha1 = Sha1::new();
    zip.unpack(entry, |block| {
        sha1.update(block);
        sink(block)
    })?;
    Ok(sha1.finalize().into())
}

/// Syncs the temporary files, after all are written: several of them by one flush of the whole disk, where that can be
/// relied on, as a flush is what a card is slow at. Otherwise one after the other: on a file system with a journal the first
/// fsync commits all of them. An error comes with what was being synced.
fn sync(
    staged: &[Staged],
    body: &Spool,
    disk: Option<&WholeFileSystem>,
) -> std::result::Result<(), (PathBuf, io::Error)> {
    let is_unsynced = |one: &&Staged| matches!(&one.change, Change::Put(_, file) if file.unsynced.is_some());
    let disk = disk.filter(|_| staged.iter().filter(is_unsynced).count() > 1);
    if let Some(disk) = disk {
        disk.sync().map_err(|err| ("a file system".into(), err))?;
    }
    for Staged { change, .. } in staged {
        if let Change::Put(record, StagedFile { file: temporary, unsynced }) = change {
            match unsynced {
                Some(_) if disk.is_some() => Ok(()),
                Some(file) => file.sync_all(),
                None => body.keep_file(record.bytes),
            }
            .map_err(|err| (temporary.path().to_owned(), err))?;
        }
    }
    Ok(())
}

/// A change that is not applied yet.
struct Effective<'s> {
    name: &'s MediaName,
    change: &'s Change,
    /// The current record, if the file exists.
    live: Option<Record>,
}

fn intents(changes: &[Effective]) -> Result<Vec<u8>> {
    let intents: Vec<Intent> = changes
        .iter()
        .map(|Effective { name, change, .. }| Intent {
            name: name.as_str().to_owned(),
            sha1: match change {
                Change::Put(record, _) | Change::Same(record) => Some(hex(&record.sha1)),
                Change::Delete => None,
            },
        })
        .collect();
    serde_json::to_vec(&intents).map_err(|err| Error::Broken(format!("writing {PENDING}: {err}")))
}

fn record(db: &MediaDb, changes: &[Effective]) -> Result<Outcome> {
    let mut recording = db.begin()?;
    let mut outcome = Outcome::default();
    for Effective { name, change, live } in changes {
        match change {
            // The record is right already, but its file was missing or damaged.
            Change::Put(record, _) if live.as_ref() == Some(record) => {}
            Change::Put(record, _) => {
                recording.put(name, record)?;
                outcome.added += 1;
                outcome.added_bytes += record.bytes;
            }
            Change::Delete => {
                recording.delete(name)?;
                outcome.deleted += 1;
            }
            Change::Same(_) => {}
        }
    }
    Ok(Outcome { last_usn: recording.commit()?, ..outcome })
}

type Pairs<'z> = Vec<(MediaName, Option<&'z Entry>)>;

/// Reads which entry is which file. All of it is checked before anything is unpacked.
fn read_meta<'z>(zip: &'z ZipReader) -> Result<Pairs<'z>> {
    let pairs: Vec<(String, Option<String>)> = serde_json::from_slice(&zip.meta()?)
        .map_err(|err| Error::bad(format!("media zip: _meta is malformed at column {}", err.column())))?;
    if pairs.len() > MAX_FILES {
        return Err(Error::bad(format!("media zip: {} changes", pairs.len())));
    }
    let mut found: Pairs = Vec::with_capacity(pairs.len());
    for (name, entry) in pairs {
        let name = checked_name(name)?;
        // Desktop before 2.1.22 and AnkiDroid send "" for a deletion.
        let entry = match entry.as_deref() {
            None | Some("") => None,
            Some(META) => return Err(Error::bad("media zip: _meta is no media file")),
            Some(entry) => Some(
                zip.entry(entry)
                    .ok_or_else(|| Error::bad("media zip: _meta names an entry that is missing"))?,
            ),
        };
        if entry.is_some_and(|entry| entry.bytes() == 0) {
            return Err(Error::bad("media zip: an empty file"));
        }
        if let Some(entry) = entry
            && found.iter().any(|(_, other)| other.is_some_and(|other| std::ptr::eq(other, entry)))
        {
            return Err(Error::bad("media zip: two files are one entry"));
        }
        found.push((name, entry));
    }
    Ok(found)
}

/// Checks a name that a client sent. The error holds the reason; the name itself is logged at level debug only.
pub fn checked_name(raw: String) -> Result<MediaName> {
    let shown = raw.chars().take(300).collect::<String>();
    MediaName::parse(raw).map_err(|BadName(reason)| {
        log::debug!("refused a media file named {shown:?}");
        Error::bad(format!("the name of a media file {reason}"))
    })
}
