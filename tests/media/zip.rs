//! Writes and reads zips of media sync as clients do, and writes invalid ones. Also used by the benchmark.

use std::collections::BTreeMap;

use serde_json::json;

/// One entry to write, as it says it is and as it is.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    pub flags: u16,
    pub method: u16,
    pub crc: u32,
    pub bytes: u32,
    pub packed: Vec<u8>,
    /// Where the directory says it is, if not where it is.
    pub head_at: Option<u32>,
}

impl Entry {
    pub fn stored(name: &str, data: &[u8]) -> Entry {
        Entry {
            name: name.to_owned(),
            flags: 0,
            method: 0,
            crc: crc32(data),
            bytes: data.len() as u32,
            packed: data.to_vec(),
            head_at: None,
        }
    }

    pub fn deflated(name: &str, data: &[u8]) -> Entry {
        let packed = miniz_oxide::deflate::compress_to_vec(data, 6);
        Entry { method: 8, packed, ..Entry::stored(name, data) }
    }

    /// With a data descriptor, as Java writes them.
    pub fn described(name: &str, data: &[u8]) -> Entry {
        Entry { flags: 8, ..Entry::deflated(name, data) }
    }
}

pub fn write_zip(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let head_at = entry.head_at.unwrap_or(out.len() as u32);
        let sizes = [entry.crc, entry.packed.len() as u32, entry.bytes];
        let sizes: Vec<u8> = sizes.iter().flat_map(|number| number.to_le_bytes()).collect();
        let common: Vec<u8> =
            [20, entry.flags, entry.method, 0, 0x21].iter().flat_map(|number| number.to_le_bytes()).collect();
        let name_length = (entry.name.len() as u32).to_le_bytes();
        out.extend_from_slice(b"PK\x03\x04");
        out.extend_from_slice(&common);
        out.extend_from_slice(if entry.flags & 8 == 0 { &sizes } else { &[0; 12] });
        out.extend_from_slice(&name_length);
        out.extend_from_slice(entry.name.as_bytes());
        out.extend_from_slice(&entry.packed);
        if entry.flags & 8 != 0 {
            out.extend_from_slice(b"PK\x07\x08");
            out.extend_from_slice(&sizes);
        }
        directory.extend_from_slice(b"PK\x01\x02\x14\x03");
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&sizes);
        directory.extend_from_slice(&name_length);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&head_at.to_le_bytes());
        directory.extend_from_slice(entry.name.as_bytes());
    }
    let (count, at) = ((entries.len() as u16).to_le_bytes(), (out.len() as u32).to_le_bytes());
    out.extend_from_slice(&directory);
    out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    out.extend_from_slice(&count);
    out.extend_from_slice(&count);
    out.extend_from_slice(&(directory.len() as u32).to_le_bytes());
    out.extend_from_slice(&at);
    out.extend_from_slice(&[0, 0]);
    out
}

/// The zip that a client of today sends.
pub fn zip_of(changes: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut meta = Vec::new();
    for (n, (name, data)) in changes.iter().enumerate() {
        meta.push(json!([name, data.map(|_| n.to_string())]));
        entries.extend(data.map(|data| Entry::stored(&n.to_string(), data)));
    }
    entries.push(Entry::stored("_meta", json!(meta).to_string().as_bytes()));
    write_zip(&entries)
}

/// Reads a zip of stored entries as strictly as any client.
pub fn read_zip(zip: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let u16_at = |at: usize| usize::from(u16::from_le_bytes(zip[at..at + 2].try_into().unwrap()));
    let u32_at = |at: usize| u32::from_le_bytes(zip[at..at + 4].try_into().unwrap());
    let end = zip.len() - 22;
    assert_eq!(&zip[end..end + 4], b"PK\x05\x06");
    let (count, mut at) = (u16_at(end + 10), u32_at(end + 16) as usize);
    assert_eq!(at + u32_at(end + 12) as usize, end);
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        assert_eq!(&zip[at..at + 4], b"PK\x01\x02");
        let (crc, bytes, name) = (u32_at(at + 16), u32_at(at + 24) as usize, u16_at(at + 28));
        let head = u32_at(at + 42) as usize;
        assert_eq!(&zip[head..head + 4], b"PK\x03\x04");
        let start = head + 30 + u16_at(head + 26) + u16_at(head + 28);
        let data = zip[start..start + bytes].to_vec();
        assert_eq!(crc32(&data), crc);
        entries.insert(String::from_utf8(zip[at + 46..at + 46 + name].to_vec()).unwrap(), data);
        at += 46 + name;
    }
    entries
}

pub fn crc32(data: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (i, entry) in (0u32..).zip(&mut table) {
        *entry = (0..8).fold(i, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 });
    }
    !data.iter().fold(!0, |crc, byte| crc >> 8 ^ table[usize::from(crc as u8 ^ byte)])
}
