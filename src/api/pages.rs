//! The pages for people and monitors.

use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;

use crate::config::{Address, Config};
use crate::error::{Error, Result};
use crate::os;

/// How the reader reached the page, as far as the request tells.
pub struct Place<'r> {
    /// The header `host`.
    pub host: Option<&'r str>,
    /// Whether a proxy says that the reader came by https.
    pub is_https: bool,
    /// The path prefix that the reader uses: SYNC_BASE_PATH, or what a proxy reports to have removed.
    pub prefix: &'r str,
    /// The root certificate that devices must trust, if the owner has one.
    pub root: Option<&'r str>,
    /// An address of this machine that other devices reach; only for a browser on the machine itself.
    pub lan: Option<SocketAddr>,
}

/// The page at `/`: what this is, and what to type into Anki. The script inserts the address in the browser, because
/// behind a proxy the request does not tell all of it.
pub fn start(place: &Place<'_>) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
    let host = place.host.filter(|host| host.chars().all(is_plain)).unwrap_or("THIS-SERVER:8080");
    let scheme = if place.is_https { "https" } else { "http" };
    let path = match place.prefix.trim_matches('/') {
        "" => String::new(),
        prefix => format!("{}/", escape(prefix)),
    };
    let lan = place.lan.map_or(String::new(), |address| format!("http://{address}"));
    let root = place.root.map_or(String::new(), |pem| ROOT_SECTION.replace("{pem}", &escape(pem)));
    PAGE.replace("{root}", &root)
        .replace("{lan}", &lan)
        .replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{url}", &format!("{scheme}://{host}/{path}"))
}

const PAGE: &str = include_str!("start_page.html");

const ROOT_SECTION: &str = r#"<section><h2>Certificate</h2>
<p>This server's https has a certificate by a root of its owner, which each device must trust once.</p>
<p>AnkiDroid: Settings &gt; Sync &gt; Custom sync server &gt; Custom root certificate, paste this:</p>
<div class="row"><pre>{pem}</pre></div>
<p>All others: open <a id="root" href="{url}root.crt">root.crt</a>. On iOS install the profile, then switch it on in Settings &gt;
General &gt; About &gt; Certificate Trust Settings. On a computer import it as a trusted root of the system.</p></section>
"#;

/// A file with one certificate is shorter.
const MAX_CERT_BYTES: u64 = 64 * 1024;

/// The first certificate in the file of SYNC_ROOT_CERT, and nothing else of that file: it might also hold a key.
pub fn root_certificate(config: &Config) -> Result<Option<String>> {
    let Some(path) = &config.root_cert else { return Ok(None) };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_CERT_BYTES).read_to_string(&mut text));
    read.map_err(Error::io("reading", path))?;
    let (begin, end) = ("-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----");
    let pem = text.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(pem, _)| pem);
    match pem.filter(|pem| pem.chars().all(|c| c.is_ascii_alphanumeric() || "+/=\r\n".contains(c))) {
        Some(pem) => Ok(Some(format!("{begin}{}{end}\n", pem.replace('\r', "")))),
        None => Err(Error::Broken(format!("{} holds no certificate as text (PEM)", path.display()))),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The first address at which other devices reach a server with these settings, if it can be told.
pub fn lan_address(config: &Config) -> Option<SocketAddr> {
    // Port 0 means one that the kernel chooses. Process 1 is that of a container, whose network no other device reaches.
    if config.port == 0 || std::process::id() == 1 {
        return None;
    }
    // A server behind a proxy need not ask the kernel. qemu-mips garbles its answer, and libc then reads it for ever.
    if !config.host.iter().any(|host| matches!(host, Address::Ip(ip) if !ip.is_loopback())) {
        return None;
    }
    os::lan_addresses()
        .into_iter()
        .find(|own| {
            config.host.iter().any(|host| matches!(host, Address::Ip(ip) if ip == own || ip.is_unspecified()))
        })
        .map(|own| SocketAddr::new(own, config.port))
}

/// Whether the data folder can be written to.
pub fn health(base: &Path) -> Result<()> {
    os::check_writable(base)
        .map_err(|err| Error::Busy(format!("the data folder {} is not writable: {err}", base.display())))
}
