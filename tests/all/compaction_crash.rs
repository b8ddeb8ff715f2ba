//! Compaction cut short at every operation, and an error at every operation of it.
//!
//! `KEEPQ_COMPACTION_IMAGES` sets how many disks are tried for each operation that can be the last
//! (default 2).

use crate::support::agree::agree;
use crate::support::cases;
use crate::support::sparse::{ack_most, number, on, payload};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage, Storage};
use keepq::{Error, Options};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;

/// What a workload with a compaction in the middle was told.
#[derive(Clone, Default)]
struct Told {
    pushed: BTreeSet<u64>,
    /// Durable, or about to be.
    acked: BTreeSet<u64>,
    acking: BTreeSet<u64>,
}

/// Pushes, settles, compacts, settles some of what was moved, and goes on; each call that returned
/// is noted.
fn work(options: Options, told: &mut Told) -> Result<(), Error> {
    let queue = options.sync_acks(true).open("memory")?;
    for n in 0..130 {
        queue.push(payload(n))?;
        told.pushed.insert(n);
    }
    let jobs = queue.pop_batch(120)?;
    let (left, settled): (Vec<_>, Vec<_>) =
        jobs.into_iter().partition(|job| number(job).is_multiple_of(12));
    for job in settled {
        told.acking.insert(number(&job));
        let n = number(&job);
        // Not each one by itself: that would be most of what happens.
        if n % 10 == 3 {
            job.ack()?;
            told.acked.insert(n);
        } else {
            queue.ack_batch([job])?;
            told.acked.insert(n);
        }
    }
    queue.compact()?;
    for job in left {
        let n = number(&job);
        if n.is_multiple_of(24) {
            told.acking.insert(n);
            job.ack()?;
            told.acked.insert(n);
        }
    }
    for n in 130..170 {
        queue.push(payload(n))?;
        told.pushed.insert(n);
    }
    queue.compact()?;
    queue.maintain()?;
    queue.close()
}

fn check(disk: &Arc<MemoryStorage>, told: &Told, context: &str) {
    agree(disk, context);
    let queue = on(disk.clone()).open("memory").unwrap();
    let report = queue.recovery();
    assert!(report.damage().is_empty() && report.ignored().count() == 0, "{context}: {report:?}");
    let found = queue.pop_batch(usize::MAX).unwrap();
    let here: BTreeSet<u64> = found.iter().map(|job| number(job)).collect();
    assert_eq!(here.len(), found.len(), "{context}: twice");
    assert!(found.is_sorted_by(|a, b| number(a) < number(b)), "{context}: order");
    for job in &found {
        assert_eq!(&job[..], payload(number(job)), "{context}");
        assert_eq!(u64::from(job.seq()), number(job) + 1, "{context}");
    }
    let back: Vec<_> = here.intersection(&told.acked).collect();
    assert!(back.is_empty(), "{context}: {back:?} came back");
    let lost: Vec<_> =
        told.pushed.iter().filter(|n| !told.acking.contains(n) && !here.contains(n)).collect();
    assert!(lost.is_empty(), "{context}: {lost:?} are lost");
    assert!(queue.damage().is_empty(), "{context}: {:?}", queue.damage());
    for n in &told.acked {
        assert!(queue.is_acked((n + 1).into()).unwrap(), "{context}: {n}");
    }
    // It goes on from there.
    queue.ack_batch(found).unwrap();
    let seq = queue.push("next").unwrap();
    queue.compact().unwrap();
    assert_eq!(queue.pop().unwrap().unwrap().seq(), seq, "{context}");
}

/// Each operation of a compaction is the last one; and then each of the recovery from it.
#[test]
fn every_operation_can_be_the_last() {
    let memory = Arc::new(MemoryStorage::new());
    let faults = Arc::new(FaultStorage::new(memory));
    work(on(faults.clone()), &mut Told::default()).unwrap();
    let operations = faults.operations();
    assert!(operations > 300, "{operations}");
    let images = cases("KEEPQ_COMPACTION_IMAGES", 2);
    for at in 0..=operations {
        let memory = Arc::new(MemoryStorage::new());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        faults.plan(FaultPlan::CrashAt { at });
        let mut told = Told::default();
        work(on(faults), &mut told).ok();
        let mut disks = vec![memory.killed(), memory.power_cut(CrashImage::Oldest)];
        disks.extend((0..images).map(|n| memory.power_cut(CrashImage::Mixed(at * 1000 + n))));
        for (image, disk) in disks.into_iter().enumerate() {
            let context = format!("operation {at}, disk {image}");
            let disk = Arc::new(disk);
            check(&Arc::new(disk.killed()), &told, &context);
            // The recovery ends early, too.
            let faults = Arc::new(FaultStorage::new(disk.clone()));
            faults.plan(FaultPlan::CrashAt { at: at % 31 });
            let recovered = on(faults).open("memory");
            recovered.and_then(|queue| queue.compact().map(|_| queue)).map(drop).ok();
            let context = format!("{context}, and again");
            check(&Arc::new(disk.killed()), &told, &context);
            check(&Arc::new(disk.power_cut(CrashImage::Mixed(at))), &told, &context);
        }
    }
}

fn names(disk: &MemoryStorage) -> BTreeSet<String> {
    let all = disk.list().unwrap().into_iter().map(|entry| entry.name);
    all.filter(|name| !name.contains(".tmp")).collect()
}

/// Acks that are synced before any CHECKPOINT is written, to a copy perhaps.
fn durable_answers_stay(disk: &Arc<MemoryStorage>, context: &str) {
    let queue = on(disk.clone()).sync_acks(true).open("memory").unwrap();
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    let acked: BTreeSet<u64> = jobs.iter().map(|job| number(job)).collect();
    for job in jobs {
        job.ack().unwrap();
    }
    for image in [CrashImage::Oldest, CrashImage::Mixed(1), CrashImage::Mixed(2)] {
        let found = on(Arc::new(disk.power_cut(image))).open("memory").unwrap();
        let jobs = found.pop_batch(usize::MAX).unwrap();
        let back: Vec<u64> = jobs.iter().map(|job| number(job)).collect();
        assert!(back.iter().all(|n| !acked.contains(n)), "{context}: of {back:?} some were acked");
    }
}

/// A process was killed right after it had named a copy, or CHECKPOINT. The next run took the name
/// for durable, and let the sources go: a power cut took the copy away, and all messages with it.
#[test]
fn a_name_that_a_kill_left_is_made_durable_before_it_counts() {
    let counting = Arc::new(FaultStorage::new(Arc::new(MemoryStorage::new())));
    work(on(counting.clone()), &mut Told::default()).unwrap();
    let mut undurable = 0;
    for at in 0..counting.operations() {
        let memory = Arc::new(MemoryStorage::new());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        faults.plan(FaultPlan::CrashAt { at });
        let mut told = Told::default();
        work(on(faults), &mut told).ok();
        let durable = names(&memory.power_cut(CrashImage::Oldest));
        if names(&memory).is_subset(&durable) {
            continue;
        }
        undurable += 1;
        durable_answers_stay(&Arc::new(memory.killed()), &format!("operation {at}"));
        for then in 0..48 {
            let disk = Arc::new(memory.killed());
            let faults = Arc::new(FaultStorage::new(disk.clone()));
            faults.plan(FaultPlan::CrashAt { at: then });
            let recovered = on(faults).open("memory");
            recovered.and_then(|queue| queue.compact().map(|_| queue)).map(drop).ok();
            let context = format!("operation {at}, and {then} of the next run");
            for image in [CrashImage::Oldest, CrashImage::Mixed(at), CrashImage::Mixed(then)] {
                check(&Arc::new(disk.power_cut(image)), &told, &context);
            }
        }
    }
    assert!(undurable > 4, "{undurable}");
}

/// Errors in the middle of it: nothing is lost, nothing comes back, and it works once they are
/// over.
#[test]
fn every_operation_can_fail() {
    for error in [ErrorKind::StorageFull, ErrorKind::Other] {
        for stores_can_fail in [false, true] {
            for at in (0..).step_by(3) {
                let memory = Arc::new(MemoryStorage::new());
                let faults = Arc::new(FaultStorage::new(memory.clone()));
                faults.stores_can_fail(stores_can_fail);
                let queue = on(faults.clone()).sync_acks(true).open("memory").unwrap();
                let mut told = Told::default();
                for n in 0..130 {
                    queue.push(payload(n)).unwrap();
                    told.pushed.insert(n);
                }
                let left = ack_most(&queue, 120, 12);
                let settled: Vec<u64> = (0..120).filter(|n| n % 12 != 0).collect();
                told.acked.extend(&settled);
                told.acking.extend(&settled);
                faults.plan(FaultPlan::FailAt { at, error, lasting: false });
                let compacted = queue.compact();
                let was_reached = faults.operations() > at;
                faults.plan(FaultPlan::None);
                let context = format!("{error:?} at {at}, stores {stores_can_fail}: {compacted:?}");
                let is_poisoned = matches!(queue.sync(), Err(Error::Poisoned { .. }));
                for job in left {
                    let n = number(&job);
                    told.acking.insert(n);
                    match job.ack() {
                        Ok(()) => drop(told.acked.insert(n)),
                        Err(error) => assert!(is_poisoned, "{context}: {error}"),
                    }
                }
                if !is_poisoned {
                    queue.compact().unwrap();
                    let stats = queue.stats();
                    assert!(stats.disk_bytes() <= 4 * 65_536, "{context}: {stats:?}");
                }
                let cut = |image| Arc::new(memory.power_cut(image));
                let mut disks = vec![Arc::new(memory.killed()), cut(CrashImage::Oldest)];
                disks.extend([at, !at].map(|seed| cut(CrashImage::Mixed(seed))));
                drop(queue);
                disks.extend([Arc::new(memory.killed()), cut(CrashImage::Mixed(at))]);
                for disk in disks {
                    check(&disk, &told, &context);
                }
                if !was_reached {
                    break;
                }
            }
        }
    }
}
