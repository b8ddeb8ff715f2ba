//! What changed under the dispatch lock that others have to be told of: the guard does that.

use crate::engine::waiters::Waiters;
use std::ops::Range;

/// What changed since the lock was taken. Whether anything did is one word, which [`News::note`]
/// keeps.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// A bit for each event.
    events: u8,
    /// The Seqs of settled messages, as far as threads wait for any.
    settled_seqs: Vec<u64>,
}

/// What others may have to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Messages were settled, and producers wait for room.
    Room,
    /// Messages were settled whose Seqs threads wait for.
    Settled,
    /// The same, but their Seqs are not known.
    SettledUnknown,
    /// Segments may have become free: there is upkeep.
    Upkeep,
    /// Messages are on their way to the dead letters.
    Died,
    /// There may be something to compact.
    Reclaims,
    /// There may be something to hand out that was not, or room for one more in flight.
    Returned,
}

impl Event {
    fn bit(self) -> u8 {
        match self {
            Self::Room => 1,
            Self::Settled => 1 << 1,
            Self::SettledUnknown => 1 << 2,
            Self::Upkeep => 1 << 3,
            Self::Died => 1 << 4,
            Self::Reclaims => 1 << 5,
            Self::Returned => 1 << 6,
        }
    }
}

impl News {
    #[inline]
    pub(super) fn note(&mut self, event: Event) {
        self.events |= event.bit();
    }

    #[inline]
    pub(super) fn note_if(&mut self, is_so: bool, event: Event) {
        self.events |= event.bit() * u8::from(is_so);
    }

    /// Messages were settled: producers hear of it that wait for room.
    #[inline]
    pub(super) fn note_room(&mut self, waiters: &Waiters) {
        // A producer takes the lock between its place in line and its look: one that is not in line
        // yet sees what was settled.
        self.note_if(!waiters.room.is_empty(), Event::Room);
    }

    /// These messages were settled, and threads wait for some.
    #[cold]
    pub(super) fn note_settled(&mut self, seqs: Range<u64>) {
        self.settled_seqs.extend(seqs);
        self.note(Event::Settled);
    }

    #[inline]
    pub(in crate::engine) fn has(&self, event: Event) -> bool {
        self.events & event.bit() != 0
    }

    /// Whether nobody has to be told of anything.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.events == 0
    }

    pub(in crate::engine) fn into_settled_seqs(self) -> Vec<u64> {
        self.settled_seqs
    }
}
