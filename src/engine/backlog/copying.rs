//! What compaction asks of a segment, and has said of it.
//!
//! Promises: while a segment is being copied, it stays, and each slot that is stored to is told at
//! the next look. Relies on being told of every store.

use crate::format::address::Index;
use crate::time::Time;
use std::ops::Range;

/// What compaction knows of a segment.
#[derive(Debug, Default)]
pub(crate) struct Copying {
    /// While it is being copied: the slots that were stored to since.
    changed: Option<ChangedSlots>,
    idle: Idle,
    /// Not to be copied before this time: that failed.
    not_before: Time,
    /// Others that have some of its messages may come back: those that it was made from, or a copy
    /// of it that was given up.
    is_kept: bool,
    /// It cannot be copied behind others.
    starts_copy: bool,
}

/// Since when nothing was settled in a segment.
#[derive(Clone, Copy, Debug, Default)]
struct Idle {
    /// How many were settled at the last look, and since when it has been no more than that.
    settled: u32,
    since: Time,
    /// Compaction wants to hear when this many are settled: of the first one after its look.
    tell_at: u32,
}

impl Copying {
    /// Of a segment that compaction has not looked at. `is_kept`: others that have some of its
    /// messages may come back.
    pub(super) fn new(is_kept: bool) -> Self {
        Self { is_kept, ..Self::default() }
    }

    /// Whether the segment stays even if it is done: it is being copied, or others that have some
    /// of its messages may come back.
    pub(crate) fn is_pinned(&self) -> bool {
        self.changed.is_some() || self.is_kept
    }

    /// Whether it is too soon after a copy of it failed.
    pub(crate) fn rests_at(&self, now: Time) -> bool {
        self.not_before > now
    }

    /// Compaction looks at the segment now, of which `settled` messages are settled: since when has
    /// that been no more?
    pub(crate) fn idle_since(&mut self, now: Time, settled: u32) -> Time {
        if settled != self.idle.settled {
            (self.idle.settled, self.idle.since) = (settled, now);
        }
        self.idle.tell_at = settled + 1;
        self.idle.since
    }

    /// Whether compaction wants to hear that so many are settled now, where fewer were before.
    #[inline]
    pub(super) fn wants_to_hear(&self, before: u32, settled: u32) -> bool {
        before < self.idle.tell_at && self.idle.tell_at <= settled
    }

    pub(crate) fn starts_copy(&self) -> bool {
        self.starts_copy
    }

    /// It does not fit behind others: from here on a copy may start with it, and not go over it.
    /// False if that was known.
    pub(crate) fn set_starts_copy(&mut self) -> bool {
        !std::mem::replace(&mut self.starts_copy, true)
    }

    /// From here on the slots that are stored to are noted. `count`: how many slots there are.
    pub(super) fn begin_copy(&mut self, count: u32) {
        self.changed = Some(ChangedSlots::new(count));
    }

    /// Slots side by side were stored to.
    #[inline]
    pub(super) fn note_changes(&mut self, indexes: Range<Index>) {
        if let Some(changed) = &mut self.changed {
            indexes.start.until(indexes.end).for_each(|index| changed.insert(index));
        }
    }

    /// The slots that were stored to since this was last asked.
    pub(crate) fn take_changed(&mut self) -> Vec<Index> {
        self.changed.as_mut().map(ChangedSlots::take).unwrap_or_default()
    }

    /// It is copied no more. `again`: not before this time, if that failed.
    pub(crate) fn end_copy(&mut self, again: Option<Time>) {
        self.changed = None;
        self.not_before = again.unwrap_or(self.not_before);
    }

    /// From here on others that have some of its messages may come back.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Those others are gone for good.
    pub(crate) fn end_keeping(&mut self) {
        self.is_kept = false;
    }
}

/// Slots that were stored to while a segment was copied: a bit each, however often that was.
#[derive(Debug)]
struct ChangedSlots {
    words: Vec<u64>,
}

impl ChangedSlots {
    fn new(count: u32) -> Self {
        let words = usize::try_from(count.div_ceil(u64::BITS)).unwrap_or(0);
        Self { words: vec![0; words] }
    }

    fn insert(&mut self, index: Index) {
        let word = usize::try_from(index.0 / u64::BITS).ok().and_then(|at| self.words.get_mut(at));
        if let Some(word) = word {
            *word |= 1 << (index.0 % u64::BITS);
        }
    }

    /// All of them, in order; none is left.
    fn take(&mut self) -> Vec<Index> {
        let mut changed = Vec::new();
        for (first, word) in (0..).step_by(64).zip(&mut self.words) {
            let mut bits = std::mem::take(word);
            while bits != 0 {
                changed.push(Index(first + bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_slots_are_told_once_and_in_order() {
        let mut changed = ChangedSlots::new(200);
        for index in [130, 5, 130, 64, 199, 0, 5, 256] {
            changed.insert(Index(index));
        }
        assert_eq!(changed.take(), [0, 5, 64, 130, 199].map(Index));
        assert_eq!(changed.take(), []);
    }
}
