//! How many messages were found or made settled in this run.
//!
//! Changed under the dispatch lock only, and read by producers without it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number, shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct SettledTotal(Arc<AtomicU64>);

impl SettledTotal {
    /// A reader may see an older number: it takes more messages for unsettled than there are.
    pub(crate) fn get(&self) -> u64 {
        // Relaxed: a number by itself.
        self.0.load(Ordering::Relaxed)
    }

    /// More messages are settled.
    #[inline]
    pub(crate) fn add(&self, messages: u64) {
        // Relaxed, here and below: see `get`; no other thread stores meanwhile.
        self.0.store(self.get() + messages, Ordering::Relaxed);
    }

    /// Some that were counted are not settled any more.
    pub(crate) fn take_back(&self, messages: u64) {
        self.0.store(self.get().saturating_sub(messages), Ordering::Relaxed);
    }
}
