//! Faults of compaction that were found: each test is a story that once went wrong.

use crate::found_hooks::{large, until};
use crate::support::watched::{Op, Watched};
use crate::support::{DEADLINE, sparse};
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{Compaction, Delivery, Durability, Error, Options, Queue};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

fn on(storage: Arc<dyn Storage>) -> Options {
    sparse::on(storage).durability(Durability::Os)
}

/// Pushes `count` messages of 1,000 bytes, pops them, and acks all but the first; gives that.
fn leave_one(queue: &Queue, count: u8) -> Delivery {
    for n in 0..count {
        queue.push(vec![n; 1000]).unwrap();
    }
    let mut jobs = queue.pop_batch(usize::MAX).unwrap();
    let first = jobs.remove(0);
    queue.ack_batch(jobs).unwrap();
    first
}

/// Push times in one segment are at most 49 days apart. A plan that did not know it was made again
/// and again.
#[test]
fn messages_that_are_months_apart_do_not_share_a_segment() {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let storage = Arc::new(MemoryStorage::new());
    let queue = on(storage.clone()).clock(clock.clone()).open("memory").unwrap();
    let mut left = Vec::new();
    for _ in 0..4 {
        left.push(leave_one(&queue, 70));
        clock.advance(Duration::from_secs(60 * 86_400));
    }
    queue.push("the newest").unwrap();
    queue.compact().unwrap();
    queue.maintain().unwrap();
    assert!(queue.stats().segment_bytes() < 4 * 65_536, "{:?}", queue.stats());
    let pushed: Vec<_> = left.iter().map(Delivery::pushed_at).collect();
    drop(left);
    queue.close().unwrap();
    // The first push of a run looks at small segments, too.
    let queue = on(storage).clock(clock).open("memory").unwrap();
    queue.push("another run").unwrap();
    queue.compact().unwrap();
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    assert_eq!(jobs.len(), 6);
    assert!(jobs.iter().zip(pushed).all(|(job, pushed)| job.pushed_at() == pushed));
}

/// With CHECKPOINT gone, nobody knows what became of a number between those of a copy.
#[test]
fn what_was_lost_before_a_copy_was_made_is_not_told_as_settled() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Queue::options().segment_bytes(65_536).background(false);
    {
        let queue = options().durability(Durability::Os).open(dir.path()).unwrap();
        for n in 0..100u8 {
            queue.push(vec![n; 1000]).unwrap();
        }
        let jobs = queue.pop_batch(90).unwrap();
        let (left, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job[0] % 10 == 0);
        queue.ack_batch(settled).unwrap();
        drop(left);
        queue.close().unwrap();
    }
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(1000).position(|window| window == [20; 1000]) {
            bytes[at] ^= 1;
        }
        fs::write(&path, bytes).unwrap();
    }
    let queue = options().open(dir.path()).unwrap();
    assert_eq!(queue.compact().unwrap().copies(), 1);
    assert_eq!(queue.stats().lost(), 1);
    queue.close().unwrap();
    fs::remove_file(dir.path().join("CHECKPOINT")).unwrap();
    let queue = options().open(dir.path()).unwrap();
    assert!(matches!(queue.is_acked(21.into()), Err(Error::UnknownSeq { .. })));
    assert!(!queue.is_acked(31.into()).unwrap());
}

/// A handle of the dead letters that was closed is not an error of the queue.
#[test]
fn closed_dead_letters_need_no_compaction() {
    let queue = on(Arc::new(MemoryStorage::new())).open("memory").unwrap();
    queue.push("bad").unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let forgotten = leave_one(&queue, 100);
    queue.push("the newest").unwrap();
    queue.dead_letters().unwrap().close().unwrap();
    assert!(queue.compact().unwrap().copies() > 0);
    forgotten.ack().unwrap();
}

/// A consumer that had begun to copy a payload out found the file in use for something else, and
/// took the message for damaged.
#[test]
fn a_payload_that_is_being_copied_stays_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let compaction = Compaction::default().idle(Duration::ZERO).max_rate(1 << 40);
    let options = Queue::options().segment_bytes(1 << 20).durability(Durability::Os);
    let queue = options.compaction(compaction).open(dir.path()).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for n in 0..300u32 {
                    queue.push(vec![n as u8; 60_000]).unwrap();
                    if let Some(job) = queue.pop().unwrap() {
                        assert!(job.iter().all(|byte| *byte == job[0]));
                        if n % 7 == 0 { drop(job) } else { job.ack().unwrap() }
                    }
                }
            });
        }
        scope.spawn(|| (0..60).for_each(|_| assert!(queue.compact().is_ok())));
    });
    assert_eq!((queue.stats().lost(), queue.damage().len()), (0, 0));
}

/// Messages that were settled slowly were never looked at again once nothing more was settled.
#[test]
fn what_is_settled_slowly_is_given_back_too() {
    let dir = tempfile::tempdir().unwrap();
    let compaction = Compaction::default().idle(Duration::from_millis(20));
    let options = Queue::options().segment_bytes(65_536).durability(Durability::Os);
    let queue = options.compaction(compaction).open(dir.path()).unwrap();
    for n in 0..1000u32 {
        queue.push(n.to_le_bytes().repeat(200)).unwrap();
    }
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (settled, left): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| u64::from(job.seq()) % 100 < 57);
    for (n, job) in settled.into_iter().enumerate() {
        job.ack().unwrap();
        if n % 20 == 0 {
            // So that the background looks in between, and finds it not worth while yet.
            thread::sleep(Duration::from_millis(30));
        }
    }
    let end = Instant::now() + DEADLINE;
    loop {
        let stats = queue.stats();
        if stats.disk_bytes() <= 2 * stats.live_bytes() + 3 * 65_536 {
            break;
        }
        assert!(Instant::now() < end, "{stats:?}");
        thread::sleep(Duration::from_millis(5));
    }
    drop(left);
}

/// A batch that needed a file larger than a segment held it until little was left.
#[test]
fn a_large_file_is_copied_into_one_that_is_smaller() {
    let queue = on(Arc::new(MemoryStorage::new())).open("memory").unwrap();
    queue.push_batch((0..100u8).map(|n| vec![n; 10_000])).unwrap();
    queue.push("in the newest segment".repeat(500)).unwrap();
    let jobs = queue.pop_batch(100).unwrap();
    let (left, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job[0] % 4 == 0);
    queue.ack_batch(settled).unwrap();
    assert_eq!(queue.compact().unwrap().messages(), 25);
    assert!(queue.stats().segment_bytes() < 450_000, "{:?}", queue.stats());
    queue.ack_batch(left).unwrap();
}

/// Dead letters took the room that copies need, and one message in each segment held a full queue
/// for ever.
#[test]
fn a_full_queue_with_dead_letters_is_emptied_by_compaction() {
    let options = on(Arc::new(MemoryStorage::new())).segment_bytes(64 << 20).max_bytes(1 << 20);
    let queue = options.open("memory").unwrap();
    for _ in 0..60 {
        queue.push(vec![1; 4000]).unwrap();
    }
    for job in queue.pop_batch(60).unwrap() {
        job.reject("no").unwrap();
    }
    while queue.push(vec![2; 4000]).is_ok() {}
    assert!(queue.stats().disk_bytes() <= 1 << 20, "{:?}", queue.stats());
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (left, settled): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| u64::from(job.seq()).is_multiple_of(40));
    assert!(settled.len() > 30, "{}", settled.len());
    queue.ack_batch(settled).unwrap();
    for _ in 0..30 {
        queue.push(vec![3; 4000]).unwrap();
        assert!(queue.stats().disk_bytes() <= 1 << 20, "{:?}", queue.stats());
    }
    assert_eq!(queue.in_flight(), left.len() as u64);
    assert_eq!(queue.dead_letters().unwrap().len(), 60);
}

/// One call that takes messages out of many segments had all of them mapped at a time.
#[cfg(target_os = "linux")]
#[test]
fn one_batch_out_of_many_segments_maps_few_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let options = || {
        let options = Queue::options().segment_bytes(65_536).durability(Durability::Os);
        options.open_segments(3).background(false)
    };
    let queue = options().open(dir.path()).unwrap();
    let open = || crate::support::process::descriptors(dir.path());
    for n in 0..60 {
        queue.push(vec![n; 40_000]).unwrap();
        assert!(open() <= 3 + 6, "{}", open());
    }
    queue.close().unwrap();
    let queue = options().open(dir.path()).unwrap();
    assert_eq!(queue.pop_batch(usize::MAX).unwrap().len(), 60);
    assert!(open() <= 3 + 4, "{}", open());
}

/// A look at all segments waited for a consumer for more than a second. What it found to be worth a
/// copy was then too old to be made: `compact` made nothing, and said `Ok`.
#[test]
fn a_look_that_takes_long_is_a_look() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let queue = on(storage.clone()).background(false).open("queue").unwrap();
    for n in 0..72 {
        queue.push(large(n)).unwrap();
    }
    queue.sync().unwrap();
    for (n, job) in queue.pop_batch(usize::MAX).unwrap().into_iter().enumerate() {
        if n % 6 == 0 { job.release().unwrap() } else { job.ack().unwrap() }
    }
    // Each time that the list of segments is synced, which is the last call before the look, a
    // consumer takes the lock that the look needs, and its disk is slow.
    let (is_wanted, is_slow) = (AtomicBool::new(false), AtomicBool::new(false));
    storage.rule(move |call| {
        if thread::current().name() != Some("consumer") {
            if call.op == Op::Sync && call.name.starts_with("CHECKPOINT") {
                is_wanted.store(true, Ordering::SeqCst);
                until("the consumer has the lock", || is_slow.swap(false, Ordering::SeqCst));
            }
        } else if call.op == Op::Load && is_wanted.swap(false, Ordering::SeqCst) {
            is_slow.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1200));
        }
        Ok(())
    });
    let is_over = Arc::new(AtomicBool::new(false));
    let (taking, end) = (queue.clone(), Arc::clone(&is_over));
    let consumer = thread::Builder::new().name("consumer".into()).spawn(move || {
        while !end.load(Ordering::SeqCst) {
            taking.pop().unwrap().into_iter().for_each(|job| job.release().unwrap());
        }
    });
    let compacted = queue.compact();
    storage.no_rule();
    is_over.store(true, Ordering::SeqCst);
    consumer.unwrap().join().unwrap();
    assert!(compacted.unwrap().copies() > 0);
}
