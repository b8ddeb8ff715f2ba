//! A place in the log, by Seq: that of the first message that was never handed out in this run, or
//! that of a walk.
//!
//! Where it lies is only a hint: if its segment is no more, its Seq finds it again.

use super::found::FoundMessage;
use super::track::Track;
use super::tracks::Tracks;
use crate::error::Result;
use crate::format::address::{Index, Offset, Ordinal};
use crate::format::checkpoint::ConsumerOffset;
use crate::log::walk::Position;

/// Slots that are read at a time.
const SLOTS_A_STEP: usize = 4096;

/// A place in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    /// No message before this one is meant. What follows is where it lies, while its segment has
    /// this ordinal.
    seq: u64,
    ordinal: Ordinal,
    position: Position,
    /// Settled slots at the start of this old segment have been skipped.
    has_skipped: bool,
}

impl Cursor {
    /// Before everything.
    pub(crate) const START: Self =
        Self { seq: 0, ordinal: Ordinal::NONE, position: Position::START, has_skipped: false };

    /// Before the first message of a segment.
    pub(crate) fn start_of(track: &Track) -> Self {
        Self { seq: track.first_seq(), ordinal: track.ordinal(), ..Self::START }
    }

    /// Where CHECKPOINT says that what is unsettled begins, if that is a place in the first segment
    /// and the slots say the same. They are read, which costs 16 bytes a message and no map.
    pub(crate) fn hinted(tracks: &Tracks, hint: ConsumerOffset) -> Self {
        let first = tracks.iter().find(|track| track.count() != Some(0));
        let hinted = first.filter(|track| {
            let is_inside = track.count().is_some_and(|count| hint.index < count);
            track.ordinal() == hint.ordinal && is_inside
        });
        let Some(track) = hinted.filter(|track| is_settled_up_to(track, Index(hint.index))) else {
            return Self::START;
        };
        track.records().note_floor(Index(hint.index));
        let start = Self::start_of(track);
        let seq = start.seq.saturating_add(hint.index.into());
        Self { seq, position: Position::at(Index(hint.index)), ..start }
    }

    /// Before the first message of a segment from `seq` on.
    pub(super) fn in_track(track: &Track, seq: u64) -> Result<Self> {
        let start = Self::start_of(track);
        if seq <= start.seq {
            return Ok(start);
        }
        let position = Position::at(track.records().index_from(seq)?);
        Ok(Self { seq, position, ..start })
    }

    /// No message before this one is meant.
    #[inline]
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// Of the segment where it lies.
    #[inline]
    pub(crate) fn ordinal(&self) -> Ordinal {
        self.ordinal
    }

    /// Where it lies in its segment.
    #[inline]
    pub(crate) fn position(&self) -> &Position {
        &self.position
    }

    /// Whether settled slots at the start of this old segment have been skipped.
    #[inline]
    pub(crate) fn has_skipped(&self) -> bool {
        self.has_skipped
    }

    #[inline]
    pub(crate) fn index(&self) -> Index {
        self.position.index()
    }

    /// Passes over a message that needs no look. `offset`: of its record, if its slot tells. Where
    /// Seqs have gaps, over no more than its own.
    #[inline]
    pub(crate) fn pass(&mut self, offset: Option<Offset>) {
        self.position.pass(offset);
        self.seq += 1;
    }

    /// Passes over a message that was met.
    #[inline]
    pub(crate) fn pass_found(&mut self, found: &FoundMessage) {
        self.position.pass_record(found.place.offset, &found.header);
        self.seq = found.place.seq + 1;
    }

    /// Passes over so many messages that were met side by side. `end`: of the last record.
    #[inline]
    pub(crate) fn pass_messages(&mut self, messages: u32, end: Offset) {
        self.position.pass_records(messages, end);
        self.seq += u64::from(messages);
    }

    /// Passes over records that were not found. `offset`: where the next one is, or is sought from.
    pub(crate) fn pass_lost(&mut self, end_index: Index, offset: Offset) {
        self.seq += u64::from(end_index.max(self.index().next()) - self.index());
        self.position.pass_lost(end_index, offset);
    }

    /// On behind settled messages at the start of an old segment. `previous`: the last of them
    /// whose place is known. `is_over`: the one at `index` is not settled, or not of this segment.
    pub(super) fn skip_to(
        &mut self,
        index: Index,
        previous: Option<(Index, Offset)>,
        is_over: bool,
    ) {
        self.seq += u64::from(index - self.index());
        self.position.skip_to(index, previous);
        self.has_skipped = is_over;
    }
}

/// Whether all messages below `end` in a segment of an earlier run are settled. What cannot be read
/// is not.
fn is_settled_up_to(track: &Track, end: Index) -> bool {
    (0..end.0).step_by(SLOTS_A_STEP).map(Index).all(|first| {
        let number = end.since(first).min(u32::try_from(SLOTS_A_STEP).unwrap_or(u32::MAX));
        let slots = track.segment().read_slots(first, number, track.base_time());
        slots.is_ok_and(|mut slots| {
            slots.all(|slot| slot.slot.is_some_and(|slot| slot.is_settled(true)))
        })
    })
}
