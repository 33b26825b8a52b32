//! Compares the media index with the folder, for `ankipi check`. No server is needed, and with `fix` none may run.
//!
//! Each repair is a change under a new usn, so that all clients get it. The folder decides: a file without a record is
//! recorded, a file with other contents is recorded as it is, and only a missing file is recorded as deleted. Neither
//! the list of files nor that of records is held in memory as a whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::media::index::{MediaDb, Recording};
use crate::media::name::{BadName, MediaName};
use crate::media::{FOLDER, MAX_FILE_BYTES, file_sha1, pending, recover, remove_staged};

/// Names read from the index at a time.
const NAMES_AT_ONCE: u32 = 500;

/// What a check does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depth {
    /// Read every file and compare it with its checksum, rather than compare lengths.
    pub deep: bool,
    /// Repair what is found.
    pub fix: bool,
}

/// Receives findings and progress of a check.
pub trait Listener {
    /// Something is wrong.
    fn problem(&mut self, what: String);
    /// Something is worth knowing, but not wrong.
    fn note(&mut self, what: String);
    /// `done` of `of` files were checked.
    fn progress(&mut self, done: u64, of: u64);
}

/// Compares the index in a user's folder with the files, and repairs what it can if `fix` is set. Returns the number of
/// problems that are left.
pub fn check(dir: &Path, depth: Depth, listener: &mut dyn Listener) -> Result<u64> {
    if depth.fix {
        remove_staged(dir)?;
        recover(dir)?;
    }
    let db = if depth.fix { MediaDb::open(dir)? } else { MediaDb::open_to_read(dir)? };
    if let Some(damage) = db.damage()? {
        listener.problem(format!(
            "media.db is damaged ({damage}). Stop the server, move it away, then run this again with --fix: it is \
             created again from the files"
        ));
        return Ok(1);
    }
    let pending: Vec<MediaName> = pending(dir)?.into_iter().map(|(name, _)| name).collect();
    if !pending.is_empty() {
        listener.note(format!(
            "an upload of {} media files was interrupted; the next start of the server finishes it",
            pending.len()
        ));
    }
    let mut check = Check {
        folder: dir.join(FOLDER),
        fix: depth.fix.then(|| db.begin()).transpose()?,
        db: &db,
        deep: depth.deep,
        pending,
        listener,
        unrepaired: 0,
    };
    check.records()?;
    check.files()?;
    check.totals()?;
    let unrepaired = check.unrepaired;
    match check.fix {
        Some(recording) => recording.commit().map(|_| unrepaired),
        None => Ok(unrepaired),
    }
}

struct Check<'c> {
    folder: PathBuf,
    db: &'c MediaDb,
    /// The transaction for repairs; None without `fix`.
    fix: Option<Recording<'c>>,
    deep: bool,
    /// Names of an interrupted upload, which are not checked.
    pending: Vec<MediaName>,
    listener: &'c mut dyn Listener,
    unrepaired: u64,
}

impl Check<'_> {
    /// Checks that each record has its file, with these contents.
    fn records(&mut self) -> Result<()> {
        let (total, mut done) = (self.db.totals()?.files.max(0) as u64, 0);
        let mut last = String::new();
        loop {
            let names = self.db.live_names_after(&last, NAMES_AT_ONCE)?;
            let Some(newest) = names.last() else {
                return Ok(());
            };
            last.clone_from(newest);
            for name in names {
                match MediaName::parse(name) {
                    Ok(name) if self.pending.contains(&name) => {}
                    Ok(name) => self.record(&name)?,
                    Err(BadName(reason)) => self.unusable_record(reason)?,
                }
                done += 1;
                self.listener.progress(done, total);
            }
        }
    }

    fn record(&mut self, name: &MediaName) -> Result<()> {
        let Some(record) = self.db.record(name)? else {
            return Ok(());
        };
        let path = name.path_in(&self.folder);
        let bytes =
            fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file).map_or(0, |meta| meta.len());
        if bytes == 0 || bytes > MAX_FILE_BYTES {
            let what = format!("{:?} is in the index, and not in the folder", name.as_str());
            return self.repair(what, "recorded as deleted", |fix| fix.delete(name));
        }
        if bytes == record.bytes && !self.deep {
            return Ok(());
        }
        match file_sha1(&path)? {
            Some(found) if found != record => {
                let what = format!("{:?} has other contents than the index says", name.as_str());
                self.repair(what, "recorded with these contents", |fix| fix.put(name, &found))
            }
            _ => Ok(()),
        }
    }

    fn unusable_record(&mut self, reason: &str) -> Result<()> {
        self.unrepaired += 1;
        self.listener.problem(format!("a name in the index {reason}; no client can have that file"));
        Ok(())
    }

    /// Checks that each file has a record.
    fn files(&mut self) -> Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(err) => return Err(Error::Io("reading", self.folder.clone(), err)),
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("reading", &self.folder))?;
            let meta = entry.metadata().map_err(Error::io("reading", &self.folder))?;
            let shown = entry.file_name().to_string_lossy().into_owned();
            let name = entry.file_name().into_string().map_err(|_| BadName("is not UTF-8"));
            match name.and_then(MediaName::parse) {
                _ if !meta.is_file() => {
                    self.listener.note(format!("{shown:?} is not a file; it is left alone"))
                }
                Ok(_) if meta.len() == 0 || meta.len() > MAX_FILE_BYTES => {
                    self.listener.note(format!(
                        "{shown:?} is empty or over 100 MiB, which no client takes; it is left alone"
                    ));
                }
                Ok(name) => self.file(&name)?,
                Err(BadName(reason)) => {
                    self.listener.note(format!("{shown:?}: a name that {reason}; it is left alone"));
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &MediaName) -> Result<()> {
        if self.pending.contains(name) || self.db.record(name)?.is_some_and(|record| record.is_live()) {
            return Ok(());
        }
        let what = format!("{:?} is in the folder, and not in the index", name.as_str());
        match file_sha1(&name.path_in(&self.folder))? {
            Some(found) => self.repair(what, "recorded", |fix| fix.put(name, &found)),
            None => Ok(()),
        }
    }

    fn totals(&mut self) -> Result<()> {
        if let Some(fix) = &self.fix {
            // The repairs so far are not in the table yet.
            fix.store_totals()?;
        }
        let (stored, counted) = (self.db.totals()?, self.db.counted_totals()?);
        if stored == counted {
            return Ok(());
        }
        let what = format!(
            "the index counts {} files and usn {}, and holds {} files and usn {}",
            stored.files, stored.last_usn, counted.files, counted.last_usn
        );
        self.repair(what, "counted again", |fix| {
            fix.recount(counted);
            Ok(())
        })
    }

    fn repair(
        &mut self,
        what: String,
        how: &str,
        repair: impl FnOnce(&mut Recording<'_>) -> Result<()>,
    ) -> Result<()> {
        match &mut self.fix {
            Some(fix) => {
                repair(fix)?;
                self.listener.problem(format!("{what}: {how}"));
            }
            None => {
                self.unrepaired += 1;
                self.listener.problem(what);
            }
        }
        Ok(())
    }
}
