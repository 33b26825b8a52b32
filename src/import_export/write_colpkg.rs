//! Writes collection packages (`.colpkg`), which Anki imports: a zip with the collection and its media.
//!
//! Entries: `meta` is the version, `collection.anki21b` the collection, `0`, `1` and so on the media files, and `media`
//! the list of their names, lengths and checksums. All but `meta` are zstd frames. Everything is streamed: the
//! collection, the files and the list are never in memory as a whole. A package may exceed 4 GiB and 65 535 files, so
//! zip64 numbers are used where needed. The lengths of an entry are patched into its header after its contents were
//! written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crc32fast::Hasher as Crc32;
use sha1::{Digest, Sha1};

use crate::collection::blobs::proto::{put_bytes, put_tag, put_varint};
use crate::collection::full::download::Snapshot;
use crate::compression::zstd_encoder::Encoder;
use crate::error::{Error, Result};
use crate::files::spool::Spool;
use crate::files::{FsyncingFile, sync_folder};
use crate::media::name::MediaName;

/// `PackageMetadata` with version 3: zstd, media list as protobuf.
const META: [u8; 2] = [0x08, 3];

/// The file of a package that is not complete has this behind its name.
pub const UNFINISHED_SUFFIX: &str = ".new";

const BLOCK_BYTES: usize = 64 * 1024;

/// A written package.
pub struct Packed {
    /// Number of media files in it.
    pub files: u64,
    /// Number of media files that could not be read, and are not in it.
    pub left_out: u64,
    /// Size of the package file.
    pub bytes: u64,
}

/// What became of a media file.
pub enum Event<'e> {
    /// It is in the package, as one of so many so far.
    Packed(u64),
    /// It could not be read, for this reason, and is left out.
    LeftOut(&'e Path, &'e io::Error),
}

/// Writes a package to `path`, which must not exist. The file appears there when it is complete and synced. `media` is
/// the folder of media files and may be missing; `odd` are files that it cannot hold. `on_file` is called after each
/// media file. Files that cannot be read are left out.
pub fn write(
    snapshot: &Snapshot,
    media: &Path,
    odd: &[(MediaName, PathBuf)],
    path: &Path,
    on_file: &mut dyn FnMut(Event),
) -> Result<Packed> {
    if path.exists() {
        return Err(Error::Broken(format!("{} exists already; choose another name", path.display())));
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(UNFINISHED_SUFFIX);
    let unfinished = PathBuf::from(unfinished);
    let file = FsyncingFile::create(&unfinished).map_err(|err| match err {
        Error::Io(_, _, ref cause) if cause.kind() == io::ErrorKind::AlreadyExists => Error::Broken(format!(
            "{} exists already: another command writes it, or was interrupted. If none is running, delete it",
            unfinished.display()
        )),
        err => err,
    })?;
    let written = write_entries(snapshot, media, odd, file, folder, on_file).and_then(|packed| {
        fs::rename(&unfinished, path).map_err(Error::io("renaming", &unfinished))?;
        sync_folder(folder)?;
        Ok(packed)
    });
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written.map_err(|err| match err {
        // The writers report every write error as a closed connection. Here it is an error of the file.
        Error::Disconnected(err) => Error::Io("writing", path.to_owned(), err),
        other => other,
    })
}

fn write_entries(
    snapshot: &Snapshot,
    media: &Path,
    odd: &[(MediaName, PathBuf)],
    file: FsyncingFile,
    scratch: &Path,
    on_file: &mut dyn FnMut(Event),
) -> Result<Packed> {
    let mut archive = Archive { file, at: 0, directory: Spool::new(scratch), entries: 0 };
    archive.add("meta", |sink| sink.write_all(&META).map_err(Error::Disconnected))?;
    archive.add("collection.anki21b", |sink| {
        let mut encoder = Encoder::packing(sink);
        snapshot.write_to(&mut encoder)?;
        encoder.finish().map(drop).map_err(Error::Disconnected)
    })?;
    let mut list = Spool::new(scratch);
    let (mut files, mut left_out) = (0, 0);
    let entries = match fs::read_dir(media) {
        Ok(entries) => Some(entries),
        Err(err) if err.kind() == io::ErrorKind::NotFound => None,
        Err(err) => return Err(Error::Io("reading", media.to_owned(), err)),
    };
    let in_folder = entries.into_iter().flatten().filter_map(|entry| match entry {
        // Skips files whose names no client accepts.
        Ok(entry) => {
            let name = entry.file_name().into_string().ok().and_then(|name| MediaName::parse(name).ok());
            name.map(|name| Ok((name, entry.path())))
        }
        Err(err) => Some(Err(Error::Io("reading", media.to_owned(), err))),
    });
    for found in in_folder.chain(odd.iter().cloned().map(Ok)) {
        let (name, path) = found?;
        let added = match open(&path) {
            Ok(Some(file)) => add_file(&mut archive, files, file)?,
            Ok(None) => continue,
            Err(err) => Err(err),
        };
        match added {
            Ok((bytes, sha1)) => {
                let entry = list_entry(name.as_str(), bytes, &sha1);
                list.write_all(&entry).map_err(Error::io("writing in", scratch))?;
                files += 1;
                on_file(Event::Packed(files));
            }
            Err(err) => {
                left_out += 1;
                on_file(Event::LeftOut(&path, &err));
            }
        }
    }
    archive.add("media", |sink| {
        let mut encoder = Encoder::packing(sink);
        let mut list = list.reader().map_err(Error::io("reading in", scratch))?;
        io::copy(&mut list, &mut encoder).map_err(Error::Disconnected)?;
        encoder.finish().map(drop).map_err(Error::Disconnected)
    })?;
    let bytes = archive.finish(scratch)?;
    Ok(Packed { files, left_out, bytes })
}

/// Opens a media file. None if there is nothing to pack: clients treat an empty file as missing.
fn open(path: &Path) -> io::Result<Option<File>> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => {
            return Err(io::Error::other("it is a link, and may lead out of the data folder"));
        }
        Ok(meta) if meta.is_file() && meta.len() > 0 => {}
        Ok(_) => return Ok(None),
        Err(err) => return not_found_as_none(err),
    }
    File::open(path).map(Some).or_else(not_found_as_none)
}

/// A sync may delete a file after the folder was read.
fn not_found_as_none(err: io::Error) -> io::Result<Option<File>> {
    if err.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(err) }
}

/// Adds a media file; returns its length and SHA-1 for the list. If the file cannot be read, the archive is as before, and the
/// inner result is why.
fn add_file(archive: &mut Archive, number: u64, mut file: impl Read) -> Result<io::Result<(u64, [u8; 20])>> {
    let (mut bytes, mut sha1) = (0, Sha1::new());
    let start = archive.at;
    let mut unreadable = None;
    let added = archive.add(&number.to_string(), |sink| {
        let mut encoder = Encoder::raw(sink);
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let count = match file.read(&mut block) {
                Ok(0) => break,
                Ok(count) => count,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => {
                    unreadable = Some(err);
                    return Err(Error::Broken("a media file cannot be read".to_owned()));
                }
            };
            bytes += count as u64;
            sha1.update(&block[..count]);
            encoder.write_all(&block[..count]).map_err(Error::Disconnected)?;
        }
        encoder.finish().map(drop).map_err(Error::Disconnected)
    });
    match unreadable {
        Some(err) => archive.cut_back_to(start).map(|()| Err(err)),
        None => added.map(|()| Ok((bytes, sha1.finalize().into()))),
    }
}

/// One entry of `MediaEntries` in protobuf: name, size, SHA-1.
fn list_entry(name: &str, bytes: u64, sha1: &[u8]) -> Vec<u8> {
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, name.as_bytes());
    put_tag(&mut entry, 2, 0);
    put_varint(&mut entry, bytes);
    put_bytes(&mut entry, 3, sha1);
    let mut framed = Vec::new();
    put_bytes(&mut framed, 1, &entry);
    framed
}

/// A zip of uncompressed entries, with zip64 numbers where needed.
struct Archive {
    file: FsyncingFile,
    at: u64,
    directory: Spool,
    entries: u64,
}

/// Zip version 4.5, the first with zip64.
const VERSION: [u8; 2] = [45, 0];
/// 1980-01-01, the earliest date of the format. Every reader accepts it.
const DATE_AND_TIME: [u8; 4] = [0, 0, 0x21, 0];
/// The value that means "see the zip64 extra field".
const SEE_ZIP64: [u8; 4] = [0xff; 4];
/// Id of the zip64 extra field.
const ZIP64_ID: [u8; 2] = [1, 0];

impl Archive {
    fn add(&mut self, name: &str, contents: impl FnOnce(&mut Sink<'_>) -> Result<()>) -> Result<()> {
        let head_at = self.at;
        let mut head = b"PK\x03\x04".to_vec();
        head.extend_from_slice(&VERSION);
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(&DATE_AND_TIME);
        let crc_at = head_at + head.len() as u64;
        head.extend_from_slice(&[0; 4]);
        [SEE_ZIP64; 2].iter().for_each(|size| head.extend_from_slice(size));
        head.extend_from_slice(&(name.len() as u16).to_le_bytes());
        head.extend_from_slice(&20u16.to_le_bytes());
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(&ZIP64_ID);
        head.extend_from_slice(&16u16.to_le_bytes());
        let sizes_at = head_at + head.len() as u64;
        head.extend_from_slice(&[0; 16]);
        self.write(&head)?;
        let mut sink = Sink { archive: self, crc: Crc32::new(), bytes: 0 };
        contents(&mut sink)?;
        let (crc, bytes) = (sink.crc.finalize().to_le_bytes(), sink.bytes);
        let patched = self
            .file
            .patch(&crc, crc_at)
            .and_then(|()| self.file.patch(&[bytes.to_le_bytes(); 2].concat(), sizes_at));
        patched.map_err(Error::Disconnected)?;
        self.list(name, crc, bytes, head_at)
    }

    /// Removes an entry that was begun at this position.
    fn cut_back_to(&mut self, at: u64) -> Result<()> {
        self.file.truncate(at).map_err(Error::Disconnected)?;
        self.at = at;
        Ok(())
    }

    /// Adds the entry to the central directory, which `finish` writes.
    fn list(&mut self, name: &str, crc: [u8; 4], bytes: u64, head_at: u64) -> Result<()> {
        let mut extra = Vec::new();
        let mut size = SEE_ZIP64;
        let mut place = SEE_ZIP64;
        match u32::try_from(bytes) {
            Ok(small) if small < u32::MAX => size = small.to_le_bytes(),
            _ => [bytes; 2].iter().for_each(|bytes| extra.extend_from_slice(&bytes.to_le_bytes())),
        }
        match u32::try_from(head_at) {
            Ok(small) if small < u32::MAX => place = small.to_le_bytes(),
            _ => extra.extend_from_slice(&head_at.to_le_bytes()),
        }
        if !extra.is_empty() {
            let head = [ZIP64_ID, (extra.len() as u16).to_le_bytes()].concat();
            extra.splice(..0, head);
        }
        let mut line = b"PK\x01\x02".to_vec();
        line.extend_from_slice(&[VERSION, VERSION].concat());
        line.extend_from_slice(&[0; 4]);
        line.extend_from_slice(&DATE_AND_TIME);
        line.extend_from_slice(&[crc, size, size].concat());
        line.extend_from_slice(&(name.len() as u16).to_le_bytes());
        line.extend_from_slice(&(extra.len() as u16).to_le_bytes());
        line.extend_from_slice(&[0; 10]);
        line.extend_from_slice(&place);
        line.extend_from_slice(name.as_bytes());
        line.extend_from_slice(&extra);
        self.entries += 1;
        self.directory.write_all(&line).map_err(Error::Disconnected)
    }

    /// Writes the central directory and syncs the file; returns the length of the package.
    fn finish(mut self, scratch: &Path) -> Result<u64> {
        let (start, bytes) = (self.at, self.directory.len());
        let mut directory = std::mem::replace(&mut self.directory, Spool::new(scratch));
        let mut reader = directory.reader().map_err(Error::io("reading in", scratch))?;
        self.at += io::copy(&mut reader, &mut self.file).map_err(Error::Disconnected)?;
        let big_end_at = self.at;
        let mut end = b"PK\x06\x06".to_vec();
        end.extend_from_slice(&44u64.to_le_bytes());
        end.extend_from_slice(&[VERSION, VERSION].concat());
        end.extend_from_slice(&[0; 8]);
        for number in [self.entries, self.entries, bytes, start] {
            end.extend_from_slice(&number.to_le_bytes());
        }
        end.extend_from_slice(b"PK\x06\x07");
        end.extend_from_slice(&[0; 4]);
        end.extend_from_slice(&big_end_at.to_le_bytes());
        end.extend_from_slice(&1u32.to_le_bytes());
        end.extend_from_slice(b"PK\x05\x06");
        end.extend_from_slice(&[0; 4]);
        let entries = u16::try_from(self.entries).unwrap_or(u16::MAX).to_le_bytes();
        end.extend_from_slice(&[entries, entries].concat());
        for number in [bytes, start] {
            end.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        }
        end.extend_from_slice(&[0; 2]);
        self.write(&end)?;
        self.file.into_file().sync_all().map_err(Error::Disconnected)?;
        Ok(self.at)
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(data).map_err(Error::Disconnected)?;
        self.at += data.len() as u64;
        Ok(())
    }
}

/// Writer for the contents of one entry.
struct Sink<'a> {
    archive: &'a mut Archive,
    crc: Crc32,
    bytes: u64,
}

impl Write for Sink<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.archive.file.write(data)?;
        self.crc.update(&data[..count]);
        self.bytes += count as u64;
        self.archive.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that fails in the middle of a file.
    struct Failing;

    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }

    #[test]
    fn a_file_that_ends_in_an_error_leaves_nothing_in_the_package() {
        let dir = tempfile::tempdir().unwrap();
        let written = |name: &str, with_failing: bool| {
            let path = dir.path().join(name);
            let file = FsyncingFile::create(&path).unwrap();
            let mut archive = Archive { file, at: 0, directory: Spool::new(dir.path()), entries: 0 };
            add_file(&mut archive, 0, &b"first"[..]).unwrap().unwrap();
            if with_failing {
                let half = [7; 300_000].as_slice().chain(Failing);
                let err = add_file(&mut archive, 1, half).unwrap().unwrap_err();
                assert_eq!(err.raw_os_error(), Some(libc::EIO));
            }
            add_file(&mut archive, 1, &b"second"[..]).unwrap().unwrap();
            archive.finish(dir.path()).unwrap();
            fs::read(path).unwrap()
        };
        assert!(written("with", true) == written("without", false));
    }

    #[test]
    fn sizes_and_places_over_4_gib_have_64_bits_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let line = |bytes, head_at| {
            let file = FsyncingFile::create(&dir.path().join(format!("{bytes}-{head_at}"))).unwrap();
            let mut archive = Archive { file, at: 0, directory: Spool::new(dir.path()), entries: 0 };
            archive.list("0", [0; 4], bytes, head_at).unwrap();
            let line = archive.directory.memory().unwrap();
            (line[20..28].to_vec(), line[42..46].to_vec(), line[47..].to_vec())
        };
        let (small, large) = (7, (5 << 30) + 1);
        assert_eq!(line(small, small), ([[7, 0, 0, 0]; 2].concat(), vec![7, 0, 0, 0], vec![]));
        let (sizes, place, extra) = line(large, large + 1);
        assert_eq!((sizes, place), ([SEE_ZIP64; 2].concat(), SEE_ZIP64.to_vec()));
        let numbers = [large.to_le_bytes(), large.to_le_bytes(), (large + 1).to_le_bytes()].concat();
        assert_eq!(extra, [&[1, 0, 24, 0], numbers.as_slice()].concat());
        let (.., extra) = line(u32::MAX.into(), small);
        assert_eq!(extra.len(), 4 + 16, "all ones means that the number is in the zip64 field");
    }
}
