//! `ankipi doctor`: tries an address as a client would, and reports which hop fails.

mod http_client;

use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::command::{Command, FAILED, Invocation, say};
use crate::cli::commands::doctor::http_client::{
    Reply, Request, RequestError, Url, fetch, fetch_with_old_tls,
};
use crate::cli::commands::user_folders::users_in;
use crate::cli::prompt;
use crate::compression::zstd_decoder::Decoder;
use crate::compression::zstd_encoder::Encoder;
use crate::config::USERS_FILE;
use crate::error::{Error, Result};
use crate::files;
use crate::files::access::{self, ServerUser};
use crate::limits_and_timeouts::ZSTD_WINDOW_BYTES;
use crate::media::denied_files::first_denied;
use crate::os::clock;

/// `ankipi doctor`
pub static DOCTOR: Command = Command {
    name: "doctor",
    arguments: "URL [--user NAME]",
    summary: "try an address as Anki would, and say what is wrong",
    help: "\
Run this where Anki runs, or on the board: it sends what a client sends through
whatever is between it and the server, and says which part does not work and the
usual cause. It also compares the clocks, and names files that a server on this
machine may not use. Nothing is stored or changed. https needs curl.

Options:
  --user NAME   also log in, with the password from standard input or asked for;
                on a server with keys for each device it shows as one more

Example:
  ankipi doctor https://anki.example.org/
",
    run,
};

/// The version that it reports as a client.
const CLIENT: &str = concat!("ankipi-doctor,", env!("CARGO_PKG_VERSION"));

/// A larger body than the megabyte that proxies accept by default.
const LARGE_BODY_BYTES: usize = 2_000_000;

/// Maximum clock difference in seconds. Clients refuse to sync beyond it.
const MAX_SKEW_SECS: i64 = 300;

/// The header of `/health` that tells the server's clock.
const TIME_HEADER: &str = "ankipi-time";

const SET_CLOCK: &str = "Anki refuses beyond 300 s. Does the board get the time from the network (NTP)?";

fn run(mut invocation: Invocation) -> Result<ExitCode> {
    let user = invocation.option("--user")?;
    let typed = invocation.words(1, 1)?.remove(0);
    let Some(url) = Url::parse(&typed) else {
        return Err(Error::Usage(format!(
            "{typed:?} is not an address such as http://192.168.1.5:8080/ or https://example.org/anki/"
        )));
    };
    let password = user.is_some().then(prompt::known_password).transpose()?;
    let mut doctor = Doctor { url, wrong: 0, knows_clock: false };
    if !typed.ends_with('/') {
        doctor.note("the address has no slash at its end", "Type it with one: some clients need it.");
    }
    doctor.local_files();
    doctor.leave_methods_out();
    if doctor.health() && doctor.methods() {
        doctor.large_body();
        if let (Some(user), Some(password)) = (user, password) {
            doctor.login(&user, &password);
        }
    }
    if doctor.wrong == 0 {
        doctor.other_devices();
    }
    match doctor.wrong {
        0 => say(&format!("All is well. In Anki, type: {}\n", doctor.url)),
        wrong => say(&format!("{wrong} of these must be fixed before Anki can sync.\n")),
    }
    Ok(ExitCode::from(if doctor.wrong == 0 { 0 } else { FAILED }))
}

struct Doctor {
    url: Url,
    wrong: u32,
    /// The server's clock was compared with this one.
    knows_clock: bool,
}

impl Doctor {
    fn well(&self, what: &str) {
        say(&format!("ok     {what}\n"));
    }

    fn note(&self, what: &str, advice: &str) {
        say(&format!("note   {}\n         {}\n", wrapped(what, 7), wrapped(advice, 9)));
    }

    fn wrong(&mut self, what: &str, advice: &str) {
        self.wrong += 1;
        say(&format!("WRONG  {}\n         {}\n", wrapped(what, 7), wrapped(advice, 9)));
    }

    fn get(&self, path: &str) -> std::result::Result<Reply, RequestError> {
        fetch(&self.url, &Request { verb: "GET", path, headers: &[], body: &[] })
    }

    /// Calls a method of the protocol as clients do since Anki 2.1.57.
    fn call(&self, path: &str, key: &str, body: &[u8]) -> std::result::Result<Reply, RequestError> {
        let header = json!({"v": 11, "k": key, "c": CLIENT, "s": ""}).to_string();
        let headers = [("anki-sync", header.as_str()), ("content-type", "application/octet-stream")];
        fetch(&self.url, &Request { verb: "POST", path, headers: &headers, body })
    }

    /// Checks that a sync server responds. If not, the other checks are skipped.
    fn health(&mut self) -> bool {
        let reply = match self.get("health") {
            Ok(reply) => reply,
            Err(error) => {
                let (what, advice) = explain_request_error(&error);
                self.wrong(&what, &advice);
                return false;
            }
        };
        if let Some(there) = reply.header(TIME_HEADER).and_then(|time| time.parse().ok()) {
            if reply.status == 503 {
                let doubt = String::from_utf8_lossy(&reply.body).trim().to_owned();
                self.wrong(&format!("the server cannot sync now: {doubt}"), SET_CLOCK);
                return false;
            }
            self.compare_clocks(there);
        }
        let through = match reply.header("server").or_else(|| reply.header("via")) {
            Some(proxy) => format!("through {proxy}"),
            None => "without a proxy in between".to_owned(),
        };
        let is_page = reply.body.trim_ascii_start().starts_with(b"<");
        match reply.status {
            200 if !is_page => {
                self.well(&format!("a sync server answers, {through}"));
                if self.url.is_https() {
                    self.well("this machine trusts its certificate; so must each device");
                    self.old_tls();
                }
                true
            }
            200 => {
                self.wrong(
                    &format!("a web page answers, {through}, and no sync server"),
                    "Is this the right name, port and path? A router or a portal may answer for it.",
                );
                false
            }
            status => {
                self.wrong(&format!("/health ends with {status}, {through}"), &explain(&reply));
                // Other sync servers may not have this page.
                status == 404
            }
        }
    }

    /// Checks TLS 1.2 by itself: curl takes 1.3 where it is offered, and not every client can do that.
    fn old_tls(&mut self) {
        let request = Request { verb: "GET", path: "health", headers: &[], body: &[] };
        match fetch_with_old_tls(&self.url, &request) {
            Ok(_) => self.well("TLS 1.2 is offered, which AnkiMobile and old phones need"),
            Err(error) => {
                let (what, _) = explain_request_error(&error);
                self.wrong(
                    &format!("TLS 1.2 is not offered: {what}"),
                    "AnkiMobile and old phones need it. In nginx `ssl_protocols TLSv1.2 TLSv1.3;`, in Caddy `protocols \
                     tls1.2 tls1.3`.",
                );
            }
        }
    }

    /// Goes on with the address in front of `sync/` or `msync/`, if the server is there.
    fn leave_methods_out(&mut self) {
        let is_there = |url: &Url| {
            let request = Request { verb: "GET", path: "health", headers: &[], body: &[] };
            fetch(url, &request).is_ok_and(|reply| reply.status == 200)
        };
        let Some(shorter) = self.url.without_methods().filter(is_there) else { return };
        // A proxy may serve ankipi below such a path.
        if is_there(&self.url) {
            return;
        }
        let advice = if self.url.to_string().ends_with("/msync/") {
            format!("AnkiDroid up to 2.15 wants it as the media address; all others want {shorter}")
        } else {
            format!("ankipi serves it so, too; the address is {shorter}")
        };
        self.note("the address ends with the beginning of a method's name", &advice);
        self.url = shorter;
    }

    /// Where other devices find a server whose address here is `localhost`.
    fn other_devices(&self) {
        let Some(urls) = self.url.for_other_devices() else { return };
        let request = Request { verb: "GET", path: "health", headers: &[], body: &[] };
        let advice = match urls.iter().find(|url| fetch(url, &request).is_ok_and(|reply| reply.status == 200)) {
            Some(url) => format!("Type {url} there, and try that on another device."),
            None => "They need the address of this machine, or of a proxy. The server does not answer on an address \
                     of this machine; see SYNC_HOST."
                .to_owned(),
        };
        self.note("this address is for this machine alone; other devices need another", &advice);
    }

    /// Servers on this machine: files that they may not use.
    fn local_files(&mut self) {
        for (_, base) in files::running_servers() {
            let server = ServerUser::of(&base, files::holder(&base));
            let in_base = access::denied_in_base(&server, &base, USERS_FILE);
            let of_users = users_in(&base).unwrap_or_default();
            let of_users = of_users.iter().filter_map(|name| {
                let denied = access::denied_to(&server, &base, name).map(|denied| denied.text);
                denied.or_else(|| first_denied(&server, &base, name))
            });
            for text in in_base.into_iter().chain(of_users) {
                self.note("the server that runs on this machine may not use a file", &text);
            }
        }
    }

    fn compare_clocks(&mut self, there: i64) {
        if std::mem::replace(&mut self.knows_clock, true) {
            return;
        }
        let skew = there - clock::wall_secs();
        if skew.abs() <= MAX_SKEW_SECS {
            self.well(&format!("the clocks differ by {} s", skew.abs()))
        } else {
            let way = if skew > 0 { "ahead" } else { "behind" };
            self.wrong(&format!("the server's clock is {} s {way}", skew.abs()), SET_CLOCK)
        }
    }

    /// Checks that each kind of request reaches the server. Stops at the first that does not: the others would fail
    /// alike.
    fn methods(&mut self) -> bool {
        // Paths as clients request them, with the variants of some clients.
        let paths = [
            ("sync/meta", "the collection's methods are reached"),
            ("msync/begin", "the media's methods are reached (AnkiDroid's media address)"),
            ("/sync/meta", "extra slashes are accepted"),
        ];
        paths.iter().all(|(path, meaning)| self.expect_refusal(path, &frame(b"{}"), meaning))
    }

    fn large_body(&mut self) {
        // Bytes that do not compress: the proxy must see all of them.
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(LARGE_BODY_BYTES)
        .collect();
        self.expect_refusal("sync/upload", &frame(&noise), "2 MB pass");
    }

    /// A request without a key ends with 403 if it reaches the server.
    fn expect_refusal(&mut self, path: &str, body: &[u8], meaning: &str) -> bool {
        let before = self.wrong;
        match self.call(path, "", body) {
            Ok(reply) if reply.status == 403 => self.well(meaning),
            Ok(reply) => {
                let what = format!("POST {path} ends with {} instead of 403", reply.status);
                self.wrong(&what, &explain(&reply));
            }
            Err(error) => {
                let (what, advice) = explain_request_error(&error);
                self.wrong(&format!("POST {path}: {what}"), &advice);
            }
        }
        before == self.wrong
    }

    fn login(&mut self, user: &str, password: &str) {
        let request = json!({"u": user, "p": password}).to_string();
        let Some(reply) = self.answer("sync/hostKey", "", &request) else {
            return;
        };
        let Some(key) = reply["key"].as_str().filter(|key| !key.is_empty()) else {
            return self.wrong(
                "the answer to the login holds no key",
                "Does something change answers on their way?",
            );
        };
        self.well(&format!("{user} can log in"));
        let request = json!({"v": 11, "cv": CLIENT}).to_string();
        let Some(meta) = self.answer("sync/meta", key, &request) else {
            return;
        };
        if let Some(text) = meta["msg"].as_str().filter(|text| !text.is_empty()) {
            if meta["cont"].as_bool() == Some(false) {
                self.wrong("the server lets this user not sync, and says why", text);
            } else {
                self.note("the server has a message for this user", text);
            }
        }
        if let Some(there) = meta["ts"].as_i64() {
            self.compare_clocks(there);
        }
    }

    /// The JSON response of a method; None if a problem was reported.
    fn answer(&mut self, path: &str, key: &str, request: &str) -> Option<Value> {
        let reply = match self.call(path, key, &frame(request.as_bytes())) {
            Ok(reply) => reply,
            Err(error) => {
                let (what, advice) = explain_request_error(&error);
                self.wrong(&format!("POST {path}: {what}"), &advice);
                return None;
            }
        };
        if reply.status != 200 {
            let advice = match (reply.status, key.is_empty()) {
                (403, true) => {
                    "The name or the password is wrong, or this address is not allowed to sync.".to_owned()
                }
                _ => explain(&reply),
            };
            self.wrong(&format!("POST {path} ends with {}", reply.status), &advice);
            return None;
        }
        let decoded = unframe(&reply.body).and_then(|json| serde_json::from_slice(&json).ok());
        if decoded.is_none() {
            self.wrong(
                &format!("the answer to {path} arrived changed"),
                "A proxy that packs or rewrites answers must leave these alone.",
            );
        }
        decoded
    }
}

/// Wraps a text at 80 columns. All lines but the first are indented.
fn wrapped(text: &str, indent: usize) -> String {
    let (mut lines, mut column) = (String::new(), indent);
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > indent && column + 1 + width > 80 {
            lines.push_str(&format!("\n{:indent$}", ""));
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += width;
    }
    lines
}

/// A body as clients encode it.
fn frame(body: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::packing(Vec::new());
    encoder.write_all(body).and_then(|()| encoder.finish()).expect("writing to memory does not fail")
}

fn unframe(body: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::new();
    Decoder::new(body, ZSTD_WINDOW_BYTES).ok()?.take(1 << 20).read_to_end(&mut decoded).ok()?;
    Some(decoded)
}

fn explain_request_error(error: &RequestError) -> (String, String) {
    let (what, advice) = match error {
        RequestError::UnknownHost(text) => (
            format!("the name is not known here ({text})"),
            "Is it spelled right? A name of the home network may not be known outside; try the number (192.168...).",
        ),
        RequestError::Refused(text) => (
            format!("nobody answers there ({text})"),
            "Is the server running (`ankipi status` on the board), on this port, and does SYNC_HOST let others in? \
             A firewall may be in the way.",
        ),
        RequestError::Timeout => (
            "nothing came back for 30 s".to_owned(),
            "A firewall drops the packets, the board is off, or the proxy waits for a server that does not answer.",
        ),
        RequestError::Certificate(text) => (
            format!("the certificate is not trusted ({text})"),
            "It must be of a known authority and for this very name. A root of your own must be told to this machine and \
             to each device: AnkiDroid takes it as text in `Custom root certificate` and ignores installed ones; the \
             others take an installed one.",
        ),
        RequestError::Tls(text) => (
            format!("the TLS handshake fails ({text})"),
            "Is this port one for https? ankipi itself speaks http; https is the work of a proxy in front.",
        ),
        RequestError::NotHttp(text) => (
            format!("the connection ends without an answer ({text})"),
            "Something that is not a web server listens there, or the proxy cuts the connection: see its log.",
        ),
        RequestError::NoCurl => (
            "https cannot be tried without curl".to_owned(),
            "Install curl, or run this on a machine that has it; http://BOARD:8080/ tries the server without the proxy.",
        ),
    };
    (what, advice.to_owned())
}

/// The usual cause of an unexpected status.
fn explain(reply: &Reply) -> String {
    match reply.status {
        301 | 302 | 303 | 307 | 308 => format!(
            "It redirects clients, which they do not follow. Type that address into Anki instead: {}",
            reply.header("location").unwrap_or("(it does not say which)")
        ),
        400 | 422 => {
            "The request arrived changed: does a proxy drop the header anki-sync, or rewrite bodies?"
                .to_owned()
        }
        401 => "The proxy asks for a password of its own, which Anki cannot give: let this path through."
            .to_owned(),
        403 => {
            "The proxy does not let this through (an access list, or a filter of request bodies).".to_owned()
        }
        404 if reply.header("server").or_else(|| reply.header("via")).is_none() => {
            "Nothing is served at this path. Is there a word too many behind the address? SYNC_BASE_PATH must fit."
                .to_owned()
        }
        404 => {
            "The path is lost on its way. In nginx `proxy_pass http://...:8080/;` with the slash takes the \
                location off, without it does not; SYNC_BASE_PATH must fit."
                .to_owned()
        }
        405 => "Something in front takes no POST: a static site, or the wrong location block.".to_owned(),
        411 | 501 => {
            "The proxy does not pass bodies in chunks: it is too old (nginx before 1.3.9).".to_owned()
        }
        413 => {
            "Large syncs are refused: in nginx `client_max_body_size 0;`, in Apache `LimitRequestBody 0`; \
                Cloudflare's free plan stops at 100 MB."
                .to_owned()
        }
        429 => "Too many failed logins came from here: wait a few minutes.".to_owned(),
        502..=504 => {
            "The proxy does not reach ankipi: is it running, and does the proxy name its address and port?"
                .to_owned()
        }
        500.. => "The server failed: its log says why.".to_owned(),
        _ => "No sync server answers like that: is this the right address?".to_owned(),
    }
}
