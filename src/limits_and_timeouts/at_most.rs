//! Permits for what only so many threads may do or hold at once.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// So many permits.
pub struct AtMost {
    free: Mutex<usize>,
    freed: Condvar,
}

/// A permit; given back when it is dropped.
pub struct Permit(&'static AtMost);

impl AtMost {
    /// With `count` permits.
    pub const fn new(count: usize) -> AtMost {
        AtMost { free: Mutex::new(count), freed: Condvar::new() }
    }

    fn free(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit, if one is free.
    pub fn try_take(&'static self) -> Option<Permit> {
        let mut free = self.free();
        *free = free.checked_sub(1)?;
        Some(Permit(self))
    }

    /// A permit, once one is free.
    pub fn take(&'static self) -> Permit {
        let free = self.free();
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Permit(self)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free() += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn no_more_than_so_many_are_held_and_who_waits_gets_the_next() {
        static TWO: AtMost = AtMost::new(2);
        let (one, two) = (TWO.take(), TWO.try_take().unwrap());
        assert!(TWO.try_take().is_none());
        let (tell, told) = mpsc::channel();
        let waiting = thread::spawn(move || {
            let third = TWO.take();
            tell.send(()).unwrap();
            drop(third);
        });
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "a third was given");
        drop(one);
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        waiting.join().unwrap();
        drop(two);
        assert!(TWO.try_take().is_some());
    }
}
