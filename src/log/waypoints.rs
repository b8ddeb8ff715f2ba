//! Where some of the records of a segment are: one of a thousand.
//!
//! A record that was never handed out is found by going from record to record. With waypoints that
//! is a thousand steps at the most, not all that lies before it. They are noted as records are
//! placed, and by each walk over records of an earlier run; a damaged record is no waypoint.

use crate::format::address::Offset;
use parking_lot::Mutex;

/// The records between two waypoints.
const EVERY: u32 = 1024;

/// Offsets of records 0, 1024, 2048, ... as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Waypoints(Mutex<Vec<Offset>>);

impl Waypoints {
    /// Returns true if record `index` is a waypoint.
    #[inline]
    pub(crate) fn is_one(index: u32) -> bool {
        index.is_multiple_of(EVERY)
    }

    /// The first record from `index` on that is a waypoint.
    #[inline]
    pub(crate) fn next_after(index: u32) -> u32 {
        index.checked_next_multiple_of(EVERY).unwrap_or(u32::MAX)
    }

    /// Notes that waypoint `index` is at `offset`, if the waypoint before it is noted.
    pub(crate) fn note(&self, index: u32, offset: Offset) {
        let mut offsets = self.0.lock();
        if usize::try_from(index / EVERY).is_ok_and(|number| number == offsets.len()) {
            offsets.push(offset);
        }
    }

    /// The last known waypoint up to record `index`: its index and offset.
    pub(crate) fn before(&self, index: u32) -> Option<(u32, Offset)> {
        let offsets = self.0.lock();
        let last = u32::try_from(offsets.len().checked_sub(1)?).ok()?;
        let number = (index / EVERY).min(last);
        let offset = offsets.get(usize::try_from(number).ok()?)?;
        Some((number * EVERY, *offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_one_before_is_told() {
        let waypoints = Waypoints::default();
        assert_eq!(waypoints.before(5000), None);
        for (index, offset) in [(0, 4096), (2048, 9), (1024, 50_000), (1024, 9), (2048, 90_000)] {
            assert!(Waypoints::is_one(index) && !Waypoints::is_one(index + 1));
            waypoints.note(index, Offset(offset));
        }
        assert_eq!(waypoints.before(1023), Some((0, Offset(4096))));
        assert_eq!(waypoints.before(1024), Some((1024, Offset(50_000))));
        assert_eq!(waypoints.before(9000), Some((2048, Offset(90_000))));
    }
}
