//! `ankipi status`: the state of the server, and what is stored for each user.
//!
//! Everything is read from the data folder and /proc. So it works while the server is busy or stuck, and costs the
//! server nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use crate::accounts::device_keys::Keys;
use crate::accounts::users_file;
use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::commands::user_folders::{look_into, size, users_in};
use crate::collection::FILE_NAME;
use crate::collection::full::backups::backups;
use crate::error::Result;
use crate::media::index::MediaDb;
use crate::os::clock;
use crate::{files, os};

/// `ankipi status`
pub static STATUS: Command = Command {
    name: "status",
    arguments: "",
    summary: "say how the server is and what is stored",
    help: "\
Says whether a server runs on the data folder, since when and with how much
memory; how much room is left on the disk; and of each user the last change of
the collection (UTC), sizes, and the devices with the day of their last sync.
Devices of plain SYNC_USERn accounts share one key and are not told apart.

Ends with 0 if a server runs, and with 1 if none does.
",
    run,
};

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    invocation.words(0, 0)?;
    let base = invocation.base()?;
    let runs = files::is_in_use(&base);
    say(&match (runs, files::holder(&base).and_then(Process::read)) {
        (false, _) => "server   not running\n".to_owned(),
        (true, None) => "server   running\n".to_owned(),
        (true, Some(process)) => process.line(),
    });
    let free =
        os::free_bytes(&base).map_or_else(|err| err.to_string(), |bytes| format!("{} free", size(bytes)));
    say(&format!("data     {}, {free}\n", base.display()));
    let mut names: BTreeSet<String> = users_in(&base)?.into_iter().collect();
    names.extend(users_file::read(&base, |fault| eprintln!("ankipi: {fault}"))?.into_keys());
    for name in names {
        say(&format!("\n{name}\n"));
        for (what, text) in facts(&base, &base.join(&name)) {
            say(&format!("  {what:<11}  {text}\n"));
        }
    }
    Ok(ExitCode::from(if runs { 0 } else { FAILED }))
}

/// What is stored for a user. An error in one line does not hide the others.
fn facts(base: &Path, dir: &Path) -> Vec<(&'static str, String)> {
    let collection = || {
        let path = dir.join(FILE_NAME);
        // The lock: an upload that replaces the collection leaves no file in its place for a moment.
        let in_place = files::keep_in_place(dir);
        let is_missing = !path.exists();
        drop(in_place);
        if is_missing {
            return Ok("none yet".to_owned());
        }
        let open = look_into(base, dir)?;
        let (notes, cards) = open.counts()?;
        let changed = clock::moment(open.stamps()?.modified / 1000);
        let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
        Ok(format!("{notes} notes, {cards} cards, {}, last change {changed}", size(bytes)))
    };
    let media = || {
        let totals = MediaDb::open_to_read(dir)?.totals()?;
        Ok(format!("{} files, {}", totals.files, size(u64::try_from(totals.bytes).unwrap_or(0))))
    };
    let kept = || {
        let backups = backups(dir)?;
        let bytes =
            backups.iter().filter_map(|backup| fs::metadata(&backup.path).ok()).map(|meta| meta.len()).sum();
        Ok(format!("{}, {}", backups.len(), size(bytes)))
    };
    let or_why = |fact: Result<String>| fact.unwrap_or_else(|err| format!("cannot be read: {err}"));
    let mut facts =
        vec![("collection", or_why(collection())), ("media", or_why(media())), ("backups", or_why(kept()))];
    match Keys::read(dir, None) {
        Ok(keys) => facts.extend(
            keys.devices
                .iter()
                .map(|device| ("device", format!("last sync {}, {}", device.last, device.client))),
        ),
        Err(err) => facts.push(("devices", format!("cannot be read: {err}"))),
    }
    facts
}

/// What /proc tells of a running server.
struct Process {
    pid: u32,
    up_secs: u64,
    memory: [u64; 2],
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
            up_secs: uptime.saturating_sub(start / TICKS_PER_SEC),
            memory: [kib("VmRSS:")? * 1024, kib("VmHWM:")? * 1024],
        })
    }

    fn line(&self) -> String {
        let [now, peak] = self.memory;
        format!(
            "server   running for {}, {} of memory, {} at most, process {}\n",
            span(self.up_secs),
            size(now),
            size(peak),
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
