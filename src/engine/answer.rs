//! Ending a delivery: what its holder says, what the end of its lease says.
//!
//! Promises: an answer is one store, after which a kill does not undo it; it concerns the delivery that it
//! belongs to and no newer one of the same message. A late answer counts as long as the message was not handed
//! out again. What fails goes back, or dies with its last attempt. Relies on the `deliver` lock.

use super::deliver::Deliver;
use super::dying::Cause;
use super::next::{Leased, owed_slot};
use crate::clock;
use crate::error::{Error, Result};
use crate::format::checksum::fold;
use crate::format::slot::{Delay, Slot, State};
use crate::leases::{Ended, Place, Ticket};
use crate::seq::Seq;
use std::time::Duration;

/// What a consumer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Ack,
    /// It failed: back after the queue's backoff.
    Nack,
    /// The same, and nobody is there to hear of an error.
    Drop,
    /// It failed: back after this time.
    NackAfter(Duration),
    /// Back, as if it had not been handed out.
    Release,
    /// It will never succeed.
    Reject(String),
}

/// What an answer did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settled {
    /// Its segment has nothing left that is owed.
    pub(super) is_done: bool,
    /// It is on its way to the dead letters.
    pub(super) is_dying: bool,
}

impl Deliver {
    /// Ends a delivery as its holder says.
    pub(super) fn settle(&mut self, ticket: Ticket, seq: u64, answer: &Answer) -> Result<Settled> {
        self.check_open()?;
        let ended = self.end_lease(ticket)?;
        let (at, place) = ended.ok_or(Error::LeaseExpired { seq: Seq(seq) })?;
        self.changes += 1;
        self.tracks[at].note_change(place.index);
        let before = self.dying.count();
        let result = match answer {
            Answer::Ack => self.acked(at, place),
            Answer::Release => self.released(at, place),
            Answer::Nack | Answer::Drop | Answer::NackAfter(_) => {
                let delay = if let Answer::NackAfter(delay) = answer { Some(*delay) } else { None };
                self.counts.nacked += 1;
                let failed = self.failed(at, place, delay);
                if *answer == Answer::Drop { failed.or(Ok(())) } else { failed }
            }
            Answer::Reject(reason) => {
                let died = self.die(at, place, Cause::Rejected, Some(reason));
                self.counts.rejected += u64::from(died.is_ok());
                died.inspect_err(|_| self.give_back(place))
            }
        };
        result?;
        let is_done = self.tracks[at].is_done();
        Ok(Settled { is_done, is_dying: self.dying.count() > before })
    }

    /// Ends a lease; `None` if it has ended already. Tells where its message is now: from here on in no place.
    #[inline]
    fn end_lease(&mut self, ticket: Ticket) -> Result<Option<(usize, Place)>> {
        let Some((place, has_expired)) = self.leases.place(ticket) else { return Ok(None) };
        let found = self.find_place(place).inspect_err(|_| {
            // What was out goes back, to be looked up again; its segment is kept for this run.
            if !has_expired {
                self.leases.end(ticket);
                self.give_back(place);
            }
        })?;
        let Some(ended) = self.leases.end(ticket) else { return Ok(None) };
        let Some((at, place)) = found else { return Err(Error::Closed) };
        match ended.expired {
            None => self.tracks[at].leased -= 1,
            Some(_) => self.take_out(at, &Ended { place, ..ended }),
        }
        Ok(Some((at, place)))
    }

    /// Takes a message whose lease had run out from where it is.
    fn take_out(&mut self, at: usize, ended: &Ended) {
        let Ended { place, expired } = ended;
        match *expired {
            Some(0) => {
                self.returned.remove(&place.seq);
            }
            Some(due) => {
                self.schedule.remove(due, place.seq);
                // Over, and still one of this run: else the cursor, should it come by, would take the
                // message for one that it has to hand out. If it cannot be stored, the message stays
                // away a little after a restart.
                let over = Delay { due: self.clock.start_time() + 1, given: 1 };
                self.store_delay(at, place.index, over).ok();
            }
            None => {}
        }
    }

    /// At the front again.
    fn give_back(&mut self, place: Place) {
        self.returned.insert(place.seq, place);
    }

    fn acked(&mut self, at: usize, place: Place) -> Result<()> {
        let dead = Slot { state: State::Dead, ..owed_slot(&place) };
        let stored = self.tracks[at].map().and_then(|mapped| mapped.store_slot(place.index, dead));
        if stored.is_err() {
            self.give_back(place);
            return stored;
        }
        self.note_settled(at, place.index, place.bytes.into());
        self.counts.acked += 1;
        Ok(())
    }

    fn released(&mut self, at: usize, place: Place) -> Result<()> {
        let released = Place { attempts: place.attempts - 1, ..place };
        let slot = owed_slot(&released);
        let stored = self.tracks[at].map().and_then(|mapped| mapped.store_slot(place.index, slot));
        let back = if stored.is_ok() { released } else { place };
        self.give_back(back);
        self.counts.released += u64::from(stored.is_ok());
        stored
    }

    /// An attempt failed: the message goes back, now or later, or dies.
    fn failed(&mut self, at: usize, place: Place, delay: Option<Duration>) -> Result<()> {
        if self.policy.is_last(place.attempts) {
            let died = self.die(at, place, Cause::Attempts, None);
            return died.inspect_err(|_| self.give_back(place));
        }
        let delay = delay.unwrap_or_else(|| self.backoff_of(&place));
        self.stay_away(at, place, delay).1
    }

    fn backoff_of(&self, place: &Place) -> Duration {
        let chance = fold(fold(self.clock.start_time(), place.seq), place.attempts.into());
        self.policy.backoff.after(place.attempts, chance)
    }

    /// Back after this time: tells when that is, 0 for at once, and whether it is stored. If not, it holds
    /// in this run all the same.
    fn stay_away(&mut self, at: usize, place: Place, delay: Duration) -> (u64, Result<()>) {
        if delay.is_zero() {
            self.give_back(place);
            return (0, Ok(()));
        }
        let given = clock::millis(delay);
        let due = self.clock.next() + given;
        self.schedule.put(due, place.seq);
        (due, self.store_delay(at, place.index, Delay { due, given }))
    }

    pub(super) fn store_delay(&mut self, at: usize, index: u32, delay: Delay) -> Result<()> {
        let track = &mut self.tracks[at];
        let base_time = track.base_time;
        track.note_change(index);
        track.map()?.store_delay(index, base_time, Some(delay))
    }

    /// Leases that have run out: their messages go back, or die.
    pub(super) fn end_overdue_leases(&mut self) {
        let now = self.clock.now();
        while let Some((ticket, place)) = self.leases.overdue(now) {
            self.news.returned = true;
            self.counts.lease_expired += 1;
            self.changes += 1;
            let Ok(found) = self.find_place(place) else {
                // To be looked up again; its segment is kept for this run.
                self.give_back(place);
                self.leases.expire(ticket, 0);
                continue;
            };
            let Some((at, place)) = found else {
                self.leases.end(ticket);
                continue;
            };
            self.tracks[at].leased -= 1;
            self.tracks[at].note_change(place.index);
            if self.policy.is_last(place.attempts) {
                self.leases.end(ticket);
                let died = self.die(at, place, Cause::Attempts, None);
                // It is handed out no more, but looked at again.
                died.unwrap_or_else(|_| self.give_back(place));
                continue;
            }
            // That it stays away is kept in memory at least.
            let (due, _) = self.stay_away(at, place, self.backoff_of(&place));
            self.leases.expire(ticket, due);
        }
    }

    /// Gives a delivery more time; one that has run out is its holder's again.
    pub(super) fn extend(&mut self, ticket: Ticket, seq: u64, time: Duration) -> Result<()> {
        self.check_open()?;
        let expired = Error::LeaseExpired { seq: Seq(seq) };
        if self.policy.visibility.is_none() {
            // Without a timeout nothing runs out.
            return Ok(());
        }
        let deadline = self.clock.after(self.clock.coarse(), clock::millis(time));
        let Some((place, has_expired)) = self.leases.place(ticket) else { return Err(expired) };
        let found = if has_expired { self.find_place(place)? } else { None };
        let ended = self.leases.extend(ticket, deadline).ok_or(expired)?;
        if let Some((at, place)) = found {
            self.take_out(at, &Ended { place, ..ended });
            self.tracks[at].leased += 1;
        }
        Ok(())
    }

    /// A leased message turned out not to be due: its record says so, and its slot did not.
    pub(super) fn put_off(&mut self, leased: &Leased, due: u64) -> Result<()> {
        let Some((at, place)) = self.take_back_unseen(leased)? else { return Ok(()) };
        let given = due.saturating_sub(leased.pushed_at);
        self.schedule.put(due, place.seq);
        let released = Place { attempts: place.attempts - 1, ..place };
        self.store_delay(at, place.index, Delay { due, given })?;
        self.tracks[at].map()?.store_slot(place.index, owed_slot(&released))
    }

    /// The time of a leased message turned out to be over.
    pub(super) fn expire(&mut self, leased: &Leased) -> Result<()> {
        let Some((at, place)) = self.take_back_unseen(leased)? else { return Ok(()) };
        let moves = self.policy.expired == crate::options::Expired::DeadLetter;
        let ended = if moves && self.policy.has_dead_letters {
            // This time it was not handed out.
            self.die(at, Place { attempts: place.attempts - 1, ..place }, Cause::Expired, None)
        } else {
            self.settle_silently(at, place.index, place.offset, State::Dead)
        };
        self.counts.expired += u64::from(ended.is_ok());
        ended.inspect_err(|_| self.give_back(place))
    }

    /// Ends a lease whose message nobody has seen.
    pub(super) fn take_back_unseen(&mut self, leased: &Leased) -> Result<Option<(usize, Place)>> {
        // It may have run out while its payload was copied, and be back, or somebody else's.
        let Some(found) = self.end_lease(leased.ticket)? else { return Ok(None) };
        self.counts.popped -= 1;
        self.counts.redelivered -= u64::from(leased.attempts > 1);
        self.news.returned = true;
        Ok(Some(found))
    }

    /// A slot that was unsettled is settled now.
    pub(super) fn note_settled(&mut self, at: usize, index: u32, bytes: u64) {
        self.news.reclaims |= self.tracks[at].settle(index, bytes);
        // Relaxed, and stored by whoever has the lock: those who read it only want to know how many.
        let count = self.settled_count.load(std::sync::atomic::Ordering::Relaxed);
        self.settled_count.store(count + 1, std::sync::atomic::Ordering::Relaxed);
        self.news.settled = true;
    }
}
