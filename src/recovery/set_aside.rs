//! Segments whose files stay, and that do not count.

use crate::format::address::Ordinal;
use crate::format::ordinals::Ordinals;
use crate::format::segment::SegmentHeader;
use crate::log::Segment;
use std::collections::BTreeSet;

/// Segments that do not count, though they say what they hold.
#[derive(Debug, Default)]
pub(super) struct SetAside {
    /// Those that are left out for ever.
    left_out: BTreeSet<Ordinal>,
    /// All of them take so much of the disk.
    bytes: u64,
    /// Some were not left out by an earlier open.
    has_more: bool,
    seq_limit: u64,
}

impl SetAside {
    /// What an earlier open left out.
    pub(super) fn known(left_out: &Ordinals) -> Self {
        Self { left_out: left_out.iter().collect(), ..Self::default() }
    }

    /// This segment never counts from here on.
    pub(super) fn leave_out(&mut self, segment: &Segment) {
        let SegmentHeader { ordinal, size, seq_limit, .. } = segment.header;
        if self.left_out.insert(ordinal) {
            self.bytes += size;
            self.has_more = true;
            self.seq_limit = self.seq_limit.max(seq_limit);
        }
    }

    /// A file that does not count takes so much of the disk.
    pub(super) fn add_file(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Whether this segment is left out.
    pub(super) fn has_left_out(&self, ordinal: Ordinal) -> bool {
        self.left_out.contains(&ordinal)
    }

    pub(super) fn left_out(&self) -> impl Iterator<Item = Ordinal> {
        self.left_out.iter().copied()
    }

    /// Whether this open has left out more than the ones before.
    pub(super) fn has_more(&self) -> bool {
        self.has_more
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// No Seq from it on is in a segment that this open left out.
    pub(super) fn seq_limit(&self) -> u64 {
        self.seq_limit
    }
}
