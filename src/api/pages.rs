//! The pages for people and monitors.

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
    PAGE.replace("{lan}", &lan)
        .replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{url}", &format!("{scheme}://{host}/{path}"))
}

const PAGE: &str = include_str!("start_page.html");

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The first address at which other devices reach a server with these settings, if it can be told.
pub fn lan_address(config: &Config) -> Option<SocketAddr> {
    // Port 0 means one that the kernel chooses.
    if config.port == 0 {
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
