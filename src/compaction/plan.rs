//! Which segments to copy into one. Pure: no I/O, no locks, no clock.
//!
//! Promises: what is chosen lies side by side in the log, and its copy takes no more than `live_percent` of what
//! it frees at the end and holds now. So of each byte that compaction frees, at most
//! `live_percent / (100 - live_percent)` is written again; and since nothing can be freed that was not
//! taken by a push before, compaction never writes more than that part of what pushes took (at 50 percent: no
//! more than pushes took).

use crate::format::segment::{MAX_SOURCES, size_for_copy};
use std::ops::Range;

/// A segment as the plan sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
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
    /// It is at most so large.
    pub(crate) most_bytes: u64,
}

/// The syncs of a copy cost about as much as writing so many bytes.
const FIXED_COST: u64 = 256 << 10;

/// Segments that are to be copied into one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    pub(crate) pieces: Range<usize>,
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
pub(crate) fn choose(pieces: &[Piece], limits: &Limits) -> Option<Choice> {
    let mut best: Option<Choice> = None;
    for first in 0..pieces.len() {
        let (mut before, mut record_bytes, mut records) = (0, 0, 0);
        let free = pieces.iter().enumerate().skip(first).take(MAX_SOURCES);
        for (at, piece) in
            free.take_while(|(at, piece)| piece.is_free && (!piece.starts || *at == first))
        {
            before += piece.size;
            record_bytes += piece.record_bytes;
            records += piece.records;
            let after = size_for_copy(record_bytes, records);
            if after > limits.most_bytes || u32::try_from(records).is_err() {
                break;
            }
            let is_worth_it = records > 0
                && u128::from(after) * 100 <= u128::from(before) * u128::from(limits.live_percent);
            let choice = Choice { pieces: first..at + 1, before, after, record_bytes, records };
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
    const HALF: Limits = Limits { live_percent: 50, most_bytes: 64 * MIB };

    fn piece(size: u64, records: u64) -> Piece {
        Piece { size, record_bytes: records * 128, records, is_free: true, starts: false }
    }

    #[test]
    fn sparse_neighbours_become_one() {
        let sparse = piece(64 * MIB, 450);
        let full = piece(64 * MIB, 450_000);
        assert_eq!(choose(&[full; 4], &HALF), None);
        let choice = choose(&[full, sparse, sparse, sparse, full, sparse], &HALF).unwrap();
        assert_eq!((choice.pieces, choice.before), (1..4, 192 * MIB));
        let busy = Piece { is_free: false, ..sparse };
        assert_eq!(choose(&[sparse, busy, busy], &HALF).unwrap().pieces, 0..1);
        assert_eq!(choose(&[busy, busy], &HALF), None);
        let other = Piece { starts: true, ..sparse };
        assert_eq!(choose(&[sparse, other, sparse, sparse], &HALF).unwrap().pieces, 1..4);
    }

    #[test]
    fn what_is_done_needs_no_copy() {
        assert_eq!(choose(&[piece(MIB, 0); 3], &HALF), None);
        assert_eq!(choose(&[piece(MIB, 0), piece(MIB, 1)], &HALF).unwrap().pieces, 0..2);
    }

    #[test]
    fn small_tails_are_merged_and_a_copy_alone_is_left_in_peace() {
        let (tail, copy) = (piece(MIB, 1), piece(12 << 10, 1));
        assert_eq!(choose(&[copy], &HALF), None);
        assert_eq!(choose(&[copy, copy], &HALF).unwrap().pieces, 0..2);
        assert_eq!(choose(&[copy, tail, tail], &HALF).unwrap().pieces, 0..3);
        assert_eq!(choose(&vec![tail; 1000], &HALF).unwrap().pieces.len(), MAX_SOURCES);
    }

    #[test]
    fn nothing_becomes_larger_than_a_segment() {
        let half = piece(64 * MIB, 180_000);
        let choice = choose(&[half; 5], &HALF).unwrap();
        assert!(choice.after <= HALF.most_bytes);
        let none = Limits { most_bytes: MIB, ..HALF };
        assert_eq!(choose(&[half; 5], &none), None);
    }

    proptest! {
        /// Pushes, settling and compaction in any order: what compaction wrote is never more than what pushes
        /// took, and at rest no more than twice what is live stays, but for what a file takes at least.
        #[test]
        fn amplification_is_bounded(steps in prop::collection::vec((0u8..8, 0usize..40, 1u64..100), 1..150)) {
            let segment = 64 << 10;
            let limits = Limits { live_percent: 50, most_bytes: segment };
            let (mut pieces, mut pushed, mut written) = (Vec::<Piece>::new(), 0, 0);
            for (what, at, percent) in steps {
                match what {
                    0..=2 => {
                        pushed += segment;
                        pieces.push(Piece { size: segment, record_bytes: 300 * 184, records: 300, is_free: true, starts: false });
                    }
                    3..=5 if !pieces.is_empty() => {
                        let len = pieces.len();
                        let piece = &mut pieces[at % len];
                        let records = piece.records * (100 - percent) / 100;
                        piece.record_bytes = records * 184;
                        piece.records = records;
                    }
                    _ => {
                        pieces.retain(|piece| piece.records > 0);
                        while let Some(choice) = choose(&pieces, &limits) {
                            written += choice.after;
                            let Choice { after, record_bytes, records, .. } = choice;
                            let copy =
                                Piece { size: after, record_bytes, records, is_free: true, starts: false };
                            pieces.splice(choice.pieces, [copy]);
                            prop_assert!(written <= pushed, "{} {}", written, pushed);
                        }
                        for pair in pieces.windows(2) {
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
