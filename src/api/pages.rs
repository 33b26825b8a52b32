//! The pages for people and monitors.

use std::path::Path;

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
    PAGE.replace("{version}", env!("CARGO_PKG_VERSION"))
        .replace("{url}", &format!("{scheme}://{host}/{path}"))
}

const PAGE: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ankipi</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
:root { color-scheme: light dark; --ink: #1c2530; --paper: #f6f7f9; --card: #fff; --line: #d5dae1; --link: #0b5cad }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ec; --paper: #14181d; --card: #1d232b; --line: #37414d; --link: #7db8f5 }
}
body { font: 1rem/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 40rem;
  margin: 0 auto; padding: 1.5rem 1rem }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.05rem; margin: 0 0 .25rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem 1rem; margin: 1rem 0 }
p { margin: .25rem 0 }
code { display: block; font-size: 1rem; padding: .4rem .6rem; margin: .4rem 0; border: 1px solid var(--line);
  border-radius: .3rem; overflow-wrap: anywhere; user-select: all }
a { color: var(--link) }
</style></head>
<body>
<h1>ankipi</h1>
<p>A sync server for <a href="https://apps.ankiweb.net/">Anki</a> is running here. Type its address into each device,
then sync and log in with the name and password of your account.</p>
<section><h2>Computer</h2>
<p>Preferences &gt; Syncing &gt; Self-hosted sync server:</p><code class="url">{url}</code></section>
<section><h2>AnkiDroid</h2>
<p>Settings &gt; Sync &gt; Custom sync server &gt; Sync URL:</p><code class="url">{url}</code>
<p>Older versions ask for a media sync URL, too:</p><code class="url" data-more="msync">{url}msync</code></section>
<section><h2>AnkiMobile</h2>
<p>Settings &gt; Syncing &gt; Custom sync server:</p><code class="url">{url}</code></section>
<p>ankipi {version}</p>
<script>
for (const code of document.querySelectorAll(".url"))
  code.textContent = location.origin + location.pathname.replace(/\/*$/, "/") + (code.dataset.more || "");
</script>
</body></html>
"#;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Whether the data folder can be written to.
pub fn health(base: &Path) -> Result<()> {
    os::check_writable(base)
        .map_err(|err| Error::Busy(format!("the data folder {} is not writable: {err}", base.display())))
}
