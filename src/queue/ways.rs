//! The short way beside the long one: the same random histories on two queues, of which one goes
//! the long way only, step by step, and byte by byte on the disk. Tests only.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use crate::clock::ManualClock;
use crate::delivery::Delivery;
use crate::error::Result;
use crate::io::Storage;
use crate::io::fault::{FaultPlan, FaultStorage};
use crate::io::memory::{CrashImage, MemoryStorage};
use crate::{Backoff, Message, Options, Queue, random};
use std::fmt::Write;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// Histories, unless `KEEPQ_WAYS_CASES` says how many; the first one is number `KEEPQ_WAYS_SEED`.
const CASES: u64 = 300;
const STEPS: u64 = 60;

/// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    fn place(&mut self, len: usize) -> usize {
        usize::try_from(self.below(u64::try_from(len).unwrap())).unwrap()
    }

    fn one_in(&mut self, number: u64) -> bool {
        self.below(number) == 0
    }
}

/// One of the two queues.
struct Side {
    disk: Arc<MemoryStorage>,
    faults: Arc<FaultStorage>,
    clock: Arc<ManualClock>,
    options: Options,
    queue: Option<Queue>,
    deliveries: Vec<Delivery>,
    is_short: bool,
}

impl Side {
    fn new(disk: Arc<MemoryStorage>, options: &Options, is_short: bool) -> Self {
        let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_000_000)));
        let inner: Arc<dyn Storage> = Arc::<MemoryStorage>::clone(&disk);
        let faults = Arc::new(FaultStorage::new(inner));
        let storage: Arc<dyn Storage> = Arc::<FaultStorage>::clone(&faults);
        let options = options.clone().storage(storage).clock(Arc::clone(&clock));
        let (queue, deliveries) = (None, Vec::new());
        let mut side = Self { disk, faults, clock, options, queue, deliveries, is_short };
        side.open();
        side
    }

    fn open(&mut self) {
        random::tests::count_from(7);
        let queue = self.options.clone().open("queue").unwrap();
        if !self.is_short {
            queue.engine().consumers().watch(|short_way| short_way.is_closed = true);
        }
        self.queue = Some(queue);
    }

    fn queue(&self) -> &Queue {
        self.queue.as_ref().unwrap()
    }

    /// What a delivery shows.
    fn show(delivery: &Delivery) -> String {
        let (seq, attempts, at) = (delivery.seq(), delivery.attempts(), delivery.pushed_at());
        let headers: Vec<_> = delivery.headers().collect();
        format!("{seq:?} {attempts} {at:?} {:?} {headers:?}", &delivery[..])
    }

    fn take(&mut self, taken: Result<Vec<Delivery>>) -> String {
        match taken {
            Ok(taken) => {
                let shown: Vec<_> = taken.iter().map(Self::show).collect();
                self.deliveries.extend(taken);
                format!("{shown:?}")
            }
            Err(error) => format!("{error:?}"),
        }
    }

    fn push(&self, dice: &mut Chance) -> String {
        let number = if dice.one_in(3) { 1 } else { 1 + dice.below(90) };
        let messages: Vec<_> = (0..number).map(|_| message(dice)).collect();
        format!("{:?}", self.queue().push_batch(&messages))
    }

    /// Answers one delivery, or some of them at once.
    fn answer(&mut self, dice: &mut Chance) -> String {
        if self.deliveries.is_empty() {
            return String::new();
        }
        let at = dice.place(self.deliveries.len());
        if dice.one_in(2) {
            let end = at + 1 + dice.place(self.deliveries.len() - at);
            let mut some: Vec<_> = self.deliveries.drain(at..end).collect();
            match dice.below(6) {
                0 | 1 => some.reverse(),
                2 => {
                    let by = dice.place(some.len());
                    some.rotate_left(by);
                }
                _ => {}
            }
            return format!("{:?}", self.queue().ack_batch(some));
        }
        if dice.one_in(6) {
            let time = Duration::from_millis(dice.below(90));
            return format!("{:?}", self.deliveries[at].extend(time));
        }
        let delivery = self.deliveries.remove(at);
        let answered = match dice.below(12) {
            0 => delivery.nack(),
            1 => delivery.nack_after(Duration::from_millis(dice.below(40))),
            2 => delivery.release(),
            3 => delivery.reject("no"),
            4 => {
                drop(delivery);
                Ok(())
            }
            _ => delivery.ack(),
        };
        format!("{answered:?}")
    }

    fn step(&mut self, dice: &mut Chance) -> String {
        match dice.below(20) {
            0..5 => self.push(dice),
            5..8 => {
                // As many that follow each other: all but the first may be read ahead.
                let pops = 1 + dice.below(6);
                let taken = (0..pops).filter_map(|_| self.queue().pop().transpose()).collect();
                self.take(taken)
            }
            8..12 => {
                let taken = self.queue().pop_batch(dice.place(150));
                self.take(taken)
            }
            12..17 => self.answer(dice),
            17 => {
                self.clock.advance(Duration::from_millis(dice.below(60)));
                String::new()
            }
            18 => match dice.below(8) {
                0 => format!("{:?}", self.queue().purge()),
                1 => format!("{:?}", self.queue().maintain()),
                2 => format!("{:?}", self.queue().compact()),
                3 | 4 => {
                    self.deliveries.clear();
                    self.queue.take().unwrap().close().unwrap();
                    self.open();
                    String::new()
                }
                _ => format!("{:?}", self.queue().peek().map(|peeked| peeked.map(|one| one.seq()))),
            },
            _ => String::new(),
        }
    }

    /// All that is to be seen, and what the disk holds.
    fn state(&self) -> String {
        let stats = self.queue().stats();
        let mut seen = format!(
            "{} {} {} {} {} {} {} {} {} {}",
            self.queue().len(),
            stats.ready(),
            stats.in_flight(),
            stats.delayed(),
            stats.popped(),
            stats.acked(),
            stats.redelivered(),
            stats.out_of_order(),
            stats.lease_expired(),
            stats.lost(),
        );
        for entry in self.disk.list().unwrap() {
            let bytes = self.disk.read(&entry.name).unwrap_or_default();
            write!(seen, " {} {}", entry.name, crc32fast::hash(&bytes)).unwrap();
        }
        seen
    }
}

fn message(dice: &mut Chance) -> Message<'static> {
    let len = match dice.below(40) {
        0 => 5000,
        1 => 1500,
        _ => dice.place(120),
    };
    let mut message = Message::from(vec![u8::try_from(dice.below(250)).unwrap(); len]);
    if dice.one_in(40) {
        message = message.header("kind", "h");
    }
    if dice.one_in(40) {
        message = message.delay(Duration::from_millis(1 + dice.below(50)));
    }
    if dice.one_in(40) {
        message = message.ttl(Duration::from_millis(1 + dice.below(50)));
    }
    if dice.one_in(60) { message.transient() } else { message }
}

fn options(dice: &mut Chance) -> Options {
    let mut options = Options::default().background(false).segment_bytes(64 << 10);
    if dice.one_in(2) {
        options = options.visibility_timeout(Duration::from_millis(5 + dice.below(60)));
    }
    if dice.one_in(4) {
        options = options.max_in_flight(1 + dice.below(70));
    }
    if dice.one_in(4) {
        options = options.backoff(Backoff::exponential(Duration::from_millis(10)));
    }
    if dice.one_in(6) {
        options = options.message_ttl(Duration::from_millis(200));
    }
    options.max_attempts(u32::try_from(dice.below(4)).unwrap()).dead_letters(dice.one_in(2))
}

/// Two queues from one directory, so that they have one identity.
fn both(dice: &mut Chance) -> [Side; 2] {
    let options = options(dice);
    let disk = Arc::new(MemoryStorage::new());
    let storage: Arc<dyn Storage> = Arc::<MemoryStorage>::clone(&disk);
    let queue = options.clone().storage(storage).open("queue").unwrap();
    queue.push_batch((0..dice.below(90)).map(|_| message(dice)).collect::<Vec<_>>()).unwrap();
    queue.push("of the run that names the queue").unwrap();
    queue.close().unwrap();
    [true, false].map(|is_short| Side::new(Arc::new(disk.killed()), &options, is_short))
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn seeds() -> std::ops::Range<u64> {
    let first = number("KEEPQ_WAYS_SEED", 0);
    first..first + number("KEEPQ_WAYS_CASES", CASES)
}

#[test]
fn both_ways_do_the_same_message_by_message() {
    let (mut taken, mut read_ahead) = ([0, 0], 0);
    for seed in seeds() {
        let mut dice = Chance(seed);
        let mut sides = both(&mut dice);
        for step in 0..STEPS {
            let start = dice.below(u64::MAX);
            let [short, long] = sides.each_mut().map(|side| {
                let [byte, ..] = start.to_le_bytes();
                random::tests::count_from(byte);
                side.step(&mut Chance(start))
            });
            assert_eq!(short, long, "seed {seed}, step {step}");
            let [short, long] = sides.each_ref().map(Side::state);
            assert_eq!(short, long, "seed {seed}, step {step}");
        }
        for (taken, side) in taken.iter_mut().zip(&sides) {
            *taken += side.queue().engine().consumers().watch(|short_way| short_way.taken);
        }
        let consumers = sides[0].queue().engine().consumers();
        read_ahead += consumers.watch(|short_way| short_way.read_ahead);
    }
    // It is the short way that most messages go, and the other side never goes it.
    let histories = seeds().end - seeds().start;
    assert!(taken[0] > 10 * histories && taken[1] == 0, "{taken:?}");
    assert!(read_ahead > histories, "{read_ahead} were read ahead");
}

/// Where stores are writes they can fail, in the middle of those of a batch, too. Whatever was
/// stored, no message is lost, none that was acked comes again, and the counts end at zero.
#[test]
fn a_store_that_fails_on_the_short_way_loses_no_message() {
    let mut failures = 0;
    for seed in seeds() {
        let mut dice = Chance(seed);
        let disk = Arc::new(MemoryStorage::new());
        let timeout = dice.one_in(2).then_some(Duration::from_secs(1));
        let options = Options::default().background(false).visibility_timeout(timeout);
        let mut side = Side::new(disk, &options.dead_letters(false), true);
        let messages = 1 + dice.below(150);
        let all = (0..messages).map(|nth| nth.to_le_bytes().to_vec());
        let seqs = side.queue().push_batch(all).unwrap();
        side.faults.stores_can_fail(true);
        let (mut acked, mut rounds) = (Vec::new(), 0);
        while !side.queue().is_empty() {
            rounds += 1;
            assert!(rounds < 1000, "seed {seed}");
            let (at, lasting) = (dice.below(300), dice.one_in(4));
            let fault = FaultPlan::FailAt { at, error: ErrorKind::TimedOut, lasting };
            side.faults.plan(if dice.one_in(3) { FaultPlan::None } else { fault });
            let taken = if dice.one_in(2) {
                side.queue().pop().map(|taken| taken.into_iter().collect())
            } else {
                side.queue().pop_batch(1 + dice.place(100))
            };
            let Ok(taken) = taken else {
                failures += 1;
                continue;
            };
            for delivery in &taken {
                assert!(!acked.contains(&delivery.seq()), "seed {seed}: settled before");
            }
            let taken_seqs: Vec<_> = taken.iter().map(Delivery::seq).collect();
            let result = side.queue().ack_batch(taken);
            side.faults.plan(FaultPlan::None);
            failures += u32::from(result.is_err());
            let is_acked = |seq: &&_| side.queue().is_acked(**seq).unwrap();
            acked.extend(taken_seqs.iter().filter(is_acked).copied());
            assert!(result.is_err() || taken_seqs.iter().all(|seq| acked.contains(seq)));
        }
        acked.sort_unstable();
        assert_eq!(acked, seqs, "seed {seed}");
        assert_eq!(side.queue().stats().in_flight(), 0, "seed {seed}");
        side.queue.take().unwrap().close().unwrap();
        let after = side.disk.power_cut(CrashImage::Oldest);
        let options = options_of(after);
        assert_eq!(options.open("queue").unwrap().len(), 0, "seed {seed}: it is done on the disk");
    }
    assert!(failures > 0);
}

/// The attempts of a batch are stored with one call. If that fails in the middle, those that have
/// an attempt by then are handed out: it may have been their last.
#[test]
fn no_message_dies_of_an_attempt_that_nobody_has_got() {
    let mut failures = 0;
    for seed in seeds() {
        let mut dice = Chance(seed);
        let options = Options::default().background(false).max_attempts(1).dead_letters(false);
        let side = Side::new(Arc::new(MemoryStorage::new()), &options, true);
        let messages = 1 + dice.below(300);
        let all = (0..messages).map(|nth| nth.to_le_bytes().to_vec());
        let seqs = side.queue().push_batch(all).unwrap();
        side.faults.stores_can_fail(true);
        let mut taken = Vec::new();
        while !side.queue().is_empty() {
            let (at, error) = (dice.below(300), ErrorKind::TimedOut);
            side.faults.plan(FaultPlan::FailAt { at, error, lasting: dice.one_in(4) });
            let batch = side.queue().pop_batch(1 + dice.place(150));
            side.faults.plan(FaultPlan::None);
            failures += u32::from(batch.is_err());
            let batch = batch.unwrap_or_default();
            taken.extend(batch.iter().map(Delivery::seq));
            side.queue().ack_batch(batch).unwrap();
        }
        assert_eq!(taken, seqs, "seed {seed}");
    }
    assert!(failures > 0);
}

/// A batch that was taken while its segment became full had what was pushed meanwhile.
#[test]
fn the_short_way_ends_at_the_last_message_that_is_to_be_seen() {
    let (disk, options) = (MemoryStorage::new(), Options::default().background(false));
    let side = Side::new(Arc::new(disk), &options, true);
    let seqs: Vec<_> = (0..5000).map(|_| side.queue().push(&[7; 2000]).unwrap()).collect();
    let published = side.queue().engine().published();
    // In the middle of a segment that is full.
    published.hold_back_from(seqs[100].0);
    let before = side.queue().pop_batch(usize::MAX).unwrap();
    assert_eq!(before.len(), 100);
    assert!(side.queue().pop().unwrap().is_none() && side.queue().pop_batch(9).unwrap().is_empty());
    published.hold_back_from(u64::MAX);
    assert_eq!(side.queue().pop_batch(usize::MAX).unwrap().len(), 4900);
    side.queue().ack_batch(before).unwrap();
}

/// Records that are read ahead may be more than are to be seen: how many are copied is known by
/// their bytes.
#[test]
fn what_is_read_ahead_is_handed_out_once_it_is_to_be_seen() {
    let (disk, options) = (MemoryStorage::new(), Options::default().background(false));
    let side = Side::new(Arc::new(disk), &options, true);
    let first = side.queue().push(&[7; 500]).unwrap();
    let seqs = side.queue().push_batch((0..100u8).map(|nth| vec![nth])).unwrap();
    let published = side.queue().engine().published();
    published.hold_back_from(seqs[1].0);
    let pop = || side.queue().pop().unwrap();
    let held = [pop(), pop()].map(Option::unwrap);
    assert_eq!(held.each_ref().map(Delivery::seq), [first, seqs[0]]);
    assert!(pop().is_none(), "a message that is held back");
    published.hold_back_from(u64::MAX);
    // One that another way takes is not handed out again.
    let batch = side.queue().pop_batch(3).unwrap();
    assert_eq!(batch.iter().map(Delivery::seq).collect::<Vec<_>>(), seqs[1..4]);
    for (nth, seq) in (4..).zip(&seqs[4..]) {
        let taken = pop().unwrap();
        assert_eq!((taken.seq(), &taken[..]), (*seq, &[nth][..]));
        taken.ack().unwrap();
    }
    assert!(pop().is_none());
    let ahead = side.queue().engine().consumers().watch(|short_way| short_way.read_ahead);
    assert!((80..96).contains(&ahead), "{ahead} were read ahead");
}

fn options_of(disk: MemoryStorage) -> Options {
    Options::default().background(false).storage(Arc::new(disk))
}
