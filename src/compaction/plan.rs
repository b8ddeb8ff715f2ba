//! Which segments to copy into one. Pure: no I/O, no locks, no clock.
//!
//! Promises: the chosen segments lie side by side in the log, no two copies have one in common, and
//! they are copied for one of three reasons.
//!
//! * To free space: the copy takes at most `live_percent` of the bytes that it replaces. Let p be
//!   that number: each byte that is freed costs at most p / (100 - p) bytes that are written. Only
//!   bytes that pushes took can be freed, so all such copies together take at most that part of the
//!   bytes that pushes took: at 50 percent, no more than pushes took.
//! * To free what small files take besides: the copy takes at most `live_percent` of what it
//!   replaces if neither counts the pages that any file takes, and it frees a quarter. So at rest
//!   segments that fit into one file take, at 50 percent, at most twice what is live in them and
//!   those pages once; each byte that is freed costs at most three.
//! * To gather small files: the copy is at least twice as large as each of them and frees an eighth
//!   of their bytes; or it is at least eight times as large as each of them and has sixteen of them
//!   in it. The first rule leads to files of some 150 KiB at most, where header pages no longer
//!   matter; after three more copies by the second rule, a message is in a file of full size.
//!
//! Up to 87 percent, each copy but those by the very last rule frees an eighth of what it replaces,
//! so all of them together take at most seven times the bytes that pushes took; as a rule they take
//! little more than the first bound. The last rule adds three times as much at most.

use crate::format::PAGE;
use crate::format::segment::{MAX_SOURCES, size_for_copy};
use std::cmp::Ordering;
use std::ops::Range;

/// A segment that may be copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) size: u64,
    /// Bytes of the records of unsettled messages, and how many there are.
    pub(crate) record_bytes: u64,
    pub(crate) records: u64,
    /// Whether it may be copied now.
    pub(crate) is_free: bool,
    /// Whether a copy with this segment in it has to start with it.
    pub(crate) starts: bool,
}

/// How large a copy may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// At most this part, in percent, of the bytes that it replaces.
    pub(crate) live_percent: u64,
    /// At most this, or as large as the largest segment that it replaces.
    pub(crate) segment_bytes: u64,
    /// And at most this, because there is no more room.
    pub(crate) room: u64,
}

/// What a file takes at least: two header pages, and one for records and slots.
const LEAST: u64 = 3 * PAGE;
/// A copy that frees what small files take besides frees one part in this many.
const BESIDES_GAIN: u64 = 4;

/// A file is gathered with at least one other one if the copy is this many times as large as each
/// of them, and frees one part in this many.
const SMALL_GROWTH: u64 = 2;
const SMALL_GAIN: u64 = 8;
/// Or if there are this many of them and the copy is this many times as large as each.
const MANY: usize = 16;
const MANY_GROWTH: u64 = 8;

/// The syncs of a copy cost about as much as writing this many bytes.
const FIXED_COST: u64 = 256 << 10;

/// Candidates that are to be copied into one segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CopyPlan {
    pub(crate) range: Range<usize>,
    /// Bytes that they take, and that their copy will take.
    pub(crate) before: u64,
    pub(crate) after: u64,
    pub(crate) record_bytes: u64,
    pub(crate) records: u64,
}

impl CopyPlan {
    /// `Less` if this choice frees more than the other one for what it costs.
    fn better_first(&self, other: &Self) -> Ordering {
        let gain = |of: &Self| u128::from(of.before.saturating_sub(of.after));
        let cost = |of: &Self| u128::from(of.after + FIXED_COST);
        (gain(other) * cost(self)).cmp(&(gain(self) * cost(other)))
    }
}

/// The candidates whose copy frees most for what it costs; `None` if no copy is worth it.
pub(crate) fn choose(candidates: &[Candidate], limits: &Limits) -> Option<CopyPlan> {
    all_from(candidates, limits).min_by(CopyPlan::better_first)
}

/// Copies that are all worth it, those that free most for what they cost first.
pub(crate) fn choose_all(candidates: &[Candidate], limits: &Limits) -> Vec<CopyPlan> {
    let mut choices: Vec<_> = all_from(candidates, limits).collect();
    choices.sort_by(CopyPlan::better_first);
    let mut is_taken = vec![false; candidates.len()];
    choices.retain(|choice| {
        let taken = is_taken.get_mut(choice.range.clone()).unwrap_or_default();
        let is_free = !taken.contains(&true);
        if is_free {
            taken.fill(true);
        }
        is_free
    });
    choices
}

/// Whether any copy is worth it.
pub(crate) fn is_any_worth_it(candidates: &[Candidate], limits: &Limits) -> bool {
    all_from(candidates, limits).next().is_some()
}

/// The best copy from each candidate on, where one is worth it.
fn all_from(candidates: &[Candidate], limits: &Limits) -> impl Iterator<Item = CopyPlan> {
    (0..candidates.len()).filter_map(|first| best_from(first, candidates, limits))
}

/// The best copy from this candidate on; the shortest, if several are.
fn best_from(first: usize, candidates: &[Candidate], limits: &Limits) -> Option<CopyPlan> {
    let mut best: Option<CopyPlan> = None;
    let (mut before, mut largest, mut record_bytes, mut records) = (0, 0, 0, 0);
    let free = candidates.iter().enumerate().skip(first).take(MAX_SOURCES);
    for (at, candidate) in
        free.take_while(|(at, candidate)| candidate.is_free && (!candidate.starts || *at == first))
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
        let besides = after.saturating_sub(LEAST) * 100
            <= before.saturating_sub(LEAST) * limits.live_percent
            && gain * BESIDES_GAIN >= before;
        let gathers = largest * SMALL_GROWTH <= after && gain * SMALL_GAIN >= before
            || largest * MANY_GROWTH <= after && at + 1 - first >= MANY && gain > 0;
        let is_worth_it = records > 0 && (frees || besides || gathers);
        let choice = CopyPlan { range: first..at + 1, before, after, record_bytes, records };
        if is_worth_it && best.as_ref().is_none_or(|best| choice.better_first(best).is_lt()) {
            best = Some(choice);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cmp::Reverse;

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
        /// Pushes, settling and compaction in any order: compaction never writes more than its
        /// bounds, and at rest neighbours that fit into one file take no more than twice what is
        /// live, and what a file takes at least.
        #[test]
        fn amplification_is_bounded(
            steps in prop::collection::vec((0u8..8, 0usize..40, 1u64..100), 1..150),
        ) {
            let segment = 64 << 10;
            let limits = Limits { live_percent: 50, segment_bytes: segment, room: u64::MAX };
            let of = |size, record_bytes, records| Candidate {
                size,
                record_bytes,
                records,
                is_free: true,
                starts: false,
            };
            let (mut candidates, mut pushed) = (Vec::<Candidate>::new(), 0);
            let (mut freeing, mut gathering) = (0, 0);
            for (what, at, percent) in steps {
                match what {
                    0..=2 => {
                        pushed += segment;
                        candidates.push(of(segment, 300 * 184, 300));
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
                        loop {
                            let mut choices = choose_all(&candidates, &limits);
                            let best = choose(&candidates, &limits);
                            prop_assert_eq!(best.as_ref(), choices.first());
                            if choices.is_empty() {
                                break;
                            }
                            // The last ones first, so that the others stay where they are.
                            choices.sort_by_key(|choice| Reverse(choice.range.start));
                            for choice in choices {
                                let frees = choice.after * 2 <= choice.before;
                                *if frees { &mut freeing } else { &mut gathering } += choice.after;
                                let copy = of(choice.after, choice.record_bytes, choice.records);
                                candidates.splice(choice.range, [copy]);
                            }
                            prop_assert!(freeing <= pushed, "{} {}", freeing, pushed);
                            prop_assert!(gathering <= 7 * pushed, "{} {}", gathering, pushed);
                        }
                        for pair in candidates.windows(2) {
                            let live = |one: &Candidate| one.record_bytes + one.records * 24;
                            let live: u64 = pair.iter().map(live).sum();
                            let size: u64 = pair.iter().map(|one| one.size).sum();
                            let fits = live + (12 << 10) <= segment;
                            prop_assert!(!fits || size <= 2 * live + LEAST, "{:?}", pair);
                        }
                    }
                }
            }
        }
    }
}
