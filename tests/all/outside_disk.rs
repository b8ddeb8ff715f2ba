//! What a disk does: it runs full and has room again, it is small, its limits change, it shares
//! blocks between files, and files have holes.
//!
//! All of it was met in public reports: a queue stayed full for ever, kept what it did not need, or
//! ended its process.

use crate::found_support::{alone, soon};
use crate::support::board::{MINUTE, bytes, year};
use crate::support::watched::{Op, Watched};
use keepq::fault::{Entry, ManualClock, MemoryStorage, Storage, StorageFile};
use keepq::{Durability, Error, Message, Options, Overflow, Queue};
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

const MIB: u64 = 1 << 20;

fn noon() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)))
}

fn push_until_full(queue: &Queue, len: usize) -> u64 {
    let mut pushed = 0;
    loop {
        match queue.push(vec![7; len]) {
            Ok(_) => pushed += 1,
            Err(Error::StorageFull { .. }) => return pushed,
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn drain(queue: &Queue) -> u64 {
    let mut count = 0;
    loop {
        let jobs = queue.pop_batch(1000).unwrap();
        if jobs.is_empty() {
            return count;
        }
        count += jobs.len() as u64;
        queue.ack_batch(jobs).unwrap();
    }
}

/// Takes half of what is free. The background may take some of it meanwhile: then less is free.
fn take_half(storage: &MemoryStorage) -> (u64, Arc<dyn StorageFile>) {
    let mut taken = None;
    let take = || {
        let half = (64 * MIB - bytes(storage)) / 2 / 4096 * 4096;
        taken = storage.create("other", half).ok().map(|other| (half, other));
        taken.is_some()
    };
    assert!(soon(take), "half of what is free can be had");
    taken.unwrap()
}

/// A small volume, filled and drained: every push was refused until reopen, although half of the
/// volume was free, since the next file is always of full size.
#[test]
fn a_full_disk_is_for_a_while() {
    for (is_running, durability) in
        [(true, Durability::Os), (false, Durability::Os), (false, Durability::Always)]
    {
        let storage = Arc::new(MemoryStorage::with_capacity(64 * MIB));
        let options = Queue::options().storage(storage.clone()).durability(durability);
        let queue = options.background(is_running).open("queue").unwrap();
        for round in 0..3 {
            let pushed = push_until_full(&queue, 100_000);
            // What is free at the end is too small for one more.
            assert!(pushed > 600, "{pushed} of some 640 in round {round}, {is_running}");
            assert_eq!(drain(&queue), pushed);
            let is_empty = || queue.push("next").is_ok();
            assert!(soon(is_empty), "round {round}, background {is_running}");
            assert_eq!(drain(&queue), 1);
            // Another one takes half of what is free, and gives it back.
            let (half, other) = take_half(&storage);
            let few = push_until_full(&queue, 100_000);
            assert!(few > (64 * MIB - half) / 100_000 - 60, "{few} beside {half} bytes");
            assert_eq!(drain(&queue), few);
            storage.remove("other").unwrap();
            drop(other);
        }
        queue.close().unwrap();
    }
}

/// The first file of a queue is not larger than what is free either.
#[test]
fn a_message_is_taken_by_what_is_left() {
    let storage = Arc::new(MemoryStorage::with_capacity(200 << 10));
    let queue = Queue::options().storage(storage).background(false).open("queue").unwrap();
    queue.push(vec![7; 100_000]).unwrap();
    assert!(matches!(queue.push(vec![7; 100_000]), Err(Error::StorageFull { .. })));
    assert_eq!(drain(&queue), 1);
    queue.push(vec![7; 100_000]).unwrap();
}

/// A queue that was once busy kept two files of full size for ever, and one of 256 MiB was kept
/// until five small pushes later.
#[test]
fn an_idle_queue_gives_up_what_it_does_not_need() {
    let clock = noon();
    for (is_running, large) in [(true, 1), (false, 1), (true, 40), (false, 40)] {
        let storage = Arc::new(MemoryStorage::new());
        let options = Queue::options().storage(storage.clone()).background(is_running);
        let options = options.durability(Durability::Os).clock(clock.clone());
        let options = options.max_message_bytes(64 * MIB).max_batch_bytes(64 * MIB);
        let queue = options.shrink_after(Duration::from_secs(5)).open("queue").unwrap();
        queue.push("dies").unwrap();
        queue.pop().unwrap().unwrap().reject("no").unwrap();
        let letter = || queue.dead_letters().unwrap().pop().unwrap();
        assert!(soon(|| letter().is_some_and(|letter| letter.ack().is_ok())));
        let len = usize::try_from(large * MIB).unwrap();
        for _ in 0..4 + 100 / large {
            queue.push(vec![7; len]).unwrap();
        }
        drain(&queue);
        queue.maintain().unwrap();
        assert!(bytes(&*storage) > 30 * MIB, "it is ready for another burst");
        clock.advance(Duration::from_secs(6));
        if is_running {
            // Its real time is over, too: the next upkeep looks.
            queue.maintain().unwrap();
        }
        let is_small = || {
            if !is_running {
                queue.maintain().unwrap();
            }
            bytes(&*storage) <= 2 * MIB
        };
        assert!(soon(is_small), "{} bytes, {is_running}", bytes(&*storage));
        // It works, and grows by doubling.
        for number in 0..64_u64 {
            queue.push(vec![7; 100_000]).unwrap();
            let pushed = 100_000 * (number + 1);
            assert!(bytes(&*storage) < 6 * pushed + 2 * MIB, "{number}: {}", bytes(&*storage));
        }
        assert_eq!(drain(&queue), 64);
        queue.close().unwrap();
    }
}

/// The same by the real clock, and nobody calls anything.
#[test]
fn the_background_shrinks_an_idle_queue_by_itself() {
    let storage = Arc::new(MemoryStorage::new());
    let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
    let queue = options.shrink_after(Duration::from_millis(300)).open("queue").unwrap();
    for _ in 0..60 {
        queue.push(vec![7; 1_000_000]).unwrap();
    }
    let waits = queue.pop_batch(60).unwrap();
    assert!(bytes(&*storage) > 60 * MIB);
    queue.ack_batch(waits).unwrap();
    assert!(soon(|| bytes(&*storage) <= 2 * MIB), "{}", bytes(&*storage));
    // What waits stays, of course.
    for _ in 0..60 {
        queue.push(vec![7; 1_000_000]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(drain(&queue), 60);
}

#[test]
fn a_queue_that_is_not_to_shrink_keeps_what_it_has() {
    let storage = Arc::new(MemoryStorage::new());
    let clock = noon();
    let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
    let options = options.background(false).clock(clock.clone()).shrink_after(None);
    let queue = options.open("queue").unwrap();
    for _ in 0..60 {
        queue.push(vec![7; 1_000_000]).unwrap();
    }
    drain(&queue);
    clock.advance(Duration::from_secs(86_400));
    queue.maintain().unwrap();
    assert!(bytes(&*storage) > 30 * MIB);
}

fn limited(storage: &Arc<MemoryStorage>, max: u64, overflow: Overflow) -> Options {
    let options = Queue::options().storage(storage.clone()).max_bytes(max).overflow(overflow);
    options.push_timeout(Duration::from_secs(20)).durability(Durability::Os)
}

/// The limit was lowered in the configuration: the queue was empty, and full for ever.
#[test]
fn a_limit_that_was_lowered_shuts_no_empty_queue() {
    for overflow in [Overflow::Reject, Overflow::Block, Overflow::DropOldest, Overflow::DropNewest]
    {
        for is_running in [true, false] {
            for is_open in [true, false] {
                let storage = Arc::new(MemoryStorage::new());
                let open = |max| {
                    let options = limited(&storage, max, overflow).background(is_running);
                    options.open("queue").unwrap()
                };
                let queue = open(64 * MIB);
                for _ in 0..5 {
                    queue.push(vec![7; 400_000]).unwrap();
                }
                if !is_open {
                    drain(&queue);
                }
                queue.close().unwrap();
                let queue = open(MIB);
                // As an empty queue, or one that is drained under the new limit.
                drain(&queue);
                let context = format!("{overflow:?} {is_running} {is_open}");
                let pushed = queue.push(vec![7; 1000]).unwrap_or_else(|error| {
                    panic!("{context}: {error:?}, {} bytes", bytes(&*storage))
                });
                assert!(u64::from(pushed) > 0, "{context}: it was dropped");
                assert_eq!(drain(&queue), 1);
                for _ in 0..50 {
                    queue.push(vec![7; 10_000]).unwrap();
                    assert_eq!(drain(&queue), 1, "{context}");
                }
                assert!(
                    soon(|| {
                        queue.maintain().unwrap();
                        bytes(&*storage) <= MIB
                    }),
                    "{context}: {} bytes",
                    bytes(&*storage)
                );
                queue.close().unwrap();
            }
        }
    }
}

/// A message above what is free under a lowered limit is refused, and the next one is not.
#[test]
fn what_cannot_fit_is_refused_and_costs_nothing() {
    let queue = alone().max_bytes(MIB).open("queue").unwrap();
    queue.push("first").unwrap();
    drain(&queue);
    assert!(matches!(queue.push(vec![7; 900_000]), Err(Error::Full { .. })));
    queue.push(Message::new("next")).unwrap();
    assert_eq!(drain(&queue), 1);
}

/// What a consumer had refused found no room among the dead letters, although the queue kept a file
/// ready that it could do without.
#[test]
fn what_dies_on_a_full_disk_gets_the_room_of_the_ready_file() {
    for is_running in [false, true] {
        let storage = Arc::new(MemoryStorage::with_capacity(16 * MIB));
        let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
        let queue = options.background(is_running).open("queue").unwrap();
        for _ in 0..50 {
            queue.push(vec![7; 100_000]).unwrap();
        }
        let is_ready = || {
            queue.maintain().unwrap();
            bytes(&*storage) > 10 * MIB
        };
        assert!(soon(is_ready), "{}", bytes(&*storage));
        let other = storage.create("other", 16 * MIB - bytes(&*storage)).unwrap();
        let jobs = queue.pop_batch(3).unwrap();
        for job in jobs {
            job.reject("no").unwrap();
        }
        let dead = queue.dead_letters().unwrap();
        assert_eq!((dead.len(), queue.stats().dying()), (3, 0), "background {is_running}");
        drop(other);
    }
}

/// Files could be made in the directory, but not be renamed or removed (`chattr +a`). A queue that
/// was idle made one file after another, past `max_bytes`, and so did copies.
#[test]
fn where_nothing_can_be_renamed_or_removed_few_files_are_made() {
    for is_compacting in [false, true] {
        let memory = Arc::new(MemoryStorage::new());
        let disk = Watched::around(memory.clone());
        let clock = Arc::new(ManualClock::new(year(2026)));
        let options = Queue::options().storage(disk.clone()).clock(clock.clone());
        let options = options.durability(Durability::Os).background(false);
        let options = options.segment_bytes(1 << 20).max_bytes(16 << 20);
        let queue = options.open("q").unwrap();
        for _ in 0..150 {
            queue.push(vec![1; 20_000]).unwrap();
        }
        let keeps = |number: u64| is_compacting && number.is_multiple_of(7);
        let jobs = queue.pop_batch(150).unwrap();
        let (kept, settled): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| keeps(job.seq().into()));
        queue.ack_batch(settled).unwrap();
        drop(kept);
        disk.rule(|call| match call.op {
            Op::Rename | Op::Remove => Err(ErrorKind::PermissionDenied.into()),
            _ => Ok(()),
        });
        let files = || memory.list().unwrap().len();
        let before = files();
        for _ in 0..20 {
            clock.advance(MINUTE);
            queue.maintain().unwrap_err();
            queue.compact().ok();
            queue.push(vec![1; 2 << 20]).unwrap_err();
        }
        // Two for pushes, two for copies, and one of CHECKPOINT.
        assert!(files() <= before + 5, "{:?}, {before} before", memory.list());
        let (real, told) = (bytes(&*memory), queue.stats().disk_bytes());
        assert!(real <= told + 16_384, "{real} bytes, {told} told");
        disk.no_rule();
        clock.advance(MINUTE);
        queue.maintain().unwrap();
        queue.push(vec![1; 2 << 20]).unwrap();
        queue.maintain().unwrap();
        let (real, told) = (bytes(&*memory), queue.stats().disk_bytes());
        assert!(real.abs_diff(told) <= 16_384, "{real} bytes, {told} told");
        let is_temporary = |entry: &Entry| entry.name.contains(".tmp");
        assert_eq!(memory.list().unwrap().iter().find(|entry| is_temporary(entry)), None);
    }
}

/// A message found no room among the dead letters. Each second the queue gave up the file that it
/// keeps ready, in vain, and made it again.
#[test]
fn what_finds_no_room_among_the_dead_letters_costs_no_file_each_time() {
    let disk = Watched::around(Arc::new(MemoryStorage::new()));
    let clock = Arc::new(ManualClock::new(year(2026)));
    let options = Queue::options().storage(disk.clone()).clock(clock.clone());
    let options = options.durability(Durability::Os).background(false).segment_bytes(1 << 20);
    let queue = options.open("q").unwrap();
    for _ in 0..8 {
        queue.push(vec![7; 100_000]).unwrap();
    }
    queue.maintain().unwrap();
    let made = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&made);
    disk.rule(move |call| match call.op {
        Op::Create if call.name.starts_with("dead/") => Err(ErrorKind::StorageFull.into()),
        Op::Create => {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        _ => Ok(()),
    });
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    for _ in 0..20 {
        clock.advance(2 * Duration::from_secs(1));
        queue.maintain().unwrap_err();
    }
    assert_eq!((made.load(Ordering::SeqCst), queue.stats().dying()), (0, 1));
    disk.no_rule();
    clock.advance(MINUTE);
    queue.maintain().unwrap();
    assert_eq!((queue.dead_letters().unwrap().len(), queue.stats().dying()), (1, 0));
}
