//! What compaction does under the `deliver` lock: to see which segments are worth it, and to put a copy in the place
//! of what it was made from.
//!
//! Promises: the numbers of what is owed, leased and settled are the same before and after; whoever knows a message
//! by its place finds it again by its Seq. Relies on `compact` for everything that takes time.

use super::compact::{Haste, SOON};
use super::deliver::Deliver;
use super::supply::FIRST_SEGMENT;
use super::track::Track;
use crate::clock;
use crate::compaction::plan::Piece;
use crate::compaction::run::Finding;
use crate::error::{Error, Result};
use crate::format::slot::{Slot, State};
use crate::log::merge::Source;
use crate::log::sealed::Mapped;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A segment of which no more than one part in so many is owed is cheap to copy.
const CHEAP_PART: u64 = 16;

/// Slots of a source that were stored to since it was copied.
pub(super) struct Change {
    pub(super) mapped: Arc<Mapped>,
    pub(super) first_seq: u64,
    pub(super) base_time: u64,
    pub(super) indexes: Vec<u32>,
}

impl Track {
    /// It is looked at now: since when has nothing been settled in it?
    fn look(&mut self, now: u64) {
        if self.settled != self.outlook.settled {
            (self.outlook.settled, self.outlook.since) = (self.settled, now);
        }
        self.outlook.tell_at = self.settled + 1;
    }
}

impl Deliver {
    /// The tracks as the plan sees them, at this time. Idle is what had nothing settled for so many milliseconds.
    pub(super) fn pieces(
        &mut self,
        haste: Haste,
        now: u64,
        idle: u64,
        is_unsynced: impl Fn(u64) -> bool,
    ) -> Vec<Piece> {
        let (cursor, newest) = (self.cursor.seq, self.tracks.len().saturating_sub(1));
        let soon = clock::millis(SOON).min(idle);
        let pieces = self.tracks.iter_mut().enumerate().map(|(at, track)| {
            let size = track.segment.header.size;
            let is_whole = at < newest
                && track.count.is_some()
                && track.is_counted()
                && track.changed.is_none()
                && !track.outlook.has_sources
                && (haste == Haste::Now || track.outlook.not_before <= now)
                && !is_unsynced(track.ordinal());
            if !is_whole {
                return Piece { size, record_bytes: 0, records: 0, is_free: false, starts: false };
            }
            track.look(now);
            let records = u64::from(track.count.unwrap_or(0).saturating_sub(track.settled));
            let record_bytes = if records == 0 { 0 } else { track.live_record_bytes(0) };
            // Nobody is about to take what is left, or it is next to nothing.
            let is_passed = track.end_seq(0) <= cursor || track.is_old;
            let is_cheap = is_passed && record_bytes <= size / CHEAP_PART;
            let needed = if is_cheap { soon } else { idle };
            let is_free = match haste {
                Haste::WhenIdle => now.saturating_sub(track.outlook.since) >= needed,
                Haste::Now => true,
                Haste::Small => size <= FIRST_SEGMENT,
            };
            let starts = track.outlook.starts_copy;
            Piece { size, record_bytes, records, is_free, starts }
        });
        pieces.collect()
    }

    /// Which slots of the sources were stored to since this was asked last.
    pub(super) fn take_changes(&mut self, sources: &[Source]) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for source in sources {
            let at = self.position(source.segment.header.ordinal, source.first_seq);
            let Some(track) = at.and_then(|at| self.tracks.get_mut(at)) else { continue };
            let indexes = track.changed.replace(Vec::new()).unwrap_or_default();
            if !indexes.is_empty() {
                let mapped = Arc::clone(track.map()?);
                let (first_seq, base_time) = (source.first_seq, source.base_time);
                changes.push(Change { mapped, first_seq, base_time, indexes });
            }
        }
        Ok(changes)
    }

    /// Puts a copy in the place of its sources, which it gives back. Places that name a source are looked up
    /// anew when they are needed.
    pub(super) fn replace_tracks(&mut self, sources: &[Source], mut copy: Track) -> Vec<Track> {
        let sources: BTreeSet<u64> =
            sources.iter().map(|source| source.segment.header.ordinal).collect();
        let is_source = |track: &Track| sources.contains(&track.ordinal());
        let at = self.tracks.iter().position(is_source).unwrap_or(self.tracks.len());
        let (removed, kept): (Vec<Track>, Vec<Track>) =
            std::mem::take(&mut self.tracks).into_iter().partition(is_source);
        self.tracks = kept.into();
        let owed = |track: &Track| track.count.unwrap_or(0).saturating_sub(track.settled);
        let before: u32 = removed.iter().map(owed).sum();
        debug_assert_eq!(before, owed(&copy), "what is owed is copied, and nothing else");
        copy.leased = removed.iter().map(|track| track.leased).sum();
        self.tracks.insert(at, copy);
        // The next sync of answers covers the copy.
        self.changes += 1;
        removed
    }

    /// Settles what copying met, unless it is settled already.
    pub(super) fn settle_finding(&mut self, finding: Finding) -> Result<()> {
        let ordinal = match finding {
            Finding::Lost { ordinal, .. }
            | Finding::BadSlot { ordinal, .. }
            | Finding::Outlived { ordinal, .. } => ordinal,
        };
        let at = self.tracks.iter().position(|track| track.ordinal() == ordinal);
        let Some(at) = at else { return Ok(()) };
        match finding {
            Finding::Lost { from, to, offset, .. } => {
                (from..to).try_for_each(|index| self.lose_copied(at, index, offset))
            }
            Finding::BadSlot { index, .. } => match self.tracks[at].map()?.slot(index)? {
                None => self.rebuild_slot(at, index),
                Some(_) => Ok(()),
            },
            Finding::Outlived { index, offset, .. } => {
                let slot = self.tracks[at].map()?.slot(index)?.unwrap_or(Slot::UNTOUCHED);
                if slot.is_settled(true) && slot.state != State::Transient {
                    return Ok(());
                }
                self.settle_silently(at, index, offset, State::Dead)
            }
        }
    }

    /// A message is damaged: it is lost, wherever it waits. One that may be in flight, with a copy of its payload
    /// in somebody's hands, is not.
    fn lose_copied(&mut self, at: usize, index: u32, offset: u64) -> Result<()> {
        let slot = self.tracks[at].map()?.slot(index)?;
        let is_out =
            slot.is_some_and(|slot| [State::Delivered, State::Transient].contains(&slot.state));
        if is_out && self.tracks[at].leased > 0 {
            let path = self.tracks[at].segment.path.clone();
            let reason = "a message that may be in flight is damaged; once it is answered, its segment can be \
                          compacted";
            return Err(Error::Corrupt { operation: "compact", path, offset, reason });
        }
        if let Some(seq) = self.tracks[at].seq(index)? {
            self.returned.remove(&seq);
            self.leases.end_expired(seq);
        }
        self.lose_if_owed(at, index, offset)
    }
}
