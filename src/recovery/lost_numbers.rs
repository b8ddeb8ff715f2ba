//! The numbers of segments that are lost.

use super::segment_file::SegmentFile;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::io::Storage;

/// The first and the last number of what is lost, and the segment that had them.
pub(super) type Lost = (u64, u64, Ordinal);

/// Numbers, as ranges in order; no two of them overlap.
pub(super) struct LostNumbers(Vec<(u64, u64)>);

impl LostNumbers {
    /// Of ranges, each the first and the last number, in any order.
    pub(super) fn of(ranges: impl Iterator<Item = (u64, u64)>) -> Self {
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

    /// Whether a segment may have one of them: one that does not say its numbers may have any.
    pub(super) fn may_be_in(&self, file: &SegmentFile, storage: &dyn Storage) -> Result<bool> {
        // Most directories have none, and no file is looked at.
        if self.0.is_empty() {
            return Ok(false);
        }
        let numbers = file.numbers(storage)?;
        Ok(numbers.is_none_or(|(first, last)| self.has_any(first, last)))
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
        }
    }
}
