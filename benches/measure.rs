//! A server process and what it uses: processor, memory, disk.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Result;
use crate::client::{self, Client, Head, Traffic};

/// Accounts `user1` to `user4`, which a server has unless more are asked for.
pub const USERS: usize = 4;

/// The password of all accounts.
const PASSWORD: &str = "secret";

/// What stands for it where there are more than `USERS`: a hash, for which nobody knows a password. Anki's server hashes
/// plain ones at its start, 200 of them for a minute or more.
const HASH: &str =
    "$pbkdf2-sha256$i=100000,l=32$c2FsdHNhbHRzYWx0c2FsdA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// How often RssAnon is read.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// Lines of the server's log that are shown when a job fails.
const LOG_LINES: usize = 40;

/// Linux counts processor time in hundredths of a second for user space, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// One server on a data folder of its own; it is killed when this is dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    /// The password of each account, or its hash: the key of an account is made of it.
    secret: &'static str,
    log: Arc<Mutex<VecDeque<String>>>,
    count_fsyncs: bool,
    /// Where strace writes each fsync, if it makes them slow.
    slowed: Option<PathBuf>,
}

/// What waits for the disk.
const FSYNCS: &str = "fsync,fdatasync,syncfs,sync";

/// What a job cost the server.
pub struct Usage {
    /// From the first request to the last reply.
    pub wall: Duration,
    /// utime + stime, s.
    pub cpu: f64,
    /// The peak of the resident set, KiB, from the process's start.
    pub hwm_kib: u64,
    /// The largest RssAnon that was seen: without the pages of files, above all of the program itself. KiB.
    pub anon_kib: u64,
    /// What the process made the kernel write to the disk, bytes.
    pub written: u64,
    /// Bytes of bodies on the wire.
    pub traffic: Traffic,
    /// How often it waited for the disk, where that was counted.
    pub fsyncs: Option<u64>,
    /// How often the kernel took the processor from one of its threads. Of threads that live for less than 10 ms,
    /// nothing is known.
    pub switches: u64,
    /// How long each sync of an everyday job took, ascending.
    pub latencies: Vec<Duration>,
}

impl Usage {
    /// The latency below which this part of the syncs stays.
    pub fn latency(&self, part: f64) -> Duration {
        let index = (self.latencies.len() as f64 * part) as usize;
        self.latencies.get(index).or(self.latencies.last()).copied().unwrap_or_default()
    }
}

impl Server {
    /// Starts `command` (a path, or a command with arguments) on the folder `base` and waits until it answers. With
    /// `count_fsyncs` jobs are slow, and their fsyncs are counted. With `fsync_ms` they are counted, and each takes so
    /// much longer. It has so many accounts. Where these are more than `USERS`, nobody can log in; clients have keys.
    /// `backup_days` is how many daily copies it keeps; Anki's server makes none.
    pub fn start(
        command: &str,
        base: &Path,
        accounts: usize,
        backup_days: u32,
        count_fsyncs: bool,
        fsync_ms: Option<u32>,
    ) -> Result<Server> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut words: Vec<&str> =
            if Path::new(command).exists() { vec![command] } else { command.split_whitespace().collect() };
        let slowed = fsync_ms.map(|_| base.with_extension("fsyncs"));
        let (log, inject, trace);
        if let (Some(path), Some(ms)) = (&slowed, fsync_ms) {
            log = path.to_string_lossy();
            (trace, inject) =
                (format!("trace={FSYNCS}"), format!("inject={FSYNCS}:delay_enter={}", ms * 1000));
            // With -D the server is our child, and with --seccomp-bpf other system calls are as quick as without.
            let strace =
                ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", &log, "-e", &trace, "-e", &inject];
            words.splice(0..0, strace);
        }
        let mut run = Command::new(words.first().ok_or("--server is empty")?);
        run.args(&words[1..]);
        let secret = if accounts > USERS { HASH } else { PASSWORD };
        if secret == HASH {
            run.env("PASSWORDS_HASHED", "1").env("SYNC_OFFICIAL_KEYS", "yes");
        }
        for n in 1..=accounts {
            run.env(format!("SYNC_USER{n}"), format!("user{n}:{secret}"));
        }
        let mut child = run
            .env("SYNC_BASE", base)
            .env("SYNC_HOST", "127.0.0.1")
            .env("SYNC_PORT", port.to_string())
            .env("SYNC_BACKUP_DAYS", backup_days.to_string())
            // Both servers take the large collection then.
            .env("MAX_SYNC_PAYLOAD_MEGS", "1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A pipe: what goes into a file would count as written.
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|err| format!("starting {command}: {err}"))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            thread::spawn(move || keep_last_lines(BufReader::new(stderr), &log));
        }
        let mut server =
            Server { child, address: (Ipv4Addr::LOCALHOST, port).into(), secret, log, count_fsyncs, slowed };
        server.wait_until_it_answers()?;
        Ok(server)
    }

    fn wait_until_it_answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(120);
        // Anki's hashes the passwords first. Ours listens before it has prepared its folders, which must
        // not count as part of the job.
        while !self.answers() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the server ended at once ({status}):\n{}", self.log()).into());
            }
            if Instant::now() > deadline {
                return Err("the server does not answer".into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn answers(&self) -> bool {
        client::connect(self.address).is_ok_and(|mut connection| {
            let sent =
                write!(connection.get_mut(), "GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
            sent.is_ok() && Head::read(&mut connection).is_ok()
        })
    }

    /// A client of the account with this number.
    pub fn client(&self, user: usize) -> Client {
        Client::new(self.address, &format!("user{user}"), self.secret)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs a job and tells what the server used for it.
    pub fn measure(&self, job: impl FnOnce() -> Result<Traffic>) -> Result<Usage> {
        let counter = if self.count_fsyncs { Some(FsyncCounter::attach(self.child.id())?) } else { None };
        let slow_before = self.slow_fsyncs()?;
        let (cpu, written, switches) = (self.cpu()?, self.written()?, self.switches());
        let started = Instant::now();
        let over = AtomicBool::new(false);
        let (outcome, (anon_kib, switches)) = thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                // By thread, because some end meanwhile.
                let (mut most, mut latest) = (0, BTreeMap::new());
                while !over.load(Ordering::Relaxed) {
                    most = most.max(self.status_kib("RssAnon").unwrap_or(0));
                    latest.extend(self.switches());
                    thread::sleep(SAMPLE_EVERY);
                }
                latest.extend(self.switches());
                let since = |(thread, count): (&String, &u64)| count - switches.get(thread).unwrap_or(&0);
                (most, latest.iter().map(since).sum())
            });
            let outcome = job();
            over.store(true, Ordering::Relaxed);
            (outcome, sampler.join().unwrap_or_default())
        });
        let wall = started.elapsed();
        let traffic = outcome.map_err(|err| format!("{err}\nthe server's last words:\n{}", self.log()))?;
        Ok(Usage {
            wall,
            cpu: self.cpu()? - cpu,
            hwm_kib: self.status_kib("VmHWM")?,
            anon_kib,
            written: self.written()? - written,
            traffic,
            fsyncs: match counter {
                Some(counter) => Some(counter.finish()?),
                None => self.slow_fsyncs()?.zip(slow_before).map(|(now, before)| now - before),
            },
            switches,
            latencies: Vec::new(),
        })
    }

    /// How many fsyncs strace has seen since the server was started.
    fn slow_fsyncs(&self) -> Result<Option<u64>> {
        let Some(path) = &self.slowed else { return Ok(None) };
        // A call that another thread's one interrupted is told in two lines.
        let lines = BufReader::new(File::open(path)?).lines().map_while(std::result::Result::ok);
        Ok(Some(lines.filter(|line| line.contains("sync") && !line.contains("resumed>")).count() as u64))
    }

    /// How often each thread that is alive gave its processor away or had it taken.
    fn switches(&self) -> BTreeMap<String, u64> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        let of_thread = |thread: fs::DirEntry| {
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            let count = |key| number_after(&status, key).ok();
            let switches = count("voluntary_ctxt_switches")? + count("nonvoluntary_ctxt_switches")?;
            Some((thread.file_name().to_string_lossy().into_owned(), switches))
        };
        threads.filter_map(of_thread).collect()
    }

    fn log(&self) -> String {
        let lines = self.log.lock().map(|lines| lines.iter().cloned().collect::<Vec<_>>());
        lines.unwrap_or_default().join("\n")
    }

    fn read(&self, file: &str) -> Result<String> {
        Ok(fs::read_to_string(PathBuf::from(format!("/proc/{}/{file}", self.child.id())))?)
    }

    fn status_kib(&self, key: &str) -> Result<u64> {
        number_after(&self.read("status")?, key)
    }

    fn written(&self) -> Result<u64> {
        number_after(&self.read("io")?, "write_bytes")
    }

    /// utime + stime, of threads that have ended too.
    fn cpu(&self) -> Result<f64> {
        let stat = self.read("stat")?;
        // The name, in parentheses, may hold spaces; utime and stime are the 14th and 15th of all fields.
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let mut ticks = after_name.split_whitespace().skip(11).map(str::parse::<f64>);
        let mut next = || ticks.next().and_then(std::result::Result::ok).ok_or("/proc/PID/stat is odd");
        Ok((next()? + next()?) / TICKS_PER_SECOND)
    }
}

impl Drop for Server {
    /// Killed and not asked: what a reply has promised must be on the disk.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(path) = &self.slowed {
            let _ = fs::remove_file(path);
        }
    }
}

/// strace, attached to a server.
struct FsyncCounter {
    strace: Child,
    count: JoinHandle<u64>,
}

impl FsyncCounter {
    fn attach(pid: u32) -> Result<FsyncCounter> {
        let mut strace = Command::new("strace")
            .args(["-f", "-e", &format!("trace={FSYNCS}"), "-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|err| format!("--fsyncs needs strace: {err}"))?;
        let stderr = strace.stderr.take().ok_or("strace without stderr")?;
        let mut lines = BufReader::new(stderr).lines().map_while(std::result::Result::ok);
        if !lines.any(|line| line.contains("attached")) {
            return Err(format!("strace ended: {}", strace.wait()?).into());
        }
        // A call that another thread's one interrupted is told in two lines.
        let is_call =
            |line: &String| line.contains('(') && !line.contains("resumed>") && !line.contains("strace:");
        let count = thread::spawn(move || lines.filter(is_call).count() as u64);
        Ok(FsyncCounter { strace, count })
    }

    fn finish(mut self) -> Result<u64> {
        // It lets go of the server then.
        Command::new("kill").args(["-INT", &self.strace.id().to_string()]).status()?;
        self.strace.wait()?;
        Ok(self.count.join().map_err(|_| "counting fsyncs failed")?)
    }
}

fn number_after(text: &str, key: &str) -> Result<u64> {
    text.lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .find_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| format!("the kernel does not tell {key}").into())
}

fn keep_last_lines(stderr: impl BufRead, log: &Mutex<VecDeque<String>>) {
    for line in stderr.lines().map_while(std::result::Result::ok) {
        if let Ok(mut lines) = log.lock() {
            lines.push_back(line);
            if lines.len() > LOG_LINES {
                lines.pop_front();
            }
        }
    }
}
