//! Choosing the message that is handed out next, and leasing it.
//!
//! Promises: messages that were given back come first, by Seq; then those whose time has come, by
//! their times; then those that were never handed out, in push order. The attempt is stored before
//! the message is handed out. No clock is read while nothing has a time.
//!
//! What is on the way of every `pop` is inlined into one function: handed from one to the next by
//! value, these structs would be stored and loaded again, at 20 ns a message
//! (`cargo bench --bench pop`).

#![expect(clippy::inline_always, reason = "measured: see above")]

use super::exchange::{Body, Choice, Front, Leased, Leasing, Next, unsettled_state};
use super::{Dispatch, Measure};
use crate::engine::backlog::Found;
use crate::engine::backlog::Met;
use crate::engine::dispatch::dying::{Cause, Death};
use crate::error::Result;
use crate::format::slot::{MAX_ATTEMPTS, State};
use crate::format::standing::Standing;
use crate::leases::Place;

/// Slots passed over, and messages given up, under one lock.
const STEP: u32 = 4096;

impl Dispatch {
    /// Leases the next message up to `visible`, if one is ready and not as many are in flight as
    /// may be.
    pub(crate) fn lease_next(&mut self, visible: u64) -> Result<Leasing> {
        self.check_open()?;
        let now = self.coarse_time();
        let has_more_due = self.end_due_at(now);
        if self.is_full() {
            return Ok(if has_more_due { Leasing::Again } else { Leasing::Nothing });
        }
        let next = match self.choose(visible)? {
            Choice::Next(next) => next,
            Choice::Nothing => return Ok(Leasing::Nothing),
            Choice::Again => return Ok(Leasing::Again),
        };
        // One whose last attempt ended with its process.
        if self.policy.is_last(next.found.place.attempts) {
            self.die_of(&next, Cause::Attempts)?;
            return Ok(Leasing::Again);
        }
        let leased = self.lease(&next, now)?;
        self.leave_front(&next);
        Ok(Leasing::Leased(leased))
    }

    /// Whether as many are in flight as may be.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.leases.count() >= self.policy.max_in_flight
    }

    /// The coarse clock, if anything here has a time.
    #[inline]
    pub(super) fn coarse_time(&self) -> Option<u64> {
        let has_times =
            self.schedule.first_time().is_some() || self.leases.next_deadline().is_some();
        (has_times || self.policy.has_times).then(|| self.clock.coarse())
    }

    /// The next message that is ready. It stays where it is until it is leased or settled.
    #[inline(always)]
    pub(crate) fn choose(&mut self, visible: u64) -> Result<Choice> {
        if !self.returned.is_empty() || self.schedule.first_due().is_some() {
            let front = self.choose_front(visible)?;
            if !matches!(front, Choice::Nothing) {
                return Ok(front);
            }
        }
        self.choose_at_cursor(visible)
    }

    /// The next of those that were given back, or whose time has come.
    fn choose_front(&mut self, visible: u64) -> Result<Choice> {
        for _ in 0..STEP {
            let first = self.returned.first_key_value().map(|(_, &place)| place);
            if let Some(place) = first {
                if let Some(next) = self.look_again(place)? {
                    return Ok(Choice::Next(next));
                }
                self.returned.remove(&place.seq);
                continue;
            }
            let Some((due, seq)) = self.schedule.first_due() else { return Ok(Choice::Nothing) };
            if seq > visible {
                // Held back: it waits for its message to be settled in another queue.
                return Ok(Choice::Nothing);
            }
            if let Some(found) = self.look_up(seq)? {
                return Ok(Choice::Next(Next { found, from: Front::Schedule(due) }));
            }
            self.schedule.remove(due, seq);
        }
        Ok(Choice::Again)
    }

    /// A message that was given back; `None` if it is settled, or got damaged meanwhile.
    fn look_again(&mut self, place: Place) -> Result<Option<Next>> {
        let Some((spot, place)) = self.backlog.find_place(place)? else { return Ok(None) };
        let status = self.status(spot)?;
        if status.standing.is_settled() {
            self.counts.duplicated += 1;
            return Ok(None);
        }
        let mapped = self.backlog.track_at(spot.at).map()?;
        let Some(header) = mapped.header(place.offset, place.index) else {
            self.lose(spot, place.offset)?;
            return Ok(None);
        };
        let found = self.backlog.found(
            spot,
            (place.seq, status.slot, status.standing),
            place.offset,
            header,
        );
        // The attempts are those of memory: what could not be stored counts as well.
        let found = Found { place, ..found };
        Ok(Some(Next { found, from: Front::Returned }))
    }

    /// The next message that was never handed out in this run. Leaves the cursor at it.
    #[inline(always)]
    fn choose_at_cursor(&mut self, visible: u64) -> Result<Choice> {
        for _ in 0..STEP {
            let mut cursor = self.cursor;
            // What is delayed or dying is known elsewhere.
            let is_ready = |standing| standing == Standing::Ready;
            let met = self.backlog.walk(&mut cursor, visible, is_ready);
            self.cursor = cursor;
            match met? {
                Met::Message(found) if found.standing == Standing::Ready => {
                    return Ok(Choice::Next(Next { found, from: Front::Cursor }));
                }
                // Transient, and of an earlier run.
                Met::Message(found) => {
                    self.settle(found.spot, &found.place, State::Dead)?;
                    self.cursor.pass_found(&found);
                }
                Met::End => return Ok(Choice::Nothing),
                Met::Tired => return Ok(Choice::Again),
                Met::OldSegment(at) => {
                    // Before a message of it is handed out, all of its slots are counted, so that
                    // those that are delayed or dying are known, and known once.
                    self.pass_damage(Met::OldSegment(at), &mut cursor)?;
                    self.cursor = cursor;
                    return Ok(Choice::Again);
                }
                met => {
                    self.pass_damage(met, &mut cursor)?;
                    self.cursor = cursor;
                    return Ok(Choice::Again);
                }
            }
        }
        Ok(Choice::Again)
    }

    /// Stores the attempt and begins the lease.
    #[inline(always)]
    fn lease(&mut self, next: &Next, now: Option<u64>) -> Result<Leased> {
        let Next { found: Found { spot, place, header, .. }, from } = *next;
        let place = Place { attempts: MAX_ATTEMPTS.min(place.attempts + 1), ..place };
        let Place { seq, attempts, offset, .. } = place;
        let track = self.backlog.store_found(spot, (unsettled_state(&place), attempts), offset)?;
        let pushed_at = track.base_time() + u64::from(header.age);
        track.note_leased();
        let body = Body::of(track.map()?, &header, offset);
        self.counts.popped += 1;
        self.counts.redelivered += u64::from(attempts > 1);
        if from == Front::Cursor {
            self.counts.out_of_order += u64::from(seq < self.newest_first);
            self.newest_first = self.newest_first.max(seq);
        }
        let deadline = self.policy.visibility.zip(now);
        let deadline = deadline.map(|(timeout, now)| self.clock.after(now, timeout));
        let ticket = self.leases.begin(place, deadline);
        let is_sample = Measure::is_sample(self.counts.popped);
        Ok(Leased { ticket, seq, attempts, offset, pushed_at, body, header, is_sample, now })
    }

    /// The message that was chosen is leased: it is no longer where it waited, and its last holder,
    /// if its lease ran out, has it no more.
    #[inline(always)]
    fn leave_front(&mut self, next: &Next) {
        let seq = next.found.place.seq;
        self.leases.end_expired(seq);
        match next.from {
            Front::Cursor => self.cursor.pass_found(&next.found),
            Front::Returned => drop(self.returned.remove(&seq)),
            Front::Schedule(due) => {
                self.schedule.remove(due, seq);
                self.untold.remove(&seq);
            }
        }
        self.expiry.note_head_changed(&self.clock);
    }

    /// The message that was chosen is settled, wherever it waited; false if it was already.
    pub(super) fn settle_chosen(&mut self, next: &Next, state: State) -> Result<bool> {
        let is_new = self.settle(next.found.spot, &next.found.place, state)?;
        self.leave_chosen(next);
        Ok(is_new)
    }

    /// The message that was chosen dies.
    pub(super) fn die_of(&mut self, next: &Next, cause: Cause) -> Result<()> {
        self.die(next.found.spot, &next.found.place, Death { cause: Some(cause), reason: None })?;
        self.leave_chosen(next);
        Ok(())
    }

    pub(super) fn leave_chosen(&mut self, next: &Next) {
        if next.from == Front::Cursor {
            self.cursor.pass_found(&next.found);
        }
        self.expiry.note_head_changed(&self.clock);
    }

    /// Where the body of a message that was chosen lies, to be read outside of the lock.
    pub(crate) fn body_of(&mut self, next: &Next) -> Result<Body> {
        let Found { spot, place, header, .. } = next.found;
        let mapped = self.backlog.track_at(spot.at).map()?;
        Ok(Body::of(mapped, &header, place.offset))
    }
}
