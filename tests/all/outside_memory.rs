//! Few addresses for maps, files that vanish, and numbers after a restored copy.

use crate::found_support::{alone, soon};
use crate::support::watched::{Op, Watched};
use keepq::fault::{MemoryStorage, Storage};
use keepq::{DamageKind, Durability, Error, Options, Queue};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// A storage with room in memory for so many maps only.
fn scarce(most: usize) -> Arc<Watched> {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let live = AtomicUsize::new(0);
    storage.rule(move |call| match call.op {
        Op::Map => {
            let one_more = |live| (live < most).then_some(live + 1);
            let is_room = live.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok();
            if is_room { Ok(()) } else { Err(ErrorKind::OutOfMemory.into()) }
        }
        Op::Unmap => {
            live.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
        _ => Ok(()),
    });
    storage
}

fn small(options: Options) -> Options {
    options.segment_bytes(65_536).durability(Durability::Os)
}

/// On 32 bits the defaults asked for 4 GiB of maps: then `pop` was stuck with "out of memory".
#[test]
fn no_room_for_a_map_is_too_many_of_them() {
    for (is_running, in_batches) in [(true, false), (false, false), (true, true), (false, true)] {
        let storage = scarce(6);
        let queue = small(Queue::options()).storage(storage.clone()).background(is_running);
        let queue = queue.open("queue").unwrap();
        for number in 0..60_u8 {
            queue.push(vec![number; 30_000]).unwrap();
        }
        // Each segment stays mapped, for its message may come back.
        let mut popped = 0;
        while popped < 60 {
            let jobs = if in_batches {
                queue.pop_batch(7).unwrap()
            } else {
                queue.pop().unwrap().into_iter().collect()
            };
            for job in jobs {
                assert_eq!(job[0], popped);
                popped += 1;
                job.nack_after(HOUR).unwrap();
            }
        }
        assert_eq!(queue.delayed(), 60);
        for number in 0..60_u8 {
            queue.push(vec![number; 30_000]).unwrap();
        }
        queue.close().unwrap();
    }
}

/// A segment file that vanished while the queue was open stopped `pop` at that place until reopen.
#[test]
fn a_file_that_vanishes_costs_what_it_held() {
    for is_running in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let options = small(Queue::options()).background(is_running);
            options.open(dir.path()).unwrap()
        };
        let queue = open();
        for number in 0..40_u8 {
            queue.push(vec![number; 30_000]).unwrap();
        }
        queue.close().unwrap();
        let queue = open();
        let first = queue.pop().unwrap().unwrap();
        let mut files: Vec<PathBuf> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
            .collect();
        files.sort();
        let gone = files.len() / 2;
        fs::remove_file(&files[gone]).unwrap();
        first.ack().unwrap();
        let mut numbers = vec![0];
        while let Some(job) = queue.pop().unwrap() {
            numbers.push(job[0]);
            job.ack().unwrap();
        }
        let lost: Vec<u8> = (0..40).filter(|number| !numbers.contains(number)).collect();
        assert!((1..=2).contains(&lost.len()), "{lost:?}, {is_running}");
        let damage = queue.damage();
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert_eq!((damage[0].kind(), damage[0].path()), (DamageKind::Segment, &*files[gone]));
        let range = u64::from(damage[0].first_seq())..=u64::from(damage[0].last_seq());
        let seqs: Vec<u64> = lost.iter().map(|&number| u64::from(number) + 1).collect();
        assert_eq!(seqs, range.collect::<Vec<_>>());
        assert_eq!((queue.len(), queue.stats().lost()), (0, lost.len() as u64));
        assert!(matches!(queue.is_acked(seqs[0].into()), Err(Error::UnknownSeq { .. })));
        queue.push("goes on").unwrap();
        queue.sync().unwrap();
        assert!(soon(|| {
            queue.maintain().unwrap();
            queue.stats().segments() <= 2
        }));
        queue.close().unwrap();
        let queue = open();
        assert!(queue.recovery().damage().is_empty(), "{:?}", queue.recovery());
        assert_eq!(queue.len(), 1);
        assert!(matches!(queue.is_acked(seqs[0].into()), Err(Error::UnknownSeq { .. })));
    }
}

/// A restored copy gave out numbers again, so that a consumer that remembers them took new messages
/// for ones that it has done.
#[test]
fn numbers_begin_above_what_the_world_has_seen() {
    let storage = MemoryStorage::new();
    let options = || {
        let storage = storage.directory("q").unwrap();
        small(Queue::options()).storage(storage).background(false)
    };
    let queue = options().open("q").unwrap();
    for _ in 0..5 {
        queue.push("old").unwrap();
    }
    let id = queue.id();
    queue.close().unwrap();
    let backup = storage.killed();
    let queue = options().open("q").unwrap();
    for _ in 0..5 {
        queue.push("after the backup").unwrap();
    }
    assert_eq!((queue.id(), queue.last_seq()), (id, Some(10.into())));
    drop(queue);

    let restored = |first_seq: u64| {
        let storage = backup.directory("q").unwrap();
        let options = small(Queue::options()).storage(storage).background(false);
        options.first_seq(first_seq).open("q").unwrap()
    };
    let queue = restored(1000);
    assert_eq!(queue.id(), id);
    assert_eq!(queue.push("new").unwrap(), 1000.into());
    assert_eq!(queue.len(), 6);
    assert!(!queue.is_acked(5.into()).unwrap() && !queue.is_acked(1000.into()).unwrap());
    assert!(matches!(queue.is_acked(7.into()), Err(Error::UnknownSeq { .. })));
    // Numbers of dead letters are remembered, too.
    queue.pop().unwrap().unwrap().reject("broken").unwrap();
    let letter = queue.dead_letters().unwrap().pop().unwrap().unwrap();
    assert_eq!(letter.seq(), 1000.into());
    letter.release().unwrap();
    queue.close().unwrap();
    // It only raises.
    let queue = restored(3);
    assert_eq!(queue.push("next").unwrap(), 1001.into());
    assert!(queue.recovery().is_clean(), "{:?}", queue.recovery());
    assert!(matches!(queue.is_acked(999.into()), Err(Error::UnknownSeq { .. })));
    let seqs: Vec<u64> =
        queue.pop_batch(9).unwrap().iter().map(|job| u64::from(job.seq())).collect();
    assert_eq!(seqs, [2, 3, 4, 5, 1000, 1001]);
    drop(queue);

    let other = alone().open("other").unwrap();
    other.push("x").unwrap();
    assert_ne!(other.id(), id);
    assert!(alone().first_seq(u64::MAX).open("other").is_err());
}

/// There is no room for a map of the size that the next file was to have: every push was refused
/// until reopen, also in an empty queue, although there was room for a smaller one.
#[test]
fn where_a_map_finds_no_room_a_smaller_file_is_taken() {
    let disk = Arc::new(MemoryStorage::new());
    let storage = Watched::around(disk.clone());
    storage.rule(move |call| {
        let is_large = || disk.read(call.name).is_some_and(|bytes| bytes.len() > 1 << 20);
        let is_refused = call.op == Op::Map && is_large();
        if is_refused { Err(ErrorKind::OutOfMemory.into()) } else { Ok(()) }
    });
    let options = Queue::options().storage(storage.clone()).durability(Durability::Os);
    let queue = options.background(false).open("queue").unwrap();
    for round in 0..3 {
        for _ in 0..40 {
            queue.push(vec![7; 100_000]).unwrap();
        }
        let jobs = queue.pop_batch(100).unwrap();
        assert_eq!(jobs.len(), 40, "round {round}");
        queue.ack_batch(jobs).unwrap();
    }
    // Once there is room, files grow again.
    storage.no_rule();
    for _ in 0..40 {
        queue.push(vec![7; 100_000]).unwrap();
    }
    assert!(queue.stats().segments() < 8, "{:?}", queue.stats());
}
