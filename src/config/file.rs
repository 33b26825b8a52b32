//! The config file: `KEY=VALUE` lines that systemd (EnvironmentFile), shells (OpenRC's conf.d) and ankipi read alike.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// One setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// The line number, from 1.
    pub number: usize,
    /// The name in front of the `=`.
    pub key: String,
    /// The value without quotes.
    pub value: String,
}

/// Reads all lines.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).map_err(Error::io("reading the settings in", path))?;
    parse(&text)
        .map_err(|(number, fault)| Error::Broken(format!("{} line {number}: {fault}", path.display())))
}

/// Warns if other users can read passwords in this file.
pub fn warning_if_others_can_read(path: &Path, holds_passwords: bool) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    (holds_passwords && mode & 0o004 != 0).then(|| {
        format!(
            "everyone on this machine can read the passwords in {0}: chmod o-r {0}, or use `ankipi user add`",
            path.display()
        )
    })
}

fn parse(text: &str) -> std::result::Result<Vec<Line>, (usize, String)> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let Some((key, value)) = line.split_once('=') else {
            return Err((number, format!("{line:?} is not KEY=VALUE")));
        };
        if !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err((number, format!("{key:?} is not a name; no blanks around the =")));
        }
        // OpenRC's own variables may be in the same file.
        if !key.bytes().any(|byte| byte.is_ascii_lowercase()) {
            let value = unquoted(value).map_err(|fault| (number, format!("{key}: {fault}")))?;
            lines.push(Line { number, key: key.to_owned(), value });
        }
    }
    Ok(lines)
}

/// Removes the quotes as systemd and shells do. An error if they would read the value differently.
fn unquoted(text: &str) -> std::result::Result<String, &'static str> {
    let mut value = String::new();
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, '\\') => match chars.next() {
                Some(escaped) => value.push(escaped),
                None => return Err("a value cannot go on in the next line"),
            },
            (Some('"'), '\\') => match chars.next_if(|c| "\"\\$`".contains(*c)) {
                Some(escaped) => value.push(escaped),
                None => value.push('\\'),
            },
            (None, ' ' | '\t') if chars.peek() == Some(&'#') => {
                return Err("put the comment on a line of its own, or the value in quotes");
            }
            _ => value.push(c),
        }
    }
    match quote {
        Some(_) => Err("a quote is open at the end of the line"),
        None => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_escapes_exports_and_comments_are_read_like_a_shell_does() {
        let cases = [
            ("A=1", "1"),
            ("  export A=1  ", "1"),
            ("A=", ""),
            ("A=a=b", "a=b"),
            ("A=with blanks in it", "with blanks in it"),
            ("A='single # $x \\ \"'", "single # $x \\ \""),
            ("A=\"double # \\\" \\\\ \\$x \\n\"", "double # \" \\ $x \\n"),
            ("A=me:'pass word'", "me:pass word"),
            ("A=a\\ b\\\\", "a b\\"),
            ("A=no#comment", "no#comment"),
            ("\u{feff}A=1\r\n", "1"),
        ];
        for (line, value) in cases {
            assert_eq!(parse(line).unwrap()[0].value, value, "{line}");
        }
        let lines = parse("# c\n\n; c\nA=1\ncommand_user=x\nB=2").unwrap();
        let lines: Vec<_> = lines.iter().map(|line| (line.number, line.key.as_str())).collect();
        assert_eq!(lines, [(4, "A"), (6, "B")]);
    }

    #[test]
    fn lines_that_others_would_read_differently_are_faults() {
        for line in ["A", "A =1", "A b=1", "A='x", "A=\"x", "A=x\\", "A=1 # c"] {
            assert_eq!(parse(&format!("\n{line}")).unwrap_err().0, 2, "{line}");
        }
    }
}
