//! Found faults: what failed for a moment was never tried again, or cost messages. Each test is a
//! story that once went wrong.

use crate::found_hooks::{
    Call, Op, Watched, by_hand, files, is_segment, is_temporary, large, until,
};
use crate::found_support::call;
use keepq::fault::MemoryStorage;
use keepq::{Durability, Options, Overflow, Queue};
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
    let producer = call(move || (0..20).for_each(|n| assert!(pushing.push(large(n)).is_ok())));
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
