//! P10: how long it takes to open a queue whose process was killed, and how much memory.
//!
//! `cargo bench --bench open`; `KEEPQ_BENCH_DIR` chooses the disk. *Cold* drops the system's caches
//! first, and needs root.

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

use common::{directory, timed};
use keepq::{Compaction, Delivery, Durability, Message, Options, Queue};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The queue that a killed process leaves behind.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    messages: u64,
    segment_bytes: u64,
    /// One message in this many is not acked; 0: none was handed out.
    kept: u64,
    delayed: u64,
    is_compacted: bool,
}

const MIB: u64 = 1 << 20;

const CASES: [Case; 6] = [
    case("empty", 0, 64 * MIB, 0, 0),
    case("10 million waiting", 10_000_000, 64 * MIB, 0, 0),
    case("1 in 1,000 of them left", 10_000_000, 64 * MIB, 1000, 0),
    Case {
        is_compacted: false,
        ..case("the same, never compacted", 10_000_000, 64 * MIB, 1000, 0)
    },
    case("100,000 delayed before them", 10_000_000, 64 * MIB, 0, 100_000),
    case("1,000 segments", 7_000_000, MIB, 0, 0),
];

const fn case(
    name: &'static str,
    messages: u64,
    segment_bytes: u64,
    kept: u64,
    delayed: u64,
) -> Case {
    Case { name, messages, segment_bytes, kept, delayed, is_compacted: true }
}

fn options(case: Case) -> Options {
    let compaction = if case.is_compacted { Compaction::default() } else { Compaction::off() };
    Queue::options()
        .segment_bytes(case.segment_bytes)
        .durability(Durability::Os)
        .compaction(compaction)
}

/// Leaves a queue behind, as a kill does.
fn fill(case: Case, path: &Path) {
    let queue = options(case).open(path).unwrap();
    for _ in 0..case.delayed / 100 {
        let later = || Message::new(&[7; 100]).delay(Duration::from_secs(86_400));
        queue.push_batch((0..100).map(|_| later())).unwrap();
    }
    for _ in 0..case.messages / 100 {
        queue.push_batch([[7; 100]; 100].iter()).unwrap();
    }
    let mut left = Vec::new();
    if case.kept > 0 {
        loop {
            let jobs = queue.pop_batch(1000).unwrap();
            if jobs.is_empty() {
                break;
            }
            let is_kept = |job: &Delivery| u64::from(job.seq()).is_multiple_of(case.kept);
            let (kept, settled): (Vec<_>, Vec<_>) = jobs.into_iter().partition(is_kept);
            left.extend(kept);
            queue.ack_batch(settled).unwrap();
        }
    }
    // Meanwhile the background syncs full segments, and compacts.
    std::thread::sleep(Duration::from_secs(4));
    std::process::abort();
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
    kib.unwrap_or(0)
}

/// Opens the queue, takes the first message, and counts; prints how long each step took.
fn open(case: Case, path: &Path) {
    let mut queue = None;
    let opened = timed(|| queue = Some(options(case).open(path).unwrap()));
    let queue = queue.unwrap();
    let mut first = None;
    let popped = timed(|| first = queue.pop().unwrap());
    let (memory, segments) = (resident_kib(), queue.stats().segments());
    let counted = timed(|| assert!(queue.len() < u64::MAX));
    println!(
        "{} {} {memory} {} {segments}",
        opened.as_micros(),
        popped.as_micros(),
        counted.as_micros()
    );
    drop(first);
    std::process::exit(0);
}

fn child(case: usize, path: &Path, what: &str) -> Vec<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.env("KEEPQ_BENCH_OPEN", format!("{case} {what}")).arg(path);
    let output = child.stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

fn drop_caches() -> bool {
    Command::new("sync").status().is_ok_and(|status| status.success())
        && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn main() {
    if let Ok(task) = std::env::var("KEEPQ_BENCH_OPEN") {
        let (case, what) = task.split_once(' ').unwrap();
        let case = CASES[case.parse::<usize>().unwrap()];
        let path = std::env::args_os().nth(1).unwrap();
        if what == "fill" {
            fill(case, path.as_ref());
        } else {
            open(case, path.as_ref());
        }
        return;
    }
    println!("| left by a kill | segments | open, warm | open, cold | first pop | memory |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let mut empty = 0;
    for (number, case) in CASES.iter().enumerate() {
        let dir = directory();
        let path = dir.path().join("q");
        child(number, &path, "fill");
        // Each of them finds what the kill left, since none of them pushes or closes.
        let mut warm: Vec<Vec<u64>> = (0..5).map(|_| child(number, &path, "open")).collect();
        warm.sort();
        let warm = &warm[2];
        let cold = if drop_caches() { Some(child(number, &path, "open")[0]) } else { None };
        if number == 0 {
            empty = warm[2];
        }
        let ms = |micros: u64| format!("{:.1} ms", micros as f64 / 1000.0);
        println!(
            "| {} | {} | {} | {} | {} | {:+.1} MiB |",
            case.name,
            warm[4],
            ms(warm[0]),
            cold.map_or("not root".to_string(), ms),
            ms(warm[1]),
            (warm[2] as f64 - empty as f64) / 1024.0
        );
    }
}
