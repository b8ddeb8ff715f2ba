//! What each durability costs: a table of push and ack, by durability and number of threads.
//!
//! `cargo bench --bench durability`; on a busy machine `chrt -f 5 cargo bench --bench durability`.
//! `KEEPQ_BENCH_DIR` names the directory to work in (default: the system's temporary one).

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

use keepq::{Durability, Options, Queue};
use std::thread;
use std::time::{Duration, Instant};

const PAYLOAD: [u8; 256] = [7; 256];
const TIME: Duration = Duration::from_secs(2);
/// No more than this is pushed in one measurement, so that no disk is filled.
const MOST: u64 = 2_000_000;

/// Calls `call` on `threads` threads for a while; prints the rate, and how long a call took. With
/// an empty name it prints nothing: the first measurement of a process is slower than all others.
fn measure(name: &str, options: Options, threads: u64, messages: u64, call: &impl Call) {
    let dir = common::directory();
    let queue = options.open(dir.path().join("q")).unwrap();
    if call.needs_backlog() {
        let count = MOST / 10;
        for _ in 0..count / 1000 {
            queue.push_batch((0..1000).map(|_| &PAYLOAD)).unwrap();
        }
    }
    queue.push(&PAYLOAD).unwrap();
    let start = Instant::now();
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let run = || {
            let mut took = Vec::new();
            let most = MOST / threads / messages;
            while start.elapsed() < TIME && (took.len() as u64) < most {
                let before = Instant::now();
                if !call.call(&queue) {
                    break;
                }
                took.push(before.elapsed());
            }
            took
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let elapsed = start.elapsed();
    let rate = took.len() as f64 * messages as f64 / elapsed.as_secs_f64();
    let us = |at| common::percentile(&mut took, at).as_secs_f64() * 1e6;
    let [p50, p99] = [50.0, 99.0].map(us);
    if name.is_empty() {
        return;
    }
    println!("| {name:44} | {threads:7} | {rate:11.0} | {p50:9.1} | {p99:9.1} |");
}

trait Call: Sync {
    fn call(&self, queue: &Queue) -> bool;

    fn needs_backlog(&self) -> bool {
        false
    }
}

struct Push;

impl Call for Push {
    fn call(&self, queue: &Queue) -> bool {
        queue.push(&PAYLOAD).is_ok()
    }
}

struct PushBatch;

impl Call for PushBatch {
    fn call(&self, queue: &Queue) -> bool {
        queue.push_batch((0..100).map(|_| &PAYLOAD)).is_ok()
    }
}

struct PopAck;

impl Call for PopAck {
    fn call(&self, queue: &Queue) -> bool {
        queue.pop().unwrap().is_some_and(|job| job.ack().is_ok())
    }

    fn needs_backlog(&self) -> bool {
        true
    }
}

fn main() {
    measure("", Queue::options().durability(Durability::Os), 1, 1, &Push);
    println!("256 B messages; a batch of 100 counts as 100 messages, and as one call.");
    println!("| {:44} | threads | messages/s  | p50 us    | p99 us    |", "call");
    println!("| {:-<44} | ------- | ----------- | --------- | --------- |", "");
    let interval = Durability::Interval(Duration::from_millis(10));
    for (name, durability) in
        [("Os", Durability::Os), ("Interval(10 ms)", interval), ("Always", Durability::Always)]
    {
        let options = || Queue::options().durability(durability);
        for threads in [1, 8, 64] {
            measure(&format!("push, {name}"), options(), threads, 1, &Push);
        }
        measure(&format!("push_batch of 100, {name}"), options(), 1, 100, &PushBatch);
    }
    let options = || Queue::options().durability(Durability::Os);
    measure("pop and ack", options(), 1, 1, &PopAck);
    for threads in [1, 8, 64] {
        measure("pop and ack, sync_acks", options().sync_acks(true), threads, 1, &PopAck);
    }
}
