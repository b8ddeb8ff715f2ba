//! How many segments of the log are mapped, and held open, at a time.
//!
//! Promises: no more segments are mapped than the options allow, but for the newest one, the one
//! that is read, and for as long as a payload is being copied. Does no I/O: maps above the limit
//! are handed out, to be dropped outside of the dispatch lock; what was stored through them is
//! synced by a later round, until which their descriptors stay open. The segment that was mapped
//! first goes first; no clock is asked.

use super::map_numbers::MapNumbers;
use super::track::Track;
use super::tracks::Tracks;
use crate::format::address::Ordinal;
use crate::log::Segment;
use crate::log::sealed::Mapped;
use std::sync::Arc;

/// What is known of the maps.
#[derive(Debug)]
pub(super) struct Maps {
    numbers: MapNumbers,
    /// How many were made at the last look.
    seen: u64,
    /// How many there may be.
    most: usize,
}

impl Maps {
    pub(super) fn new(most: usize) -> Self {
        Self { numbers: MapNumbers::default(), seen: 0, most }
    }

    pub(super) fn numbers(&self) -> &MapNumbers {
        &self.numbers
    }

    /// Whether maps were made since the last look. Costs a comparison.
    #[inline]
    pub(super) fn has_new(&self) -> bool {
        self.numbers.made() != self.seen
    }

    /// The maps above the limit. `reading`: the ordinal of the segment that is read.
    #[cold]
    pub(super) fn take_surplus(
        &mut self,
        tracks: &mut Tracks,
        reading: Ordinal,
    ) -> Vec<Arc<Mapped>> {
        self.seen = self.numbers.made();
        let newest = tracks.back().map(Track::ordinal);
        let is_free = |track: &&mut Track| {
            let ordinal = track.ordinal();
            track.records().is_mapped() && ordinal != reading && Some(ordinal) != newest
        };
        let mut mapped: Vec<&mut Track> = tracks.iter_mut().filter(is_free).collect();
        let too_many = mapped.len().saturating_sub(self.most);
        if too_many == 0 {
            return Vec::new();
        }
        mapped.sort_unstable_by_key(|track| track.records().map_number());
        mapped
            .into_iter()
            .take(too_many)
            .filter_map(|track| track.records_mut().take_map())
            .collect()
    }

    /// A sync begins of the segments above the limit whose descriptors are open only because of
    /// answers that no sync has covered.
    pub(super) fn begin_sync_of_held_open(&self, tracks: &mut Tracks) -> Vec<Arc<Segment>> {
        let is_held =
            |track: &&mut Track| track.answers().are_unsynced() && !track.records().is_mapped();
        let mapped = tracks.iter().filter(|track| track.records().is_mapped()).count();
        let mut held: Vec<&mut Track> = tracks.iter_mut().filter(is_held).collect();
        let too_many = (mapped + held.len()).saturating_sub(self.most);
        held.sort_unstable_by_key(|track| track.records().map_number());
        let held = held.into_iter().take(too_many).map(|track| {
            track.answers_mut().begin_sync();
            Arc::clone(track.segment())
        });
        held.collect()
    }

    /// Whether too many descriptors are held open: some have to be synced soon. Those that are
    /// being synced are open until the sync has ended.
    pub(super) fn holds_too_many(&self, tracks: &Tracks, factor: usize) -> bool {
        let is_open =
            |track: &&Track| !track.answers().are_durable() || track.records().is_mapped();
        tracks.iter().filter(is_open).count() > self.most.saturating_mul(factor)
    }
}
