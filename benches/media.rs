//! Media files for the jobs, and the rounds of a media sync (spec, sync-protocol.md 7).

use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::Result;
use crate::client::Client;
use crate::zip::{read_zip, zip_of};

/// What clients put into one zip at the most.
const ZIP_FILES: usize = 25;

/// Media files that are the same in every run.
pub struct Media {
    /// The name and length of each.
    files: Vec<(String, usize)>,
}

impl Media {
    /// So many files of that length.
    pub fn new(count: usize, bytes: usize) -> Media {
        Media { files: (0..count).map(|n| (format!("file-{bytes}-{n}.jpg"), bytes)).collect() }
    }

    /// The zips that a client sends, each as a zstd frame, and how many files are in it.
    pub fn zips(&self) -> Result<Vec<(Vec<u8>, usize)>> {
        self.zips_of(ZIP_FILES)
    }

    /// The same with so many files in each.
    pub fn zips_of(&self, files: usize) -> Result<Vec<(Vec<u8>, usize)>> {
        let pack = |files: &[(String, usize)]| {
            let contents: Vec<Vec<u8>> = files.iter().map(|(name, bytes)| noise(name, *bytes)).collect();
            let changes: Vec<_> = files
                .iter()
                .zip(&contents)
                .map(|((name, _), data)| (name.as_str(), Some(&data[..])))
                .collect();
            Ok((zstd::encode_all(&zip_of(&changes)[..], 3)?, files.len()))
        };
        self.files.chunks(files).map(pack).collect()
    }

    /// Fetches everything as a new device does, and checks each file.
    pub fn fetch(&self, client: &mut Client) -> Result<()> {
        let mut names: Vec<String> = Vec::new();
        let mut usn = 0;
        loop {
            let page = client.call("mediaChanges", &json!({ "lastUsn": usn }).to_string())?;
            let rows = page["data"].as_array().ok_or_else(|| format!("mediaChanges: {page}"))?;
            let Some(last) = rows.last() else { break };
            usn = last[1].as_i64().ok_or("mediaChanges: a usn is no number")?;
            names.extend(rows.iter().filter_map(|row| Some(row[0].as_str()?.to_owned())));
        }
        let mut fetched = 0;
        while fetched < names.len() {
            let wanted: Vec<&str> = names[fetched..].iter().take(ZIP_FILES).map(String::as_str).collect();
            let mut entries = read_zip(&client.download_media(&wanted)?);
            let meta: Value = serde_json::from_slice(&entries.remove("_meta").ok_or("a zip without _meta")?)?;
            for (entry, data) in &entries {
                let name = meta[entry].as_str().ok_or("an entry without a name")?;
                let (_, bytes) =
                    self.files.iter().find(|(known, _)| known == name).ok_or("an unknown file")?;
                if Sha1::digest(data) != Sha1::digest(noise(name, *bytes)) {
                    return Err(format!("{name} came with other contents").into());
                }
            }
            fetched += entries.len();
        }
        let verdict = client.call("mediaSanity", &json!({ "local": fetched }).to_string())?;
        if fetched == self.files.len() && verdict["data"] == "OK" {
            Ok(())
        } else {
            Err(format!("{fetched} of {} files came, {verdict}", self.files.len()).into())
        }
    }
}

/// Bytes that do not pack, like pictures and sounds; the same for the same name.
fn noise(name: &str, bytes: usize) -> Vec<u8> {
    let mut state = name
        .bytes()
        .fold(0x9e37_79b9_7f4a_7c15u64, |seed, byte| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut data = Vec::with_capacity(bytes + 8);
    while data.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(bytes);
    data
}
