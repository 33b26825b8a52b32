//! The server as a child process on a folder of its own: its log, its memory, its files.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ankipi::text::unicase;
use rusqlite::Connection;
use tempfile::TempDir;

use crate::binary::binary;
use crate::client::Device;
use crate::process_figures;

/// Longer than anything should take, even under an emulator. A test that waits this long has failed.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// `sha1("test:secret")`: the official key of the first account.
pub const KEY: &str = "523322844031c7adb91401e307edd32ad150d563";

/// `sha1("other:word")`: the official key of the second account.
pub const OTHER_KEY: &str = "b73d3910b54504c5228816226c363a7bec6bb2da";

/// A running server with the accounts `test:secret` and `other:word`. Killed on drop; a failed test shows its log.
pub struct TestServer {
    child: Child,
    log: Arc<Log>,
    vars: Vec<(String, String)>,
    args: Vec<String>,
    pub base: Arc<TempDir>,
    pub address: SocketAddr,
}

impl TestServer {
    pub fn start() -> TestServer {
        TestServer::with(&[])
    }

    /// With these additional variables.
    pub fn with(vars: &[(&str, &str)]) -> TestServer {
        TestServer::on(Arc::new(tempfile::tempdir().unwrap()), vars)
    }

    /// With this file as the collection of `test`.
    pub fn holding(collection: &[u8], vars: &[(&str, &str)]) -> TestServer {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("test")).unwrap();
        fs::write(base.path().join("test/collection.anki2"), collection).unwrap();
        TestServer::on(Arc::new(base), vars)
    }

    /// On a data folder that may hold something.
    pub fn on(base: Arc<TempDir>, vars: &[(&str, &str)]) -> TestServer {
        TestServer::try_on(base, vars).unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// On a data folder on which it may fail to start. Then returns its log.
    pub fn try_on(base: Arc<TempDir>, vars: &[(&str, &str)]) -> Result<TestServer, String> {
        TestServer::run(base, vars, &[])
    }

    /// Whose accounts come from this config file and the accounts file alone.
    pub fn with_config(base: Arc<TempDir>, config: &Path) -> TestServer {
        let args = ["--config", config.to_str().unwrap()];
        TestServer::run(base, &[("SYNC_USER1", ""), ("SYNC_USER2", "")], &args)
            .unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    fn run(base: Arc<TempDir>, vars: &[(&str, &str)], args: &[&str]) -> Result<TestServer, String> {
        let vars: Vec<_> = vars.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        // Start with an open umask: file modes must not depend on it.
        let mut child =
            command("umask 000", base.path(), &vars).args(args).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::collect(child.stderr.take().unwrap());
        let Some(line) = log.wait_for(" listens on http://") else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(log.text());
        };
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
        let address = address.parse().unwrap();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Ok(TestServer { child, log, vars, args, base, address })
    }

    /// The same folder and variables in a new process, after this one was killed without warning.
    pub fn kill_and_restart(self) -> TestServer {
        let (base, vars, args) = (self.base.clone(), self.vars.clone(), self.args.clone());
        drop(self);
        let vars: Vec<_> = vars.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        TestServer::run(base, &vars, &args).unwrap_or_else(|log| panic!("the server did not start:\n{log}"))
    }

    /// A device that is logged in as `test`.
    pub fn device(&self) -> Device {
        Device::new(self.address, KEY)
    }

    /// Sends SIGHUP and waits for a line of the log about it.
    #[track_caller]
    pub fn hang_up(&self, expected: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        assert!(self.take_line(|line| line.contains(expected)).is_some(), "{expected:?} never came");
    }

    /// Waits until the server has computed for so many hundredths of a second from now on.
    pub fn wait_for_work(&self, hundredths: u64) {
        let used = || -> u64 {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
            // Fields 14 and 15, in ticks of a hundredth of a second.
            stat.rsplit_once(')')
                .unwrap()
                .1
                .split_whitespace()
                .skip(11)
                .take(2)
                .map(|n| n.parse::<u64>().unwrap())
                .sum()
        };
        let (before, deadline) = (used(), Instant::now() + EVENT_TIMEOUT);
        while used() < before + hundredths {
            assert!(Instant::now() < deadline, "it does nothing");
            thread::yield_now();
        }
    }

    /// Asks the process to stop, and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        // Its standard error ends with it.
        assert!(self.log.wait_for_end(), "SIGTERM did not stop the server");
        self.wait()
    }

    /// Waits for the end of a process that was made to end.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for a line that contains `text`.
    pub fn wait_for_log(&self, text: &str) -> String {
        self.log.wait_for(text).unwrap_or_else(|| panic!("{text:?} never came"))
    }

    /// Waits for the access line of a request that ended with this status; the same line counts once.
    pub fn wait_for_refusal(&self, path: &str, status: u16) -> String {
        let line = self.take_line(|line| line.contains(&format!(" {path} {status} ")));
        line.unwrap_or_else(|| panic!("no line about {path} {status}"))
    }

    /// Waits for a line of this kind; the same line counts once.
    pub fn take_line(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        self.log.take(wanted)
    }

    /// A figure of the process in KiB, such as VmHWM; not under an emulator.
    pub fn memory_kib(&self, figure: &str) -> u64 {
        process_figures::memory_kib(self.child.id(), figure)
    }

    /// Whether the program loads libraries, as one does that is not linked statically.
    pub fn loads_libraries(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap().contains(".so")
    }

    /// How many bytes the process has written so far, to files and sockets.
    pub fn bytes_written(&self) -> u64 {
        process_figures::bytes_written(self.child.id())
    }

    /// All files of the data folder: names and a hash of their contents; of a collection, with what its WAL holds.
    pub fn files(&self) -> BTreeMap<PathBuf, u64> {
        let mut files = BTreeMap::new();
        gather(self.base.path(), &mut files);
        files
    }

    /// A file of `test`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.base.path().join("test").join(name)
    }

    /// Runs SQL on the committed state of `test`'s collection and returns each row as its values joined by `|`.
    pub fn rows(&self, sql: &str) -> Vec<String> {
        rows(&open_beside_server(&self.file("collection.anki2")), sql)
    }

    /// A whole sync without changes, which must succeed whatever came before.
    pub fn assert_syncs(&self) {
        let device = self.device();
        let usn = device.meta()["usn"].as_i64().unwrap();
        device.start(usn, true).ok();
        device.apply_changes(r#"{"models":[],"decks":[[],[]],"tags":[]}"#).ok();
        device.chunks();
        device.apply_chunk(r#"{"done":true}"#).ok();
        let counts = self.rows(
            "SELECT count(*), (SELECT count(*) FROM notes), (SELECT count(*) FROM revlog), 0,
               (SELECT count(*) FROM notetypes), (SELECT count(*) FROM decks), (SELECT count(*) FROM deck_config)
             FROM cards",
        );
        let counts = format!(r#"{{"client":[[0,0,0],{}]}}"#, counts[0].replace('|', ","));
        assert_eq!(device.call("sanityCheck2", &counts).ok()["status"], "ok");
        device.call("finish", "{}").ok();
        assert_eq!(device.meta()["usn"], usn + 1);
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if thread::panicking() {
            // Shows only the end, and shortens lines, which may contain what a test sent.
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- the end of the server's log ---");
            for line in &lines[lines.len().saturating_sub(100)..] {
                eprintln!("{}", line.chars().take(300).collect::<String>());
            }
            eprintln!("---");
        } else {
            assert!(!log.contains("panicked"), "the server panicked:\n{log}");
        }
    }
}

/// What starts the server, after a command of the shell.
fn command(first: &str, base: &Path, vars: &[(String, String)]) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", &format!("{first} && exec \"$0\" \"$@\"")])
        .arg(binary())
        .env_clear()
        .envs([("SYNC_HOST", "127.0.0.1"), ("SYNC_PORT", "0")])
        .envs([("SYNC_USER1", "test:secret"), ("SYNC_USER2", "other:word")])
        .env("SYNC_BASE", base)
        // These tests compare folders and count backups. Daily copies have tests of their own.
        .env("SYNC_BACKUP_DAYS", "0")
        .envs(vars.iter().map(|(key, value)| (key, value)));
    command
}

/// Runs a server that is expected to end by itself.
pub fn run_to_end(base: &Path, vars: &[(&str, &str)]) -> Output {
    let vars: Vec<_> = vars.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    command("true", base, &vars).output().unwrap()
}

/// Runs a command on a data folder, with these variables and this standard input.
pub fn ankipi(base: &Path, vars: &[(&str, &str)], args: &[&str], input: &str) -> Output {
    let mut child = Command::new(binary())
        .args(args)
        .env_clear()
        .env("SYNC_BASE", base)
        .envs(vars.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not ask ends without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// The output of a command: stdout and stderr.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs a command that must succeed, and returns what it printed.
#[track_caller]
pub fn done(base: &Path, args: &[&str], input: &str) -> String {
    let output = ankipi(base, &[], args, input);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes an account with the minimum of rounds, because tests are built without optimisation.
#[track_caller]
pub fn add_user(base: &Path, name: &str, password: &str) {
    done(base, &["user", "add", name, "--rounds", "100000"], password);
}

/// Opens a collection as a client does.
pub fn open(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.create_collation("unicase", unicase::compare).unwrap();
    db
}

/// Opens the collection of a running server for reading. An emulated server may have the other byte order, in which it keeps
/// the index of a WAL in `-shm`: SQLite cannot read that here. Then this opens a copy, whose index SQLite makes anew.
pub fn open_beside_server(path: &Path) -> Connection {
    // The index begins with the version of its format.
    let foreign = 3_007_000_u32.swap_bytes().to_ne_bytes();
    if fs::read(path.with_extension("anki2-shm")).is_ok_and(|index| index.starts_with(&foreign)) {
        let copy = copy_with_wal(path);
        let db = open(&copy.path().join("collection.anki2"));
        // The files of the copy stay open and go with the connection.
        db.query_row("SELECT 1 FROM col", [], |_| Ok(())).unwrap();
        db
    } else {
        open(path)
    }
}

/// Opens a downloaded collection as a client does.
pub fn open_bytes(file: &[u8]) -> Connection {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("collection.anki2");
    fs::write(&path, file).unwrap();
    let db = open(&path);
    // Its file stays open and goes with the connection.
    db.query_row("SELECT 1 FROM col", [], |_| Ok(())).unwrap();
    db
}

/// Each row as its values joined by `|`.
pub fn rows(db: &Connection, sql: &str) -> Vec<String> {
    use rusqlite::types::ValueRef::{Blob, Integer, Null, Real, Text};
    let mut select = db.prepare(sql).unwrap();
    let columns = select.column_count();
    let mut rows = select.query([]).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        let values = (0..columns).map(|column| match row.get_ref(column).unwrap() {
            Null => String::new(),
            Integer(value) => value.to_string(),
            Real(value) => value.to_string(),
            Text(bytes) | Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        });
        found.push(values.collect::<Vec<_>>().join("|"));
    }
    found
}

/// The rich collection of the spec's vectors, with usn 1 as after a real upload, and then with `sql` run on it.
pub fn collection(sql: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("collection.anki2");
    fs::write(&path, include_bytes!("../vectors/rich18.anki2")).unwrap();
    let db = open(&path);
    for table in ["notes", "cards", "revlog", "tags", "decks", "notetypes", "deck_config", "config"] {
        db.execute_batch(&format!("UPDATE {table} SET usn = 0")).unwrap();
    }
    db.execute_batch("DELETE FROM graves; UPDATE col SET usn = 1").unwrap();
    db.execute_batch(sql).unwrap();
    // The journal mode in which the server keeps it, so that opening it changes nothing.
    db.pragma_update(None, "journal_mode", "DELETE").unwrap();
    db.close().unwrap();
    fs::read(&path).unwrap()
}

fn gather(dir: &Path, files: &mut BTreeMap<PathBuf, u64>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        let mut hasher = DefaultHasher::new();
        if kind.is_dir() {
            gather(&entry.path(), files);
        } else if entry.file_name().to_string_lossy().starts_with("collection.anki2-") {
            continue;
        } else if entry.file_name() == "collection.anki2" && kind.is_file() {
            committed(&entry.path()).hash(&mut hasher);
        } else if kind.is_file() {
            fs::read(entry.path()).unwrap().hash(&mut hasher);
        }
        files.insert(entry.path(), hasher.finish());
    }
}

/// What a collection holds with what is committed in its WAL, as one file, without what tells its journal mode.
fn committed(path: &Path) -> Vec<u8> {
    let copy = copy_with_wal(path);
    let name = path.file_name().unwrap();
    let mut file = fs::read(copy.path().join(name)).unwrap();
    if file.starts_with(b"SQLite format 3\0") && copy.path().join("collection.anki2-wal").exists() {
        open(&copy.path().join(name)).pragma_update(None, "journal_mode", "DELETE").unwrap();
        file = fs::read(copy.path().join(name)).unwrap();
    }
    // The journal mode, and the counter of commits, which a change of the mode raises.
    for range in [18..20, 24..28, 92..96] {
        if let Some(bytes) = file.get_mut(range) {
            bytes.fill(0);
        }
    }
    file
}

/// A copy of a collection and of its WAL. The WAL comes first: a checkpoint may move it into the file meanwhile.
fn copy_with_wal(path: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let wal = path.with_extension("anki2-wal");
    if wal.exists() {
        fs::copy(wal, copy.path().join("collection.anki2-wal")).unwrap();
    }
    fs::copy(path, copy.path().join(path.file_name().unwrap())).unwrap();
    copy
}

/// The lines of a process's standard error, as they come.
#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    news: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    /// Which of them `take` has handed out.
    taken: Vec<bool>,
    ended: bool,
}

impl Log {
    fn collect(from: impl std::io::Read + Send + 'static) -> Arc<Log> {
        let log = Arc::new(Log::default());
        let filled = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let mut state = filled.state.lock().unwrap();
                state.lines.push(line);
                state.taken.push(false);
                filled.news.notify_all();
            }
            filled.state.lock().unwrap().ended = true;
            filled.news.notify_all();
        });
        log
    }

    fn text(&self) -> String {
        self.state.lock().unwrap().lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn wait_for(&self, text: &str) -> Option<String> {
        self.search(|state| state.lines.iter().position(|line| line.contains(text)))
    }

    fn wait_for_end(&self) -> bool {
        let state = self.state.lock().unwrap();
        self.news.wait_timeout_while(state, EVENT_TIMEOUT, |state| !state.ended).unwrap().0.ended
    }

    fn take(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        self.search(|state| {
            let at = (0..state.lines.len()).find(|at| !state.taken[*at] && wanted(&state.lines[*at]))?;
            state.taken[at] = true;
            Some(at)
        })
    }

    fn search(&self, find: impl Fn(&mut LogState) -> Option<usize>) -> Option<String> {
        let mut at = None;
        let state = self.state.lock().unwrap();
        let (state, _) = self
            .news
            .wait_timeout_while(state, EVENT_TIMEOUT, |state| {
                at = find(state);
                at.is_none() && !state.ended
            })
            .unwrap();
        at.map(|at| state.lines[at].clone())
    }
}
