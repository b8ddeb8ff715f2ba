//! Segments that are lost: those that do not say what they hold, and those that CHECKPOINT lists
//! and the directory does not have.
//!
//! Promises: every one is told, one that is absent once, and every CHECKPOINT goes on to list it, so
//! that it counts again if its file is back. What it may have been made from is not deleted until then.

use super::found::Found;
use super::segment_file::SegmentFile;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::checkpoint::{Checkpoint, Listed};
use crate::format::name;
use crate::io::Storage;
use crate::report::{Damage, DamageKind, Ignored};
use std::collections::BTreeSet;

/// This many are told of one by one.
const MOST_TOLD: usize = 1000;

/// What CHECKPOINT knows of the segments of a directory.
pub(super) struct Known<'a> {
    checkpoint: &'a Checkpoint,
    /// Numbers of segments that it lists, and that are absent.
    absent: LostNumbers,
}

impl<'a> Known<'a> {
    pub(super) fn of(checkpoint: &'a Checkpoint, files: &[SegmentFile]) -> Self {
        let files = files.iter().filter(|file| file.header.queue_id == checkpoint.queue_id);
        let here: BTreeSet<Ordinal> = files.map(|file| file.header.ordinal).collect();
        let absent = checkpoint.used().filter(|listed| !here.contains(&listed.ordinal));
        let numbers = absent.map(|listed| (listed.first_seq, last_seq(checkpoint, listed)));
        Self { checkpoint, absent: LostNumbers::of(numbers) }
    }

    /// Whether it says that this segment counts. One that it does not list may have been lost before
    /// it was ever listed: then all of its numbers are noted, and it has none of a listed segment
    /// that is absent, which may have been made from it.
    pub(super) fn has(&self, file: &SegmentFile, storage: &dyn Storage) -> Result<bool> {
        if !self.checkpoint.let_go(file.header.ordinal) {
            return Ok(true);
        }
        // Most that were let go are seen to be without a look at their marks.
        if self.checkpoint.unaccounted.is_empty() {
            return Ok(false);
        }
        let Some((first, last)) = file.numbers(storage)? else { return Ok(false) };
        let is_noted = self.checkpoint.unaccounted.contains_all(first, last);
        Ok(is_noted && !self.absent.has_any(first, last))
    }
}

/// The ordinal of a segment, and its first and last number, if it has any.
fn numbers(lost: Listed) -> Option<(Ordinal, (u64, u64))> {
    let last = (lost.first_seq + lost.span).checked_sub(1)?;
    (lost.first_seq > 0).then_some((lost.ordinal, (lost.first_seq, last)))
}

/// The last Seq that a listed segment had when it was listed, its first one at least.
fn last_seq(checkpoint: &Checkpoint, listed: &Listed) -> u64 {
    checkpoint.last_seq_of(listed).max(listed.first_seq)
}

impl Found {
    /// The segments that are lost, each with as much of its numbers as is known, and one at least;
    /// none, and 0 as its first one, if that is not known. What a copy has of them is not lost.
    pub(super) fn lost(&self) -> impl Iterator<Item = Listed> {
        self.here_and_lost().chain(self.absent())
    }

    /// Those that are here, and do not say what they hold.
    fn here_and_lost(&self) -> impl Iterator<Item = Listed> {
        self.unusable.iter().map(|unusable| {
            let least = u64::from(unusable.listed.first_seq > 0);
            Listed { span: unusable.listed.span.max(least), ..unusable.listed }
        })
    }

    /// Those that the directory does not have. A segment that was prepared and never used held
    /// nothing.
    fn absent(&self) -> impl Iterator<Item = Listed> {
        let unusable = self.unusable.iter().map(|unusable| unusable.listed.ordinal);
        let others = self.replaced.by_copy.keys().chain(&self.set_aside.left_out).copied();
        let here: BTreeSet<Ordinal> = self.ordinals().chain(unusable).chain(others).collect();
        let checkpoint = self.checkpoint.as_ref();
        let used = checkpoint.into_iter().flat_map(|checkpoint| checkpoint.used());
        let absent = used.filter(move |listed| !here.contains(&listed.ordinal));
        absent.map(move |listed| {
            let last = checkpoint.map_or(0, |checkpoint| last_seq(checkpoint, listed));
            let span = last + 1 - listed.first_seq;
            Listed { span, ..*listed }
        })
    }

    /// The damage of the segments that are lost. Those that are absent are told of once.
    pub(super) fn missing_segments(&self) -> Vec<Damage> {
        let is_known = |lost: &Listed| {
            self.checkpoint.as_ref().is_some_and(|known| known.knows_lost(lost.ordinal))
        };
        let absent = self.absent().filter(|lost| !is_known(lost));
        let mut lost = self.here_and_lost().chain(absent).filter_map(numbers);
        let damage =
            |first, last, path| Damage { first, last, path, offset: 0, kind: DamageKind::Segment };
        let each = lost.by_ref().take(MOST_TOLD);
        let each = each.map(|(ordinal, (first, last))| {
            damage(first, last, self.directory.join(name::segment(ordinal)))
        });
        let mut told: Vec<Damage> = each.collect();
        // Together, so that a list takes no more memory than its bytes on the disk.
        let rest = lost.map(|(_, numbers)| numbers);
        let rest = rest.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
        told.extend(rest.map(|(first, last)| damage(first, last, self.directory.clone())));
        told
    }

    /// What was let go is removed. But a segment that has numbers of a lost one may be what that
    /// was made from, and then it stays until that is back.
    pub(super) fn take_let_go(
        &mut self,
        storage: &dyn Storage,
        let_go: Vec<SegmentFile>,
    ) -> Result<()> {
        let lost = self.lost().filter_map(numbers);
        let lost = LostNumbers::of(lost.map(|(_, numbers)| numbers));
        for file in let_go {
            let numbers = if lost.is_empty() { None } else { file.numbers(storage)? };
            if numbers.is_some_and(|(first, last)| lost.has_any(first, last)) {
                let (path, reason) = (storage.path(&file.name), "it has numbers of a lost segment");
                self.report.ignored.push(Ignored { path, reason, is_foreign: false });
                self.set_aside.bytes += file.file.size();
            } else {
                self.leftovers.push(file.into_leftover(storage)?);
            }
        }
        Ok(())
    }
}

/// Numbers, as ranges in order; no two of them overlap.
struct LostNumbers(Vec<(u64, u64)>);

impl LostNumbers {
    /// Of ranges, each the first and the last number, in any order.
    fn of(ranges: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut sorted: Vec<(u64, u64)> = ranges.collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match merged.last_mut().filter(|(_, end)| first <= *end) {
                Some((_, end)) => *end = last.max(*end),
                None => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of the numbers `first..=last` is among them.
    fn has_any(&self, first: u64, last: u64) -> bool {
        let at = self.0.partition_point(|&(_, end)| end < first);
        self.0.get(at).is_some_and(|&(start, _)| start <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn has_what_is_in_one_of_the_ranges(
            ranges in prop::collection::vec((1u64..60, 0u64..6), 0..10),
            (first, len) in (1u64..70, 0u64..6),
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(at, len)| (at, at + len)).collect();
            let lost = LostNumbers::of(ranges.iter().copied());
            let last = first + len;
            let is_in = ranges.iter().any(|&(from, to)| from <= last && first <= to);
            prop_assert_eq!(lost.has_any(first, last), is_in);
            prop_assert_eq!(lost.is_empty(), ranges.is_empty());
        }
    }
}
