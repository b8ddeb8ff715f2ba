//! A walk over the records of one segment, in their order.
//!
//! The one way to go from record to record: `pop`, `iter`, `purge` and compaction walk with it.
//! Promises: finds each record whose slot or whose place behind the one before can be read, and
//! tells which are lost. Stores nothing. Relies on the caller to stay below the end that is
//! published.

use super::sealed::{Located, Mapped};
use crate::format::address::{Index, Offset};
use crate::format::record::RecordHeader;
use crate::format::segment::RECORDS_START;
use crate::format::slot::Slot;

/// Where a walk is in a segment: at record `index`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    index: Index,
    /// Where that record or an earlier one starts.
    offset: Offset,
    /// A settled record before it, if the one right before it was not read: its index and offset.
    previous: Option<(Index, Offset)>,
}

impl Position {
    /// Before the first record.
    pub(crate) const START: Self =
        Self { index: Index::FIRST, offset: RECORDS_START, previous: None };

    /// At record `index`, of which nothing else is known.
    pub(crate) fn at(index: Index) -> Self {
        Self { index, ..Self::START }
    }

    pub(crate) fn index(&self) -> Index {
        self.index
    }

    /// Where the record here is sought from.
    pub(crate) fn offset(&self) -> Offset {
        self.offset
    }

    /// Finds the record here. `slot`: what its slot says; `end_index`: of the records in sight.
    #[inline]
    pub(crate) fn locate(&self, mapped: &Mapped, slot: Slot, end_index: Index) -> Located {
        mapped.locate(slot, self.index, end_index, self.offset, self.previous)
    }

    /// Steps behind so many records here that were found side by side. `end`: of the last one.
    pub(crate) fn pass_records(&mut self, records: u32, end: Offset) {
        *self = Self { index: self.index + records, offset: end, previous: None };
    }

    /// Steps over a record that needs no look. `offset`: where it is, if its slot tells.
    #[inline]
    pub(crate) fn pass(&mut self, offset: Option<Offset>) {
        self.previous = offset.map(|offset| (self.index, offset)).or(self.previous);
        self.index = self.index.next();
    }

    /// Steps behind the record here, which was found at `offset`.
    #[inline]
    pub(crate) fn pass_record(&mut self, offset: Offset, header: &RecordHeader) {
        self.offset = offset + header.record_len();
        self.previous = None;
        self.index = self.index.next();
    }

    /// Steps over lost records: on to `end_index`, which was found at `offset`, or is sought from
    /// there on.
    pub(crate) fn pass_lost(&mut self, end_index: Index, offset: Offset) {
        self.index = end_index.max(self.index.next());
        self.offset = offset;
        self.previous = None;
    }

    /// On to a record behind settled ones that were counted. `previous`: the last of those whose
    /// place is known.
    pub(crate) fn skip_to(&mut self, index: Index, previous: Option<(Index, Offset)>) {
        self.index = index;
        self.previous = previous.or(self.previous);
    }
}
