//! Start to stop: the listeners, the connection layer, tiny_http behind it, the worker threads.
//!
//! Here: `listeners`, `connections` (the poll loop, limits and timeouts), `workers`, `reload_on_sighup`. Not here: what a
//! request means (`api`). Imports `api`, `http`, `config`, `files`, `os`. Only this module,
//! `http::keep_client_waiting` and `files::flush_at_once` start threads. Only this module and `http` name tiny_http.

pub mod connections;
mod listeners;
mod reload_on_sighup;
mod workers;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api;
use crate::api::App;
use crate::collection::full::download::HAS_DBPAGE;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::files::data_folder;
use crate::http::request_head::Fields;
use crate::limits_and_timeouts::{Limits, SyncStep, Weight};
use crate::os;
use crate::os::Signal;
use connections::{Client, Policy, PollLoop};
use listeners::Listeners;
use reload_on_sighup::start_reloading;
use workers::Workers;

/// The limit on open files to ask for: enough for the connection layer's connections and what the workers open. Many systems
/// start programs with 1024.
const OPEN_FILES: u32 = 2048;

/// Name of the Unix socket on which tiny_http accepts the connection layer's connections.
const SOCKET_FILE: &str = ".ankipi.sock";

/// Runs until SIGTERM or SIGINT, or until it was idle for `idle_exit`. On SIGHUP, `reload` reads the settings again.
pub fn run(config: Config, reload: impl Fn() -> Result<Config> + Send + 'static) -> Result<()> {
    // Handlers come first: the kernel drops signals without a handler for process 1 (in a container).
    let signals = |signal| os::on_signals(signal).map_err(|err| Error::Broken(format!("signals: {err}")));
    let (stop, hangups) = (signals(Signal::Stop)?, signals(Signal::Reload)?);
    let folder = data_folder::open(&config.base, config.require_data)?;
    os::skip_sync_of_new_wal_header();
    let _lock = files::lock_data_folder(&config.base)?;
    warn_of_shortcomings(&config.base);
    folder.mark();
    os::clock::remember_start();
    let Listeners { sockets, names, made } = Listeners::open(&config)?;
    let app = Arc::new(App::open(config.clone(), folder)?);
    let (backend, socket) = PrivateSocket::bind(&config.base)?;
    let backend = tiny_http::Server::from_listener(backend, None)
        .map_err(|err| Error::Broken(format!("starting tiny_http: {err}")))?;
    let workers = Workers::start(&app, backend)?;
    start_reloading(hangups, &app, config.clone(), reload)?;
    let limits = Limits { idle_exit: config.idle_exit, ..Limits::default() };
    if let Err(err) = os::raise_open_files_limit(OPEN_FILES) {
        log::warn!("cannot raise the limit on open files: {err}");
    }
    let poll_loop = PollLoop::new(sockets, socket.path.clone(), limits, AppPolicy(app.clone()), stop)
        .map_err(|err| Error::Broken(format!("starting the connection layer: {err}")))?;
    log::info!(
        "ankipi {} listens on {}, data in {}",
        os::VERSION,
        names.join(" and "),
        config.base.display()
    );
    if let Some(address) = api::lan_address(&config) {
        log::info!("other devices on this network reach it at http://{address}/");
    }
    if let Some(err) = app.root_certificate_fault() {
        log::warn!("the page at / offers no root certificate: {err}");
    }
    if app.has_no_accounts() {
        log::warn!(
            "there is no account yet. To make one: ankipi user add NAME --base {}",
            config.base.display()
        );
    }
    // Logs it if the clock is not set.
    app.clock_doubt();
    let served = poll_loop.run().map_err(|err| Error::Broken(format!("stopping: {err}")));
    log::info!("stopping");
    if workers.stop() {
        app.users().end_sessions();
    } else {
        // The request still holds its user's locks. The next start rolls its work back, as after a power cut.
        log::warn!("stopping before a request has finished; the next start rolls it back");
    }
    made.iter().try_for_each(|path| files::remove_if_there(path))?;
    socket.remove()?;
    served
}

/// Warns of what this binary and the disk of the data folder cannot do.
fn warn_of_shortcomings(base: &Path) {
    if !HAS_DBPAGE {
        log::warn!(
            "this binary was built without .cargo/config.toml, as by `cargo install --git`: it takes more memory, and \
             each full download first copies the collection on the disk; to avoid that, run `cargo install --path .` in a \
             clone"
        );
    }
    match files::disk_abilities::shortcomings(base) {
        Ok(found) => found.iter().for_each(|what| log::warn!("the disk of {}: {what}", base.display())),
        // A server must also start when its disk is full.
        Err(err) => log::warn!("cannot test what the disk of {} can do: {err}", base.display()),
    }
}

/// Answers the questions of the connection layer from `api`.
struct AppPolicy(Arc<App>);

impl Policy for AppPolicy {
    fn weight(&self, path: &str) -> Weight {
        match path {
            path if api::is_bulk(path) => Weight::Bulk,
            path if api::is_login(path) => Weight::Login,
            _ => Weight::Light,
        }
    }

    fn sync_step(&self, path: &str) -> Option<SyncStep> {
        api::sync_step(path)
    }

    fn client(&self, peer: IpAddr, fields: &Fields) -> Client {
        match self.0.client_of(peer, fields) {
            (address, Some(user)) => Client::user(&user, address),
            (address, None) => Client::at(address),
        }
    }

    fn replies_tell_their_end(&self, fields: &Fields) -> bool {
        // Protocol 11: a reply is chunked, or in one piece.
        fields.values("anki-sync").next().is_some()
    }

    fn is_proxy(&self, peer: IpAddr) -> bool {
        self.0.is_proxy(peer)
    }
}

/// Most names that are tried for a folder in the temporary one. Servers that were killed have left theirs, and in a container each
/// had the same number.
const MOST_FOLDERS: u32 = 1000;

/// The Unix socket on which tiny_http accepts the connection layer's connections.
struct PrivateSocket {
    path: PathBuf,
    /// The folder that was made for it.
    folder: Option<PathBuf>,
}

impl PrivateSocket {
    /// Binds it in the data folder, which no other server uses. Falls back to the temporary folder if the file system of the
    /// data folder has no sockets (FAT on a stick) or its path is too long for one.
    fn bind(base: &Path) -> Result<(UnixListener, PrivateSocket)> {
        let path = base.join(SOCKET_FILE);
        files::remove_if_there(&path)?;
        match UnixListener::bind(&path) {
            Ok(listener) => Ok((listener, PrivateSocket { path, folder: None })),
            Err(_) => {
                let temporary = std::env::temp_dir();
                PrivateSocket::bind_in(&temporary).map_err(Error::io("making a socket in", &temporary))
            }
        }
    }

    /// Binds it in a new folder.
    fn bind_in(temporary: &Path) -> io::Result<(UnixListener, PrivateSocket)> {
        let mut number = 0;
        let folder = loop {
            let folder = temporary.join(format!("ankipi-{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&folder) {
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists && number < MOST_FOLDERS => {
                    number += 1
                }
                made => break made.map(|()| folder)?,
            }
        };
        let path = folder.join(SOCKET_FILE);
        UnixListener::bind(&path).map(|listener| (listener, PrivateSocket { path, folder: Some(folder) }))
    }

    fn remove(&self) -> Result<()> {
        match &self.folder {
            Some(folder) => files::remove_folder(folder),
            None => files::remove_if_there(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_server_left_stops_no_other_and_a_stop_leaves_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let (_listener, killed) = PrivateSocket::bind_in(temporary.path()).unwrap();
        let (_listener, second) = PrivateSocket::bind_in(temporary.path()).unwrap();
        assert_ne!(killed.path, second.path);
        second.remove().unwrap();
        killed.remove().unwrap();
        // Something that tidies the temporary folder may have been there before.
        killed.remove().unwrap();
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_data_folder_that_cannot_hold_a_socket_gets_one_elsewhere() {
        let base = tempfile::tempdir().unwrap();
        let (_listener, inside) = PrivateSocket::bind(base.path()).unwrap();
        assert!(inside.path.starts_with(base.path()) && inside.folder.is_none());
        let long = base.path().join("x".repeat(120));
        fs::create_dir(&long).unwrap();
        let (_listener, outside) = PrivateSocket::bind(&long).unwrap();
        assert!(!outside.path.starts_with(base.path()) && outside.path.exists());
        outside.remove().unwrap();
        assert!(!outside.folder.unwrap().exists());
    }
}
