//! Every way to push, take and answer, with time passing, kills and reopens, against a plain model:
//! what is handed out, and every public count, after each step.
//!
//! `KEEPQ_MODEL_CASES` sets how many histories are tried, `KEEPQ_MODEL_STEPS` how long they are at
//! most.

mod model;

use crate::support::cases;
use keepq::{DeathCause, Error, Expired, Overflow, Queue, Seq};
use model::{At, Counts, Known, Test};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[derive(Clone, Debug)]
struct Settings {
    visibility: Option<u64>,
    max_attempts: u32,
    backoff: Option<u64>,
    ttl: Option<u64>,
    expired: Expired,
    dead_letters: bool,
    max_messages: Option<u64>,
    overflow: Overflow,
    max_in_flight: Option<u64>,
}

#[derive(Clone, Debug)]
enum Step {
    /// How many, with this delay and time to live, and whether they are transient.
    Push(u8, Option<u64>, Option<u64>, bool),
    Pop,
    PopBatch(u8),
    Ack(usize),
    Nack(usize),
    NackAfter(usize, u64),
    Reject(usize),
    Release(usize),
    Extend(usize, u64),
    Drop(usize),
    Forget(usize),
    Advance(u64),
    Peek,
    Look,
    Purge,
    Redrive(u8),
    BuryOne,
    Maintain,
    Compact,
    /// With other options.
    Reopen(Settings),
    Kill(Settings),
}

fn settings() -> impl Strategy<Value = Settings> {
    let overflow =
        prop_oneof![Just(Overflow::Reject), Just(Overflow::DropOldest), Just(Overflow::DropNewest)];
    (
        (prop::option::of(20u64..200), 0u32..4, prop::option::of(10u64..60)),
        (prop::option::weighted(0.3, 50u64..300), any::<bool>(), prop::bool::weighted(0.8)),
        (prop::option::weighted(0.4, 1u64..12), overflow, prop::option::weighted(0.3, 1u64..4)),
    )
        .prop_map(|(leases, ends, limits)| Settings {
            visibility: leases.0,
            max_attempts: leases.1,
            backoff: leases.2,
            ttl: ends.0,
            expired: if ends.1 { Expired::DeadLetter } else { Expired::Drop },
            dead_letters: ends.2,
            max_messages: limits.0,
            overflow: limits.1,
            max_in_flight: limits.2,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let time = || prop::option::weighted(0.3, 1u64..200);
    prop_oneof![
        6 => (1u8..4, time(), time(), prop::bool::weighted(0.15))
            .prop_map(|(n, delay, ttl, transient)| Step::Push(n, delay, ttl, transient)),
        8 => Just(Step::Pop),
        1 => (0u8..5).prop_map(Step::PopBatch),
        3 => any::<usize>().prop_map(Step::Ack),
        3 => any::<usize>().prop_map(Step::Nack),
        2 => (any::<usize>(), 0u64..200).prop_map(|(i, time)| Step::NackAfter(i, time)),
        2 => any::<usize>().prop_map(Step::Reject),
        1 => any::<usize>().prop_map(Step::Release),
        2 => (any::<usize>(), 0u64..200).prop_map(|(i, time)| Step::Extend(i, time)),
        2 => any::<usize>().prop_map(Step::Drop),
        1 => any::<usize>().prop_map(Step::Forget),
        4 => (0u64..120).prop_map(Step::Advance),
        1 => Just(Step::Peek),
        1 => Just(Step::Look),
        1 => Just(Step::Purge),
        1 => (0u8..4).prop_map(Step::Redrive),
        1 => Just(Step::BuryOne),
        1 => Just(Step::Maintain),
        2 => Just(Step::Compact),
        1 => settings().prop_map(Step::Reopen),
        1 => settings().prop_map(Step::Kill),
    ]
}

impl Test {
    #[expect(clippy::too_many_lines, reason = "one arm for each step")]
    fn run(&mut self, step: &Step) {
        let queue = self.queue();
        match *step {
            Step::Push(count, delay, ttl, transient) => self.push(count, delay, ttl, transient),
            Step::Pop => {
                let told = queue.pop().unwrap();
                let expected = self.expected_pop();
                self.took(expected, told);
            }
            Step::PopBatch(limit) => {
                let told = queue.pop_batch(limit.into()).unwrap();
                let expected = self.expected_batch(limit);
                assert_eq!(told.len(), expected.len(), "as many");
                for (delivery, seq) in told.into_iter().zip(expected) {
                    self.took(Some(seq), Some(delivery));
                }
            }
            Step::Ack(which) => {
                if let Some((seq, counts, delivery)) = self.pick(which) {
                    self.answered(seq, counts, delivery.ack(), |test| {
                        test.known.get_mut(&seq).unwrap().at = At::Settled;
                        test.counts.acked += 1;
                    });
                }
            }
            Step::Nack(which) | Step::NackAfter(which, _) | Step::Drop(which) => {
                let Some((seq, counts, delivery)) = self.pick(which) else { return };
                let (told, delay) = match *step {
                    Step::Nack(_) => (delivery.nack(), None),
                    Step::NackAfter(_, time) => (delivery.nack_after(ms(time)), Some(time)),
                    _ => {
                        drop(delivery);
                        if !counts {
                            return;
                        }
                        (Ok(()), None)
                    }
                };
                self.answered(seq, counts, told, |test| {
                    test.counts.nacked += 1;
                    test.fail(seq, delay);
                });
            }
            Step::Reject(which) => {
                if let Some((seq, counts, delivery)) = self.pick(which) {
                    self.answered(seq, counts, delivery.reject("no good"), |test| {
                        test.counts.rejected += 1;
                        test.die(seq, DeathCause::Rejected);
                        test.move_dying();
                    });
                }
            }
            Step::Release(which) => {
                if let Some((seq, counts, delivery)) = self.pick(which) {
                    self.answered(seq, counts, delivery.release(), |test| {
                        let known = test.known.get_mut(&seq).unwrap();
                        (known.at, known.attempts) = (At::Returned, known.attempts - 1);
                        test.counts.released += 1;
                    });
                }
            }
            Step::Extend(which, time) => {
                let Some((seq, counts, delivery)) = self.pick(which) else { return };
                let told = delivery.extend(ms(time));
                if self.settings.visibility.is_none() {
                    told.unwrap();
                } else if counts && time == 0 && !self.is_held(seq) {
                    // It has run out already.
                    told.unwrap();
                } else if counts && !self.is_held(seq) && self.is_full() {
                    assert!(matches!(told, Err(Error::LeaseExpired { .. })), "{told:?}");
                } else {
                    let deadline = self.now + time;
                    self.answered(seq, counts, told, |test| {
                        test.known.get_mut(&seq).unwrap().at = At::Held(Some(deadline));
                    });
                }
                let number = if counts { self.known[&seq].delivery } else { 0 };
                self.held.push((number, seq, delivery));
            }
            Step::Forget(which) => {
                if let Some((_, _, delivery)) = self.pick(which) {
                    std::mem::forget(delivery);
                }
            }
            Step::Advance(time) => {
                self.clock.advance(ms(time));
                self.now += time;
            }
            Step::Peek => {
                let told = queue.peek().unwrap().map(|message| (message.seq(), message.to_vec()));
                let front = self.expected_peek();
                let expected = front.map(|seq| (Seq::from(seq), self.known[&seq].payload.clone()));
                assert_eq!(told, expected, "peeked at");
            }
            Step::Look => self.look(&queue),
            Step::Purge => {
                let told = queue.purge().unwrap();
                self.time_passed();
                let mut purged = 0;
                for known in self.known.values_mut() {
                    if matches!(known.at, At::New | At::Returned | At::Delayed(_)) {
                        (known.at, known.is_late) = (At::Settled, false);
                        purged += 1;
                    }
                }
                self.counts.purged += purged;
                assert_eq!(told, purged, "purged");
            }
            Step::Redrive(limit) => self.redrive(&queue, limit.into()),
            Step::BuryOne => self.take_dead_letter(&queue),
            Step::Maintain => {
                queue.maintain().unwrap();
                self.sweep();
                self.bury();
            }
            Step::Compact => {
                queue.compact().unwrap();
            }
            Step::Reopen(ref settings) => {
                self.bury();
                self.queue = None;
                queue.close().unwrap();
                self.open(settings.clone());
            }
            Step::Kill(ref settings) => {
                let killed = Arc::new(self.disk.killed());
                self.disk = killed;
                self.open(settings.clone());
            }
        }
    }

    fn is_held(&self, seq: u64) -> bool {
        matches!(self.known[&seq].at, At::Held(_))
    }

    fn is_full(&self) -> bool {
        let held = self.count(|at| matches!(at, At::Held(_)));
        self.settings.max_in_flight.is_some_and(|most| held >= most)
    }

    /// What is dying is in `dead`, and not yet settled here.
    fn move_dying(&mut self) {
        for (seq, known) in &self.known {
            if let At::Dying(cause) = known.at
                && self.early.insert(*seq)
            {
                self.dead.push((*seq, cause));
            }
        }
    }

    fn look(&mut self, queue: &Queue) {
        let told: Vec<_> = queue.iter().map(|message| message.unwrap()).collect();
        self.time_passed();
        let waits = |known: &Known| {
            let is_over = known.expires.is_some_and(|time| time <= self.now);
            matches!(known.at, At::New | At::Returned | At::Delayed(_)) && !is_over
        };
        let expected: Vec<_> = self.known.iter().filter(|(_, known)| waits(known)).collect();
        let numbers: Vec<u64> = told.iter().map(|message| message.seq().into()).collect();
        assert_eq!(
            numbers,
            expected.iter().map(|(seq, _)| **seq).collect::<Vec<_>>(),
            "walked over"
        );
        for (message, (_, known)) in told.iter().zip(expected) {
            assert_eq!((&message[..], message.attempts()), (&known.payload[..], known.attempts));
            let due = if let At::Delayed(due) = known.at { Some(due) } else { None };
            let due = due.filter(|&due| due > self.now).map(|due| UNIX_EPOCH + ms(due));
            assert_eq!(message.not_before(), due);
        }
        for (&seq, known) in &self.known {
            let is_settled = known.at == At::Settled;
            assert_eq!(queue.is_acked(seq.into()).unwrap(), is_settled, "{seq}");
            let got = queue.get(seq.into()).unwrap().map(|message| message.to_vec());
            assert_eq!(got, (!is_settled).then(|| known.payload.clone()), "{seq}");
        }
    }

    fn redrive(&mut self, queue: &Queue, limit: u64) {
        let told = queue.redrive(limit);
        if !self.settings.dead_letters {
            assert!(matches!(told, Err(Error::Disabled { .. })));
            return;
        }
        self.bury();
        let most = self.settings.max_messages.unwrap_or(u64::MAX);
        let wanted = limit.min(self.dead.len() as u64);
        if wanted > 0 && self.owed() + wanted > most {
            self.sweep();
        }
        let redriven = wanted.min(most.saturating_sub(self.owed()));
        if redriven == wanted {
            assert_eq!(told.unwrap(), wanted, "redriven");
        } else {
            assert!(matches!(told, Err(Error::Full { .. })), "{told:?}");
        }
        let last = queue.last_seq().map_or(0, u64::from);
        for (number, (seq, _)) in (1..).zip(self.dead.drain(..redriven as usize)) {
            let payload = self.known[&seq].payload.clone();
            let known = Known::new(self.now, None, payload).with_ttl(self.settings.ttl);
            assert!(self.known.insert(last - redriven + number, known).is_none());
            self.counts.pushed += 1;
        }
    }

    fn take_dead_letter(&mut self, queue: &Queue) {
        if !self.settings.dead_letters {
            assert!(matches!(queue.dead_letters(), Err(Error::Disabled { .. })));
            return;
        }
        self.bury();
        let letter = queue.dead_letters().unwrap().pop().unwrap();
        let told = letter.as_ref().map(|letter| {
            let death = letter.dead_letter().unwrap();
            assert_eq!(letter.header("of"), Some(&b"the model"[..]));
            let seq = u64::from(death.seq());
            if self.derived.contains(&seq) {
                return (seq, self.dead[0].1);
            }
            let is_reasoned = death.reason() == "no good";
            assert_eq!(is_reasoned, death.cause() == DeathCause::Rejected, "{death:?}");
            (seq, death.cause())
        });
        assert_eq!(told, self.dead.first().copied(), "dead letter");
        if let Some(letter) = letter {
            assert_eq!(&letter[..], self.known[&self.dead.remove(0).0].payload);
            letter.ack().unwrap();
        }
    }

    fn check(&mut self) {
        let stats = self.queue().stats();
        self.time_passed();
        let now = self.now;
        let ready = |at| match at {
            At::New | At::Returned => true,
            At::Delayed(due) => due <= now,
            _ => false,
        };
        let told = (stats.ready(), stats.in_flight(), stats.delayed(), stats.dying());
        let held = self.count(|at| matches!(at, At::Held(_)));
        let delayed = self.count(|at| matches!(at, At::Delayed(due) if due > now));
        let dying = self.count(|at| matches!(at, At::Dying(_)));
        assert_eq!(told, (self.count(ready), held, delayed, dying), "ready, held, delayed, dying");
        let letters = if self.settings.dead_letters { self.dead.len() as u64 } else { 0 };
        assert_eq!(stats.dead_letters(), letters, "dead letters");
        let told = Counts {
            pushed: stats.pushed(),
            failed: stats.failed_pushes(),
            popped: stats.popped(),
            redelivered: stats.redelivered(),
            acked: stats.acked(),
            nacked: stats.nacked(),
            released: stats.released(),
            rejected: stats.rejected(),
            lease_expired: stats.lease_expired(),
            purged: stats.purged(),
            expired: stats.expired(),
            dropped: stats.dropped(),
            dead_lettered: stats.dead_lettered(),
        };
        assert_eq!(told, self.counts, "counts since open");
        assert_eq!((stats.lost(), stats.duplicated(), stats.out_of_order()), (0, 0, 0));
        assert!(stats.last_background_error().is_none() && stats.reliability() >= 1.0);
        assert_eq!(stats.oldest().is_some(), self.owed() > 0, "the oldest");
        assert!(stats.live_bytes() + stats.reclaimable_bytes() <= stats.disk_bytes());
    }
}

#[test]
fn every_history_is_as_the_model_says() {
    let histories = cases("KEEPQ_MODEL_CASES", 300) as u32;
    let steps = cases("KEEPQ_MODEL_STEPS", 60) as usize;
    let config =
        ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(histories) };
    proptest!(config, |(settings in settings(), steps in prop::collection::vec(step(), 1..steps))| {
        let mut test = Test::new(settings);
        for step in &steps {
            test.run(step);
            test.check();
        }
    });
}
