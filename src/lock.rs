//! Locks that a panic doesn't spoil: what they guard is whole between any two steps.
//!
//! They are the standard library's, under which a thread that finds one taken sleeps until it is free. parking_lot's give the
//! processor away first, and the thread's turn with it: from four callers on two cores, one call in a hundred took
//! milliseconds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{self, PoisonError};
use std::time::Instant;

pub use std::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

/// A [`std::sync::Mutex`] that goes on after a thread has panicked while it held it.
#[derive(Debug, Default)]
pub struct Mutex<T>(sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A mutex around `value`, which no thread holds.
    pub const fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    /// Waits until no other thread holds it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` while another thread holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(sync::TryLockError::WouldBlock) => None,
        }
    }
}

/// A [`std::sync::RwLock`] that goes on after a thread has panicked while it held it.
#[derive(Debug, Default)]
pub struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    /// A lock around `value`, which no thread holds.
    pub const fn new(value: T) -> Self {
        Self(sync::RwLock::new(value))
    }

    /// Waits until no other thread changes the value.
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no other thread reads or changes the value.
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`std::sync::Condvar`] without poison. Notifying costs no system call while no thread waits: there are several a call
/// of osqueryd's.
#[derive(Debug, Default)]
pub struct Condvar {
    bell: sync::Condvar,
    /// Threads that wait. Changed under the lock that they wait with, which orders it with what they wait for.
    waiting: AtomicUsize,
}

impl Condvar {
    /// A condition that no thread waits for.
    pub const fn new() -> Self {
        Self { bell: sync::Condvar::new(), waiting: AtomicUsize::new(0) }
    }

    /// Wakes one thread that waits.
    pub fn notify_one(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.bell.notify_one();
        }
    }

    /// Wakes all threads that wait.
    pub fn notify_all(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.bell.notify_all();
        }
    }

    /// Gives the lock away until notified or until `until`, whichever comes first; now and then earlier.
    pub fn wait<'m, T>(&self, guard: MutexGuard<'m, T>, until: Option<Instant>) -> MutexGuard<'m, T> {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let guard = match left {
            None => self.bell.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Some(left) => self.bell.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0,
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        guard
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_panic_spoils_nothing() {
        let mutex = Mutex::new(1);
        let panics = || {
            let _guard = mutex.lock();
            panic!("on purpose");
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!(*mutex.lock(), 1);
        let held = mutex.try_lock();
        assert_eq!(held.as_deref(), Some(&1));
        assert!(mutex.try_lock().is_none());
    }

    #[test]
    fn a_thread_that_waits_is_woken_and_one_that_comes_later_sees_why() {
        let (is_so, bell) = (Mutex::new(false), Condvar::new());
        let wait = || {
            let mut guard = is_so.lock();
            while !*guard {
                guard = bell.wait(guard, None);
            }
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|_| drop(scope.spawn(wait)));
            *is_so.lock() = true;
            bell.notify_all();
        });
        wait();
        assert_eq!(bell.waiting.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let (mutex, bell) = (Mutex::new(()), Condvar::new());
        let deadline = Instant::now() + Duration::from_millis(20);
        let mut guard = mutex.lock();
        while Instant::now() < deadline {
            guard = bell.wait(guard, Some(deadline));
        }
        drop(guard);
        assert_eq!(bell.waiting.load(Ordering::SeqCst), 0);
    }
}
