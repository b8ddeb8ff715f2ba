//! P12: the disk that a queue takes, at full size: 10 million messages of 100 B in segments of 64
//! MiB. Prints for each bound whether it holds, and fails if one does not.
//!
//! `cargo bench --bench space`; `KEEPQ_BENCH_DIR` chooses the disk, which needs 2 GiB.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "a benchmark, not the crate"
)]

mod common;

use common::directory;
use keepq::{Delivery, Durability, Queue};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MESSAGES: u64 = 10_000_000;
const SEGMENT: u64 = 64 << 20;
/// CHECKPOINT, and the header pages of a copy.
const FIXED: u64 = 5 * 4096;
const MIB: f64 = (1 << 20) as f64;

fn open(path: &Path) -> Queue {
    Queue::options().durability(Durability::Os).open(path).unwrap()
}

/// Bytes that the files really take on the disk, by the file system's count of blocks.
fn disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    // A file may be gone by now.
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.blocks() * 512).sum()
}

/// Waits until the disk in use is within `most`, or a minute is over; returns how long that took.
fn settle(path: &Path, most: impl Fn() -> u64) -> Duration {
    let start = Instant::now();
    while disk(path) > most() && start.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

struct Report {
    has_failed: bool,
}

impl Report {
    fn line(&mut self, what: &str, bytes: u64, most: u64, after: Option<Duration>) {
        let holds = bytes <= most;
        self.has_failed |= !holds;
        let after =
            after.map_or("at any moment".into(), |after| format!("{:.1} s", after.as_secs_f64()));
        println!(
            "| {what} | {:.2} MiB | {:.2} MiB | {after} | {} |",
            bytes as f64 / MIB,
            most as f64 / MIB,
            if holds { "holds" } else { "FAILS" }
        );
    }
}

fn push_all(queue: &Queue) {
    for _ in 0..MESSAGES / 100 {
        queue.push_batch([[7; 100]; 100].iter()).unwrap();
    }
}

/// Pops all messages, acks those that are not kept, and returns the others.
fn ack_all_but(queue: &Queue, is_kept: impl Fn(&Delivery) -> bool) -> Vec<Delivery> {
    let mut left = Vec::new();
    loop {
        let jobs = queue.pop_batch(1000).unwrap();
        if jobs.is_empty() {
            return left;
        }
        let (kept, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(&is_kept);
        left.extend(kept);
        queue.ack_batch(settled).unwrap();
    }
}

fn waiting_then_acked(report: &mut Report) {
    let dir = directory();
    let queue = open(dir.path());
    push_all(&queue);
    let most = MESSAGES * 145 + 2 * SEGMENT;
    let after = settle(dir.path(), || most);
    report.line("10 million waiting", disk(dir.path()), most, Some(after));
    ack_all_but(&queue, |_| false);
    let after = settle(dir.path(), || 2 * SEGMENT + FIXED);
    report.line("all acked", disk(dir.path()), 2 * SEGMENT + FIXED, Some(after));
}

fn one_in_a_thousand(report: &mut Report) {
    let dir = directory();
    let queue = open(dir.path());
    push_all(&queue);
    let left = ack_all_but(&queue, |job| u64::from(job.seq()).is_multiple_of(1000));
    let most = || 2 * queue.stats().live_bytes() + 2 * SEGMENT + FIXED;
    let after = settle(dir.path(), most);
    report.line("1 in 1,000 left", disk(dir.path()), most(), Some(after));
    let stats = queue.stats();
    println!(
        "| compaction wrote | {:.2} MiB | {:.2} MiB that pushes took | | |",
        stats.compacted_bytes() as f64 / MIB,
        stats.taken_bytes() as f64 / MIB
    );
    assert_eq!(left.len() as u64, MESSAGES / 1000);
}

fn stuck_under_a_flow(report: &mut Report) {
    let dir = directory();
    let queue = open(dir.path());
    queue.push(&[7; 100]).unwrap();
    let stuck = queue.pop().unwrap().unwrap();
    let is_over = AtomicBool::new(false);
    let mut most = 0;
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..MESSAGES {
                queue.push(&[7; 100]).unwrap();
                queue.pop().unwrap().unwrap().ack().unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });
        while !is_over.load(Ordering::Relaxed) {
            most = most.max(disk(dir.path()));
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let rate = MESSAGES as f64 / start.elapsed().as_secs_f64();
    report.line("one stuck under 10 million others", most, 3 * SEGMENT + FIXED, None);
    println!("| pushed, popped, acked | {rate:.0} messages a second | | | |");
    stuck.ack().unwrap();
}

fn main() {
    let mut report = Report { has_failed: false };
    println!("| | disk | bound | reached after | |\n| --- | --- | --- | --- | --- |");
    waiting_then_acked(&mut report);
    one_in_a_thousand(&mut report);
    stuck_under_a_flow(&mut report);
    assert!(!report.has_failed, "a bound does not hold");
}
