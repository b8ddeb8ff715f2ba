//! Leases against a plain list.

use super::*;
use crate::format::address::Offset;
use crate::format::bytes::to_u64;
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

/// As many messages side by side, each of which takes 32 bytes.
fn batch(first_seq: u64, number: usize) -> Batch {
    let starts = (0..=number).map(|nth| Offset(4096 + 32 * to_u64(nth)));
    Batch::new(first_seq, Ordinal(1), Index(7), starts.collect())
}

fn ended(ended: Option<Ended>) -> Option<(u64, Option<Time>)> {
    ended.map(|ended| (ended.place.seq, ended.expired))
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
    assert_eq!((leases.count(), leases.next_deadline(), leases.overdue(Time(99))), (0, None, None));
    leases.end_expired(1);
    assert_eq!((leases.end(tickets[0]), leases.extend(tickets[0], Time(9))), (None, None));
    assert_eq!(leases.end(tickets[1]), Some(Ended { place: place(2), expired: Some(Time(50)) }));
    let again = leases.extend(tickets[2], Time(70));
    assert_eq!(again, Some(Ended { place: place(3), expired: Some(Time(50)) }));
    assert_eq!((leases.count(), leases.next_deadline()), (1, Some(Time(70))));
    assert_eq!(leases.end(tickets[2]), Some(held(3)));
}

#[test]
fn a_run_is_one_lease_until_its_messages_part() {
    let mut leases = Leases::default();
    let first = leases.begin_batch(batch(10, 4), Some(Time(20)));
    let [second, third, fourth] = [11, 12, 13].map(|seq| first.of(seq));
    assert_eq!((leases.count(), leases.entries.len()), (4, 1));
    let expected = Place {
        ordinal: Ordinal(1),
        index: Index(9),
        offset: Offset(4160),
        bytes: 32,
        ..place(12)
    };
    assert_eq!(leases.place(third), Some((expected, false)));
    assert!(leases.has_at(Ordinal(1), Index(10)) && !leases.has_at(Ordinal(1), Index(11)));
    assert_eq!([9, 14].map(|seq| leases.place(first.of(seq))), [None, None], "none of the batch");
    assert_eq!(ended(leases.end(second)), Some((11, None)));
    assert_eq!(leases.end(second), None);
    // One that is extended outlasts the others, under the same ticket.
    assert_eq!(ended(leases.extend(third, Time(90))), Some((12, None)));
    assert_eq!((leases.count(), leases.next_deadline()), (3, Some(Time(20))));
    let overdue = leases.overdue(Time(20)).expect("the first one");
    assert_eq!((overdue.0, overdue.1.seq), (first, 10));
    leases.expire(first, Time(50));
    assert_eq!(leases.overdue(Time(20)).map(|(ticket, _)| ticket), Some(fourth));
    leases.expire(fourth, Time::ZERO);
    assert_eq!((leases.count(), leases.overdue(Time(80))), (1, None));
    // Late answers, until a message is handed out again.
    assert_eq!(ended(leases.end(first)), Some((10, Some(Time(50)))));
    leases.end_expired(13);
    assert_eq!((leases.end(fourth), leases.extend(fourth, Time(99))), (None, None));
    assert_eq!(ended(leases.extend(third, Time(95))), Some((12, None)));
    assert_eq!(leases.next_deadline(), Some(Time(95)));
    assert_eq!(ended(leases.end(third)), Some((12, None)));
    assert_eq!((leases.count(), leases.next_deadline(), leases.parted.len()), (0, None, 0));
}

#[test]
fn what_ended_behind_one_that_holds_takes_no_memory_for_ever() {
    let mut leases = Leases::default();
    let first = leases.begin(place(1), Some(Time(1)));
    for seq in 2..10_000 {
        let ticket = leases.begin(place(seq), Some(Time(seq)));
        assert_eq!(ended(leases.end(ticket)), Some((seq, None)));
    }
    assert!(leases.timed.kept() < 200, "{}", leases.timed.kept());
    assert_eq!(leases.next_deadline(), Some(Time(1)));
    leases.end(first);
    assert_eq!((leases.next_deadline(), leases.timed.kept()), (None, 0));
}

proptest! {
    /// Against a plain list: begin, end, extend, expire in any order, alone and in batches.
    #[test]
    fn runs_out_in_the_order_of_deadlines(
        steps in prop::collection::vec((0u8..6, 0usize..9, 0u64..20), 0..60),
    ) {
        let (mut leases, mut now, mut next) = (Leases::default(), Time::ZERO, 1);
        let mut model = Vec::<(Ticket, u64, Time)>::new();
        for (what, which, time) in steps {
            let (time, number) = (Millis(time), which + 1);
            let which = which % model.len().max(1);
            match what {
                0 => {
                    now = now + time;
                    let deadline = now + Millis(30);
                    model.push((leases.begin(place(next), Some(deadline)), next, deadline));
                    next += 1;
                }
                1 => {
                    now = now + time;
                    let deadline = now + Millis(30);
                    let first = leases.begin_batch(batch(next, number), Some(deadline));
                    for seq in (next..).take(number) {
                        model.push((first.of(seq), seq, deadline));
                        next += 1;
                    }
                }
                2 if !model.is_empty() => {
                    let (ticket, seq, _) = model.remove(which);
                    prop_assert_eq!(ended(leases.end(ticket)), Some((seq, None)));
                    prop_assert_eq!(leases.end(ticket), None);
                }
                3 if !model.is_empty() => {
                    model[which].2 = now + time;
                    let (ticket, seq, _) = model[which];
                    prop_assert_eq!(ended(leases.extend(ticket, now + time)), Some((seq, None)));
                }
                4 if !model.is_empty() => {
                    let (ticket, _, _) = model[which];
                    let number = match leases.held(ticket) {
                        Some(Holding::Batch(batch)) => {
                            let there = batch.side_by_side(ticket.seq(), number);
                            there.map_or(0, |(_, starts)| starts.len() - 1)
                        }
                        Some(Holding::One(place)) => usize::from(place.seq == ticket.seq()),
                        None => 0,
                    };
                    if number > 0 {
                        leases.end_held(ticket, number);
                        let seqs = ticket.seq()..ticket.seq() + to_u64(number);
                        model.retain(|(_, seq, _)| !seqs.contains(seq));
                    }
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
            for (ticket, seq, _) in &model {
                let known = leases.place(*ticket).map(|(place, expired)| (place.seq, expired));
                prop_assert_eq!(known, Some((*seq, false)));
                prop_assert!(leases.has(*seq));
            }
            let first = model.iter().map(|(_, _, deadline)| *deadline).min();
            prop_assert_eq!(leases.next_deadline(), first);
        }
        for (ticket, _, _) in model {
            leases.end(ticket);
        }
        prop_assert_eq!((leases.count(), leases.parted.len()), (0, 0));
        prop_assert_eq!(leases.free.len(), leases.entries.len());
    }
}
