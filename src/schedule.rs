//! Messages that must not be handed out before their times. Pure: no I/O, no locks, no clock.
//!
//! Promises: messages come out in the order of their times, and those with one time in the order of
//! their Seqs. Keeps two numbers for each message, in a tree (`cargo bench --bench delivery` prints
//! what that takes).

use crate::time::Time;
use std::collections::BTreeSet;
use std::ops::{Bound, Range};

/// Messages that wait for their time, and those whose time has come.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// Time and Seq.
    entries: BTreeSet<(Time, u64)>,
    /// The first of them, kept here because it is needed so often.
    first: Option<(Time, u64)>,
    /// `due` counts the entries up to this one: those whose time has come, as far as
    /// [`Schedule::advance`] has got.
    counted: (Time, u64),
    due: usize,
}

/// How many entries that are not to be seen yet are passed by at most.
const HIDDEN_AT_MOST: usize = 1024;

/// What [`Schedule::advance`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Advanced {
    /// Messages became due.
    pub(crate) has_due: bool,
    /// There may be more of them: it is to be called again.
    pub(crate) has_more: bool,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { entries: BTreeSet::new(), first: None, counted: (Time::ZERO, u64::MAX), due: 0 }
    }
}

impl Schedule {
    /// How many messages have a time that had not come when [`Schedule::advance`] was last called.
    fn delayed(&self) -> usize {
        self.entries.len() - self.due
    }

    /// How many messages have a time that has not come at `now`.
    pub(crate) fn delayed_at(&self, now: Time) -> usize {
        self.delayed() - self.due_until(now).count()
    }

    /// The messages whose time has not come at `now`.
    pub(crate) fn undue_at(&self, now: Time) -> impl Iterator<Item = &(Time, u64)> {
        self.entries.range((Bound::Excluded((now, u64::MAX)), Bound::Unbounded))
    }

    /// Those that are due at `now`, and are not counted.
    fn due_until(&self, now: Time) -> impl Iterator<Item = &(Time, u64)> {
        let last = self.counted.max((now, u64::MAX));
        self.entries.range((Bound::Excluded(self.counted), Bound::Included(last)))
    }

    /// Keeps a message until `time`. To put it in again for the same time changes nothing.
    pub(crate) fn put(&mut self, time: Time, seq: u64) {
        if self.entries.insert((time, seq)) && (time, seq) <= self.counted {
            self.due += 1;
        }
        self.first = Some(self.first.map_or((time, seq), |first| first.min((time, seq))));
    }

    /// Notes that the time is `now`, which never goes back. Up to `most` messages become due.
    pub(crate) fn advance(&mut self, now: Time, most: usize) -> Advanced {
        let (mut more, mut last) = (0, self.counted);
        for &entry in self.due_until(now).take(most) {
            (more, last) = (more + 1, entry);
        }
        let has_more = more == most;
        self.due += more;
        self.counted = if has_more { last } else { last.max((now, u64::MAX)) };
        Advanced { has_due: more > 0, has_more }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The time of the first message that was not due when [`Schedule::advance`] was last called.
    #[inline]
    pub(crate) fn first_undue(&self) -> Option<Time> {
        if self.due == 0 {
            return self.first_time();
        }
        let undue = Bound::Excluded(self.counted);
        self.entries.range((undue, Bound::Unbounded)).next().map(|(time, _)| *time)
    }

    /// The time of the first message, which may be past.
    pub(crate) fn first_time(&self) -> Option<Time> {
        self.first.map(|(time, _)| time)
    }

    /// The first one up to message `last_seq`, due or not: its time and Seq.
    pub(crate) fn first(&self, last_seq: u64) -> Option<(Time, u64)> {
        self.entries.iter().find(|(_, seq)| *seq <= last_seq).copied()
    }

    /// Whether one is due.
    #[inline]
    pub(crate) fn has_due(&self) -> bool {
        self.due > 0
    }

    /// The first one up to message `last_seq` that is due: its time and Seq.
    pub(crate) fn first_due(&self, last_seq: u64) -> Option<(Time, u64)> {
        let first = self.first.filter(|_| self.due > 0)?;
        if first.1 <= last_seq { Some(first) } else { self.next_due(first, last_seq) }
    }

    /// The first one behind this entry, up to message `last_seq`, that is due: its time and Seq. No
    /// more than a thousand are passed by: while a large batch is on its way, those behind it wait.
    pub(crate) fn next_due(&self, after: (Time, u64), last_seq: u64) -> Option<(Time, u64)> {
        if after >= self.counted {
            return None;
        }
        let due = (Bound::Excluded(after), Bound::Included(self.counted));
        let behind = self.entries.range(due);
        behind.take(HIDDEN_AT_MOST).find(|(_, seq)| *seq <= last_seq).copied()
    }

    /// The time of a message, if it is here: looks at all of them.
    pub(crate) fn time_of(&self, seq: u64) -> Option<Time> {
        self.entries.iter().find(|entry| entry.1 == seq).map(|(time, _)| *time)
    }

    /// Takes out a message whose time is not known: looks at all of them.
    pub(crate) fn remove_seq(&mut self, seq: u64) -> bool {
        let found = self.entries.iter().copied().find(|entry| entry.1 == seq);
        found.is_some_and(|(time, seq)| self.remove(time, seq))
    }

    /// Takes out all messages with these numbers: looks at all of them.
    pub(crate) fn forget(&mut self, seqs: &Range<u64>) {
        let gone = self.entries.iter().copied().filter(|(_, seq)| seqs.contains(seq));
        for (time, seq) in gone.collect::<Vec<_>>() {
            self.remove(time, seq);
        }
    }

    pub(crate) fn contains(&self, time: Time, seq: u64) -> bool {
        self.entries.contains(&(time, seq))
    }

    /// Takes out a message that was put in for this time; false if it is not there.
    pub(crate) fn remove(&mut self, time: Time, seq: u64) -> bool {
        let is_removed = self.entries.remove(&(time, seq));
        if is_removed && (time, seq) <= self.counted {
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
        let (early, late) = (Time(11), Time(12));
        for (time, seq) in [(early, 3), (late, 1), (early, 2), (early, 2)] {
            schedule.put(time, seq);
        }
        assert_eq!((schedule.delayed(), schedule.first_time()), (3, Some(early)));
        schedule.advance(Time(10), 9);
        assert_eq!(schedule.first_due(u64::MAX), None);
        schedule.advance(early, 9);
        assert_eq!((schedule.delayed(), schedule.first_due(u64::MAX)), (1, Some((early, 2))));
        assert!(schedule.remove(early, 2) && !schedule.remove(early, 2));
        assert_eq!(schedule.first_due(u64::MAX), Some((early, 3)));
        assert_eq!(
            [(Time::ZERO, 0), (early, 3)].map(|after| schedule.next_due(after, u64::MAX)),
            [Some((early, 3)), None]
        );
        assert_eq!((schedule.first_undue(), schedule.remove_seq(9)), (Some(late), false));
        assert!(schedule.remove(early, 3));
        assert_eq!((schedule.first_due(u64::MAX), schedule.delayed()), (None, 1));
    }

    #[test]
    fn one_that_is_held_back_is_passed_by() {
        let mut schedule = Schedule::default();
        for (time, seq) in [(Time(1), 9), (Time(2), 8), (Time(3), 3), (Time(9), 1)] {
            schedule.put(time, seq);
        }
        schedule.advance(Time(5), 9);
        let first_up_to = [2, 3, 7, 8, 9].map(|last_seq| schedule.first_due(last_seq));
        let (third, second, first) = ((Time(3), 3), (Time(2), 8), (Time(1), 9));
        assert_eq!(
            first_up_to,
            [None, Some(third), Some(third), Some(second), Some(first)],
            "none whose time has not come, and none behind the last Seq"
        );
    }

    #[test]
    fn many_become_due_in_steps() {
        let mut schedule = Schedule::default();
        (1..=5).for_each(|seq| schedule.put(Time(7), seq));
        let mut steps = Vec::new();
        for _ in 0..4 {
            let step = schedule.advance(Time(7), 2);
            steps.push((step.has_due, step.has_more, schedule.delayed(), schedule.first_undue()));
        }
        let (now, over) = (Some(Time(7)), None);
        assert_eq!(
            steps,
            [
                (true, true, 3, now),
                (true, true, 1, now),
                (true, false, 0, over),
                (false, false, 0, over)
            ]
        );
        assert_eq!(schedule.delayed_at(Time(7)), 0);
    }

    proptest! {
        #[test]
        fn counts_what_is_due(steps in prop::collection::vec((0u8..3, 0u64..30, 0u64..5), 0..60)) {
            let (mut schedule, mut now) = (Schedule::default(), Time::ZERO);
            for (what, time, seq) in steps {
                let time = Time(time);
                match what {
                    0 => schedule.put(time, seq),
                    1 => drop(schedule.remove(time, seq)),
                    _ => {
                        now = now.max(time);
                        let mut steps = 0;
                        while schedule.advance(now, 2).has_more {
                            steps += 1;
                        }
                        prop_assert!(steps <= schedule.due / 2);
                    }
                }
                let delayed = schedule.entries.iter().filter(|entry| entry.0 > now).count();
                prop_assert_eq!(schedule.delayed(), delayed);
                let later = schedule.entries.iter().filter(|entry| entry.0 > now.max(time));
                prop_assert_eq!(schedule.delayed_at(time), later.count());
                prop_assert_eq!(schedule.first, schedule.entries.first().copied());
                let first_due = schedule.first.filter(|entry| entry.0 <= now);
                prop_assert_eq!(schedule.first_due(u64::MAX), first_due);
            }
        }
    }
}
