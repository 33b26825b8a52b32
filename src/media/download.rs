//! A zip of files for a client, streamed from the files themselves.
//!
//! The files are opened under the lock. After that they may be replaced or deleted: the open files keep the contents
//! that the index describes. Before the reply begins, each is read and compared with its record (`lost_files`), so that no
//! client ever gets damaged bytes. While it is sent, its CRC is compared with that of the first reading.
//!
//! Clients drop as many names from their list as files arrive, whatever the files are, and ask for the rest. So a damaged
//! file is replaced by a second copy of another file in the reply: the client takes that one twice, which does no harm, and
//! goes on with the next names. There is no such reply when all files that it asks for are damaged. Then the request fails, and
//! the next sync does not list them any more.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use crate::error::{Error, Result};
use crate::limits_and_timeouts::{MEDIA_FILES, MEDIA_REPLY_BYTES};
use crate::media::index::Record;
use crate::media::lost_files::{self, Fault, Lost};
use crate::media::name::{MediaName, checked_name};
use crate::media::zip::{META, ZipWriter, zip_bytes};
use crate::media::{BLOCK_BYTES, MediaStore};

/// The files of one reply, open and compared with their records.
pub struct Download {
    files: Vec<WholeFile>,
    /// Which file each entry of the zip is.
    entries: Vec<usize>,
    meta: Vec<u8>,
}

struct WholeFile {
    name: MediaName,
    record: Record,
    file: File,
    crc: u32,
}

type Opened = (MediaName, Record, std::result::Result<File, Fault>);

impl MediaStore {
    /// Opens and checks the files that a client asks for, or as many of the first ones as go into one zip.
    pub fn download(&self, names: Vec<String>) -> Result<Download> {
        if names.len() > MEDIA_FILES {
            return Err(Error::bad(format!("{} media files at once", names.len())));
        }
        let names = names.into_iter().map(checked_name).collect::<Result<Vec<_>>>()?;
        let (asked, opened) = self.open_files(names)?;
        let (mut files, mut lost) = (Vec::with_capacity(opened.len()), Vec::new());
        for (name, record, file) in opened {
            match file.and_then(|file| Ok((lost_files::read_through(&file, &record)?, file))) {
                Ok((crc, file)) => files.push(WholeFile { name, record, file, crc }),
                Err(_) => lost.push(Lost { name, record }),
            }
        }
        self.forget_or_log(&lost);
        let smallest = files.iter().enumerate().min_by_key(|(_, file)| file.record.bytes);
        let mut entries: Vec<usize> = (0..files.len()).collect();
        match smallest {
            Some((smallest, _)) => entries.resize(asked, smallest),
            None if asked > 0 => return Err(Error::LostFile("is not there, damaged, or not readable")),
            None => {}
        }
        let meta = meta_of(&files, &entries)?;
        Ok(Download { files, entries, meta })
    }

    /// Returns how many of the names are answered, and those of them that the index lists.
    fn open_files(&self, names: Vec<MediaName>) -> Result<(usize, Vec<Opened>)> {
        self.read(|db| {
            let (mut asked, mut bytes, mut opened) = (0, 0, Vec::with_capacity(names.len()));
            for name in names {
                if bytes > MEDIA_REPLY_BYTES {
                    break;
                }
                asked += 1;
                // A file that another device has deleted since is passed over like a damaged one.
                if let Some(record) = db.record(&name)?.filter(Record::is_live) {
                    bytes += record.bytes;
                    let file = lost_files::open(&self.paths, &name, &record)?;
                    opened.push((name, record, file));
                }
            }
            Ok((asked, opened))
        })
    }
}

fn meta_of(files: &[WholeFile], entries: &[usize]) -> Result<Vec<u8>> {
    let names: serde_json::Map<String, serde_json::Value> = entries
        .iter()
        .enumerate()
        .map(|(n, file)| (n.to_string(), files[*file].name.as_str().into()))
        .collect();
    serde_json::to_vec(&names).map_err(|err| Error::Broken(format!("writing _meta: {err}")))
}

impl Download {
    /// How many files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The length of the zip.
    pub fn bytes(&self) -> u64 {
        let entries = self.entries.iter().enumerate();
        let entries = entries.map(|(n, file)| (n.to_string().len(), self.files[*file].record.bytes));
        zip_bytes(entries.chain([(META.len(), self.meta.len() as u64)]))
    }

    /// Writes the zip. No lock is held.
    pub fn write_to(self, out: &mut impl Write) -> Result<()> {
        let expected = self.bytes();
        let mut zip = ZipWriter::new(out);
        for (n, file) in self.entries.iter().enumerate() {
            let file = &self.files[*file];
            let sent = zip.add(&n.to_string(), file.record.bytes, |sink| file.send(sink))?;
            if sent != file.crc {
                // The reply ends in the middle, so the client keeps nothing of it.
                log::error!("media file {:?} reads differently each time", file.name.as_str());
                return Err(Error::LostFile("changed while it was sent"));
            }
        }
        zip.add(META, self.meta.len() as u64, |sink| sink(&self.meta))?;
        if zip.finish()? == expected {
            Ok(())
        } else {
            Err(Error::Broken("a media zip came out with another length".to_owned()))
        }
    }
}

impl WholeFile {
    fn send(&self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut at = 0;
        let mut block = vec![0; BLOCK_BYTES];
        while at < self.record.bytes {
            let wanted = (self.record.bytes - at).min(BLOCK_BYTES as u64) as usize;
            let block = &mut block[..wanted];
            self.file.read_exact_at(block, at).map_err(Error::io("reading", "a media file".as_ref()))?;
            sink(block)?;
            at += wanted as u64;
        }
        Ok(())
    }
}
