//! The records of the active segment that no sync has covered.

use crate::format::address::Offset;
use crate::io::Region;
use std::sync::Arc;

/// What is evicted begins and ends at a multiple of this.
const UNIT: u64 = 64 << 10;

/// Some of a segment as memory, to which nobody stores any more.
#[derive(Debug)]
pub(crate) struct UnsyncedPart {
    region: Arc<dyn Region>,
    start: u64,
    end: u64,
}

impl UnsyncedPart {
    /// From `start` up to this tail, where the next one starts.
    pub(super) fn between(start: &mut u64, tail: Offset, region: &Arc<dyn Region>) -> Option<Self> {
        let end = tail.0 / UNIT * UNIT;
        let start = std::mem::replace(start, end);
        (end > start).then(|| Self { region: Arc::clone(region), start, end })
    }

    pub(crate) fn evict(&self) {
        self.region.evict(self.start, self.end - self.start);
    }
}
