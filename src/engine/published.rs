//! How far messages are published, and how far consumers may see them.

use super::context::Padded;
use std::sync::atomic::{AtomicU64, Ordering};

/// The newest Seq that is placed, and the first that is kept from consumers.
#[derive(Debug)]
pub(crate) struct Published {
    newest: Padded<AtomicU64>,
    held_back: AtomicU64,
}

impl Published {
    pub(super) fn new(newest: u64) -> Self {
        let newest = Padded(AtomicU64::new(newest));
        Self { newest, held_back: AtomicU64::new(u64::MAX) }
    }

    /// All up to this message are placed.
    pub(super) fn publish(&self, last_seq: u64) {
        // Release: pairs with the load in `newest`.
        self.newest.store(last_seq, Ordering::Release);
    }

    /// The newest published message.
    #[inline]
    pub(crate) fn newest(&self) -> u64 {
        // Acquire: pairs with the store in `publish`.
        self.newest.load(Ordering::Acquire)
    }

    /// The newest message that consumers may see.
    #[inline]
    pub(crate) fn visible(&self) -> u64 {
        // Acquire: pairs with the store in `hold_back_from`.
        let held_back = self.held_back.load(Ordering::Acquire);
        self.newest().min(held_back - 1)
    }

    /// From this message on, which is at least 1, consumers see none; `u64::MAX`: they see all.
    pub(crate) fn hold_back_from(&self, seq: u64) {
        // Release: pairs with the load in `visible`.
        self.held_back.store(seq, Ordering::Release);
    }

    /// The first message that is held back; `u64::MAX` if none is.
    pub(crate) fn held_back(&self) -> u64 {
        self.held_back.load(Ordering::Acquire)
    }
}
