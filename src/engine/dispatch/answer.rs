//! Ending a delivery: what its holder says, and what the end of its lease says.
//!
//! Promises: an answer is one store, after which a kill does not undo it; it concerns the delivery
//! that it belongs to and no newer one of the same message. A late answer counts as long as the
//! message was not handed out again, settled or given up. A message that failed goes back, or dies
//! with its last attempt.

use super::Dispatch;
use super::dying::{Cause, Death};
use super::exchange::{Answer, Leased, unsettled_state};
use crate::clock;
use crate::engine::backlog::Spot;
use crate::engine::backlog::track::Stored;
use crate::error::{Error, Result};
use crate::format::checksum::fold;
use crate::format::slot::{Delay, State};
use crate::leases::{Place, Ticket};
use crate::options::Expired;
use crate::seq::Seq;
use std::time::Duration;

/// Leases that are ended under one lock.
const STEP: usize = 256;

impl Dispatch {
    /// Ends a delivery as its holder says.
    pub(crate) fn answer(&mut self, ticket: Ticket, seq: u64, answer: &Answer) -> Result<()> {
        self.check_open()?;
        let was_full = self.is_full();
        let ended = self.end_lease(ticket)?;
        let expired = || Error::LeaseExpired { seq: Seq(seq) };
        let (spot, place) = ended.ok_or_else(expired)?;
        // Room for one more in flight.
        self.news.returned |= was_full;
        if let Answer::Ack = answer {
            return if self.acked(spot, place)? { Ok(()) } else { Err(expired()) };
        }
        match answer {
            Answer::Ack => Ok(()),
            Answer::Release => {
                if self.released(spot, place)? {
                    Ok(())
                } else {
                    Err(expired())
                }
            }
            Answer::Nack => self.failed(spot, place, None),
            // Nobody is there to hear of the error; the message is back.
            Answer::Drop => self.failed(spot, place, None).or(Ok(())),
            Answer::NackAfter(delay) => self.failed(spot, place, Some(*delay)),
            Answer::Reject(reason) => {
                let reason = Some(reason.as_str().into());
                let death = Death { cause: Some(Cause::Rejected), reason };
                let died = self.die(spot, &place, death);
                self.counts.rejected += u64::from(died.is_ok());
                died.inspect_err(|_| self.give_back(place))
            }
        }
    }

    /// Ends a lease; `None` if it has ended already. Tells where its message is now, which from
    /// here on is in no place.
    #[inline]
    fn end_lease(&mut self, ticket: Ticket) -> Result<Option<(Spot, Place)>> {
        let Some((place, has_expired)) = self.leases.place(ticket) else { return Ok(None) };
        let found = self.backlog.find_place(place).inspect_err(|_| {
            // What was out goes back, to be looked up again; its segment is kept for this run.
            if !has_expired {
                self.leases.end(ticket);
                self.give_back(place);
            }
        })?;
        let Some((spot, place)) = found else {
            self.leases.end(ticket);
            return if self.is_closed { Err(Error::Closed) } else { Ok(None) };
        };
        if has_expired {
            self.take_back_expired(ticket, spot, place.seq);
        } else {
            self.leases.end(ticket);
            self.backlog.track_at(spot.at).note_answered();
        }
        Ok(Some((spot, place)))
    }

    /// A holder whose lease ran out has its message again: it leaves the place where it waited.
    fn take_back_expired(&mut self, ticket: Ticket, spot: Spot, seq: u64) {
        let was_delayed = !self.returned.contains_key(&seq);
        self.take_out(spot, seq);
        self.leases.end(ticket);
        if was_delayed {
            // Over, and still one of this run: else the cursor, should it come by, would take the
            // message for one that it has to hand out. If it cannot be stored, the message stays
            // away a little after a restart.
            let over = Delay { due: self.clock.start_time() + 1, given: 1 };
            self.backlog.store_delay(spot, over).ok();
        }
    }

    /// False if it was settled already, which only damage does.
    fn acked(&mut self, spot: Spot, place: Place) -> Result<bool> {
        let settled = self.settle_answered(spot, &place);
        if settled.is_err() {
            self.give_back(place);
        }
        let settled = settled?;
        self.counts.acked += u64::from(settled);
        Ok(settled)
    }

    /// Whether a message that was in flight is settled: found damaged meanwhile.
    fn is_settled(&mut self, spot: Spot) -> Result<bool> {
        Ok(self.status(spot)?.standing.is_settled())
    }

    /// False if it is settled, which only damage does.
    fn released(&mut self, spot: Spot, place: Place) -> Result<bool> {
        let released = Place { attempts: place.attempts - 1, ..place };
        let stored =
            self.store_unsettled(spot, &released).inspect_err(|_| self.give_back(place))?;
        if stored {
            self.give_back(released);
            self.counts.released += 1;
        }
        Ok(stored)
    }

    /// False if it is settled: then nothing is stored.
    fn store_unsettled(&mut self, spot: Spot, place: &Place) -> Result<bool> {
        let (state, attempts) = (unsettled_state(place), place.attempts);
        let record = Some((place.offset, place.bytes));
        let stored = self.backlog.store(spot, (state, attempts), record)?;
        Ok(stored != Stored::WasSettled)
    }

    /// An attempt failed: the message goes back, now or later, or dies.
    fn failed(&mut self, spot: Spot, place: Place, delay: Option<Duration>) -> Result<()> {
        self.counts.nacked += 1;
        if self.policy.is_last(place.attempts) {
            let died = self.die(spot, &place, Death { cause: Some(Cause::Attempts), reason: None });
            return died.inspect_err(|_| self.give_back(place));
        }
        let delay = delay.unwrap_or_else(|| self.backoff_of(&place));
        self.stay_away(spot, place, delay).1
    }

    fn backoff_of(&self, place: &Place) -> Duration {
        let chance = fold(fold(self.clock.start_time(), place.seq), place.attempts.into());
        self.policy.backoff.after(place.attempts, chance)
    }

    /// Back after this time: tells when that is, 0 for at once, and whether it is stored. If not,
    /// it holds in this run all the same.
    fn stay_away(&mut self, spot: Spot, place: Place, delay: Duration) -> (u64, Result<()>) {
        if delay.is_zero() {
            self.give_back(place);
            return (0, Ok(()));
        }
        // One that was found damaged meanwhile is in no place any more.
        if self.is_settled(spot).is_ok_and(|is_settled| is_settled) {
            return (0, Ok(()));
        }
        let given = clock::millis(delay);
        let due = self.clock.next() + given;
        self.schedule.put(due, place.seq);
        self.expiry.note_head_changed(&self.clock);
        (due, self.store_delay(spot, place.seq, Delay { due, given }))
    }

    /// A message that is in no place, or waits, dies; without dead letters it is settled.
    pub(super) fn die(&mut self, spot: Spot, place: &Place, death: Death) -> Result<()> {
        if !self.policy.has_dead_letters {
            let is_new = self.settle(spot, place, State::Dead)?;
            self.counts.dropped += u64::from(is_new);
            return Ok(());
        }
        let record = Some((place.offset, place.bytes));
        let stored = self.backlog.store(spot, (State::Dying, place.attempts), record)?;
        self.take_out(spot, place.seq);
        if stored == Stored::WasSettled {
            return Ok(());
        }
        self.dying.insert(place.seq, death);
        self.news.died = true;
        Ok(())
    }

    /// Ends leases that have run out, and delays; a step of them. Tells whether more have.
    #[inline]
    pub(super) fn end_due_at(&mut self, coarse: Option<u64>) -> bool {
        let Some(coarse) = coarse else { return false };
        if let Some(time) = self.schedule.first_undue()
            && self.clock.is_past_at(coarse, time)
        {
            self.advance_schedule();
        }
        match self.leases.next_deadline() {
            Some(deadline) if self.clock.is_past_at(coarse, deadline) => self.end_overdue_leases(),
            _ => false,
        }
    }

    /// The same, with the clock read if anything has a time.
    pub(crate) fn end_due(&mut self) -> bool {
        self.end_due_at(self.coarse_time())
    }

    pub(super) fn advance_schedule(&mut self) {
        if self.schedule.first_undue().is_some() {
            let due = self.schedule.advance(self.clock.now());
            self.news.returned |= due > 0;
        }
    }

    /// Leases that have run out: their messages go back, or die.
    #[cold]
    fn end_overdue_leases(&mut self) -> bool {
        let now = self.clock.now();
        for _ in 0..STEP {
            let Some((ticket, place)) = self.leases.overdue(now) else { return false };
            self.news.returned = true;
            self.counts.lease_expired += 1;
            let Ok(found) = self.backlog.find_place(place) else {
                // To be looked up again; its segment is kept for this run.
                self.give_back(place);
                self.leases.expire(ticket, 0);
                continue;
            };
            let Some((spot, place)) = found else {
                self.leases.end(ticket);
                continue;
            };
            self.backlog.track_at(spot.at).note_answered();
            if self.policy.is_last(place.attempts) {
                self.leases.end(ticket);
                let death = Death { cause: Some(Cause::Attempts), reason: None };
                let died = self.die(spot, &place, death);
                // It is handed out no more, but looked at again.
                died.unwrap_or_else(|_| self.give_back(place));
                continue;
            }
            // That it stays away is kept in memory at least.
            let (due, _) = self.stay_away(spot, place, self.backoff_of(&place));
            self.leases.expire(ticket, due);
        }
        self.leases.overdue(now).is_some()
    }

    /// Gives a delivery more time; one that has run out is its holder's again, if there is room for
    /// one more in flight.
    pub(crate) fn extend(&mut self, ticket: Ticket, seq: u64, time: Duration) -> Result<()> {
        self.check_open()?;
        let expired = Error::LeaseExpired { seq: Seq(seq) };
        if self.policy.visibility.is_none() {
            // Without a timeout nothing runs out.
            return Ok(());
        }
        let Some((place, has_expired)) = self.leases.place(ticket) else { return Err(expired) };
        if time.is_zero() {
            if !has_expired {
                self.leases.extend(ticket, 0);
                self.end_overdue_leases();
            }
            return Ok(());
        }
        let deadline = self.clock.after(self.clock.coarse(), clock::millis(time));
        if !has_expired {
            self.leases.extend(ticket, deadline).ok_or(expired)?;
            return Ok(());
        }
        if self.is_full() {
            return Err(expired);
        }
        let Some((spot, place)) = self.backlog.find_place(place)? else { return Err(expired) };
        // The lease begins again under the same ticket; the message leaves where it waits.
        let ended = self.leases.extend(ticket, deadline).ok_or(expired)?;
        let was_delayed = self.returned.remove(&place.seq).is_none();
        self.schedule.remove(ended.expired.unwrap_or(0), place.seq);
        self.take_out(spot, place.seq);
        if was_delayed {
            let over = Delay { due: self.clock.start_time() + 1, given: 1 };
            self.backlog.store_delay(spot, over).ok();
        }
        self.backlog.track_at(spot.at).note_leased();
        Ok(())
    }

    /// A leased message turned out not to be due: its record says so, and its slot did not.
    pub(crate) fn put_off(&mut self, leased: &Leased, due: u64) -> Result<()> {
        let Some((spot, place)) = self.take_back_unseen(leased)? else { return Ok(()) };
        let given = due.saturating_sub(leased.pushed_at);
        self.schedule.put(due, place.seq);
        let released = Place { attempts: place.attempts - 1, ..place };
        let delayed = self.store_delay(spot, place.seq, Delay { due, given });
        delayed.and(self.store_unsettled(spot, &released).map(|_| ()))
    }

    /// The time of a leased message turned out to be over.
    pub(crate) fn expire(&mut self, leased: &Leased) -> Result<()> {
        let Some((spot, place)) = self.take_back_unseen(leased)? else { return Ok(()) };
        // This time it was not handed out.
        let unseen = Place { attempts: place.attempts - 1, ..place };
        let ended = self.settle_expired(spot, &unseen);
        ended.inspect_err(|_| self.give_back(place))
    }

    /// The time of a message that waits is over, or of one that is in no place.
    pub(super) fn settle_expired(&mut self, spot: Spot, place: &Place) -> Result<()> {
        if self.policy.expired == Expired::DeadLetter && self.policy.has_dead_letters {
            self.die(spot, place, Death { cause: Some(Cause::Expired), reason: None })?;
        } else {
            self.settle(spot, place, State::Dead)?;
        }
        self.counts.expired += 1;
        Ok(())
    }

    /// The payload of a leased message turned out to be damaged.
    pub(crate) fn lose_leased(&mut self, leased: &Leased) -> Result<()> {
        if let Some((spot, place)) = self.take_back_unseen(leased)? {
            let lost = self.lose(spot, place.offset);
            lost.inspect_err(|_| self.give_back(place))?;
        }
        Ok(())
    }

    /// A leased message turned out to be of a newer version of keepq: no consumer gets it, and it
    /// stays stored as it was.
    pub(crate) fn set_aside(&mut self, leased: &Leased) -> Result<()> {
        let Some((spot, place)) = self.take_back_unseen(leased)? else { return Ok(()) };
        self.note_newer(spot, place.seq, place.offset);
        self.store_unsettled(spot, &Place { attempts: place.attempts - 1, ..place }).map(|_| ())
    }

    /// Ends a lease whose message no consumer has seen.
    fn take_back_unseen(&mut self, leased: &Leased) -> Result<Option<(Spot, Place)>> {
        // It may have run out while its payload was copied, and be back, or somebody else's.
        let Some(found) = self.end_lease(leased.ticket)? else { return Ok(None) };
        self.counts.popped -= 1;
        self.counts.redelivered -= u64::from(leased.attempts > 1);
        self.news.returned = true;
        Ok(Some(found))
    }
}
