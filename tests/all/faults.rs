//! An error at every storage operation, and full disks in memory.
//!
//! Whatever fails: nothing confirmed is lost, nothing refused appears, the queue says what failed,
//! and goes on where it can.

use crate::support::{Dice, cases};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage, Storage};
use keepq::{Compaction, Durability, Error, Message, Options, Queue};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

fn storage() -> (Arc<MemoryStorage>, Arc<FaultStorage>) {
    let memory = Arc::new(MemoryStorage::new());
    (memory.clone(), Arc::new(FaultStorage::new(memory)))
}

fn options(storage: Arc<dyn Storage>) -> Options {
    let options = Queue::options().segment_bytes(65_536).background(false).storage(storage);
    options.compaction(Compaction::default().idle(Duration::ZERO))
}

/// What calls returned `Ok` for, and what calls failed in a way that leaves it open.
#[derive(Default, Debug)]
struct Told {
    pushed: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    open: BTreeSet<u64>,
}

/// Pushes, pops and acks through errors; payloads are numbers.
fn work(queue: &Queue, dice: &mut Dice, told: &mut Told, next: &mut u64, sync_acks: bool) {
    for _ in 0..60 {
        match dice.below(8) {
            0..=3 => {
                let number = *next;
                *next += 1;
                let mut payload = number.to_le_bytes().to_vec();
                payload.resize(8 + dice.below(9000) as usize, 1);
                // Now and then along with one that does not outlive the run.
                let transient = dice.one_in(6).then(|| Message::new("").transient());
                let batch = transient.into_iter().chain([Message::new(payload)]);
                match queue.push_batch(batch) {
                    Ok(_) => told.pushed.insert(number),
                    Err(error) if error.is_indeterminate() => told.open.insert(number),
                    Err(_) => told.refused.insert(number),
                };
            }
            4..=6 => {
                let Ok(Some(job)) = queue.pop() else { continue };
                if job.is_empty() {
                    job.ack().ok();
                    continue;
                }
                let number = u64::from_le_bytes(job[..8].try_into().unwrap());
                assert!(!told.acked.contains(&number), "{number} came back after its ack");
                assert!(!told.refused.contains(&number), "{number} was refused and is here");
                match job.ack() {
                    Ok(()) => drop(told.acked.insert(number)),
                    Err(Error::Poisoned { .. }) => {
                        assert!(sync_acks);
                        told.acked.insert(number);
                    }
                    Err(_) => {}
                }
            }
            _ => drop(queue.maintain()),
        }
        let (len, in_flight) = (queue.len(), queue.in_flight());
        assert!(len <= 2 * *next && in_flight == 0, "len {len}, in flight {in_flight}");
    }
}

fn check(queue: &Queue, told: &Told, was_power_cut: bool, context: &str) {
    let found: BTreeSet<u64> = queue
        .pop_batch(usize::MAX)
        .unwrap()
        .iter()
        .map(|job| u64::from_le_bytes(job[..8].try_into().unwrap()))
        .collect();
    for number in &told.pushed {
        let is_here = found.contains(number) || told.acked.contains(number);
        assert!(is_here, "{context}: {number} was confirmed and is lost");
    }
    for number in &found {
        assert!(!told.refused.contains(number), "{context}: {number} was refused and is here");
        let is_acked = told.acked.contains(number) && !was_power_cut;
        assert!(!is_acked, "{context}: {number} came back after its ack");
    }
    assert!(queue.damage().is_empty(), "{context}: {:?}", queue.damage());
}

#[test]
fn an_error_at_every_operation() {
    let kinds = [(ErrorKind::Other, "EIO"), (ErrorKind::StorageFull, "ENOSPC")];
    for seed in 0..cases("KEEPQ_FAULT_SEEDS", 8) {
        for stores_can_fail in [false, true] {
            for (error, name) in kinds {
                for lasting in [false, true] {
                    for at in 0.. {
                        let context = format!(
                            "seed {seed} {name} at {at} lasting {lasting} writes {stores_can_fail}"
                        );
                        let (memory, faults) = storage();
                        faults.stores_can_fail(stores_can_fail);
                        let mut dice = Dice(seed);
                        let sync_acks = seed % 2 == 1;
                        let (mut told, mut next) = (Told::default(), 0);
                        let queue = options(faults.clone()).sync_acks(sync_acks);
                        let queue = queue.open("memory").unwrap();
                        faults.plan(FaultPlan::FailAt { at, error, lasting });
                        work(&queue, &mut dice, &mut told, &mut next, sync_acks);
                        let was_reached = faults.operations() > at;
                        faults.plan(FaultPlan::None);
                        work(&queue, &mut dice, &mut told, &mut next, sync_acks);
                        let before_close = (memory.killed(), memory.power_cut(CrashImage::Oldest));
                        let closed = queue.close();
                        let queue = options(memory).open("memory").unwrap();
                        check(&queue, &told, false, &format!("{context} closed {closed:?}"));
                        let (killed, cut) = before_close;
                        let killed = options(Arc::new(killed)).open("memory").unwrap();
                        check(&killed, &told, false, &format!("{context} killed"));
                        let cut = options(Arc::new(cut)).open("memory").unwrap();
                        check(&cut, &told, true, &format!("{context} power cut"));
                        if !was_reached {
                            break;
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn errors_while_opening_are_typed_and_harm_nothing() {
    let (memory, faults) = storage();
    let queue = options(faults.clone()).open("memory").unwrap();
    for number in 0..200u64 {
        queue.push([number.to_le_bytes(); 100].as_flattened()).unwrap();
    }
    std::mem::forget(queue);
    for at in 0..200 {
        let memory = Arc::new(memory.killed());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        faults.plan(FaultPlan::FailAt { at, error: ErrorKind::Other, lasting: true });
        if let Ok(queue) = options(faults).open("memory") {
            let pushed = queue.push(b"12345678");
            drop(queue);
            let queue = options(memory).open("memory").unwrap();
            let all = queue.pop_batch(usize::MAX).unwrap();
            let least = 200 + usize::from(pushed.is_ok());
            let is_open = pushed.as_ref().is_err_and(Error::is_indeterminate);
            let most = least + usize::from(is_open);
            assert!((least..=most).contains(&all.len()), "{at}: {pushed:?} {}", all.len());
        }
    }
}

/// The first failed sync is the last: nobody retries it and believes the answer.
#[test]
fn a_failed_sync_poisons() {
    for sync_acks in [false, true] {
        let (_memory, faults) = storage();
        let queue = options(faults.clone()).sync_acks(sync_acks).open("memory").unwrap();
        let kept = queue.push(b"kept").unwrap();
        let receipt = queue.submit(Message::new(b"waiting").durability(Durability::Os)).unwrap();
        faults.plan(FaultPlan::FailSyncs { error: ErrorKind::Other });
        let error = queue.push(b"open").unwrap_err();
        assert!(error.is_indeterminate(), "{error:?}");
        assert!(error.to_string().contains(".seg"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
        faults.plan(FaultPlan::None);
        let refused = queue.push(b"refused").unwrap_err();
        assert!(matches!(refused, Error::Poisoned { indeterminate: false, .. }));
        assert!(matches!(queue.sync(), Err(Error::Poisoned { .. })));
        assert!(matches!(receipt.wait(), Err(Error::Poisoned { .. })));
        assert!(matches!(queue.maintain(), Err(Error::Poisoned { .. })));
        let jobs = queue.pop_batch(10).unwrap();
        let payloads: Vec<&[u8]> = jobs.iter().map(|job| &job[..]).collect();
        assert_eq!(payloads, [&b"kept"[..], b"waiting", b"open"], "pop goes on");
        assert_eq!(jobs[0].seq(), kept);
        let mut jobs = jobs.into_iter();
        let ack = jobs.next().unwrap().ack();
        assert_eq!(matches!(ack, Err(Error::Poisoned { .. })), sync_acks, "{ack:?}");
        jobs.for_each(|job| job.nack().unwrap());
        assert_eq!(queue.len(), 2, "the ack was marked all the same");
        assert!(matches!(queue.close(), Err(Error::Poisoned { .. })));
        let queue = options(faults).open("memory").unwrap();
        assert_eq!(queue.len(), 2);
        queue.push(b"a new open believes in new syncs").unwrap();
    }
}

/// Everybody who waits for the same sync hears that it failed.
#[test]
fn a_failed_sync_wakes_every_waiter() {
    let (_memory, faults) = storage();
    let queue = options(faults.clone()).open("memory").unwrap();
    queue.push(b"first").unwrap();
    faults.plan(FaultPlan::FailSyncs { error: ErrorKind::Other });
    std::thread::scope(|scope| {
        let pushes: Vec<_> = (0..16).map(|_| scope.spawn(|| queue.push(b"x"))).collect();
        for push in pushes {
            assert!(matches!(push.join().unwrap(), Err(Error::Poisoned { .. })));
        }
    });
}

#[test]
fn a_full_disk_is_an_error_until_there_is_room() {
    let memory = Arc::new(MemoryStorage::with_capacity(400 << 10));
    let queue = options(memory.clone()).open("memory").unwrap();
    let mut pushed = 0;
    let full = loop {
        match queue.push([7; 5000].as_slice()) {
            Ok(_) => pushed += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::StorageFull { .. }), "{full}");
    assert!(!full.is_indeterminate());
    assert!(pushed > 40, "{pushed}");
    // What is smaller still fits, and a batch is refused whole.
    queue.push(b"small").unwrap();
    let batch = queue.push_batch([[1; 5000], [2; 5000]].iter());
    assert!(matches!(batch, Err(Error::StorageFull { .. })));
    for _ in 0..pushed {
        queue.pop().unwrap().unwrap().ack().unwrap();
    }
    assert_eq!(queue.len(), 1);
    // A push that needs room makes it, if there is something to let go.
    queue.push([7; 5000].as_slice()).unwrap();
    queue.maintain().unwrap();
    queue.close().unwrap();
    let queue = options(memory).open("memory").unwrap();
    assert_eq!(queue.pop_batch(9).unwrap().len(), 2);
    assert!(queue.recovery().is_clean());
}

/// A transient message stores its slot when it is pushed. Should the batch that it is in fail, the
/// slot must not stay behind for the message that comes to its place: that one would be taken for
/// transient, and be gone after the next open.
#[test]
fn a_batch_that_failed_leaves_no_state_behind() {
    let mut stood_behind = 0;
    for at in 0..24 {
        let (memory, faults) = storage();
        faults.stores_can_fail(true);
        let durability = if at % 2 == 0 { Durability::Always } else { Durability::Os };
        let at = at / 2;
        let queue = options(faults.clone()).durability(durability).open("memory").unwrap();
        queue.push(b"first").unwrap();
        faults.plan(FaultPlan::FailAt { at, error: ErrorKind::StorageFull, lasting: false });
        let batch = [Message::new("t").transient(), Message::new("u").transient(), "v".into()];
        let failed = queue.push_batch(batch).is_err();
        faults.plan(FaultPlan::None);
        if failed && queue.push(b"kept").is_ok() {
            stood_behind += 1;
            let queue = options(Arc::new(memory.killed())).open("memory").unwrap();
            let found = queue.pop_batch(9).unwrap();
            let found: Vec<&[u8]> = found.iter().map(|job| &job[..]).collect();
            assert_eq!(found, [&b"first"[..], b"kept"], "operation {at}");
        }
    }
    assert!(stood_behind >= 8, "{stood_behind}");
}

/// What cannot be read for now is an error with the system's kind, and nothing is lost by it.
#[test]
fn reads_that_fail_are_errors_and_not_damage() {
    let (memory, faults) = storage();
    let queue = options(faults.clone()).open("memory").unwrap();
    for n in 0..30u8 {
        queue.push(vec![n; 9_000]).unwrap();
    }
    queue.close().unwrap();
    let error = ErrorKind::TimedOut;
    let is_told = |told: Error| match &told {
        Error::Io { source, .. } => assert_eq!(source.kind(), error),
        _ => panic!("{told:?}"),
    };
    faults.plan(FaultPlan::FailReads { error });
    is_told(options(faults.clone()).open("memory").unwrap_err());
    faults.plan(FaultPlan::None);
    let queue = options(faults.clone()).open("memory").unwrap();
    let mut seen = Vec::new();
    for round in 0.. {
        faults.plan(FaultPlan::FailReads { error });
        match queue.pop() {
            Err(told) => is_told(told),
            Ok(None) => break,
            Ok(Some(job)) => {
                seen.push(job[0]);
                job.ack().unwrap();
            }
        }
        if round % 3 == 0 {
            assert!(queue.stats().ready() <= 30);
            faults.plan(FaultPlan::None);
            if let Some(job) = queue.pop().unwrap() {
                seen.push(job[0]);
                job.ack().unwrap();
            }
        }
    }
    assert_eq!(seen, (0..30).collect::<Vec<u8>>());
    assert!(queue.damage().is_empty() && memory.read("CHECKPOINT").is_some());
}

/// A disk that is full while a record is written, and still while what it left is erased: push
/// works again once there is room, and nothing of the failed ones is ever seen.
#[test]
fn push_works_again_after_an_erasing_that_failed() {
    for at in 0..6 {
        let (memory, storage) = storage();
        storage.stores_can_fail(true);
        let queue = options(storage.clone()).durability(Durability::Os).open("queue").unwrap();
        queue.push(b"before").unwrap();
        storage.plan(FaultPlan::FailAt { at, error: ErrorKind::StorageFull, lasting: true });
        let batch =
            || [Message::new("failed").transient(), Message::new("failed").header("a", b"b")];
        for _ in 0..3 {
            let failed = queue.push_batch(batch());
            assert!(matches!(failed, Err(Error::StorageFull { .. })) || at > 4, "{failed:?}");
        }
        storage.plan(FaultPlan::None);
        queue.push(b"after").unwrap();
        drop(queue);
        let queue = options(Arc::new(memory.killed())).open("queue").unwrap();
        let found: Vec<Vec<u8>> =
            queue.pop_batch(99).unwrap().iter().map(|job| job.to_vec()).collect();
        let failed = found.iter().filter(|payload| payload[..] == *b"failed").count();
        assert!(failed == 0 || at > 4, "{at}: {failed} of those that failed are here");
        assert_eq!((&found[0][..], &found[found.len() - 1][..]), (&b"before"[..], &b"after"[..]));
        assert!(queue.damage().is_empty() && queue.recovery().is_clean());
    }
}
