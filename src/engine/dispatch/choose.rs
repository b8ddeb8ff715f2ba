//! Choosing the message that is handed out next.
//!
//! Promises: messages that were given back come first, by Seq; then those whose time has come, by
//! their times; then those that were never handed out, in push order. No clock is read while
//! nothing has a time.
//!
//! This is the long way, which knows all that may come first. Plain messages that nobody has
//! touched mostly go the short one: see `short`.

use super::Dispatch;
use super::dying::{Cause, Death};
use super::exchange::{Choice, Dropped, Leasing, Next, WaitsAt};
use super::repair::{look_up, repair_delay};
use crate::engine::backlog::{FoundMessage, Met, Spot};
use crate::error::Result;
use crate::format::address::Offset;
use crate::format::slot::State;
use crate::format::standing::Standing;
use crate::leases::Place;

/// Messages looked at, and given up, under one lock.
const LOOKS_A_STEP: u32 = 4096;

impl Dispatch {
    /// Leases the next message up to `visible`, if one is ready and not as many are in flight as
    /// may be.
    pub(crate) fn lease_next(&mut self, visible: u64) -> Result<Leasing> {
        self.lease_next_but(visible, true, |_| false)
    }

    /// The same, but not a message that was handed out before and that the caller `has`.
    /// `ends_due`: leases and delays that are over are ended first.
    pub(crate) fn lease_next_but(
        &mut self,
        visible: u64,
        ends_due: bool,
        has: impl Fn(u64) -> bool,
    ) -> Result<Leasing> {
        self.check_open()?;
        let now = self.deliveries.coarse_time();
        let has_more_due = ends_due && self.deliveries.end_due_at(now);
        if self.deliveries.is_full() {
            return Ok(if has_more_due { Leasing::Again } else { Leasing::Nothing });
        }
        let next = match self.choose(visible)? {
            Choice::Next(next) => next,
            // What is over, and not ended yet, may be ready then.
            Choice::Nothing if has_more_due => return Ok(Leasing::Again),
            Choice::Nothing => return Ok(Leasing::Nothing),
            Choice::Again => return Ok(Leasing::Again),
        };
        let FoundMessage { spot, ref place, .. } = next.found;
        // One whose last attempt ended with its process.
        if self.ledger().policy().is_last(place.attempts) {
            let death = Death { cause: Some(Cause::Attempts), reason: None };
            self.ledger_mut().die(spot, place, death)?;
            self.leave_settled(&next);
            return Ok(Leasing::Again);
        }
        if place.attempts > 0 && has(place.seq) {
            return Ok(Leasing::Nothing);
        }
        let leased = self.deliveries.lease(&next, now)?;
        self.leave_leased(&next);
        Ok(Leasing::Leased(leased))
    }

    /// The next message that is ready. It stays where it is until it is leased or settled.
    pub(super) fn choose(&mut self, visible: u64) -> Result<Choice> {
        if self.ledger().places().has_front() {
            let front = self.choose_front(visible)?;
            if !matches!(front, Choice::Nothing) {
                return Ok(front);
            }
        }
        self.choose_at_cursor(visible)
    }

    /// The next of those that were given back, or whose time has come.
    fn choose_front(&mut self, visible: u64) -> Result<Choice> {
        for _ in 0..LOOKS_A_STEP {
            if let Some(place) = self.ledger().places().first_returned(visible) {
                if let Some(next) = self.look_again(place)? {
                    return Ok(Choice::Next(next));
                }
                self.ledger_mut().places_mut().leave_returned(place.seq);
                continue;
            }
            let first = self.ledger().places().schedule().first_due(visible);
            let Some((due, seq)) = first else { return Ok(Choice::Nothing) };
            if let Some(found) = look_up(self.ledger_mut(), seq)? {
                return Ok(Choice::Next(Next { found, from: WaitsAt::Schedule(due) }));
            }
            self.ledger_mut().places_mut().leave_schedule(due, seq);
        }
        Ok(Choice::Again)
    }

    /// A message that was given back; `None` if it is settled, or got damaged meanwhile.
    fn look_again(&mut self, place: Place) -> Result<Option<Next>> {
        let ledger = self.ledger_mut();
        let found = ledger.backlog().find_place(place)?;
        let Some((spot, place)) = found else { return Ok(None) };
        let status = ledger.status(spot)?;
        if status.standing.is_settled() {
            ledger.counts_mut().duplicated += 1;
            return Ok(None);
        }
        let mapped = ledger.backlog().track_at(spot.at).map()?;
        let Some(header) = mapped.header(place.offset, place.index) else {
            ledger.lose(spot, place.offset)?;
            return Ok(None);
        };
        let said = (place.seq, status.slot, status.standing);
        let found = ledger.backlog().found(spot, said, place.offset, header);
        // The attempts are those of memory: what could not be stored counts as well.
        let found = FoundMessage { place, ..found };
        Ok(Some(Next { found, from: WaitsAt::Returned }))
    }

    /// The next message that was never handed out in this run. Leaves the cursor at it.
    fn choose_at_cursor(&mut self, visible: u64) -> Result<Choice> {
        for _ in 0..LOOKS_A_STEP {
            let ledger = self.ledger_mut();
            let mut cursor = *ledger.places().cursor();
            // What is delayed or dying is known elsewhere.
            let is_ready = |standing| standing == Standing::Ready;
            let met = ledger.backlog().walk(&mut cursor, visible, is_ready);
            *ledger.places_mut().cursor_mut() = cursor;
            match met? {
                Met::Message(found) if found.standing == Standing::Ready => {
                    let (spot, offset) = (found.spot, found.place.offset);
                    if may_have_had_delay(&found) && self.pass_if_elsewhere(spot, offset)? {
                        return Ok(Choice::Again);
                    }
                    return Ok(Choice::Next(Next { found, from: WaitsAt::Cursor }));
                }
                // Transient, and of an earlier run.
                Met::Message(found) => {
                    ledger.settle(found.spot, &found.place, State::Dead)?;
                    ledger.places_mut().cursor_mut().pass_found(&found);
                }
                Met::End => return Ok(Choice::Nothing),
                Met::Tired => return Ok(Choice::Again),
                // Before a message of an old segment is handed out, all slots of it are counted,
                // so that those that are delayed or dying are known, and known once.
                met => {
                    self.pass_damage(met, &mut cursor)?;
                    *self.ledger_mut().places_mut().cursor_mut() = cursor;
                    return Ok(Choice::Again);
                }
            }
        }
        Ok(Choice::Again)
    }

    /// Passes over a message that is in another place, though its slot does not say so any more;
    /// false if it is in no other place.
    #[cold]
    fn pass_if_elsewhere(&mut self, spot: Spot, offset: Offset) -> Result<bool> {
        let is_elsewhere = repair_delay(self.ledger_mut(), spot)?;
        if is_elsewhere {
            self.ledger_mut().places_mut().cursor_mut().pass(Some(offset));
        }
        Ok(is_elsewhere)
    }

    /// The message that was chosen is leased: it is no longer where it waited, and its last holder,
    /// if its lease ran out, has it no more.
    fn leave_leased(&mut self, next: &Next) {
        let seq = next.found.place.seq;
        let places = self.ledger_mut().places_mut();
        places.leases_mut().end_expired(seq);
        match next.from {
            WaitsAt::Cursor => places.cursor_mut().pass_found(&next.found),
            WaitsAt::Returned => {
                places.leave_returned(seq);
            }
            WaitsAt::Schedule(due) => {
                places.leave_schedule(due, seq);
                self.deliveries.end_delay(next.found.spot);
            }
        }
        self.ledger_mut().note_head_changed();
    }

    /// The message that was chosen is settled, or dying.
    pub(super) fn leave_settled(&mut self, next: &Next) {
        if next.from == WaitsAt::Cursor {
            self.ledger_mut().places_mut().cursor_mut().pass_found(&next.found);
        }
    }

    /// Drops the message that would be handed out next, or else the next delayed one.
    pub(crate) fn drop_next(&mut self, published: u64) -> Result<Dropped> {
        let is_new = match self.choose(published)? {
            Choice::Next(next) => {
                let is_new = self.ledger_mut().settle_unread(&next.found)?;
                self.leave_settled(&next);
                is_new
            }
            Choice::Again => false,
            Choice::Nothing => {
                let ledger = self.ledger_mut();
                let Some((due, seq)) = ledger.places().schedule().first(published) else {
                    return Ok(Dropped::None);
                };
                let found = look_up(ledger, seq)?;
                let is_new = found.map_or(Ok(false), |found| ledger.settle_unread(&found))?;
                ledger.places_mut().leave_schedule(due, seq);
                is_new
            }
        };
        self.ledger_mut().counts_mut().dropped += u64::from(is_new);
        Ok(if is_new { Dropped::One } else { Dropped::Again })
    }
}

/// Whether the slot of a message may have had a delay: it was given back, or pushed with one.
#[inline]
fn may_have_had_delay(found: &FoundMessage) -> bool {
    found.place.attempts > 0 || found.header.flags.has_extensions()
}
