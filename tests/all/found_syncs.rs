//! Found faults: what follows from a failed sync, and from a background thread that panicked.

use super::found_hooks::{
    Gate, LIMIT, Way, by_hand, confirmed_after_failure, is_segment, is_temporary, large, until,
};
use super::found_support::call;
use crate::support::watched::{Call, Op, Watched};
use keepq::fault::{MemoryStorage, Storage};
use keepq::{Compaction, Delivery, Durability, Error, Message, Options, Overflow, Queue, Seq};
use std::io::{Error as IoError, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Ten segments with six messages each, all of them durable, after a kill.
fn ten_segments() -> MemoryStorage {
    let disk = Arc::new(MemoryStorage::new());
    let queue = by_hand(disk.clone()).durability(Durability::Os).open("queue").unwrap();
    for number in 0..60 {
        queue.push(large(number)).unwrap();
    }
    queue.sync().unwrap();
    disk.killed()
}

/// What maps more files than may be open, so that others are unmapped.
const UNMAPPING: [Way; 8] = [
    ("pop", |queue| {
        let jobs: Vec<Delivery> = (0..60).map_while(|_| queue.pop().ok().flatten()).collect();
        for job in jobs {
            drop(job.ack());
        }
    }),
    ("pop_batch", |queue| drop(queue.pop_batch(usize::MAX))),
    ("ack_batch", |queue| drop(queue.ack_batch(queue.pop_batch(60).unwrap_or_default()))),
    ("ack in any order", |queue| {
        let mut jobs = queue.pop_batch(60).unwrap_or_default();
        while !jobs.is_empty() {
            drop(jobs.swap_remove(jobs.len() / 2).ack());
        }
    }),
    ("peek and iter", |queue| {
        drop(queue.peek());
        assert!(queue.iter().count() <= 61);
    }),
    ("is_acked", |queue| (1..=60).for_each(|seq| drop(queue.is_acked(seq.into())))),
    ("get", |queue| (1..=60).rev().for_each(|seq| drop(queue.get(seq.into())))),
    ("purge", |queue| drop(queue.purge())),
];

/// A consumer took messages out of more files than may be open, so keepq synced and unmapped some
/// of the files. One of those syncs failed, and keepq dropped the result: every later push and sync
/// said `Ok`, although the disk had lost the answers in that file. (A system reports an error of
/// writing back once. The next sync of the same file says `Ok`.)
#[test]
fn a_failed_sync_of_a_file_that_is_unmapped_is_not_dropped() {
    let (disk, mut wrong) = (ten_segments(), Vec::new());
    for (name, way) in UNMAPPING {
        let storage = Watched::around(Arc::new(disk.killed()));
        let options = by_hand(storage.clone()).durability(Durability::Os).open_segments(1);
        let queue = options.open("queue").unwrap();
        queue.push("the newest").unwrap();
        queue.sync().unwrap();
        let has_failed = Arc::new(AtomicBool::new(false));
        let fails_once = Arc::clone(&has_failed);
        storage.rule(move |call| {
            // A file in the making costs no more than itself.
            let counts = call.op == Op::Sync && !call.name.contains(".tmp");
            let is_first = counts && !fails_once.swap(true, Ordering::SeqCst);
            if is_first { Err(ErrorKind::Other.into()) } else { Ok(()) }
        });
        way(&queue);
        if !has_failed.load(Ordering::SeqCst) {
            // No file has been synced so far.
            drop(queue.maintain());
            drop(queue.sync());
            drop(queue.push(Message::new("durable").durability(Durability::Always)));
        }
        assert!(has_failed.load(Ordering::SeqCst), "{name}: nothing was synced");
        wrong.extend(confirmed_after_failure(&queue).map(|said| format!("{name}: {said}")));
    }
    assert!(wrong.is_empty(), "after a failed sync: {wrong:#?}");
}

/// A queue that was killed: it has sparse files, a last file without a seal, delayed messages, and
/// one message on its way to the dead letters.
fn half_done() -> MemoryStorage {
    let disk = Arc::new(MemoryStorage::new());
    let queue = workshop(disk.clone()).durability(Durability::Os).open("queue").unwrap();
    for number in 0..100u64 {
        let message = Message::new(vec![number as u8; 4000]);
        let is_delayed = number % 50 == 7;
        let hour = Duration::from_secs(3600);
        queue.push(if is_delayed { message.delay(hour) } else { message }).unwrap();
    }
    let mut jobs = queue.pop_batch(80).unwrap();
    let left: Vec<Delivery> = (0..6).map(|n| jobs.remove(n * 11)).collect();
    jobs.pop().unwrap().reject("no").unwrap();
    queue.ack_batch(jobs).unwrap();
    drop(left);
    disk.killed()
}

fn workshop(disk: Arc<dyn Storage>) -> Options {
    let compaction = Compaction::default().idle(Duration::ZERO);
    by_hand(disk).open_segments(1).compaction(compaction)
}

/// Work that makes syncs of every kind. An error does not matter here: it shows afterwards.
const STEPS: [Way; 12] = [
    ("push", |queue| (0..3).for_each(|_| drop(queue.push(vec![1; 4000])))),
    ("pop and answer", |queue| {
        let jobs = queue.pop_batch(20).unwrap_or_default();
        for (n, job) in jobs.into_iter().enumerate() {
            drop(if n % 3 == 0 { job.nack() } else { job.ack() });
        }
    }),
    ("maintain", |queue| drop(queue.maintain())),
    ("push without waiting", |queue| {
        for _ in 0..50 {
            drop(queue.push(Message::new(vec![2; 4000]).durability(Durability::Os)));
        }
    }),
    ("pop out of many files", |queue| {
        let mut jobs = queue.pop_batch(45).unwrap_or_default();
        while let Some(job) = jobs.pop() {
            drop(job.ack());
        }
    }),
    ("sync", |queue| drop(queue.sync())),
    ("maintain again", |queue| drop(queue.maintain())),
    ("push into recycled files", |queue| (0..30).for_each(|_| drop(queue.push(vec![3; 4000])))),
    ("compact", |queue| {
        let mut jobs = queue.pop_batch(30).unwrap_or_default();
        let left = jobs.split_off(jobs.len().min(28));
        drop(queue.ack_batch(jobs));
        drop(queue.compact());
        drop(left);
    }),
    ("reject", |queue| {
        for job in queue.pop_batch(2).unwrap_or_default() {
            drop(job.reject("no"));
        }
        drop(queue.maintain());
    }),
    ("redrive", |queue| drop(queue.redrive(9))),
    ("purge and maintain", |queue| {
        drop(queue.purge());
        drop(queue.maintain());
    }),
];

/// What a failed sync was of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    /// A file with messages or their states, or CHECKPOINT.
    InUse,
    /// A file that holds nothing yet: a failed sync may cost this file only.
    InTheMaking,
    Directory,
}

#[derive(Clone, Debug)]
struct Failure {
    kind: Kind,
    op: Op,
    name: String,
}

/// A storage that fails sync number `at`, and what that sync was of.
fn failing(disk: &Arc<MemoryStorage>, at: u64) -> (Arc<Watched>, Arc<Mutex<Option<Failure>>>) {
    let storage = Watched::around(disk.clone());
    let failure: Arc<Mutex<Option<Failure>>> = Arc::default();
    let (told, disk, syncs) = (Arc::clone(&failure), Arc::clone(disk), AtomicU64::new(0));
    storage.rule(move |Call { op, name, .. }| {
        if !op.is_sync() || syncs.fetch_add(1, Ordering::SeqCst) != at {
            return Ok(());
        }
        // A segment has an activation once a message was pushed to it: see the format page. A file
        // that is no longer there under a temporary name has its own name.
        let is_unused = |bytes: &Vec<u8>| is_segment(name) && bytes[512..532] == [0; 20];
        let is_in_the_making =
            disk.read(name).is_some_and(|bytes| is_temporary(name) || is_unused(&bytes));
        let kind = match (op, is_in_the_making) {
            (Op::Sync, true) => Kind::InTheMaking,
            (Op::Sync, false) => Kind::InUse,
            _ => Kind::Directory,
        };
        *told.lock().unwrap() = Some(Failure { kind, op, name: name.to_string() });
        Err(IoError::other("the disk does not answer"))
    });
    (storage, failure)
}

/// There were places where keepq took a failed sync for an ordinary error of one call, or dropped
/// it: of a directory, of a file that was unmapped. The next push was confirmed on a disk that had
/// said that it could not keep it. Wherever a sync is made, of files with messages, of CHECKPOINT
/// or of a directory, in the queue or in its dead letters: after the first failed one, every push
/// and every sync is `Poisoned`, and so is `close`. Only a file in the making may be given up
/// instead.
#[test]
fn after_any_failed_sync_no_push_and_no_sync_is_confirmed() {
    let prepared = half_done();
    let (mut kinds, mut wrong) = (Vec::new(), Vec::new());
    for at in 0.. {
        let disk = Arc::new(prepared.killed());
        let (storage, failure) = failing(&disk, at);
        let failed = || failure.lock().unwrap().clone();
        let queue = workshop(storage).open("queue").unwrap();
        let dead = queue.dead_letters();
        let mut last = "dead_letters";
        for (name, step) in STEPS {
            if failed().is_some() {
                break;
            }
            last = name;
            step(&queue);
        }
        // Another test looks at the syncs of `close`.
        let Some(Failure { kind, op, name }) = failed() else { break };
        let context = format!("sync {at} ({op:?} of {name:?}) in {last}");
        let owner = if name.starts_with("dead/") { dead } else { Ok(queue.clone()) };
        // If there is none, an error of `dead_letters` has told of the failed sync.
        let Ok(owner) = owner else { continue };
        kinds.push(kind);
        if kind == Kind::InTheMaking && owner.push("into another file").is_ok() {
            let is_there = disk.read(&name).is_some();
            wrong.extend(is_there.then(|| format!("{context}: the file is still there")));
            continue;
        }
        let said = confirmed_after_failure(&owner);
        let closed = queue.close();
        let is_told = matches!(closed, Err(Error::Poisoned { .. }));
        let said = said.or_else(|| (!is_told).then(|| format!("close said {closed:?}")));
        wrong.extend(said.map(|said| format!("{context}: {said}")));
    }
    assert!(wrong.is_empty(), "of failed syncs: {wrong:#?}");
    for kind in [Kind::InUse, Kind::InTheMaking, Kind::Directory] {
        let count = kinds.iter().filter(|&&one| one == kind).count();
        assert!(count > 5, "{count} of kind {kind:?}");
    }
}

/// `close` makes the last syncs of a run. If any of them fails, `close` says so: there is no later
/// call that could.
#[test]
fn close_tells_of_each_of_its_failed_syncs() {
    let prepared = half_done();
    let mut told = 0;
    for at in 0.. {
        let storage = Watched::around(Arc::new(prepared.killed()));
        let options = workshop(storage.clone()).durability(Durability::Os);
        let queue = options.open("queue").unwrap();
        queue.push(vec![1; 4000]).unwrap();
        queue.pop().unwrap().unwrap().reject("no").unwrap();
        queue.pop().unwrap().unwrap().ack().unwrap();
        let syncs = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&syncs);
        storage.rule(move |call| {
            let is_it = call.op.is_sync() && counted.fetch_add(1, Ordering::SeqCst) == at;
            if is_it { Err(ErrorKind::Other.into()) } else { Ok(()) }
        });
        let closed = queue.close();
        if syncs.load(Ordering::SeqCst) <= at {
            closed.unwrap();
            break;
        }
        assert!(closed.is_err(), "sync {at} of close failed, and close said {closed:?}");
        told += 1;
    }
    assert!(told > 3, "{told} syncs in close");
}

/// A thread waited for a message, and another one for room, when the background panicked that
/// watched the time at which the messages expire: both slept for ever.
#[test]
fn the_next_time_is_watched_though_the_background_thread_panicked() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let options = Queue::options().segment_bytes(65_536).durability(Durability::Os);
    let options = options.message_ttl(Duration::from_millis(300)).max_messages(3);
    let options = options.overflow(Overflow::Block).storage(storage.clone());
    let queue = options.open("queue").unwrap();
    let (hold, panics) = (Gate::closed(), Arc::new(AtomicBool::new(true)));
    let (test, gate) = (thread::current().id(), hold.clone());
    storage.rule(move |call| {
        let is_it = call.op == Op::Create && thread::current().id() != test;
        if is_it && panics.swap(false, Ordering::SeqCst) {
            gate.pass();
            // A panic that prints nothing.
            std::panic::resume_unwind(Box::new("the storage gave up"));
        }
        Ok(())
    });
    // More than a quarter of a segment: the background prepares the next one.
    let seqs: Vec<Seq> = (0..3).map(|number| queue.push(large(number)).unwrap()).collect();
    until("the background makes a file", || hold.has_waiting());
    let (settled, pushed) = (queue.clone(), queue.clone());
    let settled = call(move || settled.wait_acked(seqs[2], LIMIT));
    let pushed = call(move || pushed.push(large(3)));
    settled.asleep();
    pushed.asleep();
    hold.open();
    assert!(settled.result("the wait for a message that expires").unwrap());
    pushed.result("the push that waits for room").unwrap();
}

/// The background thread panicked in a call to the storage, and keepq went on as if it was running:
/// messages that died waited for it and never reached the dead letters, and `stats` told of no
/// error.
#[test]
fn a_background_thread_that_panicked_is_told_of_and_not_waited_for() {
    let storage = Watched::around(Arc::new(MemoryStorage::new()));
    let options = Queue::options().segment_bytes(65_536).durability(Durability::Os);
    let queue = options.storage(storage.clone()).open("queue").unwrap();
    let (test, has_panicked) = (thread::current().id(), Arc::new(AtomicBool::new(false)));
    let panics_once = Arc::clone(&has_panicked);
    storage.rule(move |call| {
        let is_background = thread::current().id() != test;
        let is_it = is_background && call.op == Op::Create;
        if is_it && !panics_once.swap(true, Ordering::SeqCst) {
            // A panic that prints nothing.
            std::panic::resume_unwind(Box::new("the storage gave up"));
        }
        Ok(())
    });
    // More than a quarter of a segment: the background prepares the next one.
    (0..3).for_each(|number| assert!(queue.push(large(number)).is_ok()));
    until("the background makes a file", || has_panicked.load(Ordering::SeqCst));
    until("stats tell of the panic", || queue.stats().last_background_error().is_some());
    // Where there is no background, `pop` moves messages to the dead letters.
    queue.pop().unwrap().unwrap().reject("no").unwrap();
    until("the rejected message is a dead letter", || {
        if let Some(job) = queue.pop().unwrap() {
            job.release().unwrap();
        }
        let stats = queue.stats();
        (stats.dying(), stats.dead_letters()) == (0, 1)
    });
    // Pushes make their files by themselves.
    (3..30).for_each(|number| assert!(queue.push(large(number)).is_ok()));
    assert_eq!(queue.dead_letters().unwrap().pop().unwrap().unwrap()[..], large(0));
    queue.close().unwrap();
}
