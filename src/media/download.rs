//! A zip of files for a client, streamed from the files themselves.
//!
//! The files are opened under the lock. After that they may be replaced or deleted, but an open file keeps the contents
//! that the index recorded. Each file is hashed while it is sent. If it differs from its record, the response is cut
//! off, so that no client keeps the file.

use std::fs::{self, File};
use std::io::{Read, Write};

use sha1::{Digest, Sha1};

use crate::error::{Error, Result};
use crate::media::index::Record;
use crate::media::name::MediaName;
use crate::media::upload::checked_name;
use crate::media::zip::{META, ZipWriter, zip_bytes};
use crate::media::{BLOCK_BYTES, MAX_FILES, MediaStore};

/// Maximum size of a zip, as on the official server: the file that exceeds it is the last. Clients request the rest.
const ENOUGH_BYTES: u64 = 2_621_440;

/// The open files of one response.
pub struct Download {
    files: Vec<OpenFile>,
    meta: Vec<u8>,
}

struct OpenFile {
    name: MediaName,
    file: File,
    record: Record,
}

impl MediaStore {
    /// Opens the requested files, or as many of the first ones as fit into one zip.
    pub fn download(&self, names: Vec<String>) -> Result<Download> {
        if names.len() > MAX_FILES {
            return Err(Error::bad(format!("{} media files at once", names.len())));
        }
        let names = names.into_iter().map(checked_name).collect::<Result<Vec<_>>>()?;
        let mut files = Vec::with_capacity(names.len());
        self.read(|db| {
            let mut bytes = 0;
            for name in names {
                if bytes > ENOUGH_BYTES {
                    break;
                }
                let Some(record) = db.record(&name)?.filter(Record::is_live) else {
                    return Err(Error::LostFile("is not in the index"));
                };
                bytes += record.bytes;
                files.push(self.open_file(name, record)?);
            }
            Ok(())
        })?;
        let meta = meta_of(&files)?;
        Ok(Download { files, meta })
    }

    fn open_file(&self, name: MediaName, record: Record) -> Result<OpenFile> {
        let path = name.path_in(&self.folder());
        let opened = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() == record.bytes => {
                File::open(&path).map_err(Error::io("opening", &path))
            }
            Ok(_) => Err(Error::LostFile("is not the file of its record")),
            Err(_) => Err(Error::LostFile("is missing")),
        };
        let file = opened.inspect_err(|err| log::debug!("media file {:?}: {err}", name.as_str()))?;
        Ok(OpenFile { name, file, record })
    }
}

fn meta_of(files: &[OpenFile]) -> Result<Vec<u8>> {
    let names: serde_json::Map<String, serde_json::Value> =
        files.iter().enumerate().map(|(n, file)| (n.to_string(), file.name.as_str().into())).collect();
    serde_json::to_vec(&names).map_err(|err| Error::Broken(format!("writing _meta: {err}")))
}

impl Download {
    /// The number of files.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The length of the zip in bytes.
    pub fn bytes(&self) -> u64 {
        let files = self.files.iter().enumerate();
        let entries = files.map(|(n, file)| (n.to_string().len(), file.record.bytes));
        zip_bytes(entries.chain([(META.len(), self.meta.len() as u64)]))
    }

    /// Writes the zip. The lock is not held.
    pub fn write_to(mut self, out: &mut impl Write) -> Result<()> {
        let expected = self.bytes();
        let mut zip = ZipWriter::new(out);
        for (n, open) in self.files.iter_mut().enumerate() {
            zip.add(&n.to_string(), open.record.bytes, |sink| open.send(sink))?;
        }
        zip.add(META, self.meta.len() as u64, |sink| sink(&self.meta))?;
        if zip.finish()? == expected {
            Ok(())
        } else {
            Err(Error::Broken("a media zip came out with another length".to_owned()))
        }
    }
}

impl OpenFile {
    fn send(&mut self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut sha1 = Sha1::new();
        let mut left = self.record.bytes;
        let mut block = vec![0; BLOCK_BYTES];
        while left > 0 {
            let wanted = left.min(BLOCK_BYTES as u64) as usize;
            let count = self
                .file
                .read(&mut block[..wanted])
                .map_err(Error::io("reading", "a media file".as_ref()))?;
            if count == 0 {
                break;
            }
            sha1.update(&block[..count]);
            sink(&block[..count])?;
            left -= count as u64;
        }
        if left == 0 && self.record.sha1 == <[u8; 20]>::from(sha1.finalize()) {
            Ok(())
        } else {
            log::debug!("media file {:?} has other contents than its record", self.name.as_str());
            Err(Error::LostFile("has other contents than it should"))
        }
    }
}
