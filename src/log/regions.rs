//! Who has a file as memory.

use crate::io::Region;
use parking_lot::Mutex;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};

/// The regions of a file that anybody has.
#[derive(Debug, Default)]
pub(super) struct Regions(Mutex<Vec<Weak<dyn Region>>>);

impl Regions {
    pub(super) fn note(&self, region: &Arc<dyn Region>) {
        let (mut regions, new) = (self.0.lock(), Arc::downgrade(region));
        regions.retain(|other| other.strong_count() > 0 && !other.ptr_eq(&new));
        regions.push(new);
    }

    /// Whether anybody has one. If not, what they loaded was loaded before this returns.
    pub(super) fn is_any_left(&self) -> bool {
        let is_any_left = self.0.lock().iter().any(|region| region.strong_count() > 0);
        // Acquire: pairs with the release by which an `Arc` is dropped; counts are relaxed loads.
        fence(Ordering::Acquire);
        is_any_left
    }
}
