//! Media files that the disk lost or damaged, and how they come back.
//!
//! The server never sends bytes that differ from the index: a file is read and compared with its record before it is
//! sent. Nor does a fault of this disk become a deletion or a new version, which would destroy the copies of the devices.
//! A record without its file is *forgotten*: it is removed from the index as if there never had been such a file. To a device
//! that has the file nothing happens to it. Its count of files differs from the server's, so `mediaSanity` fails; the client
//! then scans its folder anew and, with its next sync, uploads what the server does not list.
//!
//! Clients compare counts only after they transferred something. So each commit that forgets something also adds a change
//! that means nothing to any client: the deletion of a name that no client can have.
//!
//! A file that the server may not open is not lost, so its record stays (`denied_files`).
//!
//! What is left of a damaged file goes to `damaged/`. A table of our own in `media.db` holds what was forgotten until a
//! device has sent it, for `ankipi status` and `ankipi check`.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crc32fast::Hasher as Crc32;
use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::files::damaged::{is_about_name, put_aside};
use crate::limits_and_timeouts::{MEDIA_FILES, MEDIA_REPLY_BYTES};
use crate::media::file_paths::FilePaths;
use crate::media::index::{MediaDb, Record, Recording};
use crate::media::name::MediaName;
use crate::media::{BLOCK_BYTES, MediaStore, State};

/// Usns that are left for changes after one that is taken over from a client.
const USNS_LEFT: i64 = 100_000_000;

/// How a file differs from its record.
#[derive(Debug)]
pub enum Fault {
    /// There is none.
    Missing,
    /// It is not a file, but a folder or something else.
    NoFile,
    /// It has another length.
    OtherLength,
    /// It has another checksum.
    OtherContents,
    /// The disk cannot read it.
    Unreadable(io::Error),
    /// The server may not open it, because of its owner or mode.
    Denied,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Missing => f.write_str("is missing"),
            Fault::NoFile => f.write_str("is not a file any more"),
            Fault::OtherLength => f.write_str("has another length than when it was sent"),
            Fault::OtherContents => f.write_str("has other contents than when it was sent"),
            Fault::Unreadable(err) => write!(f, "cannot be read: {err}"),
            Fault::Denied => f.write_str("may not be read by the server, because of its owner or mode"),
        }
    }
}

/// A file that was found damaged.
pub struct Lost {
    /// Its name.
    pub name: MediaName,
    /// Its record when it was looked at.
    pub record: Record,
}

/// Compares a file with its record without reading its contents. Errors are about the whole folder.
pub fn fault_at_a_glance(paths: &FilePaths, name: &MediaName, record: &Record) -> Result<Option<Fault>> {
    let path = paths.path_of(name);
    match fs::symlink_metadata(&path) {
        Ok(meta) if !meta.is_file() => Ok(Some(Fault::NoFile)),
        Ok(meta) if meta.len() != record.bytes => Ok(Some(Fault::OtherLength)),
        Ok(_) => Ok(None),
        Err(err) if err.kind() == ErrorKind::NotFound || is_about_name(&err) => Ok(Some(Fault::Missing)),
        // This process may not use the folder. That says nothing about its files.
        Err(err) if err.kind() == ErrorKind::PermissionDenied => Err(Error::Io("looking for", path, err)),
        Err(err) => Ok(Some(Fault::Unreadable(err))),
    }
}

/// Opens the file of a record.
pub fn open(
    paths: &FilePaths,
    name: &MediaName,
    record: &Record,
) -> Result<std::result::Result<File, Fault>> {
    if let Some(fault) = fault_at_a_glance(paths, name, record)? {
        return Ok(Err(fault));
    }
    let path = paths.path_of(name);
    match File::open(&path) {
        Ok(file) => Ok(Ok(file)),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(Err(Fault::Missing)),
        Err(err) if err.kind() == ErrorKind::PermissionDenied => Ok(Err(Fault::Denied)),
        // Descriptors or memory are short: that says nothing about the file.
        Err(err) if [libc::EMFILE, libc::ENFILE, libc::ENOMEM].map(Some).contains(&err.raw_os_error()) => {
            Err(Error::Io("opening", path, err))
        }
        Err(err) => Ok(Err(Fault::Unreadable(err))),
    }
}

/// Reads a file and compares it with its record. Returns its CRC-32, by which a second reading can be checked cheaply.
pub fn read_through(file: &File, record: &Record) -> std::result::Result<u32, Fault> {
    let (mut sha1, mut crc) = (Sha1::new(), Crc32::new());
    let mut block = vec![0; BLOCK_BYTES];
    let mut at = 0;
    while at < record.bytes {
        let wanted = (record.bytes - at).min(BLOCK_BYTES as u64) as usize;
        match file.read_at(&mut block[..wanted], at) {
            Ok(0) => return Err(Fault::OtherLength),
            Ok(count) => {
                sha1.update(&block[..count]);
                crc.update(&block[..count]);
                at += count as u64;
            }
            Err(err) if err.kind() == ErrorKind::Interrupted => {}
            Err(err) => return Err(Fault::Unreadable(err)),
        }
    }
    if record.sha1 == <[u8; 20]>::from(sha1.finalize()) {
        Ok(crc.finalize())
    } else {
        Err(Fault::OtherContents)
    }
}

/// What is wrong with the file of a record, if something is. Reads all of it.
pub fn fault(paths: &FilePaths, name: &MediaName, record: &Record) -> Result<Option<Fault>> {
    Ok(open(paths, name, record)?.and_then(|file| read_through(&file, record)).err())
}

/// Forgets the record of a lost file in a user's folder, and puts aside what is left of it.
pub fn forget_file(
    dir: &Path,
    paths: &FilePaths,
    db: &MediaDb,
    recording: &mut Recording<'_>,
    name: &MediaName,
    fault: &Fault,
) -> Result<()> {
    log::warn!(
        "{}: media file {:?} {fault}; it is asked back from the devices that have it",
        dir.display(),
        name.as_str()
    );
    if !matches!(fault, Fault::Missing) && !paths.is_of_twin(name, db)? {
        put_aside(dir, &paths.path_of(name), name.as_str());
    }
    recording.forget(name, &fault.to_string())
}

impl MediaStore {
    /// Forgets records whose files are lost, and puts aside what is left of them. Files that the server may not open are
    /// only noted.
    pub(super) fn forget(&self, lost: &[Lost]) -> Result<()> {
        self.write(|state| self.forget_in(lost, state))
    }

    fn forget_in(&self, lost: &[Lost], state: &mut State) -> Result<()> {
        let mut denied = Vec::new();
        let db = state.writer(&self.dir)?;
        let mut recording = db.begin()?;
        for Lost { name, record } in lost {
            // Another request may have repaired it meanwhile.
            if db.record(name)?.as_ref() != Some(record) {
                continue;
            }
            let fault = fault(&self.paths, name, record)?;
            if let Some(Fault::Denied) = fault {
                if recording.deny(name)? {
                    denied.push(name);
                }
            } else if let Some(fault) = fault {
                forget_file(&self.dir, &self.paths, db, &mut recording, name, &fault)?;
            }
        }
        recording.commit()?;
        self.log_denied(&denied);
        state.may_have_denied |= !denied.is_empty();
        Ok(())
    }

    /// Checks the next page of changes before it is listed to a client that knows everything up to `usn`: forgets files
    /// that are lost, so that the client does not request them. Contents are compared if the page is so small that the
    /// client could ask for all of it at once. Such a request would fail if nothing but damaged files were asked for.
    pub(super) fn look_after_page(&self, usn: i64) -> Result<()> {
        self.forget_if_behind(usn)?;
        let (mut lost, mut to_read, mut bytes) = (Vec::new(), Vec::new(), 0);
        self.read(|db| {
            db.records_after(usn, |name, record| {
                if fault_at_a_glance(&self.paths, &name, &record)?.is_some() {
                    lost.push(Lost { name, record });
                } else {
                    bytes += record.bytes;
                    if bytes <= MEDIA_REPLY_BYTES && to_read.len() <= MEDIA_FILES {
                        to_read.push(Lost { name, record });
                    }
                }
                Ok(())
            })
        })?;
        if bytes <= MEDIA_REPLY_BYTES && to_read.len() <= MEDIA_FILES {
            for read in to_read {
                if fault(&self.paths, &read.name, &read.record)?.is_some() {
                    lost.push(read);
                }
            }
        }
        self.forget_or_log(&lost);
        Ok(())
    }

    /// Forgets lost files if there are any. If the disk does not let it, they stay in the index: other files are served.
    pub(super) fn forget_or_log(&self, lost: &[Lost]) {
        if !lost.is_empty()
            && let Err(err) = self.forget(lost)
        {
            log::error!("{}: damaged media files stay in the index: {err}", self.dir.display());
        }
    }

    /// Forgets everything if a client knows a later usn than the index does. Then the folder was restored from a copy,
    /// and its files may be older than those of the devices. Clients would replace their files by the older ones.
    /// Forgetting makes them send all files instead; those that the folder already has are only compared.
    fn forget_if_behind(&self, client_usn: i64) -> Result<()> {
        // No server gave a usn that leaves no room for later ones, so such a usn is ignored.
        if client_usn > i64::from(i32::MAX) - USNS_LEFT || client_usn <= i64::from(self.totals()?.last_usn) {
            return Ok(());
        }
        self.write(|state| self.forget_all(client_usn, state))
    }

    fn forget_all(&self, client_usn: i64, state: &mut State) -> Result<()> {
        let mut recording = state.writer(&self.dir)?.begin()?;
        let ours = recording.last_usn();
        if client_usn <= i64::from(ours) {
            return Ok(());
        }
        let files = recording.forget_all(client_usn)?;
        recording.commit()?;
        log::warn!(
            "{}: the index of the media is older than what a device knows (usn {ours} here, {client_usn} there). Was \
             the folder put back from a copy? The devices are asked for all files ({files}) again, so that nothing newer \
             is lost",
            self.dir.display()
        );
        Ok(())
    }
}
