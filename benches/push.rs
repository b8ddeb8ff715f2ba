//! P1, P3 and P5: push, each beside the physical limit measured in the same run.
//!
//! `cargo bench --bench push`; on a busy machine `chrt -f 5 cargo bench --bench push`.
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

use common::{directory, fresh_copy, resident_copy, synced_writes, timed};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use keepq::{Durability, Queue};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// P1 and P3: a push that waits for nothing, with a new queue for each sample. There are two
/// limits: a checksum and a copy into resident memory, and the same into a mapped file whose pages
/// are touched for the first time.
fn push_os(criterion: &mut Criterion) {
    for (name, len, most) in
        [("P1 push 64 B Os", 64, 2_000_000), ("P3 push 1 KiB Os", 1024, 200_000)]
    {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(len as u64));
        group.sample_size(10).measurement_time(Duration::from_secs(5));
        let payload = vec![7; len];
        let mut copy = resident_copy(64 * MIB);
        group.bench_function("limit, resident", |bencher| bencher.iter(|| copy(&payload)));
        group.bench_function("limit, fresh file", |bencher| {
            bencher.iter_custom(|times| {
                in_rounds(times, most, |round| {
                    let dir = directory();
                    let mut copy = fresh_copy(dir.path(), round * (len as u64 + 24));
                    timed(|| (0..round).for_each(|_| copy(&payload)))
                })
            });
        });
        group.bench_function("keepq", |bencher| {
            bencher.iter_custom(|times| {
                in_rounds(times, most, |round| {
                    let dir = directory();
                    let options = Queue::options().durability(Durability::Os);
                    let queue = options.open(dir.path().join("q")).unwrap();
                    timed(|| (0..round).for_each(|_| assert!(queue.push(&payload).is_ok())))
                })
            });
        });
        group.finish();
    }
}

/// Adds up rounds of at most `most`, so that no sample writes without bound.
fn in_rounds(times: u64, most: u64, round: impl Fn(u64) -> Duration) -> Duration {
    let mut left = times;
    let mut sum = Duration::ZERO;
    while left > 0 {
        let now = left.min(most);
        sum += round(now);
        left -= now;
    }
    sum
}

/// P5: a push that waits for the disk. The limit is one pwrite and one fdatasync in a prepared
/// file. Both sides take turns within one measurement, so that a drift of the disk affects both.
fn push_always(criterion: &mut Criterion) {
    for (name, len) in [("P5 push 64 B Always", 64), ("P5 push 1 KiB Always", 1024)] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(50).measurement_time(Duration::from_secs(8));
        let payload = vec![7; len];
        let dir = directory();
        let mut write = synced_writes(dir.path(), 64 * MIB);
        let queue = Queue::open(dir.path().join("q")).unwrap();
        queue.push(&payload).unwrap();
        let (mut limit, mut push) = (Duration::ZERO, Duration::ZERO);
        group.bench_function("limit then keepq", |bencher| {
            bencher.iter_batched(
                || (),
                |()| {
                    limit += timed(|| write(&payload));
                    push += timed(|| assert!(queue.push(&payload).is_ok()));
                },
                BatchSize::PerIteration,
            );
        });
        let ratio = limit.as_secs_f64() / push.as_secs_f64();
        println!("{name}: {ratio:.3} of the limit's rate, {:.1} KiB written per push", {
            common::written_kib_per(dir.path(), 200, || assert!(queue.push(&payload).is_ok()))
        });
        group.finish();
    }
}

criterion_group!(benches, push_os, push_always);
criterion_main!(benches);
