//! What it costs a burst that the queue had been idle: it gave up its files, and makes each one
//! twice as large as the one before until they are of full size again. Against a queue that kept
//! what it had, in turns.
//!
//! `cargo bench --bench burst`; `KEEPQ_BENCH_DIR` chooses the disk, which needs 1 GiB.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark, not the crate"
)]

mod common;

use common::{directory, percentile};
use keepq::{Durability, Queue};
use std::time::{Duration, Instant};

const BURST: usize = 256 << 20;
const ROUNDS: usize = 5;

/// What a burst took: all of it, and each of its pushes.
struct Took {
    all: Duration,
    pushes: Vec<Duration>,
}

/// Pops and acks everything, as consumers do after a burst.
fn drain(queue: &Queue) {
    loop {
        let jobs = queue.pop_batch(1000).unwrap();
        if jobs.is_empty() {
            return;
        }
        queue.ack_batch(jobs).unwrap();
    }
}

/// A burst into a queue that had one like it, which was consumed; and was idle since, or not.
fn burst(durability: Durability, payload: &[u8], was_idle: bool) -> Took {
    let dir = directory();
    let idle = was_idle.then_some(Duration::from_millis(100));
    let options = Queue::options().durability(durability).shrink_after(idle);
    let queue = options.open(dir.path().join("q")).unwrap();
    let count = BURST / payload.len();
    for _ in 0..count {
        queue.push(payload).unwrap();
    }
    drain(&queue);
    queue.sync().unwrap();
    // Until nothing is made or given up any more.
    let start = Instant::now();
    let is_small = || queue.stats().disk_bytes() < 2 << 20;
    while start.elapsed() < Duration::from_secs(1) || is_small() != was_idle {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut pushes = Vec::with_capacity(count);
    let start = Instant::now();
    for _ in 0..count {
        let start = Instant::now();
        queue.push(payload).unwrap();
        pushes.push(start.elapsed());
    }
    Took { all: start.elapsed(), pushes }
}

fn main() {
    println!("| 256 MiB | had been idle | seconds | p50 us | p99 us | p99.9 us | most, us |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for (durability, len) in
        [(Durability::Os, 1 << 10), (Durability::Os, 64 << 10), (Durability::Always, 64 << 10)]
    {
        let payload = vec![7; len];
        // The median of each figure, both sides in turns.
        let mut rounds = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS {
            for (rounds, was_idle) in rounds.iter_mut().zip([false, true]) {
                let mut took = burst(durability, &payload, was_idle);
                let at = [50.0, 99.0, 99.9, 100.0];
                let [p50, p99, p999, most] =
                    at.map(|percent| percentile(&mut took.pushes, percent));
                rounds.push([took.all, p50, p99, p999, most]);
            }
        }
        for (rounds, was_idle) in rounds.iter().zip(["no", "yes"]) {
            let [all, p50, p99, p999, most] = [0, 1, 2, 3, 4].map(|figure| {
                let mut values: Vec<Duration> = rounds.iter().map(|round| round[figure]).collect();
                percentile(&mut values, 50.0).as_secs_f64() * 1e6
            });
            let all = all / 1e6;
            let what = format!("{} KiB, `{durability:?}`", len >> 10);
            println!(
                "| {what} | {was_idle} | {all:.3} | {p50:.1} | {p99:.1} | {p999:.1} | {most:.0} |"
            );
        }
    }
}
