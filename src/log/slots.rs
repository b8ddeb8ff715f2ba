//! Slots of records side by side, loaded and stored at once.
//!
//! Promises: what was not set is stored as it was loaded. Should a store fail, those are stored
//! that come before one of them: slots lie in the descending order of their records. Relies on its
//! caller that nobody else stores to these slots meanwhile.

use super::sealed::Mapped;
use crate::format::address::Index;
use crate::format::checksum::Key;
use crate::format::slot::Slot;
use std::io;

/// Slots of records side by side.
#[derive(Debug)]
pub(crate) struct Slots<'a> {
    mapped: &'a Mapped,
    first: Index,
    number: usize,
    /// As they lie: the last record's first.
    words: [u64; 2 * MOST_SLOTS],
}

/// As many there are at most.
pub(crate) const MOST_SLOTS: usize = 64;

/// One of them.
#[derive(Debug)]
pub(crate) struct LoadedSlot<'a> {
    /// The state, and the delay.
    words: &'a mut [u64; 2],
    index: Index,
    key: Key,
}

impl<'a> Slots<'a> {
    /// None yet, of this segment.
    #[inline]
    pub(crate) fn of(mapped: &'a Mapped) -> Self {
        Self { mapped, first: Index::FIRST, number: 0, words: [0; 2 * MOST_SLOTS] }
    }

    /// Loads those of `number` records, or as many as there may be, from `first` on.
    #[inline]
    pub(crate) fn load(&mut self, first: Index, number: usize) -> io::Result<()> {
        (self.first, self.number) = (first, number.min(MOST_SLOTS));
        self.mapped.region.load_words(self.place(self.number), &mut self.words[..2 * self.number])
    }

    /// Where the first `number` of them lie: their end is that of all.
    fn place(&self, number: usize) -> u64 {
        let last = u32::try_from(number).unwrap_or(0).saturating_sub(1);
        self.mapped.slot_place(self.first.saturating_add(last)).0
    }

    /// How many there are.
    #[inline]
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Each of them, in the order of their records.
    #[inline]
    pub(crate) fn each(&mut self) -> impl Iterator<Item = LoadedSlot<'_>> {
        let (key, indexes) = (self.mapped.key(), self.first.until(Index::MAX));
        let (slots, _) = self.words[..2 * self.number].as_chunks_mut();
        let slots = slots.iter_mut().rev().zip(indexes);
        slots.map(move |(words, index)| LoadedSlot { words, index, key })
    }

    /// Stores the first `number` of them. If that fails, some may be stored, from the first one on.
    #[inline]
    pub(crate) fn store(&self, number: usize) -> io::Result<()> {
        let words = &self.words[2 * (self.number - number)..2 * self.number];
        self.mapped.region.store_words(self.place(number), words)
    }
}

impl LoadedSlot<'_> {
    /// Whether nothing was ever stored to it.
    #[inline]
    pub(crate) fn is_untouched(&self) -> bool {
        *self.words == [0; 2]
    }

    /// Whether it says just that.
    #[inline]
    pub(crate) fn says(&self, slot: Slot) -> bool {
        self.words[0] == slot.encode(self.key, self.index)
    }

    /// From here on it says that, once it is stored.
    #[inline]
    pub(crate) fn set(&mut self, slot: Slot) {
        self.words[0] = slot.encode(self.key, self.index);
    }
}
