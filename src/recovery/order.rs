//! The order of the log: that of Seqs.
//!
//! Promises: no two parts have a Seq in common, and the Seqs of each part are behind those of the
//! part before. keepq wrote nothing else, but a directory may say anything.

use super::part::Part;

/// Puts copies and other parts in the order of their Seqs. The parts without records stay where
/// they are among the `plain` ones, if those are in order. Gives also the parts that are left out:
/// they begin before the end of what is before them.
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

fn without_overlaps(parts: Vec<Part>) -> (Vec<Part>, Vec<Part>) {
    let (mut kept, mut left_out, mut end) = (Vec::with_capacity(parts.len()), Vec::new(), 0);
    for part in parts {
        if part.count == 0 {
            kept.push(part);
        } else if part.first_seq < end {
            left_out.push(part);
        } else {
            end = part.end_seq();
            kept.push(part);
        }
    }
    (kept, left_out)
}
