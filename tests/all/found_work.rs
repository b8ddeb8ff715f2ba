//! The work of one push, dead letters after a power cut, and calls that meet a close. Each
//! test is a story that went wrong, or nearly.

use crate::found_hooks::{Gate, OpenAtEnd};
use crate::found_moves::cut_while_a_message_dies;
use crate::found_support::{Watch, call, ms, on, soon, watched};
use crate::support::watched::{Op, Watched};
use crate::support::{Dice, OverAtEnd, cases};
use keepq::fault::{CrashImage, MemoryStorage, Storage};
use keepq::{Compaction, Delivery, Durability, Message, Options, Overflow, Queue};
use std::collections::BTreeMap;
use std::mem::forget;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// The most syncs that one push may make, whatever work is left over. There were 54 to 80.
const SYNCS: u64 = 12;

/// Compacts at once.
fn eager() -> Compaction {
    Compaction::default().idle(Duration::ZERO)
}

fn options(storage: Arc<dyn Storage>) -> Options {
    on(storage).background(false).compaction(eager())
}

/// How often it syncs to do this.
fn syncs<T>(watch: &Watch, work: impl FnOnce() -> T) -> u64 {
    let before = watch.count(Op::Sync);
    work();
    watch.count(Op::Sync) - before
}

/// The most syncs of one of these pushes. They may be refused.
fn most_syncs(watch: &Watch, queue: &Queue, pushes: usize) -> u64 {
    let each = (0..pushes).map(|_| syncs(watch, || queue.push(&[1; 1000])));
    each.max().unwrap_or(0)
}

fn ack_all(queue: &Queue) {
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
    }
}

/// The first push of a run let go of all small segments that the run before had left: 66 syncs
/// for 60 segments, which is half a minute on a slow disk.
#[test]
fn the_first_push_of_a_run_does_the_work_of_few_files() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let queue = options(storage.clone()).open("queue").unwrap();
    for _ in 0..60 * 60 {
        queue.push(&[1; 1000]).unwrap();
    }
    queue.close().unwrap();
    let queue = options(storage).open("queue").unwrap();
    ack_all(&queue);
    let first = syncs(&watch, || queue.push("x").unwrap());
    let later = most_syncs(&watch, &queue, 70);
    assert!(first <= SYNCS && later <= SYNCS, "{first} syncs at first, {later} later");
}

/// A push at `max_bytes` synced each full segment, and a checkpoint after each, although none of
/// them was done: 80 syncs, and then it was refused.
#[test]
fn a_push_at_max_bytes_does_the_work_of_few_files() {
    for compaction in [Compaction::off(), Compaction::default()] {
        let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
        let options = options(storage).max_bytes(40 * 65_536).compaction(compaction);
        let queue = options.dead_letters(false).open("queue").unwrap();
        let mut most = most_syncs(&watch, &queue, 1000);
        for _ in 0..2000 {
            most = most.max(most_syncs(&watch, &queue, 2));
            queue.pop().unwrap().unwrap().ack().unwrap();
        }
        assert!(queue.len() < 3000, "some pushes were refused");
        assert!(most <= SYNCS, "{most} syncs");
    }
}

/// A push that found no room let go of all files of the dead letters: 54 syncs.
#[test]
fn a_push_beside_drained_dead_letters_does_the_work_of_few_files() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = options(storage).max_bytes(40 * 65_536).compaction(Compaction::off());
    let queue = options.open("queue").unwrap();
    for _ in 0..1000 {
        queue.push(&[1; 1000]).unwrap();
        queue.pop().unwrap().unwrap().reject("no").unwrap();
    }
    queue.maintain().unwrap();
    let dead = queue.dead_letters().unwrap();
    assert_eq!(dead.len(), 1000);
    ack_all(&dead);
    let most = most_syncs(&watch, &queue, 2500);
    assert!(most <= SYNCS, "{most} syncs");
}

/// A power cut kept the dead letter and undid that its message died. The next run showed the
/// letter at once; it was acked, the message was handed out again and rejected again, and a second
/// letter came for it.
#[test]
fn a_power_cut_makes_no_two_dead_letters_of_one_message() {
    let (mut at, mut cuts) = (0, 0);
    loop {
        let mixed = (1..6).map(|seed| CrashImage::Mixed(seed * 1000 + at));
        let images = [CrashImage::Oldest].into_iter().chain(mixed);
        let disks: Vec<_> =
            images.filter_map(|image| cut_while_a_message_dies(at, image)).collect();
        if disks.is_empty() {
            break;
        }
        for disk in disks {
            let queue = options(disk).open("queue").unwrap();
            let dead = queue.dead_letters().unwrap();
            if let Some(letter) = dead.pop().unwrap() {
                assert!(queue.is_empty(), "cut at {at}: the message is here and its letter there");
                letter.ack().unwrap();
            } else if let Some(job) = queue.pop().unwrap() {
                job.reject("second").unwrap();
                queue.maintain().unwrap();
                dead.pop().unwrap().expect("the dead letter").ack().unwrap();
            }
            assert!(dead.pop().unwrap().is_none(), "cut at {at}: a second letter");
            cuts += 1;
        }
        at += 1;
    }
    assert!(cuts > 30, "{cuts} cuts");
}

/// A handle of the dead letters is closed while the message of one of them dies here: the letter
/// is shown once, by the next handle and after a kill.
#[test]
fn a_dead_letter_outlives_a_handle_that_was_closed() {
    for is_killed in [false, true] {
        let memory = Arc::new(MemoryStorage::new());
        let mut queue = options(memory.clone()).open("queue").unwrap();
        let dead = queue.dead_letters().unwrap();
        queue.push_batch(["a", "b"]).unwrap();
        queue.pop().unwrap().unwrap().reject("one").unwrap();
        assert!(dead.pop().unwrap().is_none());
        dead.close().unwrap();
        if is_killed {
            let disk = Arc::new(memory.killed());
            forget(queue);
            queue = options(disk).open("queue").unwrap();
        }
        let dead = queue.dead_letters().unwrap();
        let letter = dead.pop().unwrap().unwrap();
        assert_eq!(&letter[..], b"a");
        letter.ack().unwrap();
        assert!(dead.pop().unwrap().is_none());
        assert_eq!(queue.stats().dying(), 0);
    }
}

/// A disk was full, and the next checkpoint had to be longer than the one before. Once all
/// messages are acked, `maintain` makes room for new ones.
#[test]
fn a_full_disk_has_room_again_although_the_checkpoint_has_to_grow() {
    let memory = Arc::new(MemoryStorage::with_capacity(1500 * 65_536 + 8192 + 5000));
    let queue = options(memory).open("queue").unwrap();
    // A checkpoint comes first.
    for _ in 0..130 {
        queue.push(&[1; 1000]).unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
    }
    queue.maintain().unwrap();
    while queue.push(vec![1; 30_000]).is_ok() {}
    assert!(queue.len() > 1000);
    ack_all(&queue);
    queue.maintain().unwrap();
    queue.push(vec![1; 60_000]).unwrap();
}

/// All files of the queue and of its dead letters.
fn files(disk: &MemoryStorage) -> BTreeMap<String, Vec<u8>> {
    let dead = disk.directory("dead").unwrap();
    let mut files = BTreeMap::new();
    for (prefix, storage) in [("", disk as &dyn Storage), ("dead/", &*dead)] {
        for entry in storage.list().unwrap() {
            let Ok(file) = storage.open(&entry.name) else { continue };
            let mut bytes = vec![0; file.size() as usize];
            file.read_at(0, &mut bytes).unwrap();
            files.insert(format!("{prefix}{}", entry.name), bytes);
        }
    }
    files
}

/// One call of many kinds. The queue may be closed.
fn step(queue: &Queue, held: &mut Vec<Delivery>, dice: &mut Dice) {
    match dice.below(20) {
        0..8 => drop(queue.try_push(&[1; 3000])),
        8..11 => held.extend(queue.pop().ok().flatten()),
        11..14 => drop(held.pop().map(Delivery::ack)),
        14 => drop(held.pop().map(|job| job.reject("x"))),
        15 => drop(queue.compact()),
        16 => drop(queue.maintain()),
        17 => {
            let letter = queue.dead_letters().and_then(|dead| dead.pop()).ok().flatten();
            drop(letter.map(Delivery::ack));
        }
        18 if dice.one_in(8) => drop(queue.dead_letters().and_then(Queue::close)),
        18 => drop(queue.redrive(3)),
        _ => drop(queue.sync()),
    }
}

/// Threads that make calls of all kinds while the queue is closed: once `close` has returned, no
/// file changes any more.
#[test]
fn no_file_changes_once_close_has_returned() {
    const MAX_BYTES: u64 = 2_000_000;
    for seed in 0..cases("KEEPQ_CLOSES", 24) {
        let disk = Arc::new(MemoryStorage::new());
        let durability = if seed % 3 == 0 { Durability::Always } else { Durability::Os };
        let overflow = if seed % 5 < 2 { Overflow::DropOldest } else { Overflow::Block };
        let options = options(disk.clone()).durability(durability).background(seed % 4 != 0);
        let options = options.visibility_timeout(ms(3)).sync_acks(seed % 2 == 0).open_segments(2);
        let queue = options.max_bytes(MAX_BYTES).overflow(overflow).open("queue").unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for thread in 0..5 {
                let (queue, stop) = (queue.clone(), &stop);
                scope.spawn(move || {
                    let (mut dice, mut held) = (Dice(seed * 10 + thread), Vec::new());
                    while !stop.load(SeqCst) {
                        step(&queue, &mut held, &mut dice);
                    }
                });
            }
            let _over = OverAtEnd(&stop);
            thread::sleep(ms(5 + seed % 30));
            let closed = queue.clone().close();
            let left = files(&disk);
            thread::sleep(ms(2));
            stop.store(true, SeqCst);
            closed.unwrap();
            let bytes: usize = left.values().map(Vec::len).sum();
            assert!(bytes as u64 <= MAX_BYTES, "seed {seed}: {bytes} bytes");
            assert!(left == files(&disk), "seed {seed}: a file has changed");
        });
    }
}

/// A call that meets a close; it may fail. The deliveries are of messages in flight.
type Step = (&'static str, fn(&Queue, Vec<Delivery>));

const STEPS: [Step; 14] = [
    ("push", |queue, _| drop(queue.push(&[1; 9000]))),
    ("push_batch", |queue, _| drop(queue.push_batch([&[1; 9000], &[2; 9000]]))),
    ("pushes", |queue, _| (0..12).for_each(|_| drop(queue.push(&[1; 9000])))),
    ("pop", |queue, _| drop(queue.pop())),
    ("ack", |_, mut held| drop(held.remove(0).ack())),
    ("nack", |_, mut held| drop(held.remove(0).nack_after(ms(1000)))),
    ("reject", |_, mut held| drop(held.remove(0).reject("no"))),
    ("drop", |_, held| drop(held)),
    ("sync", |queue, _| drop(queue.sync())),
    ("maintain", |queue, held| drop((queue.ack_batch(held), queue.maintain()))),
    ("compact", |queue, held| drop((queue.ack_batch(held), queue.compact()))),
    ("purge", |queue, _| drop(queue.purge())),
    ("redrive", |queue, _| drop(queue.redrive(9))),
    ("a dead letter", |queue, _| {
        let letter = queue.dead_letters().and_then(|dead| dead.pop());
        drop(letter.ok().flatten().map(Delivery::ack));
    }),
];

/// Holds up the change number `at` that a step makes to its storage, closes the queue meanwhile,
/// and tells whether a file changed once `close` had returned; `None` if there is no such change.
fn changes_after_close(step: Step, durability: Durability, at: u64) -> Option<bool> {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = options(storage.clone()).durability(durability).open("queue").unwrap();
    let messages = (0..40).map(|_| Message::new(&[1; 9000]).durability(Durability::Os));
    messages.for_each(|message| assert!(queue.push(message).is_ok()));
    for job in queue.pop_batch(2).unwrap() {
        job.reject("no").unwrap();
    }
    queue.maintain().unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let mut held = queue.pop_batch(30).unwrap();
    let _left = held.split_off(27);
    let (gate, test, calls) = (Gate::closed(), thread::current().id(), AtomicU64::new(0));
    let (_end, for_calls) = (OpenAtEnd(Arc::clone(&gate)), Arc::clone(&gate));
    storage.rule(move |call| {
        let is_change = call.op.is_change() && thread::current().id() != test;
        if is_change && calls.fetch_add(1, SeqCst) == at {
            for_calls.pass();
        }
        Ok(())
    });
    let for_step = queue.clone();
    let working = call(move || step.1(&for_step, held));
    assert!(soon(|| working.is_over() || gate.has_waiting()));
    if working.is_over() {
        return None;
    }
    let closing = call(move || queue.close());
    closing.asleep();
    let left = closing.is_over().then(|| files(&disk));
    gate.open();
    closing.result("close").unwrap();
    let left = left.unwrap_or_else(|| files(&disk));
    working.result("the call during the close");
    Some(left != files(&disk))
}

/// The same, whatever change a call is about to make when the queue is closed. A seal was stored
/// after that: of a segment that a redrive had synced.
#[test]
fn no_file_changes_once_close_has_returned_whatever_was_under_way() {
    let (mut changes, mut wrong) = (0, Vec::new());
    for step in STEPS {
        for durability in [Durability::Os, Durability::Always] {
            for at in 0.. {
                let Some(is_wrong) = changes_after_close(step, durability, at) else { break };
                wrong.extend(is_wrong.then(|| format!("{}, {durability:?}, {at}", step.0)));
                changes += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "changed after close: {wrong:?}");
    assert!(changes > 200, "{changes} changes");
}
