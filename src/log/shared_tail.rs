//! Where the records of the segment that is pushed to end, for those who read it meanwhile.
//!
//! Promises: whoever is told of a tail reads bytes before it that no push stores to any more. So no
//! read of a record, and no search for one, races with a store.

use crate::format::address::Offset;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// On cache lines of its own: each push stores to it, and who reads near it is not slowed down.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct SharedTail(AtomicU64);

impl SharedTail {
    pub(super) fn new(tail: Offset) -> Self {
        Self(AtomicU64::new(tail.0))
    }

    /// All records before this offset are placed, and stay as they are.
    #[inline]
    pub(super) fn set(&self, tail: Offset) {
        // Release: pairs with the load in `get`.
        self.0.store(tail.0, Ordering::Release);
    }

    fn get(&self) -> Offset {
        // Acquire: pairs with the store in `set`.
        Offset(self.0.load(Ordering::Acquire))
    }
}

/// The same, for one who reads again and again: the line of whoever pushes is fetched only where
/// what was seen of it does not do.
#[derive(Debug)]
pub(super) struct SeenTail {
    tail: Arc<SharedTail>,
    seen: AtomicU64,
}

impl SeenTail {
    pub(super) fn of(tail: Arc<SharedTail>) -> Self {
        Self { tail, seen: AtomicU64::new(0) }
    }

    /// Whether all records that begin before this offset are placed.
    #[inline]
    pub(super) fn is_behind(&self, offset: Offset) -> bool {
        // Acquire: pairs with the store in `look`, by another thread.
        offset.0 <= self.seen.load(Ordering::Acquire) || offset <= self.look()
    }

    /// Where they end by now.
    pub(super) fn look(&self) -> Offset {
        let tail = self.tail.get();
        // Release: pairs with the load in `is_behind`.
        self.seen.store(tail.0, Ordering::Release);
        tail
    }
}
