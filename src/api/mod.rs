//! From request to response: route, authenticate, read the body, run the step, encode, one log line.
//!
//! Here: a file for each family of endpoints, `routes`, `authentication`, `client_address`, `quota_and_free_space`. Only
//! here does an error become a status and a log line. Handlers decode, call `sync` or `media` and encode. Not here: SQL,
//! and the steps of a sync (`sync`). Imports `sync`, `media`, `accounts`, `logging`, `http`, `messages`.

mod authentication;
mod client_address;
mod clients;
mod full_sync;
mod login_and_meta;
mod media_sync;
mod metrics;
mod normal_sync;
mod pages;
mod quota_and_free_space;
mod routes;

use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::accounts::Accounts;
use crate::accounts::known_accounts::AccountSettings;
use crate::config::user_name::REMOVED_PREFIX;
use crate::config::{Config, USERS_FILE};
use crate::error::{Error, Result};
use crate::files;
use crate::files::access::{self, Concerns, Denied, ServerUser, Stamps};
use crate::files::data_folder::DataFolder;
use crate::files::spool;
use crate::files::spool::Spool;
use crate::http::keep_client_waiting::{KeepAliveBytes, WaitingReply};
use crate::http::response::{Packing, Responder};
use crate::http::{Request, Verb};
use crate::logging::access_log::AccessLog;
use crate::os::clock;
use crate::sync::user::User;
use crate::sync::users::Users;
use authentication::Call;
use metrics::Metrics;
use quota_and_free_space::{LimitedWriter, SpareStorage, StorageLimits};
use routes::{Method, Page, Route};

pub use pages::lan_address;
pub use routes::{is_bulk, is_login, sync_step};

/// The supported protocol versions (sync-protocol.md 1).
pub const SYNC_VERSIONS: std::ops::RangeInclusive<u64> = 8..=11;

/// The state shared by all requests.
pub struct App {
    metrics: Metrics,
    config: Config,
    accounts: Accounts,
    users: Users,
    folder: DataFolder,
    /// Whether the clock was in doubt when it was last looked at.
    is_clock_unset: AtomicBool,
    spare: SpareStorage,
    /// Users whose files the server may all use, and the stamps of the files then.
    usable: Mutex<Vec<(String, Stamps)>>,
}

/// A reply in JSON, and a note for the log.
struct Answer {
    json: Spool,
    did: String,
}

impl App {
    /// Loads the accounts and prepares the users' folders.
    pub fn open(config: Config, folder: DataFolder) -> Result<App> {
        // Forms whose data comes before their key are spooled here.
        spool::remove_leftovers(&config.base).map_err(Error::io("tidying", &config.base))?;
        remove_deleted_users(&config.base)?;
        let accounts = Accounts::open(config.base.clone(), AccountSettings::of(&config))?;
        let users = Users::new(&config)?;
        let app = App {
            metrics: Metrics::start(),
            config,
            accounts,
            users,
            folder,
            is_clock_unset: AtomicBool::new(false),
            spare: SpareStorage::default(),
            usable: Mutex::default(),
        };
        app.prepare_folders();
        // A killed server may have created folders without syncing their parent.
        files::sync_folder(&app.config.base)?;
        Ok(app)
    }

    /// Why the certificate of SYNC_ROOT_CERT cannot be offered, if that is set.
    pub fn root_certificate_fault(&self) -> Option<Error> {
        pages::root_certificate(&self.config).err()
    }

    /// Whether there are no accounts.
    pub fn has_no_accounts(&self) -> bool {
        self.accounts.count() == 0
    }

    /// All users.
    pub fn users(&self) -> &Users {
        &self.users
    }

    /// Why no device can sync, if the clock is not set. Logs when that changes.
    pub fn clock_doubt(&self) -> Option<String> {
        let doubt = clock::why_unreliable();
        let was_unset = self.is_clock_unset.swap(doubt.is_some(), Ordering::Relaxed);
        match &doubt {
            Some(doubt) if !was_unset => log::error!(
                "{doubt}. Devices cannot sync until it is set: by the network (NTP), or `date -u -s 'YYYY-MM-DD hh:mm'`"
            ),
            None if was_unset => log::info!("the clock is set now, devices can sync"),
            _ => {}
        }
        doubt
    }

    /// Handles one request. Errors go to its status and to the log.
    pub fn answer(&self, request: Request) {
        let started = Instant::now();
        let address = client_address::of(&request, &self.config);
        let mut log = AccessLog::new(&request, address);
        let outcome = if self.is_allowed(address) {
            self.dispatch(request, &mut log)
        } else {
            // Respond as if nothing were here. A 403 would log out a device that is abroad for a day.
            refuse(request, Error::AddressNotAllowed)
        };
        let took = started.elapsed();
        let (received, sent) = log.bytes();
        let status = outcome.as_ref().err().map_or(200, Error::status);
        self.metrics.count(status, received, sent, took);
        log.write(outcome, took);
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        let allow = &self.config.allow;
        allow.is_empty() || allow.iter().any(|network| network.contains(address))
    }

    fn dispatch(&self, mut request: Request, log: &mut AccessLog) -> Result<()> {
        let origin = request.header("origin").filter(|origin| self.config.cors_origins.allow(origin));
        if let Some(origin) = origin.map(str::to_owned) {
            request.allow_origin(&origin);
            if request.verb() == Verb::Options {
                return request.into_responder().preflight();
            }
        }
        match Route::parse(request.path(), &self.config.base_path) {
            Route::Page(page) => match request.verb() {
                Verb::Get | Verb::Head => self.show(page, request, log),
                _ => refuse(request, Error::MethodNotAllowed("GET, HEAD")),
            },
            Route::Sync(method) => match (method, request.verb()) {
                (_, Verb::Post) | (Method::MediaBegin, Verb::Get) => self.sync(method, request, log),
                (Method::MediaBegin, _) => refuse(request, Error::MethodNotAllowed("GET, POST")),
                _ => refuse(request, Error::MethodNotAllowed("POST")),
            },
            Route::Unknown => refuse(request, Error::NotFound),
        }
    }

    fn sync(&self, method: Method, mut request: Request, log: &mut AccessLog) -> Result<()> {
        if let Err(err) = self.folder.check() {
            return refuse(request, err);
        }
        let outcome = match method {
            Method::Upload => self.upload(request, log),
            Method::Download => self.download(request, log),
            Method::DownloadFiles => self.download_files(request, log),
            _ => match self.receive(method, &mut request, log) {
                Ok((call, body)) => self.reply(&call, body, request.into_responder(), log),
                Err(err) if method == Method::Meta && err.may_come_from_denied_files() => {
                    return self.refuse_meta(request, err, log);
                }
                Err(err) => refuse(request, err),
            },
        };
        // A client that finds nothing to sync sends no more than `meta`.
        if outcome.is_ok()
            && matches!(method, Method::Meta | Method::Finish | Method::Upload | Method::Download)
        {
            self.metrics.synced(log.user_name());
        }
        outcome.map_err(|err| self.with_denied_files(err, log.user_name()))
    }

    /// The first file of a user, or without a name of the data folder and of all users, that the server may not use.
    fn denied_files(&self, user: Option<&str>) -> Option<Denied> {
        let (who, base) = (ServerUser::this_process(), &self.config.base);
        match user {
            Some(name) => access::denied_to(&who, base, name),
            None => access::denied_in_base(&who, base, USERS_FILE)
                .map(|text| Denied { concerns: Concerns::All, text })
                .or_else(|| {
                    let accounts = self.accounts.current();
                    // Who sends a request cannot be told because of keys, not because of media.
                    accounts.accounts().find_map(|account| {
                        access::denied_to(&who, base, &account.name)
                            .filter(|denied| denied.concerns == Concerns::All)
                    })
                }),
        }
    }

    /// As `denied_files` for a user of whom the last look found nothing: looks again if something has changed since, so that a
    /// sync without changes asks for four files and not for 50.
    fn newly_denied_files(&self, name: &str) -> Option<Denied> {
        let now = Stamps::of(&self.config.base, name);
        if self.usable().iter().any(|(of, stamps)| of == name && *stamps == now) {
            return None;
        }
        let denied = self.denied_files(Some(name));
        let mut usable = self.usable();
        usable.retain(|(of, _)| of != name);
        if denied.is_none() {
            usable.push((name.to_owned(), now));
        }
        denied
    }

    fn usable(&self) -> MutexGuard<'_, Vec<(String, Stamps)>> {
        self.usable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error for the log. If the server failed because it may not use a file, that says whose the file is.
    fn with_denied_files(&self, err: Error, user: &str) -> Error {
        let user = Some(user).filter(|user| *user != "-");
        match (err.may_come_from_denied_files().then(|| self.denied_files(user)).flatten(), err) {
            (None, err) => err,
            (Some(denied), Error::Busy(_)) => Error::Busy(denied.text),
            (Some(denied), _) => Error::Broken(denied.text),
        }
    }

    fn show(&self, page: Page, request: Request, log: &mut AccessLog) -> Result<()> {
        log.page();
        match page {
            Page::Start => {
                // The start has logged why there is none.
                let root = pages::root_certificate(&self.config).ok().flatten();
                let html = pages::start(&pages::Place {
                    root: root.as_deref(),
                    host: request.header("host"),
                    is_https: request.header("x-forwarded-proto") == Some("https"),
                    prefix: request.header("x-forwarded-prefix").unwrap_or(&self.config.base_path),
                    lan: if log.address().is_loopback() { pages::lan_address(&self.config) } else { None },
                });
                request.into_responder().text(200, "text/html; charset=utf-8", &html)
            }
            Page::Metrics if self.config.metrics.iter().any(|network| network.contains(log.address())) => {
                let text = self.metrics.text(&self.config, self.accounts.count());
                request.into_responder().text(200, "text/plain; version=0.0.4", &text)
            }
            Page::Metrics => refuse(request, Error::NotFound),
            Page::RootCertificate => match pages::root_certificate(&self.config) {
                Ok(Some(pem)) => request.into_responder().text(200, "application/x-x509-ca-cert", &pem),
                Ok(None) => refuse(request, Error::NotFound),
                Err(err) => refuse(request, err),
            },
            Page::Health => match (
                self.folder.check().and_then(|()| pages::health(&self.config.base)),
                self.clock_doubt(),
            ) {
                (Ok(()), None) => request.into_responder().health(200, "ok\n", clock::now_secs()),
                (Ok(()), Some(doubt)) => {
                    request.into_responder().health(503, &format!("{doubt}\n"), clock::now_secs())
                }
                (Err(err), _) => refuse(request, err),
            },
        }
    }

    /// The storage limits of the request.
    fn storage_limits(&self, method: Method, user: Option<&str>) -> Result<Option<StorageLimits<'_>>> {
        match user {
            Some(name) if !method.has_small_body() => {
                StorageLimits::of(method, &*self.user_named(name)?, &self.config, &self.spare)
            }
            _ => Ok(None),
        }
    }

    /// Replaces the settings of accounts. On an error the old ones stay. Returns the number of accounts.
    pub fn reload_accounts(&self, config: &Config) -> Result<usize> {
        self.accounts.reload(AccountSettings::of(config))?;
        self.prepare_folders();
        Ok(self.accounts.count())
    }

    /// Creates missing folders and recovers after a crash. A folder that cannot be used concerns its user only.
    fn prepare_folders(&self) {
        self.follow_accounts();
        let (who, base) = (ServerUser::this_process(), &self.config.base);
        if let Some(text) = access::denied_in_base(&who, base, USERS_FILE) {
            log::error!("{text}");
        }
        for account in self.accounts.current().accounts() {
            if let Some(denied) = access::denied_to(&who, base, &account.name) {
                log::error!("{:?} cannot sync: {}", account.name, denied.text);
            }
        }
        for account in self.accounts.current().accounts().filter(|account| account.closed.is_none()) {
            if let Err(err) = self.user_named(&account.name) {
                log::error!("the account {:?} is closed: {err}", account.name);
            }
        }
    }

    /// Applies changes by `ankipi user` and `ankipi device`.
    fn notice_changed_accounts(&self) -> Result<()> {
        self.accounts.refresh()?;
        self.follow_accounts();
        Ok(())
    }

    /// Tells `Users` which accounts exist.
    fn follow_accounts(&self) {
        let now = self.accounts.current();
        self.users.follow(now.version, now.accounts().map(|account| (account.name.clone(), account.tag())));
    }

    /// The user of an account. Creates a missing folder, if the account is still there.
    fn user_named(&self, name: &str) -> Result<Arc<User>> {
        self.follow_accounts();
        let create = |dir: &Path| self.accounts.while_there_is(name, || files::create_folder(dir));
        self.users.by_name(name, create)
    }

    fn user(&self, call: &Call) -> Result<Arc<User>> {
        self.user_named(call.user.as_deref().unwrap_or_default())
    }

    /// Admits a request and spools its body.
    fn receive(&self, method: Method, request: &mut Request, log: &mut AccessLog) -> Result<(Call, Spool)> {
        let is_whole = request.whole_bytes().is_some();
        let (call, mut body) = self.admit(method, request, log)?;
        let storage_limits = self.storage_limits(method, call.user.as_deref())?;
        let (spool, received) = match body.take_spool() {
            Some(spooled) => spooled,
            None => {
                let mut spool = self.spool(method, call.user.as_deref())?;
                let mut sink = LimitedWriter::new(&mut spool, storage_limits.as_ref());
                let sink_error =
                    quota_and_free_space::error_of(Error::io("writing", "spooled request".as_ref()));
                let received = body.read_into(&mut sink, sink_error)?;
                (spool, received)
            }
        };
        log.received(received);
        // A body that was here whole has taken no time.
        if !is_whole {
            self.confirm(&call)?;
        }
        storage_limits.as_ref().map_or(Ok(()), |limits| limits.check_whole(received.decoded))?;
        Ok((call, spool))
    }

    /// Checks the key again after the body has arrived, which may take minutes. Without this a removed account or a
    /// revoked device could still change data, or create a folder that was just deleted.
    fn confirm(&self, call: &Call) -> Result<()> {
        let Some(user) = &call.user else { return Ok(()) };
        self.notice_changed_accounts()?;
        if self.accounts.user_of_key(&call.header.hkey, call.address)? == *user {
            Ok(())
        } else {
            Err(Error::Forbidden("the host key belongs to another user by now".to_owned()))
        }
    }

    /// A spool for a body from this user.
    fn spool(&self, method: Method, user: Option<&str>) -> Result<Spool> {
        // `meta` has a message for the user whose folder cannot be used.
        let user = user.filter(|_| method != Method::Meta);
        Ok(match user.map(|name| self.user_named(name)).transpose()? {
            Some(user) if method == Method::UploadChanges => user.media.spool(),
            Some(user) => Spool::new(&user.dir),
            None => Spool::new(&self.config.base),
        })
    }

    /// Runs a step and sends its JSON, with keep-alive bytes if that takes long.
    fn reply(&self, call: &Call, mut body: Spool, responder: Responder, log: &mut AccessLog) -> Result<()> {
        let waiting = WaitingReply::new(responder, call.packing(), EARLY_JSON_BYTES);
        let keep_alive: KeepAliveBytes = match call.packing() {
            // JSON may begin with white space.
            Packing::Zstd => |_| Some(b" "),
            Packing::Plain => HEAD_ALONE,
        };
        let outcome = waiting.while_doing(keep_alive, || self.step(call, &mut body));
        drop(body);
        match outcome {
            Ok(mut answer) => {
                log.did(&answer.did);
                log.sent(send(&mut answer.json, waiting)?);
                Ok(())
            }
            Err(err) => fail_reply(waiting, err),
        }
    }

    fn step(&self, call: &Call, body: &mut Spool) -> Result<Answer> {
        match call.method {
            Method::HostKey => self.host_key(call, body),
            Method::Meta => self.meta(call, body),
            Method::Start => self.start(call, body),
            Method::ApplyGraves => self.apply_graves(call, body),
            Method::ApplyChanges => self.apply_changes(call, body),
            Method::Chunk => self.chunk(call, body),
            Method::ApplyChunk => self.apply_chunk(call, body),
            Method::SanityCheck => self.sanity_check(call, body),
            Method::Finish => self.finish(call, body),
            Method::Abort => self.abort(call),
            Method::MediaBegin => self.media_begin(call, body),
            Method::MediaChanges => self.media_changes(call, body),
            Method::UploadChanges => self.upload_changes(call, body),
            Method::MediaSanity => self.media_sanity(call, body),
            Method::Upload | Method::Download | Method::DownloadFiles => {
                Err(Error::Broken("this method does not reply with JSON".to_owned()))
            }
        }
    }
}

/// Finishes an interrupted `ankipi user remove --delete-data`.
fn remove_deleted_users(base: &Path) -> Result<()> {
    for entry in fs::read_dir(base).map_err(Error::io("reading", base))? {
        let entry = entry.map_err(Error::io("reading", base))?;
        if entry.file_name().to_string_lossy().starts_with(REMOVED_PREFIX)
            && let Err(err) = files::remove_folder(&entry.path())
        {
            log::warn!("{err}");
        }
    }
    Ok(())
}

/// Old clients take the body literally, so only the response head can be sent ahead.
const HEAD_ALONE: KeepAliveBytes = |_| Some(b"");

/// The size that a reply in JSON announces if its head must be sent before the reply is known. It is then filled up with
/// white space, so that the size is right. Some clients compare it, or decode into a buffer of that size. The reply to a
/// request that takes so long is short, or (rarely) longer than this.
const EARLY_JSON_BYTES: u64 = 64 << 10;

fn send(json: &mut Spool, waiting: WaitingReply) -> Result<u64> {
    let (sent_early, json_bytes) = (waiting.sent_bytes() as u64, json.len());
    let mut stream = waiting.into_stream(json_bytes)?;
    let mut reader = json.reader().map_err(Error::io("reading", "spooled reply".as_ref()))?;
    std::io::copy(&mut reader, &mut stream).map_err(Error::Disconnected)?;
    if sent_early > 0 {
        let missing = EARLY_JSON_BYTES.saturating_sub(sent_early + json_bytes);
        std::io::copy(&mut std::io::repeat(b' ').take(missing), &mut stream).map_err(Error::Disconnected)?;
    }
    stream.finish()
}

fn refuse(request: Request, err: Error) -> Result<()> {
    respond_with(request.into_responder(), err)
}

/// Responds with the status of an error. If another status is already sent, breaks the response off instead.
fn fail_reply(waiting: WaitingReply, err: Error) -> Result<()> {
    match waiting.into_responder() {
        Some(responder) => respond_with(responder, err),
        None => Err(err),
    }
}

/// Responds with the status of an error, and returns the error for the log. Clients never show the text.
fn respond_with(responder: Responder, err: Error) -> Result<()> {
    if let Error::MethodNotAllowed(allow) = &err {
        responder.method_not_allowed(allow)?;
    } else if !matches!(err, Error::Disconnected(_)) {
        let status = err.status();
        responder.text(status, "text/plain", &format!("{status}\n"))?;
    }
    Err(err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use crate::http::test_wire::Wire;

    #[test]
    fn a_reply_that_began_early_has_the_size_that_it_announced() {
        let dir = tempfile::tempdir().unwrap();
        let wire = Wire::default();
        let waiting = WaitingReply::new(wire.responder(), Packing::Zstd, EARLY_JSON_BYTES);
        waiting.while_doing(
            |_| Some(b" "),
            || {
                while waiting.sent_bytes() < 2 {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            },
        );
        let mut json = Spool::new(dir.path());
        json.write_all(b"{\"usn\":1}").unwrap();
        send(&mut json, waiting).unwrap();
        let wire = wire.sent();
        let head = wire.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
        assert!(std::str::from_utf8(&wire[..head]).unwrap().contains("anki-original-size: 65536\r\n"));
        let (mut chunks, mut frame) = (&wire[head..], Vec::new());
        while !chunks.is_empty() {
            let line = chunks.windows(2).position(|at| at == b"\r\n").unwrap();
            let size = usize::from_str_radix(std::str::from_utf8(&chunks[..line]).unwrap(), 16).unwrap();
            frame.extend_from_slice(&chunks[line + 2..line + 2 + size]);
            chunks = &chunks[line + 4 + size..];
        }
        let plain = zstd::decode_all(&frame[..]).unwrap();
        assert_eq!(plain.len(), 65536);
        assert_eq!(std::str::from_utf8(&plain).unwrap().trim(), "{\"usn\":1}");
    }
}
