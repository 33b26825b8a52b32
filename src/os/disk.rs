//! What the kernel knows of a disk: free space, permissions, reflinks, shared memory, flushing a whole file system.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Flag for opening files: fail if the path is a symbolic link.
pub const NO_FOLLOW: i32 = libc::O_NOFOLLOW;

/// Makes `to`, an empty file, share the blocks of `from` (a reflink), as btrfs and XFS can: no data are copied.
/// An error where the file system cannot, or the files are on different ones.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: both descriptors are open, and the call takes no pointer.
    match unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Errors if this process may not create files in the folder, or the file system is read-only.
pub fn check_writable(dir: &Path) -> io::Result<()> {
    check(dir, libc::W_OK | libc::X_OK)
}

/// Errors if this process may not read the file or folder, or write to it (`write`), or use what is in it (`enter`).
pub fn check_access(path: &Path, write: bool, enter: bool) -> io::Result<()> {
    let write = if write { libc::W_OK } else { 0 };
    let enter = if enter { libc::X_OK } else { 0 };
    check(path, libc::R_OK | write | enter)
}

fn check(path: &Path, access: libc::c_int) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a live, NUL-terminated string.
    match unsafe { libc::access(path.as_ptr(), access) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the file system has no such operation. Network shares and FUSE report that with different error codes.
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

/// A file system that makes all its files durable with one flush, and reports if one of them could not be written.
pub struct WholeFileSystem {
    folder: File,
    has_journal: bool,
}

impl WholeFileSystem {
    /// The file system of a folder. None if it, or the kernel, is not known to do both. Open it before the files are
    /// written: earlier errors are not reported.
    pub fn of(dir: &Path) -> Option<WholeFileSystem> {
        /// ext2 to ext4, which share a number.
        const EXT: u64 = 0xef53;
        /// These, XFS, btrfs and F2FS. Others (FAT, FUSE, overlays) may leave something in a cache.
        const KNOWN: [u64; 4] = [EXT, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
        let folder = File::open(dir).ok().filter(|_| tells_of_write_errors())?;
        // SAFETY: statfs is a struct of numbers, for which zeroes are valid.
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, and the pointer is to a live statfs.
        let told = unsafe { libc::fstatfs(folder.as_raw_fd(), &mut stat) } == 0;
        // Their types differ from system to system.
        #[allow(clippy::unnecessary_cast)]
        let kind = stat.f_type as u64 & 0xffff_ffff;
        let has_journal = kind != EXT || has_journal(&folder);
        (told && KNOWN.contains(&kind)).then_some(WholeFileSystem { folder, has_journal })
    }

    /// Whether it has a journal. Without one, a flush writes each of its own blocks that changed to its place.
    pub fn has_journal(&self) -> bool {
        self.has_journal
    }

    /// Makes everything durable that was written to the file system.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open.
        match unsafe { libc::syncfs(self.folder.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Whether the ext file system of a folder has a journal. ext2 has none, nor has ext4 that was made without one to spare a card.
/// False also where the kernel does not tell.
fn has_journal(folder: &File) -> bool {
    let journal_task = || {
        let device = folder.metadata().ok()?.dev();
        let block = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
        let disk = fs::read_link(block).ok()?;
        fs::read_to_string(Path::new("/sys/fs/ext4").join(disk.file_name()?).join("journal_task")).ok()
    };
    // The thread of the journal, or `<none>`.
    journal_task().is_some_and(|task| task.trim().parse::<u32>().is_ok())
}

/// Whether syncfs(2) reports files that could not be written: since Linux 5.8.
fn tells_of_write_errors() -> bool {
    // SAFETY: utsname is a struct of characters, for which zeroes are valid.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live utsname.
    if unsafe { libc::uname(&mut name) } != 0 {
        return false;
    }
    // SAFETY: the kernel ends the text with a zero.
    let release = unsafe { CStr::from_ptr(name.release.as_ptr()) }.to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (5, 8)
}
