//! The numbers that maps get, for all segments of a queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers the maps that were made for one queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct MapNumbers(Arc<AtomicU64>);

impl MapNumbers {
    /// The number of a new map.
    pub(super) fn next(&self) -> u64 {
        // Relaxed: the dispatch lock orders it.
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// How many maps were made.
    pub(crate) fn made(&self) -> u64 {
        // Relaxed: as in `next`.
        self.0.load(Ordering::Relaxed)
    }
}
