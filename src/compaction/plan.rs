//! Which segments to copy into one. Pure: no I/O, no locks, no clock.
//!
//! Promises: what is chosen lies side by side in the log, and is copied for one of two reasons.
//!
//! * To free: the copy takes no more than `live_percent` of what it replaces. With p for that, each byte that is freed costs
//!   at most p / (100 - p) that are written; and since nothing can be freed that no push took before, all such copies
//!   together are no more than that part of what pushes took: at 50 percent, no more than pushes took.
//! * To gather: small files become one that is twice as large as each of them and frees an eighth, or eight
//!   times as large and has sixteen in it. By the first a file gets no larger than some 150 KiB, where its header
//!   pages no longer matter; by the second, a message is in a file of full size after three more. So a message is
//!   gathered seven times at the most, and all copies together are eight times the first bound, and as a
//!   rule next to nothing besides it.

use crate::format::segment::{MAX_SOURCES, size_for_copy};
use std::ops::Range;

/// A segment as the plan sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) size: u64,
    /// Bytes of the records that are owed, and how many there are.
    pub(crate) record_bytes: u64,
    pub(crate) records: u64,
    /// Whether it may be copied now.
    pub(crate) is_free: bool,
    /// Whether it cannot be copied behind others.
    pub(crate) starts: bool,
}

/// What a copy may be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// It takes at most so many of 100 bytes of what it replaces.
    pub(crate) live_percent: u64,
    /// It is at most so large, or as the largest that it replaces.
    pub(crate) segment_bytes: u64,
    /// And there is room for no more than this.
    pub(crate) room: u64,
}

/// A file is gathered with at least one other into one that is so many times as large, and frees so large a part.
const SMALL_GROWTH: u64 = 2;
const SMALL_GAIN: u64 = 8;
/// Or with so many into one that is so many times as large.
const MANY: usize = 16;
const MANY_GROWTH: u64 = 8;

/// The syncs of a copy cost about as much as writing so many bytes.
const FIXED_COST: u64 = 256 << 10;

/// Segments that are to be copied into one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    pub(crate) range: Range<usize>,
    /// Bytes that they hold, and that their copy will take.
    pub(crate) before: u64,
    pub(crate) after: u64,
    pub(crate) record_bytes: u64,
    pub(crate) records: u64,
}

impl Choice {
    /// Whether this one frees more for what it costs.
    fn is_better_than(&self, other: &Self) -> bool {
        let gain = |of: &Self| u128::from(of.before.saturating_sub(of.after));
        let cost = |of: &Self| u128::from(of.after + FIXED_COST);
        gain(self) * cost(other) > gain(other) * cost(self)
    }
}

/// The segments whose copying frees most for what it costs; `None` if nothing is worth it.
pub(crate) fn choose(candidates: &[Candidate], limits: &Limits) -> Option<Choice> {
    let mut best: Option<Choice> = None;
    for first in 0..candidates.len() {
        let (mut before, mut largest, mut record_bytes, mut records) = (0, 0, 0, 0);
        let free = candidates.iter().enumerate().skip(first).take(MAX_SOURCES);
        for (at, candidate) in free
            .take_while(|(at, candidate)| candidate.is_free && (!candidate.starts || *at == first))
        {
            before += candidate.size;
            largest = candidate.size.max(largest);
            record_bytes += candidate.record_bytes;
            records += candidate.records;
            let after = size_for_copy(record_bytes, records);
            let most = limits.segment_bytes.max(largest).min(limits.room);
            if after > most || u32::try_from(records).is_err() {
                break;
            }
            let frees = after * 100 <= before * limits.live_percent;
            let gain = before.saturating_sub(after);
            let gathers = largest * SMALL_GROWTH <= after && gain * SMALL_GAIN >= before
                || largest * MANY_GROWTH <= after && at + 1 - first >= MANY && gain > 0;
            let is_worth_it = records > 0 && (frees || gathers);
            let choice = Choice { range: first..at + 1, before, after, record_bytes, records };
            if is_worth_it && best.as_ref().is_none_or(|best| choice.is_better_than(best)) {
                best = Some(choice);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const HALF: Limits = Limits { live_percent: 50, segment_bytes: 64 * MIB, room: u64::MAX };

    fn candidate(size: u64, records: u64) -> Candidate {
        Candidate { size, record_bytes: records * 128, records, is_free: true, starts: false }
    }

    #[test]
    fn sparse_neighbours_become_one() {
        let sparse = candidate(64 * MIB, 450);
        let full = candidate(64 * MIB, 450_000);
        assert_eq!(choose(&[full; 4], &HALF), None);
        let choice = choose(&[full, sparse, sparse, sparse, full, sparse], &HALF).unwrap();
        assert_eq!((choice.range, choice.before), (1..4, 192 * MIB));
        let busy = Candidate { is_free: false, ..sparse };
        assert_eq!(choose(&[sparse, busy, busy], &HALF).unwrap().range, 0..1);
        assert_eq!(choose(&[busy, busy], &HALF), None);
        let other = Candidate { starts: true, ..sparse };
        assert_eq!(choose(&[sparse, other, sparse, sparse], &HALF).unwrap().range, 1..4);
    }

    #[test]
    fn what_is_done_needs_no_copy() {
        assert_eq!(choose(&[candidate(MIB, 0); 3], &HALF), None);
        assert_eq!(choose(&[candidate(MIB, 0), candidate(MIB, 1)], &HALF).unwrap().range, 0..2);
    }

    #[test]
    fn small_tails_are_merged_and_a_copy_alone_is_left_in_peace() {
        let (tail, copy) = (candidate(MIB, 1), candidate(12 << 10, 1));
        assert_eq!(choose(&[copy], &HALF), None);
        // Sixteen of 75 KiB, each as full as can be; fifteen are not worth it.
        let dense = candidate(80 << 10, 470);
        assert_eq!(choose(&[dense; 15], &HALF), None);
        assert_eq!(choose(&[dense; 40], &HALF).unwrap().range, 0..40);
        assert_eq!(choose(&[copy, copy], &HALF).unwrap().range, 0..2);
        assert_eq!(choose(&[copy, tail, tail], &HALF).unwrap().range, 0..3);
        assert_eq!(choose(&vec![tail; 1000], &HALF).unwrap().range.len(), MAX_SOURCES);
    }

    #[test]
    fn nothing_becomes_larger_than_a_segment() {
        let half = candidate(64 * MIB, 180_000);
        let choice = choose(&[half; 5], &HALF).unwrap();
        assert!(choice.after <= HALF.segment_bytes);
        // But for one that was larger itself.
        let large = choose(&[candidate(300 * MIB, 900_000)], &HALF).unwrap();
        assert!(large.after > HALF.segment_bytes && large.after <= 150 * MIB);
        let none = Limits { room: MIB, ..HALF };
        assert_eq!(choose(&[half; 5], &none), None);
    }

    proptest! {
        /// Pushes, settling and compaction in any order: what compaction wrote is never more than its bounds, and at
        /// rest no more than twice what is live stays, but for what a file takes at least.
        #[test]
        fn amplification_is_bounded(steps in prop::collection::vec((0u8..8, 0usize..40, 1u64..100), 1..150)) {
            let segment = 64 << 10;
            let limits = Limits { live_percent: 50, segment_bytes: segment, room: u64::MAX };
            let (mut candidates, mut pushed) = (Vec::<Candidate>::new(), 0);
            let (mut freeing, mut gathering) = (0, 0);
            for (what, at, percent) in steps {
                match what {
                    0..=2 => {
                        pushed += segment;
                        candidates.push(Candidate { size: segment, record_bytes: 300 * 184, records: 300, is_free: true, starts: false });
                    }
                    3..=5 if !candidates.is_empty() => {
                        let len = candidates.len();
                        let candidate = &mut candidates[at % len];
                        let records = candidate.records * (100 - percent) / 100;
                        candidate.record_bytes = records * 184;
                        candidate.records = records;
                    }
                    _ => {
                        candidates.retain(|candidate| candidate.records > 0);
                        while let Some(choice) = choose(&candidates, &limits) {
                            let frees = choice.after * 2 <= choice.before;
                            if frees { freeing += choice.after } else { gathering += choice.after }
                            let Choice { after, record_bytes, records, .. } = choice;
                            let copy =
                                Candidate { size: after, record_bytes, records, is_free: true, starts: false };
                            candidates.splice(choice.range, [copy]);
                            prop_assert!(freeing <= pushed, "{} {}", freeing, pushed);
                            prop_assert!(gathering <= 7 * pushed, "{} {}", gathering, pushed);
                        }
                        for pair in candidates.windows(2) {
                            let live: u64 = pair.iter().map(|p| p.record_bytes + p.records * 24).sum();
                            let size: u64 = pair.iter().map(|p| p.size).sum();
                            let fits = live + (12 << 10) <= segment;
                            prop_assert!(!fits || size < 2 * (live + (12 << 10)), "{:?}", pair);
                        }
                    }
                }
            }
        }
    }
}
