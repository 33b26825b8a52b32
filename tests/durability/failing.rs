//! A disk that fails or is full: a clear status and a log line, nothing acknowledged is lost, and the same server goes on
//! when the disk does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
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
        None => server.take_line(|line| line.starts_with("ERROR [ankipi::api::full]")),
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
    let vars = disk.vars(base.path(), false);
    let vars: Vec<_> = vars.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let mut server = TestServer::on(base.clone(), &vars);
    let mut history = History::new(seed, server.address);
    history.step_of(Kind::Upload).1.unwrap();
    history.step_of(Kind::Media).1.unwrap();
    let mut said = BTreeSet::new();
    let mut counts: BTreeMap<(Kind, &str), (u32, u32)> = BTreeMap::new();
    for kind in [Kind::Sync, Kind::Upload, Kind::Media, Kind::Login] {
        for (name, fault) in [
            ("EIO", Fault::Once(EIO)),
            ("EIO from then on", Fault::From(EIO)),
            ("ENOSPC", Fault::From(ENOSPC)),
        ] {
            let count = counts.entry((kind, name)).or_default();
            for n in 1.. {
                let place = format!("seed {seed}, {name} at operation {n}");
                disk.set(fault, n);
                let (step, outcome) = history.step_of(kind);
                if disk.mend() == 0 {
                    outcome.unwrap();
                    break;
                }
                count.0 += 1;
                if let Err(err) = outcome {
                    count.1 += 1;
                    let words = complaint(&server, &err).replace(|c: char| c.is_ascii_digit(), "");
                    said.insert(words.replace(base.path().to_str().unwrap(), "DATA"));
                    history.resume(&step, &server, &place);
                }
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
    let mut history = History::new(setting("SEED", 1), server.address);
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
                // Full again.
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
