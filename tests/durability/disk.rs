//! Controls the preloaded library `disk.c`: builds it once, commands it through a shared file, reads its trace.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use tempfile::TempDir;

use crate::harness::TestServer;

/// The fault at the chosen operation.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// This operation fails with this errno, once.
    Once(i32),
    /// This one and all after it.
    From(i32),
    /// The process is killed; half of a write reaches the disk.
    Kill,
}

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

/// What a disk calls itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// The order of renames is kept, and one flush is for all files.
    Xfs,
    /// Nothing of this can be relied on.
    Fat,
}

/// The disk of one server.
pub struct Disk {
    dir: TempDir,
    control: File,
    is_recorded: bool,
    kind: FileSystem,
}

impl Disk {
    pub fn new() -> Disk {
        Disk::make(false, FileSystem::Xfs)
    }

    /// One of which every change is kept, for `log_path`.
    pub fn recorded(kind: FileSystem) -> Disk {
        Disk::make(true, kind)
    }

    fn make(is_recorded: bool, kind: FileSystem) -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        fs::write(&path, [0; 16]).unwrap();
        let control = File::options().read(true).write(true).open(&path).unwrap();
        Disk { dir, control, is_recorded, kind }
    }

    /// Starts a server whose data folder is on this disk.
    pub fn start(&self, base: &Arc<TempDir>) -> TestServer {
        self.try_start(base).unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// The same, or what the server said when it ended at once.
    pub fn try_start(&self, base: &Arc<TempDir>) -> Result<TestServer, String> {
        let (control, log) = (self.dir.path().join("control"), self.log_path());
        let mut vars =
            vec![("LD_PRELOAD", library()), ("DISK_BASE", base.path()), ("DISK_CONTROL", &control)];
        if self.is_recorded {
            vars.push(("DISK_LOG", &log));
        }
        let mut vars: Vec<_> = vars.iter().map(|(key, path)| (*key, path.to_str().unwrap())).collect();
        if self.kind == FileSystem::Fat {
            vars.push(("DISK_KIND", "0x4d44"));
        }
        TestServer::try_on(base.clone(), &vars)
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// How long the log is: what was done by now.
    pub fn log_bytes(&self) -> u64 {
        fs::metadata(self.log_path()).map_or(0, |meta| meta.len())
    }

    /// Makes the n-th operation from now on go wrong.
    pub fn set(&self, fault: Fault, countdown: i32) {
        let (mode, error) = match fault {
            Fault::Once(errno) => (1, errno),
            Fault::From(errno) => (2, errno),
            Fault::Kill => (3, 0),
        };
        // Write the mode last: it makes the other values take effect.
        [(1, countdown), (2, error), (3, 0), (0, mode)]
            .iter()
            .for_each(|(field, value)| self.write(*field, *value));
    }

    /// Ends the faults; returns how many there were.
    pub fn mend(&self) -> i32 {
        self.write(0, 0);
        self.hits()
    }

    /// How often it went wrong.
    pub fn hits(&self) -> i32 {
        self.read(3)
    }

    fn read(&self, field: u64) -> i32 {
        let mut value = [0; 4];
        self.control.read_exact_at(&mut value, field * 4).unwrap();
        i32::from_ne_bytes(value)
    }

    fn write(&self, field: u64, value: i32) {
        self.control.write_all_at(&value.to_ne_bytes(), field * 4).unwrap();
    }
}

fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("disk-{}.so", std::process::id()));
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
            .arg(&path)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/durability/disk.c"))
            .arg("-ldl")
            .status();
        assert!(built.expect("a C compiler").success());
        path
    })
}
