//! Messages that must not be handed out before their times. Pure: no I/O, no locks, no clock.
//!
//! Promises: messages come out in the order of their times, and those with one time in the order of
//! their Seqs. Keeps two numbers for each message, about 30 bytes with the tree that they are in.

use std::collections::BTreeSet;
use std::ops::Bound;

/// Messages that wait for their time, and those whose time has come.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// Time and Seq.
    entries: BTreeSet<(u64, u64)>,
    /// The first of them, kept here because it is needed so often.
    first: Option<(u64, u64)>,
    /// `due` counts the entries up to this time.
    counted_until: u64,
    due: usize,
}

impl Schedule {
    /// How many messages have a time that had not come when [`Schedule::advance`] was last called.
    fn delayed(&self) -> usize {
        self.entries.len() - self.due
    }

    /// How many messages have a time that has not come at `now`.
    pub(crate) fn delayed_at(&self, now: u64) -> usize {
        if now <= self.counted_until {
            return self.delayed();
        }
        self.delayed() - self.due_between(self.counted_until, now)
    }

    fn due_between(&self, before: u64, now: u64) -> usize {
        self.entries.range((before + 1, 0)..=(now, u64::MAX)).count()
    }

    /// Keeps a message until `time`. To put it in again for the same time changes nothing.
    pub(crate) fn put(&mut self, time: u64, seq: u64) {
        if self.entries.insert((time, seq)) && time <= self.counted_until {
            self.due += 1;
        }
        self.first = Some(self.first.map_or((time, seq), |first| first.min((time, seq))));
    }

    /// Notes that the time is `now`; it never goes back. Returns how many messages became due.
    pub(crate) fn advance(&mut self, now: u64) -> usize {
        if now <= self.counted_until {
            return 0;
        }
        let more = self.due_between(self.counted_until, now);
        self.due += more;
        self.counted_until = now;
        more
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The time of the first message that was not due when [`Schedule::advance`] was last called.
    #[inline]
    pub(crate) fn first_undue(&self) -> Option<u64> {
        if self.due == 0 {
            return self.first_time();
        }
        let undue = (self.counted_until + 1, 0)..;
        self.entries.range(undue).next().map(|(time, _)| *time)
    }

    /// The time of the first message, which may be past.
    pub(crate) fn first_time(&self) -> Option<u64> {
        self.first.map(|(time, _)| time)
    }

    /// The first one, due or not: its time and Seq.
    pub(crate) fn first(&self) -> Option<(u64, u64)> {
        self.first
    }

    /// The first one that is due: its time and Seq.
    pub(crate) fn first_due(&self) -> Option<(u64, u64)> {
        self.first.filter(|_| self.due > 0)
    }

    /// The first one behind this entry that is due: its time and Seq.
    pub(crate) fn next_due(&self, after: (u64, u64)) -> Option<(u64, u64)> {
        let behind = (Bound::Excluded(after), Bound::Included((self.counted_until, u64::MAX)));
        if after >= (self.counted_until, u64::MAX) {
            return None;
        }
        self.entries.range(behind).next().copied()
    }

    /// Takes out a message whose time is not known: looks at all of them.
    pub(crate) fn remove_seq(&mut self, seq: u64) -> bool {
        let found = self.entries.iter().copied().find(|entry| entry.1 == seq);
        found.is_some_and(|(time, seq)| self.remove(time, seq))
    }

    pub(crate) fn contains(&self, time: u64, seq: u64) -> bool {
        self.entries.contains(&(time, seq))
    }

    /// Takes out a message that was put in for this time; false if it is not there.
    pub(crate) fn remove(&mut self, time: u64, seq: u64) -> bool {
        let is_removed = self.entries.remove(&(time, seq));
        if is_removed && time <= self.counted_until {
            self.due -= 1;
        }
        if self.first == Some((time, seq)) {
            self.first = self.entries.first().copied();
        }
        is_removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_comes_before_its_time() {
        let mut schedule = Schedule::default();
        for (time, seq) in [(11, 3), (12, 1), (11, 2), (11, 2)] {
            schedule.put(time, seq);
        }
        assert_eq!((schedule.delayed(), schedule.first_time()), (3, Some(11)));
        schedule.advance(10);
        assert_eq!(schedule.first_due(), None);
        schedule.advance(11);
        assert_eq!((schedule.delayed(), schedule.first_due()), (1, Some((11, 2))));
        assert!(schedule.remove(11, 2) && !schedule.remove(11, 2));
        assert_eq!(schedule.first_due(), Some((11, 3)));
        assert_eq!((schedule.next_due((0, 0)), schedule.next_due((11, 3))), (Some((11, 3)), None));
        assert_eq!((schedule.first_undue(), schedule.remove_seq(9)), (Some(12), false));
        assert!(schedule.remove(11, 3));
        assert_eq!((schedule.first_due(), schedule.delayed()), (None, 1));
    }

    proptest! {
        #[test]
        fn counts_what_is_due(steps in prop::collection::vec((0u8..3, 0u64..30, 0u64..5), 0..60)) {
            let (mut schedule, mut now) = (Schedule::default(), 0);
            for (what, time, seq) in steps {
                match what {
                    0 => schedule.put(time, seq),
                    1 => drop(schedule.remove(time, seq)),
                    _ => {
                        now = now.max(time);
                        schedule.advance(now);
                    }
                }
                let delayed = schedule.entries.iter().filter(|entry| entry.0 > now).count();
                prop_assert_eq!(schedule.delayed(), delayed);
                let later = schedule.entries.iter().filter(|entry| entry.0 > now.max(time));
                prop_assert_eq!(schedule.delayed_at(time), later.count());
                prop_assert_eq!(schedule.first, schedule.entries.first().copied());
                let first_due = schedule.first.filter(|entry| entry.0 <= now);
                prop_assert_eq!(schedule.first_due(), first_due);
            }
        }
    }
}
