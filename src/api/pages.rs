//! The pages for people and monitors.

use std::path::Path;

use crate::error::{Error, Result};
use crate::sys;

/// The page at `/`: what this is, and what to type into Anki.
pub fn start(host: Option<&str>, base_path: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
    let host = host.filter(|host| host.chars().all(is_plain)).unwrap_or("THIS-SERVER:8080");
    let path = if base_path.is_empty() { String::new() } else { format!("{}/", escape(base_path)) };
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>ankipi</title><style>body{{font:1.1rem/1.5 sans-serif;max-width:38rem;margin:3rem auto;padding:0 1rem}}\
         code{{font-size:1.05em;overflow-wrap:anywhere}}</style></head>\n<body><h1>ankipi</h1>\
         <p>This is a sync server for <a href=\"https://apps.ankiweb.net/\">Anki</a> (ankipi {version}). There is \
         nothing to see here: type this address into Anki and sync.</p>\n\
         <p><code>http://{host}/{path}</code></p>\n\
         <ul><li>Computer: Preferences &gt; Syncing &gt; Self-hosted sync server</li>\
         <li>AnkiDroid: Settings &gt; Sync &gt; Custom sync server</li>\
         <li>AnkiMobile: Preferences &gt; Syncing &gt; Custom sync server</li></ul>\n\
         <p>If you opened this page with https, type https. Keep the slash at the end.</p></body></html>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Whether the data folder can be written to.
pub fn health(base: &Path) -> Result<()> {
    sys::check_writable(base)
        .map_err(|err| Error::Busy(format!("the data folder {} is not writable: {err}", base.display())))
}
