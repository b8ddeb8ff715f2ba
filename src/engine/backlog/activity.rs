//! Which segments of a queue something was done to: those that are mapped, or were stored to.
//!
//! Promises: a segment is listed from when it is mapped or may be changed until it is said to be at
//! rest. So what is done with each new segment depends on how many are in use, not on how many
//! there are. Shared by the records of all segments, because a reader of one of them maps it.

use super::log_place::LogPlace;
use crate::format::bytes::to_u64;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The segments that are busy, and the numbers of the maps that were made for one queue.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    maps_made: AtomicU64,
    most_maps: u64,
    busy: Mutex<Vec<LogPlace>>,
}

impl Activity {
    /// `most_maps`: as many segments may be mapped at a time.
    pub(super) fn new(most_maps: usize) -> Self {
        let (maps_made, busy) = (AtomicU64::default(), Mutex::default());
        Self(Arc::new(Shared { maps_made, most_maps: to_u64(most_maps), busy }))
    }

    /// Whether as many maps were made since there were `made` as there may be at a time.
    #[inline]
    pub(crate) fn has_made_most(&self, made: u64) -> bool {
        self.maps_made() - made >= self.0.most_maps
    }

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
