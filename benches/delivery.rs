//! What leases, attempts, backoff, expiry, limits and dead letters cost push and pop, with both
//! sides in one run; and what a million delayed messages cost the others.
//!
//! `cargo bench --bench delivery`

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
use keepq::{Backoff, Durability, Expired, Message, Options, Queue};
use std::time::{Duration, Instant};

const MESSAGES: u64 = 400_000;
const ROUNDS: usize = 15;
const DELAYED: u64 = 1_000_000;

fn plain() -> Options {
    Queue::options().durability(Durability::Os)
}

fn all_on() -> Options {
    plain()
        .visibility_timeout(Duration::from_secs(30))
        .max_attempts(5)
        .backoff(Backoff::exponential(Duration::from_millis(100)).jitter(0.2))
        .message_ttl(Duration::from_secs(3600))
        .expired(Expired::DeadLetter)
        .max_messages(10_000_000)
        .max_bytes(8 << 30)
        .max_in_flight(100_000)
}

/// Nanoseconds for each of `count`.
fn each(count: u64, run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_nanos() as f64 / count as f64
}

fn push(queue: &Queue) -> f64 {
    let payload = [7u8; 64];
    each(MESSAGES, || {
        for _ in 0..MESSAGES {
            queue.push(&payload).unwrap();
        }
    })
}

fn pop(queue: &Queue) -> f64 {
    each(MESSAGES, || {
        for _ in 0..MESSAGES {
            queue.pop().unwrap().unwrap().ack().unwrap();
        }
    })
}

fn pop_batches(queue: &Queue) -> f64 {
    each(MESSAGES, || {
        for _ in 0..MESSAGES / 100 {
            queue.ack_batch(queue.pop_batch(100).unwrap()).unwrap();
        }
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Anonymous resident memory of this process.
fn memory() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("RssAnon")).unwrap_or("0 0");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
}

fn main() {
    let mut figures: [[Vec<f64>; 2]; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (side, options) in [plain(), all_on()].into_iter().enumerate() {
            let dir = directory();
            let queue = options.open(dir.path().join("queue")).unwrap();
            figures[0][side].push(push(&queue));
            figures[1][side].push(pop(&queue));
            push(&queue);
            figures[2][side].push(pop_batches(&queue));
        }
    }
    println!("64 B, Os, one thread, medians of {ROUNDS}: nothing set, all set, ratio");
    let names = ["P1 push", "P7 pop + ack", "P7 pop + ack, batches of 100"];
    for (name, sides) in names.into_iter().zip(figures) {
        let [without, with] = sides.map(median);
        println!("{name:32} {without:7.0} ns {with:7.0} ns {:6.3}", with / without);
    }

    let dir = directory();
    let queue = plain().open(dir.path().join("delayed")).unwrap();
    let [alone, popped_alone] = [push(&queue), pop(&queue)];
    let before = memory();
    let later = Message::new("a reminder").delay(Duration::from_secs(3600));
    let delayed = each(DELAYED, || {
        for _ in 0..DELAYED {
            queue.push(&later).unwrap();
        }
    });
    let bytes = (memory() - before) / DELAYED as f64;
    println!(
        "push with a delay: {delayed:.0} ns; {bytes:.0} bytes of memory for each of {DELAYED}"
    );
    let beside = push(&queue);
    // The first pop passes all delayed messages, once.
    queue.pop().unwrap().unwrap().release().unwrap();
    let popped_beside = pop(&queue);
    println!("push alone {alone:.0} ns, beside them {beside:.0} ns");
    println!("pop + ack alone {popped_alone:.0} ns, beside them {popped_beside:.0} ns");
    std::mem::forget(queue.clone());
    queue.close().unwrap();
    let start = Instant::now();
    let queue = plain().open(dir.path().join("delayed")).unwrap();
    let opened = start.elapsed();
    while queue.delayed() < DELAYED {
        std::thread::yield_now();
    }
    println!("open: {opened:.1?}; all delayed messages are known after {:.1?}", start.elapsed());
}
