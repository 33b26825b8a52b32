//! Settings: defaults < config file < environment < flags, checked once at start and then passed around.
//!
//! Here: the config file, the kinds of values, SYNC_USERn, names of users, networks. Not here: accounts made by
//! `ankipi user add` (`accounts`). Imports `error` only.
//!
//! Settings of the official server keep their names and meanings, so that one service file works for both. The table
//! below declares each setting once. `Config`, `ankipi serve --help` and `ankipi config` are made from it.

mod cors_origins;
pub mod did_you_mean;
mod file;
mod listen_address;
pub mod network;
pub mod user_name;
mod user_settings;
pub mod value_kinds;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::did_you_mean::nearest;
use crate::config::network::Network;
use crate::error::{Error, Result};
pub use cors_origins::Origins;
pub use listen_address::Address;
pub use user_name::{USERS_FILE, check_user_name};
pub use user_settings::{UserSetting, read_secret};
use value_kinds::Kind;

const MIB: u64 = 1024 * 1024;

/// The declaration of a setting.
pub struct Setting {
    /// The name of the variable.
    pub key: &'static str,
    /// The option, such as `--host ADDRESS`; empty if there is none.
    pub flag: &'static str,
    /// The default as typed; empty if there is none.
    pub default: &'static str,
    /// What it sets, in at most 52 characters.
    pub summary: &'static str,
    check: fn(&Settings) -> Result<()>,
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $key:literal, $flag:literal, $default:literal, $kind:expr, $summary:literal;)*) => {
        /// All settings, checked.
        #[derive(Clone, Debug)]
        pub struct Config {
            $(#[doc = concat!($key, ": ", $summary, ".")] $(#[doc = $doc])* pub $field: $type,)*
            /// SYNC_USER1, SYNC_USER2, ..., SYNC_USER1_FILE, ...: one account each. Numbers may be left out.
            pub users: Vec<UserSetting>,
            /// The config file, which is read again on SIGHUP.
            pub config_file: Option<PathBuf>,
            /// Lines of the config file without effect, because the environment or the command line has other values.
            pub overridden: Vec<String>,
        }

        impl Config {
            /// The settings that differ in another configuration, without the accounts.
            pub fn differing(&self, other: &Config) -> Vec<&'static str> {
                [$((self.$field != other.$field).then_some($key),)*].into_iter().flatten().collect()
            }
        }

        /// All settings but the accounts.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            flag: $flag,
            default: $default,
            summary: $summary,
            check: |settings| settings.value($key, &$kind).map(drop),
        },)*];

        impl Settings {
            /// Checks all settings.
            pub fn config(&self) -> Result<Config> {
                Ok(Config { $($field: self.value($key, &$kind)?,)* users: user_settings::accounts(self)?,
                    config_file: self.config_file.clone(),
                    overridden: self.overridden.clone(),
                })
            }
        }
    };
}

settings! {
    base: PathBuf = "SYNC_BASE", "--base DIR", "~/.syncserver", value_kinds::PATH, "the data folder";
    require_data: bool = "SYNC_REQUIRE_DATA", "", "no", value_kinds::YES_NO, "never begin an empty data folder; see `ankipi init`";
    host: Vec<Address> = "SYNC_HOST", "--host ADDRESS", "0.0.0.0", value_kinds::ADDRESSES, "where to listen, by commas; :: is all; or unix:/path";
    /// 0 picks a free one and says which.
    port: u16 = "SYNC_PORT", "--port PORT", "8080", value_kinds::PORT, "the port to listen on";
    /// Without a slash at either end.
    base_path: String = "SYNC_BASE_PATH", "", "", value_kinds::URL_PATH, "a path in front of everything, such as /anki";
    passwords_hashed: bool = "PASSWORDS_HASHED", "", "", value_kinds::ANYTHING, "if set, passwords of SYNC_USERn are PBKDF2 strings";
    /// The official key is a digest of the stored hash. So with this, a stolen hash is as good as the password.
    official_keys: bool = "SYNC_OFFICIAL_KEYS", "", "no", value_kinds::YES_NO, "with PASSWORDS_HASHED, accept official keys, too";
    /// Bytes as sent. After decompression, three times that.
    max_payload_bytes: u64 = "MAX_SYNC_PAYLOAD_MEGS", "", "100", value_kinds::MEGS, "largest upload in MiB; three times that unpacked";
    /// Bytes. Such an object is held in memory.
    max_row_bytes: u64 = "MAX_SYNC_ROW_MEGS", "", "8", value_kinds::MEGS, "largest single note, notetype or deck in MiB";
    /// Bytes.
    quota_bytes: Option<u64> = "SYNC_QUOTA_MEGS", "", "", value_kinds::OPTIONAL_MEGS, "what each user may store, in MiB";
    /// Bytes.
    min_free_bytes: u64 = "SYNC_MIN_FREE_MEGS", "", "16", value_kinds::MEGS_OR_NONE, "what uploads leave free on the disk, in MiB";
    session_idle: Duration = "SYNC_SESSION_SECS", "", "300", value_kinds::SECONDS, "a silent sync is given up after so long";
    idle_exit: Option<Duration> = "SYNC_IDLE_EXIT_SECS", "", "", value_kinds::OPTIONAL_SECONDS, "end after so long without a connection";
    backups: usize = "SYNC_BACKUPS", "", "3", value_kinds::COUNT, "replaced collections kept for each user";
    backup_days: usize = "SYNC_BACKUP_DAYS", "", "7", value_kinds::COUNT, "daily copies kept of each collection; 0 for none";
    backup_weeks: usize = "SYNC_BACKUP_WEEKS", "", "4", value_kinds::COUNT, "weekly ones kept of the older daily copies";
    ip_header: Option<String> = "SYNC_IP_HEADER", "", "", value_kinds::IP_HEADER, "where a proxy tells the address: X-Real-IP, ...";
    trusted_proxies: Vec<Network> = "SYNC_TRUSTED_PROXIES", "", "127.0.0.0/8 ::1", value_kinds::NETWORKS, "proxies that SYNC_IP_HEADER is taken from";
    /// If empty, everyone.
    allow: Vec<Network> = "SYNC_ALLOW", "", "", value_kinds::NETWORKS, "networks that may sync; otherwise all";
    cors_origins: Origins = "SYNC_CORS_ORIGINS", "", "", value_kinds::ORIGINS, "web pages that may sync: https://host, ...; * is all";
    /// The networks that may read them.
    metrics: Vec<Network> = "SYNC_METRICS", "", "no", value_kinds::YES_NO_OR_NETWORKS, "numbers for Prometheus at /metrics: yes, or networks";
    /// Only its first certificate is ever shown.
    root_cert: Option<PathBuf> = "SYNC_ROOT_CERT", "", "", value_kinds::OPTIONAL_PATH, "a root certificate that the page at / offers";
    log_split: bool = "SYNC_LOG_SPLIT", "", "no", value_kinds::YES_NO, "info lines to stdout, warnings and errors to stderr";
    log_level: log::LevelFilter = "SYNC_LOG", "", "info", value_kinds::LOG_LEVEL, "error, warn, info, debug or trace";
}

/// Settings of the command line: keys and values.
pub type Flags = Vec<(&'static str, String)>;

/// All settings as typed, each with its origin.
pub struct Settings {
    values: BTreeMap<String, Value>,
    home: Option<String>,
    credentials: Option<PathBuf>,
    warnings: Vec<String>,
    config_file: Option<PathBuf>,
    overridden: Vec<String>,
}

/// A setting as it was typed.
pub struct Value {
    /// The text.
    pub text: String,
    /// Where it was typed.
    pub origin: Origin,
}

/// The origin of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was not set.
    Default,
    /// A line of the config file.
    File(PathBuf, usize),
    /// The environment.
    Environment,
    /// An option of the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path, line) => write!(f, "{} line {line}", path.display()),
            Origin::Environment => f.write_str("environment"),
            Origin::Flag => f.write_str("command line"),
        }
    }
}

impl Settings {
    /// Reads the config file and adds these variables and flags. Only unreadable text is an error; values are checked
    /// later.
    pub fn read(
        config_file: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
        flags: Flags,
    ) -> Result<Settings> {
        let mut settings = Settings {
            values: BTreeMap::new(),
            home: None,
            credentials: None,
            warnings: Vec::new(),
            config_file: config_file.map(Path::to_owned),
            overridden: Vec::new(),
        };
        if let Some(path) = config_file {
            for line in file::read(path)? {
                settings.take(line.key, line.value, Origin::File(path.to_owned(), line.number));
            }
            let holds_passwords = settings.keys().any(user_settings::is_account);
            settings.warnings.extend(file::warning_if_others_can_read(path, holds_passwords));
        }
        for (key, value) in variables {
            match key.as_str() {
                "HOME" => settings.home = Some(value),
                "CREDENTIALS_DIRECTORY" => settings.credentials = Some(value.into()),
                _ if is_ours(&key) => {
                    settings.warnings.extend(user_settings::warning_of_literal_quotes(&key, &value));
                    settings.take(key, value, Origin::Environment);
                }
                _ => {}
            }
        }
        for (key, value) in flags {
            settings.take(key.to_owned(), value, Origin::Flag);
        }
        settings.warn_of_bare_networks();
        Ok(settings)
    }

    /// Adds the accounts of another process, which these settings do not have: those of the running server.
    pub fn add_accounts(&mut self, variables: impl Iterator<Item = (String, String)>) {
        for (key, value) in variables {
            let is_of_accounts = user_settings::is_account(&key)
                || ["PASSWORDS_HASHED", "SYNC_OFFICIAL_KEYS"].contains(&key.as_str());
            if key == "CREDENTIALS_DIRECTORY" {
                self.credentials = self.credentials.take().or(Some(value.into()));
            } else if is_of_accounts && !self.values.contains_key(&key) {
                self.take(key, value, Origin::Environment);
            }
        }
    }

    /// An empty value counts as not set, so that a service file may hold `SYNC_USER2=`.
    fn take(&mut self, key: String, text: String, origin: Origin) {
        if !is_known(&key) {
            let names = SETTINGS.iter().map(|setting| setting.key).chain(["SYNC_USER1", "SYNC_USER1_FILE"]);
            let meant = match nearest(&key, names) {
                Some(name) => format!("did you mean {name}?"),
                None => "`ankipi serve --help` lists what there is".to_owned(),
            };
            self.warnings.push(format!("{key} ({origin}) is not a setting of ankipi: {meant}"));
        } else if !text.is_empty() {
            if let Some(Value { text: in_file, origin: place @ Origin::File(..) }) = self.values.get(&key)
                && !matches!(origin, Origin::File(..))
                && *in_file != text
            {
                self.overridden.push(format!("{key} ({place}) has no effect: the {origin} sets it, too"));
            }
            self.values.insert(key, Value { text, origin });
        }
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Whether SYNC_BASE was set anywhere.
    pub fn names_data_folder(&self) -> bool {
        self.values.contains_key("SYNC_BASE")
    }

    /// Sets SYNC_BASE, as an option of the command line would.
    pub fn set_data_folder(&mut self, base: &Path) {
        self.take("SYNC_BASE".to_owned(), base.to_string_lossy().into_owned(), Origin::Flag);
    }

    /// Warns of an address in SYNC_ALLOW that looks like a network without its length.
    fn warn_of_bare_networks(&mut self) {
        let Some(allow) = self.values.get("SYNC_ALLOW") else { return };
        for name in allow.text.split([' ', ',']).filter(|name| name.ends_with(".0")) {
            self.warnings.push(format!(
                "SYNC_ALLOW has {name} ({}), which is a single address: the network is {name}/24",
                allow.origin
            ));
        }
    }

    /// Likely mistakes that do no harm.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The folder in which systemd puts this service's credentials.
    pub fn credentials(&self) -> Option<&Path> {
        self.credentials.as_deref()
    }

    /// Checks the data folder only, for commands that need no other setting.
    pub fn base(&self) -> Result<PathBuf> {
        self.value("SYNC_BASE", &value_kinds::PATH)
    }

    /// All effective settings in the order of the table, then the accounts with masked passwords.
    pub fn listing(&self) -> Vec<(String, String, Origin)> {
        let of_setting = |setting: &Setting| {
            let (text, origin) = self.text(setting.key, setting.default);
            (setting.key.to_owned(), text, origin)
        };
        SETTINGS.iter().map(of_setting).chain(user_settings::listing(self)).collect()
    }

    /// The error of each wrong setting.
    pub fn faults(&self) -> Vec<Error> {
        let settings = SETTINGS.iter().filter_map(|setting| (setting.check)(self).err());
        settings.chain(user_settings::accounts(self).err()).collect()
    }

    fn text(&self, key: &str, default: &str) -> (String, Origin) {
        let (text, origin) = match self.values.get(key) {
            Some(value) => (value.text.as_str(), value.origin.clone()),
            None => (default, Origin::Default),
        };
        match (text.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) if key == "SYNC_BASE" => {
                (Path::new(home).join(rest).to_string_lossy().into_owned(), origin)
            }
            _ => (text.to_owned(), origin),
        }
    }

    fn value<T>(&self, key: &str, kind: &Kind<T>) -> Result<T> {
        let default =
            SETTINGS.iter().find(|setting| setting.key == key).map_or("", |setting| setting.default);
        let (text, origin) = self.text(key, default);
        (kind.parse)(text.trim()).ok_or_else(|| {
            let fault = if text.starts_with("~/") {
                format!("neither {key} nor HOME is set: say where the data lives with --base DIR")
            } else {
                format!("{key}={text} ({origin}) is not {}", kind.expected)
            };
            Error::Broken(fault)
        })
    }
}

impl Config {
    /// Whether SYNC_METRICS is `yes` and not a list of networks.
    pub fn shows_metrics_to_everyone(&self) -> bool {
        self.metrics.iter().any(Network::is_everything)
    }

    /// The largest request body after decompression, in bytes.
    pub fn max_decoded_bytes(&self) -> u64 {
        self.max_payload_bytes.saturating_mul(3)
    }
}

/// Other environment variables are ignored.
fn is_ours(key: &str) -> bool {
    key.starts_with("SYNC_") || key.starts_with("MAX_SYNC_") || key == "PASSWORDS_HASHED"
}

fn is_known(key: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key == key) || user_settings::is_account(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(vars: &[(&str, &str)]) -> Result<Config> {
        let owned = vars.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Settings::read(None, owned, Flags::new())?.config()
    }

    #[test]
    fn defaults_are_those_of_the_official_server() {
        let config = load(&[("HOME", "/home/pi"), ("SYNC_USER1", "a:b")]).unwrap();
        assert_eq!(config.base, PathBuf::from("/home/pi/.syncserver"));
        assert_eq!((config.host[0].to_string().as_str(), config.port), ("0.0.0.0", 8080));
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
    fn likely_mistakes_are_named() {
        let cases = [
            ("SYNC_ALLOW", "192.168.1.0", Some("the network is 192.168.1.0/24")),
            ("SYNC_ALLOW", "192.168.1.0/24 10.0.0.7", None),
            ("SYNC_USER1", "\"me:pw\"", Some("quotes")),
            ("SYNC_USER1", "me:pw\r", Some("a carriage return")),
            ("SYNC_USER1", "me:pw ", Some("a blank")),
            ("SYNC_USER1", "me : pw", Some("nobody can log in")),
            ("SYNC_PORT", " 80\r", None),
            ("SYNC_USER1", "me:\"pw\"", None),
            ("SYNC_PORT", "'80'", Some("quotes")),
        ];
        for (key, value, warning) in cases {
            let owned = [(key.to_owned(), value.to_owned())].into_iter();
            let settings = Settings::read(None, owned, Flags::new()).unwrap();
            match warning {
                Some(text) => assert!(settings.warnings().concat().contains(text), "{key}={value}"),
                None => assert!(settings.warnings().is_empty(), "{key}={value}: {:?}", settings.warnings()),
            }
            assert!(!settings.warnings().concat().contains("pw"), "a password is shown");
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let cases = [
            (vec![("HOME", "/"), ("SYNC_USER1", "justname")], "SYNC_USER1 must read"),
            (vec![("HOME", "/"), ("SYNC_USER1", "../up:x")], "folder's name"),
            (vec![("HOME", "/"), ("SYNC_USER1", "a:x"), ("SYNC_USER2", "a:y")], "already"),
            (vec![("HOME", "/"), ("SYNC_HOST", "0.0.0.0,unix:here")], "SYNC_HOST=0.0.0.0,unix:here"),
            (vec![("HOME", "/"), ("SYNC_PORT", "http")], "SYNC_PORT=http (environment) is not a number"),
            (vec![("HOME", "/"), ("SYNC_LOG", "loud")], "SYNC_LOG=loud"),
            (vec![("HOME", "/"), ("MAX_SYNC_PAYLOAD_MEGS", "0")], "MAX_SYNC_PAYLOAD_MEGS=0"),
            (
                vec![("HOME", "/"), ("SYNC_TRUSTED_PROXIES", "10.0.0.0/33")],
                "SYNC_TRUSTED_PROXIES=10.0.0.0/33",
            ),
            (vec![("HOME", "/"), ("SYNC_IP_HEADER", "Bad Header")], "SYNC_IP_HEADER=Bad Header"),
            (vec![("SYNC_USER1", "a:x")], "--base DIR"),
        ];
        for (vars, expected) in cases {
            let err = load(&vars).unwrap_err().to_string();
            assert!(err.contains(expected), "{vars:?}: {err}");
        }
    }

    #[test]
    fn every_default_fits_and_every_summary_fits_on_its_line() {
        load(&[("HOME", "/")]).unwrap();
        for setting in SETTINGS {
            assert!(setting.summary.len() <= 52, "{}: {}", setting.key, setting.summary.len());
        }
    }

    #[test]
    fn flags_beat_the_environment_which_beats_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ankipi.conf");
        std::fs::write(&path, "SYNC_BASE=/file\nSYNC_PORT=1\nSYNC_BACKUPS=7\n").unwrap();
        let vars = [("SYNC_PORT", "2"), ("SYNC_BASE", "/environment"), ("SYNC_BACKUPS", "")];
        let vars = vars.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let flags = vec![("SYNC_BASE", "/flag".to_owned())];
        let settings = Settings::read(Some(&path), vars.into_iter(), flags).unwrap();
        let config = settings.config().unwrap();
        assert_eq!((config.base, config.port, config.backups), ("/flag".into(), 2, 7));
        let origins: Vec<_> = settings.listing().into_iter().map(|(_, _, origin)| origin).collect();
        assert_eq!(origins[0], Origin::Flag);
        assert!(origins.contains(&Origin::File(path.clone(), 3)), "{origins:?}");
    }

    #[test]
    fn unknown_keys_are_warned_of_and_the_nearest_is_named() {
        let vars = [("SYNC_PROT", "1"), ("SYNC_USER", "a:b"), ("LANG", "C"), ("SYNC_EXTREMELY_ODD", "x")];
        let vars = vars.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let settings = Settings::read(None, vars.into_iter(), Flags::new()).unwrap();
        let [prot, user, odd] = settings.warnings() else { panic!("{:?}", settings.warnings()) };
        assert!(prot.contains("SYNC_PROT") && prot.contains("did you mean SYNC_PORT?"), "{prot}");
        assert!(user.contains("did you mean SYNC_USER1?"), "{user}");
        assert!(odd.contains("--help"), "{odd}");
    }

    #[test]
    fn passwords_show_neither_in_debug_output_nor_in_the_listing() {
        let vars = [("HOME".to_owned(), "/".to_owned()), ("SYNC_USER1".to_owned(), "a:secret".to_owned())];
        let settings = Settings::read(None, vars.into_iter(), Flags::new()).unwrap();
        let shown = format!("{:?} {:?}", settings.config().unwrap(), settings.listing());
        assert!(shown.contains("a:***") && !shown.contains("secret"), "{shown}");
    }
}
