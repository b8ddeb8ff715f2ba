//! Messages on their way to the dead letters: what is known of them in the queue where they died.
//!
//! A message dies in three steps: its slot says *dying*, so that no consumer gets it any more; it
//! is pushed to the dead letters; once that is durable, its slot says *dead*. The second step is
//! led by `dead_letters.rs`, which knows both queues.

use crate::engine::backlog::Body;
use crate::format::bytes::to_u64;
use crate::format::record::RecordHeader;
use crate::leases::Place;
use crate::time::PushTime;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};

/// Why a message died.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    Rejected,
    Attempts,
    Expired,
}

impl Cause {
    /// As it stands in a dead letter.
    pub(crate) fn encode(self) -> u8 {
        match self {
            Self::Rejected => 0,
            Self::Attempts => 1,
            Self::Expired => 2,
        }
    }
}

/// How a message died.
#[derive(Clone, Debug)]
pub(crate) struct Death {
    /// Not known of a message that an earlier run left: then its attempts tell.
    pub(crate) cause: Option<Cause>,
    pub(crate) reason: Option<Box<str>>,
}

/// A message that is to be moved to the dead letters.
#[derive(Debug)]
pub(crate) struct DyingMessage {
    pub(crate) place: Place,
    pub(crate) header: RecordHeader,
    pub(crate) pushed_at: PushTime,
    pub(crate) body: Body,
    pub(crate) death: Death,
}

/// What is dying: some 40 bytes and the reason for each.
#[derive(Debug, Default)]
pub(crate) struct Dying {
    /// Not yet among the dead letters, by Seq.
    waiting: BTreeMap<u64, Death>,
    /// In `dead/`, but not known to be durable there: with the Seq that it has there.
    moved: BTreeMap<u64, u64>,
    /// The same, by the Seq that they have there.
    moved_by_number: BTreeMap<u64, u64>,
    /// The Seqs in `dead/` of those that are settled here, which no sync has covered.
    unsynced: BTreeSet<u64>,
}

impl Dying {
    /// How many are not settled here.
    pub(crate) fn count(&self) -> u64 {
        to_u64(self.waiting.len() + self.moved.len())
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether there are some that were moved, and are not settled here for good.
    pub(crate) fn has_moved(&self) -> bool {
        !self.moved.is_empty() || !self.unsynced.is_empty()
    }

    pub(crate) fn has_any_in(&self, seqs: Range<u64>) -> bool {
        self.waiting.range(seqs.clone()).next().is_some() || self.moved.range(seqs).next().is_some()
    }

    pub(crate) fn has(&self, seq: u64) -> bool {
        self.waiting.contains_key(&seq) || self.moved.contains_key(&seq)
    }

    pub(crate) fn insert(&mut self, seq: u64, death: Death) {
        self.waiting.insert(seq, death);
    }

    /// It is settled, or lost.
    pub(crate) fn remove(&mut self, seq: u64) {
        if self.count() > 0 {
            self.waiting.remove(&seq);
            if let Some(there) = self.moved.remove(&seq) {
                self.moved_by_number.remove(&there);
            }
        }
    }

    /// Those with these numbers that wait to be moved are gone for good.
    pub(crate) fn forget(&mut self, seqs: &Range<u64>) {
        self.waiting.retain(|seq, _| !seqs.contains(seq));
    }

    /// Some of those behind `after` that wait to be moved.
    pub(crate) fn waiting_behind(&self, after: u64, most: usize) -> Vec<u64> {
        let behind = (Bound::Excluded(after), Bound::Unbounded);
        self.waiting.range(behind).map(|(seq, _)| *seq).take(most).collect()
    }

    pub(crate) fn death(&self, seq: u64) -> Option<Death> {
        self.waiting.get(&seq).cloned()
    }

    /// It has this Seq among the dead letters. False if it is not dying any more: it was found
    /// damaged meanwhile.
    pub(crate) fn move_to(&mut self, seq: u64, there: u64) -> bool {
        let was_waiting = self.waiting.remove(&seq).is_some();
        if was_waiting {
            self.moved.insert(seq, there);
            self.moved_by_number.insert(there, seq);
        }
        was_waiting
    }

    /// Some of those that were moved, with the Seqs that they have there: above `after`, and up to
    /// `there`.
    pub(crate) fn moved_between(&self, after: u64, there: u64, most: usize) -> Vec<(u64, u64)> {
        if after >= there {
            return Vec::new();
        }
        let numbers = self.moved_by_number.range(after + 1..=there);
        numbers.map(|(number, seq)| (*seq, *number)).take(most).collect()
    }

    /// One that was moved is settled here; the store is not synced.
    pub(crate) fn note_settled(&mut self, there: u64) {
        self.unsynced.insert(there);
    }

    /// All that are settled here are so for good.
    pub(crate) fn forget_unsynced(&mut self) {
        self.unsynced.clear();
    }

    /// The first Seq there whose message is not settled here for good; `u64::MAX` if there is none.
    pub(crate) fn first_moved(&self) -> u64 {
        let moved = self.moved_by_number.first_key_value().map_or(u64::MAX, |(there, _)| *there);
        moved.min(self.unsynced.first().copied().unwrap_or(u64::MAX))
    }
}
