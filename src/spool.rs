//! A request or reply body of any size in bounded memory: the first part in memory, the rest in an unlinked file.
//!
//! Bodies are spooled whole before a user's lock is taken, and replies before they are sent, so that no lock is held
//! while a socket is read or written. The clients' chunks of 250 rows nearly always fit into memory, which spares the
//! SD card.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// How much of a body stays in memory. 250 notes of 2 KB fit; four workers with a body and a reply each take 4 MiB.
const MEMORY_BYTES: usize = 512 * 1024;

/// Written first, then read from the start.
pub struct Spool {
    dir: PathBuf,
    memory: Vec<u8>,
    overflow: Option<File>,
    len: u64,
}

impl Spool {
    /// An empty spool that overflows into a nameless file in `dir`.
    pub fn new(dir: &Path) -> Spool {
        Spool { dir: dir.to_owned(), memory: Vec::new(), overflow: None, len: 0 }
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Everything, if it is in memory.
    pub fn memory(&self) -> Option<&[u8]> {
        self.overflow.is_none().then_some(&self.memory)
    }

    /// Reads everything from the start; may be called again.
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
    /// Fills the buffer with what lies from `offset` on.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // A position that does not fit in memory lies behind what is there.
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
            None if self.memory.len() + data.len() <= MEMORY_BYTES => {
                self.memory.extend_from_slice(data);
                data.len()
            }
            None => self.overflow.insert(nameless_file(&self.dir)?).write(data)?,
        };
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The prefix of files that a crash may leave behind; the next start deletes them.
pub const LEFTOVER_PREFIX: &str = "spool-";

fn nameless_file(dir: &Path) -> io::Result<File> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let path = dir.join(format!("{LEFTOVER_PREFIX}{}-{number}", std::process::id()));
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
    }
}
