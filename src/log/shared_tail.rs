//! Where the records of the segment that is pushed to end, for those who read it meanwhile.
//!
//! Promises: whoever gets a tail reads bytes before it that no push stores to any more. So no read
//! of a record, and no search for one, races with a store.

use crate::format::address::Offset;
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

    pub(crate) fn get(&self) -> Offset {
        // Acquire: pairs with the store in `set`.
        Offset(self.0.load(Ordering::Acquire))
    }
}
