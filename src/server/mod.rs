//! Start to stop: the data folder, the listeners, the guard, tiny_http behind it, and a fixed set of worker threads.
//!
//! The only module that makes threads that outlive a request, and with `http` the only one that names tiny_http.

pub mod guard;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::api::{self, App};
use crate::collection;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::fsutil;
use crate::http::Request;
use crate::sys;
use guard::{Guard, Limits, Weight};

/// Threads that answer requests. Two of them may be busy with full syncs, so two are always there for the rest.
const WORKERS: usize = 4;

/// SQLite and serde on one row need far less; untouched stack costs address space only.
const WORKER_STACK_BYTES: usize = 512 * 1024;

/// Enough for the guard's connections and everything behind them; many systems start programs with 1024.
const OPEN_FILES: u32 = 2048;

/// tiny_http's end of the private connection to the guard.
const SOCKET_FILE: &str = ".ankipi.sock";

/// Runs until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<()> {
    fsutil::create_folder(&config.base).map_err(|err| {
        Error::Broken(format!("the data folder cannot be used: {err}; choose another with --base DIR"))
    })?;
    collection::check_sqlite()?;
    let _lock = fsutil::lock_data_folder(&config.base)?;
    let listener = bind(SocketAddr::new(config.host, config.port))?;
    let address = listener.local_addr().map_err(|err| Error::Broken(format!("listening: {err}")))?;
    let app = Arc::new(App::open(config.clone())?);
    let stop = sys::stop_on_signals().map_err(|err| Error::Broken(format!("signals: {err}")))?;
    let (backend, socket) = private_listener(&config.base)?;
    let backend = tiny_http::Server::from_listener(backend, None)
        .map_err(|err| Error::Broken(format!("starting tiny_http: {err}")))?;
    let backend = Arc::new(backend);
    let stopping = Arc::new(AtomicBool::new(false));
    let workers: Vec<_> =
        (0..WORKERS).map(|n| start_worker(n, &app, &backend, &stopping)).collect::<Result<_>>()?;
    let limits = Limits {
        max_active: WORKERS,
        max_bulk: WORKERS / 2,
        // Which body is too large depends on the method: `api` tells, with a status and a log line.
        max_body_bytes: u64::MAX,
        ..Limits::default()
    };
    if let Err(err) = sys::raise_open_files_limit(OPEN_FILES) {
        log::warn!("the limit on open files stays as it is: {err}");
    }
    let guard = Guard::new(vec![listener], socket.clone(), limits, weigh, stop)
        .map_err(|err| Error::Broken(format!("starting the guard: {err}")))?;
    log::info!(
        "ankipi {} listens on http://{address}/, data in {}",
        env!("CARGO_PKG_VERSION"),
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
    stopping.store(true, Ordering::Relaxed);
    workers.iter().for_each(|_| backend.unblock());
    for worker in workers {
        // A worker catches the panics of its requests; should one have got through, there is nothing left to end.
        let _ = worker.join();
    }
    app.users().end_sessions();
    fsutil::remove_if_there(&socket)
}

/// What a request costs, by its path.
fn weigh(path: &str) -> Weight {
    match path {
        path if api::is_bulk(path) => Weight::Bulk,
        path if api::is_login(path) => Weight::Login,
        _ => Weight::Light,
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|err| {
        let advice = match err.kind() {
            std::io::ErrorKind::AddrInUse => ": another program has this port; choose one with --port",
            std::io::ErrorKind::PermissionDenied => {
                ": ports below 1024 need root; choose another with --port"
            }
            std::io::ErrorKind::AddrNotAvailable => ": this machine does not have that address; see --host",
            _ => "",
        };
        Error::Broken(format!("cannot listen on {address}{advice} ({err})"))
    })
}

/// A Unix socket in the data folder, which is ours alone; in the temporary folder where the file system of the data
/// (FAT on a stick) or the length of its path does not allow one.
fn private_listener(base: &Path) -> Result<(UnixListener, PathBuf)> {
    let temporary = std::env::temp_dir().join(format!("ankipi-{}", std::process::id()));
    let in_temporary = || {
        fs::create_dir(&temporary)?;
        let path = temporary.join(SOCKET_FILE);
        UnixListener::bind(&path).map(|listener| (listener, path))
    };
    let path = base.join(SOCKET_FILE);
    fsutil::remove_if_there(&path)?;
    match UnixListener::bind(&path) {
        Ok(listener) => Ok((listener, path)),
        Err(_) => in_temporary().map_err(Error::io("making a socket in", &temporary)),
    }
}

fn start_worker(
    number: usize,
    app: &Arc<App>,
    backend: &Arc<tiny_http::Server>,
    stopping: &Arc<AtomicBool>,
) -> Result<thread::JoinHandle<()>> {
    let (app, backend, stopping) = (app.clone(), backend.clone(), stopping.clone());
    thread::Builder::new()
        .name(format!("worker-{number}"))
        .stack_size(WORKER_STACK_BYTES)
        .spawn(move || work(&app, &backend, &stopping))
        .map_err(|err| Error::Broken(format!("starting a worker thread: {err}")))
}

/// Answers requests until `unblock`. In between, sessions that went silent are rolled back; without any, nothing wakes.
fn work(app: &App, backend: &tiny_http::Server, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Relaxed) {
        let request = match app.users().expire_sessions() {
            Some(wait) => backend.recv_timeout(wait),
            None => backend.recv().map(Some),
        };
        // Nothing, or an error: woken to stop, or to look at the sessions again.
        if let Ok(Some(request)) = request {
            // A panic ends its request and its user's session, and never the worker.
            drop(catch_unwind(AssertUnwindSafe(|| app.answer(Request::new(request)))));
        }
    }
}
