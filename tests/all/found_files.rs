//! Files that could not be removed or read, and files that came back: each test is a story that
//! once went wrong.

use crate::found_hooks::{by_hand, find, flip, is_segment, is_temporary, large};
use crate::found_support::soon;
use crate::support::watched::{Op, Watched};
use keepq::fault::{CrashImage, ManualClock, MemoryStorage, Storage};
use keepq::{Compaction, Durability, Error, Options, Overflow, Queue, Result, Seq};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

/// No background, and pushes that do not wait for the disk.
fn on(storage: &Arc<Watched>) -> Options {
    by_hand(storage.clone()).durability(Durability::Os).dead_letters(false)
}

/// Pushes five segments of six messages each, and leaves one message in each of the first three.
fn leave_sparse_segments(queue: &Queue) {
    for n in 0..30 {
        queue.push(large(n)).unwrap();
    }
    queue.sync().unwrap();
    let jobs = queue.pop_batch(18).unwrap();
    let (left, settled): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| u64::from(job.seq()) % 6 == 2);
    queue.ack_batch(settled).unwrap();
    for job in left {
        job.release().unwrap();
    }
}

/// Acks all that is there, durably.
fn settle_all(queue: &Queue) {
    queue.push("the newest").unwrap();
    while let Some(job) = queue.pop().unwrap() {
        job.ack().unwrap();
    }
    queue.sync().unwrap();
}

/// How many messages a queue has without its CHECKPOINT.
fn len_without_checkpoint(disk: MemoryStorage) -> u64 {
    disk.remove("CHECKPOINT").ok();
    by_hand(Arc::new(disk)).open("queue").unwrap().len()
}

/// The sources of a copy could not be removed before their run ended. The next run let go of the
/// copy first; without CHECKPOINT the sources counted again then, and messages came back whose acks
/// had been synced.
#[test]
fn a_copy_of_an_earlier_run_stays_until_its_sources_are_gone() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = on(&storage).open("queue").unwrap();
    leave_sparse_segments(&queue);
    storage.rule(|call| {
        let is_refused = call.op == Op::Remove && is_segment(call.name);
        if is_refused { Err(ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    });
    queue.compact().ok();
    let disk = Arc::new(disk.killed());
    let storage = Watched::around(disk.clone());
    let queue = on(&storage).open("queue").unwrap();
    settle_all(&queue);
    assert_eq!(queue.len(), 0);
    let seen: Arc<Mutex<Vec<MemoryStorage>>> = Arc::default();
    storage.rule({
        let (seen, disk) = (Arc::clone(&seen), Arc::clone(&disk));
        move |call| {
            if [Op::Remove, Op::Rename].contains(&call.op) {
                seen.lock().unwrap().push(disk.killed());
            }
            Ok(())
        }
    });
    (0..3).for_each(|_| queue.maintain().unwrap());
    assert!(disk.read("0000000000000006.seg").is_none(), "the copy is gone, too");
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let back: Vec<_> = seen.into_iter().map(len_without_checkpoint).collect();
    assert!(back.iter().all(|len| *len == 0), "{back:?}");
}

/// A copy got its name, could not take the place of its sources, and could not be removed. Its
/// sources were let go once their messages were settled; without CHECKPOINT the copy counted then,
/// and these messages came back.
#[test]
fn the_sources_of_a_copy_that_was_given_up_stay_until_it_is_gone() {
    for is_removed in [false, true] {
        let disk = Arc::new(MemoryStorage::new());
        let storage = Watched::around(disk.clone());
        let queue = on(&storage).open("queue").unwrap();
        leave_sparse_segments(&queue);
        let before = queue.stats().segment_bytes();
        let copy = "0000000000000006.seg";
        storage.rule(move |call| {
            let is_refused = call.op == Op::Map || !is_removed && call.op == Op::Remove;
            let is_refused = is_refused && call.name == copy;
            if is_refused { Err(ErrorKind::OutOfMemory.into()) } else { Ok(()) }
        });
        assert!(queue.compact().is_err(), "the copy cannot be mapped");
        assert_eq!(disk.read(copy).is_some(), !is_removed);
        settle_all(&queue);
        queue.maintain().ok();
        for seed in 0..50 {
            let image = disk.power_cut(CrashImage::Mixed(seed));
            assert_eq!(len_without_checkpoint(image), 0, "seed {seed}");
        }
        // Also if the next run lets them go.
        let next = Arc::new(disk.killed());
        let next_run = on(&Watched::around(next.clone())).open("queue").unwrap();
        next_run.maintain().unwrap();
        assert_eq!(len_without_checkpoint(next.killed()), 0);
        storage.no_rule();
        queue.maintain().unwrap();
        queue.maintain().unwrap();
        assert!(disk.read(copy).is_none());
        assert!(queue.stats().segment_bytes() < before, "{:?}", queue.stats());
    }
}

/// One file that could not be removed made each push without room fail with `Io`, whatever the
/// queue was told to do then, and `compact` told of it before it had made any copy.
#[test]
fn a_file_that_cannot_be_removed_holds_up_no_push_and_no_copy() {
    for overflow in [Overflow::Reject, Overflow::DropOldest, Overflow::Block] {
        let disk = Arc::new(MemoryStorage::new());
        let storage = Watched::around(disk.clone());
        let options = on(&storage).max_bytes(1 << 20).overflow(overflow);
        let queue = options.push_timeout(Duration::from_millis(1)).open("queue").unwrap();
        leave_sparse_segments(&queue);
        let stuck = "0000000000000001.seg";
        storage.rule(move |call| {
            let is_refused = call.op == Op::Remove && call.name == stuck;
            if is_refused { Err(ErrorKind::PermissionDenied.into()) } else { Ok(()) }
        });
        let told = |result: Result<()>| matches!(result, Err(Error::Io { .. }));
        assert!(told(queue.compact().map(|_| ())), "a caller that asks hears of it");
        assert_eq!(disk.read("0000000000000002.seg"), None, "the others are gone");
        assert!(told(queue.maintain()), "a caller that asks hears of it");
        let results: Vec<_> = (0..200).map(|n| queue.push(large(n))).collect();
        let is_right = |result: &Result<Seq>| match overflow {
            Overflow::DropOldest => result.is_ok(),
            _ => matches!(result, Ok(_) | Err(Error::Full { .. })),
        };
        assert!(results.iter().all(is_right), "{overflow:?}: {results:?}");
        assert!(queue.stats().last_background_error().unwrap().contains(stuck));
        assert!(disk.read(stuck).is_some());
        storage.no_rule();
        queue.maintain().unwrap();
        assert_eq!(disk.read(stuck), None);
    }
}

/// One segment that could not be read stopped each copy that a caller asked for: those that came
/// before it in the plan were made, and no other.
#[test]
fn a_file_that_cannot_be_read_holds_up_no_other_copy() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = on(&storage).open("queue").unwrap();
    // Of ten segments these are sparse: the first, and the fourth up to the seventh.
    for n in 0..60 {
        queue.push(large(n)).unwrap();
    }
    queue.sync().unwrap();
    queue.maintain().unwrap();
    let (left, settled): (Vec<_>, Vec<_>) =
        queue.pop_batch(54).unwrap().into_iter().partition(|job| {
            let (segment, place) = ((u64::from(job.seq()) - 1) / 6, u64::from(job.seq()) % 6);
            ![0, 3, 4, 5, 6].contains(&segment) || place == 1
        });
    queue.ack_batch(settled).unwrap();
    for job in left {
        job.release().unwrap();
    }
    let unreadable = "0000000000000004.seg";
    storage.rule(move |call| {
        let is_refused = call.op == Op::Read && call.name == unreadable;
        if is_refused { Err(ErrorKind::Other.into()) } else { Ok(()) }
    });
    let told = queue.compact();
    assert!(matches!(told, Err(Error::Io { .. })), "a caller that asks hears of it: {told:?}");
    let gone = ["0000000000000005.seg", "0000000000000006.seg", "0000000000000007.seg"];
    assert!(gone.iter().all(|name| disk.read(name).is_none()), "the others are copied");
    assert!(disk.read(unreadable).is_some());
    storage.no_rule();
    queue.compact().unwrap();
    assert!(disk.read(unreadable).is_none());
    assert_eq!(queue.len(), 5 + 4 * 6 + 6);
}

/// The ready segment was too small for a message and could not be removed at once. The push failed
/// with `Io`, the file stayed until the next open, and its bytes counted as used until then.
#[test]
fn a_prepared_segment_that_cannot_be_removed_is_removed_later() {
    let used = [false, true].map(|is_refused| {
        let disk = Arc::new(MemoryStorage::new());
        let storage = Watched::around(disk.clone());
        let queue = on(&storage).max_bytes(1 << 20).open("queue").unwrap();
        for n in 0..5 {
            queue.push(large(n)).unwrap();
        }
        queue.maintain().unwrap();
        let ready = "0000000000000002.seg";
        assert!(disk.read(ready).is_some());
        storage.rule(move |call| {
            let is_refused = is_refused && call.op == Op::Remove && call.name == ready;
            if is_refused { Err(ErrorKind::ResourceBusy.into()) } else { Ok(()) }
        });
        queue.push(vec![1; 70_000]).unwrap();
        assert_eq!(disk.read(ready).is_some(), is_refused);
        storage.no_rule();
        queue.maintain().unwrap();
        assert_eq!(disk.read(ready), None);
        queue.stats().disk_bytes()
    });
    assert_eq!(used[0], used[1]);
}

/// One damaged message was in flight: no other segment was copied by a call that asked for it.
#[test]
fn damage_in_flight_holds_up_no_other_copy() {
    for (number, damaged) in [(40, 3), (400, 3), (400, 201)] {
        let disk = Arc::new(MemoryStorage::new());
        let queue = by_hand(disk.clone()).durability(Durability::Os).open("queue").unwrap();
        for n in 0..number {
            queue.push(large(n)).unwrap();
        }
        queue.sync().unwrap();
        let mut held = Vec::new();
        for (n, job) in (0..).zip(queue.pop_batch(usize::MAX).unwrap()) {
            if n == damaged {
                let (name, offset) = find(&disk, &large(n));
                flip(&disk, &name, offset + 100);
                held.push(job);
            } else if n % 6 == 3 {
                job.release().unwrap();
            } else {
                job.ack().unwrap();
            }
        }
        assert!(queue.compact().is_err(), "the damage is told");
        let left = queue.stats().segments();
        // The damaged one, the newest, and the copies, each of six.
        assert!(left <= 6 + number / 36, "{left} segments of {number} messages");
    }
}

/// What could not be copied was left out by the background for the rest of the run.
#[test]
fn the_background_tries_a_copy_that_failed_again() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_000_000)));
    let options = by_hand(storage.clone()).background(true).durability(Durability::Os);
    let idle = Compaction::default().idle(Duration::from_millis(50));
    let queue = options.compaction(idle).clock(clock.clone()).open("queue").unwrap();
    for n in 0..40 {
        queue.push(large(n)).unwrap();
    }
    queue.sync().unwrap();
    let failed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&failed);
    storage.rule(move |call| {
        if call.op == Op::Sync && call.name.starts_with('0') && is_temporary(call.name) {
            count.fetch_add(1, Ordering::SeqCst);
            return Err(ErrorKind::Other.into());
        }
        Ok(())
    });
    for (n, job) in (0..).zip(queue.pop_batch(40).unwrap()) {
        if n % 6 == 3 {
            job.nack_after(Duration::from_secs(1 << 20)).unwrap();
        } else {
            job.ack().unwrap();
        }
    }
    // An ack asks the background to look again.
    let work = || {
        queue.push("small").unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
        clock.advance(Duration::from_secs(1));
    };
    assert!(soon(|| {
        work();
        failed.load(Ordering::SeqCst) > 0
    }));
    storage.no_rule();
    assert!(
        soon(|| {
            work();
            queue.stats().segments() <= 4
        }),
        "{:?}",
        queue.stats()
    );
}

/// A file that was half made could not be removed when it was given up: nobody remembered it, and
/// it stayed until the next run.
#[test]
fn what_is_half_made_is_removed_later() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    let queue = on(&storage).open("queue").unwrap();
    let left = || {
        let names = disk.list().unwrap().into_iter().map(|entry| entry.name);
        names.filter(|name| is_temporary(name)).count()
    };
    let refuse = |op| {
        storage.rule(move |call| match call.op {
            _ if !is_temporary(call.name) => Ok(()),
            Op::Remove => Err(ErrorKind::PermissionDenied.into()),
            failing if failing == op => Err(ErrorKind::StorageFull.into()),
            _ => Ok(()),
        });
    };
    // One that is made for a push; and then some that are to be used again, and to be zeroed.
    refuse(Op::Write);
    queue.push(large(0)).unwrap_err();
    assert!(left() > 0);
    storage.no_rule();
    for n in 0..30 {
        queue.push(large(n)).unwrap();
    }
    queue.maintain().unwrap();
    assert_eq!(left(), 0);
    // The ready one is taken.
    for n in 0..6 {
        queue.push(large(n)).unwrap();
    }
    refuse(Op::Map);
    settle_all(&queue);
    queue.maintain().ok();
    assert!(left() > 0, "they were to be used again");
    storage.no_rule();
    queue.maintain().unwrap();
    assert_eq!(left(), 0);
}
