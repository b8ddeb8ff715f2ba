//! Compaction while everything goes on, without room, and over damage.
//!
//! `KEEPQ_DAMAGE_CASES` sets how many bits are flipped in a compacted segment (default 400).

use crate::support::sparse::{ack_most, number, on, payload};
use crate::support::{Dice, OverAtEnd, cases};
use keepq::fault::{ManualClock, MemoryStorage, Storage};
use keepq::{Compaction, DamageKind, Delivery, Durability, Error, Message, Queue};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn everything_goes_on_through_it() {
    let storage = Arc::new(MemoryStorage::new());
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let options = || on(storage.clone()).clock(clock.clone()).visibility_timeout(ms(1000));
    let queue = options().open("memory").unwrap();
    for n in 0..300 {
        let message = Message::new(payload(n)).header("n", n.to_le_bytes());
        let message = if n % 50 == 7 { message.delay(ms(500 + n)) } else { message };
        queue.push(message).unwrap();
    }
    let mut left: BTreeMap<u64, Delivery> =
        ack_most(&queue, 280, 20).into_iter().map(|job| (number(&job), job)).collect();
    assert_eq!(left.len(), 15);
    // In flight; given back at once, for later, uncounted; rejected; its lease has run out.
    left.remove(&20).unwrap().nack().unwrap();
    left.remove(&40).unwrap().nack_after(ms(700)).unwrap();
    left.remove(&60).unwrap().release().unwrap();
    left.remove(&80).unwrap().reject("no").unwrap();
    let mut walk = queue.iter();
    let first = walk.next().unwrap().unwrap();
    assert_eq!((number(&first), first.attempts()), (7, 0));
    let before = queue.stats();
    let done = queue.compact().unwrap();
    assert!(
        done.copies() >= 1 && done.messages() >= 15 && done.freed_bytes() > 100_000,
        "{done:?}"
    );
    let after = queue.stats();
    assert_eq!(
        (after.ready(), after.in_flight(), after.delayed(), after.dying()),
        (before.ready(), before.in_flight(), before.delayed(), before.dying())
    );
    assert!(after.disk_bytes() + done.freed_bytes() == before.disk_bytes(), "{before:?} {after:?}");
    // The walk goes on where it was.
    let rest: Vec<u64> = walk.map(|message| number(&message.unwrap())).collect();
    let waiting = [20, 40, 57, 60, 107, 157, 207, 257].into_iter().chain(286..300);
    assert_eq!(rest, waiting.collect::<Vec<_>>());
    assert_eq!(number(&queue.get(41.into()).unwrap().unwrap()), 40);
    assert!(queue.get(42.into()).unwrap().is_none() && queue.is_acked(42.into()).unwrap());
    assert!(!queue.is_acked(101.into()).unwrap());
    // Answers find their messages.
    left.remove(&100).unwrap().ack().unwrap();
    assert!(queue.is_acked(101.into()).unwrap());
    left.remove(&120).unwrap().nack().unwrap();
    left[&140].extend(ms(5000)).unwrap();
    clock.advance(ms(1100));
    // 160 and the others ran out, unless they were extended.
    let late = left.remove(&160).unwrap();
    let again: Vec<Delivery> = queue.pop_batch(usize::MAX).unwrap();
    let told: BTreeMap<u64, u32> = again.iter().map(|job| (number(job), job.attempts())).collect();
    let expected = [20, 40, 120, 160, 180, 200, 220, 240, 260, 280, 0].map(|n| (n, 2));
    let delayed = [7, 57, 107, 157, 207, 257, 60].into_iter().chain(286..300).map(|n| (n, 1));
    assert_eq!(told, expected.into_iter().chain(delayed).collect());
    assert!(matches!(late.ack(), Err(Error::LeaseExpired { .. })));
    for job in &again {
        assert_eq!(&job[..], payload(number(job)));
        assert_eq!(job.header("n"), Some(&number(job).to_le_bytes()[..]));
        assert_eq!(u64::from(job.seq()), number(job) + 1);
    }
    assert_eq!(queue.dead_letters().unwrap().len(), 1);
    drop((again, left));
    queue.close().unwrap();
    let queue = options().open("memory").unwrap();
    assert_eq!(queue.len(), 33);
}

#[test]
fn switched_off_means_off() {
    let storage = Arc::new(MemoryStorage::new());
    let queue = on(storage.clone()).compaction(Compaction::off()).open("memory").unwrap();
    for n in 0..300 {
        queue.push(payload(n)).unwrap();
    }
    let left = ack_most(&queue, 280, 20);
    (0..3).for_each(|_| queue.maintain().unwrap());
    let before = queue.stats();
    assert_eq!(before.compacted_bytes(), 0);
    // Unless it is asked for.
    assert!(queue.compact().unwrap().copies() > 0);
    assert!(queue.stats().disk_bytes() < before.disk_bytes() / 2);
    drop(left);
}

#[test]
fn options_are_checked() {
    let wrong = [
        Compaction::default().live_percent(5),
        Compaction::default().live_percent(81),
        Compaction::default().max_rate(100),
        Compaction::default().idle(Duration::from_secs(100_000)),
    ];
    for compaction in wrong {
        let storage = Arc::new(MemoryStorage::new());
        let error = on(storage).compaction(compaction).open("memory").unwrap_err();
        assert!(matches!(error, Error::InvalidOption { .. }), "{error}");
    }
    let storage = Arc::new(MemoryStorage::new());
    assert!(on(storage).open_segments(0).open("memory").is_err());
}

const COUNT: u64 = 15_000;

fn small(number: u64) -> Vec<u8> {
    // Above 1 KiB a payload is copied outside of all locks.
    let mut payload = payload(number);
    payload.resize(8 + number as usize * 37 % 3000, number as u8);
    payload
}

/// What consumers did: how often each message was handed out, and which are acked.
#[derive(Default)]
struct Done {
    attempts: BTreeMap<u64, u32>,
    acked: BTreeSet<u64>,
}

/// Takes, answers and gives back in every way, until all are acked. Keeps some until a copy was
/// made: consumers may be so fast that none is worth it.
fn consume(queue: &Queue, seed: u64, done: &Mutex<Done>) {
    let mut dice = Dice(seed);
    let (mut held, mut kept) = (Vec::new(), Vec::new());
    while (done.lock().unwrap().acked.len() as u64) < COUNT {
        if queue.stats().compacted_bytes() > 0 {
            for (n, job) in kept.drain(..) {
                Delivery::ack(job).unwrap();
                assert!(done.lock().unwrap().acked.insert(n), "{n} twice");
            }
        }
        let Some(job) = queue.pop_timeout(ms(2)).unwrap() else {
            held.clear();
            continue;
        };
        let n = number(&job);
        assert_eq!(&job[..], small(n));
        let attempts = {
            let mut done = done.lock().unwrap();
            let count = done.attempts.entry(n).or_default();
            *count += 1;
            *count
        };
        assert_eq!(job.attempts(), attempts, "{n}");
        match dice.below(30) {
            0 => job.nack_after(ms(dice.below(4))).unwrap(),
            1 => held.push(job),
            2 => job.nack().unwrap(),
            3 => {
                done.lock().unwrap().attempts.insert(n, attempts - 1);
                job.release().unwrap();
            }
            _ if n.is_multiple_of(40) => kept.push((n, job)),
            _ => {
                job.ack().unwrap();
                assert!(done.lock().unwrap().acked.insert(n), "{n} twice");
            }
        }
        if held.len() > 50 {
            held.drain(..25).for_each(|job| drop(job.nack()));
        }
    }
}

/// Segments are moved under the hands of those who take, answer and look.
#[test]
fn consumers_and_compaction_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let options = Queue::options().segment_bytes(65_536).durability(Durability::Os);
    let compaction = Compaction::default().idle(ms(0)).live_percent(80).max_rate(1 << 40);
    let queue = options.compaction(compaction).max_attempts(0).open(dir.path()).unwrap();
    let is_over = AtomicBool::new(false);
    let done: Mutex<Done> = Mutex::default();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..COUNT).for_each(|n| assert!(queue.push(small(n)).is_ok())));
        let consumers = [1, 2, 3].map(|seed| {
            let (queue, done) = (&queue, &done);
            scope.spawn(move || consume(queue, seed, done))
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                queue.compact().unwrap();
                let numbers: Vec<u64> =
                    queue.iter().map(|message| u64::from(message.unwrap().seq())).collect();
                assert!(numbers.is_sorted_by(|a, b| a < b));
            }
        });
        let over = OverAtEnd(&is_over);
        let ended = consumers.map(std::thread::ScopedJoinHandle::join);
        drop(over);
        assert!(ended.iter().all(Result::is_ok));
    });
    let stats = queue.stats();
    let (compacted, taken) = (stats.compacted_bytes(), stats.taken_bytes());
    assert!(compacted > 0 && compacted <= 4 * taken, "{compacted} of {taken} bytes");
    assert_eq!((stats.ready(), stats.in_flight(), stats.delayed()), (0, 0, 0), "{stats:?}");
    assert_eq!((stats.duplicated(), stats.out_of_order(), stats.lost()), (0, 0, 0), "{stats:?}");
    assert!(queue.damage().is_empty());
}

/// A full disk: what can be freed without room is freed, and nothing half made stays.
#[test]
fn without_room_it_gives_up_cleanly() {
    let memory = Arc::new(MemoryStorage::with_capacity(10 * 65_536));
    let queue = on(memory.clone()).durability(Durability::Os).open("memory").unwrap();
    let mut count = 0;
    let error = loop {
        match queue.push(payload(count)) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::StorageFull { .. }), "{error}");
    // Half of each segment, but nothing of the first.
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let (left, settled): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| number(job) > 60 && number(job).is_multiple_of(3));
    queue.ack_batch(settled).unwrap();
    let names = || {
        let entries = memory.list().unwrap();
        entries.into_iter().filter(|entry| entry.name.contains(".tmp")).count()
    };
    let before = queue.stats().disk_bytes();
    queue.compact().unwrap();
    assert!(queue.stats().disk_bytes() < before / 2 + 65_536, "{:?}", queue.stats());
    assert_eq!(names(), 0);
    assert_eq!(queue.in_flight(), left.len() as u64);
    queue.push(payload(count)).unwrap();
    queue.ack_batch(left).unwrap();
    assert_eq!(queue.pop_batch(usize::MAX).unwrap().len(), 1);
}

#[test]
fn what_is_damaged_is_lost_and_told_of_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Queue::options().segment_bytes(65_536).background(false);
    {
        let queue = options().durability(Durability::Os).open(dir.path()).unwrap();
        for n in 0..200 {
            queue.push(payload(n)).unwrap();
        }
        drop(ack_most(&queue, 180, 10));
        queue.close().unwrap();
    }
    // One payload of a message that is left, and one that is settled.
    let mut hit = 0;
    for entry in fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        for n in [30u64, 33] {
            let payload = payload(n);
            if let Some(at) = bytes.windows(200).position(|window| window == &payload[..200]) {
                bytes[at + 100] ^= 1;
                hit += 1;
            }
        }
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(hit, 2);
    let queue = options().open(dir.path()).unwrap();
    assert_eq!(queue.compact().unwrap().copies(), 1);
    let damage = queue.damage();
    assert_eq!(damage.len(), 1, "{damage:?}");
    assert_eq!((damage[0].first_seq(), damage[0].last_seq()), (31.into(), 31.into()));
    assert_eq!(damage[0].kind(), DamageKind::Corrupt);
    assert_eq!(queue.stats().lost(), 1);
    assert!(matches!(queue.is_acked(31.into()), Err(Error::UnknownSeq { .. })));
    let found: Vec<u64> =
        queue.pop_batch(usize::MAX).unwrap().iter().map(|job| number(job)).collect();
    let expected = (0..180).step_by(10).filter(|&n| n != 30).chain(180..200);
    assert_eq!(found, expected.collect::<Vec<u64>>());
    queue.close().unwrap();
    let queue = options().open(dir.path()).unwrap();
    assert!(matches!(queue.is_acked(31.into()), Err(Error::UnknownSeq { .. })));
    assert!(queue.is_acked(34.into()).unwrap());
}

/// A flipped bit anywhere in a compacted segment costs one message at the most.
#[test]
fn a_flipped_bit_in_a_compacted_segment_costs_one_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q");
    let options = || Queue::options().segment_bytes(65_536).background(false);
    {
        let queue = options().durability(Durability::Os).open(&path).unwrap();
        for n in 0..400 {
            queue.push(&payload(n)[..100 + n as usize % 9]).unwrap();
        }
        for n in 0..60 {
            queue.push(vec![n; 2000]).unwrap();
        }
        let left = ack_most(&queue, 400, 20);
        assert_eq!(queue.compact().unwrap().messages(), 20);
        drop(left);
        queue.close().unwrap();
    }
    let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
    let copy = files.filter(|path| fs::metadata(path).unwrap().len() == 3 * 4096);
    let copy = copy.into_iter().next().unwrap();
    let whole = fs::read(&copy).unwrap();
    let mut dice = Dice(5);
    for case in 0..cases("KEEPQ_DAMAGE_CASES", 400) {
        let work = dir.path().join("work");
        fs::create_dir_all(&work).unwrap();
        for entry in fs::read_dir(&path).unwrap() {
            let from = entry.unwrap().path();
            if from.is_file() {
                fs::copy(&from, work.join(from.file_name().unwrap())).unwrap();
            }
        }
        // Where there is something: records, table, slots, header pages.
        let mut bytes = whole.clone();
        let places: Vec<usize> = (0..bytes.len()).filter(|&at| whole[at] != 0).collect();
        let at = places[dice.below(places.len() as u64) as usize];
        bytes[at] ^= 1 << dice.below(8);
        fs::write(work.join(copy.file_name().unwrap()), &bytes).unwrap();
        let queue = options().open(&work).unwrap();
        let jobs = queue.pop_batch(usize::MAX).unwrap();
        let found: Vec<u64> =
            jobs.iter().filter(|job| job.len() < 2000).map(|job| number(job)).collect();
        let context = format!("case {case}, byte {at}: {found:?} {:?}", queue.damage());
        assert!(found.len() >= 19 && found.is_sorted_by(|a, b| a < b), "{context}");
        assert!(found.iter().all(|n| n.is_multiple_of(20)), "{context}");
        assert!(found.len() == 20 || queue.damage().len() == 1, "{context}");
        assert_eq!(jobs.len() - found.len(), 60, "{context}");
        drop(jobs);
        queue.close().unwrap();
        fs::remove_dir_all(&work).unwrap();
    }
}
