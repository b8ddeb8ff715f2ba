//! The disk that a queue takes follows what is owed, whatever the order of acks.
//!
//! `KEEPQ_SPACE_RUNS` sets how many short runs there are (default 120), `KEEPQ_SPACE_ROTATIONS` how
//! many segments are filled and left behind (default 1500). Bounds at full size are in `cargo bench
//! --bench space`.

use crate::found_hooks::until;
use crate::support::{DEADLINE, OverAtEnd, cases, process};
use keepq::{Compaction, Delivery, Durability, Error, Message, Options, Queue};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const SEGMENT: u64 = 65_536;
/// What CHECKPOINT takes.
const FIXED: u64 = 8192;
/// What a copy takes besides records and slots: two header pages, and up to one page to round up.
const COPY: u64 = 3 * 4096;

fn options() -> Options {
    let soon = Compaction::default().idle(Duration::from_millis(20));
    Queue::options().segment_bytes(SEGMENT).durability(Durability::Os).compaction(soon)
}

/// Bytes of all files below a directory, and how many there are.
fn disk(path: &Path) -> (u64, usize) {
    let (mut bytes, mut files) = (0, 0);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        // It may be gone by now.
        let Ok(metadata) = entry.metadata() else { continue };
        let inner = if metadata.is_dir() { disk(&entry.path()) } else { (metadata.len(), 1) };
        (bytes, files) = (bytes + inner.0, files + inner.1);
    }
    (bytes, files)
}

/// Waits until the disk in use is at most `most(queue)`.
fn shrinks_to(queue: &Queue, path: &Path, most: impl Fn(&Queue) -> u64) {
    let end = Instant::now() + DEADLINE;
    while disk(path).0 > most(queue) {
        let (bytes, most) = (disk(path).0, most(queue));
        assert!(Instant::now() < end, "{bytes} of {most}: {:?}", queue.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn twice_live(queue: &Queue) -> u64 {
    2 * queue.stats().live_bytes() + COPY + FIXED
}

fn push_many(queue: &Queue, count: u64) {
    for first in (0..count).step_by(100) {
        queue.push_batch((first..count.min(first + 100)).map(payload)).unwrap();
    }
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(100, number as u8);
    payload
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

#[test]
fn all_acked_leaves_two_segments_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    push_many(&queue, 20_000);
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    // In no order at all.
    let (odd, even): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| number(job) % 7 > 2);
    queue.ack_batch(odd).unwrap();
    queue.ack_batch(even).unwrap();
    shrinks_to(&queue, dir.path(), |_| 2 * SEGMENT + FIXED);
}

#[test]
fn one_in_a_thousand_left_takes_twice_the_live_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    push_many(&queue, 150_000);
    let (left, settled): (Vec<_>, Vec<_>) = queue
        .pop_batch(usize::MAX)
        .unwrap()
        .into_iter()
        .partition(|job| number(job).is_multiple_of(1000));
    queue.ack_batch(settled).unwrap();
    shrinks_to(&queue, dir.path(), |queue| twice_live(queue) + 2 * SEGMENT);
    let stats = queue.stats();
    assert!(stats.compacted_bytes() <= stats.taken_bytes() / 4, "{stats:?}");
    // Those that are left are in flight, can be answered, and come back after a restart.
    let (some, others): (Vec<Delivery>, Vec<Delivery>) =
        left.into_iter().partition(|job| number(job).is_multiple_of(2000));
    queue.ack_batch(some).unwrap();
    drop(others);
    assert_eq!(queue.len(), 75);
    queue.close().unwrap();
    let queue = options().open(dir.path()).unwrap();
    let back: Vec<u64> = queue.iter().map(|message| number(&message.unwrap())).collect();
    assert_eq!(back, (0..75).map(|n| n * 2000 + 1000).collect::<Vec<_>>());
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    assert!(jobs.iter().all(|job| job.attempts() == 2 && job[..] == payload(number(job))));
}

/// Large ones settled beside small ones that are owed: the mean size says nothing.
#[test]
fn sizes_may_differ() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    for n in 0..40u64 {
        queue.push_batch((n * 50..n * 50 + 50).map(|n| n.to_le_bytes().to_vec())).unwrap();
        queue.push(vec![7; 50_000]).unwrap();
    }
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (large, small): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.len() > 8);
    queue.ack_batch(large).unwrap();
    shrinks_to(&queue, dir.path(), |queue| twice_live(queue) + 2 * SEGMENT);
    drop(small);
    queue.close().unwrap();
    let queue = options().open(dir.path()).unwrap();
    assert_eq!(queue.len(), 2000);
}

#[test]
fn a_message_that_is_never_acked_pins_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    queue.push(payload(0)).unwrap();
    let forgotten = queue.pop().unwrap().unwrap();
    let mut most = 0;
    for n in 1..60_000 {
        queue.push(payload(n)).unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
        if n % 50 == 0 {
            most = most.max(disk(dir.path()).0);
        }
    }
    // The active segment and the ready one, one that is on its way out, and, until a background
    // that may have little time has copied the message out of it, the first one.
    assert!(most <= 4 * SEGMENT + COPY + FIXED, "{most}: {:?}", queue.stats());
    shrinks_to(&queue, dir.path(), |_| 2 * SEGMENT + COPY + FIXED);
    assert_eq!(queue.stuck(1).unwrap()[0].seq(), forgotten.seq());
    forgotten.ack().unwrap();
}

#[test]
fn what_waits_takes_little_more_than_its_payload() {
    let dir = tempfile::tempdir().unwrap();
    // In smaller files the header pages are more than a hundredth.
    let queue = options().segment_bytes(1 << 20).open(dir.path()).unwrap();
    push_many(&queue, 60_000);
    shrinks_to(&queue, dir.path(), |_| 60_000 * 145 + 2 * (1 << 20) + FIXED);
    assert_eq!(queue.stats().compacted_bytes(), 0, "there is nothing to gain");
}

/// Set for the child of the crash loop.
const CHILD: &str = "KEEPQ_SPACE_CHILD";

#[test]
fn child_that_pushes_one_and_is_gone() {
    if let Some(path) = std::env::var_os(CHILD) {
        let queue = Queue::open(path).unwrap();
        queue.push("one more").unwrap();
        std::process::abort();
    }
}

#[test]
fn short_runs_leave_little_behind() {
    let runs = cases("KEEPQ_SPACE_RUNS", 120);
    for crashes in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        let (mut most_bytes, mut most_files) = (0, 0);
        for _ in 0..runs {
            if crashes {
                let mut child = process::again("space::child_that_pushes_one_and_is_gone");
                assert!(!child.env(CHILD, &path).output().unwrap().status.success());
            } else {
                let queue = Queue::open(&path).unwrap();
                queue.push("one more").unwrap();
            }
            let (bytes, files) = disk(&path);
            (most_bytes, most_files) = (most_bytes.max(bytes), most_files.max(files));
        }
        assert!(most_bytes <= 4 << 20, "{most_bytes} bytes, crashes {crashes}");
        assert!(most_files <= 12, "{most_files} files, crashes {crashes}");
        let queue = Queue::open(&path).unwrap();
        assert_eq!(queue.pop_batch(usize::MAX).unwrap().len() as u64, runs);
        assert!(queue.recovery().is_clean() && queue.damage().is_empty());
    }
}

#[cfg(target_os = "linux")]
#[test]
fn rotations_leave_no_file_no_map_and_no_descriptor_behind() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    let rotations = cases("KEEPQ_SPACE_ROTATIONS", 1500);
    let mut forgotten = None;
    for n in 0..rotations {
        queue.push(vec![1; 50_000]).unwrap();
        let job = queue.pop().unwrap().unwrap();
        // One is left behind, and let go later.
        if n % 100 == 0 {
            forgotten.replace(job).map_or(Ok(()), Delivery::ack).unwrap();
        } else {
            job.ack().unwrap();
        }
    }
    forgotten.map_or(Ok(()), Delivery::ack).unwrap();
    let end = Instant::now() + DEADLINE;
    loop {
        queue.maintain().unwrap();
        let (maps, files) = (process::maps(dir.path()), process::descriptors(dir.path()));
        let (bytes, names) = disk(dir.path());
        let live = 2 * queue.stats().live_bytes();
        if maps <= 4 && files <= 5 && names <= 6 && bytes <= live + 4 * SEGMENT + FIXED {
            break;
        }
        assert!(Instant::now() < end, "{maps} maps, {files} descriptors, {names} files, {bytes}");
    }
}

/// However many segments something is done in at a time.
#[cfg(target_os = "linux")]
#[test]
fn few_files_are_open_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let most_maps = || process::maps(dir.path());
    let queue = options().open_segments(3).open(dir.path()).unwrap();
    for n in 0..60 {
        queue.push(vec![n; 40_000]).unwrap();
    }
    queue.close().unwrap();
    // Without a background that would unmap what is idle.
    let queue = options().open_segments(3).background(false).open(dir.path()).unwrap();
    let mut jobs = Vec::new();
    for _ in 0..60 {
        jobs.extend(queue.pop().unwrap());
        assert!(most_maps() <= 3 + 2, "{}", most_maps());
    }
    for job in jobs.into_iter().rev() {
        job.nack().unwrap();
        assert!(most_maps() <= 3 + 2, "{}", most_maps());
    }
    assert_eq!(queue.iter().count(), 60);
    assert!(most_maps() <= 3 + 2, "{}", most_maps());
    queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
    assert!(most_maps() <= 3 + 2, "{}", most_maps());
    assert!(queue.is_acked(1.into()).unwrap());
}

#[test]
fn a_full_queue_can_be_drained_and_pushed_to_again() {
    const MAX: u64 = 2 << 20;
    let dir = tempfile::tempdir().unwrap();
    let queue = options().max_bytes(MAX).open(dir.path()).unwrap();
    let (mut next, mut kept) = (0, Vec::new());
    for round in 0..5 {
        let mut count = 0;
        loop {
            match queue.push(vec![round; 3000]) {
                Ok(_) => count += 1,
                Err(Error::Full { limit, .. }) => break assert_eq!(limit, "max_bytes"),
                Err(error) => panic!("{error}"),
            }
            assert!(disk(dir.path()).0 <= MAX);
        }
        assert!(count > 200, "round {round}: {count}");
        next += count;
        // One in thirty is kept for ever.
        let jobs = queue.pop_batch(usize::MAX).unwrap();
        let (left, settled): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| u64::from(job.seq()).is_multiple_of(30));
        kept.extend(left);
        queue.ack_batch(settled).unwrap();
        assert!(disk(dir.path()).0 <= MAX);
    }
    assert!(next > 1500, "{next}");
    assert_eq!(queue.in_flight(), kept.len() as u64);
    queue.ack_batch(kept).unwrap();
    queue.compact().unwrap();
    assert!(queue.is_empty() && disk(dir.path()).0 <= 2 * SEGMENT + FIXED);
}

/// A purge settles a few hundred messages at a time; nobody who pushes waits for all of it.
#[test]
fn pushes_go_on_while_many_messages_are_purged() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().segment_bytes(4 << 20).open(dir.path()).unwrap();
    // Where other programs keep the thread that pushes from running, another purge may do.
    let went_on = (0..50).any(|_| pushes_during_a_purge(&queue) > 1000);
    assert!(went_on, "not one purge let pushes through");
    shrinks_to(&queue, dir.path(), |queue| twice_live(queue) + 2 * (4 << 20));
}

/// How many messages are pushed while 300,000 are purged.
fn pushes_during_a_purge(queue: &Queue) -> u64 {
    push_many(queue, 300_000);
    let pushed = || queue.stats().pushed();
    let before = pushed();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                queue.push(payload(0)).unwrap();
            }
        });
        let _over = OverAtEnd(&is_over);
        // One push, so that the other thread is at it.
        until("the other thread pushes", || pushed() > before);
        let before = pushed();
        let purged = queue.purge().unwrap();
        let during = pushed() - before;
        assert!(purged >= 300_000, "{purged}");
        during
    })
}

#[test]
fn purge_and_dropping_give_the_disk_back() {
    let dir = tempfile::tempdir().unwrap();
    let queue = options().open(dir.path()).unwrap();
    push_many(&queue, 20_000);
    queue.push(Message::new("later").delay(Duration::from_secs(3600))).unwrap();
    let kept = queue.pop().unwrap().unwrap();
    assert_eq!(queue.purge().unwrap(), 20_000);
    shrinks_to(&queue, dir.path(), |queue| twice_live(queue) + 2 * SEGMENT);
    kept.ack().unwrap();
    let overflow = keepq::Overflow::DropOldest;
    let other = tempfile::tempdir().unwrap();
    let queue = options().max_bytes(1 << 20).overflow(overflow).open(other.path()).unwrap();
    push_many(&queue, 20_000);
    assert!(disk(other.path()).0 <= 1 << 20 && queue.stats().dropped() > 10_000);
    // What is left are the newest.
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    assert_eq!(number(&jobs[jobs.len() - 1]), 19_999);
    assert!(jobs.is_sorted_by(|a, b| number(a) + 1 == number(b)));
}
