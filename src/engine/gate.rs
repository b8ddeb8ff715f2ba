//! The gate in front of the dispatch lock, closed while a thread has that for a step of long work,
//! from the second step on.
//!
//! Promises: a thread that finds the lock taken, and the gate closed, waits at the gate, and
//! sleeps. In front of the lock itself it would yield its core some times before it sleeps: to a
//! thread that spins, each time for a whole slice of the scheduler.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// The gate of a lock.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Held while it is closed.
    closed: Mutex<()>,
    is_closed: AtomicBool,
    /// How many threads wait, here or for the lock.
    waiting: AtomicUsize,
}

/// A gate while it is closed.
#[derive(Debug)]
pub(super) struct ClosedGate<'a> {
    gate: &'a Gate,
    _closed: MutexGuard<'a, ()>,
}

impl Gate {
    /// Closes it; waits while another thread has it closed.
    pub(super) fn close(&self) -> ClosedGate<'_> {
        let closed = match self.closed.try_lock() {
            Ok(closed) => closed,
            Err(TryLockError::Poisoned(closed)) => closed.into_inner(),
            Err(TryLockError::WouldBlock) => self.counted(|| self.pass()),
        };
        self.is_closed.store(true, Ordering::Relaxed);
        ClosedGate { gate: self, _closed: closed }
    }

    fn pass(&self) -> MutexGuard<'_, ()> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, and is seen to: the mutex is not fair, so that a thread that has the gate closed
    /// again and again has to leave others the time to close it.
    fn counted<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waited = wait();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        waited
    }

    /// Waits until it is open, and then for the lock.
    #[cold]
    pub(super) fn wait<T>(&self, lock: impl FnOnce() -> T) -> T {
        self.counted(|| {
            // Relaxed: who misses that it was just closed waits for the lock alone.
            if self.is_closed.load(Ordering::Relaxed) {
                drop(self.pass());
            }
            lock()
        })
    }

    /// Whether a thread waits.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

impl Drop for ClosedGate<'_> {
    fn drop(&mut self) {
        self.gate.is_closed.store(false, Ordering::Relaxed);
    }
}
