//! Makes SQLite leave out one fsync that has no effect: that of the header of a new WAL.
//!
//! Before the first frames of a WAL, SQLite writes and syncs its header. That is needed where the file holds frames of
//! an earlier WAL, which must become invalid. In a file that was just made there are none, and the sync of the commit, or of
//! the whole file system, which comes next, covers the header as well. So the first sync after a while waits for two fsyncs (the WAL, and the
//! folder in which it is new) in place of three.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int};
use std::sync::OnceLock;

use rusqlite::ffi;

/// The length of a WAL in which nothing but its header is.
const WAL_HEADER_BYTES: i64 = 32;

/// SQLite's own file functions, and ours, in which one function differs.
struct DiskMethods {
    vfs: *mut ffi::sqlite3_vfs,
    /// The functions of an open file: SQLite's, and ours.
    methods: OnceLock<(&'static ffi::sqlite3_io_methods, ffi::sqlite3_io_methods)>,
}

// SAFETY: the pointer is to SQLite's static structure, which is only read; `methods` is numbers and functions.
unsafe impl Send for DiskMethods {}
// SAFETY: as above.
unsafe impl Sync for DiskMethods {}

static DISK_METHODS: OnceLock<DiskMethods> = OnceLock::new();

/// Leaves out this fsync for all databases that are opened from now on. Call before the first one is opened.
pub fn skip_sync_of_new_wal_header() {
    // SAFETY: a null name asks for the default; SQLite answers with a structure that lives as long as the process.
    let vfs = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
    if vfs.is_null() || DISK_METHODS.set(DiskMethods { vfs, methods: OnceLock::new() }).is_err() {
        return;
    }
    // SAFETY: the pointer is not null, and what it points to is plain data.
    let mut ours = unsafe { std::ptr::read(vfs) };
    ours.zName = c"ankipi".as_ptr();
    ours.pNext = std::ptr::null_mut();
    ours.xOpen = Some(open);
    // SAFETY: the structure is never freed, as SQLite demands, and is complete: all else is that of the original.
    unsafe { ffi::sqlite3_vfs_register(Box::leak(Box::new(ours)), 1) };
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let Some(disk) = DISK_METHODS.get() else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: the original gets its own structure and what SQLite hands to us.
    let Some(original) = (unsafe { (*disk.vfs).xOpen }) else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: as above.
    let result = unsafe { original(disk.vfs, name, file, flags, out_flags) };
    if result != ffi::SQLITE_OK || flags & ffi::SQLITE_OPEN_WAL == 0 {
        return result;
    }
    // SAFETY: an open file has its functions, in a structure that lives as long as the process.
    let Some(made) = (unsafe { (*file).pMethods.as_ref() }) else { return result };
    let (known, ours) = disk.methods.get_or_init(|| {
        // SAFETY: a structure of numbers and functions, read as it is.
        let mut ours = unsafe { std::ptr::read(made) };
        ours.xSync = Some(sync);
        (made, ours)
    });
    // A file system for which SQLite has other functions is left alone.
    if std::ptr::eq(*known, made) {
        // SAFETY: the file is ours until this returns; `ours` lives in a static.
        unsafe { (*file).pMethods = ours };
    }
    result
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let Some((made, _)) = DISK_METHODS.get().and_then(|disk| disk.methods.get()) else {
        return ffi::SQLITE_IOERR_FSYNC;
    };
    let mut bytes = i64::MAX;
    if let Some(size) = made.xFileSize {
        // SAFETY: the file is open, as SQLite calls this for it, and the pointer is to a live number.
        let asked = unsafe { size(file, &mut bytes) };
        if asked == ffi::SQLITE_OK && bytes <= WAL_HEADER_BYTES {
            return ffi::SQLITE_OK;
        }
    }
    match made.xSync {
        // SAFETY: the function that SQLite made for this file, with what SQLite hands to us.
        Some(sync) => unsafe { sync(file, flags) },
        None => ffi::SQLITE_IOERR_FSYNC,
    }
}
