//! What CHECKPOINT says of a segment whose file is here.

use super::segment_file::SegmentFile;
use crate::error::Result;
use crate::format::address::Ordinal;
use crate::format::checkpoint::Checkpoint;
use crate::io::Storage;
use std::collections::BTreeSet;

/// What CHECKPOINT knows of the segments of a directory.
pub(super) struct KnownSegments<'a> {
    checkpoint: &'a Checkpoint,
    /// Numbers of segments that it lists, and that are absent.
    absent: LostNumbers,
}

impl<'a> KnownSegments<'a> {
    pub(super) fn of(checkpoint: &'a Checkpoint, files: &[SegmentFile]) -> Self {
        let files = files.iter().filter(|file| file.header.queue_id == checkpoint.queue_id);
        let here: BTreeSet<Ordinal> = files.map(|file| file.header.ordinal).collect();
        let absent = checkpoint.used().filter(|listed| !here.contains(&listed.ordinal));
        let absent = LostNumbers::of(absent.map(|listed| checkpoint.numbers_of(listed)));
        Self { checkpoint, absent }
    }

    /// Whether it says that this segment counts. One that it does not list may have been lost
    /// before it was ever listed: then all of its numbers are noted, and it has none of a listed
    /// segment that is absent, which may have been made from it.
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

    /// Whether a segment has one of them.
    pub(super) fn has_some_of(&self, file: &SegmentFile, storage: &dyn Storage) -> Result<bool> {
        // Most directories have none, and no file is looked at.
        let numbers = if self.0.is_empty() { None } else { file.numbers(storage)? };
        Ok(numbers.is_some_and(|(first, last)| self.has_any(first, last)))
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
