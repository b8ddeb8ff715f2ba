//! Leases, delays, limits and overflow as a program with threads meets them.

use crate::support::DEADLINE;
use keepq::fault::{ManualClock, MemoryStorage};
use keepq::{
    Backoff, Delivery, Durability, Error, Expired, Message, Options, Overflow, Queue, Seq,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn fast() -> Options {
    Queue::options().durability(Durability::Os)
}

/// A queue in memory whose time is the test's.
fn manual() -> (Arc<ManualClock>, Arc<MemoryStorage>) {
    (Arc::new(ManualClock::new(UNIX_EPOCH + ms(1_000_000_000))), Arc::new(MemoryStorage::new()))
}

fn on(clock: &Arc<ManualClock>, disk: &Arc<MemoryStorage>) -> Options {
    let options = Queue::options().segment_bytes(65_536).background(false);
    options.clock(clock.clone()).storage(disk.clone())
}

/// Somebody parked before the lease began, with nothing to wait for, is there when it runs out.
#[test]
fn a_parked_consumer_gets_what_another_forgets() {
    let dir = directory();
    let queue = fast().visibility_timeout(ms(60)).open(dir.path()).unwrap();
    thread::scope(|scope| {
        let waiting = [0, 1].map(|_| scope.spawn(|| queue.pop_wait().unwrap().attempts()));
        // Long enough to be parked, mostly; it must not matter.
        thread::sleep(ms(30));
        queue.push_batch(["a", "b", "c"]).unwrap();
        let held: Vec<_> = queue.pop_batch(9).unwrap();
        held.into_iter().for_each(std::mem::forget);
        let attempts: Vec<u32> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(attempts.iter().all(|&attempts| attempts <= 3), "{attempts:?}");
    });
    let start = Instant::now();
    while queue.stats().ready() < 3 && start.elapsed() < DEADLINE {
        thread::sleep(ms(5));
    }
    assert_eq!((queue.len(), queue.in_flight()), (3, 0));
}

/// Whoever waits for a time may leave before it comes: another takes over.
#[test]
fn a_time_is_watched_whoever_leaves() {
    let dir = directory();
    let queue = fast().open(dir.path()).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        let late = scope.spawn(|| queue.pop_timeout(DEADLINE).unwrap().is_some());
        for n in 0..4 {
            let queue = &queue;
            scope.spawn(move || queue.pop_timeout(ms(10 * n)).unwrap().is_none());
        }
        thread::sleep(ms(5));
        queue.push(Message::new("later").delay(ms(120))).unwrap();
        assert!(late.join().unwrap());
    });
    // Not found by the last look of all, at the end of its own time.
    assert!((ms(120)..DEADLINE).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[test]
fn a_push_waits_for_room_and_is_woken() {
    let dir = directory();
    let options = || fast().max_messages(2).overflow(Overflow::Block);
    let queue = options().open(dir.path()).unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    let full = |result: keepq::Result<Seq>| {
        assert!(matches!(result, Err(Error::Full { limit: "max_messages", max: 2 })), "{result:?}");
    };
    full(queue.try_push("c"));
    let three = queue.push_batch(["c", "d", "e"]);
    assert!(matches!(three, Err(Error::Full { .. })), "it could never fit");
    thread::scope(|scope| {
        let pushing = ["c", "d", "e"].map(|text| scope.spawn(|| queue.push(text.to_string())));
        for _ in 0..5 {
            queue.pop_wait().unwrap().ack().unwrap();
        }
        for push in pushing {
            assert!(!push.join().unwrap().unwrap().is_dropped());
        }
    });
    queue.push_batch(["f", "g"]).unwrap();
    thread::scope(|scope| {
        let pushing = [0; 3].map(|_| scope.spawn(|| queue.push("h")));
        thread::sleep(ms(20));
        queue.clone().close().unwrap();
        for push in pushing {
            assert!(matches!(push.join().unwrap(), Err(Error::Closed)));
        }
    });
    let queue = options().push_timeout(ms(30)).open(dir.path()).unwrap();
    let start = Instant::now();
    full(queue.push("h"));
    assert!(start.elapsed() >= ms(30));
    // What earlier runs left counts, too; what is purged does not.
    assert_eq!((queue.purge().unwrap(), queue.stats().failed_pushes()), (2, 1));
    queue.push_batch(["h", "i"]).unwrap();
}

#[test]
fn the_oldest_make_room_but_not_those_in_flight() {
    let dir = directory();
    let queue = fast().max_messages(3).overflow(Overflow::DropOldest).open(dir.path()).unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    queue.push(Message::new("c").delay(ms(3_600_000))).unwrap();
    let a = queue.pop().unwrap().unwrap();
    queue.push("d").unwrap(); // b goes
    queue.push("e").unwrap(); // d goes
    let held = [a, queue.pop().unwrap().unwrap()];
    queue.push("f").unwrap(); // the delayed one goes
    assert_eq!((queue.stats().dropped(), queue.delayed()), (3, 0));
    let held: Vec<_> = held.into_iter().chain(queue.pop().unwrap()).collect();
    let texts: Vec<&[u8]> = held.iter().map(|job| &job[..]).collect();
    assert_eq!(texts, [b"a", b"e", b"f"]);
    assert!(matches!(queue.push("g"), Err(Error::Full { .. })), "all are in flight");
    queue.ack_batch(held).unwrap();
    queue.push("g").unwrap();
}

#[test]
fn dropping_the_newest_says_so() {
    let dir = directory();
    let queue = fast().max_messages(1).overflow(Overflow::DropNewest).open(dir.path()).unwrap();
    assert!(!queue.push("a").unwrap().is_dropped());
    let dropped = queue.push("b").unwrap();
    assert!(dropped.is_dropped());
    assert!(matches!(queue.is_acked(dropped), Err(Error::UnknownSeq { .. })));
    let receipt = queue.submit("c").unwrap();
    assert!(receipt.seq().is_dropped() && receipt.wait().unwrap().is_dropped());
    assert_eq!((queue.len(), queue.stats().dropped(), queue.stats().failed_pushes()), (1, 2, 2));
    assert!((queue.stats().push_loss_rate() - 2.0 / 3.0).abs() < 1e-9);
}

/// Never more than the limit on the disk, and a full queue can be drained and pushed to again.
#[test]
fn bytes_are_limited() {
    const MAX: u64 = 1 << 20;
    let used = |dir: &tempfile::TempDir| -> u64 {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        // The background may remove one in this moment.
        entries.filter_map(|entry| entry.unwrap().metadata().ok()).map(|data| data.len()).sum()
    };
    for background in [false, true] {
        let dir = directory();
        let options = || fast().max_bytes(MAX).background(background);
        let queue = options().open(dir.path()).unwrap();
        let mut most = 0;
        for round in 0..6 {
            let mut pushed = 0;
            let full = loop {
                match queue.push(vec![round; 5000]) {
                    Ok(_) => pushed += 1,
                    Err(error) => break error,
                }
                most = most.max(used(&dir));
            };
            assert!(matches!(full, Error::Full { limit: "max_bytes", max: MAX }), "{full}");
            assert!(pushed * 5000 > MAX / 2, "{pushed} messages filled it");
            let stats = queue.stats();
            assert!(stats.storage_use().unwrap() <= 1.0 && stats.disk_bytes() <= MAX, "{stats:?}");
            while let Some(job) = queue.pop().unwrap() {
                job.ack().unwrap();
            }
        }
        assert!(most <= MAX, "{most} bytes on the disk");
        queue.close().unwrap();
        let queue = options().overflow(Overflow::DropOldest).open(dir.path()).unwrap();
        for n in 0..2000u64 {
            queue.push(n.to_le_bytes().repeat(500)).unwrap();
        }
        assert!(queue.stats().dropped() > 1000 && used(&dir) <= MAX);
        let first = queue.pop().unwrap().unwrap();
        assert_eq!(first[..8], (2000 - queue.len() - 1).to_le_bytes(), "the newest are there");
    }
}

#[test]
fn no_more_are_in_flight_than_may_be() {
    let dir = directory();
    let queue = fast().max_in_flight(2).open(dir.path()).unwrap();
    queue.push_batch((0..20).map(|n| n.to_string())).unwrap();
    let mut held = queue.pop_batch(9).unwrap();
    assert_eq!((held.len(), queue.pop().unwrap().is_none()), (2, true));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| queue.pop_wait().unwrap().ack().unwrap());
        thread::sleep(ms(10));
        held.pop().unwrap().ack().unwrap();
        waiting.join().unwrap();
    });
    let worked = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while worked.load(Ordering::SeqCst) < 18 {
                    let Some(job) = queue.pop_timeout(ms(20)).unwrap() else { continue };
                    assert!(queue.in_flight() <= 2);
                    job.ack().unwrap();
                    worked.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        drop(held);
    });
    assert_eq!(worked.load(Ordering::SeqCst), 18);
}

/// What is left of a delay is never more than it was, whatever became of the wall clock.
#[test]
fn a_clock_that_was_set_makes_no_delay_longer() {
    let day = ms(86_400_000);
    let start = UNIX_EPOCH + ms(1_000_000_000);
    for (wall, least, most) in [
        (start - day, 1, 10_000),
        (start, 10_000, 10_000),
        (start + ms(4_000), 6_000, 6_000),
        (start + day, 0, 0),
    ] {
        let (clock, disk) = manual();
        let queue = on(&clock, &disk).open("queue").unwrap();
        queue.push(Message::new("pushed").delay(ms(10_000))).unwrap();
        queue.push("given back").unwrap();
        queue.pop().unwrap().unwrap().nack_after(ms(10_000)).unwrap();
        // While the queue is open, nobody looks at the wall clock.
        clock.set_wall(wall - day);
        assert_eq!((queue.len(), queue.delayed()), (0, 2));
        clock.set_wall(wall);
        let disk = Arc::new(disk.killed());
        let queue = on(&clock, &disk).open("queue").unwrap();
        let mut waited = [0; 2];
        for (n, waited) in waited.iter_mut().enumerate() {
            while queue.len() <= n as u64 && *waited <= 20_000 {
                clock.advance(ms(1));
                *waited += 1;
            }
        }
        let total = waited[0]..=waited[0] + waited[1];
        assert!(
            *total.start() >= least && *total.end() <= most + most / 100,
            "{wall:?}: {waited:?}"
        );
        let texts = queue.pop_batch(9).unwrap();
        assert_eq!(texts.iter().map(|job| job.len()).sum::<usize>(), 16);
    }
}

#[test]
fn deliver_at_is_by_the_wall_clock() {
    let (clock, disk) = manual();
    let now = UNIX_EPOCH + ms(1_000_000_000);
    let queue = on(&clock, &disk).open("queue").unwrap();
    queue.push(Message::new("past").deliver_at(now - ms(1))).unwrap();
    let past = queue.pop().unwrap().unwrap();
    assert_eq!(&past[..], b"past");
    past.ack().unwrap();
    let (late, early) = (now + ms(2000), now + ms(1000));
    queue
        .push_batch(
            [("late", late), ("early", early), ("tie", late)]
                .map(|(text, at)| Message::new(text).deliver_at(at)),
        )
        .unwrap();
    let peeked: Vec<_> = queue.iter().map(|message| message.unwrap().not_before()).collect();
    assert_eq!(peeked, [Some(late), Some(early), Some(late)]);
    clock.advance(ms(1000));
    let early = queue.pop().unwrap().unwrap();
    assert_eq!(&early[..], b"early");
    early.ack().unwrap();
    assert!(queue.pop().unwrap().is_none());
    clock.advance(ms(1000));
    let ties = queue.pop_batch(9).unwrap();
    let texts: Vec<&[u8]> = ties.iter().map(|job| &job[..]).collect();
    assert_eq!(texts, [&b"late"[..], b"tie"], "ties in push order");
    let far = Message::new("x").deliver_at(now + ms(9 * 365 * 86_400_000));
    assert!(matches!(queue.push(far), Err(Error::InvalidOption { .. })));
    let far = Message::new("x").delay(ms(9 * 365 * 86_400_000));
    assert!(matches!(queue.push(far), Err(Error::InvalidOption { .. })));
}

/// Delays and the times of expiry are kept in the log; open reads no records for them.
#[test]
fn delays_are_back_after_open() {
    const COUNT: u64 = 20_000;
    let (clock, disk) = manual();
    let queue =
        on(&clock, &disk).segment_bytes(1 << 20).durability(Durability::Os).open("q").unwrap();
    for n in 0..COUNT {
        let message = Message::new(n.to_le_bytes().repeat(10)).delay(ms(1000 + n % 7));
        queue.push(message.ttl(ms(if n % 2 == 0 { 5000 } else { 1004 }))).unwrap();
    }
    queue.push("now").unwrap();
    queue.close().unwrap();
    let queue = on(&clock, &disk).expired(Expired::Drop).open("q").unwrap();
    assert_eq!(queue.recovery().scanned_bytes(), 0);
    assert_eq!(&queue.pop().unwrap().unwrap()[..], b"now");
    assert_eq!((queue.len(), queue.delayed()), (1, COUNT));
    clock.advance(ms(1003));
    let due = (0..COUNT).filter(|n| n % 7 <= 3).count() as u64;
    assert_eq!((queue.len(), queue.delayed()), (due + 1, COUNT - due));
    clock.advance(ms(1));
    let mut last = (0, 0);
    while let Some(job) = queue.pop().unwrap() {
        if let Some(bytes) = job.first_chunk() {
            let n = u64::from_le_bytes(*bytes);
            assert!(
                n % 2 == 0 && last < (n % 7 + 1, n + 1),
                "by time, then as pushed: {last:?} {n}"
            );
            last = (n % 7 + 1, n + 1);
        }
        job.ack().unwrap();
    }
    let odd = (0..COUNT).filter(|n| n % 7 <= 4 && n % 2 == 1).count() as u64;
    assert_eq!(queue.stats().expired(), odd);
}

fn is_poison(n: u64) -> bool {
    n % 97 == 3
}

/// Answers in every way, or not at all; says whether by an ack.
fn answer(job: Delivery, turn: u64) -> bool {
    let is_first = job.attempts() == 1;
    match turn {
        0 if is_first => job.nack().unwrap(),
        1 if is_first => drop(job),
        2 if is_first => job.nack_after(ms(3)).unwrap(),
        3 if is_first => std::mem::forget(job),
        4 => job.release().unwrap(),
        _ if is_poison(u64::from_le_bytes(job[..].try_into().unwrap())) => drop(job),
        _ => {
            job.ack().unwrap();
            return true;
        }
    }
    false
}

/// Many threads, failing consumers, leases that run out: each message is acked, or dead, once.
#[test]
fn every_message_ends_once() {
    const COUNT: u64 = 3000;
    let dir = directory();
    let (clock, _) = manual();
    let options = fast()
        .clock(clock.clone())
        .max_attempts(3)
        .visibility_timeout(ms(200))
        .backoff(Backoff::exponential(ms(1)).jitter(0.5))
        .max_messages(200)
        .overflow(Overflow::Block)
        .segment_bytes(65_536);
    let queue = options.open(dir.path()).unwrap();
    let acked: Mutex<BTreeMap<u64, u32>> = Mutex::default();
    let start = Instant::now();
    let is_over = || {
        let ended = acked.lock().unwrap().len() as u64 + queue.stats().dead_lettered();
        ended == COUNT || start.elapsed() > DEADLINE
    };
    // Read from pop to answer, written while time passes: so that no lease runs out but those of
    // deliveries that were forgotten, on a machine of any speed.
    let at_work = RwLock::new(());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over() {
                thread::sleep(ms(1));
                let all_answered = at_work.write().unwrap();
                clock.advance(ms(50));
                drop(all_answered);
            }
        });
        for producer in 0..3 {
            let queue = &queue;
            scope.spawn(move || {
                for n in (0..COUNT).filter(|n| n % 3 == producer) {
                    queue.push(Message::new(&n.to_le_bytes()).header("n", n.to_string())).unwrap();
                }
            });
        }
        for consumer in 0..4u64 {
            let (queue, acked, at_work, is_over) = (&queue, &acked, &at_work, &is_over);
            scope.spawn(move || {
                let mut turn = consumer;
                while !is_over() {
                    let _unanswered = at_work.read().unwrap();
                    let Some(job) = queue.pop_timeout(ms(1)).unwrap() else { continue };
                    turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
                    let n = u64::from_le_bytes(job[..].try_into().unwrap());
                    assert!(job.attempts() <= 3, "{n} was handed out {} times", job.attempts());
                    if answer(job, (turn >> 33) % 12) {
                        *acked.lock().unwrap().entry(n).or_default() += 1;
                    }
                }
            });
        }
    });
    let dead = queue.dead_letters().unwrap();
    let mut ends = acked.into_inner().unwrap();
    assert!(ends.values().all(|&times| times == 1));
    for letter in dead.pop_batch(usize::MAX).unwrap() {
        let n = u64::from_le_bytes(letter[..].try_into().unwrap());
        assert!(is_poison(n) && ends.insert(n, 1).is_none(), "{n} ended twice");
        assert_eq!(letter.dead_letter().unwrap().attempts(), 3);
        assert_eq!(letter.header("n"), Some(n.to_string().as_bytes()));
    }
    assert_eq!(ends.len() as u64, COUNT);
    let stats = queue.stats();
    assert_eq!((stats.ready(), stats.in_flight(), stats.delayed(), stats.dying()), (0, 0, 0, 0));
    let ended = stats.acked() + stats.dead_lettered();
    assert_eq!((ended, stats.duplicated(), stats.out_of_order()), (COUNT, 0, 0), "{stats:?}");
}

#[test]
fn a_walk_goes_on_through_everything() {
    let dir = directory();
    let queue = fast().segment_bytes(65_536).open(dir.path()).unwrap();
    queue.push_batch((0..2000u64).map(|n| n.to_le_bytes().repeat(20))).unwrap();
    let mut seen = Vec::new();
    let mut walk = queue.iter();
    while let Some(message) = walk.next().transpose().unwrap() {
        seen.push(u64::from(message.seq()));
        // Acked before it, taken behind it, and new ones: segments go meanwhile.
        for job in queue.pop_batch(3).unwrap() {
            if u64::from(job.seq()) % 5 == 0 { drop(job) } else { job.ack().unwrap() }
        }
        queue.push([9; 100].as_slice()).unwrap();
    }
    assert!(seen.is_sorted_by(|a, b| a < b) && seen.len() > 300, "{}", seen.len());
    assert!(seen.iter().all(|&seq| seq <= 2000), "what came later is not shown");
    assert!(walk.next().is_none());
    let waiting = queue.iter().count() as u64;
    assert_eq!(waiting, queue.len());
}

/// The field's figures are what their docs say.
#[test]
fn figures_follow_their_formulas() {
    let (clock, disk) = manual();
    let queue = on(&clock, &disk).max_bytes(4 << 20).open("queue").unwrap();
    let empty = queue.stats();
    assert!((empty.reliability() - 1.0).abs() < 1e-9 && empty.push_loss_rate() < 1e-9);
    assert_eq!((empty.oldest(), empty.throughput() < 1e-9), (None, true));
    queue.push("a").unwrap();
    clock.advance(ms(2000));
    queue.push("b").unwrap();
    assert_eq!(queue.stats().oldest(), Some(ms(2000)));
    let job = queue.pop().unwrap().unwrap();
    clock.advance(ms(2000));
    job.ack().unwrap();
    let stats = queue.stats();
    assert_eq!((stats.uptime(), stats.oldest()), (ms(4000), Some(ms(2000))));
    assert!((stats.throughput() - 0.25).abs() < 1e-9);
    assert_eq!((stats.waiting_time().count(), stats.waiting_time().mean()), (1, ms(2000)));
    assert_eq!((stats.latency(), stats.push_time().count()), (ms(2000), 2));
    assert_eq!(stats.processing_time().count(), 1);
    let parts = stats.push_time().mean() + ms(2000) + stats.processing_time().mean();
    assert_eq!(stats.processing_delay(), parts);
    let used = stats.disk_bytes() as f64 / f64::from(4 << 20);
    assert!((stats.storage_use().unwrap() - used).abs() < 1e-9 && used > 0.0);
    assert!(stats.live_bytes() > 0 && stats.reclaimable_bytes() > 0);
    assert!(queue.push(vec![0; 20 << 20]).is_err());
    assert!((queue.stats().push_loss_rate() - 1.0 / 3.0).abs() < 1e-9);
}
