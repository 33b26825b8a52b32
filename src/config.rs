//! Settings: defaults < environment < flags, checked once at start and then passed around.
//!
//! The variables mean what they mean to the official server, so that one service file serves both.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

const MIB: u64 = 1024 * 1024;

/// Everything the server can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// SYNC_BASE, `--base`: the data folder. Default `~/.syncserver`, as the official server.
    pub base: PathBuf,
    /// SYNC_HOST, `--host`: the address to listen on. Default 0.0.0.0; `::` listens on IPv4 and IPv6.
    pub host: IpAddr,
    /// SYNC_PORT, `--port`. Default 8080; 0 picks a free one and says which.
    pub port: u16,
    /// SYNC_BASE_PATH: a path in front of `/sync`, for proxies that do not strip it. No slash at either end.
    pub base_path: String,
    /// SYNC_USER1, SYNC_USER2, ...: one account each; a gap in the numbers does not drop the rest.
    pub users: Vec<UserSetting>,
    /// PASSWORDS_HASHED: the passwords of SYNC_USERn are PHC strings.
    pub passwords_hashed: bool,
    /// MAX_SYNC_PAYLOAD_MEGS: the largest request body in MiB, as sent; three times that once decoded. Default 100.
    pub max_payload_bytes: u64,
    /// MAX_SYNC_ROW_MEGS: the largest single note, notetype or deck in MiB. It is held in memory. Default 8.
    pub max_row_bytes: u64,
    /// SYNC_SESSION_SECS: a sync that says nothing for so long is rolled back. Default 300.
    pub session_idle: Duration,
    /// SYNC_BACKUPS: how many replaced collections are kept for each user. Default 3.
    pub backups: usize,
    /// SYNC_IP_HEADER: the header in which a proxy tells the client's address, for the log. Default: the peer.
    pub ip_header: Option<String>,
    /// SYNC_LOG: error, warn, info, debug or trace. Default info.
    pub log_level: log::LevelFilter,
}

/// One SYNC_USERn.
#[derive(Clone)]
pub struct UserSetting {
    /// Also the name of the user's folder.
    pub name: String,
    /// The password, or its PHC string with `passwords_hashed`.
    pub password: String,
}

impl std::fmt::Debug for UserSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:***", self.name)
    }
}

/// What the command line may override.
#[derive(Debug, Default)]
pub struct Flags {
    /// `--base`
    pub base: Option<PathBuf>,
    /// `--host`
    pub host: Option<String>,
    /// `--port`
    pub port: Option<String>,
}

impl Config {
    /// Reads the settings from these variables and flags.
    pub fn load(vars: impl Iterator<Item = (String, String)>, flags: Flags) -> Result<Config> {
        let vars: BTreeMap<String, String> = vars.filter(|(key, _)| is_ours(key)).collect();
        let var = |key: &str| vars.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let config = Config {
            base: base(flags.base, &var)?,
            host: parse(
                "SYNC_HOST",
                flags.host.as_deref().or(var("SYNC_HOST")),
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                "an address such as 0.0.0.0, 192.168.1.5 or ::",
            )?,
            port: parse(
                "SYNC_PORT",
                flags.port.as_deref().or(var("SYNC_PORT")),
                8080,
                "a number up to 65535",
            )?,
            base_path: var("SYNC_BASE_PATH").unwrap_or("").trim_matches('/').to_owned(),
            users: user_settings(&vars)?,
            passwords_hashed: var("PASSWORDS_HASHED").is_some(),
            max_payload_bytes: megs("MAX_SYNC_PAYLOAD_MEGS", var("MAX_SYNC_PAYLOAD_MEGS"), 100)?,
            max_row_bytes: megs("MAX_SYNC_ROW_MEGS", var("MAX_SYNC_ROW_MEGS"), 8)?,
            session_idle: Duration::from_secs(parse(
                "SYNC_SESSION_SECS",
                var("SYNC_SESSION_SECS"),
                300,
                "a number of seconds",
            )?),
            backups: parse("SYNC_BACKUPS", var("SYNC_BACKUPS"), 3, "a number")?,
            ip_header: var("SYNC_IP_HEADER").map(str::to_owned),
            log_level: parse(
                "SYNC_LOG",
                var("SYNC_LOG"),
                log::LevelFilter::Info,
                "error, warn, info, debug or trace",
            )?,
        };
        if config.users.is_empty() {
            return Err(Error::Broken(
                "no account is set up. Start it with one, for example:\n  \
                 SYNC_USER1=me:my-password ankipi\n\
                 More accounts go into SYNC_USER2, SYNC_USER3 and so on."
                    .to_owned(),
            ));
        }
        Ok(config)
    }

    /// The data folder alone, for commands that need no accounts.
    pub fn base_folder(
        vars: impl Iterator<Item = (String, String)>,
        flag: Option<PathBuf>,
    ) -> Result<PathBuf> {
        let vars: BTreeMap<String, String> = vars.filter(|(key, _)| is_ours(key)).collect();
        base(flag, &|key: &str| vars.get(key).map(String::as_str).filter(|value| !value.is_empty()))
    }

    /// The largest request body after decompression, in bytes.
    pub fn max_decoded_bytes(&self) -> u64 {
        self.max_payload_bytes.saturating_mul(3)
    }
}

fn is_ours(key: &str) -> bool {
    key.starts_with("SYNC_") || key.starts_with("MAX_SYNC_") || key == "PASSWORDS_HASHED" || key == "HOME"
}

fn base<'v>(flag: Option<PathBuf>, var: &impl Fn(&str) -> Option<&'v str>) -> Result<PathBuf> {
    match (flag, var("SYNC_BASE")) {
        (Some(dir), _) => Ok(dir),
        (None, Some(dir)) => Ok(PathBuf::from(dir)),
        (None, None) => default_base(var("HOME")),
    }
}

fn default_base(home: Option<&str>) -> Result<PathBuf> {
    match home {
        Some(home) => Ok(PathBuf::from(home).join(".syncserver")),
        None => Err(Error::Broken(
            "neither SYNC_BASE nor HOME is set: say where the data lives with --base DIR".to_owned(),
        )),
    }
}

/// The value of a setting; `expected` ends the sentence "KEY=VALUE is not ...".
fn parse<T: std::str::FromStr>(key: &str, value: Option<&str>, default: T, expected: &str) -> Result<T> {
    match value {
        None => Ok(default),
        Some(text) => {
            text.trim().parse().map_err(|_| Error::Broken(format!("{key}={text} is not {expected}")))
        }
    }
}

fn megs(key: &str, value: Option<&str>, default: u64) -> Result<u64> {
    match parse(key, value, default, "a number of MiB")? {
        0 => Err(Error::Broken(format!("{key}=0 would refuse everything: give a number of MiB"))),
        megs => Ok(megs.saturating_mul(MIB)),
    }
}

/// The accounts in the order of their numbers.
fn user_settings(vars: &BTreeMap<String, String>) -> Result<Vec<UserSetting>> {
    let mut numbered: Vec<(u32, &String, &String)> = vars
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .filter_map(|(key, value)| Some((key.strip_prefix("SYNC_USER")?.parse().ok()?, key, value)))
        .collect();
    numbered.sort();
    let mut users: Vec<UserSetting> = Vec::with_capacity(numbered.len());
    for (_, key, value) in numbered {
        let Some((name, password)) = value.split_once(':').filter(|(_, password)| !password.is_empty())
        else {
            return Err(Error::Broken(format!("{key} must read name:password")));
        };
        check_user_name(key, name)?;
        if users.iter().any(|user| user.name == name) {
            return Err(Error::Broken(format!("{key}: there is an account '{name}' already")));
        }
        users.push(UserSetting { name: name.to_owned(), password: password.to_owned() });
    }
    Ok(users)
}

/// Names become folder names.
fn check_user_name(key: &str, name: &str) -> Result<()> {
    let fits = !name.is_empty() && name.len() <= 128 && !name.starts_with('.');
    if fits && !name.contains(|c: char| c == '/' || c == '\\' || c.is_control()) {
        return Ok(());
    }
    Err(Error::Broken(format!(
        "{key}: the name {name:?} cannot be a folder's name: no slashes, no control characters, no dot in front, \
         at most 128 bytes"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(vars: &[(&str, &str)]) -> Result<Config> {
        let owned = vars.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Config::load(owned, Flags::default())
    }

    #[test]
    fn defaults_are_those_of_the_official_server() {
        let config = load(&[("HOME", "/home/pi"), ("SYNC_USER1", "a:b")]).unwrap();
        assert_eq!(config.base, PathBuf::from("/home/pi/.syncserver"));
        assert_eq!((config.host.to_string().as_str(), config.port), ("0.0.0.0", 8080));
        assert_eq!(config.max_payload_bytes, 100 * MIB);
        assert_eq!(config.max_decoded_bytes(), 300 * MIB);
    }

    #[test]
    fn a_gap_in_the_numbers_does_not_drop_the_rest() {
        let vars = [("HOME", "/"), ("SYNC_USER10", "c:d:e"), ("SYNC_USER2", "a:b"), ("SYNC_USER3", "")];
        let config = load(&vars).unwrap();
        let users: Vec<_> =
            config.users.iter().map(|user| (user.name.as_str(), user.password.as_str())).collect();
        assert_eq!(users, [("a", "b"), ("c", "d:e")]);
    }

    #[test]
    fn bad_settings_are_named() {
        let cases = [
            (vec![("HOME", "/")], "no account"),
            (vec![("HOME", "/"), ("SYNC_USER1", "justname")], "SYNC_USER1 must read"),
            (vec![("HOME", "/"), ("SYNC_USER1", "../up:x")], "folder's name"),
            (vec![("HOME", "/"), ("SYNC_USER1", "a:x"), ("SYNC_USER2", "a:y")], "already"),
            (vec![("HOME", "/"), ("SYNC_USER1", "a:x"), ("SYNC_PORT", "http")], "SYNC_PORT=http"),
            (
                vec![("HOME", "/"), ("SYNC_USER1", "a:x"), ("MAX_SYNC_PAYLOAD_MEGS", "0")],
                "MAX_SYNC_PAYLOAD_MEGS=0",
            ),
            (vec![("SYNC_USER1", "a:x")], "--base DIR"),
        ];
        for (vars, expected) in cases {
            let err = load(&vars).unwrap_err().to_string();
            assert!(err.contains(expected), "{vars:?}: {err}");
        }
    }

    #[test]
    fn passwords_do_not_show_in_debug_output() {
        let config = load(&[("HOME", "/"), ("SYNC_USER1", "a:secret")]).unwrap();
        assert!(!format!("{config:?}").contains("secret"));
    }
}
