//! What the kernel tells of a disk: free space, whether a folder is writable.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Flag for opening files: fail if the path is a symbolic link.
pub const NO_FOLLOW: i32 = libc::O_NOFOLLOW;

/// Errors if this process may not create files in the folder, or the file system is read-only.
pub fn check_writable(dir: &Path) -> io::Result<()> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: the path is a live, NUL-terminated string.
    match unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Free bytes on the file system of a folder, for this process (without what is reserved for root).
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let path = CString::new(dir.as_os_str().as_bytes())?;
    // SAFETY: statvfs is a struct of numbers, for which zeroes are valid.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a live, NUL-terminated string, and the pointer is to a live statvfs.
    match unsafe { libc::statvfs(path.as_ptr(), &mut stat) } {
        // Their types differ from system to system.
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        0 => Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether changes to a file's pages in memory reach other processes, which is what a WAL needs. Some file systems
/// (mergerfs without a cache, jffs2, 9p, sshfs) have no such memory. The file must be open for writing and have a byte.
pub fn maps_files(file: &File) -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of a live descriptor, of which nothing is read or written.
    let page =
        unsafe { libc::mmap(std::ptr::null_mut(), 1, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if page == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: the mapping that was just made, which nothing refers to.
    unsafe { libc::munmap(page, 1) };
    true
}
