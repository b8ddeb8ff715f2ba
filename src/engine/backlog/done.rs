//! The segments without an unsettled message that wait to be let go, in the order of the log.
//!
//! Promises: each is in one of the two lists, or busy, until it is taken out of the log. Only keeps
//! the lists: whether one may go, its track says.

use super::track::Track;
use crate::format::address::Ordinal;
use std::collections::BTreeSet;

/// Where a segment is in the log: its first Seq, and its ordinal.
type LogPlace = (u64, Ordinal);

/// Segments that are closed, and that nothing is done with but letting go.
#[derive(Debug, Default)]
pub(super) struct DoneSegments {
    synced: BTreeSet<LogPlace>,
    /// Those whose answers are to be synced first.
    unsynced: BTreeSet<LogPlace>,
}

impl DoneSegments {
    /// This one is done, and closed.
    pub(super) fn add(&mut self, track: &Track) {
        self.remove(track);
        let has_unsynced = track.answers().are_unsynced();
        let list = if has_unsynced { &mut self.unsynced } else { &mut self.synced };
        list.insert(place(track));
    }

    /// This one leaves the log.
    pub(super) fn remove(&mut self, track: &Track) {
        self.synced.remove(&place(track));
        self.unsynced.remove(&place(track));
    }

    pub(super) fn has(&self, track: &Track) -> bool {
        self.synced.contains(&place(track)) || self.unsynced.contains(&place(track))
    }

    pub(super) fn len(&self) -> usize {
        self.synced.len() + self.unsynced.len()
    }

    /// Those of which everything is synced.
    pub(super) fn synced(&self) -> impl Iterator<Item = Ordinal> {
        self.synced.iter().map(|&(_, ordinal)| ordinal)
    }

    /// The others.
    pub(super) fn unsynced(&self) -> impl Iterator<Item = Ordinal> {
        self.unsynced.iter().map(|&(_, ordinal)| ordinal)
    }

    /// A sync of all answers begins: those that it covers are busy.
    pub(super) fn begin_sync(&mut self) {
        self.unsynced.clear();
    }
}

fn place(track: &Track) -> LogPlace {
    (track.first_seq(), track.ordinal())
}
