//! Settling all messages that wait.
//!
//! A walk from the first message to the last one that was there at the beginning, in steps under
//! the lock: what is pushed meanwhile stays, and so does what is in flight or dying.

use super::progress::Purge;
use super::{Dispatch, Whereabouts};
use crate::engine::backlog::cursor::Cursor;
use crate::engine::backlog::{Found, Spot};
use crate::engine::backlog::{LostRecords, Met};
use crate::error::Result;
use crate::format::slot::State;
use crate::format::standing::Standing;

/// Lost messages settled under one lock.
const HOLE: u32 = 16_384;
/// Messages settled under one lock.
const STEP: usize = 256;

impl Dispatch {
    /// Settles some of the messages that wait; false once none is left.
    pub(crate) fn purge_some(&mut self, purge: &mut Purge) -> Result<bool> {
        self.check_open()?;
        self.end_due();
        for _ in 0..STEP {
            let wants = |standing| !matches!(standing, Standing::Dying | Standing::Unreadable);
            match self.backlog.walk(&mut purge.cursor, purge.last_seq, wants)? {
                Met::Message(found) => {
                    if self.settle_waiting(&found)? {
                        purge.purged += 1;
                        self.counts.purged += 1;
                    }
                    purge.cursor.pass_found(&found);
                }
                Met::End => return Ok(false),
                Met::Tired => return Ok(true),
                met => {
                    self.pass_damage(met, &mut purge.cursor)?;
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// Takes a walk that settles past what it met besides messages: a segment of an earlier run is
    /// counted and entered, damage is settled.
    pub(super) fn pass_damage(&mut self, met: Met, cursor: &mut Cursor) -> Result<()> {
        match met {
            Met::Message(_) | Met::End | Met::Tired => {}
            // So that what is delayed or dying is known.
            Met::OldSegment(at) if !self.backlog.tracks()[at].is_counted() => {
                self.count_some_of(at)?;
            }
            Met::OldSegment(at) => self.backlog.skip_settled(at, cursor)?,
            Met::BadSlot(spot) => self.backlog.rebuild_slot(spot)?,
            Met::Unnumbered(spot) => {
                self.lose(spot, 0)?;
                cursor.pass(None);
            }
            Met::Lost(LostRecords { at, indexes, offset, next }) => {
                // A step of a long hole; the next one is found behind it again.
                let end_index = indexes.end.min(indexes.start.saturating_add(HOLE));
                let next = if end_index < indexes.end { offset } else { next };
                for index in indexes.start..end_index {
                    let spot = Spot { at, index };
                    // One that is in flight is in a consumer's hands, whole.
                    if !self.may_be_in_flight(spot)? {
                        self.lose(spot, offset)?;
                    }
                }
                cursor.pass_lost(end_index, next);
            }
        }
        Ok(())
    }

    /// Settles a message that a walk met, if it waits, ready or delayed; false if it does not.
    pub(super) fn settle_waiting(&mut self, found: &Found) -> Result<bool> {
        match self.whereabouts_of(found, true)? {
            Whereabouts::Ready | Whereabouts::Delayed(_) => {
                self.settle(found.spot, &found.place, State::Dead)
            }
            Whereabouts::Settled => {
                // Transient, and of an earlier run: it did not wait.
                self.settle(found.spot, &found.place, State::Dead).map(|_| false)
            }
            Whereabouts::InFlight | Whereabouts::Dying => Ok(false),
        }
    }
}
