//! Pushes that wait for a sync are collected, and one thread writes those of all. What fails there
//! fails for each of them, and what is not written is not seen.

use crate::found_hooks::{Gate, OpenAtEnd, is_segment, until};
use crate::found_support::{Call, call};
use crate::support::watched::{Op, Watched};
use crate::support::{DEADLINE, Dice, cases};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage, Storage};
use keepq::{Compaction, Durability, Error, Message, Options, Overflow, Queue, Stats};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

pub(crate) fn options(storage: Arc<dyn Storage>) -> Options {
    Queue::options().segment_bytes(65_536).storage(storage)
}

pub(crate) fn payloads(queue: &Queue) -> Vec<Vec<u8>> {
    queue.pop_batch(usize::MAX).unwrap().iter().map(|job| job.to_vec()).collect()
}

/// A queue of which some calls wait at a gate.
pub(crate) struct Held {
    pub(crate) disk: Arc<MemoryStorage>,
    pub(crate) faults: Arc<FaultStorage>,
    pub(crate) queue: Queue,
    pub(crate) gate: Arc<Gate>,
    pub(crate) open: OpenAtEnd,
}

/// With calls of this kind held up, in the segment that is pushed to.
pub(crate) fn held(op: Op) -> Held {
    held_with(op, |options| options.background(false))
}

fn held_with(op: Op, set: impl FnOnce(Options) -> Options) -> Held {
    let disk = Arc::new(MemoryStorage::new());
    let faults = Arc::new(FaultStorage::new(disk.clone()));
    faults.stores_can_fail(true);
    let storage = Watched::around(faults.clone());
    let queue = set(options(storage.clone())).open("queue").unwrap();
    queue.push("first").unwrap();
    let gate = Gate::closed();
    let here = gate.clone();
    storage.rule(move |call| {
        if call.op == op && is_segment(call.name) {
            here.pass();
        }
        Ok(())
    });
    let open = OpenAtEnd(gate.clone());
    Held { disk, faults, queue, gate, open }
}

/// One push that syncs or writes, held up, and one that is collected meanwhile.
fn two_pushes(
    queue: &Queue,
    gate: &Gate,
    payloads: [&[u8]; 2],
) -> [Call<keepq::Result<keepq::Seq>>; 2] {
    let [one, two] = payloads.map(|payload| {
        let (queue, payload) = (queue.clone(), payload.to_vec());
        move || queue.push(payload)
    });
    let one = call(one);
    until("it is held up", || gate.has_waiting());
    let two = call(two);
    two.asleep();
    [one, two]
}

#[test]
fn what_is_not_written_is_not_seen() {
    let Held { disk, queue, gate, open: _open, .. } = held(Op::Store);
    let [one, two] = ["one", "two"].map(|payload| {
        let queue = queue.clone();
        let pushing = call(move || queue.push(payload));
        until("one of them writes", || gate.has_waiting());
        pushing.asleep();
        pushing
    });
    let stats = queue.stats();
    assert_eq!((stats.pushed(), stats.ready(), queue.last_seq()), (1, 1, Some(1.into())));
    let first = queue.pop().unwrap().unwrap();
    assert!(queue.pop().unwrap().is_none());
    let found = payloads(&options(Arc::new(disk.killed())).open("queue").unwrap());
    assert_eq!(found, [b"first"]);
    gate.open();
    let seqs = [one.result("push").unwrap(), two.result("push").unwrap()];
    assert_eq!(seqs.into_iter().collect::<BTreeSet<_>>(), [2.into(), 3.into()].into());
    assert_eq!(queue.pop_batch(9).unwrap().len(), 2);
    first.ack().unwrap();
}

/// The write of one push fails while another one is collected behind it: both fail, and others get
/// their numbers.
#[test]
fn a_write_that_fails_fails_for_all_that_was_collected() {
    for (lasting, more) in [(false, false), (true, false), (true, true)] {
        let Held { disk, faults, queue, gate, open: _open } = held(Op::Store);
        let [one, two] = two_pushes(&queue, &gate, [&[1; 900], &[2; 900]]);
        // In the middle of the record.
        faults.plan(FaultPlan::FailAt { at: 1, error: ErrorKind::StorageFull, lasting });
        gate.open();
        for failed in [one.result("push"), two.result("push")] {
            let failed = failed.unwrap_err();
            assert!(matches!(failed, Error::StorageFull { .. }), "{failed:?}");
            assert!(!failed.is_indeterminate());
        }
        assert_eq!(queue.stats().failed_pushes(), 2);
        if more {
            assert!(queue.push("none").is_err(), "what the write left cannot be erased");
        }
        faults.plan(FaultPlan::None);
        let stats = queue.stats();
        assert_eq!((stats.pushed(), stats.ready(), queue.last_seq()), (1, 1, Some(1.into())));
        let killed = options(Arc::new(disk.killed())).open("queue").unwrap();
        assert_eq!(payloads(&killed), [b"first"]);
        assert!(killed.damage().is_empty());
        assert_eq!(u64::from(queue.push("two").unwrap()), 2, "no number is passed over");
        for image in [CrashImage::Oldest, CrashImage::Newest] {
            let found = options(Arc::new(disk.power_cut(image))).open("queue").unwrap();
            assert_eq!(payloads(&found), [&b"first"[..], b"two"]);
            assert!(found.damage().is_empty());
        }
        assert_eq!(payloads(&queue), [&b"first"[..], b"two"]);
    }
}

/// Two pushes are collected while a third one syncs, and the write of both fails with this plan,
/// counted from the end of that sync: the queue, and what the two were told.
fn two_refused(plan: FaultPlan) -> (Held, [keepq::Result<keepq::Seq>; 2]) {
    let held = held(Op::Sync);
    let push = |payload: Vec<u8>| {
        let queue = held.queue.clone();
        call(move || queue.push(payload))
    };
    let one = push(vec![1; 9]);
    until("it syncs", || held.gate.has_waiting());
    let others = [2, 3].map(|number| push(vec![number; 900]));
    others.iter().for_each(Call::asleep);
    held.faults.plan(plan);
    held.gate.open();
    one.result("the push that syncs").ok();
    let told = others.map(|call| call.result("push"));
    held.faults.plan(FaultPlan::None);
    (held, told)
}

/// The payloads of `two_refused` whose push has definitely failed, and those in this image.
fn refused_and_found(
    told: &[keepq::Result<keepq::Seq>; 2],
    image: MemoryStorage,
) -> [BTreeSet<u8>; 2] {
    let refused = |told: &keepq::Result<keepq::Seq>| {
        told.as_ref().is_err_and(|error| !error.is_indeterminate())
    };
    let refused = (2..).zip(told).filter(|(_, told)| refused(told)).map(|(number, _)| number);
    let found = options(Arc::new(image)).background(false).open("queue").unwrap();
    [refused.collect(), payloads(&found).iter().map(|payload| payload[0]).collect()]
}

/// Whole records are in the file when the write fails behind them. Where they cannot be erased, a
/// kill leaves them: then no push may say that its message is not there.
#[test]
fn what_a_failed_write_leaves_is_not_called_refused() {
    let (mut refusals, mut returned) = (0, 0);
    for at in 0..16 {
        let lasting = FaultPlan::FailAt { at, error: ErrorKind::StorageFull, lasting: true };
        let (held, told) = two_refused(lasting);
        let [refused, found] = refused_and_found(&told, held.disk.killed());
        assert!(refused.is_disjoint(&found), "at {at}: refused {refused:?}, found {found:?}");
        refusals += refused.len();
        let is_open = |told: &&keepq::Result<_>| told.as_ref().is_err_and(Error::is_indeterminate);
        returned += usize::from(told.iter().any(|told| is_open(&told)) && found.contains(&2));
    }
    assert!(refusals > 0 && returned > 0, "both come up: {refusals}, {returned}");
}

/// They are erased, and the disk may have them all the same, until that is synced.
#[test]
fn what_a_failed_write_left_is_erased_on_the_disk_before_it_is_refused() {
    let mut refusals = 0;
    for at in 0..16 {
        let once = FaultPlan::FailAt { at, error: ErrorKind::StorageFull, lasting: false };
        let (Held { disk, queue, open: _open, .. }, told) = two_refused(once);
        for seed in 0..20 {
            let image = disk.power_cut(CrashImage::Mixed(seed));
            let [refused, found] = refused_and_found(&told, image);
            assert!(refused.is_disjoint(&found), "at {at}, {seed}: {refused:?}, found {found:?}");
            refusals += refused.len();
        }
        // Their numbers go to others, who are found in their place.
        let Ok(seq) = queue.push("next") else { continue };
        let found = options(Arc::new(disk.power_cut(CrashImage::Oldest))).open("queue").unwrap();
        assert_eq!(found.get(seq).unwrap().map(|job| job.to_vec()), Some(b"next".to_vec()));
    }
    assert!(refusals > 0);
}

/// A body of zeros is whole as soon as its header is in the file.
#[test]
fn a_record_of_zeros_is_whole_when_its_header_is_written() {
    for (len, lasting) in [(20_000, true), (20_000, false), (1200, true), (1200, false)] {
        let Held { disk, faults, queue, gate, open: _open } = held(Op::Sync);
        gate.open();
        // A message with a time is written by its push.
        let message = Message::new(vec![0; len]).ttl(Duration::from_secs(3600));
        faults.plan(FaultPlan::FailAt { at: 1, error: ErrorKind::StorageFull, lasting });
        let error = queue.push(message).unwrap_err();
        faults.plan(FaultPlan::None);
        assert_eq!(error.is_indeterminate(), lasting, "{error:?}");
        let images = [disk.killed(), disk.power_cut(CrashImage::Newest)];
        let oldest = (0..9).map(|seed| disk.power_cut(CrashImage::Mixed(seed)));
        for image in images.into_iter().chain(oldest) {
            let found = options(Arc::new(image)).open("queue").unwrap();
            assert!(lasting || payloads(&found) == [b"first"], "{len} bytes");
        }
    }
}

/// After one write that failed, the disk may have other bytes behind the tail than the file: what
/// is no record in the file may be one there, with the header of a second write that failed.
#[test]
fn what_a_second_failed_write_leaves_is_not_judged_by_the_file() {
    for (first, second) in [(3, 1), (2, 1), (5, 2), (4, 1)] {
        for is_collected in [true, false] {
            let Held { disk, faults, queue, gate, open: _open } = held(Op::Sync);
            gate.open();
            let ttl = (!is_collected).then_some(Duration::from_secs(3600));
            for (at, byte) in [(first, 1), (second, 0)] {
                faults.plan(FaultPlan::FailAt {
                    at,
                    error: ErrorKind::StorageFull,
                    lasting: false,
                });
                let message = Message::new(vec![byte; 15_000]);
                let message = ttl.map_or(message.clone(), |ttl| message.ttl(ttl));
                assert!(!queue.push(message).unwrap_err().is_indeterminate());
                faults.plan(FaultPlan::None);
            }
            for seed in 0..200 {
                let image = Arc::new(disk.power_cut(CrashImage::Mixed(seed)));
                let found = options(image).background(false).open("queue").unwrap();
                assert!(payloads(&found).iter().all(|payload| payload == b"first"), "seed {seed}");
            }
        }
    }
}

/// While a thread syncs, others come and go that wait for no sync. They have written what others
/// collected before them, so the order is kept.
#[test]
fn who_waits_for_no_sync_writes_what_was_collected_before() {
    let Held { disk, queue, gate, open: _open, .. } = held(Op::Sync);
    let [one, two] = two_pushes(&queue, &gate, [b"one", b"two"]);
    let receipt = queue.submit("three").unwrap();
    let seq = queue.push(Message::new("four").durability(Durability::Os)).unwrap();
    queue.push(Message::new("five").transient()).unwrap();
    queue
        .push(Message::new("late").durability(Durability::Os).delay(Duration::MAX / 4))
        .unwrap_err();
    let hour = Duration::from_secs(3600);
    queue.push(Message::new("six").durability(Durability::Os).delay(hour)).unwrap();
    assert_eq!((u64::from(receipt.seq()), u64::from(seq), queue.delayed()), (4, 5, 1));
    let all: [&[u8]; 5] = [b"first", b"one", b"two", b"three", b"four"];
    let found = options(Arc::new(disk.killed())).open("queue").unwrap();
    assert_eq!((payloads(&found), found.delayed()), (all.map(<[u8]>::to_vec).to_vec(), 1));
    assert_eq!(queue.pop_batch(9).unwrap().len(), 6);
    assert!(!receipt.is_durable());
    gate.open();
    assert_eq!(u64::from(one.result("push").unwrap()), 2);
    assert_eq!(u64::from(two.result("push").unwrap()), 3);
    receipt.wait().unwrap();
    let found = options(Arc::new(disk.power_cut(CrashImage::Oldest))).open("queue").unwrap();
    assert_eq!(payloads(&found), all);
}

/// A queue that is closed while a push waits for its sync: either it is confirmed and kept, or it
/// fails.
#[test]
fn a_close_writes_what_is_collected() {
    let Held { disk, queue, gate, open: _open, .. } = held(Op::Sync);
    let [one, two] = two_pushes(&queue, &gate, [b"one", b"two"]);
    let closing = call(move || queue.close());
    closing.asleep();
    gate.open();
    one.result("push").unwrap();
    two.result("push").unwrap();
    closing.result("close").unwrap();
    let found = options(Arc::new(disk.power_cut(CrashImage::Oldest))).open("queue").unwrap();
    assert!(found.recovery().was_closed());
    assert_eq!(payloads(&found), [&b"first"[..], b"one", b"two"]);
}

/// What many threads were told, where an operation fails, and after a kill.
#[derive(Default)]
struct Told {
    kept: BTreeMap<u64, u64>,
    refused: BTreeSet<u64>,
    open: BTreeSet<u64>,
}

/// Each payload begins with its number.
fn payload(number: u64, dice: &mut Dice) -> Vec<u8> {
    let most = if dice.one_in(12) { 24_000 } else { 1200 };
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + usize::try_from(dice.below(most)).unwrap(), 1);
    payload
}

fn push_some(queue: &Queue, next: &AtomicU64, mut dice: Dice) -> Told {
    let mut told = Told::default();
    for _ in 0..24 {
        let count = if dice.one_in(5) { 1 + dice.below(4) } else { 1 };
        let first = next.fetch_add(count, Ordering::Relaxed);
        let numbers = first..first + count;
        let message = |number, dice: &mut Dice| {
            let message = Message::new(payload(number, dice));
            match dice.below(8) {
                0 => message.durability(Durability::Os),
                1 => message.header("a", b"b"),
                2 => message.delay(Duration::from_nanos(1)),
                3 => message.ttl(Duration::from_secs(3600)),
                _ => message,
            }
        };
        let pushed = if count == 1 && dice.one_in(6) {
            queue.submit(message(first, &mut dice)).map(|receipt| vec![receipt.seq()])
        } else {
            let batch: Vec<_> = numbers.clone().map(|n| message(n, &mut dice)).collect();
            queue.push_batch(batch)
        };
        match pushed {
            Ok(seqs) => told.kept.extend(numbers.zip(seqs.into_iter().map(u64::from))),
            Err(error) if error.is_indeterminate() => told.open.extend(numbers),
            Err(_) => told.refused.extend(numbers),
        }
    }
    told
}

/// `KEEPQ_COLLECTED_CASES` chooses how many cases.
#[test]
fn many_threads_are_told_the_truth_when_an_operation_fails() {
    for seed in 0..cases("KEEPQ_COLLECTED_CASES", 60) {
        let mut dice = Dice(seed);
        let disk = Arc::new(MemoryStorage::new());
        let faults = Arc::new(FaultStorage::new(disk.clone()));
        faults.stores_can_fail(true);
        let queue = options(faults.clone()).background(dice.one_in(2)).open("queue").unwrap();
        queue.push(&u64::MAX.to_le_bytes()).unwrap();
        let at = dice.below(400);
        let is_crash = dice.one_in(3);
        let lasting = dice.one_in(4);
        let fails = FaultPlan::FailAt { at, error: ErrorKind::StorageFull, lasting };
        faults.plan(if is_crash { FaultPlan::CrashAt { at } } else { fails });
        let next = AtomicU64::new(0);
        let told: Vec<Told> = thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|_| {
                    let dice = Dice(dice.next());
                    let (queue, next) = (&queue, &next);
                    scope.spawn(move || push_some(queue, next, dice))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut seqs = BTreeMap::new();
        for told in &told {
            assert!(told.kept.values().is_sorted(), "seed {seed}: a thread's own order");
            for (number, seq) in &told.kept {
                assert_eq!(seqs.insert(*seq, *number), None, "seed {seed}: message {seq} is two");
            }
        }
        let found = options(Arc::new(disk.killed())).open("queue").unwrap();
        let mut jobs = found.pop_batch(usize::MAX).unwrap();
        // Asked one after the other, a message could come due between the two.
        let is_left = |stats: Stats| stats.ready() + stats.delayed() > 0;
        while is_left(found.stats()) {
            jobs.extend(found.pop_timeout(DEADLINE).unwrap());
        }
        let mut here: BTreeMap<u64, u64> = BTreeMap::new();
        for job in &jobs {
            let number = u64::from_le_bytes(job[..8].try_into().unwrap());
            assert!(here.insert(job.seq().into(), number).is_none());
        }
        for (seq, number) in &seqs {
            assert_eq!(here.get(seq), Some(number), "seed {seed}: message {seq} is lost");
        }
        for told in &told {
            // What is said after a crash is heard by nobody.
            let comes = here.values().find(|&number| !is_crash && told.refused.contains(number));
            assert_eq!(comes, None, "seed {seed}: it was refused");
        }
        assert!(found.damage().is_empty(), "seed {seed}: {:?}", found.damage());
    }
}

/// A producer waited for room that a collected message had taken. The write of that failed: there
/// was room again, and nobody woke the producer.
#[test]
fn room_that_a_failed_write_gives_back_wakes_a_producer() {
    for background in [false, true] {
        let set = |options: Options| {
            let options = options.background(background).max_messages(2);
            options.overflow(Overflow::Block)
        };
        let Held { faults, queue, gate, open: _open, .. } = held_with(Op::Store, set);
        let [one, two] = two_pushes(&queue, &gate, [&[1; 900], &[2; 900]]);
        faults.plan(FaultPlan::FailAt { at: 1, error: ErrorKind::StorageFull, lasting: false });
        gate.open();
        one.result("push").unwrap_err();
        assert_eq!(u64::from(two.result("push into the room").unwrap()), 2);
    }
}

/// Collected messages count, and could not be dropped: a push dropped all others, and failed all
/// the same.
#[test]
fn what_is_collected_can_be_dropped() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let options = options(storage.clone()).max_messages(4).compaction(Compaction::off());
    let queue = options.overflow(Overflow::DropOldest).open("queue").unwrap();
    // So that others are collected meanwhile.
    storage.rule(|call| {
        if call.op == Op::Sync {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..50 {
                    queue.push("x").unwrap();
                }
            });
        }
    });
    assert_eq!(queue.len(), 4);
}
