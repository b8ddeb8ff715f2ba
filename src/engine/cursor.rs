//! The place of the first message that was never handed out in this run.
//!
//! Promises: says what is there, and stores nothing. Relies on the `deliver` lock.

use super::track::{Track, scheduled_for};
use crate::error::Result;
use crate::format::record;
use crate::format::segment::RECORDS_START;
use crate::format::slot::State;
use crate::leases::Place;
use crate::log::sealed::Located;

/// The first message that was never handed out in this run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    /// No message before this one is meant. What follows is where it lies, while its segment has this ordinal.
    pub(super) seq: u64,
    pub(super) ordinal: u64,
    pub(super) index: u32,
    pub(super) offset: u64,
    /// A settled record before it, if the record right before it was not read.
    pub(super) previous: Option<(u32, u64)>,
    /// Settled slots at the start of this old segment have been skipped.
    pub(super) has_skipped: bool,
}

impl Cursor {
    /// Before everything.
    pub(super) const START: Self = Self {
        seq: 0,
        ordinal: 0,
        index: 0,
        offset: RECORDS_START,
        previous: None,
        has_skipped: false,
    };

    pub(super) fn start_of(track: &Track) -> Self {
        Self { seq: track.first_seq, ordinal: track.ordinal(), ..Self::START }
    }

    /// The first message of a track from `seq` on.
    pub(super) fn in_track(track: &mut Track, seq: u64) -> Result<Self> {
        let start = Self::start_of(track);
        if seq <= start.seq {
            return Ok(start);
        }
        let index = track.index_from(seq)?;
        Ok(Self { seq, index, ..start })
    }

    /// What is at the cursor, in a track whose records are visible up to `end_index`. `run`: this one.
    #[expect(clippy::inline_always, reason = "measured: see `next`")]
    #[inline(always)]
    pub(super) fn look(&self, track: &mut Track, end_index: u32, run: Run) -> Result<Seen> {
        let Self { ordinal, index, offset, previous, .. } = *self;
        let (base_time, first_seq, has_gaps) = (track.base_time, track.first_seq, track.has_gaps);
        let mapped = track.map()?;
        let plain = Some(first_seq + u64::from(index));
        let seq = if has_gaps { mapped.seq(index, first_seq)? } else { plain };
        let Some(slot) = mapped.slot(index)? else { return Ok(Seen::BadSlot) };
        let Some(seq) = seq else { return Ok(Seen::Lost { end_index: index + 1, next: offset }) };
        let is_old = run.is_old(seq);
        if slot.is_settled(is_old) {
            return Ok(Seen::Settled(slot.offset));
        }
        if slot.state == State::Dying {
            return Ok(Seen::Elsewhere(slot.offset));
        }
        let delay = mapped.delay(index, base_time)?;
        if scheduled_for(delay, is_old, run.start_time).is_some() {
            return Ok(Seen::Elsewhere(slot.offset));
        }
        let located = mapped.locate(slot, index, end_index, offset, previous);
        Ok(match located {
            Located::At(offset, header) if header.flags.is_transient() && is_old => {
                Seen::Outlived(offset)
            }
            Located::At(offset, header) => {
                let is_transient = header.flags.is_transient();
                let (attempts, bytes) = (slot.attempts, header.bytes());
                let place = Place { seq, ordinal, index, offset, attempts, bytes, is_transient };
                Seen::Owed(place, header)
            }
            Located::Lost { end_index, next } => Seen::Lost { end_index, next },
        })
    }
}

/// A run of the queue: when it began, and with which number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) start_time: u64,
    /// All messages before this one are of earlier runs.
    pub(super) first_seq: u64,
}

impl Run {
    /// Whether a message is of an earlier run.
    pub(super) fn is_old(self, seq: u64) -> bool {
        seq < self.first_seq
    }
}

/// What is at the cursor.
pub(super) enum Seen {
    Owed(Place, record::Header),
    /// Settled; its offset, if its slot has it.
    Settled(Option<u64>),
    /// Owed, and kept track of among the delayed or the dying; its offset, if its slot has it.
    Elsewhere(Option<u64>),
    /// A transient message of an earlier run.
    Outlived(u64),
    BadSlot,
    /// Owed or not, its record and those up to `end_index` are unreadable.
    Lost {
        end_index: u32,
        next: u64,
    },
}
