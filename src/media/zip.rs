//! The zips of media sync (sync-protocol.md 7.3 and 7.4). Implements only the part of the format that they use.
//!
//! The reader uses the central directory of a spooled body, because old clients write sizes nowhere else. The whole
//! directory is checked before the first entry is unpacked: numbers and sizes against limits, positions against each
//! other, local headers against the directory. The unpacked contents must match size and checksum. The writer stores
//! entries without compression; their lengths are known beforehand. Checksums follow the contents, so that each file is
//! read once, while it is sent.

use std::io::{self, Write};
use std::path::Path;

use crc32fast::Hasher as Crc32;

use crate::compression::inflate::Inflater;
use crate::error::{Error, Result};
use crate::files::spool::Spool;
use crate::limits_and_timeouts::{
    MEDIA_FILE_BYTES, MEDIA_FILES, MEDIA_ZIP_BYTES, MEDIA_ZIP_COMMENT_BYTES, MEDIA_ZIP_META_BYTES,
};

/// The entry that maps the other entries to files.
pub const META: &str = "_meta";

/// Entries are read in blocks of this size.
const BLOCK_BYTES: usize = 32 * 1024;

/// Stored contents of at least this size are spooled to a file instead of memory.
const LARGE_BYTES: usize = 1024 * 1024;

const LOCAL_MAGIC: u32 = 0x0403_4b50;
const CENTRAL_MAGIC: u32 = 0x0201_4b50;
const END_MAGIC: u32 = 0x0605_4b50;
const DESCRIPTOR_MAGIC: u32 = 0x0807_4b50;

const LOCAL_BYTES: usize = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: usize = 22;
const DESCRIPTOR_BYTES: usize = 16;

/// Flag: checksum and sizes follow the data.
const HAS_DESCRIPTOR: u16 = 1 << 3;
/// Flags of entries that we cannot read: encryption, patches, hidden headers.
const UNREADABLE: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;

/// A file in a zip.
pub struct Entry {
    name: Vec<u8>,
    method: Method,
    has_descriptor: bool,
    crc: u32,
    packed_bytes: u64,
    bytes: u64,
    head_at: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Stored,
    Deflated,
}

impl Method {
    fn of(number: u16) -> Result<Method> {
        match number {
            0 => Ok(Method::Stored),
            8 => Ok(Method::Deflated),
            other => Err(bad(format!("an entry is packed by method {other}"))),
        }
    }
}

impl Entry {
    /// Unpacked length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::bad(format!("media zip: {what}"))
}

/// A zip whose directory was read and checked.
pub struct ZipReader<'s> {
    spool: &'s Spool,
    entries: Vec<Entry>,
}

impl<'s> ZipReader<'s> {
    /// Reads and checks the directory.
    pub fn open(spool: &'s Spool) -> Result<ZipReader<'s>> {
        let entries = read_directory(spool)?;
        let zip = ZipReader { spool, entries };
        zip.check_places()?;
        Ok(zip)
    }

    /// The entry with this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name.as_bytes())
    }

    /// The contents of `_meta`.
    pub fn meta(&self) -> Result<Vec<u8>> {
        let entry = self.entry(META).ok_or_else(|| bad("there is no _meta"))?;
        if entry.bytes > MEDIA_ZIP_META_BYTES {
            return Err(bad(format!("_meta has {} bytes", entry.bytes)));
        }
        let mut meta = Vec::new();
        self.unpack(entry, |block| {
            meta.extend_from_slice(block);
            Ok(())
        })?;
        Ok(meta)
    }

    /// Passes the contents of an entry to `sink`, block by block. They are complete only if this returns without an
    /// error.
    pub fn unpack(&self, entry: &Entry, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut crc = Crc32::new();
        let mut left = entry.bytes;
        let mut checked_sink = |block: &[u8]| {
            left =
                left.checked_sub(block.len() as u64).ok_or_else(|| bad("an entry is longer than it says"))?;
            crc.update(block);
            sink(block)
        };
        match entry.method {
            Method::Stored => self.packed_blocks(entry, &mut checked_sink)?,
            Method::Deflated => self.inflate(entry, &mut checked_sink)?,
        }
        if left != 0 {
            return Err(bad("an entry is shorter than it says"));
        }
        if crc.finalize() == entry.crc { Ok(()) } else { Err(bad("an entry does not match its checksum")) }
    }

    /// The file of the spool, if it begins with the contents of this entry.
    pub fn file_of(&self, entry: &Entry) -> Result<Option<&'s Path>> {
        match self.spool.file() {
            Some((path, start)) if entry.method == Method::Stored && self.data_at(entry)? == start => {
                Ok(Some(path))
            }
            _ => Ok(None),
        }
    }

    fn data_at(&self, entry: &Entry) -> Result<u64> {
        let head: [u8; LOCAL_BYTES] = read_at(self.spool, entry.head_at)?;
        let variable = u64::from(u16_at(&head, 26)) + u64::from(u16_at(&head, 28));
        Ok(entry.head_at + LOCAL_BYTES as u64 + variable)
    }

    fn packed_blocks(&self, entry: &Entry, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut at = self.data_at(entry)?;
        let end = at + entry.packed_bytes;
        let mut block = vec![0; BLOCK_BYTES];
        while at < end {
            let count = (end - at).min(BLOCK_BYTES as u64);
            let block = &mut block[..count as usize];
            self.spool.read_exact_at(block, at).map_err(spool_error)?;
            sink(block)?;
            at += count;
        }
        Ok(())
    }

    fn inflate(&self, entry: &Entry, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut inflater = Inflater::new();
        self.packed_blocks(entry, &mut |block| match inflater.push(block, sink) {
            Ok(taken) if taken == block.len() => Ok(()),
            Ok(_) => Err(bad("data after the end of an entry")),
            Err(None) => Err(bad("an entry cannot be inflated")),
            Err(Some(err)) => Err(err),
        })?;
        if inflater.is_ended() { Ok(()) } else { Err(bad("an entry is cut off")) }
    }

    /// Checks each local header against the directory, and that no two entries overlap.
    fn check_places(&self) -> Result<()> {
        let mut places = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let head: [u8; LOCAL_BYTES] = read_at(self.spool, entry.head_at)?;
            let mut name = vec![0; usize::from(u16_at(&head, 26))];
            if u32_at(&head, 0) != LOCAL_MAGIC || name.len() != entry.name.len() {
                return Err(bad("an entry is not where the directory says"));
            }
            self.spool.read_exact_at(&mut name, entry.head_at + LOCAL_BYTES as u64).map_err(spool_error)?;
            let sizes = (u64::from(u32_at(&head, 18)), u64::from(u32_at(&head, 22)));
            let same = name == entry.name
                && Method::of(u16_at(&head, 8))? == entry.method
                && (u16_at(&head, 6) & HAS_DESCRIPTOR != 0) == entry.has_descriptor
                && (entry.has_descriptor
                    || (u32_at(&head, 14), sizes) == (entry.crc, (entry.packed_bytes, entry.bytes)));
            if !same {
                return Err(bad("an entry and the directory differ"));
            }
            places.push((entry.head_at, self.data_at(entry)? + entry.packed_bytes));
        }
        places.sort_unstable();
        if places.windows(2).any(|pair| pair[0].1 > pair[1].0)
            || places.last().is_some_and(|last| last.1 > self.spool.len())
        {
            Err(bad("entries overlap"))
        } else {
            Ok(())
        }
    }
}

/// Given the beginning of a zip, returns where the contents of its last entry begin, if they are stored, large and
/// incomplete. Works only while entries follow each other, and is only a hint: the reader uses the directory.
pub fn large_contents(zip: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let head = zip.get(at..at + LOCAL_BYTES)?;
        let is_plain = u32_at(head, 0) == LOCAL_MAGIC
            && u16_at(head, 6) & HAS_DESCRIPTOR == 0
            && Method::of(u16_at(head, 8)).ok()? == Method::Stored;
        let contents = at + LOCAL_BYTES + usize::from(u16_at(head, 26)) + usize::from(u16_at(head, 28));
        let bytes = u32_at(head, 18) as usize;
        at = contents.checked_add(bytes).filter(|_| is_plain)?;
        if at > zip.len() {
            return (contents <= zip.len() && bytes >= LARGE_BYTES).then_some(contents);
        }
    }
}

/// Finds the end record: the last one that is followed by a comment of the declared length.
fn find_end(spool: &Spool) -> Result<(u64, [u8; END_BYTES])> {
    let last_at = spool.len().checked_sub(END_BYTES as u64).ok_or_else(|| bad("it is too short"))?;
    for comment_bytes in 0..=MEDIA_ZIP_COMMENT_BYTES.min(last_at) {
        let end_at = last_at - comment_bytes;
        let end: [u8; END_BYTES] = read_at(spool, end_at)?;
        if u32_at(&end, 0) == END_MAGIC && u64::from(u16_at(&end, 20)) == comment_bytes {
            return Ok((end_at, end));
        }
    }
    Err(bad("it has no end; was it cut off?"))
}

fn read_directory(spool: &Spool) -> Result<Vec<Entry>> {
    let (end_at, end) = find_end(spool)?;
    let count = usize::from(u16_at(&end, 10));
    if count > MEDIA_FILES + 1 {
        return Err(bad(format!("it has {count} entries")));
    }
    let (bytes, start) = (u64::from(u32_at(&end, 12)), u64::from(u32_at(&end, 16)));
    if start + bytes != end_at {
        return Err(bad("the directory is not where it says"));
    }
    let mut at = start;
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    for _ in 0..count {
        let (entry, length) = read_directory_entry(spool, at)?;
        at += length;
        if at > end_at || entry.head_at >= start {
            return Err(bad("the directory overlaps with something"));
        }
        if entries.iter().any(|other| other.name == entry.name) {
            return Err(bad("two entries have one name"));
        }
        entries.push(entry);
    }
    if at != end_at {
        return Err(bad("the directory has another length than it says"));
    }
    if entries.iter().map(|entry| entry.bytes).sum::<u64>() > MEDIA_ZIP_BYTES {
        return Err(bad("it holds too much"));
    }
    Ok(entries)
}

fn read_directory_entry(spool: &Spool, at: u64) -> Result<(Entry, u64)> {
    let head: [u8; CENTRAL_BYTES] = read_at(spool, at)?;
    if u32_at(&head, 0) != CENTRAL_MAGIC {
        return Err(bad("the directory is damaged"));
    }
    let flags = u16_at(&head, 8);
    if flags & UNREADABLE != 0 {
        return Err(bad("an entry is encrypted"));
    }
    let mut name = vec![0; usize::from(u16_at(&head, 28))];
    // Entries have numbers as names.
    if name.len() > 255 {
        return Err(bad("an entry has a long name"));
    }
    spool.read_exact_at(&mut name, at + CENTRAL_BYTES as u64).map_err(spool_error)?;
    let length = CENTRAL_BYTES as u64
        + name.len() as u64
        + u64::from(u16_at(&head, 30))
        + u64::from(u16_at(&head, 32));
    let entry = Entry {
        name,
        method: Method::of(u16_at(&head, 10))?,
        has_descriptor: flags & HAS_DESCRIPTOR != 0,
        crc: u32_at(&head, 16),
        packed_bytes: u64::from(u32_at(&head, 20)),
        bytes: u64::from(u32_at(&head, 24)),
        head_at: u64::from(u32_at(&head, 42)),
    };
    if entry.bytes > MEDIA_FILE_BYTES {
        return Err(bad(format!("a file has {} bytes", entry.bytes)));
    }
    Ok((entry, length))
}

fn read_at<const N: usize>(spool: &Spool, at: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    spool.read_exact_at(&mut bytes, at).map_err(spool_error)?;
    Ok(bytes)
}

fn spool_error(err: io::Error) -> Error {
    match err.kind() {
        io::ErrorKind::UnexpectedEof => bad("something lies behind its end"),
        _ => Error::Io("reading", "spooled request".into(), err),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Header fields of each written entry: stored, sizes and checksum behind the contents, 1 January 1980.
const WRITTEN_HEAD: [u8; 10] = [20, 0, HAS_DESCRIPTOR as u8, 8, 0, 0, 0, 0, 0x21, 0];

/// The length of a zip, given the length of the name and of the contents of each entry.
pub fn zip_bytes(entries: impl Iterator<Item = (usize, u64)>) -> u64 {
    let per_entry = (LOCAL_BYTES + DESCRIPTOR_BYTES + CENTRAL_BYTES) as u64;
    END_BYTES as u64 + entries.map(|(name, bytes)| per_entry + 2 * name as u64 + bytes).sum::<u64>()
}

/// Writes a zip of stored entries.
pub struct ZipWriter<'w, W: Write> {
    out: &'w mut W,
    at: u64,
    directory: Vec<u8>,
    entries: u16,
}

impl<'w, W: Write> ZipWriter<'w, W> {
    /// An empty zip.
    pub fn new(out: &'w mut W) -> ZipWriter<'w, W> {
        ZipWriter { out, at: 0, directory: Vec::new(), entries: 0 }
    }

    /// Adds an entry of `bytes` bytes, which `contents` writes. Returns their CRC-32, and errors of `contents`.
    pub fn add(
        &mut self,
        name: &str,
        bytes: u64,
        contents: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<u32> {
        let head_at = self.small(self.at)?;
        let bytes = self.small(bytes)?;
        let mut head = LOCAL_MAGIC.to_le_bytes().to_vec();
        head.extend_from_slice(&WRITTEN_HEAD);
        head.extend_from_slice(&[0; 12]);
        head.extend_from_slice(&(name.len() as u32).to_le_bytes());
        head.extend_from_slice(name.as_bytes());
        self.write(&head)?;
        let (mut crc, start) = (Crc32::new(), self.at);
        contents(&mut |block| {
            crc.update(block);
            self.write(block)
        })?;
        if self.at - start != u64::from(bytes) {
            return Err(Error::Broken("an entry of a zip came out with another length".to_owned()));
        }
        let crc = crc.finalize();
        let mut sizes = Vec::with_capacity(12);
        [crc, bytes, bytes].iter().for_each(|number| sizes.extend_from_slice(&number.to_le_bytes()));
        self.write(&DESCRIPTOR_MAGIC.to_le_bytes())?;
        self.write(&sizes)?;
        let directory = &mut self.directory;
        directory.extend_from_slice(&CENTRAL_MAGIC.to_le_bytes());
        directory.extend_from_slice(&[20, 0]);
        directory.extend_from_slice(&WRITTEN_HEAD);
        directory.extend_from_slice(&sizes);
        directory.extend_from_slice(&(name.len() as u32).to_le_bytes());
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&head_at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
        self.entries += 1;
        Ok(crc)
    }

    /// Writes the directory. Returns the length of the zip.
    pub fn finish(mut self) -> Result<u64> {
        let directory = std::mem::take(&mut self.directory);
        let (start, bytes) = (self.small(self.at)?, self.small(directory.len() as u64)?);
        self.write(&directory)?;
        let mut end = END_MAGIC.to_le_bytes().to_vec();
        end.extend_from_slice(&[0; 4]);
        [self.entries; 2].iter().for_each(|count| end.extend_from_slice(&count.to_le_bytes()));
        end.extend_from_slice(&bytes.to_le_bytes());
        end.extend_from_slice(&start.to_le_bytes());
        end.extend_from_slice(&[0; 2]);
        self.write(&end)?;
        Ok(self.at)
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.out.write_all(data).map_err(Error::Disconnected)?;
        self.at += data.len() as u64;
        Ok(())
    }

    /// Numbers have 32 bits: old clients do not read the large-file extension.
    fn small(&self, number: u64) -> Result<u32> {
        u32::try_from(number).map_err(|_| Error::Broken("a media zip would have over 4 GiB".to_owned()))
    }
}
