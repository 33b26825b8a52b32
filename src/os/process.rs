//! Settings of this process: umask, stacks, allocator, limit on open files, random bytes.

#![allow(unsafe_code)]

use std::fs;
use std::io;

use super::allocator;

/// The version of ankipi.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What this program was built for: the target that cross/build.sh names, otherwise the processor.
pub const TARGET: &str = match option_env!("ANKIPI_TARGET") {
    Some(target) => target,
    None => std::env::consts::ARCH,
};

/// Fills the buffer with random bytes from the kernel. Waits for entropy where a board has just booted.
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: the pointer and the length describe the live, exclusively borrowed rest of the buffer.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(n) => filled += n,
            Err(_) => match io::Error::last_os_error() {
                err if err.kind() == io::ErrorKind::Interrupted => {}
                err => return Err(err),
            },
        }
    }
    Ok(())
}

/// Prepares the process before its first thread: new files readable by the owner only, small thread stacks, and an
/// allocator that returns freed memory to the system, but not all of it at each request.
pub fn prepare_process() {
    allocator::keep_size_classes();
    // SAFETY: umask only sets a number of the process.
    unsafe { libc::umask(0o077) };
    // tiny_http starts threads with std's default stack: 2 MiB each would be most of a router's address
    // space. SAFETY: called first thing in main, while there is one thread.
    unsafe { std::env::set_var("RUST_MIN_STACK", "131072") };
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets numbers of the allocator. With one arena and an early trim, the memory of a bulk
    // transfer is freed after it (measured in benches/README.md).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
    }
}

/// Gives this thread the lowest priority, so that it runs when no other thread needs the processor. Ignores errors:
/// then the thread runs with the usual priority.
pub fn lower_priority() {
    /// The lowest priority of Linux.
    const LOWEST_PRIORITY: libc::c_int = 19;
    // SAFETY: only sets a number of the calling thread, which 0 stands for on Linux.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST_PRIORITY) };
}

/// How many file descriptors this process may have open (the soft limit).
pub fn open_files_limit() -> io::Result<usize> {
    Ok(usize::try_from(open_files_rlimit()?.rlim_cur).unwrap_or(usize::MAX))
}

/// Whether this process may open so many more file descriptors below the limit `most`.
pub fn can_open_descriptors(count: usize, most: usize) -> bool {
    match fs::read_dir("/proc/self/fd") {
        // One of them is that of the folder.
        Ok(entries) => entries.count() + count <= most + 1,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            // No /proc. This takes them from other threads for a moment.
            let tried: io::Result<Vec<_>> = (0..count).map(|_| fs::File::open("/dev/null")).collect();
            tried.is_ok()
        }
        Err(_) => false,
    }
}

/// Raises the soft limit on file descriptors to `wanted`, or to the hard limit if that is lower.
pub fn raise_open_files_limit(wanted: u32) -> io::Result<()> {
    let mut limit = open_files_rlimit()?;
    let wanted = libc::rlim_t::from(wanted).min(limit.rlim_max);
    if wanted > limit.rlim_cur {
        limit.rlim_cur = wanted;
        // SAFETY: the pointer is to a live rlimit.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn open_files_rlimit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live rlimit that nobody else uses.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}
