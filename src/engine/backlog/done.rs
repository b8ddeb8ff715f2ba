//! The segments without an unsettled message that wait to be let go, in the order of the log.
//!
//! Promises: each is in one of the two lists, or busy, until it is taken out of the log. Only keeps
//! the lists: whether one may go, its track says.

use super::log_place::LogPlace;
use super::track::Track;
use std::collections::BTreeSet;

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
    pub(super) fn synced(&self) -> impl Iterator<Item = LogPlace> {
        self.synced.iter().copied()
    }

    /// The others.
    pub(super) fn unsynced(&self) -> impl Iterator<Item = LogPlace> {
        self.unsynced.iter().copied()
    }

    /// A sync of all answers begins: those that it covers are busy.
    pub(super) fn begin_sync(&mut self) {
        self.unsynced.clear();
    }
}

fn place(track: &Track) -> LogPlace {
    LogPlace { first_seq: track.first_seq(), ordinal: track.ordinal() }
}
