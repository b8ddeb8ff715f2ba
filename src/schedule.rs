//! What must not be handed out before its time. Pure: no I/O, no locks, no clock.
//!
//! Promises: what is due comes out in the order of its times, and by Seq among equals. Memory is
//! bounded by what was put in: messages that were handed out before, not the backlog.

use crate::leases::Place;
use std::collections::BTreeMap;
use std::time::Instant;

/// Messages that wait for their time.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    by_time: BTreeMap<(Instant, u64), Place>,
}

impl Schedule {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.by_time.len()
    }

    /// Keeps `place` until `time`.
    pub(crate) fn put(&mut self, time: Instant, place: Place) {
        self.by_time.insert((time, place.seq), place);
    }

    /// When the next one is due.
    pub(crate) fn next_time(&self) -> Option<Instant> {
        self.by_time.first_key_value().map(|(&(time, _), _)| time)
    }

    /// Takes one that is due at `now`.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Place> {
        let entry = self.by_time.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(entry.remove())
    }

    /// Some with at most this Seq, due or not.
    pub(crate) fn up_to(&self, seq: u64, limit: usize) -> Vec<(Instant, Place)> {
        let all = self.by_time.iter().map(|(&(time, _), place)| (time, *place));
        all.filter(|(_, place)| place.seq <= seq).take(limit).collect()
    }

    /// Takes out what was put in for this time.
    pub(crate) fn remove(&mut self, time: Instant, seq: u64) {
        self.by_time.remove(&(time, seq));
    }

    /// Drops them all.
    pub(crate) fn clear(&mut self) {
        self.by_time.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn nothing_comes_before_its_time() {
        let place = |seq| Place { seq, ..Place::default() };
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut schedule = Schedule::default();
        schedule.put(start + second, place(3));
        schedule.put(start + 2 * second, place(1));
        schedule.put(start + second, place(2));
        assert_eq!((schedule.count(), schedule.next_time()), (3, Some(start + second)));
        assert_eq!(schedule.take_due(start), None);
        let mut due = |at| schedule.take_due(at).map(|place| place.seq);
        assert_eq!(
            [due(start + second), due(start + second), due(start + second)],
            [Some(2), Some(3), None]
        );
        assert!(schedule.up_to(0, 9).is_empty() && schedule.up_to(1, 0).is_empty());
        let found: Vec<_> =
            schedule.up_to(1, 9).iter().map(|(at, place)| (*at, place.seq)).collect();
        assert_eq!(found, [(start + 2 * second, 1)]);
        schedule.remove(start + 2 * second, 1);
        assert_eq!((schedule.count(), schedule.next_time()), (0, None));
    }
}
