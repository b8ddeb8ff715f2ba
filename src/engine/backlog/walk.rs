//! The walk over the stored messages, segment by segment: of `pop`, `iter`, `purge` and all others.
//!
//! Promises: meets every message that is not settled, in the order of Seqs, however segments come,
//! go and are compacted meanwhile. Stores nothing: what to do with damage is the caller's to say.

use super::cursor::Cursor;
use super::{Backlog, LostRecords, Met, Spot};
use crate::error::Result;
use crate::format::address::Index;
use crate::format::standing::Standing;
use crate::log::ReadSlot;
use crate::log::sealed::Located;

/// Slots passed over under one lock.
const SLOTS_A_STEP: u32 = 4096;

/// Slots read at a time, where the settled ones at the start are skipped.
const SLOTS_A_READ: u32 = 4096;

impl Backlog {
    /// Goes on from a cursor to the next message up to `last_seq` whose standing is wanted. Settled
    /// ones are passed over.
    pub(crate) fn walk(
        &self,
        cursor: &mut Cursor,
        last_seq: u64,
        wants: impl Fn(Standing) -> bool,
    ) -> Result<Met> {
        let run = self.run;
        for _ in 0..SLOTS_A_STEP {
            let Some(at) = self.resume(cursor)? else { return Ok(Met::End) };
            let index = cursor.index();
            let track = &self.tracks[at];
            let end_index = track.records().end_index(last_seq);
            if index >= end_index {
                match self.tracks.get(at + 1) {
                    Some(next) => *cursor = Cursor::start_of(next),
                    None => return Ok(Met::End),
                }
                continue;
            }
            // Not yet to be shown, though its segment is full already. A lower bound, where Seqs
            // have gaps: what is there is looked at again below.
            if track.first_seq() + u64::from(index) > last_seq {
                return Ok(Met::End);
            }
            if !cursor.has_skipped() && track.records().is_old() {
                return Ok(Met::OldSegment(at));
            }
            let spot = Spot { at, index };
            let status = track.status(index, run)?;
            let standing = status.standing;
            if standing.is_settled() {
                cursor.pass(status.slot.offset);
                continue;
            }
            let Some(seq) = status.seq else { return Ok(Met::Unnumbered(spot)) };
            if seq > last_seq {
                return Ok(Met::End);
            }
            if !wants(standing) {
                if standing == Standing::Unreadable {
                    return Ok(Met::BadSlot(spot));
                }
                cursor.pass(status.slot.offset);
                continue;
            }
            return Ok(match cursor.position().locate(track.map()?, status.slot, end_index) {
                Located::At(offset, header) => {
                    let said = (seq, status.slot, standing);
                    Met::Message(self.found(spot, said, offset, header))
                }
                Located::Lost { end_index, next } => {
                    let (indexes, offset) = (index..end_index, cursor.position().offset());
                    Met::Lost(LostRecords { at, indexes, offset, next })
                }
            });
        }
        Ok(Met::Tired)
    }

    /// Passes over settled slots at the start of an old segment, one step of them, which costs no
    /// map.
    pub(crate) fn skip_settled(&self, at: usize, cursor: &mut Cursor) -> Result<()> {
        let track = &self.tracks[at];
        let (mut index, mut previous) = (cursor.index(), None);
        let end = track.count().map_or(index, Index);
        let number = SLOTS_A_READ.min(end.since(index));
        let mut slots = track.segment().read_slots(index, number, track.base_time())?;
        let is_old = track.records().is_old();
        let is_over = slots.any(|ReadSlot { index: at, slot, .. }| {
            let Some(settled) = slot.filter(|slot| slot.is_settled(is_old)) else { return true };
            previous = settled.offset.map(|offset| (at, offset)).or(previous);
            index = at.next();
            false
        });
        cursor.skip_to(index, previous, is_over || index >= end);
        Ok(())
    }
}
