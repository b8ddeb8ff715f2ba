//! Leases with the common timeout, in the order in which they began, which is that of their
//! deadlines.
//!
//! Promises: the first one holds. Those behind it that have ended are forgotten later: when they
//! come first, or are more than those that hold. So to begin and to end one takes a few steps.

use crate::time::Time;
use std::collections::VecDeque;

/// As many that have ended are kept, however few hold.
const ENDED_AT_LEAST: usize = 64;

/// A lease: its deadline, its entry in the slab, and the generation of that.
type TimedLease = (Time, u32, u32);

/// Leases by their deadlines.
#[derive(Debug, Default)]
pub(super) struct Timed {
    /// Apart, because most of the time there is one at most.
    first: Option<TimedLease>,
    behind: VecDeque<TimedLease>,
    /// How many of them have ended.
    ended: usize,
}

impl Timed {
    /// A lease begins. `deadline` is never before that of an earlier call.
    #[inline(always)]
    pub(super) fn begin(&mut self, deadline: Time, entry: u32, generation: u32) {
        if self.first.is_none() {
            self.first = Some((deadline, entry, generation));
        } else {
            self.behind.push_back((deadline, entry, generation));
        }
    }

    /// The first deadline, and the entry of its lease.
    #[inline]
    pub(super) fn first(&self) -> Option<(Time, u32)> {
        self.first.map(|(deadline, entry, _)| (deadline, entry))
    }

    /// One of them has ended. `holds`: whether an entry of this generation still does.
    #[inline(always)]
    pub(super) fn end_one(&mut self, holds: impl Fn(u32, u32) -> bool) {
        self.ended += 1;
        while let Some((_, entry, generation)) = self.first
            && !holds(entry, generation)
        {
            self.first = self.behind.pop_front();
            self.ended -= 1;
        }
        if self.ended > ENDED_AT_LEAST && self.ended > self.behind.len() / 2 {
            self.behind.retain(|&(_, entry, generation)| holds(entry, generation));
            self.ended = 0;
        }
    }

    /// How many are kept, those that have ended included.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.behind.len() + usize::from(self.first.is_some())
    }
}
