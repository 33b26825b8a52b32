//! SIGHUP: reads the settings again. The log level and the accounts take effect at once, other settings at a restart.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use crate::api::App;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::server::workers::WORKER_STACK_BYTES;
use crate::text::counted::counted;

/// The settings that take effect without a restart, together with SYNC_USERn.
const RELOADED: [&str; 3] = ["PASSWORDS_HASHED", "SYNC_OFFICIAL_KEYS", "SYNC_LOG"];

/// Starts the thread that waits for SIGHUP and reloads the settings. It ends with the process.
pub(super) fn start_reloading(
    mut hangups: UnixStream,
    app: &Arc<App>,
    running: Config,
    reload: impl Fn() -> Result<Config> + Send + 'static,
) -> Result<()> {
    let app = app.clone();
    let work = move || {
        while hangups.read_exact(&mut [0]).is_ok() {
            match reload().and_then(|config| Ok((app.reload_accounts(&config)?, config))) {
                Ok((accounts, config)) => {
                    log::set_max_level(config.log_level);
                    log::info!("reloaded the log level and {}", counted(accounts, "account"));
                    without_effect(&running, &config).iter().for_each(|line| log::warn!("{line}"));
                }
                Err(err) => log::error!("reload failed, keeping the old settings: {err}"),
            }
        }
    };
    let started = thread::Builder::new().name("reload".to_owned()).stack_size(WORKER_STACK_BYTES).spawn(work);
    started.map(drop).map_err(|err| Error::Broken(format!("starting a thread: {err}")))
}

/// Changed settings that do not take effect, for the log.
fn without_effect(running: &Config, config: &Config) -> Vec<String> {
    let mut lines = config.overridden.clone();
    if config.config_file.is_none() {
        lines.push(
            "the settings come from the environment, which does not change while ankipi runs: restart it to apply \
             changes, or start it with --config FILE"
                .to_owned(),
        );
    }
    let waiting: Vec<_> =
        running.differing(config).into_iter().filter(|key| !RELOADED.contains(key)).collect();
    if !waiting.is_empty() {
        lines.push(format!("changed, but in effect only after a restart: {}", waiting.join(", ")));
    }
    lines
}
