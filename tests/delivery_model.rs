//! Every way to push, take and answer, with time passing, kills and reopens, against a plain model: what is
//! handed out, and every public count, after each step.
//!
//! `KEEPQ_MODEL_CASES` sets how many histories are tried, `KEEPQ_MODEL_STEPS` how long they are at most.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test may fail"
)]

mod support;

use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{
    Backoff, DeathCause, Delivery, Error, Expired, Message, Options, Overflow, Queue, Seq,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
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
    /// How many, with this delay and time to live.
    Push(u8, Option<u64>, Option<u64>),
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
    Reopen,
    Kill,
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
        6 => (1u8..4, time(), time()).prop_map(|(n, delay, ttl)| Step::Push(n, delay, ttl)),
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
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

/// Where a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// Never handed out in this run.
    New,
    Returned,
    Delayed(u64),
    /// Out, until a time if there is a limit.
    Held(Option<u64>),
    /// On its way to the dead letters.
    Dying(DeathCause),
    Settled,
}

#[derive(Clone, Debug)]
struct Known {
    at: At,
    attempts: u32,
    expires: Option<u64>,
    payload: Vec<u8>,
    /// The newest delivery of it, which a late answer may come from.
    delivery: u64,
    /// That delivery's lease ran out.
    is_late: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    pushed: u64,
    failed: u64,
    popped: u64,
    redelivered: u64,
    acked: u64,
    nacked: u64,
    released: u64,
    rejected: u64,
    lease_expired: u64,
    purged: u64,
    expired: u64,
    dropped: u64,
    dead_lettered: u64,
}

struct Test {
    settings: Settings,
    clock: Arc<ManualClock>,
    disk: Arc<MemoryStorage>,
    queue: Option<Queue>,
    now: u64,
    known: BTreeMap<u64, Known>,
    /// Of dead letters: where each comes from, by the order in which they died.
    dead: Vec<(u64, DeathCause)>,
    /// Rejected, and so in `dead` already, though their slots are not settled.
    early: BTreeSet<u64>,
    held: Vec<(u64, u64, Delivery)>,
    deliveries: u64,
    counts: Counts,
    pushes: u64,
}

impl Test {
    fn new(settings: Settings) -> Self {
        let now = 1_000_000;
        let mut test = Self {
            settings,
            clock: Arc::new(ManualClock::new(UNIX_EPOCH + ms(now))),
            disk: Arc::new(MemoryStorage::new()),
            queue: None,
            now,
            known: BTreeMap::new(),
            dead: Vec::new(),
            early: BTreeSet::new(),
            held: Vec::new(),
            deliveries: 0,
            counts: Counts::default(),
            pushes: 0,
        };
        test.open();
        test
    }

    fn options(&self) -> Options {
        let Settings { visibility, max_attempts, backoff, ttl, .. } = self.settings;
        let backoff = backoff.map_or(Backoff::none(), |base| Backoff::exponential(ms(base)));
        Queue::options()
            .segment_bytes(65_536)
            .background(false)
            .storage(self.disk.clone())
            .clock(self.clock.clone())
            .visibility_timeout(visibility.map(ms))
            .max_attempts(max_attempts)
            .backoff(backoff)
            .message_ttl(ttl.map(ms))
            .expired(self.settings.expired)
            .dead_letters(self.settings.dead_letters)
            .max_messages(self.settings.max_messages)
            .overflow(self.settings.overflow)
            .max_in_flight(self.settings.max_in_flight)
    }

    fn open(&mut self) {
        self.queue = Some(self.options().open("queue").unwrap());
        self.counts = Counts::default();
        self.held.clear();
        for known in self.known.values_mut() {
            known.is_late = false;
            known.at = match known.at {
                At::Delayed(due) if due > self.now => At::Delayed(due),
                At::New | At::Returned | At::Delayed(_) | At::Held(_) => At::New,
                stays => stays,
            };
        }
    }

    fn queue(&self) -> Queue {
        self.queue.clone().unwrap()
    }

    fn owed(&self) -> u64 {
        self.count(|at| at != At::Settled)
    }

    fn count(&self, is: impl Fn(At) -> bool) -> u64 {
        self.known.values().filter(|known| is(known.at)).count() as u64
    }

    fn is_last(&self, attempts: u32) -> bool {
        self.settings.max_attempts > 0 && attempts >= self.settings.max_attempts
    }

    fn die(&mut self, seq: u64, cause: DeathCause) {
        let settled = if self.settings.dead_letters { At::Dying(cause) } else { At::Settled };
        self.counts.dropped += u64::from(!self.settings.dead_letters);
        self.known.get_mut(&seq).unwrap().at = settled;
    }

    /// What is dying is moved, oldest first.
    fn bury(&mut self) {
        for (seq, known) in &mut self.known {
            if let At::Dying(cause) = known.at {
                known.at = At::Settled;
                self.counts.dead_lettered += 1;
                if !self.early.remove(seq) {
                    self.dead.push((*seq, cause));
                }
            }
        }
    }

    fn fail(&mut self, seq: u64, delay: Option<u64>) {
        let attempts = self.known[&seq].attempts;
        if self.is_last(attempts) {
            return self.die(seq, DeathCause::Attempts);
        }
        let base = self.settings.backoff.unwrap_or(0);
        let delay = delay.unwrap_or(base << (attempts - 1).min(20)).min(3_600_000);
        let at = if delay == 0 { At::Returned } else { At::Delayed(self.now + delay) };
        self.known.get_mut(&seq).unwrap().at = at;
    }

    /// Leases that have run out.
    fn time_passed(&mut self) {
        let mut over: Vec<(u64, u64)> = Vec::new();
        for (seq, known) in &self.known {
            if let At::Held(Some(deadline)) = known.at
                && deadline <= self.now
            {
                over.push((deadline, *seq));
            }
        }
        over.sort_unstable();
        for (_, seq) in over {
            self.counts.lease_expired += 1;
            self.known.get_mut(&seq).unwrap().is_late = true;
            self.fail(seq, None);
        }
    }

    /// The next message, before its expiry is looked at.
    fn choose(&self) -> Option<u64> {
        let returned = self.known.iter().find(|(_, known)| known.at == At::Returned);
        let due = self.known.iter().filter_map(|(seq, known)| match known.at {
            At::Delayed(due) if due <= self.now => Some((due, *seq)),
            _ => None,
        });
        let new = self.known.iter().find(|(_, known)| known.at == At::New);
        let returned = returned.map(|(seq, _)| *seq);
        returned.or(due.min().map(|(_, seq)| seq)).or(new.map(|(seq, _)| *seq))
    }

    /// The next message, those aside whose last attempt is behind them.
    fn choose_alive(&mut self) -> Option<u64> {
        loop {
            let seq = self.choose()?;
            if !self.is_last(self.known[&seq].attempts) {
                return Some(seq);
            }
            self.die(seq, DeathCause::Attempts);
        }
    }

    /// Whether its time is over; then it is settled, or dies.
    fn expires(&mut self, seq: u64) -> bool {
        let known = self.known.get_mut(&seq).unwrap();
        if known.expires.is_none_or(|time| time > self.now) {
            return false;
        }
        known.is_late = false;
        self.counts.expired += 1;
        if self.settings.expired == Expired::DeadLetter && self.settings.dead_letters {
            self.die(seq, DeathCause::Expired);
        } else {
            known.at = At::Settled;
        }
        self.bury();
        true
    }

    fn expected_lease(&mut self) -> Option<u64> {
        self.time_passed();
        let most = self.settings.max_in_flight.unwrap_or(u64::MAX);
        if self.count(|at| matches!(at, At::Held(_))) >= most {
            return None;
        }
        let seq = self.choose_alive()?;
        let deadline = self.settings.visibility.map(|timeout| self.now + timeout);
        self.deliveries += 1;
        let known = self.known.get_mut(&seq).unwrap();
        (known.at, known.is_late) = (At::Held(deadline), false);
        known.attempts += 1;
        known.delivery = self.deliveries;
        Some(seq)
    }

    /// Whether a leased message is handed out.
    fn expected_out(&mut self, seq: u64) -> bool {
        let is_out = !self.expires(seq);
        self.counts.popped += u64::from(is_out);
        self.counts.redelivered += u64::from(is_out && self.known[&seq].attempts > 1);
        is_out
    }

    fn expected_pop(&mut self) -> Option<u64> {
        loop {
            let leased = self.expected_lease();
            self.bury();
            let seq = leased?;
            if self.expected_out(seq) {
                return Some(seq);
            }
        }
    }

    fn expected_batch(&mut self, limit: u8) -> Vec<u64> {
        let mut leased = Vec::new();
        while leased.len() < usize::from(limit) {
            let Some(seq) = self.expected_lease() else { break };
            leased.push(seq);
        }
        self.bury();
        leased.retain(|seq| self.expected_out(*seq));
        leased
    }

    fn expected_peek(&mut self) -> Option<u64> {
        self.time_passed();
        loop {
            let seq = self.choose()?;
            if self.is_last(self.known[&seq].attempts) {
                self.die(seq, DeathCause::Attempts);
                self.bury();
            } else if !self.expires(seq) {
                return Some(seq);
            }
        }
    }

    fn took(&mut self, expected: Option<u64>, delivery: Option<Delivery>) {
        let told = delivery.as_ref().map(|delivery| u64::from(delivery.seq()));
        assert_eq!(told, expected, "handed out");
        if let Some(delivery) = delivery {
            let known = &self.known[&u64::from(delivery.seq())];
            assert_eq!((&delivery[..], delivery.attempts()), (&known.payload[..], known.attempts));
            self.held.push((known.delivery, u64::from(delivery.seq()), delivery));
        }
    }

    /// A held delivery, and whether its answer still counts.
    fn pick(&mut self, which: usize) -> Option<(u64, bool, Delivery)> {
        if self.held.is_empty() {
            return None;
        }
        let (number, seq, delivery) = self.held.swap_remove(which % self.held.len());
        let known = &self.known[&seq];
        let is_mine = known.delivery == number
            && (matches!(known.at, At::Held(_))
                || known.is_late && matches!(known.at, At::Returned | At::Delayed(_)));
        Some((seq, is_mine, delivery))
    }

    fn answered(
        &mut self,
        seq: u64,
        counts: bool,
        told: keepq::Result<()>,
        then: impl FnOnce(&mut Self),
    ) {
        if counts {
            told.unwrap();
            self.known.get_mut(&seq).unwrap().is_late = false;
            then(self);
        } else {
            assert!(matches!(told, Err(Error::LeaseExpired { .. })), "{told:?}");
        }
    }

    fn push(&mut self, count: u8, delay: Option<u64>, ttl: Option<u64>) {
        let payloads: Vec<Vec<u8>> = (0..count)
            .map(|n| format!("message {} of push {}", n, self.pushes).into_bytes())
            .collect();
        self.pushes += 1;
        let message = |payload: &Vec<u8>| {
            let message = Message::new(payload.clone()).header("of", b"the model");
            let message = delay.map_or(message.clone(), |delay| message.delay(ms(delay)));
            ttl.map_or(message.clone(), |ttl| message.ttl(ms(ttl)))
        };
        let count = u64::from(count);
        let most = self.settings.max_messages.unwrap_or(u64::MAX);
        let told = self.queue().push_batch(payloads.iter().map(message));
        if self.owed() + count > most {
            match self.settings.overflow {
                Overflow::DropNewest => {
                    assert!(told.unwrap().iter().all(|seq| seq.is_dropped()));
                    self.counts.dropped += count;
                    self.counts.failed += count;
                    return;
                }
                Overflow::DropOldest if count <= most => {
                    self.time_passed();
                    while self.owed() + count > most {
                        let delayed = self.known.iter().filter_map(|(seq, known)| match known.at {
                            At::Delayed(due) => Some((due, *seq)),
                            _ => None,
                        });
                        let Some(seq) = self.choose().or(delayed.min().map(|(_, seq)| seq)) else {
                            break;
                        };
                        let known = self.known.get_mut(&seq).unwrap();
                        (known.at, known.is_late) = (At::Settled, false);
                        self.counts.dropped += 1;
                    }
                }
                _ => {}
            }
        }
        if self.owed() + count > most {
            assert!(matches!(told, Err(Error::Full { limit: "max_messages", .. })), "{told:?}");
            self.counts.failed += count;
            return;
        }
        let ttl = [ttl, self.settings.ttl].into_iter().flatten().min();
        for (seq, payload) in told.unwrap().into_iter().zip(payloads) {
            let at = delay.map_or(At::New, |delay| At::Delayed(self.now + delay));
            let expires = ttl.map(|ttl| self.now + ttl);
            let known = Known { at, attempts: 0, expires, payload, delivery: 0, is_late: false };
            assert!(self.known.insert(seq.into(), known).is_none(), "a number given twice");
            self.counts.pushed += 1;
        }
    }

    fn run(&mut self, step: &Step) {
        let queue = self.queue();
        match *step {
            Step::Push(count, delay, ttl) => self.push(count, delay, ttl),
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
                    _ if counts => (drop_it(delivery), None),
                    _ => return,
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
                self.time_passed();
                self.bury();
            }
            Step::Reopen => {
                self.bury();
                self.queue = None;
                queue.close().unwrap();
                self.open();
            }
            Step::Kill => {
                let killed = Arc::new(self.disk.killed());
                self.disk = killed;
                self.open();
            }
        }
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
        let redriven = wanted.min(most.saturating_sub(self.owed()));
        if redriven == wanted {
            assert_eq!(told.unwrap(), wanted, "redriven");
        } else {
            assert!(matches!(told, Err(Error::Full { .. })), "{told:?}");
        }
        let last = queue.last_seq().map_or(0, u64::from);
        for (number, (seq, _)) in (1..).zip(self.dead.drain(..redriven as usize)) {
            let payload = self.known[&seq].payload.clone();
            let expires = self.settings.ttl.map(|ttl| self.now + ttl);
            let at = At::New;
            let known = Known { at, attempts: 0, expires, payload, delivery: 0, is_late: false };
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
            let is_reasoned = death.reason() == "no good";
            assert_eq!(is_reasoned, death.cause() == DeathCause::Rejected, "{death:?}");
            (u64::from(death.seq()), death.cause())
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
        assert_eq!(stats.dead_letters(), self.dead.len() as u64, "dead letters");
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

fn drop_it(delivery: Delivery) -> keepq::Result<()> {
    drop(delivery);
    Ok(())
}

#[test]
fn every_history_is_as_the_model_says() {
    let cases = support::cases("KEEPQ_MODEL_CASES", 300) as u32;
    let steps = support::cases("KEEPQ_MODEL_STEPS", 60) as usize;
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    proptest!(config, |(settings in settings(), steps in prop::collection::vec(step(), 1..steps))| {
        let mut test = Test::new(settings);
        for step in &steps {
            test.run(step);
            test.check();
        }
    });
}
