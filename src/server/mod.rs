//! Start to stop: the data folder, the listeners, the guard, tiny_http behind it, and a fixed set of worker threads.
//!
//! Only this module and `http::patience` start threads. Only this module and `http` name tiny_http.

pub mod connections;
mod listeners;

use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::api;
use crate::api::App;
use crate::collection;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::http::Request;
use crate::os;
use crate::os::Signal;
use connections::{Guard, Limits, Weight};
use listeners::Listeners;

/// Threads that answer requests. Full syncs may occupy at most two of them, so two stay free for other requests.
const WORKERS: usize = 4;

/// Stack of a worker. SQLite and serde on one row need far less; unused stack costs address space, not memory.
const WORKER_STACK_BYTES: usize = 512 * 1024;

/// The limit on open files to ask for: enough for the guard's connections and what the workers open. Many systems
/// start programs with 1024.
const OPEN_FILES: u32 = 2048;

/// Name of the Unix socket on which tiny_http accepts the guard's connections.
const SOCKET_FILE: &str = ".ankipi.sock";

/// How long a stop waits for the workers' last requests after the guard has ended. With the guard's `stop_wait` this
/// makes 10 seconds: init systems kill the process after that.
const LAST_REQUEST_WAIT: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT, or until it was idle for `idle_exit`. On SIGHUP, `reload` reads the settings again.
pub fn run(config: Config, reload: impl Fn() -> Result<Config> + Send + 'static) -> Result<()> {
    // Handlers come first: the kernel drops signals without a handler for process 1 (in a container).
    let signals = |signal| os::on_signals(signal).map_err(|err| Error::Broken(format!("signals: {err}")));
    let (stop, hangups) = (signals(Signal::Stop)?, signals(Signal::Reload)?);
    files::create_folder(&config.base).map_err(|err| {
        Error::Broken(format!("the data folder cannot be used: {err}; choose another with --base DIR"))
    })?;
    collection::check_sqlite()?;
    let _lock = files::lock_data_folder(&config.base)?;
    let Listeners { sockets, names, made } = Listeners::open(&config)?;
    let app = Arc::new(App::open(config.clone())?);
    let (backend, socket) = private_listener(&config.base)?;
    let backend = tiny_http::Server::from_listener(backend, None)
        .map_err(|err| Error::Broken(format!("starting tiny_http: {err}")))?;
    let workers = Workers::start(&app, backend)?;
    start_reloading(hangups, &app, reload)?;
    let limits = Limits {
        max_active: WORKERS,
        max_bulk: WORKERS / 2,
        // The limit on a body depends on the sync method: `api` enforces it, with a status and a log line.
        max_body_bytes: u64::MAX,
        idle_exit: config.idle_exit,
        ..Limits::default()
    };
    if let Err(err) = os::raise_open_files_limit(OPEN_FILES) {
        log::warn!("cannot raise the limit on open files: {err}");
    }
    let guard = Guard::new(sockets, socket.clone(), limits, weigh, stop)
        .map_err(|err| Error::Broken(format!("starting the guard: {err}")))?;
    log::info!(
        "ankipi {} listens on {}, data in {}",
        env!("CARGO_PKG_VERSION"),
        names.join(" and "),
        config.base.display()
    );
    if app.has_no_accounts() {
        log::warn!(
            "there is no account yet. To make one: ankipi user add NAME --base {}",
            config.base.display()
        );
    }
    guard.run();
    log::info!("stopping");
    if workers.stop() {
        app.users().end_sessions();
    } else {
        // The request still holds its user's locks. The next start rolls its work back, as after a power cut.
        log::warn!("stopping before a request has finished; the next start rolls it back");
    }
    made.iter().chain([&socket]).try_for_each(|path| files::remove_if_there(path))
}

/// Starts the thread that waits for SIGHUP and reloads the settings. It ends with the process.
fn start_reloading(
    mut hangups: UnixStream,
    app: &Arc<App>,
    reload: impl Fn() -> Result<Config> + Send + 'static,
) -> Result<()> {
    let app = app.clone();
    let work = move || {
        while hangups.read_exact(&mut [0]).is_ok() {
            let outcome = reload().and_then(|config| {
                log::set_max_level(config.log_level);
                app.reload_accounts(config.users)
            });
            match outcome {
                Ok(accounts) => log::info!(
                    "reloaded the log level and {accounts} accounts; other settings need a restart"
                ),
                Err(err) => log::error!("reload failed, keeping the old settings: {err}"),
            }
        }
    };
    let started = thread::Builder::new().name("reload".to_owned()).stack_size(WORKER_STACK_BYTES).spawn(work);
    started.map(drop).map_err(|err| Error::Broken(format!("starting a thread: {err}")))
}

/// What a request costs, by its path.
fn weigh(path: &str) -> Weight {
    match path {
        path if api::is_bulk(path) => Weight::Bulk,
        path if api::is_login(path) => Weight::Login,
        _ => Weight::Light,
    }
}

/// Binds a Unix socket in the data folder, which no other server uses. Falls back to the temporary folder if the file
/// system of the data folder has no sockets (FAT on a stick) or its path is too long for one.
fn private_listener(base: &Path) -> Result<(UnixListener, PathBuf)> {
    let temporary = std::env::temp_dir().join(format!("ankipi-{}", std::process::id()));
    let in_temporary = || {
        fs::create_dir(&temporary)?;
        let path = temporary.join(SOCKET_FILE);
        UnixListener::bind(&path).map(|listener| (listener, path))
    };
    let path = base.join(SOCKET_FILE);
    files::remove_if_there(&path)?;
    match UnixListener::bind(&path) {
        Ok(listener) => Ok((listener, path)),
        Err(_) => in_temporary().map_err(Error::io("making a socket in", &temporary)),
    }
}

/// The threads that answer requests.
struct Workers {
    backend: Arc<tiny_http::Server>,
    stopping: Arc<AtomicBool>,
    /// Disconnected once the last worker thread has ended.
    ended: mpsc::Receiver<()>,
}

impl Workers {
    fn start(app: &Arc<App>, backend: tiny_http::Server) -> Result<Workers> {
        let (backend, stopping) = (Arc::new(backend), Arc::new(AtomicBool::new(false)));
        let (alive, ended) = mpsc::channel();
        for number in 0..WORKERS {
            let (app, backend, stopping, alive) =
                (app.clone(), backend.clone(), stopping.clone(), alive.clone());
            let work_until_end = move || {
                work(&app, &backend, &stopping);
                drop(alive);
            };
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .stack_size(WORKER_STACK_BYTES)
                .spawn(work_until_end)
                .map_err(|err| Error::Broken(format!("starting a worker thread: {err}")))?;
        }
        Ok(Workers { backend, stopping, ended })
    }

    /// Tells each worker to end after its current request. Returns whether all ended within `LAST_REQUEST_WAIT`.
    fn stop(self) -> bool {
        self.stopping.store(true, Ordering::Relaxed);
        (0..WORKERS).for_each(|_| self.backend.unblock());
        self.ended.recv_timeout(LAST_REQUEST_WAIT) == Err(RecvTimeoutError::Disconnected)
    }
}

/// Answers requests until `stopping`. Between requests it rolls back sessions that timed out; without open sessions it
/// sleeps until the next request.
fn work(app: &App, backend: &tiny_http::Server, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Relaxed) {
        let request = match app.users().expire_sessions() {
            Some(wait) => backend.recv_timeout(wait),
            None => backend.recv().map(Some),
        };
        // No request or an error: `unblock` was called, or a session may have timed out.
        if let Ok(Some(request)) = request {
            // A panic ends this request and its user's session, but not the worker.
            drop(catch_unwind(AssertUnwindSafe(|| app.answer(Request::new(request)))));
        }
    }
}
