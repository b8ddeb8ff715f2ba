//! Who has which message: a slab. Pure: no I/O, no locks, no clock.
//!
//! Promises: a ticket settles its own lease or nothing, however late it comes. Memory is bounded by
//! the most leases there ever were at one time.

/// Names a lease; worthless once the lease has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    place: usize,
    generation: u32,
}

/// Where a message lies: what a lease knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Place {
    pub(crate) seq: u64,
    pub(crate) ordinal: u64,
    pub(crate) index: u32,
    pub(crate) offset: u64,
    /// This delivery included, while one is under way.
    pub(crate) attempts: u32,
    pub(crate) is_transient: bool,
}

/// The deliveries that are not answered yet.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    entries: Vec<Entry>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    place: Option<Place>,
}

impl Leases {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Begins a lease.
    pub(crate) fn begin(&mut self, place: Place) -> Ticket {
        if let Some(free) = self.free.pop()
            && let Some(entry) = self.entries.get_mut(free)
        {
            entry.place = Some(place);
            return Ticket { place: free, generation: entry.generation };
        }
        self.entries.push(Entry { generation: 0, place: Some(place) });
        Ticket { place: self.entries.len() - 1, generation: 0 }
    }

    /// Ends a lease; `None` if it has ended already.
    pub(crate) fn end(&mut self, ticket: Ticket) -> Option<Place> {
        let entry = self.entries.get_mut(ticket.place)?;
        if entry.generation != ticket.generation {
            return None;
        }
        let place = entry.place.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(ticket.place);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(seq: u64) -> Place {
        Place { seq, ordinal: 1, index: 0, offset: 4096, attempts: 1, is_transient: false }
    }

    #[test]
    fn a_late_ticket_ends_nothing() {
        let mut leases = Leases::default();
        let first = leases.begin(place(1));
        assert_eq!(leases.end(first), Some(place(1)));
        assert_eq!(leases.end(first), None, "a second answer");
        let second = leases.begin(place(2));
        assert_eq!(leases.end(first), None, "the entry is another's now");
        assert_eq!(leases.count(), 1);
        assert_eq!(leases.end(second), Some(place(2)));
        assert_eq!(leases.count(), 0);
    }
}
