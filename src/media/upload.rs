//! A zip of changes from a client. Each file is first written to a temporary file. Then all of them are recorded in the index
//! and moved into the folder. The header of `media` explains the order of these steps.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::files;
use crate::files::FsyncingFile;
use crate::files::spool::Spool;
use crate::files::temporary::TemporaryFile;
use crate::limits_and_timeouts::MEDIA_FILES;
use crate::media::file_paths::FilePaths;
use crate::media::index::{MediaDb, Record, Recording};
use crate::media::lost_files;
use crate::media::name::{MediaName, checked_name, folded};
use crate::media::zip;
use crate::media::zip::{Entry, META, ZipReader};
use crate::media::{Listed, MediaStore, Sha1Sum, State, is_file};
use crate::os::WholeFileSystem;

/// So few changes are flushed file by file on a file system without a journal. One flush of the whole disk would write much
/// more: all blocks of the disk's own tables that changed, and the shared memory of the index.
const FEW_FILES: usize = 2;

/// Asks whether an upload may be stored: free disk space, and the user's quota.
pub struct Room<'r> {
    /// Whether so many bytes may be written, of which some are on the disk already.
    pub free: &'r dyn Fn(u64, u64) -> Result<()>,
    /// Whether all files together may have so many bytes.
    pub total: &'r dyn Fn(u64) -> Result<()>,
}

impl Room<'_> {
    /// No limit.
    pub const UNLIMITED: Room<'static> = Room { free: &|_, _| Ok(()), total: &|_| Ok(()) };

    /// Checks the size of all files once `added` bytes have taken the place of `replaced` ones.
    fn check_total(&self, total: i64, added: u64, replaced: u64) -> Result<()> {
        if added <= replaced {
            return Ok(());
        }
        (self.total)(u64::try_from(total).unwrap_or(0).saturating_add(added - replaced))
    }
}

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
    /// The folder already had these contents when it was checked.
    Same(Record),
}

/// The state of a name in the folder before an upload.
#[derive(PartialEq, Eq)]
enum Stored {
    No,
    /// A file with this record.
    Recorded(Sha1Sum),
    /// A file that was left there when its record was lost.
    Unrecorded,
}

/// New contents on their way into the folder.
struct StagedFile {
    file: TemporaryFile,
    /// The file, while it is still to be synced. None for the file of the spool.
    unsynced: Option<File>,
}

impl StagedFile {
    fn sync(&self) -> Result<()> {
        self.unsynced.as_ref().map_or(Ok(()), File::sync_all).map_err(Error::io("syncing", self.file.path()))
    }
}

impl MediaStore {
    /// A spool for a zip of changes. A large stored file is spooled to the temporary file that is renamed later, so
    /// that it is written once.
    pub fn spool(&self) -> Spool {
        Spool::with_file(self.next_staged_path(), zip::large_contents)
    }

    /// Applies the changes of a zip: all of them, or on an error none.
    pub fn upload(&self, body: &Spool, room: &Room<'_>) -> Result<Outcome> {
        let zip = ZipReader::open(body)?;
        let pairs = read_meta(&zip)?;
        self.check_room(&pairs, body, room)?;
        let processed = pairs.len();
        let is_small = processed <= FEW_FILES;
        // Opened before anything is written, so that it reports all write errors.
        let disk = WholeFileSystem::of(&self.dir).filter(|disk| disk.has_journal() || !is_small);
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
        sync_file_of_spool(&staged, body)?;
        if disk.is_none() && !is_small {
            // So many do not wait for the disk under the lock.
            sync_files(&mut staged)?;
        }
        let outcome = self.put_in_place(&staged, room, disk.as_ref())?;
        Ok(Outcome { processed, ..outcome })
    }

    /// Checks what the zip would store, before any of it is unpacked.
    fn check_room(&self, pairs: &Pairs<'_>, body: &Spool, room: &Room<'_>) -> Result<()> {
        let unpacked: u64 = pairs.iter().filter_map(|(_, entry)| *entry).map(Entry::bytes).sum();
        if unpacked == 0 {
            return Ok(());
        }
        // A large stored file is on the disk already, in the file that is renamed later.
        (room.free)(unpacked, body.file().map_or(0, |_| body.len()))?;
        let mut replaced = 0;
        for (name, _) in pairs {
            let live = self.read(|db| db.record(name))?.filter(Record::is_live);
            replaced += live.map_or(0, |record| record.bytes);
        }
        room.check_total(self.totals()?.bytes, unpacked, replaced)
    }

    /// Writes an entry to a temporary file, unless the store already has it.
    fn stage(&self, zip: &ZipReader, entry: &Entry, name: &MediaName) -> Result<Change> {
        let stored = self.stored(name, entry.bytes())?;
        let file_of_spool = zip.file_of(entry)?;
        if stored != Stored::No || file_of_spool.is_some() {
            let record = Record { sha1: unpack(zip, entry, |_| Ok(()))?, bytes: entry.bytes() };
            let may_be_same = match stored {
                Stored::No => false,
                Stored::Recorded(sha1) => sha1 == record.sha1,
                Stored::Unrecorded => true,
            };
            // The stored file is read, as the disk may have damaged it.
            if may_be_same && lost_files::fault(&self.paths, name, &record)?.is_none() {
                return Ok(Change::Same(record));
            }
            if let Some(path) = file_of_spool {
                let staged = StagedFile { file: TemporaryFile::at(path.to_owned()), unsynced: None };
                return Ok(Change::Put(record, staged));
            }
        }
        let path = self.next_staged_path();
        let mut file = FsyncingFile::create(&path)?;
        let mut staged = StagedFile { file: TemporaryFile::at(path), unsynced: None };
        let sha1 = unpack(zip, entry, |block| {
            file.write_all(block).map_err(Error::io("writing", staged.file.path()))
        })?;
        staged.unsynced = Some(file.into_file());
        Ok(Change::Put(Record { sha1, bytes: entry.bytes() }, staged))
    }

    /// Whether there is a file of this name and length.
    fn stored(&self, name: &MediaName, bytes: u64) -> Result<Stored> {
        if !self.paths.has_file(name, bytes) {
            return Ok(Stored::No);
        }
        self.read(|db| match db.record(name)?.filter(Record::is_live) {
            Some(record) if record.bytes == bytes => Ok(Stored::Recorded(record.sha1)),
            Some(_) => Ok(Stored::No),
            // On a disk that ignores case, it may be the file of another name.
            None if self.paths.ignores_case() && db.has_twin(name)? => Ok(Stored::No),
            None => Ok(Stored::Unrecorded),
        })
    }

    fn put_in_place(
        &self,
        staged: &[Staged],
        room: &Room<'_>,
        disk: Option<&WholeFileSystem>,
    ) -> Result<Outcome> {
        self.write(|state| self.put_staged_in_place(staged, room, disk, state))
    }

    fn put_staged_in_place(
        &self,
        staged: &[Staged],
        room: &Room<'_>,
        disk: Option<&WholeFileSystem>,
        state: &mut State,
    ) -> Result<Outcome> {
        let db = state.writer(&self.dir)?;
        let mut changes = Vec::with_capacity(staged.len());
        for Staged { name, change } in staged {
            let known = db.record(name)?;
            let is_known = known.is_some() || is_file(&self.paths.path_of(name));
            let live = known.filter(Record::is_live);
            match change {
                Change::Same(record) if live.as_ref() == Some(record) => {}
                Change::Same(_) if live.is_some() => {
                    return Err(Error::Busy("another device changed the same media files".to_owned()));
                }
                Change::Delete if live.is_none() && db.forgotten_record(name)?.is_none() => {}
                _ => {
                    let is_taken = live.is_none()
                        && self.paths.ignores_case()
                        && (db.has_twin(name)?
                            || changes.iter().any(|other: &Effective| other.is_twin_of(name)));
                    changes.push(Effective { name, change, is_known, live, is_taken });
                }
            }
        }
        if changes.is_empty() {
            return Ok(Outcome { last_usn: db.totals()?.last_usn, ..Outcome::default() });
        }
        // Again, as another device may have uploaded meanwhile.
        let added = changes.iter().map(Effective::added_bytes).sum();
        let replaced = changes.iter().filter_map(|one| one.live.as_ref()).map(|record| record.bytes).sum();
        room.check_total(db.totals()?.bytes, added, replaced)?;
        state.needs_recovery = true;
        let outcome = self.put_changes_in_place(state, &changes, disk);
        if outcome.is_err() {
            // Whether the transaction was committed, the file tells when it is opened anew.
            if let Err(err) = self.recover(state) {
                log::warn!("{}: the media are not in order yet: {err}", self.dir.display());
                return outcome;
            }
            changes.iter().filter_map(Effective::staged).for_each(|file| file.keep(false));
        }
        state.needs_recovery = false;
        outcome
    }

    fn put_changes_in_place(
        &self,
        state: &mut State,
        changes: &[Effective],
        disk: Option<&WholeFileSystem>,
    ) -> Result<Outcome> {
        state.writer(&self.dir)?;
        let Listed { last: before, durable } = state.listed;
        let db = state.writer(&self.dir)?;
        match disk.filter(|disk| disk.has_journal() && files::has_shared_memory(&self.dir)) {
            Some(disk) => {
                let (outcome, last) = self.record_and_flush_disk(db, changes, durable, disk)?;
                // The flush was one of the earlier renames, too.
                state.listed = Listed { last, durable: before };
                self.rename_all(state.writer(&self.dir)?, changes)?;
                Ok(outcome)
            }
            None => {
                let (outcome, last) = self.record_and_flush_files(db, changes, durable, disk)?;
                self.rename_all(state.writer(&self.dir)?, changes)?;
                self.flush_renames(changes)?;
                state.listed = Listed { last, durable: last };
                Ok(outcome)
            }
        }
    }

    /// Records and lists the changes, removes rows up to number `done` from the list, and makes all that and the temporary
    /// files durable. Returns the number of the last row, too.
    fn record_and_flush_disk(
        &self,
        db: &MediaDb,
        changes: &[Effective],
        done: i64,
        disk: &WholeFileSystem,
    ) -> Result<(Outcome, i64)> {
        if replaces_a_file(changes) {
            self.flush_disk(disk)?;
            return record(db.begin()?, changes, done);
        }
        let recorded = record(db.begin_unsynced()?, changes, done)?;
        self.flush_disk(disk).map(|()| recorded)
    }

    /// The same, file by file; but with `disk`, which has no journal, first all files.
    fn record_and_flush_files(
        &self,
        db: &MediaDb,
        changes: &[Effective],
        done: i64,
        disk: Option<&WholeFileSystem>,
    ) -> Result<(Outcome, i64)> {
        let contents = || changes.iter().try_for_each(|one| one.sync(&self.paths));
        // The next start looks for a temporary file only if its name is durable, too.
        let names = || files::sync_folder(&self.dir);
        let record = || record(db.begin()?, changes, done);
        match disk {
            // Without a journal, what the flush wrote may still be in a cache of the drive until the next sync of a file.
            Some(disk) => self.flush_disk(disk).and_then(|()| record()),
            None if replaces_a_file(changes) => {
                files::flush_at_once(&[&contents, &names], || Ok(()))?;
                record()
            }
            None => files::flush_at_once(&[&contents], record),
        }
    }

    fn flush_disk(&self, disk: &WholeFileSystem) -> Result<()> {
        disk.sync().map_err(Error::io("syncing the file system of", &self.dir))
    }

    fn rename_all(&self, db: &MediaDb, changes: &[Effective]) -> Result<()> {
        for Effective { name, change, is_taken, .. } in changes {
            match change {
                Change::Put(_, StagedFile { file, .. }) => self.paths.put(file.path(), name, *is_taken)?,
                Change::Delete if self.paths.is_of_twin(name, db)? => {}
                Change::Delete => files::remove_if_there(&self.paths.path_of(name))?,
                Change::Same(_) => {}
            }
        }
        Ok(())
    }

    /// Makes renames durable. On a file system without a journal the two folders of a rename are independent: if the new name of
    /// a file were lost and its old one removed, so would be the file.
    fn flush_renames(&self, changes: &[Effective]) -> Result<()> {
        if replaces_a_file(changes) {
            return self.paths.sync_renames();
        }
        let old_names = || files::sync_folder(&self.dir);
        files::flush_at_once(&[&old_names], || self.paths.sync())
    }
}

/// Whether a change replaces a file, or brings a deleted one back. Of what is flushed at the same time, a power cut may leave
/// the record without the contents: then the ones before would be lost.
fn replaces_a_file(changes: &[Effective]) -> bool {
    changes.iter().any(|one| one.is_known && matches!(one.change, Change::Put(..)))
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

/// Makes the file of the spool durable, if that is to become a media file.
fn sync_file_of_spool(staged: &[Staged], body: &Spool) -> Result<()> {
    for Staged { change, .. } in staged {
        if let Change::Put(record, StagedFile { file, unsynced: None }) = change {
            body.keep_file(record.bytes).map_err(Error::io("syncing", file.path()))?;
        }
    }
    Ok(())
}

/// Makes the other temporary files durable, after all are written: on a file system with a journal the first fsync commits all
/// of them.
fn sync_files(staged: &mut [Staged]) -> Result<()> {
    for Staged { change, .. } in staged {
        if let Change::Put(_, staged) = change {
            staged.sync()?;
            staged.unsynced = None;
        }
    }
    Ok(())
}

/// Makes a file durable that is to be recorded.
pub(super) fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("syncing", path))
}

/// A change that is not applied yet.
struct Effective<'s> {
    name: &'s MediaName,
    change: &'s Change,
    /// Whether the name has a record, be it that of a deleted file, or a file without one.
    is_known: bool,
    /// The current record, if the file exists.
    live: Option<Record>,
    /// Whether another file has this name in `media/`, as the file system ignores case.
    is_taken: bool,
}

impl Effective<'_> {
    fn staged(&self) -> Option<&TemporaryFile> {
        match self.change {
            Change::Put(_, staged) => Some(&staged.file),
            Change::Delete | Change::Same(_) => None,
        }
    }

    fn is_twin_of(&self, name: &MediaName) -> bool {
        matches!(self.change, Change::Put(..)) && folded(self.name.as_str()) == folded(name.as_str())
    }
}

impl Effective<'_> {
    /// Makes the contents durable.
    fn sync(&self, paths: &FilePaths) -> Result<()> {
        match self.change {
            Change::Put(_, staged) => staged.sync(),
            Change::Same(_) => sync_file(&paths.path_of(self.name)),
            Change::Delete => Ok(()),
        }
    }

    fn added_bytes(&self) -> u64 {
        match self.change {
            Change::Put(record, _) => record.bytes,
            Change::Delete | Change::Same(_) => 0,
        }
    }
}

/// Commits the changes and the list of them. From then on their temporary files are kept.
fn record(mut recording: Recording<'_>, changes: &[Effective], done: i64) -> Result<(Outcome, i64)> {
    let mut outcome = Outcome::default();
    for Effective { name, change, live, .. } in changes {
        // Devices that were not told of the file, because the server could not open it, get a new usn.
        let was_denied = recording.stop_denying(name.as_str())?;
        match change {
            // The record is right already, but its file was missing or damaged.
            Change::Put(record, _) if live.as_ref() == Some(record) && !was_denied => {}
            Change::Put(record, _) | Change::Same(record) => {
                recording.put(name, record)?;
                outcome.added += 1;
                outcome.added_bytes += record.bytes;
            }
            Change::Delete => {
                recording.delete(name)?;
                outcome.deleted += 1;
            }
        }
    }
    let rows = changes.iter().map(|one| (one.name.as_str(), one.staged().and_then(TemporaryFile::name)));
    let last = recording.list_pending(done, rows)?;
    // Also if the commit fails: it may be found done after all.
    changes.iter().filter_map(Effective::staged).for_each(|file| file.keep(true));
    let last_usn = recording.commit()?;
    Ok((Outcome { last_usn, ..outcome }, last))
}

type Pairs<'z> = Vec<(MediaName, Option<&'z Entry>)>;

/// Reads which entry is which file. All of it is checked before anything is unpacked.
fn read_meta<'z>(zip: &'z ZipReader) -> Result<Pairs<'z>> {
    let pairs: Vec<(String, Option<String>)> = serde_json::from_slice(&zip.meta()?)
        .map_err(|err| Error::bad(format!("media zip: _meta is malformed at column {}", err.column())))?;
    if pairs.len() > MEDIA_FILES {
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
