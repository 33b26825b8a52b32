//! A disk that fails or is full: a clear status and a log line, nothing acknowledged is lost, and the same server goes on
//! when the disk does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use crate::disk::{Disk, EIO, ENOSPC, Fault};
use crate::harness::TestServer;
use crate::history::{History, Kind, Step};
use crate::setting;

/// Waits for the one line about a request that failed like this, and returns what it says.
fn complaint(server: &TestServer, err: &io::Error) -> String {
    assert_eq!(err.kind(), ErrorKind::Other, "no clear answer: {err}");
    let status = err.to_string();
    let line = match status.strip_prefix("status ") {
        Some(status) => {
            server.take_line(|line| line.contains("[request]") && line.contains(&format!(" {status} ")))
        }
        // A refused upload is a 200 with a sentence for the user.
        None => server.take_line(|line| line.starts_with("ERROR [ankipi::api::full_sync]")),
    };
    let line = line.unwrap_or_else(|| panic!("{err}, and no line about it"));
    line.split_once("/sync/")
        .or_else(|| line.split_once("/msync/"))
        .map_or(line.clone(), |(_, end)| end.to_owned())
}

#[test]
fn whichever_operation_fails_nothing_is_lost_and_the_server_goes_on() {
    let seed = setting("SEED", 1);
    let base = Arc::new(tempfile::tempdir().unwrap());
    History::prepare(base.path());
    let disk = Disk::new();
    let mut server = disk.start(&base);
    let mut history = History::new(seed, server.address, false);
    history.step_of(Kind::Upload).1.unwrap();
    history.step_of(Kind::Media).1.unwrap();
    // A first sync downloads, which writes nothing.
    history.converge();
    let mut said = BTreeSet::new();
    let mut counts: BTreeMap<(Kind, &str), (u32, u32)> = BTreeMap::new();
    for kind in [Kind::Sync, Kind::Bulk, Kind::Upload, Kind::Media, Kind::Login] {
        for (name, fault) in [
            ("EIO", Fault::Once(EIO)),
            ("EIO from then on", Fault::From(EIO)),
            ("ENOSPC", Fault::From(ENOSPC)),
        ] {
            let count = counts.entry((kind, name)).or_default();
            let (mut n, mut untouched) = (1, 0);
            // A step may happen to change nothing, so one without an operation does not end it.
            while untouched < 2 {
                let place = format!("seed {seed}, {name} at operation {n}");
                disk.set(fault, n);
                let (step, outcome) = history.step_of(kind);
                if disk.mend() == 0 {
                    outcome.unwrap();
                    untouched += 1;
                    continue;
                }
                count.0 += 1;
                if let Err(err) = outcome {
                    count.1 += 1;
                    let words = complaint(&server, &err).replace(|c: char| c.is_ascii_digit(), "");
                    said.insert(words.replace(base.path().to_str().unwrap(), "DATA"));
                    history.resume(&step, &server, &place);
                }
                // Most of the many operations of the large one are alike.
                n += if kind == Kind::Bulk { 1 + n / 6 } else { 1 };
            }
            history.converge();
        }
        server = server.kill_and_restart();
        history.moved(server.address);
        let nothing = Step { kind, before: history.world.clone(), after: history.world.clone() };
        history.resume(&nothing, &server, "after a restart");
    }
    println!("the log says:\n{}", said.into_iter().collect::<Vec<_>>().join("\n"));
    for ((kind, name), (failed, refused)) in counts {
        println!("{kind:?}: {failed} operations failed with {name}, {refused} of them refused the request");
        assert!(failed > 2 && refused > 2, "{kind:?} {name}: {failed}, {refused}");
    }
}

/// A small file system of its own, which goes with this.
struct SmallDisk(Arc<tempfile::TempDir>);

impl SmallDisk {
    /// None where the test may not mount.
    fn mount(size: &str) -> Option<SmallDisk> {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "ankipi-test"], dir.path())
            .then_some(SmallDisk(dir))
    }

    fn change(&self, options: &str) {
        assert!(mount(&["-o", &format!("remount,{options}")], self.0.path()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn mount(args: &[&str], at: &Path) -> bool {
    Command::new("mount").args(args).arg(at).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_works_again_when_there_is_room() {
    let Some(small) = SmallDisk::mount("2m") else {
        println!("SKIPPED: mounting is not permitted here");
        return;
    };
    let base = &small.0;
    History::prepare(base.path());
    let server = TestServer::on(base.clone(), &[]);
    let mut history = History::new(setting("SEED", 1), server.address, false);
    let mut said = BTreeSet::new();
    let (mut refused, mut acknowledged) = (0, 0);
    while refused < 20 {
        let (step, outcome) = history.step();
        match outcome {
            Ok(()) => acknowledged += 1,
            Err(err) => {
                said.insert(complaint(&server, &err).replace(|c: char| c.is_ascii_digit(), ""));
                refused += 1;
                small.change("size=20m");
                history.resume(&step, &server, "full disk");
                small.change("size=2m");
                // The disk is full again.
                let filler = base.path().join("filler");
                let used = fs::metadata(&filler).map_or(0, |meta| meta.len());
                let _ = fs::write(&filler, vec![0; used as usize + 16 * 1024]);
            }
        }
        assert!(acknowledged < 3000, "the disk never was full");
    }
    println!("the log says:\n{}", said.into_iter().collect::<Vec<_>>().join("\n"));
    small.change("size=20m");
    history.converge();
    server.assert_syncs();
    println!("{refused} refused on a full disk, {acknowledged} acknowledged; all of these are there");
    drop(server);
}

/// Starts a server that is expected to say why it cannot, as this user.
fn refusal(base: &Path, user: Option<u32>) -> String {
    let mut command = match user {
        None => Command::new(env!("CARGO_BIN_EXE_ankipi")),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]);
            command.arg(env!("CARGO_BIN_EXE_ankipi"));
            command
        }
    };
    let output = command
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .envs([("SYNC_USER1", "test:secret"), ("SYNC_HOST", "127.0.0.1"), ("SYNC_PORT", "0")])
        .env("SYNC_BASE", base)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(text.contains(base.parent().unwrap().to_str().unwrap()), "it does not say where: {text}");
    println!("{}", text.trim_end());
    text
}

#[test]
fn a_data_folder_that_cannot_be_used_is_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refusal(&file, None).contains("--base DIR"));
    assert!(refusal(&file.join("below"), None).contains("--base DIR"));
    let Some(small) = SmallDisk::mount("2m") else {
        println!("SKIPPED: neither mounts nor other users here");
        return;
    };
    let base = small.0.path();
    // A user's folder where a file is in the way closes that account, and no other.
    fs::write(base.join("test"), "").unwrap();
    TestServer::on(small.0.clone(), &[]).wait_for_log("the account \"test\" is closed");
    fs::remove_file(base.join("test")).unwrap();
    small.change("ro");
    assert!(refusal(base, None).contains("mounted read-only"));
    small.change("rw");
    // Somebody else's folder: first all of it, then only what a server that ran as root had made.
    const NOBODY: u32 = 65_534;
    let mut try_it = Command::new("setpriv");
    try_it.args(["--reuid=65534", "--clear-groups", env!("CARGO_BIN_EXE_ankipi"), "--version"]);
    if !try_it.output().is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: no other user may run this binary");
        return;
    }
    fs::set_permissions(base, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(refusal(base, Some(NOBODY)).contains("chown"));
    drop(TestServer::on(small.0.clone(), &[]));
    std::os::unix::fs::chown(base, Some(NOBODY), Some(NOBODY)).unwrap();
    refusal(base, Some(NOBODY));
}

#[test]
fn a_data_folder_that_vanishes_is_missed_and_welcome_again() {
    let outer = Arc::new(tempfile::tempdir().unwrap());
    let (base, away) = (outer.path().join("base"), outer.path().join("away"));
    fs::create_dir(&base).unwrap();
    History::prepare(&base);
    let server = TestServer::on(outer.clone(), &[("SYNC_BASE", base.to_str().unwrap())]);
    let mut history = History::new(setting("SEED", 1), server.address, false);
    for kind in [Kind::Upload, Kind::Media, Kind::Sync, Kind::Login, Kind::Sync] {
        history.step_of(kind).1.unwrap();
    }
    fs::rename(&base, &away).unwrap();
    for kind in [Kind::Upload, Kind::Media, Kind::Sync, Kind::Login, Kind::GivenUp] {
        let (_, outcome) = history.step_of(kind);
        let err = outcome.expect_err("acknowledged without a disk");
        // 503 from a worker, as long as a connection to tiny_http is kept.
        assert!(["status 502", "status 503"].contains(&&*err.to_string()), "{kind:?}: {err}");
    }
    assert!(server.wait_for_log("is the data folder still there?").contains(base.to_str().unwrap()));
    assert!(!base.exists(), "the folder was made anew, where an owner would look for the old one");
    fs::rename(&away, &base).unwrap();
    history.converge();
    let (_, outcome) = history.step_of(Kind::Media);
    outcome.unwrap();
}
