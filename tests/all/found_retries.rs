//! Found faults: what failed for a moment was never tried again, or cost messages. Each test is a
//! story that once went wrong.

use crate::found_hooks::{Gate, OpenAtEnd, by_hand, files, is_segment, is_temporary, large, until};
use crate::found_support::{call, ms};
use crate::support::watched::{Call, Op, Watched};
use keepq::fault::{FaultPlan, FaultStorage, MemoryStorage};
use keepq::{Compaction, Durability, Error, Message, Options, Overflow, Queue};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// A megabyte of small segments; no push waits for the disk.
fn small(storage: &Arc<Watched>) -> Options {
    by_hand(storage.clone()).durability(Durability::Os).max_bytes(1 << 20)
}

/// No segment can be removed, or used again.
fn refuse_to_let_go(call: Call<'_>) -> io::Result<()> {
    let removes = call.op == Op::Remove && is_segment(call.name);
    let recycles = call.op == Op::Rename && is_temporary(call.name);
    if removes || recycles { Err(ErrorKind::ResourceBusy.into()) } else { Ok(()) }
}

/// Pushes until there is no room, and settles all of it.
fn fill_and_settle(queue: &Queue) {
    while queue.try_push(large(0)).is_ok() {}
    queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
}

/// A producer waits beside a queue that is empty, because of the rule that `refuse` sets. Once that
/// rule is gone, it has its room.
#[track_caller]
fn gets_room_again(has_background: bool, refuse: impl Fn(&Watched)) {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let options = small(&storage).background(has_background).overflow(Overflow::Block);
    let queue = options.open("queue").unwrap();
    refuse(&storage);
    fill_and_settle(&queue);
    let pushing = queue.clone();
    let producer =
        call(move || (0..20).try_for_each(|n| pushing.push(large(n)).map(|_| ())).unwrap());
    producer.asleep();
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
        producer.asleep();
    }
    assert!(!producer.is_over(), "it has found room");
    storage.no_rule();
    until("the producer has pushed", || {
        let popped = queue.pop().unwrap();
        if let Some(job) = popped {
            job.ack().unwrap();
        }
        producer.is_over()
    });
}

/// The files of settled messages could not be removed for a while. A producer that waited for room
/// slept on when they could be, with a background and without one: neither tried it again.
#[test]
fn a_producer_gets_room_once_files_can_be_removed_again() {
    for has_background in [false, true] {
        gets_room_again(has_background, |storage| storage.rule(refuse_to_let_go));
    }
}

/// The same where full segments could not be mapped for a while, and so were not sealed.
#[test]
fn a_producer_gets_room_once_segments_can_be_mapped_again() {
    for has_background in [false, true] {
        let here = thread::current().id();
        let refuse = move |call: Call<'_>| {
            let maps = call.op == Op::Map && is_segment(call.name);
            let is_refused = maps && thread::current().id() != here;
            if is_refused { Err(ErrorKind::OutOfMemory.into()) } else { Ok(()) }
        };
        gets_room_again(has_background, |storage| storage.rule(refuse));
    }
}

/// The background could not write CHECKPOINT once. The queue had nothing else to do, so the files
/// of its settled messages stayed until it had.
#[test]
fn the_background_tries_a_checkpoint_again() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = small(&storage).background(true).open("queue").unwrap();
    for n in 0..40 {
        queue.push(large(n)).unwrap();
    }
    // Nothing else is left to do.
    queue.maintain().unwrap();
    let refused = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&refused);
    storage.rule(move |call| {
        let writes = [Op::Create, Op::Write, Op::Rename].contains(&call.op);
        if !(writes && call.name.starts_with("CHECKPOINT")) {
            return Ok(());
        }
        count.fetch_add(1, Ordering::SeqCst);
        Err(ErrorKind::Other.into())
    });
    queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
    until("CHECKPOINT is refused", || refused.load(Ordering::SeqCst) > 0);
    storage.no_rule();
    let segments = || files(&disk).iter().filter(|name| is_segment(name)).count();
    // The newest, and one that is ready.
    until("the files of settled messages are gone", || segments() <= 2);
}

/// The files of dropped messages could not be removed. A push dropped one segment after the other,
/// until no message was left, and then failed: no drop had given it any room.
#[test]
fn few_messages_are_dropped_where_that_gives_no_room() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = small(&storage).overflow(Overflow::DropOldest).open("queue").unwrap();
    while queue.stats().dropped() == 0 {
        queue.push(large(0)).unwrap();
    }
    let (before, dropped) = (queue.len(), queue.stats().dropped());
    storage.rule(refuse_to_let_go);
    let pushed: Vec<_> = (0..50).map(|_| queue.push(large(0)).is_ok()).collect();
    assert!(!pushed[49], "there is no room");
    let dropped = queue.stats().dropped() - dropped;
    assert!(dropped <= 12, "{dropped} of {before} were dropped: more than two segments");
    // Then there is no reason to hold back.
    storage.no_rule();
    for _ in 0..200 {
        queue.push(large(0)).unwrap();
    }
}

/// A message waited for its interval; the push after it went on to the next segment and failed, and
/// the first one became durable with its segment. The sync of answers, whose time came first, found
/// nothing to do, and took the time of the message with it. The next message with that interval
/// took its own for watched, and was not synced.
#[test]
fn a_message_with_an_interval_is_synced_after_a_sync_with_nothing_to_do() {
    let faults = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
    faults.stores_can_fail(true);
    let storage = Watched::around(faults.clone());
    let here = thread::current().id();
    let [stores, fail_at, syncs] = [0, u64::MAX, 0].map(|n| Arc::new(AtomicU64::new(n)));
    let [all_stores, failing, all_syncs] = [&stores, &fail_at, &syncs].map(Arc::clone);
    let plans = Arc::clone(&faults);
    let gate = Gate::closed();
    let (_open, held) = (OpenAtEnd(gate.clone()), gate.clone());
    storage.rule(move |call| {
        let chosen = failing.load(Ordering::SeqCst);
        if thread::current().id() != here {
            // No sync of the background is the operation that fails.
            let is_held = chosen < u64::MAX && all_stores.load(Ordering::SeqCst) > 0;
            if is_held && call.op.is_sync() {
                held.pass();
            }
        } else if call.op.is_store() {
            let number = all_stores.fetch_add(1, Ordering::SeqCst) + 1;
            if number == chosen {
                let error = ErrorKind::StorageFull;
                plans.plan(FaultPlan::FailAt { at: 0, error, lasting: false });
            }
        }
        all_syncs.fetch_add(u64::from(call.op == Op::Sync), Ordering::SeqCst);
        Ok(())
    });
    let options = by_hand(storage).background(true).durability(Durability::Os);
    let queue = options.ack_sync(ms(500)).open("queue").unwrap();
    // How many stores a push makes that goes on to the next segment, and how many fill one.
    let stores_of = |number| {
        stores.store(0, Ordering::SeqCst);
        queue.push(large(number)).unwrap();
        stores.load(Ordering::SeqCst)
    };
    let counts: Vec<_> = (0..14).map(stores_of).collect();
    let rotations: Vec<_> = (1..14).filter(|&n| counts[n] > counts[1]).collect();
    let fill = rotations[1] - rotations[0];
    for n in 14..rotations[1] + fill - 1 {
        queue.push(large(u64::try_from(n).unwrap())).unwrap();
    }
    queue.pop().unwrap().unwrap().ack().unwrap();
    queue.sync().unwrap();
    let soon = || Durability::Interval(ms(1000));
    queue.push(Message::new(large(0)).durability(soon())).unwrap();
    stores.store(0, Ordering::SeqCst);
    fail_at.store(counts[rotations[1]], Ordering::SeqCst);
    let failed = queue.push(large(1));
    faults.plan(FaultPlan::None);
    assert!(matches!(failed, Err(Error::StorageFull { .. })), "{failed:?}");
    fail_at.store(u64::MAX, Ordering::SeqCst);
    gate.open();
    // The sync of answers comes meanwhile.
    thread::sleep(ms(700));
    let before = syncs.load(Ordering::SeqCst);
    queue.push(Message::new(large(2)).durability(soon())).unwrap();
    until("the message is synced", || syncs.load(Ordering::SeqCst) > before);
}

/// No file could be mapped while messages were acked that a copy held: they came back, were acked
/// again, and the copies stayed until the next open.
#[test]
fn copies_that_could_not_be_mapped_for_an_answer_are_given_back() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let options = by_hand(storage.clone()).durability(Durability::Os).open_segments(1);
    let queue = options.open("queue").unwrap();
    let mut kept = Vec::new();
    for _ in 0..4 {
        for n in 0..13 {
            queue.push(large(n)).unwrap();
        }
        for (n, job) in queue.pop_batch(13).unwrap().into_iter().enumerate() {
            if n % 2 == 1 { kept.push(job) } else { job.ack().unwrap() }
        }
        queue.compact().unwrap();
    }
    storage.rule(
        |call| {
            if call.op == Op::Map { Err(ErrorKind::OutOfMemory.into()) } else { Ok(()) }
        },
    );
    let failed = kept.into_iter().filter_map(|job| job.ack().err()).count();
    assert!(failed > 0, "some had to be sought in a copy");
    storage.no_rule();
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
    }
    queue.maintain().unwrap();
    assert!(queue.stats().segments() <= 1, "{:?}", queue.stats());
}

/// Most messages were settled, and without a background no full segment was sealed. Only a copy
/// could make room for a producer, and only sealed segments are copied: it slept for ever.
#[test]
fn segments_are_sealed_for_the_copy_that_makes_room() {
    for overflow in [Overflow::Block, Overflow::Reject, Overflow::DropOldest] {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let queue = small(&storage).overflow(overflow).open("queue").unwrap();
        let mut kept = Vec::new();
        while queue.stats().segment_bytes() < 700_000 {
            queue.push(large(0)).unwrap();
        }
        for (n, job) in queue.pop_batch(usize::MAX).unwrap().into_iter().enumerate() {
            if n % 6 == 0 { kept.push(job) } else { job.ack().unwrap() }
        }
        let pushing = queue.clone();
        let producer = call(move || (0..60).try_for_each(|n| pushing.push(large(n)).map(|_| ())));
        producer.result("the pushes").unwrap();
        assert_eq!(queue.stats().dropped(), 0);
    }
}

/// A producer waits for the room that a copy makes. The copy failed in its own look, and nobody
/// tried it again.
#[test]
fn a_copy_that_a_producer_waits_for_is_tried_again() {
    for has_background in [false, true] {
        let storage = Watched::around(Arc::new(MemoryStorage::new()));
        let options = small(&storage).background(has_background).overflow(Overflow::Block);
        let queue = options.open("queue").unwrap();
        while queue.try_push(large(0)).is_ok() {}
        let refused = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&refused);
        storage.rule(move |call| {
            if !(call.op == Op::Create && is_temporary(call.name)) {
                return Ok(());
            }
            count.fetch_add(1, Ordering::SeqCst);
            Err(ErrorKind::Other.into())
        });
        let mut kept = Vec::new();
        for (n, job) in queue.pop_batch(usize::MAX).unwrap().into_iter().enumerate() {
            if n % 6 == 0 { kept.push(job) } else { job.ack().unwrap() }
        }
        let pushing = queue.clone();
        let producer = call(move || (0..20).try_for_each(|n| pushing.push(large(n)).map(|_| ())));
        until("a copy is refused", || refused.load(Ordering::SeqCst) > 0);
        producer.asleep();
        assert!(!producer.is_over(), "it has found room");
        storage.no_rule();
        producer.result("the pushes").unwrap();
    }
}

/// All that a copy was made of was settled while it was made, a step at a time; the copy was
/// finished, or failed. Its files, which could not go meanwhile, stayed until something else was
/// settled.
#[test]
fn what_is_settled_while_it_is_copied_goes_by_itself() {
    for copy_fails in [false, true] {
        let disk = Arc::new(MemoryStorage::new());
        let storage = Watched::around(disk.clone());
        let options = by_hand(storage.clone()).background(true).durability(Durability::Os);
        // An eighth of a second between two steps.
        let compaction = Compaction::default().idle(ms(1)).max_rate(8 << 20);
        let queue = options.segment_bytes(4 << 20).compaction(compaction).open("queue").unwrap();
        for n in 0..1600 {
            queue.push(large(n)).unwrap();
        }
        // No other file is made from here on.
        queue.maintain().unwrap();
        let [syncs, is_settled] = [0, 0].map(|n| Arc::new(AtomicU64::new(n)));
        let [count, settled] = [&syncs, &is_settled].map(Arc::clone);
        storage.rule(move |call| {
            let is_copy = is_temporary(call.name) && !call.name.starts_with("CHECKPOINT");
            let ends_step = is_copy && call.op == Op::Sync;
            count.fetch_add(u64::from(ends_step), Ordering::SeqCst);
            if copy_fails && ends_step && settled.load(Ordering::SeqCst) > 0 {
                return Err(ErrorKind::Other.into());
            }
            Ok(())
        });
        let mut kept = Vec::new();
        for (n, job) in queue.pop_batch(usize::MAX).unwrap().into_iter().enumerate() {
            if n % 5 == 1 { kept.push(job) } else { job.ack().unwrap() }
        }
        until("a part is copied", || syncs.load(Ordering::SeqCst) > 0);
        queue.ack_batch(kept).unwrap();
        is_settled.store(1, Ordering::SeqCst);
        let segments = || files(&disk).iter().filter(|name| is_segment(name)).count();
        // The newest, and one that is ready.
        until("the files of settled messages are gone", || segments() <= 2);
    }
}

/// One sparse segment could not be read, and so not be copied. The sparse ones behind it were not
/// sealed for that reason: a producer slept for ever beside them.
#[test]
fn a_segment_that_cannot_be_copied_stops_no_other_from_being_sealed() {
    for overflow in [Overflow::Block, Overflow::Reject, Overflow::DropOldest] {
        let disk = Arc::new(MemoryStorage::new());
        let storage = Watched::around(disk.clone());
        let queue = small(&storage).overflow(overflow).open("queue").unwrap();
        while queue.stats().segments() < 3 {
            queue.push(large(0)).unwrap();
        }
        // These are sealed.
        queue.sync().unwrap();
        let sealed = files(&disk);
        while queue.stats().segment_bytes() < 700_000 {
            queue.push(large(0)).unwrap();
        }
        let mut kept = Vec::new();
        for (n, job) in queue.pop_batch(usize::MAX).unwrap().into_iter().enumerate() {
            if n % 6 == 0 { kept.push(job) } else { job.ack().unwrap() }
        }
        storage.rule(move |call| {
            let is_refused = call.op == Op::Read && sealed.iter().any(|name| name == call.name);
            if is_refused { Err(ErrorKind::Other.into()) } else { Ok(()) }
        });
        let pushing = queue.clone();
        let producer = call(move || (0..30).try_for_each(|n| pushing.push(large(n)).map(|_| ())));
        producer.result("the pushes").unwrap();
        assert_eq!(queue.stats().dropped(), 0);
    }
}

/// Full segments could not be mapped when they were synced, and so not be sealed. Without a
/// background nothing tried that again but the next push: `maintain` gave nothing back, and said
/// `Ok`.
#[test]
fn maintain_seals_what_could_not_be_sealed() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = small(&storage).open("queue").unwrap();
    for n in 0..40 {
        queue.push(large(n)).unwrap();
    }
    queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
    storage.rule(|call| {
        let is_refused = call.op == Op::Map && is_segment(call.name);
        if is_refused { Err(ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    });
    queue.sync().unwrap();
    queue.maintain().ok();
    assert!(queue.stats().segments() > 3, "nothing could go");
    storage.no_rule();
    queue.maintain().unwrap();
    assert_eq!(queue.stats().segments(), 1);
}
