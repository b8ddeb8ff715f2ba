//! Where each message is that is not settled. Pure: no I/O, no lock, no clock.
//!
//! Promises: a message is in one place at most: behind the cursor (never handed out in this run),
//! *returned* (given back, at the front), *scheduled* (not before its time), *leased*, *dying*, or
//! *set aside*. One that is in none of them is settled. Memory does not grow with the backlog but
//! by two numbers for each delayed message.

use super::dying::Dying;
use crate::engine::backlog::cursor::Cursor;
use crate::format::bytes::to_u64;
use crate::format::standing::Standing;
use crate::leases::{Leases, Place};
use crate::schedule::Schedule;
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Where a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whereabouts {
    Ready,
    /// Not to be handed out before this time.
    Delayed(Time),
    InFlight,
    Dying,
    /// Only a newer version of keepq can read it.
    SetAside,
    Settled,
}

/// Whether a message is out of all places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TakenOut {
    Everywhere,
    /// It may still be in the schedule, for a time that its slot tells: see [`Places::unschedule`].
    PerhapsScheduled,
}

/// The places of all messages that are not settled.
#[derive(Debug)]
pub(crate) struct Places {
    /// What is behind it was never handed out in this run.
    cursor: Cursor,
    /// Handed out once, and given back.
    returned: BTreeMap<u64, Place>,
    /// Not to be handed out before their time: pushed so, or given back.
    schedule: Schedule,
    /// Those of which the slot does not tell the time, because it could not be stored.
    untold: BTreeMap<u64, Time>,
    leases: Leases,
    dying: Dying,
    /// Those that only a newer version of keepq can read: stored, and handed out to no consumer.
    set_aside: BTreeSet<u64>,
}

impl Places {
    pub(super) fn new(cursor: Cursor) -> Self {
        Self {
            cursor,
            returned: BTreeMap::new(),
            schedule: Schedule::default(),
            untold: BTreeMap::new(),
            leases: Leases::default(),
            dying: Dying::default(),
            set_aside: BTreeSet::new(),
        }
    }

    #[inline]
    pub(crate) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    #[inline]
    pub(super) fn cursor_mut(&mut self) -> &mut Cursor {
        &mut self.cursor
    }

    #[inline]
    pub(super) fn leases(&self) -> &Leases {
        &self.leases
    }

    #[inline]
    pub(super) fn leases_mut(&mut self) -> &mut Leases {
        &mut self.leases
    }

    #[inline]
    pub(crate) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    #[inline]
    pub(crate) fn schedule_mut(&mut self) -> &mut Schedule {
        &mut self.schedule
    }

    pub(crate) fn dying(&self) -> &Dying {
        &self.dying
    }

    pub(crate) fn dying_mut(&mut self) -> &mut Dying {
        &mut self.dying
    }

    /// The place of a message that was given back.
    pub(super) fn returned(&self, seq: u64) -> Option<Place> {
        self.returned.get(&seq).copied()
    }

    /// At the front again.
    pub(super) fn put_back(&mut self, place: Place) {
        self.returned.insert(place.seq, place);
    }

    /// The first of those up to message `last_seq` that were given back.
    #[inline]
    pub(super) fn first_returned(&self, last_seq: u64) -> Option<Place> {
        let first = self.returned.first_key_value().map(|(_, &place)| place);
        first.filter(|place| place.seq <= last_seq)
    }

    /// The first one that was given back, from this number on up to message `last_seq`: as `pop`
    /// would take them.
    pub(crate) fn next_returned(&self, from: u64, last_seq: u64) -> Option<u64> {
        let next = self.returned.range(from..).next().map(|(seq, _)| *seq);
        next.filter(|seq| *seq <= last_seq)
    }

    /// It is no longer among those that were given back; false if it was not.
    pub(super) fn leave_returned(&mut self, seq: u64) -> bool {
        self.returned.remove(&seq).is_some()
    }

    /// The slot could not be told this time.
    pub(super) fn note_untold(&mut self, seq: u64, due: Time) {
        self.untold.insert(seq, due);
    }

    /// It is no longer in the schedule, where it had this time.
    pub(super) fn leave_schedule(&mut self, due: Time, seq: u64) {
        self.schedule.remove(due, seq);
        self.untold.remove(&seq);
    }

    pub(super) fn set_aside(&mut self, seq: u64) {
        self.set_aside.insert(seq);
    }

    /// Whether any of these messages is dying or set aside, so that nothing else can settle it.
    pub(super) fn holds_any_in(&self, seqs: Range<u64>) -> bool {
        self.dying.has_any_in(seqs.clone()) || self.set_aside.range(seqs).next().is_some()
    }

    /// Messages with these numbers are gone for good: they wait nowhere any more. Those in flight
    /// stay with their holders.
    pub(super) fn forget(&mut self, seqs: &Range<u64>) {
        self.returned.retain(|seq, _| !seqs.contains(seq));
        self.untold.retain(|seq, _| !seqs.contains(seq));
        self.set_aside.retain(|seq| !seqs.contains(seq));
        self.schedule.forget(seqs);
        self.dying.forget(seqs);
    }

    /// Whether something comes before what is behind the cursor.
    #[inline]
    pub(super) fn has_front(&self) -> bool {
        !self.returned.is_empty() || self.schedule.has_due()
    }

    /// Messages in flight.
    pub(crate) fn in_flight(&self) -> u64 {
        to_u64(self.leases.count())
    }

    /// Messages that wait for their time.
    pub(crate) fn delayed_at(&self, now: Time) -> u64 {
        to_u64(self.schedule.delayed_at(now))
    }

    /// The same, of those up to message `last_seq`. Looks at each of them.
    pub(crate) fn delayed_up_to(&self, last_seq: u64, now: Time) -> u64 {
        to_u64(self.schedule.undue_at(now).filter(|(_, seq)| *seq <= last_seq).count())
    }

    /// Whether it was given back.
    pub(super) fn is_returned(&self, seq: u64) -> bool {
        self.returned.contains_key(&seq)
    }

    /// Messages that only a newer version of keepq can read.
    pub(crate) fn count_set_aside(&self) -> u64 {
        to_u64(self.set_aside.len())
    }

    /// How many messages are not ready, those left out that are not before their times.
    pub(crate) fn elsewhere(&self) -> u64 {
        self.in_flight() + self.count_set_aside() + self.dying.count()
    }

    /// Whether a message is in the schedule, or a lease has a deadline.
    #[inline]
    pub(super) fn has_times(&self) -> bool {
        self.schedule.first_time().is_some() || self.leases.next_deadline().is_some()
    }

    /// Whether a lease or a delay is over by this time.
    #[inline(always)]
    pub(super) fn has_due_at(&self, time: Time) -> bool {
        let is_due = |due: Option<Time>| due.is_some_and(|due| due <= time);
        is_due(self.schedule.first_time()) || is_due(self.leases.next_deadline())
    }

    /// When there will be something to hand out that is not there yet. `is_full`: as many are in
    /// flight as may be.
    #[inline]
    pub(super) fn next_delivery_time(&self, is_full: bool) -> Option<Time> {
        let due = self.schedule.first_undue().filter(|_| !is_full);
        Time::earlier(due, self.leases.next_deadline())
    }

    /// Takes a message out of wherever memory tells that it is: returned, dying, with a holder
    /// whose lease has run out, or in the schedule. (One that is in flight is nowhere else.)
    #[must_use]
    pub(super) fn take_out(&mut self, seq: u64) -> TakenOut {
        self.returned.remove(&seq);
        self.dying.remove(seq);
        self.set_aside.remove(&seq);
        let run_out = self.leases.end_expired(seq).filter(|&due| due > Time::ZERO);
        let untold = self.untold.remove(&seq);
        let mut known = [run_out, untold].into_iter().flatten();
        if self.schedule.is_empty() || known.any(|due| self.schedule.remove(due, seq)) {
            TakenOut::Everywhere
        } else {
            TakenOut::PerhapsScheduled
        }
    }

    /// Takes a message out of the schedule, which has it for one of these times; false if not.
    pub(super) fn unschedule(&mut self, seq: u64, times: [Option<Time>; 2]) -> bool {
        let mut is_out = false;
        for due in times.into_iter().flatten() {
            is_out |= self.schedule.remove(due, seq);
        }
        is_out
    }

    /// Where a message is whose slot cannot tell; `None` if it is behind the cursor, or settled.
    /// `times`: those for which it may be in the schedule; `None` if that is not known either, and
    /// all that are scheduled are looked at. Looks at all that are in flight, if it
    /// `may_be_leased`.
    pub(super) fn find(
        &self,
        seq: u64,
        times: Option<[Option<Time>; 2]>,
        may_be_leased: bool,
    ) -> Option<Whereabouts> {
        if self.set_aside.contains(&seq) {
            return Some(Whereabouts::SetAside);
        }
        if self.dying.has(seq) {
            return Some(Whereabouts::Dying);
        }
        if self.is_returned(seq) {
            return Some(Whereabouts::Ready);
        }
        let due = times.map_or_else(
            || self.schedule.time_of(seq),
            |times| {
                let known = times.into_iter().chain([self.untold.get(&seq).copied()]).flatten();
                known.into_iter().find(|&due| self.schedule.contains(due, seq))
            },
        );
        let is_leased = may_be_leased && due.is_none() && self.leases.has(seq);
        due.map(Whereabouts::Delayed).or_else(|| is_leased.then_some(Whereabouts::InFlight))
    }

    /// Where a message is. `standing`, `times`: what its slot says; `is_counted`: that was taken up
    /// in this run. A time may be past.
    pub(super) fn of(
        &self,
        seq: u64,
        standing: Standing,
        times: [Option<Time>; 2],
        is_counted: bool,
    ) -> Whereabouts {
        match standing {
            Standing::Settled | Standing::Lost | Standing::Outlived => return Whereabouts::Settled,
            Standing::Dying => return Whereabouts::Dying,
            Standing::Scheduled(_) | Standing::Ready | Standing::Unreadable => {}
        }
        if self.set_aside.contains(&seq) {
            return Whereabouts::SetAside;
        }
        if self.is_returned(seq) {
            return Whereabouts::Ready;
        }
        let mut times = times.into_iter().chain([self.untold.get(&seq).copied()]).flatten();
        if let Some(due) = times.find(|&due| self.schedule.contains(due, seq)) {
            return Whereabouts::Delayed(due);
        }
        match standing {
            // What is not counted yet was not handed out in this run.
            Standing::Scheduled(due) if !is_counted => Whereabouts::Delayed(due),
            // No one has met what is behind the cursor.
            Standing::Ready | Standing::Unreadable if seq >= self.cursor.seq() => {
                Whereabouts::Ready
            }
            _ => Whereabouts::InFlight,
        }
    }
}
