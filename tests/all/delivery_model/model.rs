//! The model: where every message is, and what has been counted.

use super::{Settings, ms};
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{
    Backoff, Compaction, DeathCause, Delivery, Error, Expired, Message, Options, Overflow, Queue,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// Where a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum At {
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
pub(crate) struct Known {
    pub(crate) at: At,
    pub(crate) attempts: u32,
    pub(crate) pushed: u64,
    /// The end of its own time to live.
    pub(crate) own_end: Option<u64>,
    /// When it expires, by that or by the options.
    pub(crate) expires: Option<u64>,
    pub(crate) payload: Vec<u8>,
    /// The newest delivery of it, which a late answer may come from.
    pub(crate) delivery: u64,
    /// That delivery's lease ran out.
    pub(crate) is_late: bool,
    pub(crate) is_transient: bool,
}

impl Known {
    pub(crate) fn new(pushed: u64, ttl: Option<u64>, payload: Vec<u8>) -> Self {
        let own_end = ttl.map(|ttl| pushed + ttl);
        Self {
            at: At::New,
            attempts: 0,
            pushed,
            own_end,
            expires: own_end,
            payload,
            delivery: 0,
            is_late: false,
            is_transient: false,
        }
    }

    /// With this time to live by the options.
    pub(crate) fn with_ttl(self, ttl: Option<u64>) -> Self {
        let by_options = ttl.map(|ttl| self.pushed + ttl);
        Self { expires: [self.own_end, by_options].into_iter().flatten().min(), ..self }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) pushed: u64,
    pub(crate) failed: u64,
    pub(crate) popped: u64,
    pub(crate) redelivered: u64,
    pub(crate) acked: u64,
    pub(crate) nacked: u64,
    pub(crate) released: u64,
    pub(crate) rejected: u64,
    pub(crate) lease_expired: u64,
    pub(crate) purged: u64,
    pub(crate) expired: u64,
    pub(crate) dropped: u64,
    pub(crate) dead_lettered: u64,
}

pub(crate) struct Test {
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) disk: Arc<MemoryStorage>,
    pub(crate) queue: Option<Queue>,
    pub(crate) now: u64,
    pub(crate) known: BTreeMap<u64, Known>,
    /// Of dead letters: where each comes from, by the order in which they died.
    pub(crate) dead: Vec<(u64, DeathCause)>,
    /// Rejected, and so in `dead` already, though their slots are not settled.
    pub(crate) early: BTreeSet<u64>,
    /// Left dying by an earlier run: their causes are derived.
    pub(crate) derived: BTreeSet<u64>,
    pub(crate) held: Vec<(u64, u64, Delivery)>,
    pub(crate) deliveries: u64,
    pub(crate) counts: Counts,
    pub(crate) pushes: u64,
}

impl Test {
    pub(crate) fn new(settings: Settings) -> Self {
        let now = 1_000_000;
        let mut test = Self {
            settings: settings.clone(),
            clock: Arc::new(ManualClock::new(UNIX_EPOCH + ms(now))),
            disk: Arc::new(MemoryStorage::new()),
            queue: None,
            now,
            known: BTreeMap::new(),
            dead: Vec::new(),
            early: BTreeSet::new(),
            derived: BTreeSet::new(),
            held: Vec::new(),
            deliveries: 0,
            counts: Counts::default(),
            pushes: 0,
        };
        test.open(settings);
        test
    }

    pub(crate) fn options(&self) -> Options {
        let Settings { visibility, max_attempts, backoff, ttl, .. } = self.settings.clone();
        let backoff = backoff.map_or(Backoff::none(), |base| Backoff::exponential(ms(base)));
        Queue::options()
            .segment_bytes(65_536)
            .background(false)
            .compaction(Compaction::default().idle(Duration::ZERO))
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

    pub(crate) fn open(&mut self, settings: Settings) {
        self.settings = settings;
        self.queue = Some(self.options().open("queue").unwrap());
        self.counts = Counts::default();
        self.held.clear();
        for (seq, known) in &mut self.known {
            known.is_late = false;
            *known = known.clone().with_ttl(self.settings.ttl);
            known.at = match known.at {
                // Worth nothing after its run; what was dying is a dead letter like others.
                At::New | At::Returned | At::Delayed(_) | At::Held(_) if known.is_transient => {
                    At::Settled
                }
                At::Delayed(due) if due > self.now => At::Delayed(due),
                At::New | At::Returned | At::Delayed(_) | At::Held(_) => At::New,
                At::Dying(_) if !self.settings.dead_letters => {
                    self.early.remove(seq);
                    self.counts.dropped += 1;
                    At::Settled
                }
                At::Dying(cause) => {
                    if !self.early.contains(seq) {
                        self.derived.insert(*seq);
                    }
                    At::Dying(cause)
                }
                At::Settled => At::Settled,
            };
        }
        // Their last attempt ended with its run: seen when they are counted.
        let waits = |known: &&Known| matches!(known.at, At::New | At::Delayed(_));
        let worn_out = |(_, known): &(&u64, &Known)| waits(known) && self.is_last(known.attempts);
        let worn_out: Vec<u64> = self.known.iter().filter(worn_out).map(|(seq, _)| *seq).collect();
        for seq in worn_out {
            self.die(seq, DeathCause::Attempts);
        }
    }

    pub(crate) fn queue(&self) -> Queue {
        self.queue.clone().unwrap()
    }

    pub(crate) fn owed(&self) -> u64 {
        self.count(|at| at != At::Settled)
    }

    pub(crate) fn count(&self, is: impl Fn(At) -> bool) -> u64 {
        self.known.values().filter(|known| is(known.at)).count() as u64
    }

    pub(crate) fn is_last(&self, attempts: u32) -> bool {
        self.settings.max_attempts > 0 && attempts >= self.settings.max_attempts
    }

    pub(crate) fn die(&mut self, seq: u64, cause: DeathCause) {
        let settled = if self.settings.dead_letters { At::Dying(cause) } else { At::Settled };
        self.counts.dropped += u64::from(!self.settings.dead_letters);
        self.known.get_mut(&seq).unwrap().at = settled;
    }

    /// What is dying is moved, oldest first.
    pub(crate) fn bury(&mut self) {
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

    pub(crate) fn fail(&mut self, seq: u64, delay: Option<u64>) {
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
    pub(crate) fn time_passed(&mut self) {
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
    pub(crate) fn choose(&self) -> Option<u64> {
        self.choose_beside(&BTreeSet::new())
    }

    fn choose_beside(&self, passed: &BTreeSet<u64>) -> Option<u64> {
        let mut known = self.known.iter().filter(|(seq, _)| !passed.contains(seq));
        let returned = known.clone().find(|(_, known)| known.at == At::Returned);
        let due = known.clone().filter_map(|(seq, known)| match known.at {
            At::Delayed(due) if due <= self.now => Some((due, *seq)),
            _ => None,
        });
        let new = known.find(|(_, known)| known.at == At::New);
        let returned = returned.map(|(seq, _)| *seq);
        returned.or(due.min().map(|(_, seq)| seq)).or(new.map(|(seq, _)| *seq))
    }

    /// The next message, those aside whose last attempt is behind them.
    pub(crate) fn choose_alive(&mut self) -> Option<u64> {
        loop {
            let seq = self.choose()?;
            if !self.is_last(self.known[&seq].attempts) {
                return Some(seq);
            }
            self.die(seq, DeathCause::Attempts);
        }
    }

    /// Whether its time is over; then it is settled, or dies.
    pub(crate) fn expires(&mut self, seq: u64) -> bool {
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
        true
    }

    /// Messages at the front that have expired, up to the first that has not.
    pub(crate) fn sweep(&mut self) {
        self.time_passed();
        while let Some(seq) = self.choose()
            && self.expires(seq)
        {}
    }

    pub(crate) fn expected_lease(&mut self) -> Option<u64> {
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
    pub(crate) fn expected_out(&mut self, seq: u64) -> bool {
        let is_out = !self.expires(seq);
        self.counts.popped += u64::from(is_out);
        self.counts.redelivered += u64::from(is_out && self.known[&seq].attempts > 1);
        is_out
    }

    pub(crate) fn expected_pop(&mut self) -> Option<u64> {
        loop {
            let leased = self.expected_lease();
            if leased.is_none_or(|seq| self.expected_out(seq)) {
                self.bury();
                return leased;
            }
        }
    }

    pub(crate) fn expected_batch(&mut self, limit: u8) -> Vec<u64> {
        let (mut out, mut missing) = (Vec::new(), usize::from(limit));
        loop {
            let mut leased = Vec::new();
            while leased.len() < missing {
                let Some(seq) = self.expected_lease() else { break };
                leased.push(seq);
            }
            missing = leased.len();
            leased.retain(|seq| self.expected_out(*seq));
            missing -= leased.len();
            out.extend(leased);
            if missing == 0 {
                self.bury();
                return out;
            }
        }
    }

    /// The first that would be handed out: a look changes nothing.
    pub(crate) fn expected_peek(&mut self) -> Option<u64> {
        self.time_passed();
        let mut passed = BTreeSet::new();
        loop {
            let seq = self.choose_beside(&passed)?;
            let known = &self.known[&seq];
            let has_expired = known.expires.is_some_and(|time| time <= self.now);
            if !has_expired && !self.is_last(known.attempts) {
                return Some(seq);
            }
            passed.insert(seq);
        }
    }

    pub(crate) fn took(&mut self, expected: Option<u64>, delivery: Option<Delivery>) {
        let told = delivery.as_ref().map(|delivery| u64::from(delivery.seq()));
        assert_eq!(told, expected, "handed out");
        if let Some(delivery) = delivery {
            let known = &self.known[&u64::from(delivery.seq())];
            assert_eq!((&delivery[..], delivery.attempts()), (&known.payload[..], known.attempts));
            self.held.push((known.delivery, u64::from(delivery.seq()), delivery));
        }
    }

    /// A held delivery, and whether its answer still counts.
    pub(crate) fn pick(&mut self, which: usize) -> Option<(u64, bool, Delivery)> {
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

    pub(crate) fn answered(
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

    pub(crate) fn push(
        &mut self,
        count: u8,
        delay: Option<u64>,
        ttl: Option<u64>,
        is_transient: bool,
    ) {
        // Some are so large that a few fill a segment.
        let times = if self.pushes.is_multiple_of(3) { 1000 } else { 1 };
        let payloads: Vec<Vec<u8>> = (0..count)
            .map(|n| format!("message {} of push {}", n, self.pushes).repeat(times).into_bytes())
            .collect();
        self.pushes += 1;
        let message = |payload: &Vec<u8>| {
            let message = Message::new(payload.clone()).header("of", b"the model");
            let message = delay.map_or(message.clone(), |delay| message.delay(ms(delay)));
            let message = if is_transient { message.transient() } else { message };
            ttl.map_or(message.clone(), |ttl| message.ttl(ms(ttl)))
        };
        let count = u64::from(count);
        let most = self.settings.max_messages.unwrap_or(u64::MAX);
        let told = self.queue().push_batch(payloads.iter().map(message));
        if self.owed() + count > most {
            // What has expired at the front does not hold the room.
            self.sweep();
            if self.owed() + count > most {
                self.bury();
            }
        }
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
                    let busy = self.count(|at| matches!(at, At::Held(_) | At::Dying(_)));
                    // Nobody is dropped if that is not enough.
                    while busy + count <= most && self.owed() + count > most {
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
        for (seq, payload) in told.unwrap().into_iter().zip(payloads) {
            let at = delay.map_or(At::New, |delay| At::Delayed(self.now + delay));
            let known = Known::new(self.now, ttl, payload).with_ttl(self.settings.ttl);
            let known = Known { at, is_transient, ..known };
            assert!(self.known.insert(seq.into(), known).is_none(), "a number given twice");
            self.counts.pushed += 1;
        }
    }
}
