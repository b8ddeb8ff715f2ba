//! Guards the speed of keepq on any machine: its rate divided by that of the physical limit beside
//! it, both in turns. It knows no times. Fails if a ratio is below two thirds of the noted one.
//!
//! `cargo bench --bench ratios`, a quarter of a minute; `KEEPQ_BENCH_DIR` chooses the disk. On a
//! busy machine put `nice -n -20` before it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark, not the crate"
)]

mod common;

use common::{directory, fresh_copy, resident_copy, synced_writes, timed};
use keepq::{Durability, Queue};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const ROUNDS: usize = 9;
const PART_OF_NOTED: f64 = 2.0 / 3.0;

/// What is done on both sides, in a fresh directory: how long each took for the same work.
type Both = fn(&Path) -> [Duration; 2];

/// Each with the ratio that was noted: the limit's time divided by keepq's.
const GUARDED: [(&str, f64, Both); 6] = [
    ("push 64 B, `Os`, beside a copy into a fresh file", 0.69, push_small),
    ("push 1 KiB, `Os`, beside the same", 0.76, push_kib),
    ("pop + ack 64 B, beside a copy with its checksum", 0.11, pop_one_by_one),
    ("the same in batches of 100", 0.23, pop_in_batches),
    ("push 1 KiB, `Always`, beside one write and one sync", 0.93, push_synced),
    ("8 threads do the same, beside 8 writes and syncs", 3.6, push_synced_together),
];

fn open(directory: &Path, durability: Durability) -> Queue {
    Queue::options().durability(durability).open(directory.join("q")).unwrap()
}

fn push(directory: &Path, len: usize, count: u64) -> [Duration; 2] {
    let payload = vec![7; len];
    let mut copy = fresh_copy(directory, count * (len as u64 + 32));
    let limit = timed(|| (0..count).for_each(|_| copy(&payload)));
    drop(copy);
    let queue = open(directory, Durability::Os);
    let pushed = timed(|| (0..count).for_each(|_| assert!(queue.push(&payload).is_ok())));
    [limit, pushed]
}

fn push_small(directory: &Path) -> [Duration; 2] {
    push(directory, 64, 1_000_000)
}

fn push_kib(directory: &Path) -> [Duration; 2] {
    push(directory, 1024, 200_000)
}

fn pop(directory: &Path, pop_all: impl Fn(&Queue)) -> [Duration; 2] {
    const COUNT: u64 = 500_000;
    let queue = open(directory, Durability::Os);
    (0..COUNT / 100).for_each(|_| assert!(queue.push_batch([[7; 64]; 100].iter()).is_ok()));
    let mut copy = resident_copy(1 << 20);
    let limit = timed(|| (0..COUNT).for_each(|_| copy(&[7; 64])));
    [limit, timed(|| pop_all(&queue))]
}

fn pop_one_by_one(directory: &Path) -> [Duration; 2] {
    pop(directory, |queue| {
        while let Some(job) = queue.pop().unwrap() {
            job.ack().unwrap();
        }
    })
}

fn pop_in_batches(directory: &Path) -> [Duration; 2] {
    pop(directory, |queue| {
        while !queue.is_empty() {
            queue.ack_batch(queue.pop_batch(100).unwrap()).unwrap();
        }
    })
}

/// Each push in turn with a write, so that a drift of the disk affects both.
fn push_synced(directory: &Path) -> [Duration; 2] {
    let (mut write, payload) = (synced_writes(directory, 16 << 20), [7; 1024]);
    let queue = open(directory, Durability::Always);
    let mut took = [Duration::ZERO; 2];
    for _ in 0..400 {
        took[0] += timed(|| write(&payload));
        took[1] += timed(|| assert!(queue.push(&payload).is_ok()));
    }
    took
}

fn push_synced_together(directory: &Path) -> [Duration; 2] {
    const THREADS: u64 = 8;
    const EACH: u64 = 100;
    let (mut write, payload) = (synced_writes(directory, 16 << 20), [7; 1024]);
    let queue = open(directory, Durability::Always);
    let limit = timed(|| (0..THREADS * EACH).for_each(|_| write(&payload)));
    let push = || (0..EACH).for_each(|_| assert!(queue.push(&payload).is_ok()));
    let pushed =
        timed(|| thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(push)))));
    [limit, pushed]
}

fn main() -> ExitCode {
    println!("| rate of keepq / rate of the limit | now | noted | least |");
    println!("| --- | --- | --- | --- |");
    let mut is_slow = false;
    for (what, noted, both) in GUARDED {
        let mut ratios: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let dir = directory();
                let [limit, keepq] = both(dir.path());
                limit.as_secs_f64() / keepq.as_secs_f64()
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        let (now, least) = (ratios[ROUNDS / 2], noted * PART_OF_NOTED);
        println!("| {what} | {now:.2} | {noted:.2} | {least:.2} |");
        is_slow |= now < least;
    }
    if is_slow {
        eprintln!("a ratio is below its least");
    }
    ExitCode::from(u8::from(is_slow))
}
