//! `ankipi status`: the state of the server, and what is stored for each user.
//!
//! Everything is read from the data folder and /proc. So it works while the server is busy or stuck, and costs the
//! server nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Serialize, Serializer};

use crate::accounts::device_keys::{Device, Keys};
use crate::accounts::users_file;
use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::commands::user_folders::{look_into, size, users_in};
use crate::collection::FILE_NAME;
use crate::collection::full::backups::backups;
use crate::error::{Error, Result};
use crate::files::disk_abilities;
use crate::media::index::MediaDb;
use crate::os::clock;
use crate::{files, os};

/// `ankipi status`
pub static STATUS: Command = Command {
    name: "status",
    arguments: "[--json]",
    summary: "say how the server is and what is stored",
    help: "\
Says whether a server runs on the data folder, since when and with how much
memory; how much room is left on the disk; whether the clock is set, without
which no device can sync; and of each user the last change of the collection
(UTC), sizes, and the devices with the day of their last sync.
Devices of plain SYNC_USERn accounts share one key and are not told apart.

  --json  the same for programs; sizes in bytes, times in seconds since 1970

Ends with 0 if a server runs, and with 1 if none does.
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    let wants_json = invocation.has("--json");
    invocation.words(0, 0)?;
    let base = invocation.base()?;
    let runs = files::is_in_use(&base);
    let mut names: BTreeSet<String> = users_in(&base)?.into_iter().collect();
    names.extend(users_file::read(&base, |fault| eprintln!("ankipi: {fault}"))?.into_keys());
    let status = Status {
        version: os::VERSION,
        running: runs,
        process: if runs { files::holder(&base).and_then(Process::read) } else { None },
        clock_doubt: clock::doubt(),
        free_bytes: os::free_bytes(&base).map_err(|err| err.to_string()),
        // Nothing can be said to those who may not write there.
        disk: disk_abilities::shortcomings(&base).unwrap_or_default(),
        users: names.iter().map(|name| StoredUser::read(&base, name)).collect(),
        folder: base,
    };
    if wants_json {
        say(&serde_json::to_string_pretty(&status).map_err(|err| Error::Broken(err.to_string()))?);
        say("\n");
    } else {
        say(&status.text());
    }
    Ok(ExitCode::from(if runs { 0 } else { FAILED }))
}

/// All that the command tells. The names of the fields are those of `--json`.
#[derive(Serialize)]
struct Status {
    version: &'static str,
    running: bool,
    /// None also if the server runs in a container.
    process: Option<Process>,
    folder: PathBuf,
    #[serde(serialize_with = "value_or_error")]
    free_bytes: Fact<u64>,
    /// What the disk cannot do.
    disk: Vec<&'static str>,
    /// Why the clock cannot be believed; None if it can.
    clock_doubt: Option<String>,
    users: Vec<StoredUser>,
}

/// A fact, or why it is not known. An error in one does not hide the others.
type Fact<T> = std::result::Result<T, String>;

/// What is stored for a user.
#[derive(Serialize)]
struct StoredUser {
    name: String,
    #[serde(serialize_with = "value_or_error")]
    collection: Fact<Option<StoredCollection>>,
    #[serde(serialize_with = "value_or_error")]
    media: Fact<Files>,
    #[serde(serialize_with = "value_or_error")]
    backups: Fact<Files>,
    #[serde(serialize_with = "value_or_error")]
    devices: Fact<Vec<StoredDevice>>,
}

#[derive(Serialize)]
struct StoredCollection {
    notes: u64,
    cards: u64,
    bytes: u64,
    /// Seconds since 1970.
    changed: i64,
}

#[derive(Serialize)]
struct Files {
    files: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct StoredDevice {
    /// 2026-11-24, in UTC.
    last_sync: String,
    client: String,
}

/// A value as it is, an error as `{"error": "..."}`.
fn value_or_error<T: Serialize, S: Serializer>(
    fact: &Fact<T>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    match fact {
        Ok(value) => value.serialize(serializer),
        Err(error) => BTreeMap::from([("error", error)]).serialize(serializer),
    }
}

impl Status {
    /// The status for people.
    fn text(&self) -> String {
        let mut text = match (self.running, &self.process) {
            (false, _) => "server   not running\n".to_owned(),
            (true, None) => "server   running\n".to_owned(),
            (true, Some(process)) => process.line(),
        };
        let free =
            self.free_bytes.as_ref().map_or_else(Clone::clone, |bytes| format!("{} free", size(*bytes)));
        let _ = writeln!(text, "data     {}, {free}", self.folder.display());
        if let Some(doubt) = &self.clock_doubt {
            let _ = writeln!(text, "clock    {doubt}; devices cannot sync until it is set");
        }
        for what in &self.disk {
            let _ = writeln!(text, "disk     {what}");
        }
        for user in &self.users {
            let _ = writeln!(text, "\n{}", user.name);
            for (what, fact) in user.lines() {
                let _ = writeln!(text, "  {what:<11}  {fact}");
            }
        }
        text
    }
}

impl StoredUser {
    fn read(base: &Path, name: &str) -> StoredUser {
        let dir = &base.join(name);
        let collection = || {
            let path = dir.join(FILE_NAME);
            // The lock: an upload that replaces the collection leaves no file in its place for a moment.
            let in_place = files::keep_in_place(dir);
            let is_missing = !path.exists();
            drop(in_place);
            if is_missing {
                return Ok(None);
            }
            let open = look_into(base, dir)?;
            let (notes, cards) = open.counts()?;
            let changed = open.stamps()?.modified / 1000;
            let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
            Ok(Some(StoredCollection { notes, cards, bytes, changed }))
        };
        let media = || {
            let totals = MediaDb::open_to_read(dir)?.totals()?;
            let unsigned = |number| u64::try_from(number).unwrap_or(0);
            Ok(Files { files: unsigned(totals.files), bytes: unsigned(totals.bytes) })
        };
        let kept = || {
            let backups = backups(dir)?;
            let sizes = backups.iter().filter_map(|backup| fs::metadata(&backup.path).ok());
            Ok(Files { files: backups.len() as u64, bytes: sizes.map(|meta| meta.len()).sum() })
        };
        let devices = || {
            let device =
                |device: Device| StoredDevice { last_sync: device.last.to_string(), client: device.client };
            Ok(Keys::read(dir, None)?.devices.into_iter().map(device).collect())
        };
        StoredUser {
            name: name.to_owned(),
            collection: or_why(collection()),
            media: or_why(media()),
            backups: or_why(kept()),
            devices: or_why(devices()),
        }
    }

    /// Headings and facts for people.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let collection = self.collection.as_ref().map(|collection| match collection {
            None => "none yet".to_owned(),
            Some(StoredCollection { notes, cards, bytes, changed }) => {
                let changed = clock::moment(*changed);
                format!("{notes} notes, {cards} cards, {}, last change {changed}", size(*bytes))
            }
        });
        let media = self.media.as_ref().map(|media| format!("{} files, {}", media.files, size(media.bytes)));
        let backups = self.backups.as_ref().map(|kept| format!("{}, {}", kept.files, size(kept.bytes)));
        let mut lines = vec![("collection", collection), ("media", media), ("backups", backups)];
        match &self.devices {
            Ok(devices) => lines.extend(devices.iter().map(|StoredDevice { last_sync, client }| {
                ("device", Ok(format!("last sync {last_sync}, {client}")))
            })),
            Err(err) => lines.push(("devices", Err(err))),
        }
        let shown = |fact: std::result::Result<String, &String>| {
            fact.unwrap_or_else(|err| format!("cannot be read: {err}"))
        };
        lines.into_iter().map(|(what, fact)| (what, shown(fact))).collect()
    }
}

fn or_why<T>(fact: Result<T>) -> Fact<T> {
    fact.map_err(|err| err.to_string())
}

/// What /proc tells of a running server.
#[derive(Serialize)]
struct Process {
    pid: u32,
    up_seconds: u64,
    memory_bytes: u64,
    memory_peak_bytes: u64,
}

impl Process {
    /// None if no ankipi with this number is visible: the server may run in a container.
    fn read(pid: u32) -> Option<Process> {
        let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let status = file("status")?;
        let field =
            |key: &str| status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next();
        if field("Name:")? != "ankipi" {
            return None;
        }
        let kib = |key| field(key)?.parse::<u64>().ok();
        // The name in parentheses may hold any character. The start time is the 20th field behind it.
        let stat = file("stat")?;
        let start: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime: u64 = uptime.split('.').next()?.parse().ok()?;
        /// The unit of times in /proc, the same on all supported machines.
        const TICKS_PER_SEC: u64 = 100;
        Some(Process {
            pid,
            up_seconds: uptime.saturating_sub(start / TICKS_PER_SEC),
            memory_bytes: kib("VmRSS:")? * 1024,
            memory_peak_bytes: kib("VmHWM:")? * 1024,
        })
    }

    fn line(&self) -> String {
        format!(
            "server   running for {}, {} of memory, {} at most, process {}\n",
            span(self.up_seconds),
            size(self.memory_bytes),
            size(self.memory_peak_bytes),
            self.pid
        )
    }
}

fn span(secs: u64) -> String {
    match (secs / 86_400, secs / 3600 % 24, secs / 60 % 60) {
        (0, 0, 0) => format!("{secs} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_at_most_two_units() {
        let cases = [(0, "0 s"), (61, "1 min"), (3660, "1 h 1 min"), (90_000, "1 d 1 h")];
        for (secs, text) in cases {
            assert_eq!(span(secs), text);
        }
    }
}
