//! Holds a request or reply body of any size in bounded memory: its start in memory, the rest in an unlinked file.
//!
//! A request is spooled before its user's lock is taken, and a reply before it is sent, so that no lock is held while a
//! socket is read or written. The clients' chunks of 250 rows nearly always fit in memory and cause no writes to the SD
//! card.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::config::user_name::SPOOL_PREFIX;
use crate::limits_and_timeouts::at_most::Permit;
use crate::limits_and_timeouts::{MEDIA_ZIP_MEMORY_BYTES, SPARE_MEMORY};

/// How much of a body stays in memory. 250 notes of 2 KB fit; six workers with a body and a reply each take 6 MiB.
const MEMORY_BYTES: usize = 512 * 1024;

/// A body that is written first, then read.
pub struct Spool {
    place: Place,
    memory: Vec<u8>,
    overflow: Option<File>,
    len: u64,
}

/// Where the part that does not fit in memory goes.
enum Place {
    /// An unlinked file in this folder.
    Nameless(PathBuf),
    /// This file. Dropping the spool deletes it, unless `keep_file` was called. With `permit` it may have more in memory.
    Named {
        path: PathBuf,
        starts_at: fn(&[u8]) -> Option<usize>,
        is_kept: Cell<bool>,
        permit: Option<Permit>,
    },
}

impl Spool {
    /// An empty spool that overflows into an unlinked file in `dir`.
    pub fn new(dir: &Path) -> Spool {
        Spool::at(Place::Nameless(dir.to_owned()))
    }

    /// An empty spool that overflows into the file at `path`, which can be kept, so that it need not be written twice. Once
    /// more than the usual amount is in memory, `starts_at` gets it. It returns the offset of the byte with which the file
    /// must begin, or `None` to keep collecting in memory, up to `MEDIA_ZIP_MEMORY_BYTES` while `SPARE_MEMORY` is free.
    /// Otherwise nothing stays in memory.
    pub fn with_file(path: PathBuf, starts_at: fn(&[u8]) -> Option<usize>) -> Spool {
        Spool::at(Place::Named { path, starts_at, is_kept: Cell::new(false), permit: None })
    }

    fn at(place: Place) -> Spool {
        Spool { place, memory: Vec::new(), overflow: None, len: 0 }
    }

    /// The path of the overflow file, and the offset of its first byte in the body. `None` if the file has no name or
    /// nothing has overflowed.
    pub fn file(&self) -> Option<(&Path, u64)> {
        match &self.place {
            Place::Named { path, .. } if self.overflow.is_some() => Some((path, self.memory.len() as u64)),
            _ => None,
        }
    }

    /// Truncates the overflow file to `bytes`, syncs it, and keeps it for the caller to rename or delete. The spool must
    /// not be read any more.
    pub fn keep_file(&self, bytes: u64) -> io::Result<()> {
        let (Place::Named { is_kept, .. }, Some(file)) = (&self.place, &self.overflow) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        is_kept.set(true);
        file.set_len(bytes)?;
        file.sync_all()
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The whole body, if all of it is in memory.
    pub fn memory(&self) -> Option<&[u8]> {
        self.overflow.is_none().then_some(&self.memory)
    }

    /// Reads the whole body from the start; may be called several times.
    pub fn reader(&mut self) -> io::Result<Box<dyn Read + '_>> {
        match &mut self.overflow {
            None => Ok(Box::new(Cursor::new(&self.memory))),
            Some(file) => {
                file.seek(SeekFrom::Start(0))?;
                Ok(Box::new(Cursor::new(&self.memory).chain(BufReader::new(file))))
            }
        }
    }
}

impl Spool {
    /// Fills the buffer with the bytes at `offset`.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // An offset over usize is after the part in memory.
        let in_memory = self.memory.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let count = in_memory.len().min(buf.len());
        let (head, rest) = buf.split_at_mut(count);
        head.copy_from_slice(&in_memory[..count]);
        if rest.is_empty() {
            return Ok(());
        }
        match &self.overflow {
            Some(file) => file.read_exact_at(rest, offset + count as u64 - self.memory.len() as u64),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Write for Spool {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = match &mut self.overflow {
            Some(file) => file.write(data)?,
            None => match self.place.starts_at(&self.memory, data.len()) {
                None => {
                    self.memory.extend_from_slice(data);
                    data.len()
                }
                Some(start) => {
                    let file = self.place.open()?;
                    let file = self.overflow.insert(file);
                    file.write_all(&self.memory[start..])?;
                    self.memory.truncate(start);
                    self.memory.shrink_to_fit();
                    file.write(data)?
                }
            },
        };
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Place {
    fn open(&self) -> io::Result<File> {
        match self {
            Place::Nameless(dir) => nameless_file(dir),
            Place::Named { path, .. } => {
                OpenOptions::new().read(true).write(true).create_new(true).open(path)
            }
        }
    }

    /// The offset in memory with which the file begins, or `None` if `more` bytes still go to memory.
    fn starts_at(&mut self, memory: &[u8], more: usize) -> Option<usize> {
        if memory.len() + more <= MEMORY_BYTES {
            return None;
        }
        let Place::Named { starts_at, permit, .. } = self else {
            return Some(memory.len());
        };
        if let Some(start) = starts_at(memory) {
            return Some(start.min(memory.len()));
        }
        *permit = permit.take().or_else(|| SPARE_MEMORY.try_take());
        match permit {
            Some(_) if memory.len() + more <= MEDIA_ZIP_MEMORY_BYTES => None,
            Some(_) => Some(memory.len()),
            None => Some(0),
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Place::Named { path, is_kept, .. } = &self.place
            && self.overflow.is_some()
            && !is_kept.get()
            && let Err(err) = fs::remove_file(path)
        {
            log::warn!("deleting {}: {err}", path.display());
        }
    }
}

/// Name prefix of overflow files. A crash may leave one; the next start deletes it.
pub const LEFTOVER_PREFIX: &str = SPOOL_PREFIX;

/// Deletes the overflow files that a crash left in a folder.
pub fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Never a folder: a user of an earlier release may be called like this.
        let is_file = entry.file_type()?.is_file();
        if is_file && entry.file_name().to_string_lossy().starts_with(LEFTOVER_PREFIX) {
            log::warn!("removed {}, which an interrupted request had left", entry.path().display());
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A path in `dir` for a temporary file, which no other caller gets. If a crash leaves the file, the next start deletes it.
pub fn unused_path(dir: &Path) -> PathBuf {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("{LEFTOVER_PREFIX}{}-{number}", std::process::id()))
}

fn nameless_file(dir: &Path) -> io::Result<File> {
    let path = unused_path(dir);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_on_both_sides_of_the_memory_bound() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, MEMORY_BYTES - 1, MEMORY_BYTES, MEMORY_BYTES + 1, 3 * MEMORY_BYTES] {
            let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut spool = Spool::new(dir.path());
            data.chunks(10_000).for_each(|piece| spool.write_all(piece).unwrap());
            assert_eq!(spool.len(), len as u64);
            for (from, to) in [(0, len), (len / 2, len), (len / 3, len / 2)] {
                let mut part = vec![0; to - from];
                spool.read_exact_at(&mut part, from as u64).unwrap();
                assert!(part == data[from..to], "{from}..{to} of {len}");
            }
            assert!(spool.read_exact_at(&mut [0], len as u64).is_err());
            for _ in 0..2 {
                let mut back = Vec::new();
                spool.reader().unwrap().read_to_end(&mut back).unwrap();
                assert!(back == data, "length {len}");
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the overflow file has no name");
        // But a moment in which a crash leaves it.
        fs::write(dir.path().join("spool-1-0"), "x").unwrap();
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_part_is_kept_as_a_file_or_goes_with_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("part");
        // The part begins at the first 2, and is known before there is too much for the memory.
        let starts_at = |memory: &[u8]| memory.iter().position(|byte| *byte == 2);
        for is_kept in [false, true] {
            let mut spool = Spool::with_file(path.clone(), starts_at);
            let ones = MEMORY_BYTES + 70;
            spool.write_all(&vec![1; ones]).unwrap();
            spool.write_all(&[2; 90]).unwrap();
            assert!(spool.file().is_none() && !path.exists());
            spool.write_all(&[3; 90]).unwrap();
            assert_eq!(spool.file(), Some((&*path, ones as u64)));
            let mut across = [0; 100];
            spool.read_exact_at(&mut across, ones as u64 - 5).unwrap();
            assert_eq!(across[..], [[1; 5].as_slice(), &[2; 90], &[3; 5]].concat());
            if is_kept {
                spool.keep_file(100).unwrap();
            }
            drop(spool);
            assert_eq!(path.exists(), is_kept);
        }
        assert_eq!(fs::read(&path).unwrap(), [[2; 90].as_slice(), &[3; 10]].concat());
    }

    #[test]
    fn a_spool_that_finds_no_part_to_keep_overflows_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = ["part", "other"].map(|name| dir.path().join(name));
        let fill = |path: &Path, blocks: u8| {
            let mut spool = Spool::with_file(path.to_owned(), |_| None);
            (0..blocks).for_each(|n| spool.write_all(&vec![n; MEMORY_BYTES]).unwrap());
            spool
        };
        // Other tests of this process hold no permit for long.
        let spool = loop {
            let spool = fill(&path, 7);
            if spool.file() != Some((&*path, 0)) {
                break spool;
            }
        };
        assert_eq!(spool.file(), Some((&*path, MEDIA_ZIP_MEMORY_BYTES as u64)));
        // While it has so much in memory, no other may.
        assert_eq!(fill(&other, 2).file(), Some((&*other, 0)));
    }

    #[test]
    fn a_spool_of_over_4_gib_is_read_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path());
        spool.write_all(&vec![1; 2 * MEMORY_BYTES]).unwrap();
        // A hole takes no room on the disk.
        let hole = 5 << 30;
        spool.overflow.as_mut().unwrap().seek(SeekFrom::Current(hole)).unwrap();
        spool.len += hole.unsigned_abs();
        spool.write_all(b"end").unwrap();
        let mut end = [9; 4];
        spool.read_exact_at(&mut end, spool.len() - 4).unwrap();
        assert_eq!(&end, b"\0end");
        assert!(spool.read_exact_at(&mut end, spool.len()).is_err());
    }
}
