//! Which numbers a record can have whose own number cannot be read.
//!
//! Promises: the ends of records side by side without a number are sought once, as long as those
//! records are asked for one after the other.

use super::records::Records;
use crate::format::address::{Index, Ordinal};
use std::ops::Range;

/// Finds the numbers between those that can be read.
#[derive(Debug, Default)]
pub(super) struct SeqBounds {
    /// What was found last.
    gap: Option<NumberGap>,
}

/// Records side by side whose numbers cannot be read, and the numbers that they can have.
#[derive(Debug)]
struct NumberGap {
    ordinal: Ordinal,
    indexes: Range<Index>,
    seqs: (u64, u64),
}

impl SeqBounds {
    /// The Seq of a record, as first and last; where its segment does not say it any more, all that
    /// it can have.
    pub(super) fn of(&mut self, records: &Records, index: Index) -> (u64, u64) {
        if let Some(seq) = records.seq(index).ok().flatten() {
            return (seq, seq);
        }
        let ordinal = records.segment().header.ordinal;
        if let Some(known) = &self.gap
            && known.ordinal == ordinal
            && known.indexes.contains(&index)
        {
            return known.seqs;
        }
        let (end, end_seq) = (Index(records.count().unwrap_or(0)), records.end_seq(0));
        let mut seq_of = |index: Index| Some((index, records.seq(index).ok().flatten()?));
        let before = Index::FIRST.until(index).rev().find_map(&mut seq_of);
        let behind = index.next().until(end).find_map(&mut seq_of);
        let first = before.map_or(records.numbering().first_seq, |(_, seq)| seq + 1);
        let last = behind.map_or(end_seq, |(_, seq)| seq) - 1;
        let seqs = (first, last.max(first));
        let indexes =
            before.map_or(Index::FIRST, |(at, _)| at.next())..behind.map_or(end, |(at, _)| at);
        self.gap = Some(NumberGap { ordinal, indexes, seqs });
        seqs
    }
}
