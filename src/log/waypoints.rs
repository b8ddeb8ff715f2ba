//! Where some of the records of a segment are: one of a thousand.
//!
//! A record that was never handed out is found by going from record to record. With waypoints that
//! is a thousand steps at the most, not all that lies before it. They are noted as records are
//! placed, and by each walk over records of an earlier run; a damaged record is no waypoint.

use crate::format::address::{Index, Offset};
use parking_lot::Mutex;

/// The records between two waypoints.
const EVERY: u32 = 1024;

/// Offsets of records 0, 1024, 2048, ... as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Waypoints(Mutex<Vec<Offset>>);

impl Waypoints {
    /// Returns true if record `index` is a waypoint.
    #[inline]
    pub(crate) fn is_one(index: Index) -> bool {
        index.0.is_multiple_of(EVERY)
    }

    /// The first record from `index` on that is a waypoint.
    #[inline]
    pub(crate) fn next_after(index: Index) -> Index {
        index.0.checked_next_multiple_of(EVERY).map_or(Index::MAX, Index)
    }

    /// Notes that waypoint `index` is at `offset`, if the waypoint before it is noted.
    pub(crate) fn note(&self, index: Index, offset: Offset) {
        let mut offsets = self.0.lock();
        if usize::try_from(index.0 / EVERY).is_ok_and(|number| number == offsets.len()) {
            offsets.push(offset);
        }
    }

    /// Record `index`, and those behind it, are taken back.
    pub(crate) fn forget_from(&self, index: Index) {
        let left = usize::try_from(index.0.div_ceil(EVERY)).unwrap_or(usize::MAX);
        self.0.lock().truncate(left);
    }

    /// The last known waypoint up to record `index`: its index and offset.
    pub(crate) fn before(&self, index: Index) -> Option<(Index, Offset)> {
        let offsets = self.0.lock();
        let last = u32::try_from(offsets.len().checked_sub(1)?).ok()?;
        let number = (index.0 / EVERY).min(last);
        let offset = offsets.get(usize::try_from(number).ok()?)?;
        Some((Index(number * EVERY), *offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_one_before_is_told() {
        let waypoints = Waypoints::default();
        let before = |waypoints: &Waypoints, index| {
            waypoints.before(Index(index)).map(|(Index(index), Offset(offset))| (index, offset))
        };
        assert_eq!(before(&waypoints, 5000), None);
        for (index, offset) in [(0, 4096), (2048, 9), (1024, 50_000), (1024, 9), (2048, 90_000)] {
            let index = Index(index);
            assert!(Waypoints::is_one(index) && !Waypoints::is_one(index.next()));
            waypoints.note(index, Offset(offset));
        }
        assert_eq!(before(&waypoints, 1023), Some((0, 4096)));
        assert_eq!(before(&waypoints, 1024), Some((1024, 50_000)));
        assert_eq!(before(&waypoints, 9000), Some((2048, 90_000)));
        waypoints.forget_from(Index(2049));
        assert_eq!(before(&waypoints, 9000), Some((2048, 90_000)));
        waypoints.forget_from(Index(2048));
        assert_eq!(before(&waypoints, 9000), Some((1024, 50_000)));
        waypoints.forget_from(Index(0));
        assert_eq!(before(&waypoints, 9000), None);
    }
}
