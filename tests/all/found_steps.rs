//! Found faults: long work under the dispatch lock, which has to be done in steps.

use crate::found_hooks::is_segment;
use crate::found_support::{Watch, alone, call, ms, on, takes_less_than, watched};
use crate::support::watched::Op;
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{Backoff, Compaction, Error, Expired, Message, Options, Overflow, Queue, Seq};
use std::mem::forget;
use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

const COUNT: u64 = 60_000;

fn in_files_of(disk: Arc<MemoryStorage>, bytes: u64) -> (Options, Arc<Watch>) {
    let (storage, watch) = watched(disk);
    (on(storage).segment_bytes(bytes).background(false), watch)
}

/// How many operations of a kind `work` does, from the first one on, before a thread that asks for
/// the dispatch lock meanwhile has it; and how many it does in all.
fn done_under_one_lock(
    queue: &Queue,
    watch: &Arc<Watch>,
    op: Op,
    asked: Seq,
    work: impl FnOnce(&Queue) + Send + 'static,
) -> (u64, u64) {
    let before = watch.count(op);
    let working = queue.clone();
    let (hold, working) = watch.hold(op, "", move || work(&working));
    let (other, other_watch) = (queue.clone(), Arc::clone(watch));
    let other = call(move || {
        other.is_acked(asked).ok();
        other_watch.count(op)
    });
    other.asleep();
    drop(hold);
    let done = other.result("is_acked") - before;
    working.result("the work");
    (done, watch.count(op) - before)
}

/// Of 60,000 messages the first are acked, and the last one waits.
fn with_settled_start(queue: &Queue) -> Seq {
    queue.push_batch((0..=COUNT).map(|_| "job")).unwrap();
    let mut jobs = queue.pop_batch(usize::MAX).unwrap();
    let last = jobs.pop().unwrap();
    let seq = last.seq();
    queue.ack_batch(jobs).unwrap();
    last.release().unwrap();
    seq
}

/// Messages that were dropped for `max_messages` were dropped in one step, however many they were:
/// after a reopen with a lower limit, or for a large batch.
#[test]
fn dropping_for_max_messages_lets_others_in() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, _) = in_files_of(disk.clone(), 16 << 20);
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..COUNT).map(|_| "job")).unwrap();
    queue.close().unwrap();
    let (options, watch) = in_files_of(disk, 16 << 20);
    let options = options.max_messages(10).overflow(Overflow::DropOldest);
    let queue = options.open("queue").unwrap();
    assert_eq!(queue.len(), COUNT);
    let asked = Seq::from(COUNT);
    let (done, all) = done_under_one_lock(&queue, &watch, Op::StoreWord, asked, |queue| {
        assert!(queue.push("x").is_ok());
    });
    assert!(done <= all / 2, "{done} of {all} messages were dropped under one lock");
}

/// A walk that shows messages took a step of 4,096 settled slots for one slot, so it passed 512
/// times as many under one lock.
#[test]
fn a_walk_over_settled_slots_lets_others_in() {
    let (options, watch) = in_files_of(Arc::new(MemoryStorage::new()), 16 << 20);
    let queue = options.open("queue").unwrap();
    let last = with_settled_start(&queue);
    let (done, all) = done_under_one_lock(&queue, &watch, Op::Load, last, |queue| {
        assert_eq!(queue.iter().count(), 1);
    });
    assert!(done <= all / 2, "{done} of {all} loads of `iter` were under one lock");
}

/// The same in files of an earlier run, where slots are read from the disk: all settled ones at the
/// start of a segment were read under one lock, for `pop` as for `iter`.
#[test]
fn skipping_settled_slots_of_an_earlier_run_lets_others_in() {
    type Look = (&'static str, fn(&Queue) -> bool);
    let ways: [Look; 2] = [
        ("iter", |queue| queue.iter().next().is_some()),
        ("pop", |queue| queue.pop().unwrap().is_some()),
    ];
    let found = ways.map(|(name, look)| {
        let disk = Arc::new(MemoryStorage::new());
        let (options, _) = in_files_of(disk.clone(), 16 << 20);
        let queue = options.open("queue").unwrap();
        let last = with_settled_start(&queue);
        queue.close().unwrap();
        let (options, watch) = in_files_of(disk, 16 << 20);
        let queue = options.open("queue").unwrap();
        // From here on all slots are counted.
        assert_eq!(queue.len(), 1);
        let (done, all) =
            done_under_one_lock(&queue, &watch, Op::Read, last, move |queue| assert!(look(queue)));
        (name, done, all)
    });
    // 4,096 slots each.
    assert!(found.iter().all(|found| found.1 <= 2), "reads under one lock, of all: {found:?}");
}

/// `stats` and `stuck` looked for the oldest message under one lock, slot by slot.
#[test]
fn the_search_for_the_oldest_message_lets_others_in() {
    let (options, watch) = in_files_of(Arc::new(MemoryStorage::new()), 16 << 20);
    let queue = options.open("queue").unwrap();
    let last = with_settled_start(&queue);
    let (done, all) = done_under_one_lock(&queue, &watch, Op::Load, last, |queue| {
        assert!(queue.stats().oldest().is_some());
    });
    assert!(done <= all / 2, "{done} of {all} loads of `stats` were under one lock");
}

/// All messages of a batch were taken, or answered, under one lock, however many there were.
#[test]
fn large_batches_let_others_in() {
    let (options, watch) = in_files_of(Arc::new(MemoryStorage::new()), 16 << 20);
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..COUNT).map(|_| "job")).unwrap();
    let asked = Seq::from(COUNT);
    let (popped, all) = done_under_one_lock(&queue, &watch, Op::StoreWord, asked, |queue| {
        queue.pop_batch(usize::MAX).unwrap().into_iter().for_each(forget);
    });
    queue.close().unwrap();
    let (options, watch) = in_files_of(Arc::new(MemoryStorage::new()), 16 << 20);
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..COUNT).map(|_| "job")).unwrap();
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (answered, all_answers) =
        done_under_one_lock(&queue, &watch, Op::StoreWord, asked, move |queue| {
            queue.ack_batch(jobs).unwrap();
        });
    assert!(
        popped <= all / 2 && answered <= all_answers / 2,
        "under one lock: {popped} of {all} by pop_batch, {answered} of {all_answers} by ack_batch"
    );
}

/// A walk settled a hole in a segment in steps of 16,384, and compaction in one.
#[test]
fn compaction_that_meets_a_hole_lets_others_in() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, watch) = in_files_of(disk.clone(), 16 << 20);
    let options = options.max_attempts(0).backoff(Backoff::none());
    let queue = options.open("queue").unwrap();
    // Files grow: the last of these has 8 MiB.
    let mut first = Vec::new();
    while first.len() < 4 {
        let before: Vec<String> = disk.list().unwrap().into_iter().map(|e| e.name).collect();
        queue.push_batch((0..10_000).map(|_| "job")).unwrap();
        let now = disk.list().unwrap().into_iter().map(|e| e.name);
        first.extend(now.filter(|n| n.ends_with("seg") && !before.contains(n)));
    }
    queue.push_batch((0..200_000).map(|_| "job")).unwrap();
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (mut kept, mut acked) = (Vec::new(), Vec::new());
    for job in jobs {
        if u64::from(job.seq()) % 100 < 45 { &mut kept } else { &mut acked }.push(job);
    }
    queue.ack_batch(acked).unwrap();
    let last = kept.last().unwrap().seq();
    for job in kept {
        job.release().unwrap();
    }
    for name in &first {
        let file = disk.open(name).unwrap();
        let bytes = vec![0; (file.size() as usize - 8192) / 2];
        file.write_at(4096, &bytes).unwrap();
    }
    let (done, all) = done_under_one_lock(&queue, &watch, Op::StoreWord, last, |queue| {
        queue.compact().unwrap();
    });
    let told = queue.stats().lost();
    assert!(told > COUNT / 4 && all >= told, "{told} are lost, and {all} words were stored");
    assert!(done <= told / 2, "{done} of {told} losses were stored under one lock");
}

/// Each `reject` looked through all letters that were moved and not settled yet, under the lock.
#[test]
fn a_reject_does_not_go_over_all_letters() {
    let reject_all = |count: u64| {
        let (options, _) = in_files_of(Arc::new(MemoryStorage::new()), 16 << 20);
        let queue = options.open("queue").unwrap();
        queue.push_batch((0..count).map(|_| "job")).unwrap();
        let jobs = queue.pop_batch(usize::MAX).unwrap();
        let start = Instant::now();
        for job in jobs {
            job.reject("no").unwrap();
        }
        start.elapsed()
    };
    // Eight times as long; to go over all of them takes some hundred times as long.
    takes_less_than(24, || reject_all(5_000), || reject_all(40_000));
}

/// A producer that dropped a segment went on with that after the queue was closed, step after step,
/// and its push then failed.
#[test]
fn no_message_is_dropped_for_a_push_once_the_queue_is_closed() {
    let disk = Arc::new(MemoryStorage::new());
    let (options, _) = in_files_of(disk.clone(), 16 << 20);
    let options = options.compaction(Compaction::off());
    let limited = options.max_bytes(16 << 20).overflow(Overflow::Reject);
    let queue = limited.open("queue").unwrap();
    while queue.push_batch((0..1000).map(|_| "job")).is_ok() {}
    while queue.push("job").is_ok() {}
    let before = queue.len();
    queue.close().unwrap();
    let (options, watch) = in_files_of(disk, 16 << 20);
    let options = options.compaction(Compaction::off());
    let queue = options.max_bytes(16 << 20).overflow(Overflow::DropOldest).open("queue").unwrap();
    assert_eq!(queue.len(), before);
    // The first segments are small.
    while queue.stats().dropped() < 30_000 {
        queue.push("new").unwrap();
    }
    let pushing = queue.clone();
    let (hold, push) = watch.hold(Op::StoreWord, "", move || {
        loop {
            if let Err(error) = pushing.push("new") {
                return error;
            }
        }
    });
    // `close` syncs while the producer goes on.
    watch.slow_down(Op::Sync, ms(300));
    let closing = queue.clone();
    let close = call(move || closing.close().unwrap());
    close.asleep();
    drop(hold);
    while queue.is_acked(1.into()).is_ok() {}
    let before = queue.stats().dropped();
    let error = push.result("push");
    close.result("close");
    let dropped = queue.stats().dropped() - before;
    assert!(matches!(error, Error::Closed));
    assert_eq!(dropped, 0, "messages were dropped for a push that failed");
}

/// A queue whose leases last a second, and its clock.
fn with_leases(max_attempts: u32) -> (Queue, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + ms(1_000_000_000)));
    let options = alone().clock(clock.clone()).dead_letters(false).max_attempts(max_attempts);
    let options = options.backoff(Backoff::none()).visibility_timeout(ms(1000));
    (options.open("queue").unwrap(), clock)
}

/// Many leases had run out. A pop ended a step of them, whose messages all died, and returned none,
/// though messages behind them were ready.
#[test]
fn a_pop_finds_what_comes_back_behind_many_that_die() {
    let (queue, clock) = with_leases(2);
    queue.push_batch(vec!["x"; 300]).unwrap();
    queue.pop_batch(256).unwrap().into_iter().for_each(forget);
    clock.advance(ms(2000));
    let jobs = queue.pop_batch(300).unwrap();
    assert_eq!(jobs.iter().filter(|job| job.attempts() == 2).count(), 256);
    jobs.into_iter().for_each(forget);
    clock.advance(ms(2000));
    assert_eq!(queue.pop().unwrap().expect("44 messages are ready").attempts(), 2);
}

/// A purge ended a step of the leases that had run out for each of its own steps. It overtook them,
/// and left messages that waited.
#[test]
fn a_purge_settles_all_whose_leases_are_over() {
    let (queue, clock) = with_leases(0);
    queue.push_batch(vec!["x"; 600]).unwrap();
    let jobs = queue.pop_batch(600).unwrap();
    jobs.iter().take(300).for_each(|job| job.extend(ms(3000)).unwrap());
    jobs.into_iter().for_each(forget);
    clock.advance(ms(5000));
    assert_eq!(queue.purge().unwrap(), 600);
    assert!(queue.is_empty());
}

/// All that waited in a segment was dropped for its room, in steps. Between two of them a consumer
/// took a message out of it: the rest was dropped although that gave no room any more.
#[test]
fn no_more_is_dropped_of_a_segment_once_a_consumer_is_at_it() {
    const BATCH: usize = 10_000;
    let (options, watch) = in_files_of(Arc::new(MemoryStorage::new()), 1 << 20);
    let options = options.max_bytes(4 << 20).overflow(Overflow::DropOldest);
    let queue = options.open("queue").unwrap();
    while queue.stats().dropped() == 0 {
        queue.push_batch(vec!["job"; BATCH]).unwrap();
    }
    // A segment holds two batches: the next one needs another.
    queue.push_batch(vec!["job"; BATCH]).unwrap();
    let before = queue.stats().dropped();
    let pushing = queue.clone();
    let (hold, pushing) =
        watch.hold(Op::StoreWord, "", move || pushing.push_batch(vec!["job"; BATCH]).map(|_| ()));
    let popping = queue.clone();
    let popping = call(move || popping.pop());
    popping.asleep();
    drop(hold);
    let job = popping.result("pop").unwrap().expect("there are many");
    pushing.result("push").unwrap();
    assert!(queue.stats().dropped() > before);
    let next = Seq::from(u64::from(job.seq()) + 1);
    assert!(!queue.is_acked(next).unwrap(), "{:?}", queue.stats());
}

/// How many pops whose time is over it takes to get to the message `last`.
fn pops_until_last(queue: &Queue) -> u64 {
    let mut calls = 1;
    loop {
        if let Some(job) = queue.pop_timeout(ms(0)).unwrap() {
            assert_eq!(&*job, b"last");
            return calls;
        }
        calls += 1;
    }
}

/// A pop with a timeout of some milliseconds took seconds where millions of messages had expired in
/// front of the next one, or were delayed, or died with the last run.
#[test]
fn a_pop_ends_at_its_time_whatever_is_in_the_way() {
    type InTheWay = fn(Message<'_>) -> Message<'_>;
    let ways: [(Expired, InTheWay); 4] = [
        (Expired::Drop, |message| message.ttl(ms(1))),
        (Expired::DeadLetter, |message| message.ttl(ms(1))),
        (Expired::Drop, |message| message.delay(ms(100_000))),
        // Handed out for the last time.
        (Expired::Drop, |message| message),
    ];
    for (way, (expired, in_the_way)) in ways.into_iter().enumerate() {
        let (disk, is_handed_out) = (Arc::new(MemoryStorage::new()), way == 3);
        let clock = Arc::new(ManualClock::new(UNIX_EPOCH + ms(1_700_000_000_000)));
        let options = || {
            let options = on(disk.clone()).clock(clock.clone()).background(false);
            options.segment_bytes(16 << 20).max_attempts(1).expired(expired)
        };
        let queue = options().open("queue").unwrap();
        queue.push_batch((0..COUNT).map(|_| in_the_way(Message::new("job")))).unwrap();
        if is_handed_out {
            queue.pop_batch(usize::MAX).unwrap().into_iter().for_each(forget);
        }
        queue.push("last").unwrap();
        drop(queue.close());
        clock.advance(ms(10));
        let queue = options().open("queue").unwrap();
        let calls = pops_until_last(&queue);
        assert!((COUNT / 20_000..COUNT / 128).contains(&calls), "{way}: {calls} calls");
    }
}

/// Large messages that are damaged, each of which is verified first, count by their size.
#[test]
fn a_pop_ends_at_its_time_in_front_of_large_messages_that_are_damaged() {
    const LARGE: u8 = 200;
    let disk = Arc::new(MemoryStorage::new());
    let options = || on(disk.clone()).background(false).segment_bytes(16 << 20);
    let queue = options().open("queue").unwrap();
    queue.push_batch((1..=LARGE).map(|number| vec![number; 64 << 10])).unwrap();
    queue.push("last").unwrap();
    queue.close().unwrap();
    let mut names = disk.list().unwrap().into_iter().map(|entry| entry.name);
    let file = disk.open(&names.find(|name| is_segment(name)).unwrap()).unwrap();
    let mut bytes = vec![0; file.size().try_into().unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    let mut at = 0;
    for number in 1..=LARGE {
        at += bytes[at..].windows(64).position(|window| window == [number; 64]).unwrap();
        file.write_at(at as u64, &[0]).unwrap();
    }
    let queue = options().open("queue").unwrap();
    let calls = pops_until_last(&queue);
    assert_eq!(queue.stats().lost(), u64::from(LARGE));
    assert!((u64::from(LARGE / 20)..u64::from(LARGE / 10)).contains(&calls), "{calls} calls");
}
