//! How many files are mapped, and held open, at a time.
//!
//! Promises: no more segments are mapped than the options allow, but for the newest, the one that is read, and
//! for as long as a payload is being copied; what is unmapped for that was synced before its descriptor was closed,
//! so that no error of writing back is missed. Relies on the `deliver` lock. Nobody asks for the time: the segment
//! goes that was mapped first.

use super::deliver::Deliver;
use super::track::Track;
use crate::log::Segment;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers the maps that were made for one queue.
pub(super) type Tickets = Arc<AtomicU64>;

/// What is known of the maps.
#[derive(Debug, Default)]
pub(super) struct Maps {
    pub(super) tickets: Tickets,
    /// How many were made when it was last looked.
    seen: u64,
}

impl Maps {
    /// How many maps were made.
    pub(super) fn made(&self) -> u64 {
        // Relaxed: as in `next_ticket`.
        self.tickets.load(Ordering::Relaxed)
    }
}

/// The number of a new map.
pub(super) fn next_ticket(tickets: &Tickets) -> u64 {
    // Relaxed: the `deliver` lock orders it.
    tickets.fetch_add(1, Ordering::Relaxed)
}

impl Deliver {
    /// Unmaps what was mapped first, if too much is. To be called often: costs a comparison where nothing was mapped.
    #[inline]
    pub(super) fn mind_maps(&mut self) {
        let made = self.maps.made();
        if made != self.maps.seen {
            self.maps.seen = made;
            self.unmap_some();
        }
    }

    /// Segments beyond those that may be open, of which only answers that no sync has covered keep the descriptor:
    /// the caller syncs them.
    pub(super) fn take_held_open(&mut self) -> Vec<Arc<Segment>> {
        let is_held = |track: &&mut Track| track.is_dirty && track.mapped.is_none();
        let mut held: Vec<&mut Track> = self.tracks.iter_mut().filter(is_held).collect();
        let too_many = held.len().saturating_sub(self.policy.most_maps);
        held.sort_unstable_by_key(|track| track.mapped_at);
        let held = held.into_iter().take(too_many).map(|track| {
            track.is_dirty = false;
            Arc::clone(&track.segment)
        });
        held.collect()
    }

    #[cold]
    fn unmap_some(&mut self) {
        let (reading, newest) = (self.cursor.ordinal, self.tracks.back().map(Track::ordinal));
        let is_free = |track: &&mut Track| {
            let ordinal = track.ordinal();
            track.mapped.is_some() && ordinal != reading && Some(ordinal) != newest
        };
        let mut mapped: Vec<&mut Track> = self.tracks.iter_mut().filter(is_free).collect();
        let too_many = mapped.len().saturating_sub(self.policy.most_maps);
        mapped.sort_unstable_by_key(|track| track.mapped_at);
        for track in mapped.into_iter().take(too_many) {
            track.mapped = None;
            // Its records may not be synced either. Should it fail, it stays open, and the next round of syncs
            // tells.
            if track.segment.sync().is_ok() {
                track.is_dirty = false;
                track.segment.release();
            }
        }
    }
}
