//! Checks that Cargo.toml is true: the minimum Rust version, and where unsafe code is; and that no code needs 32-bit clocks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A version of the compiler.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap_or(0))
}

#[test]
fn no_package_needs_a_newer_compiler_than_we_say_and_one_needs_that() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages: BTreeMap<&str, (u32, u32)> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|package| Some((package["name"].as_str()?, version(package["rust_version"].as_str()?))))
        .collect();
    let ours = packages["ankipi"];
    let (newest, needed) =
        packages.iter().filter(|(name, _)| **name != "ankipi").max_by_key(|(_, needed)| **needed).unwrap();
    println!("of {} packages that say so {newest} needs the newest compiler, {needed:?}", packages.len());
    // Clippy's lint `incompatible_msrv` checks the same for our own code.
    assert_eq!(ours, *needed, "rust-version in Cargo.toml, and {newest}");
}

#[test]
fn unsafe_code_is_in_os_alone() {
    let mut files = Vec::new();
    gather(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path(), &mut files);
    assert!(files.len() > 50);
    // Cargo.toml denies unsafe code; a file would need this attribute to allow it.
    let allowing: Vec<_> =
        files.iter().filter(|path| fs::read_to_string(path).unwrap().contains("unsafe_code")).collect();
    let os = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/os");
    assert!(!allowing.is_empty() && allowing.iter().all(|path| path.starts_with(&os)), "{allowing:?}");
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\nunsafe_code = \"deny\""));
}

/// The clock of std ends in 2038 on 32-bit musl: `os::clock` has another one.
#[test]
fn no_code_but_tests_asks_std_for_the_time() {
    let mut files = Vec::new();
    gather(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path(), &mut files);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        assert!(
            code.lines().all(|line| line.trim_start().starts_with("//") || !line.contains("SystemTime::now")),
            "{}",
            path.display()
        );
    }
}

fn gather(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
