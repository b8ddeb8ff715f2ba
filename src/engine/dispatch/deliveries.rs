//! Deliveries: leases, from the hand-out of a message to its answer, or the end of its time.
//!
//! Promises: the attempt is stored before a message is handed out. An answer is one store, after
//! which a kill does not undo it; it concerns the delivery that it belongs to and no newer one of
//! the same message. A late answer counts as long as the message was not handed out again, settled
//! or given up. A message that failed goes back, or dies with its last attempt. Work that takes
//! long is done in steps.

use super::dying::{Cause, Death};
use super::exchange::{Answer, Leased, Next, WaitsAt, unsettled_state};
use super::ledger::Ledger;
use super::measure::Measure;
use super::news::Event;
use super::policy::Policy;
use super::repair::lose_unnumbered;
use crate::clock::Clock;
use crate::engine::backlog::{Body, FoundMessage, Spot};
use crate::engine::context::Context;
use crate::engine::published::Published;
use crate::error::{Error, Result};
use crate::format::checksum::fold;
use crate::format::slot::{Delay, MAX_ATTEMPTS, State};
use crate::leases::{Leases, Place, Ticket};
use crate::options::Expired;
use crate::recovery::Log;
use crate::seq::Seq;
use crate::time::{Millis, Time};
use std::sync::Arc;
use std::time::Duration;

/// Leases that are ended under one lock.
const LEASES_A_STEP: usize = 256;
/// Delays that are ended under one lock.
const DELAYS_A_STEP: usize = 1024;

/// Who has which message, until when.
#[derive(Debug)]
pub(crate) struct Deliveries {
    ledger: Ledger,
    clock: Arc<Clock>,
    measure: Measure,
    /// The newest message that was handed out for the first time in push order.
    newest_first: u64,
}

impl Deliveries {
    pub(super) fn new(log: &Log, context: &Context, published: &Arc<Published>) -> Self {
        Self {
            ledger: Ledger::new(log, context, published),
            clock: Arc::clone(&context.clock),
            measure: Measure::new(Arc::clone(&context.clock)),
            newest_first: 0,
        }
    }

    #[inline]
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    #[inline]
    pub(super) fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    pub(crate) fn measure(&self) -> &Measure {
        &self.measure
    }

    #[inline]
    pub(crate) fn measure_mut(&mut self) -> &mut Measure {
        &mut self.measure
    }

    #[inline]
    fn leases(&self) -> &Leases {
        self.ledger.places().leases()
    }

    #[inline]
    fn leases_mut(&mut self) -> &mut Leases {
        self.ledger.places_mut().leases_mut()
    }

    /// Whether as many are in flight as may be.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.leases().count() >= self.ledger.policy().max_in_flight
    }

    /// How many more may be in flight.
    #[inline]
    pub(super) fn room_in_flight(&self) -> usize {
        self.ledger.policy().max_in_flight.saturating_sub(self.leases().count())
    }

    /// When there will be something to hand out that is not there yet.
    #[inline]
    pub(super) fn next_time(&self) -> Option<Time> {
        self.ledger.places().next_delivery_time(self.is_full())
    }

    /// The coarse clock, if anything here has a time.
    #[inline(always)]
    pub(super) fn coarse_time(&self) -> Option<Time> {
        let (places, policy) = (self.ledger.places(), self.ledger.policy());
        (policy.has_times || places.has_times()).then(|| self.clock.coarse())
    }

    /// Stores the attempt and begins the lease.
    pub(super) fn lease(&mut self, next: &Next, now: Option<Time>) -> Result<Leased> {
        let Next { found: FoundMessage { spot, place, header, .. }, from } = *next;
        let place = Place { attempts: MAX_ATTEMPTS.min(place.attempts + 1), ..place };
        let Place { seq, attempts, offset, .. } = place;
        let state = (unsettled_state(&place), attempts);
        let track = self.ledger.backlog_mut().store_found(spot, state, offset)?;
        let pushed_at = track.segment().push_time(&header, track.base_time());
        track.note_leased(1);
        let body = Body::of(track.map()?, &header, offset);
        let counts = self.ledger.counts_mut();
        counts.popped += 1;
        counts.redelivered += u64::from(attempts > 1);
        if from == WaitsAt::Cursor {
            counts.out_of_order += u64::from(seq < self.newest_first);
            self.newest_first = self.newest_first.max(seq);
        }
        let is_sample = Measure::is_sample(counts.popped);
        let deadline = self.deadline(now);
        let ticket = self.leases_mut().begin(place, deadline);
        Ok(Leased { ticket, attempts, offset, pushed_at, body, header, is_sample, now })
    }

    /// Counts messages side by side at the cursor that are handed out for the first time. Tells how
    /// many were handed out before them, and the deadline of their lease.
    #[inline(always)]
    pub(super) fn note_first_deliveries(
        &mut self,
        first_seq: u64,
        number: u32,
        now: Option<Time>,
    ) -> (u64, Option<Time>) {
        let (number, counts) = (u64::from(number), self.ledger.counts_mut());
        let popped_before = counts.popped;
        counts.popped += number;
        counts.out_of_order += self.newest_first.saturating_sub(first_seq).min(number);
        self.newest_first = self.newest_first.max(first_seq + number - 1);
        (popped_before, self.deadline(now))
    }

    /// When a lease runs out that begins now. `now`: the coarse clock, if anything has a time.
    #[inline]
    fn deadline(&self, now: Option<Time>) -> Option<Time> {
        let deadline = self.ledger.policy().visibility.zip(now);
        deadline.map(|(timeout, now)| self.clock.after(now, timeout))
    }

    /// Ends a delivery as its holder says.
    pub(crate) fn answer(&mut self, ticket: Ticket, answer: &Answer) -> Result<()> {
        self.ledger.check_open()?;
        let was_full = self.is_full();
        let ended = self.end_lease(ticket);
        // Room for one more in flight, also if the message is gone.
        self.ledger.news_mut().note_if(was_full, Event::Returned);
        let expired = || Error::LeaseExpired { seq: Seq(ticket.seq()) };
        let (spot, place) = ended?.ok_or_else(expired)?;
        let in_time = |is_new| if is_new { Ok(()) } else { Err(expired()) };
        match answer {
            Answer::Ack => self.acked(spot, place).and_then(in_time),
            Answer::Release => self.released(spot, place).and_then(in_time),
            Answer::Nack => self.failed(spot, place, None),
            // Nobody is there to hear of the error; the message is back.
            Answer::Drop => self.failed(spot, place, None).or(Ok(())),
            Answer::NackAfter(delay) => self.failed(spot, place, Some(*delay)),
            Answer::Reject(reason) => {
                let reason = Some(reason.as_str().into());
                let death = Death { cause: Some(Cause::Rejected), reason };
                let died = self.ledger.die(spot, &place, death);
                self.ledger.counts_mut().rejected += u64::from(died.is_ok());
                died.inspect_err(|_| self.ledger.give_back(place))
            }
        }
    }

    /// Ends a lease; `None` if it has ended already. Tells where its message is now, which from
    /// here on is in no place.
    #[inline]
    fn end_lease(&mut self, ticket: Ticket) -> Result<Option<(Spot, Place)>> {
        let Some((place, has_expired)) = self.leases().place(ticket) else { return Ok(None) };
        let found = self.ledger.backlog().find_place(place).inspect_err(|_| {
            // What was out goes back, to be looked up again.
            if !has_expired {
                self.leases_mut().end(ticket);
                self.give_back_unfound(place);
            }
        })?;
        let Some((spot, place)) = found else {
            self.leases_mut().end(ticket);
            if !has_expired {
                self.lose_unfound(place.seq)?;
            }
            return if self.ledger.check_open().is_err() { Err(Error::Closed) } else { Ok(None) };
        };
        if has_expired {
            self.take_back_expired(ticket, spot, place.seq);
        } else {
            self.leases_mut().end(ticket);
            self.ledger.backlog_mut().track_at_mut(spot.at).note_answered(1);
        }
        Ok(Some((spot, place)))
    }

    /// A lease has ended, and where its message is now cannot be read: it goes back all the same.
    #[cold]
    fn give_back_unfound(&mut self, place: Place) {
        self.note_unfound_answered(place.seq);
        self.ledger.give_back(place);
    }

    /// A delivery has ended whose message cannot be found: it holds its segment no more.
    fn note_unfound_answered(&mut self, seq: u64) -> Option<usize> {
        let at = self.ledger.backlog().tracks().position_of_seq(seq)?;
        self.ledger.backlog_mut().track_at_mut(at).note_answered(1);
        Some(at)
    }

    /// The same where its number must have gone bad: no answer will find it again.
    #[cold]
    fn lose_unfound(&mut self, seq: u64) -> Result<()> {
        let at = self.note_unfound_answered(seq);
        at.map_or(Ok(()), |at| lose_unnumbered(&mut self.ledger, at))
    }

    /// A holder whose lease ran out has its message again: it leaves the place where it waited.
    fn take_back_expired(&mut self, ticket: Ticket, spot: Spot, seq: u64) {
        let was_delayed = !self.ledger.places().is_returned(seq);
        self.ledger.take_out(spot, seq);
        self.leases_mut().end(ticket);
        if was_delayed {
            self.end_delay(spot);
        }
    }

    /// Stores that the delay of a message is over: a later run does not begin it anew, also if the
    /// wall clock is set back. It is still one of this run, or else the cursor would take the
    /// message for one that it has to hand out. If it cannot be stored, the message may stay away
    /// for a while after a restart.
    #[cold]
    pub(super) fn end_delay(&mut self, spot: Spot) {
        let over = Delay::over(self.clock.start_time());
        self.ledger.backlog_mut().store_delay(spot, over).ok();
    }

    /// False if it was settled already, which only damage does.
    fn acked(&mut self, spot: Spot, place: Place) -> Result<bool> {
        let settled = self.ledger.settle_answered(spot, &place);
        let settled = settled.inspect_err(|_| self.ledger.give_back(place))?;
        self.ledger.counts_mut().acked += u64::from(settled);
        Ok(settled)
    }

    /// False if it is settled, which only damage does.
    fn released(&mut self, spot: Spot, place: Place) -> Result<bool> {
        let released = Place { attempts: place.attempts - 1, ..place };
        let stored = self.ledger.store_unsettled(spot, &released);
        let stored = stored.inspect_err(|_| self.ledger.give_back(place))?;
        if stored {
            self.ledger.give_back(released);
            self.ledger.counts_mut().released += 1;
        }
        Ok(stored)
    }

    /// An attempt failed: the message goes back, now or later, or dies.
    fn failed(&mut self, spot: Spot, place: Place, delay: Option<Duration>) -> Result<()> {
        self.ledger.counts_mut().nacked += 1;
        if self.ledger.policy().is_last(place.attempts) {
            let death = Death { cause: Some(Cause::Attempts), reason: None };
            return self
                .ledger
                .die(spot, &place, death)
                .inspect_err(|_| self.ledger.give_back(place));
        }
        let delay = delay.unwrap_or_else(|| self.backoff_of(&place));
        self.stay_away(spot, place, delay).1
    }

    fn backoff_of(&self, place: &Place) -> Duration {
        let chance = fold(fold(self.clock.start_time().0, place.seq), place.attempts.into());
        self.ledger.policy().backoff.after(place.attempts, chance)
    }

    /// Back after this time: tells when that is, [`Time::ZERO`] for at once, and whether it is
    /// stored. If not, it holds in this run all the same.
    fn stay_away(&mut self, spot: Spot, place: Place, delay: Duration) -> (Time, Result<()>) {
        if delay.is_zero() {
            self.ledger.give_back(place);
            return (Time::ZERO, Ok(()));
        }
        // One that was found damaged meanwhile is in no place any more.
        if self.ledger.status(spot).is_ok_and(|status| status.standing.is_settled()) {
            return (Time::ZERO, Ok(()));
        }
        let given = Millis::from(delay);
        let due = self.clock.next() + given;
        self.ledger.places_mut().schedule_mut().put(due, place.seq);
        self.ledger.note_head_changed();
        (due, self.ledger.store_delay(spot, place.seq, Delay { due, given }))
    }

    /// Ends leases that have run out, and delays; a step of them. Tells whether more have.
    #[inline]
    pub(super) fn end_due_at(&mut self, coarse: Option<Time>) -> bool {
        let Some(coarse) = coarse else { return false };
        let is_past = |time| self.clock.is_past_at(coarse, time);
        let (undue, deadline) =
            (self.ledger.places().schedule().first_undue(), self.leases().next_deadline());
        let (ends_delays, ends_leases) =
            (undue.is_some_and(is_past), deadline.is_some_and(is_past));
        let has_more = ends_delays && self.advance_schedule();
        ends_leases && self.end_overdue_leases() || has_more
    }

    /// The same, with the clock read if anything has a time.
    pub(crate) fn end_due(&mut self) -> bool {
        self.end_due_at(self.coarse_time())
    }

    /// Delays that are over: a step of them. Tells whether there may be more.
    fn advance_schedule(&mut self) -> bool {
        let now = self.clock.now();
        let advanced = self.ledger.places_mut().schedule_mut().advance(now, DELAYS_A_STEP);
        if advanced.has_due {
            self.ledger.news_mut().note(Event::Returned);
            self.ledger.note_head_changed();
        }
        advanced.has_more
    }

    /// Leases that have run out: their messages go back, or die.
    #[cold]
    fn end_overdue_leases(&mut self) -> bool {
        let (now, maps_before) = (self.clock.now(), self.ledger.backlog().activity().maps_made());
        for _ in 0..LEASES_A_STEP {
            if self.ledger.backlog().activity().has_made_most(maps_before) {
                break;
            }
            let Some((ticket, place)) = self.leases().overdue(now) else { return false };
            self.ledger.news_mut().note(Event::Returned);
            self.ledger.counts_mut().lease_expired += 1;
            let Ok(found) = self.ledger.backlog().find_place(place) else {
                // To be looked up again.
                self.give_back_unfound(place);
                self.leases_mut().expire(ticket, Time::ZERO);
                continue;
            };
            let Some((spot, place)) = found else {
                self.leases_mut().end(ticket);
                // What cannot be stored now is lost the next time that it is met.
                self.lose_unfound(place.seq).ok();
                continue;
            };
            self.ledger.backlog_mut().track_at_mut(spot.at).note_answered(1);
            if self.ledger.policy().is_last(place.attempts) {
                self.leases_mut().end(ticket);
                let death = Death { cause: Some(Cause::Attempts), reason: None };
                let died = self.ledger.die(spot, &place, death);
                // It is handed out no more, but looked at again.
                died.unwrap_or_else(|_| self.ledger.give_back(place));
                continue;
            }
            // That it stays away is kept in memory at least.
            let (due, _) = self.stay_away(spot, place, self.backoff_of(&place));
            self.leases_mut().expire(ticket, due);
        }
        self.leases().overdue(now).is_some()
    }

    /// Gives a delivery more time; one that has run out is its holder's again, if there is room for
    /// one more in flight.
    pub(crate) fn extend(&mut self, ticket: Ticket, time: Duration) -> Result<()> {
        self.ledger.check_open()?;
        let expired = Error::LeaseExpired { seq: Seq(ticket.seq()) };
        if self.ledger.policy().visibility.is_none() {
            // Without a timeout nothing runs out.
            return Ok(());
        }
        let Some((place, has_expired)) = self.leases().place(ticket) else { return Err(expired) };
        if time.is_zero() {
            if !has_expired {
                self.leases_mut().extend(ticket, Time::ZERO);
                self.end_overdue_leases();
            }
            return Ok(());
        }
        let deadline = self.clock.after(self.clock.coarse(), Millis::from(time));
        if !has_expired {
            self.leases_mut().extend(ticket, deadline).ok_or(expired)?;
            return Ok(());
        }
        // What is over makes room.
        self.end_due();
        if self.is_full() {
            return Err(expired);
        }
        let Some((spot, place)) = self.ledger.backlog().find_place(place)? else {
            return Err(expired);
        };
        // The lease begins again under the same ticket; the message leaves where it waits.
        let ended = self.leases_mut().extend(ticket, deadline).ok_or(expired)?;
        let was_delayed = !self.ledger.places_mut().leave_returned(place.seq);
        let due = ended.expired.unwrap_or(Time::ZERO);
        self.ledger.places_mut().schedule_mut().remove(due, place.seq);
        self.ledger.take_out(spot, place.seq);
        if was_delayed {
            self.end_delay(spot);
        }
        self.ledger.backlog_mut().track_at_mut(spot.at).note_leased(1);
        Ok(())
    }

    /// The record of a leased message says that it is not due. It is put off if that counts.
    pub(crate) fn put_off(&mut self, leased: &Leased, due: Time) -> Result<bool> {
        let has_unreadable_delay = || self.has_unreadable_delay(leased);
        if !Policy::counts_time_in_record(leased.attempts - 1, has_unreadable_delay) {
            return Ok(false);
        }
        let Some((spot, place)) = self.take_back_unseen(leased.ticket, leased.attempts)? else {
            return Ok(true);
        };
        let given = due.since(leased.pushed_at.time);
        self.ledger.places_mut().schedule_mut().put(due, place.seq);
        let released = Place { attempts: place.attempts - 1, ..place };
        let delayed = self.ledger.store_delay(spot, place.seq, Delay { due, given });
        delayed.and(self.ledger.store_unsettled(spot, &released).map(|_| true))
    }

    /// Whether the delay of a leased message cannot be read.
    fn has_unreadable_delay(&self, leased: &Leased) -> bool {
        let Some((place, _)) = self.leases().place(leased.ticket) else { return false };
        self.ledger.backlog().find_place(place).map_or(true, |found| {
            found.is_some_and(|(spot, _)| self.ledger.backlog().has_unreadable_delay(spot))
        })
    }

    /// The time of a leased message turned out to be over.
    pub(crate) fn expire(&mut self, leased: &Leased) -> Result<()> {
        let Some((spot, place)) = self.take_back_unseen(leased.ticket, leased.attempts)? else {
            return Ok(());
        };
        // This time it was not handed out.
        let unseen = Place { attempts: place.attempts - 1, ..place };
        self.settle_expired(spot, &unseen).inspect_err(|_| self.ledger.give_back(place))
    }

    /// The time of a message that waits is over, or of one that is in no place.
    pub(super) fn settle_expired(&mut self, spot: Spot, place: &Place) -> Result<()> {
        let policy = self.ledger.policy();
        if policy.expired == Expired::DeadLetter && policy.has_dead_letters {
            self.ledger.die(spot, place, Death { cause: Some(Cause::Expired), reason: None })?;
        } else {
            self.ledger.settle(spot, place, State::Dead)?;
        }
        self.ledger.counts_mut().expired += 1;
        Ok(())
    }

    /// The payload of a leased message turned out to be damaged.
    pub(crate) fn lose_leased(&mut self, ticket: Ticket, attempts: u32) -> Result<()> {
        if let Some((spot, place)) = self.take_back_unseen(ticket, attempts)? {
            let lost = self.ledger.lose(spot, place.offset);
            lost.inspect_err(|_| self.ledger.give_back(place))?;
        }
        Ok(())
    }

    /// A leased message turned out to be of a newer version of keepq: no consumer gets it, and it
    /// stays stored as it was.
    pub(crate) fn set_aside(&mut self, ticket: Ticket, attempts: u32) -> Result<()> {
        let Some((spot, place)) = self.take_back_unseen(ticket, attempts)? else { return Ok(()) };
        self.ledger.set_aside(spot, &place);
        let unseen = Place { attempts: place.attempts - 1, ..place };
        self.ledger.store_unsettled(spot, &unseen).map(|_| ())
    }

    /// Ends a lease whose message no consumer has seen.
    fn take_back_unseen(&mut self, ticket: Ticket, attempts: u32) -> Result<Option<(Spot, Place)>> {
        // It may have run out while its payload was copied, and be back, or somebody else's.
        let Some(found) = self.end_lease(ticket)? else { return Ok(None) };
        self.ledger.counts_mut().popped -= 1;
        self.ledger.counts_mut().redelivered -= u64::from(attempts > 1);
        self.ledger.news_mut().note(Event::Returned);
        Ok(Some(found))
    }
}
