//! Faults of delivery that were found: each test is a story that once went wrong.

use crate::support::{DEADLINE, OverAtEnd};
use keepq::fault::{FaultPlan, FaultStorage, ManualClock, MemoryStorage, Storage};
use keepq::{Delivery, Durability, Error, Message, Options, Overflow, Queue};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn fast() -> Options {
    Queue::options().durability(Durability::Os)
}

fn on(storage: Arc<dyn Storage>) -> Options {
    Queue::options().segment_bytes(65_536).background(false).storage(storage)
}

/// A lease that ran out while its payload was still being copied was ended twice, and a message
/// that was settled came back.
#[test]
fn leases_run_out_while_payloads_are_copied() {
    const COUNT: u64 = 150;
    let dir = directory();
    let options = fast().visibility_timeout(ms(1)).max_attempts(0).segment_bytes(8 << 20);
    let queue = options.open(dir.path()).unwrap();
    let large = |n: u64| n.to_le_bytes().repeat(40_000);
    for n in 0..COUNT {
        let message = Message::new(large(n));
        let message = if n % 3 == 0 { message.ttl(ms(n)) } else { message };
        queue.push(message).unwrap();
    }
    let acked: Mutex<BTreeMap<u64, u32>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while queue.stats().ready() + queue.in_flight() > 0 {
                    for job in queue.pop_batch(5).unwrap() {
                        let n = u64::from_le_bytes(job[..8].try_into().unwrap());
                        match job.ack() {
                            Ok(()) => *acked.lock().unwrap().entry(n).or_default() += 1,
                            Err(error) => assert!(matches!(error, Error::LeaseExpired { .. })),
                        }
                    }
                }
            });
        }
    });
    let acked = acked.into_inner().unwrap();
    let stats = queue.stats();
    assert!(acked.values().all(|&times| times == 1), "{acked:?}");
    assert_eq!(acked.len() as u64 + stats.expired(), COUNT, "{stats:?}");
    assert_eq!((stats.in_flight(), stats.duplicated(), stats.lost()), (0, 0, 0));
    queue.maintain().unwrap();
}

/// Everything was dropped for a push that could never fit, or that in-flight messages had no room
/// for.
#[test]
fn nothing_is_dropped_for_a_push_that_fails_all_the_same() {
    let dir = directory();
    let options = fast().max_bytes(1 << 20).overflow(Overflow::DropOldest);
    let queue = options.open(dir.path().join("bytes")).unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    assert!(matches!(queue.push(vec![0; 2 << 20]), Err(Error::Full { limit: "max_bytes", .. })));
    assert_eq!((queue.len(), queue.stats().dropped()), (2, 0));
    let options = fast().max_bytes(1 << 20).overflow(Overflow::Block);
    let blocking = options.open(dir.path().join("blocking")).unwrap();
    let never = blocking.push(vec![0; 2 << 20]);
    assert!(matches!(never, Err(Error::Full { .. })), "it does not wait for ever");
    let options = fast().max_messages(10).overflow(Overflow::DropOldest);
    let queue = options.open(dir.path().join("messages")).unwrap();
    queue.push_batch((0..10).map(|n| n.to_string())).unwrap();
    let held = queue.pop_batch(8).unwrap();
    assert!(matches!(queue.push_batch(["a", "b", "c"]), Err(Error::Full { .. })));
    assert_eq!((queue.len(), queue.stats().dropped()), (2, 0));
    queue.push_batch(["a", "b"]).unwrap();
    assert_eq!((queue.len(), queue.stats().dropped()), (2, 2));
    // A delivery in each segment keeps them all: nothing else goes for nothing.
    drop(held);
    let options = fast().max_bytes(1 << 20).overflow(Overflow::DropOldest);
    let queue = options.open(dir.path().join("pinned")).unwrap();
    let mut held: Vec<Delivery> = Vec::new();
    let refused = loop {
        match queue.push(vec![7; 3000]) {
            Ok(_) if queue.stats().segments() > held.len() as u64 => {
                // The newest of those that wait: in the newest segment.
                let mut all = queue.pop_batch(usize::MAX).unwrap();
                held.push(all.pop().unwrap());
                for job in all {
                    job.release().unwrap();
                }
            }
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Full { limit: "max_bytes", .. }));
    assert!(queue.stats().dropped() < 5, "{:?}", queue.stats());
}

#[test]
fn a_push_that_waits_for_bytes_is_woken_by_acks() {
    for background in [false, true] {
        let dir = directory();
        let options = fast().max_bytes(1 << 20).overflow(Overflow::Block).background(background);
        let queue = options.open(dir.path()).unwrap();
        while queue.try_push(vec![1; 5000]).is_ok() {}
        thread::scope(|scope| {
            let pushing = [0; 3].map(|_| scope.spawn(|| queue.push(vec![2; 5000]).unwrap()));
            thread::sleep(ms(20));
            while let Some(job) = queue.pop().unwrap() {
                job.ack().unwrap();
            }
            for push in pushing {
                assert!(!push.join().unwrap().is_dropped());
            }
        });
        let left = queue.pop_batch(9).unwrap();
        assert!(left.iter().all(|job| job[0] == 2));
    }
}

/// A full queue in each segment of which something dies had no room for the dead letters, and so
/// for nothing.
#[test]
fn a_full_queue_has_room_for_what_dies() {
    let dir = directory();
    let queue = fast().max_bytes(1 << 20).background(false).open(dir.path()).unwrap();
    for round in 0..3 {
        while queue.push(vec![round; 5000]).is_ok() {}
        let mut n = 0;
        while let Some(job) = queue.pop().unwrap() {
            n += 1;
            if n % 40 == 0 { job.reject("one in forty").unwrap() } else { job.ack().unwrap() }
        }
        queue.maintain().unwrap();
        let stats = queue.stats();
        assert!(stats.dead_letters() >= 2 && stats.dying() == 0, "{round}: {stats:?}");
        let dead = queue.dead_letters().unwrap();
        dead.ack_batch(dead.pop_batch(99).unwrap()).unwrap();
        queue.maintain().unwrap();
        assert!(queue.stats().disk_bytes() <= 1 << 20);
    }
}

/// What a look at the counts settled was told to nobody.
#[test]
fn whoever_waits_hears_of_what_a_look_settles() {
    let dir = directory();
    let options = fast()
        .visibility_timeout(ms(30))
        .max_attempts(1)
        .dead_letters(false)
        .max_messages(1)
        .overflow(Overflow::Block);
    let queue = options.open(dir.path()).unwrap();
    let seq = queue.push("a").unwrap();
    std::mem::forget(queue.pop().unwrap());
    thread::scope(|scope| {
        let pushing = scope.spawn(|| queue.push("b").unwrap());
        let waiting = scope.spawn(|| queue.wait_acked(seq, Duration::MAX).unwrap());
        while !pushing.is_finished() || !waiting.is_finished() {
            thread::sleep(ms(5));
            // A monitor, and nobody else, is there when the lease runs out.
            assert!(queue.stats().in_flight() <= 1);
        }
        assert!(waiting.join().unwrap());
    });
    assert_eq!(queue.stats().dropped(), 1);
}

/// A dead letter could be taken and acked before its message was settled; a kill then, and it died
/// twice.
#[test]
fn a_dead_letter_is_shown_when_its_message_is_settled() {
    let memory = Arc::new(MemoryStorage::new());
    let queue = on(memory.clone()).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    assert!(dead.pop().unwrap().is_none() && dead.peek().unwrap().is_none());
    assert_eq!((dead.len(), dead.iter().count(), dead.purge().unwrap()), (0, 0, 0));
    assert_eq!(queue.stats().dead_letters(), 1);
    let killed = on(Arc::new(memory.killed())).open("queue").unwrap();
    assert_eq!(killed.dead_letters().unwrap().len(), 1);
    queue.maintain().unwrap();
    dead.pop().unwrap().unwrap().ack().unwrap();
    let killed = on(Arc::new(memory.killed())).open("queue").unwrap();
    killed.maintain().unwrap();
    assert_eq!((killed.dead_letters().unwrap().len(), killed.len()), (0, 1));
}

/// Without dead letters, what an earlier run had left dying kept its segment for ever, and failed
/// every close.
#[test]
fn what_was_dying_is_dropped_where_dead_letters_are_switched_off() {
    let faults = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
    let queue = on(faults.clone()).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    faults.plan(FaultPlan::FailAt { at: 1, error: ErrorKind::PermissionDenied, lasting: true });
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    assert_eq!(queue.stats().dying(), 1);
    drop(queue);
    faults.plan(FaultPlan::None);
    let queue = on(faults).dead_letters(false).open("queue").unwrap();
    let b = queue.pop().unwrap().unwrap();
    assert_eq!((&b[..], queue.stats().dropped(), queue.stats().dying()), (&b"b"[..], 1, 0));
    b.ack().unwrap();
    queue.maintain().unwrap();
    queue.close().unwrap();
}

/// Each time the dead letters were closed and opened again, their files were counted once more.
#[test]
fn closed_dead_letters_count_once() {
    let dir = directory();
    let queue = fast().max_bytes(1 << 20).open(dir.path()).unwrap();
    queue.push("a").unwrap();
    assert_eq!(queue.stats().dead_letters(), 0);
    assert!(!dir.path().join("dead").exists(), "a look makes no directory");
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    queue.maintain().unwrap();
    let used = queue.stats().disk_bytes();
    for _ in 0..20 {
        queue.dead_letters().unwrap().close().unwrap();
        assert_eq!((queue.stats().dead_letters(), queue.stats().disk_bytes()), (1, used));
    }
}

/// A place that became free because a message had expired woke nobody.
#[test]
fn a_consumer_is_woken_when_an_expired_message_makes_room() {
    let dir = directory();
    let queue = fast().max_in_flight(1).open(dir.path()).unwrap();
    for round in 0..12 {
        queue.push(Message::new(vec![1; 300_000]).ttl(ms(1))).unwrap();
        queue.push(Message::new(vec![2; 10])).unwrap();
        thread::sleep(ms(2 + round % 3));
        let (taken, jobs) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..2 {
                let (queue, taken) = (&queue, taken.clone());
                // Twice the time, so that it is not found by the last look of all.
                scope.spawn(move || taken.send(queue.pop_timeout(2 * DEADLINE).unwrap()).unwrap());
            }
            let next = || jobs.recv_timeout(DEADLINE).unwrap().unwrap();
            let first = next();
            assert_eq!((first.len(), queue.in_flight()), (10, 1), "round {round}");
            assert!(jobs.try_recv().is_err(), "round {round}: one is in flight at a time");
            first.ack().unwrap();
            queue.push("for the other one").unwrap();
            next().ack().unwrap();
        });
    }
}

/// A sealed segment tells its first time only: with the clock set back after a close, a delay grew
/// by an hour.
#[test]
fn a_delay_does_not_grow_after_a_close_and_a_clock_set_back() {
    let start = UNIX_EPOCH + ms(1_000_000_000);
    let (clock, disk) = (Arc::new(ManualClock::new(start)), Arc::new(MemoryStorage::new()));
    let queue = on(disk.clone()).clock(clock.clone()).open("queue").unwrap();
    queue.push("first").unwrap();
    clock.advance(ms(3_600_000));
    queue.push(Message::new("delayed").delay(ms(10_000))).unwrap();
    queue.close().unwrap();
    clock.set_wall(start);
    let queue = on(disk).clock(clock.clone()).open("queue").unwrap();
    queue.push("newer").unwrap();
    assert_eq!(queue.iter().last().unwrap().unwrap().pushed_at(), start);
    clock.advance(ms(10_000));
    let texts: Vec<usize> = queue.pop_batch(9).unwrap().iter().map(|job| job.len()).collect();
    assert_eq!(texts, ["delayed".len(), "first".len(), "newer".len()]);
}

#[test]
fn no_time_is_too_far_away_to_be_refused() {
    let dir = directory();
    let queue = fast().visibility_timeout(ms(1000)).open(dir.path()).unwrap();
    let end = (0..64).rev().fold(UNIX_EPOCH, |time, bit| {
        time.checked_add(Duration::from_secs(1 << bit)).unwrap_or(time)
    });
    assert!(matches!(
        queue.push(Message::new("x").deliver_at(end)),
        Err(Error::InvalidOption { .. })
    ));
    assert!(SystemTime::now() < end);
    queue.push("x").unwrap();
    let job = queue.pop().unwrap().unwrap();
    job.extend(Duration::MAX).unwrap();
    assert!(matches!(job.nack_after(Duration::MAX), Err(Error::InvalidOption { .. })));
    assert_eq!(queue.pop().unwrap().unwrap().attempts(), 2, "given back as by a drop");
}

/// A batch was short, or empty, while messages were ready behind some that had expired.
#[test]
fn a_batch_reaches_behind_what_has_expired() {
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH));
    let queue = on(Arc::new(MemoryStorage::new())).clock(clock.clone()).open("queue").unwrap();
    queue.push_batch((0..100).map(|_| Message::new("old").ttl(ms(5)))).unwrap();
    queue.push_batch((0..100).map(|n| n.to_string())).unwrap();
    clock.advance(ms(5));
    assert_eq!(queue.pop_batch(70).unwrap().len(), 70);
    assert_eq!(queue.stats().expired(), 100);
}

/// Dead letters that filled a segment were shown before their messages were settled.
#[test]
fn dead_letters_of_a_full_segment_are_not_shown_early() {
    let memory = Arc::new(MemoryStorage::new());
    let queue = on(memory).open("queue").unwrap();
    let dead = queue.dead_letters().unwrap();
    queue.push_batch([1u8, 2, 3].map(|n| vec![n; 30_000])).unwrap();
    let jobs = queue.pop_batch(3).unwrap();
    for job in jobs {
        job.reject("no").unwrap();
    }
    assert!(dead.pop().unwrap().is_none() && dead.peek().unwrap().is_none());
    assert_eq!((dead.len(), dead.iter().count(), dead.pop_batch(9).unwrap().len()), (0, 0, 0));
    queue.maintain().unwrap();
    let shown: Vec<u8> = dead.pop_batch(9).unwrap().iter().map(|letter| letter[0]).collect();
    assert_eq!((shown, dead.len()), (vec![1, 2, 3], 3), "in order, and given back by the drop");
}

/// The newest segment was never let go: with what it took, a push might never find room, however
/// long it waited and whatever was dropped for it.
#[test]
fn a_newest_segment_without_messages_leaves_its_room_to_a_push() {
    for overflow in [Overflow::Block, Overflow::DropOldest] {
        let dir = directory();
        let options = fast().max_bytes(1 << 20).overflow(overflow).background(false);
        let queue = options.open(dir.path()).unwrap();
        queue.push(vec![1; 500_000]).unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
        queue.push(vec![2; 500_000]).unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
        let full = queue.push(vec![2; 900_000]);
        assert!(matches!(full, Err(Error::Full { limit: "max_bytes", .. })), "{full:?}");
        queue.push("small").unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
        queue.push(vec![3; 300_000]).unwrap();
    }
}

/// A batch without an end took what was pushed meanwhile, and so had none.
#[test]
fn a_batch_takes_what_is_there_and_no_more() {
    let dir = directory();
    let queue = fast().open(dir.path()).unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                queue.push([1u8; 16].as_slice()).unwrap();
            }
        });
        let _over = OverAtEnd(&is_over);
        for _ in 0..20 {
            queue.ack_batch(queue.pop_batch(usize::MAX).unwrap()).unwrap();
        }
    });
}

/// Redriving until nothing was left had no end while consumers went on to reject.
#[test]
fn redrive_takes_what_is_dead_now() {
    let dir = directory();
    let queue = fast().open(dir.path()).unwrap();
    queue.push_batch((0..50).map(|n| n.to_string())).unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                if let Some(job) = queue.pop_timeout(ms(5)).unwrap() {
                    job.reject("again").unwrap();
                }
            }
        });
        let _over = OverAtEnd(&is_over);
        for _ in 0..10 {
            assert!(queue.redrive(u64::MAX).unwrap() <= 50);
        }
    });
    queue.maintain().unwrap();
    let stats = queue.stats();
    assert_eq!(stats.ready() + stats.dead_letters(), 50, "{stats:?}");
}

/// Producers that were refused together each dropped a segment, where one was enough.
#[test]
fn many_producers_drop_no_more_than_one_would() {
    let dir = directory();
    let options = fast().max_bytes(1 << 20).overflow(Overflow::DropOldest);
    let queue = options.open(dir.path()).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..600u64 {
                    queue.push(n.to_le_bytes().repeat(600)).unwrap();
                }
            });
        }
    });
    let stats = queue.stats();
    assert!(stats.ready() * 4800 > (1 << 20) / 3, "{stats:?}");
    assert_eq!(stats.ready() + stats.dropped(), 2400);
}

/// What became due between two looks at the clock was neither ready nor delayed in one and the same
/// `Stats`.
#[test]
fn what_becomes_due_is_counted_once() {
    const COUNT: u64 = 4000;
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let storage = Arc::new(MemoryStorage::new());
    let queue = on(storage).durability(Durability::Os).clock(clock.clone()).open("memory").unwrap();
    for n in 1..=COUNT {
        queue.push(Message::new("later").delay(ms(n))).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..COUNT {
                clock.advance(ms(1));
                (0..300).for_each(|_| std::hint::spin_loop());
            }
        });
        loop {
            let stats = queue.stats();
            assert_eq!(stats.ready() + stats.delayed(), COUNT, "{stats:?}");
            if stats.delayed() == 0 {
                break;
            }
        }
    });
}
