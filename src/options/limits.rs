//! What follows from `max_bytes` for the files of a queue.

use super::{KIB, MIB, Options, Overflow};
use crate::format::PAGE;

/// The least room that is kept for compaction.
const SCRATCH: u64 = 64 * KIB;
/// The largest segment that is dropped as a whole: the push that drops it waits for its sync and
/// its removal (`cargo bench --bench stalls` prints the longest push).
const LARGEST_DROPPED: u64 = 8 * MIB;

impl Options {
    /// The largest segment. It is small enough for `max_bytes`, so that a queue that was full and
    /// is empty now has room for another segment; and smaller where a push that finds no room drops
    /// the messages of one, and waits for its sync and its removal.
    pub(crate) fn segment_limit(&self) -> u64 {
        let Some(max) = self.max_bytes else { return self.segment_bytes };
        let part = match self.overflow {
            Overflow::DropOldest => (max / 32).clamp(64 * KIB, LARGEST_DROPPED),
            Overflow::Reject | Overflow::Block | Overflow::DropNewest => max / 4,
        };
        self.segment_bytes.min(part / PAGE * PAGE)
    }

    /// The part of `max_bytes` that is kept for files that compaction makes before it removes
    /// others.
    pub(crate) fn scratch(&self) -> u64 {
        let has_any = self.max_bytes.is_some() && self.compaction.is_on;
        if has_any { (self.segment_limit() / 4 / PAGE * PAGE).max(SCRATCH) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_may_be_dropped_is_a_32nd_of_the_limit_within_bounds() {
        let of = |max, overflow| Options::default().max_bytes(max).overflow(overflow);
        let dropped = |max| of(max, Overflow::DropOldest).segment_limit();
        assert_eq!([dropped(MIB), dropped(2 * MIB)], [64 * KIB; 2], "no smaller");
        assert_eq!(dropped(2 * MIB + 32 * PAGE), 64 * KIB + PAGE);
        assert_eq!(dropped(2 * MIB + 32 * PAGE - 1), 64 * KIB, "of whole pages");
        assert_eq!(dropped(256 * MIB - 32 * PAGE), 8 * MIB - PAGE);
        assert_eq!([dropped(256 * MIB), dropped(u64::MAX / 2)], [8 * MIB; 2], "no larger");
        let smaller = of(256 * MIB, Overflow::DropOldest).segment_bytes(MIB);
        assert_eq!(smaller.segment_limit(), MIB);
        for overflow in [Overflow::Reject, Overflow::Block, Overflow::DropNewest] {
            assert_eq!(of(64 * MIB, overflow).segment_limit(), 16 * MIB, "a quarter");
        }
    }
}
