//! Found faults: which calls have to wait for the sync of a file, and for how many syncs.

use super::found_hooks::{Gate, LIMIT, OpenAtEnd, Work, by_hand, large, until};
use crate::support::watched::Watched;
use keepq::fault::MemoryStorage;
use keepq::{Backoff, Delivery, Durability, Message, Options, Queue};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

/// How many full segments there are, and how many messages each of them has.
const SEGMENTS: u64 = 8;
const EACH: u64 = 6;
const OLD: usize = 48;
const _: () = assert!(SEGMENTS * EACH == 48);

const MINUTE: Duration = Duration::from_secs(60);

fn os(storage: Arc<Watched>) -> Options {
    let options = by_hand(storage).durability(Durability::Os).dead_letters(false);
    options.backoff(Backoff::none()).max_attempts(0)
}

/// From here on every sync waits at a gate.
fn hold_syncs(storage: &Watched) -> Arc<Gate> {
    let gate = Gate::closed();
    let at = Arc::clone(&gate);
    storage.rule(move |call| {
        if call.op.is_sync() {
            at.pass();
        }
        Ok(())
    });
    gate
}

/// A consumer dropped deliveries out of more files than may be open. Its thread waited for a sync
/// with nearly every one of them, and all other threads waited behind it: keepq noted the backoff
/// of the message, mapped a file for that, and synced and unmapped another file for the map. The
/// drop of a delivery waits for no disk, also if the disk does not answer at all.
#[test]
fn a_delivery_is_dropped_without_a_sync() {
    type Choice = (&'static str, fn(Options) -> Options);
    let choices: [Choice; 3] = [
        ("with a backoff", |options| options.backoff(Backoff::exponential(MINUTE))),
        ("without one", |options| options),
        ("of the last attempt", |options| options.max_attempts(1)),
    ];
    for (name, choice) in choices {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let queue = choice(os(storage.clone()).open_segments(2)).open("queue").unwrap();
        for number in 0..SEGMENTS * EACH {
            queue.push(large(number)).unwrap();
        }
        let jobs = queue.pop_batch(usize::MAX).unwrap();
        assert_eq!(jobs.len(), OLD);
        let gate = hold_syncs(&storage);
        let _open = OpenAtEnd(gate);
        let mut dropping = Work::start(move |_| drop(jobs));
        dropping.finish(&format!("deliveries are dropped {name}, and no sync comes back"));
        assert_eq!(queue.in_flight(), 0, "{name}");
    }
}

/// What one thread does with the messages of the full segments, which have been delivered to it. It
/// may have to wait until some of those files are synced.
type Task = fn(&Queue, &mut Vec<Delivery>);

fn each(jobs: &mut Vec<Delivery>, answer: impl Fn(Delivery)) {
    // From both ends, so that it is another file each time.
    let mut jobs = VecDeque::from(std::mem::take(jobs));
    while let Some(job) = jobs.pop_front() {
        answer(job);
        jobs.pop_back().into_iter().for_each(&answer);
    }
}

/// Tasks after which the next ready message is one of the newest file.
const SETTLED_OR_HELD: [(&str, Task); 11] = [
    ("ack", |_, jobs| each(jobs, |job| job.ack().unwrap())),
    ("ack_batch", |queue, jobs| queue.ack_batch(std::mem::take(jobs)).unwrap()),
    ("nack_after", |_, jobs| each(jobs, |job| job.nack_after(MINUTE).unwrap())),
    ("reject", |_, jobs| each(jobs, |job| job.reject("no").unwrap())),
    ("sync", |queue, _| queue.sync().unwrap()),
    ("maintain", |queue, _| queue.maintain().unwrap()),
    ("compact", |queue, jobs| {
        let left = jobs.split_off(OLD - 2);
        queue.ack_batch(std::mem::replace(jobs, left)).unwrap();
        assert!(queue.compact().unwrap().copies() > 0);
    }),
    ("stuck", |queue, _| assert!(!queue.stuck(usize::MAX).unwrap().is_empty())),
    ("iter", |queue, _| assert!(queue.iter().count() > 1)),
    ("is_acked", |queue, _| {
        (1..=SEGMENTS * EACH).for_each(|seq| assert!(!queue.is_acked(seq.into()).unwrap()));
    }),
    ("get", |queue, _| {
        (1..=SEGMENTS * EACH).for_each(|seq| assert!(queue.get(seq.into()).unwrap().is_some()));
    }),
];

/// Tasks that begin or end with the messages of the full files ready.
const GIVEN_BACK: [(&str, Task); 5] = [
    ("nack", |_, jobs| each(jobs, |job| job.nack().unwrap())),
    ("release", |_, jobs| each(jobs, |job| job.release().unwrap())),
    ("pop", |queue, jobs| {
        jobs.clear();
        jobs.extend((0..OLD).map_while(|_| queue.pop().unwrap()));
    }),
    ("pop_batch", |queue, jobs| {
        jobs.clear();
        jobs.extend(queue.pop_batch(OLD).unwrap());
    }),
    ("purge", |queue, jobs| {
        jobs.clear();
        assert!(queue.purge().unwrap() >= SEGMENTS * EACH);
    }),
];

/// What another thread does meanwhile: it works on messages of the newest file, which is always
/// open. `pops`: whether the next ready message is one of that file.
fn meanwhile(queue: &Queue, held: Vec<Delivery>, pops: bool, tell: &Sender<&'static str>) {
    let step = |name| tell.send(name).unwrap();
    let mut held = held.into_iter();
    let mut next = || held.next().unwrap();
    step("push");
    let seq = queue.push("pushed meanwhile").unwrap();
    step("push of a delayed message");
    queue.push(Message::new("later").delay(MINUTE)).unwrap();
    step("len");
    assert!(!queue.is_empty());
    step("in_flight");
    assert!(queue.in_flight() > 0);
    step("delayed");
    assert!(queue.delayed() > 0);
    step("is_acked");
    queue.is_acked(seq).unwrap();
    step("get");
    queue.get(seq).unwrap();
    step("ack");
    next().ack().unwrap();
    step("nack_after");
    next().nack_after(MINUTE).unwrap();
    step("drop");
    drop(next());
    if pops {
        step("peek");
        assert!(queue.peek().unwrap().is_some());
        step("pop");
        let job = queue.pop().unwrap().unwrap();
        step("ack of what was popped");
        job.ack().unwrap();
        step("pop_wait");
        queue.pop_wait().unwrap().ack().unwrap();
    }
}

/// One consumer worked on messages of more files than may be open, so each of its steps synced a
/// file. All other consumers and producers stood still meanwhile, because keepq made the sync under
/// the lock that every pop and every answer needs. Only the consumer that needs the sync waits for
/// it, also if the disk does not answer at all.
#[test]
fn other_threads_go_on_while_one_waits_for_a_sync() {
    let mut stuck = Vec::new();
    let settled = SETTLED_OR_HELD.map(|task| (task, true));
    for ((name, task), pops) in settled.into_iter().chain(GIVEN_BACK.map(|task| (task, false))) {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let queue = os(storage.clone()).open_segments(1).open("queue").unwrap();
        for number in 0..=SEGMENTS * EACH {
            queue.push(large(number)).unwrap();
        }
        (0..20).for_each(|_| assert!(queue.push("in the newest file").is_ok()));
        let mut jobs = queue.pop_batch(OLD + 6).unwrap();
        let held = jobs.split_off(OLD + 1);
        let gate = hold_syncs(&storage);
        let _open = OpenAtEnd(Arc::clone(&gate));
        let (one, others) = (queue.clone(), queue.clone());
        let (keep, _kept) = channel();
        let mut busy = Work::start(move |_| {
            task(&one, &mut jobs);
            keep.send(jobs).ok();
        });
        until("the task waits for a sync, or needs none", || busy.is_over() || gate.has_waiting());
        let mut others = Work::start(move |tell| meanwhile(&others, held, pops, tell));
        // Once the test has failed, it waits for less.
        let limit = if stuck.is_empty() { LIMIT } else { Duration::from_secs(1) };
        stuck.extend(others.stuck_at(limit).map(|step| format!("{step} waits beside {name}")));
        gate.open();
        others.finish(name);
        busy.finish(name);
    }
    assert!(stuck.is_empty(), "{stuck:#?}");
}

/// How many files consumers drain.
const DRAINED: u64 = 60;

/// Fills files, and takes all messages. Once these are settled, no message in a full file waits.
fn fill_and_take(queue: &Queue, is_synced: bool) -> Vec<Delivery> {
    for number in 0..=DRAINED * EACH {
        queue.push(large(number)).unwrap();
    }
    if is_synced {
        queue.sync().unwrap();
    }
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    assert_eq!(jobs.len() as u64, DRAINED * EACH + 1);
    jobs
}

/// Consumers had drained sixty files, and the next push that needed a new file cleaned all of them
/// up. On a disk that takes half a second for a sync, this one push took 27 s, though a push under
/// `Os` does not wait for the disk. A push cleans up one file at the most: that is enough for a
/// fast producer to take no more files than a slow one. Where nothing had been synced, a push still
/// synced all of the sixty, because none of them could go.
#[test]
fn a_push_does_the_clean_up_of_one_file_at_the_most() {
    [true, false].into_iter().for_each(a_push_cleans_up_one_file);
}

#[track_caller]
fn a_push_cleans_up_one_file(is_synced: bool) {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = os(storage.clone()).open("queue").unwrap();
    queue.ack_batch(fill_and_take(&queue, is_synced)).unwrap();
    let before = queue.stats().segments();
    assert!(before >= DRAINED, "{before}");
    let syncs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&syncs);
    storage.rule(move |call| {
        counted.fetch_add(u64::from(call.op.is_sync()), Ordering::SeqCst);
        Ok(())
    });
    for number in 0..DRAINED * EACH {
        syncs.store(0, Ordering::SeqCst);
        queue.push(large(number)).unwrap();
        let made = syncs.load(Ordering::SeqCst);
        assert!(made <= 10, "one push made {made} syncs");
        queue.pop().unwrap().unwrap().ack().unwrap();
    }
    let after = queue.stats().segments();
    assert!(after <= before + 3, "{before} files, then {after}");
}

/// The same with a background thread: while it cleaned up, a push that needed a new file waited
/// until all sixty files were synced.
#[test]
fn a_push_waits_for_one_file_of_a_clean_up_at_the_most() {
    [true, false].into_iter().for_each(a_push_waits_for_one_file);
}

#[track_caller]
fn a_push_waits_for_one_file(is_synced: bool) {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = os(storage.clone()).background(true).open("queue").unwrap();
    let jobs = fill_and_take(&queue, is_synced);
    let gate = Gate::closed();
    let _open = OpenAtEnd(Arc::clone(&gate));
    let (at, pushing) = (Arc::clone(&gate), queue.clone());
    let mut pushes = {
        let storage = storage.clone();
        let (ready, is_ready) = channel();
        let pushes = Work::start(move |_| {
            ready.send(thread::current().id()).unwrap();
            until("the background waits at the gate", || at.has_waiting());
            (0..EACH).for_each(|number| assert!(pushing.push(large(number)).is_ok()));
        });
        let (at, producer) = (Arc::clone(&gate), is_ready.recv().unwrap());
        storage.rule(move |call| {
            if call.op.is_sync() && thread::current().id() != producer {
                at.pass();
            }
            Ok(())
        });
        pushes
    };
    queue.ack_batch(jobs).unwrap();
    until("the background waits for a sync", || gate.has_waiting());
    // The background makes one sync at a time, until the pushes are over.
    while pushes.stuck_at(Duration::from_millis(500)).is_some() {
        let passed = gate.passed();
        assert!(passed <= 20, "a push into a new file waits for {passed} syncs and more");
        gate.give_ticket();
    }
}
