//! Which segments of a queue something was done to: those that are mapped, or were stored to.
//!
//! Promises: a segment is listed from when it is mapped or may be changed until it is said to be at
//! rest. So what is done with each new segment depends on how many are in use, not on how many
//! there are. Shared by the records of all segments, because a reader of one of them maps it.

use super::log_order::LogPlace;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The segments that are busy, and the numbers of the maps that were made for one queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Activity(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    maps_made: AtomicU64,
    busy: Mutex<Vec<LogPlace>>,
}

impl Activity {
    /// The number of a new map.
    pub(super) fn next_map(&self) -> u64 {
        // Relaxed: the dispatch lock orders it.
        self.0.maps_made.fetch_add(1, Ordering::Relaxed)
    }

    /// How many maps were made.
    #[inline]
    pub(crate) fn maps_made(&self) -> u64 {
        // Relaxed: as in `next_map`.
        self.0.maps_made.load(Ordering::Relaxed)
    }

    /// This segment is busy. To be called once, until it is at rest again.
    pub(super) fn note_busy(&self, place: LogPlace) {
        self.0.busy.lock().push(place);
    }

    /// The segments that are busy. Some of them may be gone.
    pub(super) fn busy(&self) -> Vec<LogPlace> {
        self.0.busy.lock().clone()
    }

    /// Leaves out those that are gone, or at rest.
    pub(super) fn retain(&self, is_busy: impl FnMut(&LogPlace) -> bool) {
        self.0.busy.lock().retain(is_busy);
    }
}
