//! Segments that are lost: those that do not say what they hold, and those that CHECKPOINT lists
//! and the directory does not have.
//!
//! Promises: each is told of, one that is absent once. Every CHECKPOINT goes on to list it, so
//! that it counts again if its file is back.

use super::super::lost_numbers::Lost;
use super::Found;
use crate::format::address::Ordinal;
use crate::format::checkpoint::{Checkpoint, Listed};
use crate::format::ordinals::OrdinalRanges;
use std::collections::BTreeSet;

impl Found {
    /// The segments that are lost, each with as much of its numbers as is known, and one at least;
    /// none, and 0 as its first one, if that is not known. What a copy has of them is not lost.
    pub(crate) fn lost(&self) -> impl Iterator<Item = Listed> {
        self.here_and_lost().chain(self.absent())
    }

    /// Those that are here, and do not say what they hold.
    fn here_and_lost(&self) -> impl Iterator<Item = Listed> {
        self.unusable.iter().map(|unusable| {
            let least = u64::from(unusable.listed.first_seq > 0);
            Listed { span: unusable.listed.span.max(least), ..unusable.listed }
        })
    }

    /// The ordinals that no list of CHECKPOINT has with a message, and that no file has: a segment
    /// with one of them may have been lost, and then it counts if it is back.
    pub(crate) fn unseen(&self) -> OrdinalRanges {
        let checkpoint = self.checkpoint.as_ref();
        let from = checkpoint.map_or(Ordinal(1), |checkpoint| checkpoint.next_ordinal);
        let newest = (from < self.next_ordinal()).then(|| (from, self.next_ordinal().before()));
        let listed = checkpoint.iter().flat_map(|checkpoint| checkpoint.segments.iter());
        let unused = listed.filter(|listed| listed.first_seq == 0);
        let more = unused.map(|listed| (listed.ordinal, listed.ordinal)).chain(newest);
        let here = self.known_here().chain(self.half_made.iter().copied()).collect();
        let none = OrdinalRanges::default();
        let known = checkpoint.map_or(&none, |checkpoint| &checkpoint.added.apart.unseen);
        known.with_all_but(more, &here)
    }

    /// The ordinals of all that need not be looked for.
    fn known_here(&self) -> impl Iterator<Item = Ordinal> {
        let unusable = self.unusable.iter().map(|unusable| unusable.listed.ordinal);
        let others = self.replaced.by_copy.keys().copied().chain(self.set_aside.left_out());
        self.ordinals().chain(unusable).chain(others)
    }

    /// Those that the directory does not have. A segment that was prepared and never used held
    /// nothing.
    fn absent(&self) -> impl Iterator<Item = Listed> {
        let here: BTreeSet<Ordinal> = self.known_here().collect();
        let checkpoint = self.checkpoint.as_ref();
        let used = checkpoint.into_iter().flat_map(Checkpoint::used);
        let absent = used.filter(move |listed| !here.contains(&listed.ordinal));
        let numbers_of = move |listed| checkpoint.map(|checkpoint| checkpoint.numbers_of(listed));
        absent.filter_map(move |listed| {
            let (first, last) = numbers_of(listed)?;
            Some(Listed { span: last + 1 - first, ..*listed })
        })
    }

    /// The first and the last number of each.
    pub(super) fn lost_numbers(&self) -> impl Iterator<Item = (u64, u64)> {
        self.lost().filter_map(numbers).map(|(first, last, _)| (first, last))
    }

    /// The segments that are lost, with their numbers, but for absent ones that were told of
    /// before.
    pub(crate) fn to_tell(&self) -> Vec<Lost> {
        let is_known = |lost: &Listed| {
            self.checkpoint.as_ref().is_some_and(|known| known.knows_lost(lost.ordinal))
        };
        let absent = self.absent().filter(|lost| !is_known(lost));
        self.here_and_lost().chain(absent).filter_map(numbers).collect()
    }
}

/// The numbers of a segment, if it has any.
fn numbers(of: Listed) -> Option<Lost> {
    let Listed { ordinal, first_seq, span } = of;
    (first_seq > 0).then(|| (first_seq, first_seq + span.max(1) - 1, ordinal))
}
