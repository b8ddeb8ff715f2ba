//! Bytes that go bad while a queue is open, among random steps: the message that they belong to may
//! be lost, come early, or come again, and no other message may notice.
//!
//! `KEEPQ_ROT_CASES` sets how many histories are tried, `KEEPQ_ROT_SEED` the first seed. The steps
//! of a history that fails are printed.

mod checks;
mod damage;

use crate::support::{Dice, cases};
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{Backoff, Compaction, Delivery, Durability, Error, Message, Options, Queue};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

const STEPS: u64 = 150;
/// No lease and no delay of a history is longer.
const LONGEST: u64 = 4000;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Where a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    /// It may be handed out from this time on.
    Waiting(u64),
    /// With the delivery of this number, until this time.
    Held(u64, u64),
    Dying,
    Settled,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    seq: u64,
    at: At,
    /// Whether bytes of its own went bad.
    is_excused: bool,
}

impl Known {
    fn is_held(&self, now: u64) -> bool {
        matches!(self.at, At::Held(_, until) if until > now)
    }

    /// Whether it waits for a consumer, or for its time.
    fn waits(&self, now: u64) -> bool {
        match self.at {
            At::Waiting(_) => true,
            At::Held(_, until) => until <= now,
            At::Dying | At::Settled => false,
        }
    }

    fn is_delayed(&self, now: u64) -> bool {
        matches!(self.at, At::Waiting(due) if due > now)
    }

    fn is_ready(&self, now: u64) -> bool {
        self.waits(now) && !self.is_delayed(now)
    }
}

struct Held {
    number: u64,
    message: usize,
    delivery: Delivery,
}

struct Case {
    seed: u64,
    dice: Dice,
    steps: Vec<String>,
    disk: Arc<MemoryStorage>,
    clock: Arc<ManualClock>,
    now: u64,
    queue: Option<Queue>,
    /// Whether the run before this one was killed.
    is_after_kill: bool,
    lease: Option<u64>,
    dead_letters: bool,
    damage_one_in: u64,
    payload_bytes: usize,
    messages: Vec<Known>,
    held: Vec<Held>,
    deliveries: u64,
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.steps.join("\n"));
            eprintln!("lease {:?}, dead letters {}", self.lease, self.dead_letters);
            eprintln!("KEEPQ_ROT_SEED={} KEEPQ_ROT_CASES=1 shows it", self.seed);
        }
    }
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let lease = dice.one_in(2).then(|| 1 + dice.below(LONGEST));
        let dead_letters = dice.one_in(2);
        let damage_one_in = 1 + dice.below(8);
        let payload_bytes = 100 + dice.below(5000) as usize;
        let mut case = Self {
            seed,
            dice,
            steps: Vec::new(),
            disk: Arc::new(MemoryStorage::new()),
            clock: Arc::new(ManualClock::new(UNIX_EPOCH + ms(1_700_000_000_000))),
            now: 0,
            queue: None,
            is_after_kill: false,
            lease,
            dead_letters,
            damage_one_in,
            payload_bytes,
            messages: Vec::new(),
            held: Vec::new(),
            deliveries: 0,
        };
        case.open();
        case
    }

    fn options(&self) -> Options {
        Queue::options()
            .segment_bytes(65_536)
            .background(false)
            .durability(Durability::Os)
            .compaction(Compaction::default().idle(Duration::ZERO))
            .storage(self.disk.clone())
            .clock(self.clock.clone())
            .visibility_timeout(self.lease.map(ms))
            .max_attempts(0)
            .backoff(Backoff::none())
            .dead_letters(self.dead_letters)
    }

    fn open(&mut self) {
        let queue = self.options().open("queue").unwrap();
        assert_eq!(queue.recovery().dropped(), 0, "dropped {:?}", queue.recovery());
        self.queue = Some(queue);
        self.check_damage();
    }

    fn queue(&self) -> Queue {
        self.queue.clone().unwrap()
    }

    fn note(&mut self, step: impl Into<String>) {
        self.steps.push(step.into());
    }

    fn payload(&self, message: usize) -> Vec<u8> {
        let mut payload = format!("message {message:08}").into_bytes();
        payload.resize(self.payload_bytes, b'.');
        payload
    }

    fn count(&self, is: impl Fn(&Known) -> bool) -> u64 {
        self.messages.iter().filter(|known| is(known)).count() as u64
    }

    /// How many of the messages that are not excused are so.
    fn count_sound(&self, is: impl Fn(&Known) -> bool) -> u64 {
        self.count(|known| !known.is_excused && is(known))
    }

    fn step(&mut self) {
        match self.dice.below(40) {
            0..=9 => self.push(),
            10..=16 => self.pop(),
            17..=18 => self.pop_batch(),
            19..=26 => self.answer(),
            27..=28 => self.extend(),
            29..=31 => self.advance(),
            32 => self.tidy(Queue::maintain, "maintain"),
            33 => self.tidy(|queue| queue.compact().map(drop), "compact"),
            34 if self.dice.one_in(3) => self.purge(),
            35 if self.dice.one_in(2) => self.end_run(false),
            36 if self.dice.one_in(2) => self.end_run(true),
            37 => drop(self.take_letter()),
            38 => self.look(),
            39 => (0..4).for_each(|_| self.damage()),
            _ => {}
        }
    }

    fn push(&mut self) {
        let message = self.messages.len();
        let delay = if self.dice.one_in(4) { 1 + self.dice.below(LONGEST) } else { 0 };
        self.note(format!("push {message}, delay {delay}"));
        let payload = self.payload(message);
        let pushed = Message::new(&payload);
        let pushed = if delay > 0 { pushed.delay(ms(delay)) } else { pushed };
        let seq = self.queue().push(pushed).unwrap().into();
        let at = At::Waiting(self.now + delay);
        self.messages.push(Known { seq, at, is_excused: false });
    }

    fn pop(&mut self) {
        let popped = self.queue().pop().unwrap();
        let is_all = popped.is_none();
        self.took(popped.into_iter().collect(), is_all);
    }

    fn pop_batch(&mut self) {
        let limit = 1 + self.dice.below(6) as usize;
        let popped = self.queue().pop_batch(limit).unwrap();
        let is_all = popped.len() < limit;
        self.took(popped, is_all);
    }

    fn took(&mut self, popped: Vec<Delivery>, is_all: bool) {
        for delivery in popped {
            let message = self.number(&delivery);
            self.note(format!("pop {message}"));
            let known = self.messages[message];
            assert!(!known.is_held(self.now), "handed out twice: {known:?}");
            assert!(known.is_excused || known.is_ready(self.now), "handed out: {known:?}");
            self.deliveries += 1;
            let until = self.lease.map_or(u64::MAX, |lease| self.now + lease);
            self.messages[message].at = At::Held(self.deliveries, until);
            self.held.push(Held { number: self.deliveries, message, delivery });
        }
        if is_all {
            self.note("no more");
            assert_eq!(self.count_sound(|known| known.is_ready(self.now)), 0, "not handed out");
        }
    }

    /// Which message this is a delivery of.
    fn number(&self, delivery: &Delivery) -> usize {
        let message = std::str::from_utf8(&delivery[8..16]).unwrap().parse().unwrap();
        assert_eq!(&delivery[..], self.payload(message));
        message
    }

    fn answer(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let at = self.dice.below(self.held.len() as u64) as usize;
        let Held { number, message, delivery } = self.held.swap_remove(at);
        let delay = 1 + self.dice.below(LONGEST);
        let dead = if self.dead_letters { At::Dying } else { At::Settled };
        let (what, told, then) = match self.dice.below(6) {
            0 | 1 => ("ack", delivery.ack(), At::Settled),
            2 => ("nack", delivery.nack(), At::Waiting(self.now)),
            3 => ("nack_after", delivery.nack_after(ms(delay)), At::Waiting(self.now + delay)),
            4 => ("release", delivery.release(), At::Waiting(self.now)),
            _ => ("reject", delivery.reject("bad"), dead),
        };
        self.note(format!("{what} {message}, delay {delay}: {told:?}"));
        self.answered(message, number, told, then);
    }

    fn answered(&mut self, message: usize, number: u64, told: keepq::Result<()>, then: At) {
        let known = &mut self.messages[message];
        let is_held = matches!(known.at, At::Held(by, _) if by == number);
        let Err(error) = told else {
            assert!(is_held, "it has another place: {known:?}");
            known.at = then;
            return;
        };
        assert!(matches!(error, Error::LeaseExpired { .. }), "{error}");
        assert!(known.is_excused || !is_held, "its consumer has it: {known:?}");
        if is_held {
            known.at = At::Waiting(0);
        }
    }

    fn extend(&mut self) {
        let Some(lease) = self.lease else { return };
        if self.held.is_empty() {
            return;
        }
        let time = self.dice.below(2 * lease);
        let at = self.dice.below(self.held.len() as u64) as usize;
        let Held { number, message, ref delivery } = self.held[at];
        let told = delivery.extend(ms(time));
        self.note(format!("extend {message} by {time}: {told:?}"));
        self.answered(message, number, told, At::Held(number, self.now + time));
    }

    fn advance(&mut self) {
        let time = self.dice.below(LONGEST / 2);
        self.note(format!("advance {time}"));
        self.clock.advance(ms(time));
        self.now += time;
    }

    fn tidy(&mut self, tidy: impl Fn(&Queue) -> keepq::Result<()>, what: &str) {
        let told = tidy(&self.queue());
        self.note(format!("{what}: {told:?}"));
        if let Err(error) = told {
            assert!(matches!(error, Error::Corrupt { operation: "compact", .. }), "{error}");
            // It may be one that is in flight.
            let excused = self.count(|known| known.is_excused);
            assert!(excused > 0 && !self.held.is_empty(), "{error}");
        }
    }

    fn purge(&mut self) {
        let purged = self.queue().purge().unwrap();
        self.note(format!("purge {purged}"));
        self.within("purged", purged, self.count_sound(|known| known.waits(self.now)));
        for known in &mut self.messages {
            if !known.is_excused && known.waits(self.now) {
                known.at = At::Settled;
            }
        }
    }

    fn end_run(&mut self, is_killed: bool) {
        if is_killed || self.is_after_kill {
            // Damage is told from the torn end of a log only below what is known to be durable.
            self.queue().sync().unwrap();
            self.push();
        }
        self.check_damage();
        self.note(if is_killed { "kill" } else { "close" });
        if is_killed {
            self.disk = Arc::new(self.disk.killed());
            self.queue = None;
        } else {
            self.queue().close().unwrap();
        }
        self.is_after_kill = is_killed;
        self.held.clear();
        for known in &mut self.messages {
            if let At::Held(..) = known.at {
                known.at = At::Waiting(0);
            }
        }
        self.open();
    }

    fn take_letter(&mut self) -> bool {
        if !self.dead_letters {
            return false;
        }
        let Some(letter) = self.queue().dead_letters().unwrap().pop().unwrap() else {
            return false;
        };
        let message = self.number(&letter);
        self.note(format!("letter {message}"));
        let known = &mut self.messages[message];
        assert!(known.is_excused || known.at == At::Dying, "a dead letter: {known:?}");
        if known.at == At::Dying {
            known.at = At::Settled;
        }
        letter.ack().unwrap();
        true
    }
}

#[test]
fn bytes_that_go_bad_cost_no_other_message() {
    let first = cases("KEEPQ_ROT_SEED", 1);
    for seed in first..first + cases("KEEPQ_ROT_CASES", 1400) {
        let mut case = Case::new(seed);
        for _ in 0..STEPS {
            case.step();
            case.check();
        }
        case.finish();
    }
}
