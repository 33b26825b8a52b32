//! On which cores of the processor a thread runs.
//!
//! A small request passes through three threads, one after the other. The kernel gives each of them an idle core, which it has
//! to wake: that takes longer than all that the threads do. On one core, the next thread begins when the one before it waits.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::mem;
use std::sync::OnceLock;

struct Cores {
    /// The one of the short steps.
    shared: libc::cpu_set_t,
    /// All others that this process may use.
    others: libc::cpu_set_t,
}

static CORES: OnceLock<Cores> = OnceLock::new();

/// Keeps this thread, and those that it will start, on one core. Does nothing if there is only one, or if the kernel refuses.
pub fn share_one_core() {
    // SAFETY: a set of cores is an array of bits. The pointer is to one of this size. The first call only writes it, the
    // second gets a number that the kernel gave.
    unsafe {
        let (mut all, mut shared): (libc::cpu_set_t, libc::cpu_set_t) = (mem::zeroed(), mem::zeroed());
        let bytes = mem::size_of::<libc::cpu_set_t>();
        let is_known = libc::sched_getaffinity(0, bytes, &raw mut all) == 0 && libc::CPU_COUNT(&all) > 1;
        let Some(core) = usize::try_from(libc::sched_getcpu()).ok().filter(|_| is_known) else { return };
        libc::CPU_SET(core, &mut shared);
        let mut others = all;
        libc::CPU_CLR(core, &mut others);
        if keep_to(&shared) {
            let _ = CORES.set(Cores { shared, others });
        }
    }
}

/// Whether this thread runs on these cores alone from now on.
fn keep_to(cores: &libc::cpu_set_t) -> bool {
    // SAFETY: the pointer is to a live set of this size; 0 is the calling thread.
    unsafe { libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), cores) == 0 }
}

thread_local! {
    static IS_ELSEWHERE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps this thread on the shared core again.
pub fn return_to_shared_core() {
    if IS_ELSEWHERE.replace(false) {
        CORES.get().map(|cores| keep_to(&cores.shared));
    }
}

/// Keeps this thread on the other cores, so that those that may run only on the shared one do not wait for it.
pub fn leave_shared_core() {
    if !IS_ELSEWHERE.replace(true) {
        CORES.get().map(|cores| keep_to(&cores.others));
    }
}
