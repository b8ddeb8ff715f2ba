//! Found faults: what others do between two steps of long work, and threads that wake themselves.

use crate::found_hooks::{Way, find, flip, is_segment, is_temporary, large};
use crate::found_support::{call, ms, on, watched};
use crate::support::watched::{Op, Watched};
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{Backoff, Delivery, Durability, Error, Message, Overflow, Queue, Stuck};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

/// A push dropped 3,999 of 4,000 messages in steps, a consumer took one in between, and the push
/// failed for want of room: they were dropped for nothing.
#[test]
fn drop_oldest_that_fails_has_dropped_nothing() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = on(storage).segment_bytes(16 << 20).background(false);
    let options = options.max_messages(4000).overflow(Overflow::DropOldest);
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..4000).map(|_| "old")).unwrap();
    let pushing = queue.clone();
    let (hold, pushing) = watch.hold(Op::StoreWord, "", move || {
        pushing.push_batch((0..4000).map(|_| "new")).map(|seqs| seqs.len())
    });
    let popping = queue.clone();
    let popping = call(move || popping.pop().unwrap());
    popping.asleep();
    drop(hold);
    let job = popping.result("pop");
    let pushed = pushing.result("push");
    let stats = queue.stats();
    assert!(
        pushed.is_ok() || stats.dropped() == 0,
        "{pushed:?} after {} were dropped",
        stats.dropped()
    );
    drop(job);
}

/// What was settled between two steps was not counted: a push dropped as many messages as it had
/// missed at its start.
#[test]
fn drop_oldest_drops_no_more_than_it_has_to() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = on(storage).segment_bytes(16 << 20).background(false);
    let options = options.max_messages(8000).overflow(Overflow::DropOldest);
    let queue = options.open("queue").unwrap();
    queue.push_batch((0..8000).map(|_| "old")).unwrap();
    let jobs = queue.pop_batch(256).unwrap();
    let pushing = queue.clone();
    let (hold, pushing) = watch.hold(Op::StoreWord, "", move || {
        pushing.push_batch((0..7000).map(|_| "new")).map(|seqs| seqs.len())
    });
    let acking = queue.clone();
    let acking = call(move || {
        acking.ack_batch(jobs).unwrap();
        acking.stats().dropped()
    });
    acking.asleep();
    drop(hold);
    let dropped_then = acking.result("ack");
    pushing.result("push").unwrap();
    let dropped = queue.stats().dropped();
    assert!(
        dropped_then >= 6000 || dropped <= 7000 - 256,
        "{dropped} were dropped, of which {dropped_then} before 256 were acked: 6,744 are enough"
    );
}

/// A batch without a limit took what was pushed meanwhile, too, and ended only with the producer.
#[test]
fn pop_batch_ends_while_others_push() {
    let queue = on(Arc::new(MemoryStorage::new())).segment_bytes(16 << 20).background(false);
    let queue = queue.open("queue").unwrap();
    queue.push_batch((0..10_000).map(|_| "job")).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let pushed = Arc::new(AtomicU64::new(10_000));
    let (pushing, stop, count) = (queue.clone(), is_over.clone(), pushed.clone());
    let producer = thread::spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            pushing.push_batch((0..1000).map(|_| "job")).unwrap();
            if count.fetch_add(1000, Ordering::SeqCst) > 3_000_000 {
                break;
            }
        }
    });
    while pushed.load(Ordering::SeqCst) < 20_000 {
        thread::yield_now();
    }
    let there = pushed.load(Ordering::SeqCst);
    let taken = queue.pop_batch(usize::MAX).unwrap().len();
    let ended_before = !producer.is_finished();
    is_over.store(true, Ordering::SeqCst);
    producer.join().unwrap();
    assert!(
        ended_before,
        "pop_batch went on until the producer stopped: {there} were there, {taken} were taken"
    );
}

/// A batch whose first leases ran out while it was made had the same messages twice, and used up
/// their attempts.
#[test]
fn a_batch_has_no_message_twice() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let options = on(storage).background(false).visibility_timeout(ms(200));
    let queue = options.backoff(Backoff::none()).open("queue").unwrap();
    queue.push_batch((0..600).map(|_| "job")).unwrap();
    watch.slow_down(Op::StoreWord, ms(1));
    let jobs = queue.pop_batch(1200).unwrap();
    let seqs: BTreeSet<_> = jobs.iter().map(Delivery::seq).collect();
    let all = jobs.len();
    let attempts = jobs.iter().map(Delivery::attempts).max();
    jobs.into_iter().for_each(std::mem::forget);
    assert_eq!(
        seqs.len(),
        all,
        "a batch of {all} has {} messages; attempts: {attempts:?}",
        seqs.len()
    );
}

/// There were more damaged slots of delayed messages than one step takes up. The cursor came to the
/// others first, and rebuilt them; nobody put them into the schedule, so they never came.
#[test]
fn delayed_messages_with_damaged_slots_come_all() {
    let disk = Arc::new(MemoryStorage::new());
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let open = || {
        let options = on(disk.clone()).segment_bytes(1 << 20).background(false);
        options.clock(clock.clone()).open("queue").unwrap()
    };
    let queue = open();
    let delay = Duration::from_secs(60);
    queue.push_batch((0..600).map(|_| Message::new("the job").delay(delay))).unwrap();
    queue.close().unwrap();
    let (name, _) = find(&disk, b"the job");
    let content = disk.read(&name).unwrap();
    let mut damaged = 0;
    for index in 0..600_u64 {
        let at = content.len() as u64 - 4096 - 16 * (index + 1);
        let word = &content[at as usize..at as usize + 8];
        if word != [0; 8] {
            flip(&disk, &name, at);
            damaged += 1;
        }
    }
    assert_eq!(damaged, 600);
    let queue = open();
    assert!(queue.pop().unwrap().is_none());
    clock.advance(delay * 2);
    let mut came = 0;
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
        came += 1;
    }
    let stats = queue.stats();
    assert_eq!(
        (came, stats.ready(), stats.delayed()),
        (600, 0, 0),
        "(came, ready, delayed) at last; lost {}",
        stats.lost()
    );
}

/// A producer that waited for room tried to make a copy, could not, gave the bytes back, and so
/// woke itself: it tried 270,000 times a second.
#[test]
fn a_producer_in_line_sleeps_where_no_copy_can_be_made() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let options = Queue::options().durability(Durability::Os).segment_bytes(65_536);
    let options = options.max_bytes(1 << 20).overflow(Overflow::Block).push_timeout(ms(1000));
    let queue = options.background(false).storage(storage.clone()).open("queue").unwrap();
    while queue.try_push(large(0)).is_ok() {}
    queue.sync().unwrap();
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let creates = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&creates);
    storage.rule(move |call| {
        if call.op == Op::Create && (is_temporary(call.name) || is_segment(call.name)) {
            seen.fetch_add(1, Ordering::SeqCst);
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        Ok(())
    });
    let mut kept = Vec::new();
    for (at, job) in jobs.into_iter().enumerate() {
        if at % 5 == 0 {
            kept.push(job);
        } else {
            job.ack().unwrap();
        }
    }
    queue.sync().unwrap();
    assert!(matches!(queue.push(large(1000)), Err(Error::Full { .. })));
    let made = creates.load(Ordering::SeqCst);
    kept.into_iter().for_each(std::mem::forget);
    assert!(made < 50, "in 1 s the producer tried to make {made} files");
}

/// Without a background, each look of `wait_acked` forgot the time that it watched, told itself of
/// it as of a new one, and so woke itself: it took a whole core.
#[test]
fn wait_acked_sleeps_while_it_watches_a_time() {
    let waits: [Way; 2] = [
        ("a delay", |queue| {
            queue.push(Message::new("later").delay(Duration::from_secs(3600))).unwrap();
        }),
        ("an expiry", |queue| {
            queue.push(Message::new("short").ttl(Duration::from_secs(3600))).unwrap();
        }),
    ];
    for (name, push) in waits {
        let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
        let queue = on(storage).background(false).open("queue").unwrap();
        push(&queue);
        let seq = queue.push("job").unwrap();
        let before = watch.count(Op::Load);
        assert!(!queue.wait_acked(seq, ms(500)).unwrap());
        let looks = watch.count(Op::Load) - before;
        assert!(looks < 5000, "{name}: it looked {looks} times");
    }
}

/// `stuck` went on behind the first message of the segment that it had seen. That was merged with
/// the next ones meanwhile: their messages were not in the answer.
#[test]
fn stuck_shows_what_compaction_merges_meanwhile() {
    let (storage, watch) = watched(Arc::new(MemoryStorage::new()));
    let queue = on(storage).background(false).open("queue").unwrap();
    let first = queue.push("stays").unwrap();
    let mut last = first;
    while queue.stats().segments() < 5 {
        last = queue.push(vec![7; 9000]).unwrap();
    }
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let kept =
        |job: &Delivery| job.seq() == first || u64::from(job.seq()) % 6 == 0 || job.seq() == last;
    let (kept, acked): (Vec<_>, Vec<_>) = jobs.into_iter().partition(kept);
    queue.ack_batch(acked).unwrap();
    for job in kept {
        job.release().unwrap();
    }
    let all: u64 = queue.stuck(99).unwrap().iter().map(Stuck::messages).sum();
    assert_eq!(all, queue.len());
    let before = watch.count(Op::Load);
    assert_eq!(queue.stuck(1).unwrap().len(), 1);
    let loads = watch.count(Op::Load) - before;
    // The last load of the first step is outside of the lock.
    let looking = queue.clone();
    let (hold, looking) =
        watch.hold_after(loads - 1, Op::Load, "", move || looking.stuck(99).unwrap());
    let compacted = queue.compact().unwrap();
    drop(hold);
    let seen = looking.result("stuck");
    assert!(compacted.copies() > 0 && compacted.replaced() > 1, "{compacted:?}");
    let told: u64 = seen.iter().map(Stuck::messages).sum();
    assert_eq!(told, all, "{seen:?}");
}
