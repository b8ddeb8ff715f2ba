//! The place of the first message that was never handed out in this run.
//!
//! Promises: says what is there, and stores nothing. Relies on the `deliver` lock.

use super::track::{Located, Track, scheduled_for};
use crate::error::Result;
use crate::format::record;
use crate::format::segment::RECORDS_START;
use crate::format::slot::State;
use crate::leases::Place;

/// The first message that was never handed out in this run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub(super) ordinal: u64,
    pub(super) index: u32,
    pub(super) offset: u64,
    /// A settled record before it, if the record right before it was not read.
    pub(super) previous: Option<(u32, u64)>,
    /// Settled slots at the start of this old segment have been skipped.
    pub(super) has_skipped: bool,
}

impl Cursor {
    pub(super) fn start_of(ordinal: u64) -> Self {
        Self { ordinal, index: 0, offset: RECORDS_START, previous: None, has_skipped: false }
    }

    /// What is at the cursor, in a track whose records are visible up to `end_index`. `start_time`: of
    /// this run.
    #[expect(clippy::inline_always, reason = "measured: see `next`")]
    #[inline(always)]
    pub(super) fn look(&self, track: &mut Track, end_index: u32, start_time: u64) -> Result<Seen> {
        let Self { ordinal, index, offset, previous, .. } = *self;
        let (is_old, seq) = (track.is_old, track.first_seq + u64::from(index));
        let base_time = track.base_time;
        let mapped = track.map()?;
        let Some(slot) = mapped.slot(index)? else { return Ok(Seen::BadSlot) };
        if slot.is_settled(is_old) {
            return Ok(Seen::Settled(slot.offset));
        }
        if slot.state == State::Dying {
            return Ok(Seen::Elsewhere(slot.offset));
        }
        let delay = mapped.delay(index, base_time)?;
        if scheduled_for(delay, is_old, start_time).is_some() {
            return Ok(Seen::Elsewhere(slot.offset));
        }
        let located = Track::locate(mapped, slot, index, end_index, offset, previous);
        Ok(match located {
            Located::At(offset, header) if header.flags.is_transient() && is_old => {
                Seen::Outlived(offset)
            }
            Located::At(offset, header) => {
                let is_transient = header.flags.is_transient();
                let attempts = slot.attempts;
                Seen::Owed(Place { seq, ordinal, index, offset, attempts, is_transient }, header)
            }
            Located::Lost { end_index, next } => Seen::Lost { end_index, next },
        })
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
