//! A command of the command line, and its arguments: options, words, settings.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pico_args::Arguments;

use crate::config::{Flags, Settings};
use crate::error::{Error, Result};
use crate::files::{self, access};

/// Exit code: a command found a problem, or failed.
pub const FAILED: u8 = 1;

/// Exit code: the command line is wrong.
pub const WRONG_USAGE: u8 = 2;

/// One command, as declared in a module of `commands`.
pub struct Command {
    /// One word, or two for a family: `check`, `user add`.
    pub name: &'static str,
    /// The arguments after the name: `NAME [--yes]`.
    pub arguments: &'static str,
    /// What it does, for the list of commands: at most 55 characters, no full stop.
    pub summary: &'static str,
    /// The rest of its help: explanation, options, example. Lines of at most 80 characters.
    pub help: &'static str,
    /// Runs it. `Error::Usage` ends with 2 and points to the help, any other error with 1.
    pub run: fn(Invocation) -> Result<ExitCode>,
}

/// The config files of packages: for systemd and sysvinit, for OpenRC, and the one that OpenWrt's service makes at each start.
/// Every command reads the first that is there, so that `sudo ankipi user add` and the service mean the same folder.
const PACKAGED_CONFIGS: [&str; 3] = ["/etc/ankipi.conf", "/etc/conf.d/ankipi", "/var/etc/ankipi.conf"];

/// The arguments after the name of a command. A command takes its options first, then the remaining words.
pub struct Invocation {
    pub(super) args: Arguments,
    pub(super) base: Option<PathBuf>,
    pub(super) config: Option<PathBuf>,
}

impl Invocation {
    pub(super) fn new(args: Arguments) -> Invocation {
        Invocation { args, base: None, config: None }
    }

    /// Takes an option without a value.
    pub fn has(&mut self, option: &'static str) -> bool {
        self.args.contains(option)
    }

    /// Takes an option with its value.
    pub fn option(&mut self, option: &'static str) -> Result<Option<String>> {
        self.args.opt_value_from_str(option).map_err(|err| Error::Usage(err.to_string()))
    }

    /// Takes an option whose value is a path.
    pub fn path(&mut self, option: &'static str) -> Result<Option<PathBuf>> {
        self.args
            .opt_value_from_os_str(option, |path| Ok::<_, std::convert::Infallible>(path.into()))
            .map_err(|err| Error::Usage(err.to_string()))
    }

    /// Takes the remaining words, between `least` and `most`. Call it after all options are taken.
    pub fn words(&mut self, least: usize, most: usize) -> Result<Vec<String>> {
        let args = std::mem::replace(&mut self.args, Arguments::from_vec(Vec::new()));
        let mut words = Vec::new();
        for word in args.finish() {
            let word = word.to_string_lossy().into_owned();
            if word.starts_with('-') && word.len() > 1 {
                return Err(Error::Usage(format!("{word} is not an option here")));
            }
            words.push(word);
        }
        match words.len() {
            count if count < least => Err(Error::Usage("an argument is missing".to_owned())),
            count if count > most => Err(Error::Usage(format!("{:?} is one argument too many", words[most]))),
            _ => Ok(words),
        }
    }

    /// The settings of the server that is about to start: from the config file and the environment, with `--base` and
    /// these flags on top.
    pub fn server_settings(&self, mut flags: Flags) -> Result<Settings> {
        if let Some(base) = &self.base {
            flags.push(("SYNC_BASE", base.to_string_lossy().into_owned()));
        }
        let settings = Settings::read(self.config_file(!flags.is_empty())?.as_deref(), variables(), flags)?;
        for warning in settings.warnings() {
            eprintln!("ankipi: {warning}");
        }
        Ok(settings)
    }

    /// The settings for a command. If nothing names the data folder, it is that of the server that runs on this machine.
    /// An error if this user may not use that folder.
    pub fn settings(&self, flags: Flags) -> Result<Settings> {
        let mut settings = self.server_settings(flags)?;
        if !settings.names_data_folder() {
            Self::find_running_server(&mut settings)?;
        }
        access::refuse_stranger(&settings.base()?)?;
        Ok(settings)
    }

    fn find_running_server(settings: &mut Settings) -> Result<()> {
        match &files::running_servers()[..] {
            [] => {}
            [(process, base)] => {
                eprintln!(
                    "ankipi: using {}, the data folder of the running server (process {process})",
                    base.display()
                );
                settings.set_data_folder(base);
            }
            several => {
                let folders: Vec<_> = several.iter().map(|(_, base)| base.display().to_string()).collect();
                return Err(Error::Broken(format!(
                    "several servers run on this machine, on {}: say which with --base DIR",
                    folders.join(" and ")
                )));
            }
        }
        Ok(())
    }

    /// The settings for a command, with the accounts that only the environment of the running server names, as far as this
    /// user may read it.
    pub fn settings_with_accounts_of_server(&self) -> Result<Settings> {
        let mut settings = self.settings(Flags::new())?;
        if let Some(process) = files::holder(&settings.base()?) {
            settings.add_accounts(variables_of(process));
        }
        Ok(settings)
    }

    /// `--config`, or the file that ANKIPI_CONFIG names (none if that is empty), or the one of the package.
    fn config_file(&self, has_flags: bool) -> Result<Option<PathBuf>> {
        if self.config.is_some() {
            return Ok(self.config.clone());
        }
        if let Some(named) = std::env::var_os("ANKIPI_CONFIG") {
            return Ok((!named.is_empty()).then(|| named.into()));
        }
        let may_do_without = has_flags || std::env::var_os("SYNC_BASE").is_some();
        packaged_config(&PACKAGED_CONFIGS.map(Path::new), may_do_without)
    }

    /// The data folder.
    pub fn base(&self) -> Result<PathBuf> {
        self.settings(Flags::new())?.base()
    }
}

/// The first of these files that is there. An error if this user may not read it, unless the command can do without.
fn packaged_config(files: &[&Path], may_do_without: bool) -> Result<Option<PathBuf>> {
    for file in files {
        match std::fs::File::open(file) {
            Ok(_) => return Ok(Some(file.to_path_buf())),
            Err(err) if err.kind() == ErrorKind::PermissionDenied && !may_do_without => {
                return Err(Error::Broken(format!(
                    "the settings of the installed server are in {}, which you may not read: use sudo, or name another data \
                     folder with --base DIR",
                    file.display()
                )));
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Writes to standard output. Ignores errors: the reader may have ended (`ankipi config | head -1`).
pub fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// The environment of a running ankipi, without variables that are not UTF-8. Empty if it cannot be read.
fn variables_of(process: u32) -> impl Iterator<Item = (String, String)> {
    let file = |name: &str| std::fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
    // In a container the number may be that of any process here.
    let environment = if file("comm").starts_with(b"anki") { file("environ") } else { Vec::new() };
    let variables: Vec<_> = environment
        .split(|byte| *byte == 0)
        .filter_map(|variable| std::str::from_utf8(variable).ok()?.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    variables.into_iter()
}

/// The environment, without variables that are not UTF-8.
pub fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_whichever_package_is_there_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["ankipi.conf", "conf.d"].map(|name| folder.path().join(name));
        let found = || packaged_config(&[&first, &second], false).unwrap();
        assert_eq!(found(), None);
        std::fs::write(&second, "").unwrap();
        assert_eq!(found(), Some(second.clone()));
        std::fs::write(&first, "").unwrap();
        assert_eq!(found(), Some(first.clone()));
    }
}
