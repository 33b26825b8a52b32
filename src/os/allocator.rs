//! The allocator of the program: that of the C library, which keeps some freed buffers for the next request.
//!
//! musl takes most buffers of more than half a KB from the kernel as pages of their own, and returns them when the buffer is
//! freed. A request needs about ten such buffers, one after the other: these were 12 `mmap`, 12 `munmap` and 30 page faults,
//! a fifth of the processor time of a sync of many rows (benches/README.md).

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;

/// Sizes of buffers that are kept. musl has smaller ones ready (`keep_size_classes`); larger ones are worth the system calls.
const KEPT_SIZES: std::ops::RangeInclusive<usize> = 512..=131_072;

/// How many freed buffers are kept at most.
const MAX_BUFFERS: usize = 24;

/// How many bytes of freed buffers are kept at most.
const MAX_BYTES: usize = 384 * 1024;

/// The alignment that the C library gives to every allocation.
const USUAL_ALIGN: usize = 8;

/// The allocator.
pub struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

static FREED: Mutex<Freed> = Mutex::new(Freed { buffers: [(0, 0); MAX_BUFFERS], count: 0, bytes: 0 });

/// Buffers that nobody uses.
struct Freed {
    /// Address and size of each, the oldest first.
    buffers: [(usize, usize); MAX_BUFFERS],
    count: usize,
    bytes: usize,
}

impl Freed {
    fn remove(&mut self, index: usize) -> (usize, usize) {
        let removed = self.buffers[index];
        self.buffers.copy_within(index + 1..self.count, index);
        self.count -= 1;
        self.bytes -= removed.1;
        removed
    }
}

/// Whether buffers of this layout are kept.
fn is_kept(layout: Layout) -> bool {
    KEPT_SIZES.contains(&layout.size()) && layout.align() <= USUAL_ALIGN
}

/// The layout of the buffer for an allocation of a kept size: up to an eighth larger, so that buffers of about one size can
/// replace each other.
fn rounded(layout: Layout) -> Layout {
    let step = 1 << ((layout.size() - 1).ilog2() - 3);
    // SAFETY: the alignment is a power of two, and the size is far from an overflow.
    unsafe { Layout::from_size_align_unchecked(layout.size().next_multiple_of(step), USUAL_ALIGN) }
}

/// A kept buffer of this size.
fn take(layout: Layout) -> Option<*mut u8> {
    // Without waiting: another thread uses the lock for some nanoseconds, and there is another way.
    let mut freed = FREED.try_lock().ok()?;
    let index = (0..freed.count).rev().find(|index| freed.buffers[*index].1 == layout.size())?;
    let (address, _) = freed.remove(index);
    Some(std::ptr::with_exposed_provenance_mut(address))
}

/// Keeps a buffer, and frees older ones if there are too many.
///
/// # Safety
///
/// The buffer was allocated by `ALLOCATOR` with this layout, whose size is kept, and is not used any more.
unsafe fn keep(buffer: *mut u8, layout: Layout) {
    let layout = rounded(layout);
    let Ok(mut freed) = FREED.try_lock() else {
        // SAFETY: see above.
        return unsafe { System.dealloc(buffer, layout) };
    };
    while freed.count == MAX_BUFFERS || freed.bytes + layout.size() > MAX_BYTES {
        let (address, size) = freed.remove(0);
        free(address, size);
    }
    let count = freed.count;
    freed.buffers[count] = (buffer.expose_provenance(), layout.size());
    freed.count += 1;
    freed.bytes += layout.size();
}

/// Frees a buffer that was kept.
fn free(address: usize, size: usize) {
    // SAFETY: `keep` got it with this size and this alignment, and it was removed from the list.
    unsafe {
        let layout = Layout::from_size_align_unchecked(size, USUAL_ALIGN);
        System.dealloc(std::ptr::with_exposed_provenance_mut(address), layout);
    }
}

/// Frees what is kept, and returns the free pages of glibc's heap to the system: 5.4 MB of four users' syncs were 2.8 then
/// (`tests/real/test_soak.py`). Call it when no more requests are expected.
pub fn release_freed_memory() {
    if let Ok(mut freed) = FREED.lock() {
        while freed.count > 0 {
            let (address, size) = freed.remove(0);
            free(address, size);
        }
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: it only touches what nobody uses.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Takes a buffer of most size classes of musl up to 2 KB, for ever. Without it musl returns the pages of a class to the kernel
/// whenever its last buffer is freed, and a sync needs a few of a class for a moment, again and again: see
/// benches/README.md. Call it once, at the start.
pub fn keep_size_classes() {
    /// In units of 16 bytes, of which 4 bytes are musl's. Not the classes whose buffers it puts into the next one while there
    /// are few.
    const CLASSES: [usize; 15] = [1, 2, 3, 4, 6, 7, 8, 10, 15, 20, 31, 42, 63, 84, 127];
    if cfg!(target_env = "musl") {
        for units in CLASSES {
            // SAFETY: it only takes memory.
            std::hint::black_box(unsafe { libc::malloc(16 * units - 4) });
        }
    }
}

// None of these is put where it is called: that is in thousands of places.
//
// SAFETY: a buffer of a kept size has the size that `rounded` computes from its layout, wherever it came from, and is in
// the list only while nobody uses it. All others are those of `System`.
unsafe impl GlobalAlloc for Allocator {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_kept(layout) {
            // SAFETY: the promises of the caller.
            return unsafe { System.alloc(layout) };
        }
        let kept = rounded(layout);
        // SAFETY: the size is at least 512.
        take(kept).unwrap_or_else(|| unsafe { System.alloc(kept) })
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_kept(layout) {
            // SAFETY: the promises of the caller.
            return unsafe { System.alloc_zeroed(layout) };
        }
        let kept = rounded(layout);
        match take(kept) {
            Some(buffer) => {
                // SAFETY: nobody else uses it, and it is as large.
                unsafe { buffer.write_bytes(0, kept.size()) };
                buffer
            }
            // SAFETY: the size is at least 512.
            None => unsafe { System.alloc_zeroed(kept) },
        }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, buffer: *mut u8, layout: Layout) {
        if is_kept(layout) {
            // SAFETY: the layout is that of its allocation.
            unsafe { keep(buffer, layout) }
        } else {
            // SAFETY: the promises of the caller.
            unsafe { System.dealloc(buffer, layout) }
        }
    }

    #[inline(never)]
    unsafe fn realloc(&self, buffer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size is not 0 and does not overflow.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (is_kept(layout), is_kept(new_layout)) {
            // SAFETY: the promises of the caller; both sizes are those of `System`.
            (false, false) => return unsafe { System.realloc(buffer, layout, new_size) },
            (true, true) if rounded(layout) == rounded(new_layout) => return buffer,
            _ => {}
        }
        // SAFETY: the promises of the caller. They are two buffers, and have so many bytes. The old one is not used any more.
        unsafe {
            let new_buffer = self.alloc(new_layout);
            if !new_buffer.is_null() {
                new_buffer.copy_from_nonoverlapping(buffer, layout.size().min(new_size));
                self.dealloc(buffer, layout);
            }
            new_buffer
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_of_about_one_size_replace_each_other() {
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        for (size, kept) in [(512, 512), (4097, 4608), (33_000, 36_864), (65_536, 65_536), (131_072, 131_072)]
        {
            assert!(is_kept(layout(size, 1)));
            assert_eq!(rounded(layout(size, 1)), layout(kept, USUAL_ALIGN), "{size}");
        }
        for (size, align) in [(511, 1), (131_073, 1), (8192, 64)] {
            assert!(!is_kept(layout(size, align)), "{size} {align}");
        }
    }

    /// Threads that free and take buffers of all sizes find in theirs what they wrote.
    #[test]
    fn no_buffer_is_used_twice() {
        let work = |seed: u64| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut buffers: Vec<Vec<u8>> = Vec::new();
            for _ in 0..200 {
                if buffers.len() > 6 {
                    let buffer = buffers.swap_remove(random.usize(..buffers.len()));
                    let first = buffer[0];
                    assert!(buffer.iter().all(|byte| *byte == first));
                }
                let size = random.usize(1..150_000);
                if random.bool() {
                    assert!(vec![0u8; size].iter().all(|byte| *byte == 0));
                    buffers.push(vec![random.u8(..); size]);
                } else if let Some(buffer) = buffers.last_mut() {
                    // Grown or shrunk in place, or moved.
                    let first = buffer[0];
                    buffer.resize(size, first);
                    buffer.shrink_to_fit();
                }
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|seed| drop(scope.spawn(move || work(seed)))));
        release_freed_memory();
    }
}
