//! What the kernel says of a running server.

use std::fs;

/// A figure of the process in KiB, such as VmHWM. Under an emulator it would be that of the emulator, so this panics there.
pub fn memory_kib(pid: u32, figure: &str) -> u64 {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    assert!(!program.to_string_lossy().contains("qemu"), "add this test to `measuring` of cross/check.sh");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

/// How many bytes the process has written so far, to files and sockets.
pub fn bytes_written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
}
