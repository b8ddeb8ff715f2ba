//! Dead letters: what they say, and that a message is in one place at a time, whatever fails or is
//! killed.

use crate::support::{DEADLINE, Dice, cases};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, ManualClock, MemoryStorage, Storage};
use keepq::{Compaction, DeathCause, Error, Expired, Message, Options, Queue};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn on(storage: Arc<dyn Storage>) -> Options {
    let options = Queue::options().segment_bytes(65_536).background(false).storage(storage);
    options.compaction(Compaction::default().idle(Duration::ZERO))
}

#[test]
fn a_dead_letter_tells_where_it_comes_from() {
    let second = Duration::from_secs(1);
    let clock = Arc::new(ManualClock::new(UNIX_EPOCH + 1_000_000 * second));
    let options = on(Arc::new(MemoryStorage::new())).clock(clock.clone()).max_attempts(2);
    let queue = options.expired(Expired::DeadLetter).open("queue").unwrap();
    queue.push("fine").unwrap();
    queue.pop().unwrap().unwrap().ack().unwrap();
    queue.push(Message::new("rejected").header("kind", "a").header("more", [1, 2])).unwrap();
    queue.push(Message::new("failed").header("kind", "b")).unwrap();
    queue.push(Message::new("late").ttl(second)).unwrap();
    clock.advance(2 * second);
    let job = queue.pop().unwrap().unwrap();
    job.reject("bad amount: \u{20ac} -1").unwrap();
    for _ in 0..2 {
        queue.pop().unwrap().unwrap().nack().unwrap();
    }
    assert!(queue.pop().unwrap().is_none());
    let stats = queue.stats();
    assert_eq!((stats.dead_letters(), stats.dead_lettered(), stats.dying()), (3, 3, 0));
    assert_eq!((stats.rejected(), stats.expired(), stats.nacked()), (1, 1, 2));
    let dead = queue.dead_letters().unwrap();
    let told: Vec<_> = dead
        .iter()
        .map(|letter| {
            let letter = letter.unwrap();
            let death = letter.dead_letter().unwrap();
            assert_eq!(death.pushed_at(), UNIX_EPOCH + 1_000_000 * second);
            assert_eq!(letter.pushed_at(), UNIX_EPOCH + 1_000_002 * second);
            let kind = letter.header("kind").map(<[u8]>::to_vec);
            let says = (death.cause(), death.attempts(), death.reason().to_string());
            (u64::from(death.seq()), letter.to_vec(), kind, says)
        })
        .collect();
    let expected = [
        (2, "rejected", Some("a"), (DeathCause::Rejected, 1, "bad amount: \u{20ac} -1")),
        (3, "failed", Some("b"), (DeathCause::Attempts, 2, "")),
        (4, "late", None, (DeathCause::Expired, 0, "")),
    ];
    assert_eq!(
        told,
        expected.map(|(seq, text, kind, (cause, attempts, reason))| {
            let kind = kind.map(|kind| kind.as_bytes().to_vec());
            (seq, text.as_bytes().to_vec(), kind, (cause, attempts, reason.to_string()))
        })
    );
    for seq in 1..=4 {
        assert!(queue.is_acked(seq.into()).unwrap(), "{seq} is no longer owed here");
    }
    // It is a queue: what is given back comes again, without end.
    for attempt in 1..=30 {
        let letter = dead.pop().unwrap().unwrap();
        assert_eq!((letter.attempts(), &letter[..]), (attempt, &b"rejected"[..]));
        letter.nack().unwrap();
    }
    assert!(matches!(dead.dead_letters(), Err(Error::Disabled { .. })));
    dead.pop().unwrap().unwrap().reject("twice").unwrap();
    assert_eq!((dead.len(), dead.stats().dropped()), (2, 1));
    assert_eq!(queue.redrive(9).unwrap(), 2);
    let again = queue.pop().unwrap().unwrap();
    assert_eq!((&again[..], again.attempts()), (&b"failed"[..], 1));
    assert_eq!((again.header("kind"), again.dead_letter()), (Some(&b"b"[..]), None));
    assert!(u64::from(again.seq()) > 4);
}

#[test]
fn a_message_of_any_size_can_die() {
    let dir = directory();
    let queue = Queue::options().max_message_bytes(1 << 20).open(dir.path()).unwrap();
    let name = "n".repeat(255);
    let largest = Message::new(vec![7; 900_000]).header(&name, vec![1; 64_000 - 4 - 255]);
    let later = Duration::from_millis(1);
    let smallest = Message::new("").delay(later).ttl(Duration::from_secs(99)).transient();
    // One after the other: what is due goes before what was never handed out.
    for message in [largest, smallest] {
        queue.push(message).unwrap();
        queue.pop_wait().unwrap().reject("r".repeat(5000)).unwrap();
    }
    queue.maintain().unwrap();
    queue.close().unwrap();
    let queue = Queue::open(dir.path()).unwrap();
    let dead = queue.dead_letters().unwrap();
    let [large, small] = <[_; 2]>::try_from(dead.pop_batch(9).unwrap()).unwrap();
    assert_eq!((large.len(), large.header(&name).unwrap().len()), (900_000, 63_741));
    assert_eq!((small.len(), small.dead_letter().unwrap().reason().len()), (0, 1024));
}

#[test]
fn one_queue_however_often_it_is_asked_for() {
    let dir = directory();
    let queue = Queue::open(dir.path()).unwrap();
    assert!(!dir.path().join("dead").exists(), "opened when it is first needed");
    let dead = [0; 3].map(|_| queue.dead_letters().unwrap());
    assert!(matches!(Queue::open(dir.path().join("dead")), Err(Error::Locked { .. })));
    queue.push("x").unwrap();
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    let letter = dead[0].pop_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!((dead[1].in_flight(), dead[2].is_empty()), (1, true));
    letter.ack().unwrap();
    // A handle of the dead letters keeps both open; closing one of them is for all.
    drop(queue);
    assert!(matches!(Queue::open(dir.path()), Err(Error::Locked { .. })));
    drop(dead);
    let queue = Queue::open(dir.path()).unwrap();
    let dead = queue.dead_letters().unwrap();
    assert!(dead.is_empty());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| dead.pop_wait().map(drop));
        std::thread::sleep(Duration::from_millis(20));
        queue.clone().close().unwrap();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Closed)));
    });
    assert!(matches!(dead.push("x"), Err(Error::Closed)));
    assert!(Queue::open(dir.path()).is_ok());
}

/// While the dead letters refuse, a message is neither handed out nor lost; it is moved once they
/// do not.
#[test]
fn what_cannot_be_moved_is_parked() {
    let memory = Arc::new(MemoryStorage::with_capacity(100_000));
    let queue = on(memory).max_attempts(1).open("queue").unwrap();
    queue.push_batch(["a", "b", "c"]).unwrap();
    for _ in 0..2 {
        drop(queue.pop().unwrap().unwrap());
    }
    let c = queue.pop().unwrap().unwrap();
    assert!(queue.pop().unwrap().is_none());
    assert!(matches!(queue.maintain(), Err(Error::StorageFull { .. })));
    let stats = queue.stats();
    assert_eq!(
        (stats.dying(), stats.in_flight(), stats.ready(), stats.dead_letters()),
        (2, 1, 0, 0)
    );
    assert!(stats.last_background_error().is_some());
    assert!(!queue.is_acked(1.into()).unwrap(), "it is still owed");
    c.ack().unwrap();
    drop(queue);
    // In a process of its own, with room.
    let faults = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
    let queue = on(faults.clone()).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    faults.plan(FaultPlan::FailAt { at: 2, error: ErrorKind::PermissionDenied, lasting: true });
    queue.pop().unwrap().unwrap().reject("one").unwrap();
    assert_eq!((queue.stats().dying(), queue.in_flight()), (1, 0));
    let b = queue.pop().unwrap().unwrap();
    assert_eq!(&b[..], b"b", "the others are handed out");
    faults.plan(FaultPlan::None);
    b.ack().unwrap();
    assert_eq!(queue.dead_letters().unwrap().pop().unwrap().unwrap().to_vec(), b"a");
    assert_eq!((queue.stats().dying(), queue.stats().dead_lettered()), (0, 1));
}

/// What a run does that moves messages: fails some, rejects some, expires none.
fn work(queue: &Queue, run: u8, kept: &mut BTreeSet<[u8; 2]>) -> Result<(), Error> {
    for n in 0..6u8 {
        queue.push([run, n].repeat(20))?;
        kept.insert([run, n]);
    }
    while let Some(job) = queue.pop()? {
        let message = [job[0], job[1]];
        match job[1] {
            0 | 3 => job.reject("no good")?,
            1 | 4 => job.nack()?,
            _ => {
                // From here on it may be settled, told or not.
                kept.remove(&message);
                job.ack()?;
            }
        }
        assert!(queue.stats().dying() <= 6);
    }
    queue.maintain()
}

/// How often each message is here or there.
fn places(queue: &Queue) -> BTreeMap<[u8; 2], u32> {
    let mut places = BTreeMap::new();
    let dead = queue.dead_letters().unwrap();
    for job in queue.iter().chain(&dead) {
        let job = job.unwrap();
        *places.entry([job[0], job[1]]).or_default() += 1;
    }
    places
}

/// A kill at every operation, and once more at every operation of what goes on after it: each
/// message is in one place. A power cut: in one at least, and once in the dead letters when it dies
/// again.
#[test]
fn a_crash_at_every_operation_leaves_each_message_in_one_place() {
    let least = cases("KEEPQ_BURIAL_CRASHES", 400);
    let mut crashes = 0;
    for seed in 7.. {
        crashes += crash_at_every_operation(&mut Dice(seed));
        if crashes >= least {
            break;
        }
    }
}

/// Tells how many operations there are.
fn crash_at_every_operation(dice: &mut Dice) -> u64 {
    let options = |storage: Arc<dyn Storage>| on(storage).max_attempts(2);
    let mut at = 0;
    loop {
        let memory = Arc::new(MemoryStorage::new());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        faults.plan(FaultPlan::CrashAt { at });
        let mut kept = BTreeSet::new();
        let opened = options(faults.clone()).open("queue");
        let told = opened.and_then(|queue| work(&queue, 1, &mut kept));
        if told.is_ok() {
            break;
        }
        at += 1;
        let mut disk = Arc::new(memory.killed());
        if dice.one_in(2) {
            let again = Arc::new(FaultStorage::new(disk.clone()));
            again.plan(FaultPlan::CrashAt { at: dice.below(60) });
            let opened = options(again).open("queue");
            opened.and_then(|queue| work(&queue, 2, &mut kept)).ok();
            disk = Arc::new(disk.killed());
        }
        let is_cut = dice.one_in(3);
        if is_cut {
            disk = Arc::new(disk.power_cut(CrashImage::Mixed(dice.next())));
        }
        let queue = options(disk).open("queue").unwrap();
        let before = places(&queue);
        if !is_cut {
            assert!(before.values().all(|&times| times == 1), "crash at {at}: {before:?}");
        }
        let is_here = |message: &[u8; 2]| before.contains_key(message);
        assert!(kept.iter().all(is_here), "crash at {at}: {before:?} without one of {kept:?}");
        while let Some(job) = queue.pop().unwrap() {
            job.reject("all of it").unwrap();
        }
        queue.maintain().unwrap();
        assert_eq!((queue.stats().dying(), queue.len()), (0, 0), "crash at {at}");
        let mut origins = BTreeMap::new();
        for letter in &queue.dead_letters().unwrap() {
            let seq = letter.unwrap().dead_letter().unwrap().seq();
            *origins.entry(seq).or_insert(0) += 1;
        }
        assert!(origins.values().all(|&times| times == 1), "crash at {at}: {origins:?}");
    }
    assert!(at > 50, "{at} operations");
    at
}

/// The same with syncs that fail: the queue is poisoned, and nothing is in two places.
#[test]
fn a_failed_sync_of_the_dead_letters_parks_what_dies() {
    let memory = Arc::new(MemoryStorage::new());
    let faults = Arc::new(FaultStorage::new(memory.clone()));
    let queue = on(faults.clone()).open("queue").unwrap();
    queue.push_batch(["a", "b"]).unwrap();
    queue.pop().unwrap().unwrap().reject("one").unwrap();
    faults.plan(FaultPlan::FailSyncs { error: ErrorKind::TimedOut });
    let b = queue.pop().unwrap().unwrap();
    assert_eq!(queue.stats().dying(), 1, "it is there, and nobody knows whether for good");
    b.reject("two").unwrap();
    assert!(queue.pop().unwrap().is_none());
    assert!(queue.maintain().is_err());
    assert_eq!((queue.stats().dying(), queue.len()), (2, 0));
    drop(queue);
    let queue = on(Arc::new(memory.killed())).open("queue").unwrap();
    queue.maintain().unwrap();
    let dead: Vec<_> = queue.dead_letters().unwrap().iter().map(|l| l.unwrap().to_vec()).collect();
    assert_eq!(dead, [b"a", b"b"]);
    assert_eq!((queue.len(), queue.stats().dying()), (0, 0));
}
