//! `ankipi status`: the state of the server, and what is stored for each user.
//!
//! Everything is read from the data folder and /proc. So it works while the server is busy or stuck, and costs the
//! server nothing.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::accounts::device_keys::{Device, Keys};
use crate::accounts::known_accounts::{AccountSettings, Snapshot};
use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::commands::user_folders::{open_for_short_read, size, users_in};
use crate::collection::FILE_NAME;
use crate::collection::full::backups::backups;
use crate::config::{Flags, Settings, USERS_FILE};
use crate::error::{Error, Result};
use crate::files::access::{self, Concerns, Denied, ServerUser};
use crate::files::disk_abilities;
use crate::media::denied_files::first_denied;
use crate::media::index::MediaDb;
use crate::os::clock;
use crate::sync::users::usable_folder;
use crate::text::counted::counted;
use crate::{files, os};

/// `ankipi status`
pub static STATUS: Command = Command {
    name: "status",
    arguments: "[--json]",
    summary: "say how the server is and what is stored",
    help: "\
Says whether a server runs on the data folder, since when and with how much
memory; how much room is left on the disk; whether the clock is set, without
which no device can sync; what the server noticed about its settings, such as
a proxy whose SYNC_IP_HEADER is not set; and of each user the last change of
the collection (UTC), sizes, media files that this disk lost and that a device
is awaited to send again, the devices with the day of their last sync, and why
an account is closed, if a file of it is damaged or cannot be used.
Devices of plain SYNC_USERn accounts share one key and are not told apart.

  --json  the same for programs; sizes in bytes, times in seconds since 1970,
          days as 2026-11-29

Ends with 0 if a server runs, and with 1 if none does.
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    let wants_json = invocation.has("--json");
    invocation.words(0, 0)?;
    let settings = invocation.settings(Flags::new())?;
    let base = settings.base()?;
    let runs = files::is_in_use(&base);
    let mut names: BTreeSet<String> = users_in(&base)?.into_iter().collect();
    let accounts = accounts(&base, &settings);
    names.extend(accounts.accounts().map(|account| account.name.clone()));
    accounts.faults().iter().for_each(|fault| eprintln!("ankipi: {fault}"));
    let process = if runs { files::holder(&base).and_then(Process::read) } else { None };
    let server = ServerUser::of(&base, files::holder(&base));
    if let Some(text) = access::denied_in_base(&server, &base, USERS_FILE) {
        eprintln!("ankipi: {text}");
    }
    let read = |name: &String| {
        let denied = access::denied_to(&server, &base, name);
        let denied_media = || first_denied(&server, &base, name);
        let (closed, media) = match denied {
            Some(Denied { concerns: Concerns::All, text }) => (Some(text), None),
            Some(Denied { concerns: Concerns::Media, text }) => (None, Some(text)),
            None => (None, denied_media()),
        };
        let closed = closed.or_else(|| why_closed(&base, name, &accounts));
        StoredUser::read(&base, name, closed, media)
    };
    let status = Status {
        version: os::VERSION,
        running: runs,
        clock_doubt: clock::why_unreliable(),
        notices: files::notices(&base),
        free_bytes: os::free_bytes(&base).map_err(|err| err.to_string()),
        min_free_bytes: settings.config().map(|config| config.min_free_bytes).unwrap_or_default(),
        users: names.iter().map(read).collect(),
        process,
        // The test needs permission to write there; without it, nothing is reported.
        disk: disk_abilities::shortcomings(&base).unwrap_or_default(),
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

/// The accounts that this process can see. A running server may have others in its settings.
fn accounts(base: &Path, settings: &Settings) -> Snapshot {
    let with = |settings| Snapshot::read(base, Arc::new(settings), None);
    let read = settings.config().and_then(|config| with(AccountSettings::of(&config)));
    read.or_else(|err| {
        eprintln!("ankipi: {err}");
        with(AccountSettings::default())
    })
    .expect("without settings there is no wrong one")
}

/// Why nobody can use an account whose files belong to the server.
fn why_closed(base: &Path, name: &str, accounts: &Snapshot) -> Option<String> {
    let dir = base.join(name);
    let closed = accounts.get(name).and_then(|account| account.closed.clone());
    let no_folder = || usable_folder(&dir).err().filter(|_| dir.symlink_metadata().is_ok());
    closed.or_else(|| no_folder().map(|err| err.to_string()))
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
    /// What uploads leave free, by the settings of this command.
    min_free_bytes: u64,
    /// What the disk cannot do.
    disk: Vec<&'static str>,
    /// Why the clock is probably wrong; None if it seems right.
    clock_doubt: Option<String>,
    /// What the running server noticed about the settings.
    notices: Vec<String>,
    users: Vec<StoredUser>,
}

/// A fact, or why it is not known. An error in one does not hide the others.
type Fact<T> = std::result::Result<T, String>;

/// What is stored for a user.
#[derive(Serialize)]
struct StoredUser {
    name: String,
    /// Why nobody can use the account.
    closed: Option<String>,
    /// The first media file or folder that the server may not use, and what to type.
    denied_media: Option<String>,
    #[serde(serialize_with = "value_or_error")]
    collection: Fact<Option<StoredCollection>>,
    #[serde(serialize_with = "value_or_error")]
    media: Fact<StoredMedia>,
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

/// How many media files are named that devices are asked for.
const MAX_NAMED: u32 = 10;

#[derive(Serialize)]
struct StoredMedia {
    files: u64,
    bytes: u64,
    /// Files that the disk lost and that devices are asked for: how many, and a line for each of the newest.
    awaited: u64,
    awaited_newest: Vec<String>,
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
        Err(error) => serializer.collect_map([("error", error)]),
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
        if self.free_bytes.as_ref().is_ok_and(|bytes| *bytes < 2 * self.min_free_bytes) {
            let least = size(self.min_free_bytes);
            let _ = writeln!(
                text,
                "disk     uploads that would leave less than {least} are refused (SYNC_MIN_FREE_MEGS)"
            );
        }
        if let Some(doubt) = &self.clock_doubt {
            let _ = writeln!(text, "clock    {doubt}; devices cannot sync until it is set");
        }
        for notice in &self.notices {
            let _ = writeln!(text, "notice   {notice}");
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
    fn read(base: &Path, name: &str, closed: Option<String>, denied_media: Option<String>) -> StoredUser {
        let dir = &base.join(name);
        let collection = || {
            let path = dir.join(FILE_NAME);
            // While a full upload replaces the collection, there is no file for a moment. The lock waits for that.
            let in_place = files::lock_against_replacement(dir);
            let is_missing = !path.exists();
            drop(in_place);
            if is_missing {
                return Ok(None);
            }
            let open = open_for_short_read(base, dir)?;
            let (notes, cards) = open.counts()?;
            let changed = open.stamps()?.modified / 1000;
            let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
            Ok(Some(StoredCollection { notes, cards, bytes, changed }))
        };
        let media = || {
            let index = MediaDb::open_to_read(dir)?;
            let totals = index.totals()?;
            let unsigned = |number| u64::try_from(number).unwrap_or(0);
            Ok(StoredMedia {
                files: unsigned(totals.files),
                bytes: unsigned(totals.bytes),
                awaited: unsigned(index.count_forgotten()?),
                awaited_newest: index.forgotten(MAX_NAMED)?,
            })
        };
        let kept = || {
            let backups = backups(dir)?;
            let sizes = backups.iter().filter_map(|backup| fs::metadata(&backup.path).ok());
            Ok(Files { files: backups.len() as u64, bytes: sizes.map(|meta| meta.len()).sum() })
        };
        let devices = || {
            let device =
                |device: Device| StoredDevice { last_sync: device.last.to_string(), client: device.client };
            let keys = Keys::read(dir, None)?;
            match keys.damage {
                Some(damage) => Err(Error::Broken(damage)),
                None => Ok(keys.devices.into_iter().map(device).collect()),
            }
        };
        StoredUser {
            name: name.to_owned(),
            closed,
            denied_media,
            collection: or_reason(collection()),
            media: or_reason(media()),
            backups: or_reason(kept()),
            devices: or_reason(devices()),
        }
    }

    /// Headings and facts for people.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let collection = self.collection.as_ref().map(|collection| match collection {
            None => "none yet".to_owned(),
            Some(StoredCollection { notes, cards, bytes, changed }) => {
                let changed = clock::moment(*changed);
                let (notes, cards) = (counted(notes, "note"), counted(cards, "card"));
                format!("{notes}, {cards}, {}, last change {changed}", size(*bytes))
            }
        });
        let media = self
            .media
            .as_ref()
            .map(|media| format!("{}, {}", counted(media.files, "file"), size(media.bytes)));
        let backups = self.backups.as_ref().map(|kept| format!("{}, {}", kept.files, size(kept.bytes)));
        let mut lines = vec![("collection", collection), ("media", media), ("backups", backups)];
        lines.extend(self.denied_media.iter().map(|text| ("media", Ok(text.clone()))));
        if let Ok(media) = &self.media {
            lines.extend(media.awaited_newest.iter().map(|line| ("awaited", Ok(line.clone()))));
            let more = media.awaited - media.awaited_newest.len() as u64;
            if more > 0 {
                lines.push(("awaited", Ok(format!("and {more} more"))));
            }
        }
        match &self.devices {
            Ok(devices) => lines.extend(devices.iter().map(|StoredDevice { last_sync, client }| {
                ("device", Ok(format!("last sync {last_sync}, {client}")))
            })),
            Err(err) => lines.push(("devices", Err(err))),
        }
        let shown = |fact: std::result::Result<String, &String>| {
            fact.unwrap_or_else(|err| format!("cannot be read: {err}"))
        };
        let closed = self.closed.iter().map(|why| ("account", format!("closed: {why}")));
        closed.chain(lines.into_iter().map(|(what, fact)| (what, shown(fact)))).collect()
    }
}

fn or_reason<T>(fact: Result<T>) -> Fact<T> {
    fact.map_err(|err| err.to_string())
}

/// What /proc tells of a running server.
#[derive(Serialize)]
struct Process {
    pid: u32,
    /// Whose files it can read.
    uid: u32,
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
        if !field("Name:")?.starts_with("anki") {
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
            uid: fs::metadata(format!("/proc/{pid}")).ok()?.uid(),
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
