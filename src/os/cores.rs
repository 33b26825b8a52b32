//! On which cores of the processor a thread runs.
//!
//! A small request passes through three threads, one after the other. The kernel gives each of them an idle core, which it has
//! to wake: that takes longer than all that the threads do. On one core, the next thread begins when the one before it waits.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::mem;
use std::sync::OnceLock;

struct Cores {
    /// Those that this process may use.
    all: libc::cpu_set_t,
    /// One of them.
    shared: libc::cpu_set_t,
    /// All but that one.
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
            let _ = CORES.set(Cores { all, shared, others });
        }
    }
}

/// Whether this thread runs on these cores alone from now on.
fn keep_to(cores: &libc::cpu_set_t) -> bool {
    // SAFETY: the pointer is to a live set of this size; 0 is the calling thread.
    unsafe { libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), cores) == 0 }
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// On the shared core alone.
    Shared,
    /// On all others.
    Others,
    /// On any core, maybe on the shared one.
    Any,
}

thread_local! {
    static PLACE: Cell<Place> = const { Cell::new(Place::Shared) };
}

fn go(place: Place) {
    if PLACE.replace(place) != place
        && let Some(cores) = CORES.get()
    {
        keep_to(match place {
            Place::Shared => &cores.shared,
            Place::Others => &cores.others,
            Place::Any => &cores.all,
        });
    }
}

/// Keeps this thread on the shared core again.
pub fn return_to_shared_core() {
    go(Place::Shared);
}

/// Keeps this thread away from the shared core, so that those that may run only there do not wait for it.
pub fn leave_shared_core() {
    go(Place::Others);
}

/// Lets this thread run on any core.
pub fn use_any_core() {
    go(Place::Any);
}
