//! Maps that nobody needs go out of memory in steps, and recycled segments are cleared in steps.

use crate::found_hooks::{Gate, OpenAtEnd, files, is_segment, is_temporary, until};
use crate::found_support::call;
use crate::support::watched::{Op, Watched};
use keepq::fault::MemoryStorage;
use keepq::{Durability, Options, Queue};
use std::sync::{Arc, Mutex};

const MIB: u64 = 1 << 20;

/// No step gives more back than this by one call.
const PIECE: u64 = 256 << 10;

/// Segments of 1 MiB.
fn options(storage: &Arc<Watched>) -> Options {
    let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
    options.segment_bytes(MIB).shrink_after(None)
}

fn push_some(queue: &Queue, number: u64) {
    (0..number).for_each(|_| assert!(queue.push(vec![7; 16 << 10]).is_ok()));
}

fn settle_all(queue: &Queue) {
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
    }
}

fn segments(disk: &MemoryStorage) -> Vec<String> {
    let mut segments: Vec<_> = files(disk).into_iter().filter(|name| is_segment(name)).collect();
    segments.sort();
    segments
}

/// The parts that were given back, each with the name of its segment, its offset and its length.
type Parts = Arc<Mutex<Vec<(String, u64, u64)>>>;

fn given_back(storage: &Watched) -> Parts {
    let parts = Parts::default();
    let seen = parts.clone();
    storage.rule(move |call| {
        if call.op == Op::GiveBack {
            seen.lock().unwrap().push((call.name.to_string(), call.offset, call.len));
        }
        Ok(())
    });
    parts
}

/// Each byte of it once, from start to end.
#[test]
fn a_segment_that_is_left_goes_out_of_memory_in_steps_before_it_is_let_go() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let parts = given_back(&storage);
    let queue = options(&storage).open("queue").unwrap();
    push_some(&queue, 70);
    let first = segments(&disk)[0].clone();
    settle_all(&queue);
    until("the first segment goes", || !segments(&disk).contains(&first));
    let parts = parts.lock().unwrap();
    let mut end = 0;
    for (_, offset, len) in parts.iter().filter(|(name, ..)| *name == first) {
        assert!(*offset == end && *len <= PIECE, "{len} bytes at {offset}, after {end}");
        end += len;
    }
    assert_eq!(end, MIB);
}

/// A caller that wants the disk back takes a map as it is.
#[test]
fn who_wants_room_does_not_wait_for_steps() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = options(&storage).open("queue").unwrap();
    push_some(&queue, 1);
    let first = segments(&disk)[0].clone();
    let gate = Gate::closed();
    let (here, gated) = (gate.clone(), first.clone());
    storage.rule(move |call| {
        if call.op == Op::GiveBack && call.name == gated {
            here.pass();
        }
        Ok(())
    });
    let _open = OpenAtEnd(gate.clone());
    push_some(&queue, 70);
    settle_all(&queue);
    until("a step begins", || gate.has_waiting());
    let maintaining = queue.clone();
    call(move || maintaining.maintain()).result("maintain").unwrap();
    assert!(!segments(&disk).contains(&first), "the step has not ended yet");
}

/// What was stored since the last round, up to where pushes go on.
#[test]
fn a_round_of_syncs_gives_back_what_it_covers() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let parts = given_back(&storage);
    // No background, which would do it at its own time.
    let queue = options(&storage).background(false).open("queue").unwrap();
    let mut expected = Vec::new();
    // 64 KiB are less than a whole part where the next push goes on in it.
    for (kib, part) in [(300, Some((0, 256 << 10))), (1, None), (130, Some((256 << 10, 128 << 10)))]
    {
        queue.push(vec![7; kib << 10]).unwrap();
        queue.sync().unwrap();
        expected.extend(part);
        let parts = parts.lock().unwrap();
        let parts: Vec<_> = parts.iter().map(|&(_, offset, len)| (offset, len)).collect();
        assert_eq!(parts, expected, "after {kib} KiB more");
    }
}

/// A recycled segment that is needed before all old slots are cleared has none of them.
#[test]
fn a_recycled_segment_that_is_needed_at_once_has_no_old_slots() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = options(&storage).open("queue").unwrap();
    let small = |queue: &Queue| queue.push_batch((0..1000).map(|_| "small")).unwrap();
    while segments(&disk).len() < 2 {
        small(&queue);
    }
    let gate = Gate::closed();
    let (here, stores) = (gate.clone(), Arc::new(Mutex::new(0)));
    let counted = stores.clone();
    storage.rule(move |call| {
        if is_temporary(call.name) && call.op == Op::Store && call.offset > 0 {
            let mut stores = counted.lock().unwrap();
            *stores += 1;
            // In the second step.
            if *stores == 50 {
                drop(stores);
                here.pass();
            }
        }
        Ok(())
    });
    let _open = OpenAtEnd(gate.clone());
    settle_all(&queue);
    until("a segment is cleared", || gate.has_waiting());
    let pushing = queue.clone();
    // The third one finds no room in the active segment.
    let pushed = call(move || (0..3).try_for_each(|_| pushing.push(vec![7; 400 << 10]).map(drop)));
    pushed.asleep();
    let cleared = *stores.lock().unwrap();
    gate.open();
    pushed.result("push").unwrap();
    assert!(*stores.lock().unwrap() > cleared + 50, "the push cleared the rest");
    (0..8).for_each(|_| drop(small(&queue)));
    queue.close().unwrap();
    let queue = options(&storage).open("queue").unwrap();
    let jobs = queue.pop_batch(10_000).unwrap();
    assert!(jobs.iter().all(|job| job.attempts() == 1));
    assert_eq!((jobs.len(), queue.stats().lost()), (8003, 0));
}
