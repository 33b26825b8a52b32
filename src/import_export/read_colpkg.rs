//! Reads collection packages (`.colpkg`) of every Anki, and puts their collection and media in place of a user's.
//!
//! Three kinds exist. Those of Anki 2.1.50 and later hold `collection.anki21b` and files that are zstd frames, and a list
//! `media` in protobuf. Older ones hold `collection.anki21` or `collection.anki2`, and a list in JSON. A newer package also
//! holds a small collection of the older names, which tells people to update Anki; so the newest name counts.
//!
//! Everything is streamed, except the list of media and the positions of the files in the zip.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crc32fast::Hasher as Crc32;
use sha1::{Digest, Sha1};
use unicode_normalization::UnicodeNormalization;

use crate::collection::blobs::proto::{Fields, Payload};
use crate::collection::full::restore;
use crate::compression::inflate::Inflater;
use crate::compression::zstd_decoder::Decoder;
use crate::error::{Error, Result};
use crate::files::FsyncingFile;
use crate::files::spool::Spool;
use crate::limits_and_timeouts::ZSTD_LARGE_WINDOW_BYTES;
use crate::limits_and_timeouts::{MEDIA_FILE_BYTES, MEDIA_FILES};
use crate::media::MediaStore;
use crate::media::name::MediaName;
use crate::media::zip::{META, ZipWriter};

/// Largest list of media that is read: some 500 000 names.
const MAX_LIST_BYTES: u64 = 64 * 1024 * 1024;

/// Files go into the store in batches of about this size.
const BATCH_BYTES: u64 = 2 * 1024 * 1024;

/// Packed bytes that are inflated at once: they become 1 MiB at most.
const INFLATE_BYTES: usize = 1024;

/// The result of an import.
pub struct Imported {
    /// Media files that are in the folder now.
    pub files: u64,
    /// Media files that could not be taken, and why.
    pub left_out: Vec<String>,
}

/// Replaces the collection in `dir` by that of the package, which is checked as an upload is, and adds its media. Call only
/// while no server runs. `progress` is called with the media files so far, and of how many.
pub fn import(
    package: &Path,
    dir: &Path,
    keep: usize,
    max_row_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Imported> {
    let zip = Zip::open(package)?;
    let (name, entry) = ["collection.anki21b", "collection.anki21", "collection.anki2"]
        .iter()
        .find_map(|name| zip.named.get(*name).map(|entry| (*name, entry)))
        .ok_or_else(|| zip.bad("there is no collection in it"))?;
    let is_packed = name.ends_with('b');
    let copy = restore::temporary_path(dir);
    let unpack = |file: &mut FsyncingFile| {
        io::copy(&mut zip.contents(entry, is_packed)?, file).map_err(|err| zip.bad(format!("{name}: {err}")))
    };
    let unpacked = FsyncingFile::create(&copy).and_then(|mut file| {
        unpack(&mut file)?;
        file.into_file().sync_all().map_err(Error::io("syncing", &copy))
    });
    let ready = unpacked.and_then(|()| restore::check_and_stamp(dir, package, &copy, max_row_bytes));
    let taken = ready.and_then(|()| take_media(&zip, dir, is_packed, progress));
    if taken.is_err() {
        let _ = std::fs::remove_file(&copy);
    }
    let taken = taken?;
    restore::put_imported(dir, &copy, keep)?;
    Ok(taken)
}

/// Adds the media of the package to the user's store, through the same steps as an upload of a device.
fn take_media(
    zip: &Zip,
    dir: &Path,
    is_packed: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Imported> {
    let store = MediaStore::open(dir);
    let mut imported = Imported { files: 0, left_out: Vec::new() };
    let mut batch: Vec<(MediaName, Spool)> = Vec::new();
    let list = media_list(zip, is_packed)?;
    for (done, listed) in (1..).zip(&list) {
        match read_media(zip, dir, listed, is_packed) {
            Ok(file) => batch.push(file),
            Err(Error::BadRequest(why)) => imported.left_out.push(format!("{:?}: {why}", listed.name)),
            Err(err) => return Err(err),
        }
        let bytes: u64 = batch.iter().map(|(_, file)| file.len()).sum();
        if batch.len() >= MEDIA_FILES || bytes >= BATCH_BYTES || done == list.len() as u64 {
            imported.files += upload(&store, dir, &mut batch)?;
            progress(done, list.len() as u64);
        }
    }
    store.close();
    Ok(imported)
}

/// Unpacks one file. `BadRequest` if it cannot be taken.
fn read_media(zip: &Zip, dir: &Path, listed: &Listed, is_packed: bool) -> Result<(MediaName, Spool)> {
    let name = MediaName::parse(listed.name.nfc().collect())
        .map_err(|why| Error::bad(format!("the name {}", why.0)))?;
    let entry = zip.numbered.get(&listed.entry).ok_or_else(|| Error::bad("it is not in the package"))?;
    let (mut spool, mut sha1) = (Spool::new(dir), Sha1::new());
    let mut contents = zip.open_entry(entry, is_packed).map_err(|err| Error::bad(err.to_string()))?;
    let mut block = vec![0; 64 * 1024];
    loop {
        let count = contents.read(&mut block).map_err(|err| Error::bad(format!("it is damaged: {err}")))?;
        if count == 0 {
            break;
        }
        sha1.update(&block[..count]);
        spool.write_all(&block[..count]).map_err(Error::io("writing in", dir))?;
        if spool.len() > MEDIA_FILE_BYTES {
            return Err(Error::bad("it is larger than 100 MiB, which no device syncs"));
        }
    }
    if spool.is_empty() {
        return Err(Error::bad("it is empty"));
    }
    let sum: [u8; 20] = sha1.finalize().into();
    match listed.sha1 {
        Some(expected) if expected != sum => Err(Error::bad("it has another checksum than the list says")),
        _ => Ok((name, spool)),
    }
}

fn upload(store: &MediaStore, dir: &Path, batch: &mut Vec<(MediaName, Spool)>) -> Result<u64> {
    if batch.is_empty() {
        return Ok(0);
    }
    let mut body = Spool::new(dir);
    let mut zip = ZipWriter::new(&mut body);
    let mut meta = Vec::new();
    for (number, (name, file)) in batch.iter_mut().enumerate() {
        let number = number.to_string();
        let bytes = file.len();
        let mut reader = file.reader().map_err(Error::io("reading in", dir))?;
        zip.add(&number, bytes, |sink| {
            let mut block = vec![0; 64 * 1024];
            loop {
                match reader.read(&mut block).map_err(Error::io("reading in", dir))? {
                    0 => return Ok(()),
                    count => sink(&block[..count])?,
                }
            }
        })?;
        meta.push((name.as_str().to_owned(), Some(number)));
    }
    let meta = serde_json::to_vec(&meta).map_err(|err| Error::Broken(format!("a list of media: {err}")))?;
    zip.add(META, meta.len() as u64, |sink| sink(&meta))?;
    zip.finish()?;
    store.upload(&body, &crate::media::upload::Room::UNLIMITED)?;
    let count = batch.len() as u64;
    batch.clear();
    Ok(count)
}

/// A media file as the package lists it.
struct Listed {
    name: String,
    /// The number that is its name in the zip.
    entry: u32,
    sha1: Option<[u8; 20]>,
}

fn media_list(zip: &Zip, is_packed: bool) -> Result<Vec<Listed>> {
    let Some(entry) = zip.named.get("media") else { return Ok(Vec::new()) };
    let mut list = Vec::new();
    let read = zip.contents(entry, is_packed)?.take(MAX_LIST_BYTES + 1).read_to_end(&mut list);
    read.map_err(|err| zip.bad(format!("its list of media: {err}")))?;
    if list.len() as u64 > MAX_LIST_BYTES {
        return Err(zip.bad("its list of media has over 64 MiB"));
    }
    if is_packed { list_of_protobuf(&list) } else { list_of_json(&list) }
        .ok_or_else(|| zip.bad("its list of media is damaged"))
}

fn list_of_json(list: &[u8]) -> Option<Vec<Listed>> {
    let names: BTreeMap<String, String> = serde_json::from_slice(list).ok()?;
    let listed =
        |(entry, name): (String, String)| Some(Listed { name, entry: entry.parse().ok()?, sha1: None });
    names.into_iter().map(listed).collect()
}

/// `MediaEntries`: entries with name (1), size (2), SHA-1 (3), and where it is not the position, their number (255).
fn list_of_protobuf(list: &[u8]) -> Option<Vec<Listed>> {
    let mut listed = Vec::new();
    for field in Fields::new(list) {
        let (1, Payload::Bytes(entry)) = field.ok()? else { continue };
        let mut one = Listed { name: String::new(), entry: u32::try_from(listed.len()).ok()?, sha1: None };
        for field in Fields::new(entry) {
            match field.ok()? {
                (1, Payload::Bytes(name)) => one.name = String::from_utf8(name.to_vec()).ok()?,
                (3, Payload::Bytes(sha1)) => one.sha1 = sha1.try_into().ok(),
                (255, Payload::Varint(number)) => one.entry = u32::try_from(number).ok()?,
                _ => {}
            }
        }
        listed.push(one);
    }
    Some(listed)
}

/// The directory of a zip, also one with 64-bit numbers.
struct Zip {
    path: PathBuf,
    file: File,
    /// Entries whose names are numbers: media files.
    numbered: BTreeMap<u32, Entry>,
    /// The few others.
    named: BTreeMap<String, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    is_deflated: bool,
    crc: u32,
    packed_bytes: u64,
    bytes: u64,
    head_at: u64,
}

/// A zip with more entries of other names is not a package.
const MAX_NAMED: usize = 100;

impl Zip {
    fn open(path: &Path) -> Result<Zip> {
        let file = File::open(path).map_err(Error::io("opening", path))?;
        let mut zip = Zip { path: path.to_owned(), file, numbered: BTreeMap::new(), named: BTreeMap::new() };
        zip.read_directory().map_err(|err| zip.bad(err))?;
        Ok(zip)
    }

    fn bad(&self, what: impl std::fmt::Display) -> Error {
        Error::Broken(format!("{} cannot be imported: {what}", self.path.display()))
    }

    fn read_directory(&mut self) -> io::Result<()> {
        let (start, bytes) = self.find_directory()?;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(start))?;
        let mut directory = BufReader::new(file.try_clone()?).take(bytes);
        loop {
            let mut head = [0; 46];
            match directory.read(&mut head[..1])? {
                0 => return Ok(()),
                _ => directory.read_exact(&mut head[1..])?,
            }
            if head[..4] != *b"PK\x01\x02" {
                return Err(damaged());
            }
            let mut variable = vec![0; usize::from(u16_at(&head, 28)) + usize::from(u16_at(&head, 30))];
            directory.read_exact(&mut variable)?;
            io::copy(&mut (&mut directory).take(u16_at(&head, 32).into()), &mut io::sink())?;
            let (name, extra) = variable.split_at(u16_at(&head, 28).into());
            let entry = Entry {
                is_deflated: match u16_at(&head, 10) {
                    0 => false,
                    8 => true,
                    other => return Err(io::Error::other(format!("an entry is packed by method {other}"))),
                },
                crc: u32_at(&head, 16),
                packed_bytes: u32_at(&head, 20).into(),
                bytes: u32_at(&head, 24).into(),
                head_at: u32_at(&head, 42).into(),
            };
            self.add(name, entry.with_64_bits(extra))?;
        }
    }

    fn add(&mut self, name: &[u8], entry: Entry) -> io::Result<()> {
        let name = std::str::from_utf8(name).map_err(|_| damaged())?;
        match name.parse() {
            Ok(number) => drop(self.numbered.insert(number, entry)),
            Err(_) if self.named.len() < MAX_NAMED => drop(self.named.insert(name.to_owned(), entry)),
            Err(_) => return Err(io::Error::other("it is no package of Anki")),
        }
        Ok(())
    }

    /// The start and the length of the directory. They are in the record at the end of the zip, before a comment.
    fn find_directory(&self) -> io::Result<(u64, u64)> {
        const END_BYTES: usize = 22;
        let len = self.file.metadata()?.len();
        let tail_at = len.saturating_sub((END_BYTES + usize::from(u16::MAX)) as u64);
        let mut tail = vec![0; (len - tail_at) as usize];
        self.file.read_exact_at(&mut tail, tail_at)?;
        let end = (0..=tail.len().checked_sub(END_BYTES).ok_or_else(no_zip)?)
            .rev()
            .find(|at| tail[*at..].starts_with(b"PK\x05\x06"))
            .ok_or_else(no_zip)?;
        let record = &tail[end..end + END_BYTES];
        let (bytes, start) = (u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
        // The locator of the record with 64-bit numbers is right in front of it.
        let big = end.checked_sub(20).map(|at| &tail[at..]).filter(|big| big.starts_with(b"PK\x06\x07"));
        let (start, bytes) = match big {
            Some(locator) => {
                let mut big = [0; 56];
                self.file.read_exact_at(&mut big, u64_at(locator, 8))?;
                if !big.starts_with(b"PK\x06\x06") {
                    return Err(damaged());
                }
                (u64_at(&big, 48), u64_at(&big, 40))
            }
            None => (start, bytes),
        };
        if start.checked_add(bytes).is_none_or(|end| end > len) { Err(damaged()) } else { Ok((start, bytes)) }
    }

    /// A reader of an entry. At its end it has checked length and checksum.
    fn open_entry(&self, entry: &Entry, is_zstd: bool) -> io::Result<Box<dyn Read + '_>> {
        let mut head = [0; 30];
        self.file.read_exact_at(&mut head, entry.head_at)?;
        if !head.starts_with(b"PK\x03\x04") {
            return Err(damaged());
        }
        let at = entry.head_at + 30 + u64::from(u16_at(&head, 26)) + u64::from(u16_at(&head, 28));
        let packed = BufReader::new(Section { file: &self.file, at, left: entry.packed_bytes });
        let plain: Box<dyn Read> = if entry.is_deflated {
            Box::new(Inflated { packed, inflater: Inflater::new(), out: Vec::new(), taken: 0 })
        } else {
            Box::new(packed)
        };
        let checked = Checked { inner: plain, crc: Crc32::new(), bytes: 0, entry: *entry };
        let decoded: Box<dyn Read> = if is_zstd {
            Box::new(Decoder::new(BufReader::new(checked), ZSTD_LARGE_WINDOW_BYTES)?)
        } else {
            Box::new(checked)
        };
        Ok(decoded)
    }

    /// As `open_entry`, of an entry without which there is nothing to import.
    fn contents(&self, entry: &Entry, is_zstd: bool) -> Result<Box<dyn Read + '_>> {
        self.open_entry(entry, is_zstd).map_err(|err| self.bad(err))
    }
}

impl Entry {
    /// Takes the numbers that do not fit into 32 bits from the extra fields.
    fn with_64_bits(mut self, mut extra: &[u8]) -> Entry {
        while extra.len() >= 4 {
            let (id, len) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
            let Some(field) = extra.get(4..4 + len) else { break };
            if id == 1 {
                let mut numbers = field.chunks_exact(8).map(|number| u64_at(number, 0));
                for value in [&mut self.bytes, &mut self.packed_bytes, &mut self.head_at] {
                    if *value == u64::from(u32::MAX) {
                        *value = numbers.next().unwrap_or(*value);
                    }
                }
            }
            extra = &extra[4 + len..];
        }
        self
    }
}

/// A part of a file.
struct Section<'f> {
    file: &'f File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buf[..wanted], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads a deflated entry.
struct Inflated<R> {
    packed: R,
    inflater: Inflater,
    out: Vec<u8>,
    /// Bytes of `out` that are read already.
    taken: usize,
}

impl<R: Read> Read for Inflated<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.out.len() && !self.inflater.is_ended() {
            let mut block = [0; INFLATE_BYTES];
            let count = self.packed.read(&mut block)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.out.clear();
            self.taken = 0;
            let out = &mut self.out;
            let pushed = self.inflater.push(&block[..count], &mut |data| {
                out.extend_from_slice(data);
                Ok::<_, io::Error>(())
            });
            pushed.map_err(|err| err.unwrap_or_else(damaged))?;
        }
        let count = buf.len().min(self.out.len() - self.taken);
        buf[..count].copy_from_slice(&self.out[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

/// Compares length and checksum with the directory at the end.
struct Checked<R> {
    inner: R,
    crc: Crc32,
    bytes: u64,
    entry: Entry,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.crc.update(&buf[..count]);
        self.bytes += count as u64;
        let is_at_end = count == 0 && !buf.is_empty();
        if is_at_end && (self.bytes != self.entry.bytes || self.crc.clone().finalize() != self.entry.crc) {
            return Err(io::Error::other("an entry does not match its checksum"));
        }
        Ok(count)
    }
}

fn no_zip() -> io::Error {
    io::Error::other("it is no zip, or is cut off")
}

fn damaged() -> io::Error {
    io::Error::other("it is damaged")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
