//! What the random crash tests found: each is a story that once went wrong, written out, so that it
//! is told however those tests change.

use crate::found_hooks::is_segment;
use crate::support::agree::agree;
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage, Storage};
use keepq::{Options, Queue, Result};
use std::sync::Arc;

fn on(storage: Arc<dyn Storage>) -> Options {
    Queue::options().segment_bytes(65_536).background(false).storage(storage)
}

/// Opens a queue and works with it, up to operation `crash_at`; tells how many there were.
fn run(disk: &Arc<MemoryStorage>, crash_at: u64, work: impl Fn(Queue) -> Result<()>) -> u64 {
    let faults = Arc::new(FaultStorage::new(disk.clone()));
    faults.plan(FaultPlan::CrashAt { at: crash_at });
    on(faults.clone()).open("memory").and_then(work).ok();
    faults.operations()
}

/// What `work` leaves on this disk, ended by a kill or a power cut at each of its operations, or
/// not.
fn ends(disk: &MemoryStorage, work: impl Fn(Queue) -> Result<()>) -> Vec<MemoryStorage> {
    let operations = run(&Arc::new(disk.killed()), u64::MAX, &work);
    let ends = (0..=operations).flat_map(|at| {
        let disk = Arc::new(disk.killed());
        run(&disk, at, &work);
        [disk.killed(), disk.power_cut(CrashImage::Oldest), disk.power_cut(CrashImage::Mixed(at))]
    });
    ends.collect()
}

/// The number that the next message would get.
fn next_seq(disk: &MemoryStorage) -> u64 {
    agree(disk, "what a story left");
    on(Arc::new(disk.killed())).open("memory").unwrap().push("next").unwrap().into()
}

/// A run that was closed by halves: the newest segment says where its numbers end, one that was
/// made ahead is gone, and CHECKPOINT lists it still. So the next open skips numbers, and notes
/// that they are unaccounted for; when it is closed, CHECKPOINT lists that segment no more. The
/// open after it has no reason to skip any. Calls `check` with what is there then, and the number
/// after the last.
fn skips_and_does_not(check: impl Fn(MemoryStorage, u64)) {
    let mut does = false;
    let first = |queue: Queue| {
        queue.push("1")?;
        // So much that a segment is made ahead.
        queue.push(vec![2; 40_000])?;
        queue.maintain()?;
        queue.push("3")?;
        queue.maintain()?;
        queue.close()
    };
    let second = |queue: Queue| {
        queue.maintain()?;
        queue.close()
    };
    for disk in ends(&MemoryStorage::new(), first) {
        let skips = next_seq(&disk) > 4;
        for disk in ends(&disk, second) {
            let next = next_seq(&disk);
            does |= skips && next == 4;
            check(disk, next);
        }
    }
    assert!(does, "the story is told");
}

/// Settles everything, lets its segments go, and asks for each number from `next` on.
fn settles(queue: &Queue, next: u64) {
    queue.ack_batch(queue.pop_batch(99).unwrap()).unwrap();
    for _ in 0..2 {
        queue.push(vec![0; 60_000]).unwrap();
    }
    queue.maintain().unwrap();
    for seq in next..next + 3 {
        let told = queue.is_acked(seq.into());
        assert!(matches!(told, Ok(true)), "message {seq}: {told:?}");
    }
}

/// Numbers that were given out after all were unknown once they were settled and let go.
#[test]
fn numbers_that_were_to_be_skipped_and_were_not_are_known() {
    skips_and_does_not(|disk, next| {
        let queue = on(Arc::new(disk)).open("memory").unwrap();
        queue.push_batch(["a", "b", "c"]).unwrap();
        settles(&queue, next);
    });
}

/// The same, where the run that gave them out was killed before it could note that.
#[test]
fn numbers_that_a_segment_holds_were_not_skipped() {
    skips_and_does_not(|disk, next| {
        let disk = Arc::new(disk);
        let queue = on(disk.clone()).open("memory").unwrap();
        queue.push_batch(["a", "b", "c"]).unwrap();
        settles(&on(Arc::new(disk.killed())).open("memory").unwrap(), next);
    });
}

/// What a run does to a queue whose first segment was cut: five messages are settled, one is
/// pushed. Tells whether it came to its end.
fn settle_five(queue: &Queue) -> Result<()> {
    for _ in 0..5 {
        queue.pop()?.unwrap().ack()?;
    }
    queue.push("more").map(drop)
}

/// A segment file is shorter than its header says. The first store to it makes a whole copy, which
/// takes its name; the process ends, or the power is cut, at each operation of that run. What was
/// in front of the cut is there afterwards.
#[test]
fn a_crash_while_a_short_segment_is_copied_loses_nothing() {
    let payload = |number: u64| format!("{number:0>1000}").into_bytes();
    let prepared = Arc::new(MemoryStorage::new());
    let queue = on(prepared.clone()).open("memory").unwrap();
    for number in 0..20 {
        queue.push(payload(number)).unwrap();
    }
    queue.close().unwrap();
    let mut names = prepared.list().unwrap().into_iter().map(|entry| entry.name);
    let name = names.find(|name| is_segment(name)).unwrap();
    let mut bytes = prepared.read(&name).unwrap();
    bytes.truncate(30_000);
    prepared.write(&name, bytes);
    let ends = ends(&prepared, |queue| settle_five(&queue));
    assert!(ends.len() > 3 * 10, "{}", ends.len());
    for (at, end) in ends.into_iter().enumerate() {
        let queue = on(Arc::new(end)).open("memory").unwrap();
        let jobs = queue.pop_batch(99).unwrap();
        for number in 5..20 {
            let is_there = jobs.iter().any(|job| job[..] == payload(number));
            assert!(is_there, "{number} at end {at}: {:?}", queue.recovery());
        }
    }
}
