//! What the kernel tells of a disk: free space, whether a folder is writable.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io::{self};
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

/// Whether the file system has no such operation, as network shares and FUSE say it in different ways.
pub fn is_unsupported(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::EINVAL | libc::ENOTSUP | libc::ENOSYS | libc::ENOTTY))
}

/// Whether locking failed because the file system has no locks, and not because somebody holds it.
pub fn has_no_locks(err: &io::Error) -> bool {
    is_unsupported(err) || err.raw_os_error() == Some(libc::ENOLCK)
}

/// Whether the first 4096 bytes of a file, which must exist, can be mapped into memory, shared and writable.
pub fn can_be_shared_memory(file: &File) -> bool {
    const BYTES: usize = 4096;
    // SAFETY: a new mapping at an address that the kernel chooses, of a file that is open.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    // SAFETY: this mapping was just made, and nothing refers to it.
    unsafe { libc::munmap(mapped, BYTES) };
    true
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
