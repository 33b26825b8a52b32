//! Names of media files. Only a checked name can become a path below `media/`.

use std::path::{Path, PathBuf};

use rusqlite::types::{ToSql, ToSqlOutput};
use unicode_normalization::is_nfc;

use crate::error::{Error, Result};

/// A name that cannot leave the folder and that each client keeps unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaName(String);

/// Why a text is not a `MediaName`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName(pub &'static str);

impl MediaName {
    /// Maximum length in bytes, as in file systems and on the official server.
    pub const MAX_BYTES: usize = 255;

    /// Checks a name.
    ///
    /// Refuses `\` and control characters, which the official server accepts. All clients strip both. On another system
    /// `\` leads out of the folder; control characters garble a terminal.
    pub fn parse(raw: String) -> std::result::Result<MediaName, BadName> {
        if matches!(raw.as_str(), "" | "." | "..") {
            return Err(BadName("is empty or a folder's"));
        }
        if raw.contains(['/', '\\']) {
            return Err(BadName("holds a path separator"));
        }
        if raw.contains(char::is_control) {
            return Err(BadName("holds a control character"));
        }
        if raw.len() > MediaName::MAX_BYTES {
            return Err(BadName("is longer than 255 bytes"));
        }
        if !is_nfc(&raw) {
            return Err(BadName("is not in Unicode's composed form (NFC)"));
        }
        Ok(MediaName(raw))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its path in the folder.
    pub fn path_in(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }
}

impl ToSql for MediaName {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

/// Checks a name that a client sent. The error holds the reason; the name itself is logged at level debug only.
pub fn checked_name(raw: String) -> Result<MediaName> {
    let shown = raw.chars().take(300).collect::<String>();
    MediaName::parse(raw).map_err(|BadName(reason)| {
        log::debug!("refused a media file named {shown:?}");
        Error::bad(format!("the name of a media file {reason}"))
    })
}

/// The form in which names are equal on a file system that ignores case and trailing dots and spaces.
pub fn folded(name: &str) -> String {
    name.trim_end_matches(['.', ' ']).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_every_script_are_kept_as_they_are() {
        let longest = "x".repeat(255);
        let names = [
            "a.jpg",
            "ümläut.txt",
            "日本語.mp3",
            "😀.png",
            "100% \"quoted\" 'name'.png",
            "...",
            ".hidden",
            "-rf",
            "a b ",
            "trail.",
            "CON",
            "x:y",
            "%2e%2e%2f",
            &longest,
        ];
        for name in names {
            assert_eq!(MediaName::parse(name.to_owned()).unwrap().as_str(), name);
        }
    }

    #[test]
    fn no_name_leaves_the_folder() {
        let too_long = "x".repeat(256);
        let names = [
            "",
            ".",
            "..",
            "/",
            "a/b",
            "../a",
            "/etc/passwd",
            "a\\b",
            "..\\a",
            "a\0b",
            "a\nb",
            "\u{1b}[2J",
            "a\u{7f}",
            "u\u{308}.txt",
            "\u{212b}",
            &too_long,
        ];
        for name in names {
            assert!(MediaName::parse(name.to_owned()).is_err(), "{name:?}");
        }
    }
}
