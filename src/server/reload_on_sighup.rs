//! SIGHUP: reads the settings again. The log level and the accounts take effect at once, other settings at a restart.

use crate::api::App;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::server::workers::WORKER_STACK_BYTES;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

/// Starts the thread that waits for SIGHUP and reloads the settings. It ends with the process.
pub(super) fn start_reloading(
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
