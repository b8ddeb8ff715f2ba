//! P7: pop and ack of 64 B, single and in batches of 100, beside the limit: a copy and a checksum.
//!
//! `cargo bench --bench pop`

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
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use keepq::{Durability, Queue};
use std::time::Duration;

const MESSAGES: u64 = 500_000;

fn filled(dir: &tempfile::TempDir, name: u64) -> Queue {
    let path = dir.path().join(name.to_string());
    let queue = Queue::options().durability(Durability::Os).open(path).unwrap();
    for _ in 0..MESSAGES / 100 {
        queue.push_batch([[7; 64]; 100].iter()).unwrap();
    }
    queue
}

fn pop_ack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("P7 pop + ack 64 B");
    group.throughput(Throughput::Elements(MESSAGES));
    group.sample_size(10).measurement_time(Duration::from_secs(4));
    let memory = vec![7u8; 88 * usize::try_from(MESSAGES).unwrap()];
    group.bench_function("limit", |bencher| {
        bencher.iter(|| {
            memory.chunks(88).fold(0, |sum, record| {
                let copy = record[24..].to_vec();
                sum ^ crc32fast::hash(std::hint::black_box(&copy))
            })
        });
    });
    let dir = directory();
    let mut name = 0;
    let mut next = || {
        name += 1;
        filled(&dir, name)
    };
    group.bench_function("single", |bencher| {
        bencher.iter_batched(
            &mut next,
            |queue| {
                while let Some(job) = queue.pop().unwrap() {
                    job.ack().unwrap();
                }
                queue
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("batch 100", |bencher| {
        bencher.iter_batched(
            &mut next,
            |queue| {
                loop {
                    let jobs = queue.pop_batch(100).unwrap();
                    if jobs.is_empty() {
                        return queue;
                    }
                    queue.ack_batch(jobs).unwrap();
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, pop_ack);
criterion_main!(benches);
