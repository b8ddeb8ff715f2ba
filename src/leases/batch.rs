//! Messages side by side that were handed out together, each of them for the first time.

use super::bits::Bits;
use super::place::Place;
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::bytes::to_u64;

/// The messages of one lease. Each takes 8 bytes and a bit.
#[derive(Debug)]
pub(crate) struct Batch {
    first_seq: u64,
    ordinal: Ordinal,
    first_index: Index,
    /// Where each record starts, and behind the last one where that ends.
    starts: Vec<Offset>,
    /// Those that are in flight.
    out: Bits,
}

impl Batch {
    /// As many there are at most.
    pub(crate) const MOST: usize = Bits::NUMBER;

    /// All of them in flight. `starts`: where each record starts, and where the last one ends;
    /// there is at least one.
    pub(crate) fn new(
        first_seq: u64,
        ordinal: Ordinal,
        first_index: Index,
        starts: Vec<Offset>,
    ) -> Self {
        let out = Bits::first(starts.len() - 1);
        Self { first_seq, ordinal, first_index, starts, out }
    }

    pub(super) fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// How many are in flight.
    #[inline]
    pub(super) fn left(&self) -> usize {
        self.out.count()
    }

    /// Where a message is among them, if it is in flight.
    #[inline]
    fn nth(&self, seq: u64) -> Option<usize> {
        let nth = usize::try_from(seq.checked_sub(self.first_seq)?).ok()?;
        self.out.has(nth).then_some(nth)
    }

    fn index(&self, nth: usize) -> Index {
        self.first_index.saturating_add(u32::try_from(nth).unwrap_or(u32::MAX))
    }

    /// What is known of a message that is in flight.
    #[inline]
    pub(super) fn place(&self, seq: u64) -> Option<Place> {
        let nth = self.nth(seq)?;
        let (start, end) = (*self.starts.get(nth)?, *self.starts.get(nth + 1)?);
        Some(Place {
            seq,
            ordinal: self.ordinal,
            index: self.index(nth),
            offset: start,
            attempts: 1,
            bytes: u32::try_from(end.since(start)).unwrap_or(u32::MAX),
            is_transient: false,
        })
    }

    /// The first one that is in flight.
    pub(super) fn first(&self) -> Option<Place> {
        self.place(self.first_seq + to_u64(self.out.first_set()?))
    }

    /// Whether the message that lies here is in flight.
    pub(super) fn has_at(&self, ordinal: Ordinal, index: Index) -> bool {
        let nth = index.checked_since(self.first_index);
        let seq = nth.map(|nth| self.first_seq + u64::from(nth));
        self.ordinal == ordinal && seq.is_some_and(|seq| self.nth(seq).is_some())
    }

    /// The segment in which they lay.
    #[inline]
    pub(crate) fn ordinal(&self) -> Ordinal {
        self.ordinal
    }

    /// Where up to `most` messages are that are in flight, side by side, from this one on: the
    /// index of the first, and where each record starts and the last one ends. `None` if this one
    /// is not in flight.
    #[inline]
    pub(crate) fn side_by_side(&self, seq: u64, most: usize) -> Option<(Index, &[Offset])> {
        let nth = self.nth(seq)?;
        let number = self.out.set_from(nth).min(most);
        Some((self.index(nth), self.starts.get(nth..=nth + number)?))
    }

    /// One is no longer in flight; `None` if it was not.
    pub(super) fn take(&mut self, seq: u64) -> Option<Place> {
        let place = self.place(seq)?;
        self.take_held(seq, 1);
        Some(place)
    }

    /// So many side by side are no longer in flight, all of which were.
    #[inline]
    pub(super) fn take_held(&mut self, first_seq: u64, number: usize) {
        if let Some(nth) = self.nth(first_seq) {
            self.out.clear(nth, number);
        }
    }
}
