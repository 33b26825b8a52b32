//! A small store for tests.

use std::path::Path;

use sha1::{Digest, Sha1};

use crate::files::spool::Spool;
use crate::media::index::MediaDb;
use crate::media::upload::Room;
use crate::media::{FOLDER, MediaStore, Sha1Sum, file_sha1, zip};

/// A zip as a client sends it. No contents mean a deletion.
pub fn zip_of(dir: &Path, changes: &[(&str, Option<&str>)]) -> Spool {
    let mut spool = Spool::new(dir);
    let mut zip = zip::ZipWriter::new(&mut spool);
    let mut meta = Vec::new();
    for (name, contents) in changes {
        meta.push((name, contents.map(|_| *name)));
        if let Some(contents) = contents {
            zip.add(name, contents.len() as u64, |sink| sink(contents.as_bytes())).unwrap();
        }
    }
    let meta = serde_json::to_vec(&meta).unwrap();
    zip.add(zip::META, meta.len() as u64, |sink| sink(&meta)).unwrap();
    zip.finish().unwrap();
    spool
}

pub fn sum(contents: &str) -> Sha1Sum {
    Sha1::digest(contents).into()
}

/// A store that holds `a` and `b`, with "1" in them.
pub fn store() -> (tempfile::TempDir, MediaStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = MediaStore::open(dir.path());
    store.upload(&zip_of(dir.path(), &[("a", Some("1")), ("b", Some("1"))]), &Room::UNLIMITED).unwrap();
    (dir, store)
}

/// The state after the next start: each name with its usn and contents.
pub fn healed(dir: &Path) -> Vec<(String, i32, Option<Sha1Sum>)> {
    let store = MediaStore::open(dir);
    assert!(!dir.join("media.pending").exists());
    assert!(MediaDb::open_to_read(dir).unwrap().pending().unwrap().is_empty());
    let mut rows = Vec::new();
    store
        .changes_after(0, |change| {
            let on_disk = file_sha1(&dir.join(FOLDER).join(&change.name)).unwrap();
            assert_eq!(on_disk.map(|found| found.sha1), change.sha1, "{}", change.name);
            rows.push((change.name, change.usn, change.sha1));
            Ok(())
        })
        .unwrap();
    assert_eq!(store.totals().unwrap(), MediaDb::open_to_read(dir).unwrap().counted_totals().unwrap());
    rows
}

/// An element of what `healed` returns.
pub fn row(name: &str, usn: i32, contents: Option<&str>) -> (String, i32, Option<Sha1Sum>) {
    (name.to_owned(), usn, contents.map(sum))
}
