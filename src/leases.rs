//! The leases of messages that are handed out: a slab. Pure: no I/O, no locks, no clock.
//!
//! Promises: a ticket ends its own lease or none, however late it is used. A lease that ran out is
//! kept until its message is handed out again or settled, so that a late answer can still count.
//! Memory is bounded by the largest number of leases that there was at one time. To begin and to
//! end a lease takes a few steps, however many leases there are, because those that were not
//! extended run out in the order in which they began.

use crate::format::address::{Index, Offset, Ordinal};
use crate::time::Time;

use std::collections::{BTreeMap, BTreeSet};

/// Names a lease. Once the lease has ended, it names nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    entry: u32,
    generation: u32,
}

/// What a lease knows of its message: which one it is, and where it lay when that was last looked
/// up. Compaction may have moved it since then; its Seq finds it again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    pub(crate) ordinal: Ordinal,
    pub(crate) index: Index,
    pub(crate) offset: Offset,
    /// The delivery that is under way is counted.
    pub(crate) attempts: u32,
    /// Bytes of its record.
    pub(crate) bytes: u32,
    pub(crate) is_transient: bool,
}

/// The deliveries that are not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    entries: Vec<Lease>,
    free: Vec<u32>,
    /// The ends of the list of leases with the common timeout, in the order in which they began.
    oldest: Option<u32>,
    newest: Option<u32>,
    /// Leases with a deadline of their own.
    extended: BTreeSet<(Time, u32)>,
    /// Leases that ran out, by Seq, with the time before which the message is not handed out again.
    expired: BTreeMap<u64, (Ticket, Time)>,
}

#[derive(Debug)]
struct Lease {
    generation: u32,
    state: LeaseState,
    older: Option<u32>,
    newer: Option<u32>,
    deadline: Time,
    place: Place,
}

impl Lease {
    /// Whether its message is in flight.
    fn is_out(&self) -> bool {
        !matches!(self.state, LeaseState::Free | LeaseState::Expired)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LeaseState {
    Free,
    /// Without a deadline.
    Held,
    /// In the list.
    Timed,
    /// In `extended`.
    Extended,
    /// In `expired`.
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

impl Leases {
    /// How many leases have not run out.
    pub(crate) fn count(&self) -> usize {
        self.entries.len() - self.free.len() - self.expired.len()
    }

    /// Begins a lease. `deadline` is never before that of an earlier call.
    #[inline]
    pub(crate) fn begin(&mut self, place: Place, deadline: Option<Time>) -> Ticket {
        let state = if deadline.is_some() { LeaseState::Timed } else { LeaseState::Held };
        let number = match self.free.pop() {
            Some(number) => number,
            None => self.grow(),
        };
        let entry = self.entry(number);
        (entry.state, entry.place, entry.deadline) = (state, place, deadline.unwrap_or_default());
        let ticket = Ticket { entry: number, generation: entry.generation };
        if state == LeaseState::Timed {
            self.link(number);
        }
        ticket
    }

    #[cold]
    fn grow(&mut self) -> u32 {
        let (place, older, newer) = (Place::default(), None, None);
        let entry = Lease {
            generation: 0,
            state: LeaseState::Free,
            older,
            newer,
            deadline: Time::ZERO,
            place,
        };
        self.entries.push(entry);
        u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 deliveries fit in memory")
    }

    /// Ends a lease; `None` if it has ended already.
    #[inline]
    pub(crate) fn end(&mut self, ticket: Ticket) -> Option<Ended> {
        let entry = self.entries.get_mut(widen(ticket.entry))?;
        if entry.generation != ticket.generation || entry.state == LeaseState::Free {
            return None;
        }
        let place = entry.place;
        entry.generation = entry.generation.wrapping_add(1);
        let state = std::mem::replace(&mut entry.state, LeaseState::Free);
        let expired = match state {
            LeaseState::Expired => self.expired.remove(&place.seq).map(|(_, due)| due),
            LeaseState::Free | LeaseState::Held => None,
            LeaseState::Timed | LeaseState::Extended => {
                self.leave(ticket.entry, state);
                None
            }
        };
        self.free.push(ticket.entry);
        Some(Ended { place, expired })
    }

    /// What a lease knows of its message, and whether it has run out; `None` if it has ended.
    #[inline]
    pub(crate) fn place(&self, ticket: Ticket) -> Option<(Place, bool)> {
        self.known(ticket).map(|(state, place)| (place, state == LeaseState::Expired))
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
        self.entries.iter().any(|lease| lease.place.seq == seq && lease.is_out())
    }

    /// The same for the message that lies here, as far as its lease knows where it lies.
    pub(crate) fn has_at(&self, ordinal: Ordinal, index: Index) -> bool {
        let is_out = |lease: &Lease| {
            (lease.place.ordinal, lease.place.index) == (ordinal, index) && lease.is_out()
        };
        self.entries.iter().any(is_out)
    }

    /// Gives a lease another deadline. A lease that had run out begins again. Returns what
    /// [`Leases::end`] would have returned: `None` if the lease has ended.
    pub(crate) fn extend(&mut self, ticket: Ticket, deadline: Time) -> Option<Ended> {
        let (state, place) = self.known(ticket)?;
        self.leave(ticket.entry, state);
        let expired = self.expired.remove(&place.seq).map(|(_, due)| due);
        let entry = self.entry(ticket.entry);
        (entry.state, entry.deadline) = (LeaseState::Extended, deadline);
        self.extended.insert((deadline, ticket.entry));
        Some(Ended { place, expired })
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let first = self.extended.first().map(|&(deadline, _)| deadline);
        let oldest = self.oldest.and_then(|oldest| self.entries.get(widen(oldest)));
        let deadline = oldest.map(|entry| entry.deadline);
        // No iterator, because this is called so often.
        match (first, deadline) {
            (Some(first), Some(deadline)) => Some(first.min(deadline)),
            (first, deadline) => first.or(deadline),
        }
    }

    /// A lease whose deadline has come. The caller then calls [`Leases::expire`] for it.
    pub(crate) fn overdue(&self, now: Time) -> Option<(Ticket, Place)> {
        let oldest = self
            .oldest
            .and_then(|number| self.entries.get(widen(number)).map(|e| (e.deadline, number)));
        let first = [oldest, self.extended.first().copied()].into_iter().flatten().min();
        let (_, number) = first.filter(|&(deadline, _)| deadline <= now)?;
        let entry = self.entries.get(widen(number))?;
        Some((Ticket { entry: number, generation: entry.generation }, entry.place))
    }

    /// Notes that a lease has run out. Its message waits until `due`, or comes next if that is
    /// [`Time::ZERO`].
    pub(crate) fn expire(&mut self, ticket: Ticket, due: Time) {
        if let Some((state, place)) = self.known(ticket) {
            self.leave(ticket.entry, state);
            self.entry(ticket.entry).state = LeaseState::Expired;
            self.expired.insert(place.seq, (ticket, due));
        }
    }

    fn known(&self, ticket: Ticket) -> Option<(LeaseState, Place)> {
        let entry = self.entries.get(widen(ticket.entry))?;
        let is_it = entry.generation == ticket.generation && entry.state != LeaseState::Free;
        is_it.then_some((entry.state, entry.place))
    }

    fn entry(&mut self, number: u32) -> &mut Lease {
        &mut self.entries[widen(number)]
    }

    /// Takes a lease, which is or was in this state, out of the list or set of its state.
    fn leave(&mut self, number: u32, state: LeaseState) {
        let Lease { older, newer, deadline, .. } = *self.entry(number);
        match state {
            LeaseState::Extended => drop(self.extended.remove(&(deadline, number))),
            LeaseState::Timed => {
                match older {
                    Some(older) => self.entry(older).newer = newer,
                    None => self.oldest = newer,
                }
                match newer {
                    Some(newer) => self.entry(newer).older = older,
                    None => self.newest = older,
                }
            }
            LeaseState::Free | LeaseState::Held | LeaseState::Expired => {}
        }
    }

    /// Puts a lease at the end of the list.
    fn link(&mut self, number: u32) {
        let older = self.newest.replace(number);
        let entry = self.entry(number);
        (entry.older, entry.newer) = (older, None);
        match older {
            Some(older) => self.entry(older).newer = Some(number),
            None => self.oldest = Some(number),
        }
    }
}

fn widen(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Millis;
    use proptest::prelude::*;

    fn place(seq: u64) -> Place {
        Place {
            seq,
            ordinal: Ordinal(1),
            index: Index::FIRST,
            offset: Offset(4096),
            attempts: 1,
            bytes: 0,
            is_transient: false,
        }
    }

    fn held(seq: u64) -> Ended {
        Ended { place: place(seq), expired: None }
    }

    #[test]
    fn a_late_ticket_ends_nothing() {
        let mut leases = Leases::default();
        let first = leases.begin(place(1), None);
        assert_eq!(leases.end(first), Some(held(1)));
        assert_eq!(leases.end(first), None, "a second answer");
        let second = leases.begin(place(2), None);
        assert_eq!(leases.end(first), None, "the entry is another's now");
        assert_eq!(leases.count(), 1);
        assert_eq!(leases.end(second), Some(held(2)));
        assert_eq!((leases.count(), leases.next_deadline()), (0, None));
    }

    #[test]
    fn what_ran_out_can_be_answered_until_it_is_handed_out_again() {
        let mut leases = Leases::default();
        let tickets = [1, 2, 3].map(|seq| leases.begin(place(seq), Some(Time(10 + seq))));
        assert_eq!(leases.overdue(Time(10)), None);
        assert_eq!(leases.overdue(Time(12)), Some((tickets[0], place(1))));
        for ticket in tickets {
            leases.expire(ticket, Time(50));
        }
        assert_eq!(
            (leases.count(), leases.next_deadline(), leases.overdue(Time(99))),
            (0, None, None)
        );
        leases.end_expired(1);
        assert_eq!((leases.end(tickets[0]), leases.extend(tickets[0], Time(9))), (None, None));
        assert_eq!(
            leases.end(tickets[1]),
            Some(Ended { place: place(2), expired: Some(Time(50)) })
        );
        let again = leases.extend(tickets[2], Time(70));
        assert_eq!(again, Some(Ended { place: place(3), expired: Some(Time(50)) }));
        assert_eq!((leases.count(), leases.next_deadline()), (1, Some(Time(70))));
        assert_eq!(leases.end(tickets[2]), Some(held(3)));
    }

    proptest! {
        /// Against a plain list: begin, end, extend, expire in any order.
        #[test]
        fn runs_out_in_the_order_of_deadlines(
            steps in prop::collection::vec((0u8..4, 0usize..9, 0u64..20), 0..60),
        ) {
            let (mut leases, mut now) = (Leases::default(), Time::ZERO);
            let mut model = Vec::<(Ticket, u64, Time)>::new();
            for (step, (what, which, time)) in (1..).zip(steps) {
                let time = Millis(time);
                let which = which % model.len().max(1);
                match what {
                    0 => {
                        now = now + time;
                        let deadline = now + Millis(30);
                        model.push((leases.begin(place(step), Some(deadline)), step, deadline));
                    }
                    1 if !model.is_empty() => {
                        let (ticket, seq, _) = model.remove(which);
                        prop_assert_eq!(leases.end(ticket), Some(held(seq)));
                    }
                    2 if !model.is_empty() => {
                        model[which].2 = now + time;
                        let (ticket, seq, _) = model[which];
                        prop_assert_eq!(leases.extend(ticket, now + time), Some(held(seq)));
                    }
                    _ => {
                        now = now + time;
                        while let Some((ticket, place)) = leases.overdue(now) {
                            let at = model.iter().position(|(_, seq, _)| *seq == place.seq);
                            let at = at.unwrap();
                            let (_, seq, deadline) = model.remove(at);
                            let is_first = model.iter().all(|other| other.2 >= deadline);
                            prop_assert!(deadline <= now && is_first);
                            leases.expire(ticket, Time::ZERO);
                            leases.end_expired(seq);
                        }
                    }
                }
                prop_assert_eq!(leases.count(), model.len());
                let first = model.iter().map(|(_, _, deadline)| *deadline).min();
                prop_assert_eq!(leases.next_deadline(), first);
            }
        }
    }
}
