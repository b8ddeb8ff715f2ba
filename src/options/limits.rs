//! What follows from `max_bytes` for the files of a queue.

use super::{KIB, MIB, Options, Overflow};
use crate::format::PAGE;

/// The least room that is kept for compaction.
const SCRATCH: u64 = 64 * KIB;
/// The largest segment that is dropped as a whole: to sync and to remove it takes some 20
/// ms (`cargo bench --bench stalls`).
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
