//! How many segments of the log are mapped, and held open, at a time.
//!
//! Promises: no more segments are mapped than the options allow, but for the newest one, the one
//! that is read, and for as long as a payload is being copied. Does no I/O: maps above the limit
//! leave their tracks, to be given up outside of the dispatch lock; what was stored through them is
//! synced by a later round, until which their descriptors stay open. The segment that was mapped
//! first goes first; no clock is asked.

use super::activity::Activity;
use super::track::Track;
use super::tracks::Tracks;
use crate::format::address::Ordinal;
use crate::log::Segment;
use std::sync::Arc;

/// Maps that the background gives up ahead of need: so many, and one in so many of the limit.
const MOST_AHEAD: usize = 2;
const PART_AHEAD: usize = 8;

/// What is known of the maps.
#[derive(Debug)]
pub(super) struct Maps {
    activity: Activity,
    /// How many were made at the last look.
    seen: u64,
    /// How many there may be.
    most: usize,
}

impl Maps {
    pub(super) fn new(most: usize) -> Self {
        Self { activity: Activity::new(most), seen: 0, most }
    }

    pub(super) fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Whether maps were made since the last look. Costs a comparison.
    #[inline]
    pub(super) fn has_new(&self) -> bool {
        self.activity.maps_made() != self.seen
    }

    /// Takes maps from their tracks: those above the limit; if there is a background, a few more,
    /// so that it has given them up when the next ones are made. Tells how many of those that left
    /// are above the limit, also of those that are about to go. `reading`: the ordinal of the
    /// segment that is read.
    #[cold]
    pub(super) fn unmap_surplus(
        &mut self,
        tracks: &mut Tracks,
        reading: Ordinal,
        has_worker: bool,
    ) -> usize {
        self.seen = self.activity.maps_made();
        let newest = tracks.back().map(Track::ordinal);
        let is_free = |track: &&Track| {
            let ordinal = track.ordinal();
            track.records().is_mapped() && ordinal != reading && Some(ordinal) != newest
        };
        let mapped = numbered(tracks.iter_busy().filter(is_free));
        let ahead = if has_worker { MOST_AHEAD.min(self.most / PART_AHEAD) } else { 0 };
        let kept = mapped.len().min(self.most - ahead);
        mapped[..mapped.len() - kept].iter().for_each(|&(_, ordinal)| tracks.unmap(ordinal));
        (kept + tracks.left_maps()).saturating_sub(self.most)
    }

    /// A sync begins of the segments above the limit whose descriptors are open only because of
    /// answers that no sync has covered.
    pub(super) fn begin_sync_of_held_open(&self, tracks: &mut Tracks) -> Vec<Arc<Segment>> {
        let is_held = |track: &&Track| track.answers().hold_open() && !track.records().is_mapped();
        let mapped = tracks.iter_busy().filter(|track| track.records().is_mapped()).count();
        let held = numbered(tracks.iter_busy().filter(is_held));
        let too_many = (mapped + held.len()).saturating_sub(self.most);
        let held = held.into_iter().take(too_many).filter_map(|(_, ordinal)| {
            let track = tracks.of_segment(ordinal)?;
            track.answers_mut().begin_sync();
            Some(Arc::clone(track.segment()))
        });
        held.collect()
    }

    /// Whether too many descriptors are held open: some have to be synced soon. Those that are
    /// being synced are open until the sync has ended.
    pub(super) fn holds_too_many(&self, tracks: &Tracks, factor: usize) -> bool {
        let is_open = |track: &&Track| track.answers().hold_open() || track.records().is_mapped();
        tracks.iter_busy().filter(is_open).count() > self.most.saturating_mul(factor)
    }
}

/// Segments with the numbers of their maps, the one that was mapped first at the front.
fn numbered<'a>(tracks: impl Iterator<Item = &'a Track>) -> Vec<(u64, Ordinal)> {
    let mut numbered: Vec<_> =
        tracks.map(|track| (track.records().map_number(), track.ordinal())).collect();
    numbered.sort_unstable();
    numbered
}
