//! The kinds of values: how each is parsed, and how error messages name it.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::network::Network;
use crate::config::{Address, MIB, Origins};

/// A kind of value.
pub struct Kind<T> {
    /// Parses a value; None if it is not of this kind. Empty text means that the setting is not set.
    pub parse: fn(&str) -> Option<T>,
    /// Completes the message "KEY=VALUE is not ...".
    pub expected: &'static str,
}

/// The path of a folder or file.
pub const PATH: Kind<PathBuf> = Kind {
    parse: |text| (!text.is_empty() && !text.starts_with("~/")).then(|| text.into()),
    expected: "a path",
};

/// The path of a file, or none.
pub const OPTIONAL_PATH: Kind<Option<PathBuf>> = Kind {
    parse: |text| if text.is_empty() { Some(None) } else { (PATH.parse)(text).map(Some) },
    expected: "a path",
};

/// Listen addresses, at least one.
pub const ADDRESSES: Kind<Vec<Address>> = Kind {
    parse: |text| {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let addresses: Option<Vec<_>> = names.map(|name| name.parse().ok()).collect();
        addresses.filter(|addresses| !addresses.is_empty())
    },
    expected: "an address such as 0.0.0.0, 192.168.1.5 or ::, or unix:/path, or several with commas",
};

/// A duration or none.
pub const OPTIONAL_SECONDS: Kind<Option<Duration>> = Kind {
    parse: |text| match text {
        "" => Some(None),
        text => (SECONDS.parse)(text).map(Some),
    },
    expected: "a number of seconds above 0",
};

/// A TCP port.
pub const PORT: Kind<u16> = Kind { parse: |text| text.parse().ok(), expected: "a number up to 65535" };

/// A URL path. Slashes at both ends are dropped.
pub const URL_PATH: Kind<String> = Kind {
    parse: |text| {
        let may_be_in_a_path = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte);
        text.bytes().all(may_be_in_a_path).then(|| text.trim_matches('/').to_owned())
    },
    expected: "a path as in a URL, such as /anki",
};

/// Origins of web pages.
pub const ORIGINS: Kind<Origins> =
    Kind { parse: Origins::parse, expected: "origins such as https://deck.example, without a path, or *" };

/// Whether there is any text.
pub const ANYTHING: Kind<bool> = Kind { parse: |text| Some(!text.is_empty()), expected: "a text" };

/// Yes or no.
pub const YES_NO: Kind<bool> = Kind {
    parse: |text| match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Some(true),
        "no" | "false" | "off" | "0" | "" => Some(false),
        _ => None,
    },
    expected: "yes or no",
};

/// A size, in bytes.
pub const MEGS: Kind<u64> = Kind {
    parse: |text| megs(text).filter(|bytes| *bytes > 0),
    expected: "a number of MiB above 0, which would refuse everything",
};

/// A size that may be 0, in bytes.
pub const MEGS_OR_NONE: Kind<u64> = Kind { parse: megs, expected: "a number of MiB" };

/// A size or none, in bytes.
pub const OPTIONAL_MEGS: Kind<Option<u64>> = Kind {
    parse: |text| match text {
        "" => Some(None),
        text => megs(text).filter(|bytes| *bytes > 0).map(Some),
    },
    expected: "a number of MiB above 0 (leave it empty for no limit)",
};

fn megs(text: &str) -> Option<u64> {
    text.parse::<u64>().ok().map(|megs| megs.saturating_mul(MIB))
}

/// A duration.
pub const SECONDS: Kind<Duration> = Kind {
    // A longer one would overflow the clock.
    parse: |text| {
        let secs = text.parse::<u32>().ok().filter(|secs| *secs > 0);
        secs.map(|secs| Duration::from_secs(secs.into()))
    },
    expected: "a number of seconds above 0",
};

/// A count.
pub const COUNT: Kind<usize> = Kind { parse: |text| text.parse().ok(), expected: "a number" };

/// The name of a header.
pub const IP_HEADER: Kind<Option<String>> = Kind {
    parse: |text| {
        let fits = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        fits.then(|| (!text.is_empty()).then(|| text.to_owned()))
    },
    expected: "the name of a header, such as X-Real-IP, or RightmostXForwardedFor",
};

/// Networks, separated by blanks or commas.
pub const NETWORKS: Kind<Vec<Network>> = Kind {
    parse: |text| {
        let names = text.split([' ', ',']).filter(|name| !name.is_empty());
        names.map(|name| name.parse().ok()).collect()
    },
    expected: "a list of networks such as 192.168.1.0/24 or fd00::/8",
};

/// Networks, or `yes` for all and `no` for none.
pub const YES_NO_OR_NETWORKS: Kind<Vec<Network>> = Kind {
    parse: |text| match (YES_NO.parse)(text) {
        Some(true) => (NETWORKS.parse)("::/0"),
        Some(false) => Some(Vec::new()),
        None => (NETWORKS.parse)(text),
    },
    expected: "yes, no, or a list of networks such as 192.168.1.0/24 or fd00::/8",
};

/// The log level.
pub const LOG_LEVEL: Kind<log::LevelFilter> =
    Kind { parse: |text| text.parse().ok(), expected: "error, warn, info, debug or trace" };
