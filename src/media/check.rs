//! Checks that the index and the folder agree, for `ankipi check`. The server need not run; with `fix` it must not.
//!
//! A repair never takes anything from a device, and never makes damaged bytes the truth. A record whose file is missing or
//! damaged is forgotten (`lost_files`), so that a device which has the file sends it again. A file that the index does not know is
//! recorded as new. Neither the list of files nor that of records is ever held whole.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files::damaged::put_aside;
use crate::limits_and_timeouts::MEDIA_FILE_BYTES;
use crate::media::file_paths::FilePaths;
use crate::media::index::{FILE_NAME, MediaDb, Record, Recording};
use crate::media::lost_files::{self, Fault};
use crate::media::name::{BadName, MediaName};
use crate::media::{file_sha1, is_damage, pending, put_index_aside, remove_staged};
use crate::os::clock;
use crate::text::counted::counted;

/// How many names are held at a time.
const NAMES_AT_ONCE: u32 = 500;

/// How many forgotten files are named.
const MAX_NAMED: u32 = 20;

/// With `fix`, the check stops waiting for a file that no device has sent for this time.
const WAIT_FOR_DEVICES_SECS: i64 = 30 * 24 * 60 * 60;

/// What to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Depth {
    /// Read every file and compare it with its checksum, rather than compare lengths.
    pub deep: bool,
    /// Repair what is found.
    pub fix: bool,
}

/// Receives the findings and the progress of a check.
pub trait Listener {
    /// Something is not in order.
    fn problem(&mut self, what: String);
    /// Something is worth knowing, and is in order.
    fn note(&mut self, what: String);
    /// Another of so many files has been looked at.
    fn progress(&mut self, done: u64, of: u64);
}

/// Compares the index in a user's folder with the files, and repairs what it can if `fix` is set. Returns how many problems
/// are left.
pub fn check(dir: &Path, depth: Depth, listener: &mut dyn Listener) -> Result<u64> {
    if let Some(damage) = damage_of_index(dir)? {
        let what = format!("media.db is damaged ({damage})");
        if !depth.fix {
            listener.problem(format!(
                "{what}. The server begins a new one when a device syncs, and asks the devices for their files; so \
                 does --fix"
            ));
            return Ok(1);
        }
        put_index_aside(dir);
        listener.problem(format!("{what}: it is in damaged/ now, and the devices send their files again"));
        // What is in the folder is recorded by a later check, if no device sends it.
        return Ok(0);
    }
    let paths = FilePaths::new(dir);
    if depth.fix {
        pending::finish(dir, &paths)?;
        remove_staged(dir, &[])?;
    }
    let db = if depth.fix { MediaDb::open(dir)? } else { MediaDb::open_to_read(dir)? };
    let pending = pending::unfinished(dir, &paths, &db)?;
    if !pending.is_empty() {
        listener.note(format!(
            "an upload of {} was interrupted; the next start of the server finishes it",
            counted(pending.len(), "media file")
        ));
    }
    let mut check = Check {
        dir: dir.to_owned(),
        paths,
        fix: depth.fix.then(|| db.begin()).transpose()?,
        db: &db,
        deep: depth.deep,
        pending,
        listener,
        unrepaired: 0,
    };
    check.forgotten()?;
    check.records()?;
    check.files()?;
    check.totals()?;
    let unrepaired = check.unrepaired;
    match check.fix {
        Some(recording) => recording.commit().map(|_| unrepaired),
        None => Ok(unrepaired),
    }
}

/// What SQLite finds wrong with the index.
fn damage_of_index(dir: &Path) -> Result<Option<String>> {
    if dir.join(FILE_NAME).is_dir() {
        return Ok(Some("it is a folder".to_owned()));
    }
    match MediaDb::open_to_read(dir).and_then(|db| db.damage()) {
        Err(err) if is_damage(&err) => Ok(Some(err.to_string())),
        found => found,
    }
}

struct Check<'c> {
    dir: PathBuf,
    paths: FilePaths,
    db: &'c MediaDb,
    /// The transaction for repairs; None without `fix`.
    fix: Option<Recording<'c>>,
    deep: bool,
    /// Names that an interrupted upload had to do with.
    pending: Vec<MediaName>,
    listener: &'c mut dyn Listener,
    unrepaired: u64,
}

impl Check<'_> {
    /// Reports the files that the devices are asked for.
    fn forgotten(&mut self) -> Result<()> {
        if let Some(fix) = &mut self.fix {
            fix.stop_waiting_for_older_than(clock::now_secs() - WAIT_FOR_DEVICES_SECS)?;
        }
        let mut more = self.db.count_forgotten()?;
        for forgotten in self.db.forgotten(MAX_NAMED)? {
            more -= 1;
            self.listener.note(format!("{forgotten}; a device that has it sends it again"));
        }
        if more > 0 {
            self.listener.note(format!("and {} to come from the devices", counted(more, "more file")));
        }
        Ok(())
    }

    /// Each record: is its file there, and is it that file?
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

    fn fault(&self, name: &MediaName, record: &Record) -> Result<Option<Fault>> {
        if self.deep {
            lost_files::fault(&self.paths, name, record)
        } else {
            lost_files::fault_at_a_glance(&self.paths, name, record)
        }
    }

    fn record(&mut self, name: &MediaName) -> Result<()> {
        let Some(record) = self.db.record(name)? else {
            return Ok(());
        };
        // A running server may just be putting the file in place: then it is listed, or there by now.
        if self.fault(name, &record)?.is_none()
            || pending::unfinished(&self.dir, &self.paths, self.db)?.contains(name)
        {
            return Ok(());
        }
        let Some(fault) = self.fault(name, &record)? else {
            return Ok(());
        };
        let what = format!("{:?} {fault}", name.as_str());
        if matches!(fault, Fault::Denied) {
            self.unrepaired += 1;
            self.listener.problem(format!("{what}. It is kept as it is"));
            return Ok(());
        }
        if self.fix.is_some() && !matches!(fault, Fault::Missing) {
            put_aside(&self.dir, &self.paths.path_of(name), name.as_str());
        }
        self.repair(what, "a device that has it sends it again", |fix| fix.forget(name, &fault.to_string()))
    }

    fn unusable_record(&mut self, reason: &str) -> Result<()> {
        self.unrepaired += 1;
        self.listener.problem(format!("a name in the index {reason}; no client can have that file"));
        Ok(())
    }

    /// Each file: does the index know it?
    fn files(&mut self) -> Result<()> {
        let folder = self.paths.folder();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(err) => return Err(Error::Io("reading", folder, err)),
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("reading", &folder))?;
            let shown = entry.file_name().to_string_lossy().into_owned();
            let meta = match entry.metadata() {
                Ok(meta) => meta,
                // A sync deleted the file after the folder was read.
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => continue,
                Err(err) => {
                    self.listener.note(format!("{shown:?} cannot be looked at: {err}; it is left alone"));
                    continue;
                }
            };
            let name = entry.file_name().into_string().map_err(|_| BadName("is not UTF-8"));
            match name.and_then(MediaName::parse) {
                _ if !meta.is_file() => {
                    self.listener.note(format!("{shown:?} is not a file; it is left alone"));
                }
                Ok(_) if meta.len() == 0 || meta.len() > MEDIA_FILE_BYTES => {
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
        // The disk may have made another case of the name.
        if self.paths.ignores_case() && self.db.has_twin(name)? {
            return Ok(());
        }
        let path = name.path_in(&self.paths.folder());
        let found = match file_sha1(&path) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(()),
            Err(err) => {
                self.listener.note(format!("{err}; it is left alone"));
                return Ok(());
            }
        };
        match self.db.forgotten_record(name)? {
            None => {
                let what = format!("{:?} is in the folder, and not in the index", name.as_str());
                self.repair(what, "recorded", |fix| fix.put(name, &found))
            }
            Some((expected, is_damaged)) if is_damaged && expected == found => {
                let what = format!("{:?} is back", name.as_str());
                self.repair(what, "recorded", |fix| fix.put(name, &found))
            }
            // The devices may have a newer version, so wait for them.
            Some(_) => Ok(()),
        }
    }

    fn totals(&mut self) -> Result<()> {
        if let Some(fix) = &self.fix {
            // The repairs so far are not in the table yet.
            fix.store_totals()?;
        }
        let (stored, held) = (self.db.totals()?, self.db.counted_totals()?);
        if stored == held {
            return Ok(());
        }
        let what = format!(
            "the index counts {} and usn {}, and holds {} and usn {}",
            counted(stored.files, "file"),
            stored.last_usn,
            counted(held.files, "file"),
            held.last_usn
        );
        self.repair(what, "counted anew", |fix| {
            fix.recount(held);
            Ok(())
        })
    }

    fn repair(
        &mut self,
        what: String,
        how: &str,
        repair: impl FnOnce(&mut Recording<'_>) -> Result<()>,
    ) -> Result<()> {
        if let Some(fix) = &mut self.fix {
            repair(fix)?;
            self.listener.problem(format!("{what}: {how}"));
        } else {
            self.unrepaired += 1;
            self.listener.problem(what);
        }
        Ok(())
    }
}
