//! Leases with the common timeout, in the order in which they began, which is that of their
//! deadlines.
//!
//! Promises: the first one holds. Those behind it that have ended are forgotten later: when they
//! come first, or are more than those that hold. So to begin and to end one takes a few steps.

use crate::time::Time;
use std::collections::VecDeque;

/// As many that have ended are kept, however few hold.
const ENDED_AT_LEAST: usize = 64;

/// Leases by their deadlines: each with its entry in the slab, and the generation of that.
#[derive(Debug, Default)]
pub(super) struct Timed {
    leases: VecDeque<(Time, u32, u32)>,
    /// How many of them have ended.
    ended: usize,
}

impl Timed {
    /// A lease begins. `deadline` is never before that of an earlier call.
    #[inline]
    pub(super) fn begin(&mut self, deadline: Time, entry: u32, generation: u32) {
        self.leases.push_back((deadline, entry, generation));
    }

    /// The first deadline, and the entry of its lease.
    #[inline]
    pub(super) fn first(&self) -> Option<(Time, u32)> {
        self.leases.front().map(|&(deadline, entry, _)| (deadline, entry))
    }

    /// One of them has ended. `holds`: whether an entry of this generation still does.
    #[inline]
    pub(super) fn end_one(&mut self, holds: impl Fn(u32, u32) -> bool) {
        self.ended += 1;
        while let Some(&(_, entry, generation)) = self.leases.front()
            && !holds(entry, generation)
        {
            self.leases.pop_front();
            self.ended -= 1;
        }
        if self.ended > ENDED_AT_LEAST.max(self.leases.len() / 2) {
            self.leases.retain(|&(_, entry, generation)| holds(entry, generation));
            self.ended = 0;
        }
    }

    /// How many are kept, those that have ended included.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.leases.len()
    }
}
