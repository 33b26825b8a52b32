//! The output and the exit codes of the commands.

use std::fs;

use crate::harness::{ankipi, done, said};

#[test]
fn every_command_has_a_help_that_fits_on_80_columns() {
    let dir = tempfile::tempdir().unwrap();
    let overview = done(dir.path(), &["--help"], "");
    let table = overview.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<_> = table.lines().map(|line| line[2..24].trim()).collect();
    assert!(names.contains(&"user add") && names.contains(&"check"), "{names:?}");
    for name in names {
        let words: Vec<_> = name.split(' ').collect();
        let text = done(dir.path(), &[&words[..], &["--help"]].concat(), "");
        assert!(text.starts_with(&format!("ankipi {name} - ")), "{text}");
        assert_eq!(text, done(dir.path(), &[&["help"], &words[..]].concat(), ""));
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "help made files");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 9] = [
        (&["usr", "add"], "`ankipi --help`"),
        (&["user", "ad", "anna"], "did you mean `ankipi user add`?"),
        (&["chekc"], "did you mean `ankipi check`?"),
        (&["check", "--depe"], "--depe is not an option"),
        (&["user", "add"], "Usage: ankipi user add NAME"),
        (&["user", "add", "anna", "secret"], "list of processes"),
        (&["user", "add", "anna", "--password", "secret"], "list of processes"),
        (&["hash-password", "secret"], "list of processes"),
        (&["hash-password", "--rounds", "1000"], "at least 100000"),
    ];
    for (args, expected) in cases {
        let output = ankipi(dir.path(), &[], args, "secret");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(said(&output).contains(expected), "{args:?}: {}", said(&output));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_done_ends_with_1_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str, &str); 7] = [
        (&["user", "add", "../up"], "x", "folder's name"),
        (&["user", "add", "users"], "x", "reserved"),
        (&["user", "add", " anna"], "x", "blanks around a name"),
        (&["user", "add", "anna"], "\n", "the password is empty"),
        (&["user", "passwd", "anna"], "x", "no account \"anna\""),
        (&["user", "remove", "anna"], "", "no account \"anna\""),
        (&["device", "list", "anna"], "", "nothing of a user"),
    ];
    for (args, input, expected) in cases {
        let output = ankipi(dir.path(), &[], args, input);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(said(&output).contains(expected), "{args:?}: {}", said(&output));
    }
    assert!(!dir.path().join("users").exists());
}

#[test]
fn passwords_come_from_standard_input_files_and_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    fs::write(&file, "pass word\r\n").unwrap();
    let credentials = [("CREDENTIALS_DIRECTORY", dir.path().to_str().unwrap())];
    let rounds = ["--rounds", "100000"];
    let hash = |args: &[&str], vars: &[(&str, &str)], input: &str| {
        let output = ankipi(dir.path(), vars, &[&["hash-password"], &rounds[..], args].concat(), input);
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    };
    let hashes = [
        hash(&[], &[], "pass word\n"),
        hash(&["--password-file", "-"], &[], "pass word"),
        hash(&["--password-file", file.to_str().unwrap()], &[], "other"),
        hash(&["--password-file", "secret"], &credentials, ""),
    ];
    for hash in hashes {
        let hash = ankipi::accounts::password::Hash::parse(&hash).unwrap();
        assert!(hash.as_str().contains("$i=100000,"));
        assert!(hash.fits("pass word"));
    }
}

#[test]
fn calibration_never_goes_below_what_is_safe() {
    let dir = tempfile::tempdir().unwrap();
    let hash = done(dir.path(), &["hash-password", "--calibrate"], "x");
    let rounds = hash.split("i=").nth(1).unwrap().split(',').next().unwrap();
    assert!(rounds.parse::<u32>().unwrap() >= 100_000, "{hash}");
}

#[test]
fn config_tells_each_setting_and_its_origin_and_no_password() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ankipi.conf");
    let text = "# ours\nexport SYNC_PORT='1234'\nSYNC_BACKUPS=5\nSYNC_USER1=\"anna:s e c\"\nSYNC_BAKUPS=7\n";
    fs::write(&path, text).unwrap();
    let args = ["config", "--config", path.to_str().unwrap()];
    let output = ankipi(dir.path(), &[("SYNC_BACKUPS", "9")], &args, "");
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = [
        format!("# {} line 2\nSYNC_PORT=1234\n", path.display()),
        "# environment\nSYNC_BACKUPS=9\n".to_owned(),
        "\n#MAX_SYNC_PAYLOAD_MEGS=100\n".to_owned(),
        format!("# {} line 4\nSYNC_USER1=anna:***\n", path.display()),
    ];
    for lines in expected {
        assert!(listing.contains(&lines), "{listing}");
    }
    let warnings = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        warnings.contains("SYNC_BAKUPS") && warnings.contains("did you mean SYNC_BACKUPS?"),
        "{warnings}"
    );
    assert!(warnings.contains("chmod o-r"), "{warnings}");
    assert!(output.status.success() && !said(&output).contains("s e c"));

    let output = ankipi(dir.path(), &[("SYNC_PORT", "x"), ("SYNC_LOG", "loud")], &["config"], "");
    assert_eq!(output.status.code(), Some(1));
    for fault in ["SYNC_PORT=x (environment)", "SYNC_LOG=loud (environment)"] {
        assert!(said(&output).contains(fault), "{}", said(&output));
    }
}

#[test]
fn a_config_file_that_is_wrong_or_missing_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ankipi.conf");
    fs::write(&path, "SYNC_PORT=1\nSYNC_BASE = /x\n").unwrap();
    for (path, expected) in
        [(path.to_str().unwrap(), "ankipi.conf line 2"), ("/nonexistent/x", "/nonexistent/x")]
    {
        let output = ankipi(dir.path(), &[], &["--config", path], "");
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(expected), "{}", said(&output));
    }
}
