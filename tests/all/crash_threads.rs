//! Crashes while several threads and the background thread are at work.
//!
//! Unlike `crash.rs` no run repeats another, but here acks, syncs, rotation and letting go really
//! happen at the same time. `KEEPQ_CRASH_THREADS_CASES` sets the number of crashes (default 300).

use crate::support::agree::agree;
use crate::support::{Dice, cases};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage, Storage};
use keepq::{Compaction, Durability, Message, Queue};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What calls returned `Ok` for before the crash.
#[derive(Default)]
struct Told {
    /// By number: whether it survives a power cut.
    pushed: BTreeMap<u64, bool>,
    acking: BTreeSet<u64>,
    acked: BTreeSet<u64>,
    rejected: BTreeSet<u64>,
    seqs: BTreeMap<u64, u64>,
}

fn options(storage: Arc<dyn Storage>, sync_acks: bool) -> keepq::Options {
    let options = Queue::options().segment_bytes(65_536).ack_sync(Duration::from_millis(2));
    let options = options.compaction(Compaction::default().idle(Duration::from_millis(2)));
    options.durability(Durability::Os).sync_acks(sync_acks).storage(storage)
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    let len = 8 + Dice(number).below(if number.is_multiple_of(10) { 20_000 } else { 2_000 });
    payload.resize(len as usize, number as u8);
    payload
}

fn number(job: &[u8]) -> u64 {
    u64::from_le_bytes(job[..8].try_into().unwrap())
}

fn produce(queue: &Queue, producer: u64, told: &Mutex<Told>) {
    let mut dice = Dice(producer);
    for n in 0.. {
        let number = producer * 1_000_000 + n;
        let always = dice.one_in(3);
        let durability = if always { Durability::Always } else { Durability::Os };
        let Ok(seq) = queue.push(Message::new(payload(number)).durability(durability)) else {
            return;
        };
        let mut told = told.lock().unwrap();
        told.pushed.insert(number, always);
        told.seqs.insert(number, seq.into());
    }
}

fn consume(queue: &Queue, told: &Mutex<Told>, seed: u64) {
    let mut dice = Dice(seed);
    while let Ok(job) = queue.pop_wait() {
        let number = number(&job);
        if dice.one_in(12) {
            job.nack_after(Duration::from_millis(dice.below(3))).ok();
            continue;
        }
        told.lock().unwrap().acking.insert(number);
        if dice.one_in(15) {
            if job.reject(number.to_string()).is_ok() {
                told.lock().unwrap().rejected.insert(number);
            }
        } else if job.ack().is_ok() {
            told.lock().unwrap().acked.insert(number);
        }
    }
}

fn check(disk: MemoryStorage, told: &Told, is_power_cut: bool, sync_acks: bool) {
    agree(&disk, &format!("power cut {is_power_cut}"));
    let queue = options(Arc::new(disk), sync_acks).background(false).open("memory").unwrap();
    assert!(queue.recovery().damage().is_empty(), "{:?}", queue.recovery());
    // Ready or delayed, by number.
    let found: Vec<_> = queue.iter().map(|message| message.unwrap()).collect();
    let jobs = queue.pop_batch(usize::MAX).unwrap();
    // Some may have become due meanwhile.
    let stats = queue.stats();
    let left = stats.ready() + stats.delayed();
    assert_eq!(jobs.len() as u64 + left, found.len() as u64);
    drop(jobs);
    let mut dead = BTreeSet::new();
    for letter in &queue.dead_letters().unwrap() {
        let letter = letter.unwrap();
        assert_eq!(&letter[..], payload(number(&letter)));
        assert!(dead.insert(number(&letter)), "{} died twice", number(&letter));
    }
    assert!(queue.damage().is_empty(), "{:?}", queue.damage());
    let here: BTreeSet<u64> = found.iter().map(|job| number(job)).collect();
    assert_eq!(here.len(), found.len(), "doubled");
    for job in &found {
        assert_eq!(&job[..], payload(number(job)));
        let seq = told.seqs.get(&number(job));
        assert!(seq.is_none_or(|&seq| seq == u64::from(job.seq())));
    }
    for (number, &is_durable) in &told.pushed {
        let is_owed = (is_durable || !is_power_cut) && !told.acking.contains(number);
        let is_kept = here.contains(number) || dead.contains(number);
        assert!(!is_owed || is_kept, "{number} was confirmed and is lost");
    }
    if sync_acks || !is_power_cut {
        let back: Vec<_> = here.intersection(&told.acked).collect();
        assert!(
            back.is_empty(),
            "{back:?} came back after a durable ack: cut {is_power_cut}, sync_acks {sync_acks}"
        );
    }
    if !is_power_cut {
        assert!(here.is_disjoint(&dead), "one is dead, and is here");
        assert!(told.rejected.is_subset(&dead), "one that was rejected is lost");
    }
    // What is left is a prefix: nothing missing below the newest that is there.
    let newest = found.last().map_or(0, |job| u64::from(job.seq()));
    for (number, &seq) in &told.seqs {
        let is_settled = told.acking.contains(number);
        assert!(is_settled || seq > newest || here.contains(number), "a hole at {number}");
    }
}

#[test]
fn crashes_under_load_keep_the_promise() {
    let first = cases("KEEPQ_CRASH_SEED", 1);
    for seed in first..first + cases("KEEPQ_CRASH_THREADS_CASES", 300) {
        let mut dice = Dice(seed);
        let sync_acks = dice.one_in(2);
        let memory = Arc::new(MemoryStorage::new());
        let faults = Arc::new(FaultStorage::new(memory.clone()));
        faults.plan(FaultPlan::CrashAt { at: 30 + dice.below(4000) });
        let told = Mutex::new(Told::default());
        if let Ok(queue) = options(faults.clone(), sync_acks).open("memory") {
            std::thread::scope(|scope| {
                let producers: Vec<_> = (0..2)
                    .map(|n| {
                        scope.spawn({
                            let (queue, told) = (&queue, &told);
                            move || produce(queue, seed * 2 + n, told)
                        })
                    })
                    .collect();
                for consumer in 0..2 {
                    let (queue, told) = (&queue, &told);
                    scope.spawn(move || consume(queue, told, seed ^ consumer));
                }
                for producer in producers {
                    producer.join().unwrap();
                }
                // It crashed: nothing of this reaches the disk.
                queue.clone().close().unwrap_err();
            });
        }
        let told = told.into_inner().unwrap();
        check(memory.killed(), &told, false, sync_acks);
        for image in [CrashImage::Oldest, CrashImage::Mixed(seed), CrashImage::Mixed(!seed)] {
            check(memory.power_cut(image), &told, true, sync_acks);
        }
    }
}
