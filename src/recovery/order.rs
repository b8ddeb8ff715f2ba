//! The order of the log: that of Seqs.
//!
//! Promises: no two parts have a Seq in common, and the Seqs of each part are behind those of the
//! part before. keepq wrote nothing else, but a directory may say anything: of a backup that was
//! copied over it, too.

use super::part::Part;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Puts copies and other parts in the order of their Seqs. The parts without records stay where
/// they are among the `plain` ones, if those are in order. Gives also the parts that are left out:
/// others have some of their Seqs.
pub(super) fn by_seq(mut plain: Vec<Part>, mut copies: Vec<Part>) -> (Vec<Part>, Vec<Part>) {
    let first_seq = |part: &Part| if part.count > 0 { part.first_seq } else { 0 };
    let used = plain.iter().filter(|part| part.count > 0);
    if !used.is_sorted_by_key(|part| part.first_seq) {
        plain.sort_by_key(first_seq);
    }
    copies.sort_by_key(first_seq);
    let mut parts = Vec::with_capacity(plain.len() + copies.len());
    let (mut copies, mut empty) = (copies.into_iter().peekable(), Vec::new());
    for part in plain {
        if part.count == 0 {
            empty.push(part);
            continue;
        }
        // A copy comes right behind the part before it.
        while let Some(copy) = copies.next_if(|copy| copy.first_seq <= part.first_seq) {
            parts.push(copy);
        }
        parts.append(&mut empty);
        parts.push(part);
    }
    parts.extend(copies);
    parts.append(&mut empty);
    without_overlaps(parts)
}

/// The part with the larger ordinal counts: that is the file that was made later, so it has what
/// became of the messages since the other one was made. No file that is made from now on is left
/// out, then.
fn without_overlaps(parts: Vec<Part>) -> (Vec<Part>, Vec<Part>) {
    let mut by_age: Vec<&Part> = parts.iter().filter(|part| part.count > 0).collect();
    by_age.sort_by_key(|part| Reverse(part.segment.header.ordinal));
    // The first Seqs of those that count, and where they end.
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    let mut left_out = BTreeSet::new();
    for part in by_age {
        // No two of them overlap, so of those that begin before its end the last one ends last.
        let before = ends.range(..part.end_seq()).next_back();
        if before.is_some_and(|(_, &end)| end > part.first_seq) {
            left_out.insert(part.segment.header.ordinal);
        } else {
            ends.insert(part.first_seq, part.end_seq());
        }
    }
    let is_kept = |part: &Part| !left_out.contains(&part.segment.header.ordinal);
    parts.into_iter().partition(is_kept)
}
