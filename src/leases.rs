//! The leases of messages that are handed out: a slab. Pure: no I/O, no locks, no clock.
//!
//! Promises: a ticket ends its own lease or none, however late it is used. A lease that ran out is
//! kept until its message is handed out again or settled, so that a late answer can still count.
//! Memory is bounded by the largest number of leases that there was at one time. To begin and to
//! end a lease takes a few steps, however many leases there are, because those that were not
//! extended run out in the order in which they began.
//!
//! Messages side by side that are handed out together have one lease, a [`Batch`]. One that is
//! extended, or whose time runs out, parts from its batch, and gets a lease of its own.

mod batch;
mod bits;
mod place;
#[cfg(test)]
mod tests;
mod timed;

pub(crate) use batch::Batch;
pub(crate) use place::Place;

use crate::format::address::{Index, Ordinal};
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use timed::Timed;

/// Names the lease of a message. Once the lease has ended, it names nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    seq: u64,
    entry: u32,
    generation: u32,
}

impl Ticket {
    /// The number of the message.
    #[inline]
    pub(crate) fn seq(self) -> u64 {
        self.seq
    }

    /// That of another message of the same batch.
    #[inline]
    pub(crate) fn of(self, seq: u64) -> Self {
        Self { seq, ..self }
    }
}

/// The deliveries that are not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    entries: Vec<Lease>,
    free: Vec<u32>,
    /// How many messages are in flight.
    count: usize,
    /// Leases with the common timeout, in the order in which they began.
    timed: Timed,
    /// Leases with a deadline of their own.
    extended: BTreeSet<(Time, u32)>,
    /// Leases that ran out, by Seq, with the time before which the message is not handed out again.
    expired: BTreeMap<u64, (Ticket, Time)>,
    /// The leases of messages that have parted from their batches, by Seq.
    parted: BTreeMap<u64, Ticket>,
}

#[derive(Debug)]
struct Lease {
    generation: u32,
    state: LeaseState,
    deadline: Time,
    place: Place,
    /// What it is for instead, if it is the lease of a batch.
    batch: Option<Box<Batch>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LeaseState {
    Free,
    /// Without a deadline.
    Held,
    /// In `timed`.
    Timed,
    /// In `extended`. Not of a batch.
    Extended,
    /// In `expired`. Not of a batch.
    Expired,
}

/// A lease that has just ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ended {
    pub(crate) place: Place,
    /// If it had run out: the time before which the message is not handed out again, or
    /// [`Time::ZERO`].
    pub(crate) expired: Option<Time>,
}

/// What holds, and was not extended, and has not run out.
#[derive(Debug)]
pub(crate) enum Holding<'a> {
    One(&'a Place),
    Batch(&'a Batch),
}

impl Lease {
    /// Whether its messages, if it has any, are in flight.
    fn is_out(&self) -> bool {
        !matches!(self.state, LeaseState::Free | LeaseState::Expired)
    }

    /// Where this message was, if the lease is for it.
    #[inline]
    fn place(&self, seq: u64) -> Option<Place> {
        match &self.batch {
            None => (self.place.seq == seq).then_some(self.place),
            Some(batch) => batch.place(seq),
        }
    }
}

impl Leases {
    /// How many messages are in flight: their leases have not run out.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Begins a lease. `deadline` is never before that of an earlier call.
    #[inline(always)]
    pub(crate) fn begin(&mut self, place: Place, deadline: Option<Time>) -> Ticket {
        self.count += 1;
        let ticket = self.put(place, deadline);
        if let Some(deadline) = deadline {
            self.timed.begin(deadline, ticket.entry, ticket.generation);
        }
        ticket
    }

    /// Begins a lease for messages side by side; gives the ticket of the first one.
    pub(crate) fn begin_batch(&mut self, batch: Batch, deadline: Option<Time>) -> Ticket {
        let place = Place { seq: batch.first_seq(), ..Place::default() };
        self.count += batch.left() - 1;
        let ticket = self.begin(place, deadline);
        self.entry(ticket.entry).batch = Some(Box::new(batch));
        ticket
    }

    /// A new entry of the slab.
    #[inline(always)]
    fn put(&mut self, place: Place, deadline: Option<Time>) -> Ticket {
        let number = match self.free.pop() {
            Some(number) => number,
            None => self.grow(),
        };
        let entry = self.entry(number);
        entry.state = if deadline.is_some() { LeaseState::Timed } else { LeaseState::Held };
        (entry.place, entry.deadline) = (place, deadline.unwrap_or_default());
        Ticket { seq: place.seq, entry: number, generation: entry.generation }
    }

    #[cold]
    fn grow(&mut self) -> u32 {
        self.entries.push(Lease {
            generation: 0,
            state: LeaseState::Free,
            deadline: Time::ZERO,
            place: Place::default(),
            batch: None,
        });
        u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 deliveries fit in memory")
    }

    /// Ends a lease; `None` if it has ended already.
    #[inline]
    pub(crate) fn end(&mut self, ticket: Ticket) -> Option<Ended> {
        let ticket = self.own(ticket)?;
        let entry = self.entry(ticket.entry);
        if let Some(batch) = &mut entry.batch {
            let place = batch.take(ticket.seq)?;
            self.count -= 1;
            self.free_batch_if_over(ticket.entry);
            return Some(Ended { place, expired: None });
        }
        let place = entry.place(ticket.seq)?;
        let expired = self.leave(ticket);
        self.free(ticket.entry);
        if !self.parted.is_empty() {
            self.parted.remove(&ticket.seq);
        }
        Some(Ended { place, expired })
    }

    /// Ends the leases of messages side by side, all of which are in flight, by the ticket of the
    /// first one; `number` is at least 1.
    #[inline(always)]
    pub(crate) fn end_held(&mut self, first: Ticket, number: usize) {
        self.count -= number;
        let entry = self.entry(first.entry);
        match &mut entry.batch {
            Some(batch) => {
                batch.take_held(first.seq, number);
                self.free_batch_if_over(first.entry);
            }
            None => self.free(first.entry),
        }
    }

    /// The lease of this ticket, if it holds, and was not extended.
    #[inline]
    pub(crate) fn held(&self, ticket: Ticket) -> Option<Holding<'_>> {
        let entry = self.entries.get(widen(ticket.entry))?;
        let is_held = matches!(entry.state, LeaseState::Held | LeaseState::Timed);
        if !is_held || entry.generation != ticket.generation {
            return None;
        }
        Some(match &entry.batch {
            None => Holding::One(&entry.place),
            Some(batch) => Holding::Batch(batch),
        })
    }

    /// What a lease knows of its message, and whether it has run out; `None` if it has ended.
    #[inline]
    pub(crate) fn place(&self, ticket: Ticket) -> Option<(Place, bool)> {
        let ticket = self.own(ticket)?;
        let entry = self.entries.get(widen(ticket.entry))?;
        let place = entry.place(ticket.seq)?;
        Some((place, entry.state == LeaseState::Expired))
    }

    /// Ends the lease of message `seq` if it ran out, because the message is handed out again, or
    /// settled. Returns the time before which the message was not to be handed out, [`Time::ZERO`]
    /// for none; `None` if no lease of it ran out.
    #[inline]
    pub(crate) fn end_expired(&mut self, seq: u64) -> Option<Time> {
        if self.expired.is_empty() {
            return None;
        }
        let &(ticket, _) = self.expired.get(&seq)?;
        self.end(ticket)?.expired
    }

    /// Whether message `seq` is in flight. Looks at all leases.
    pub(crate) fn has(&self, seq: u64) -> bool {
        self.entries.iter().any(|lease| lease.is_out() && lease.place(seq).is_some())
    }

    /// The same for the message that lies here, as far as its lease knows where it lies.
    pub(crate) fn has_at(&self, ordinal: Ordinal, index: Index) -> bool {
        let lies_there = |lease: &Lease| match &lease.batch {
            None => (lease.place.ordinal, lease.place.index) == (ordinal, index),
            Some(batch) => batch.has_at(ordinal, index),
        };
        self.entries.iter().any(|lease| lease.is_out() && lies_there(lease))
    }

    /// Gives a lease another deadline. A lease that had run out begins again. Returns what
    /// [`Leases::end`] would have returned: `None` if the lease has ended.
    pub(crate) fn extend(&mut self, ticket: Ticket, deadline: Time) -> Option<Ended> {
        let (ticket, place) = self.part(ticket)?;
        let expired = self.leave(ticket);
        let entry = self.entry(ticket.entry);
        (entry.state, entry.deadline) = (LeaseState::Extended, deadline);
        self.count += 1;
        self.extended.insert((deadline, ticket.entry));
        Some(Ended { place, expired })
    }

    /// The earliest deadline.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let timed = self.timed.first().map(|(deadline, _)| deadline);
        if self.extended.is_empty() {
            return timed;
        }
        Time::earlier(timed, self.extended.first().map(|&(deadline, _)| deadline))
    }

    /// A lease whose deadline has come. The caller then calls [`Leases::expire`] for it.
    pub(crate) fn overdue(&self, now: Time) -> Option<(Ticket, Place)> {
        let first = [self.timed.first(), self.extended.first().copied()];
        let first = first.into_iter().flatten().min();
        let (_, number) = first.filter(|&(deadline, _)| deadline <= now)?;
        let entry = self.entries.get(widen(number))?;
        let place = match &entry.batch {
            None => entry.place,
            Some(batch) => batch.first()?,
        };
        Some((Ticket { seq: place.seq, entry: number, generation: entry.generation }, place))
    }

    /// Notes that a lease has run out. Its message waits until `due`, or comes next if that is
    /// [`Time::ZERO`].
    pub(crate) fn expire(&mut self, ticket: Ticket, due: Time) {
        if let Some((ticket, place)) = self.part(ticket) {
            self.leave(ticket);
            self.entry(ticket.entry).state = LeaseState::Expired;
            self.expired.insert(place.seq, (ticket, due));
        }
    }

    /// The ticket of the lease that a message has now: that of its batch, or of its own if it has
    /// parted from that. `None` if it has ended.
    #[inline]
    fn own(&self, ticket: Ticket) -> Option<Ticket> {
        let entry = self.entries.get(widen(ticket.entry))?;
        let is_it = entry.generation == ticket.generation && entry.state != LeaseState::Free;
        if is_it && entry.place(ticket.seq).is_some() {
            return Some(ticket);
        }
        // A message is in one batch at most, and parts from it once: this ticket is of that batch.
        if self.parted.is_empty() { None } else { self.parted.get(&ticket.seq).copied() }
    }

    /// The same, and where the message was. One of a batch parts from it.
    fn part(&mut self, ticket: Ticket) -> Option<(Ticket, Place)> {
        let ticket = self.own(ticket)?;
        let entry = self.entry(ticket.entry);
        let place = match &mut entry.batch {
            None => return Some((ticket, entry.place)),
            Some(batch) => batch.take(ticket.seq)?,
        };
        self.free_batch_if_over(ticket.entry);
        let own = self.put(place, None);
        self.parted.insert(place.seq, own);
        Some((own, place))
    }

    /// Takes the lease of one message out of wherever it is by its state, which ends. If it had
    /// run out, gives the time before which its message is not handed out again.
    #[inline]
    fn leave(&mut self, ticket: Ticket) -> Option<Time> {
        let entry = self.entry(ticket.entry);
        let deadline = entry.deadline;
        let state = std::mem::replace(&mut entry.state, LeaseState::Free);
        match state {
            LeaseState::Expired => return self.expired.remove(&ticket.seq).map(|(_, due)| due),
            LeaseState::Extended => drop(self.extended.remove(&(deadline, ticket.entry))),
            LeaseState::Timed => self.note_timed_ended(),
            LeaseState::Free | LeaseState::Held => {}
        }
        self.count -= 1;
        None
    }

    /// The lease of an entry has ended, or goes on in another state.
    #[inline]
    fn note_timed_ended(&mut self) {
        let Self { entries, timed, .. } = self;
        timed.end_one(|number, generation| {
            let entry = entries.get(widen(number));
            entry.is_some_and(|entry| {
                entry.generation == generation && entry.state == LeaseState::Timed
            })
        });
    }

    /// The lease of a batch ends with that of its last message.
    #[inline]
    fn free_batch_if_over(&mut self, number: u32) {
        let entry = self.entry(number);
        if entry.batch.as_ref().is_some_and(|batch| batch.left() == 0) {
            entry.batch = None;
            self.free(number);
        }
    }

    /// From here on the tickets of an entry name nothing.
    #[inline(always)]
    fn free(&mut self, number: u32) {
        let entry = self.entry(number);
        entry.generation = entry.generation.wrapping_add(1);
        let state = std::mem::replace(&mut entry.state, LeaseState::Free);
        self.free.push(number);
        if state == LeaseState::Timed {
            self.note_timed_ended();
        }
    }

    #[inline]
    fn entry(&mut self, number: u32) -> &mut Lease {
        &mut self.entries[widen(number)]
    }
}

fn widen(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
