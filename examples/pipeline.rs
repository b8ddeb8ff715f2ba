//! Producer threads, a pool of workers, and a bounded backlog between them. It shows throughput and
//! latency while it runs, and a summary with percentiles at the end. Kill it and run it again: the
//! messages that are left in the queue come first.
//!
//! `cargo run --release --example pipeline [DIRECTORY [MESSAGES]]`
//!
//! Worth copying: the limit of the backlog (`max_messages` with `Overflow::Block`: a producer waits
//! until a worker has acked); workers that take waiting messages in small batches; and the end:
//! close the queue, and every thread that waits wakes up.

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
    reason = "an example talks to people"
)]

use hdrhistogram::Histogram;
use keepq::{Delivery, Durability, Error, Overflow, Queue, Seq};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PRODUCERS: u64 = 3;
const WORKERS: usize = 3;
const PAYLOAD_BYTES: usize = 256;
const MAX_BACKLOG: u64 = 10_000;
const BATCH: usize = 32;

struct Pipeline {
    queue: Queue,
    has_failed: AtomicBool,
    /// Microseconds from push to ack.
    latency: Mutex<Histogram<u64>>,
    /// The newest message of earlier runs.
    last_before: Option<Seq>,
    pushed: AtomicU64,
    worked: AtomicU64,
    left_over: AtomicU64,
    is_over: AtomicBool,
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl Pipeline {
    /// Runs a producer or a worker; if it fails or panics, the others stop, too.
    fn run(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        struct Failing<'a>(&'a Pipeline);
        impl Drop for Failing<'_> {
            fn drop(&mut self) {
                self.0.has_failed.store(true, Relaxed);
                // Wakes the threads that wait for room, or for a message.
                self.0.queue.clone().close().ok();
            }
        }
        let failing = Failing(self);
        act()?;
        std::mem::forget(failing);
        Ok(())
    }

    /// Pushes messages. Each says when it was made, and holds something to work on.
    fn produce(&self, count: u64) -> Result<()> {
        for number in 0..count {
            let mut payload = Vec::with_capacity(PAYLOAD_BYTES);
            payload.extend((now().as_nanos() as u64).to_le_bytes());
            payload.extend((8..PAYLOAD_BYTES).map(|at| (number as usize + at) as u8));
            match self.queue.push(payload) {
                // Another thread has failed, and reports why.
                Err(Error::Closed) => return Ok(()),
                pushed => pushed?,
            };
            self.pushed.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn work(&self) -> Result<()> {
        loop {
            let first = match self.queue.pop_wait() {
                Err(Error::Closed) => return Ok(()),
                first => first?,
            };
            let mut jobs = vec![first];
            jobs.extend(self.queue.pop_batch(BATCH - 1)?);
            let is_left_over =
                |job: &Delivery| self.last_before.is_some_and(|last| job.seq() <= last);
            let done: Vec<(Duration, bool)> =
                jobs.iter().map(|job| (work_on(job), is_left_over(job))).collect();
            self.queue.ack_batch(jobs)?;
            self.note(&done);
        }
    }

    fn note(&self, done: &[(Duration, bool)]) {
        let now = now();
        let mut latency = self.latency.lock().unwrap();
        for &(sent_at, is_left_over) in done {
            if is_left_over {
                self.left_over.fetch_add(1, Relaxed);
            } else {
                let took = now.saturating_sub(sent_at);
                latency.saturating_record(took.as_micros() as u64);
            }
        }
        self.worked.fetch_add(done.len() as u64, Relaxed);
    }

    fn show(&self) {
        let mut before = (Instant::now(), 0);
        while !self.is_over.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
            let seconds = before.0.elapsed().as_secs_f64();
            if seconds < 0.5 {
                continue;
            }
            let worked = self.worked.load(Relaxed);
            let rate = (worked - before.1) as f64 / seconds;
            before = (Instant::now(), worked);
            let latency = self.latency.lock().unwrap();
            let [p50, p99] = [50.0, 99.0].map(|at| latency.value_at_percentile(at));
            drop(latency);
            let backlog = unsettled(&self.queue);
            println!("{rate:9.0} messages/s  backlog {backlog:6}  p50 {p50:7} us  p99 {p99:7} us");
        }
    }
}

/// Messages that are not settled. Both counts are of one moment: a message that goes from one to
/// the other between two questions would be counted twice or not at all.
fn unsettled(queue: &Queue) -> u64 {
    let stats = queue.stats();
    stats.ready() + stats.in_flight()
}

/// The work: reads all of the message. Returns when it was made.
fn work_on(job: &[u8]) -> Duration {
    let sum: u64 = job.iter().map(|&byte| u64::from(byte)).sum();
    std::hint::black_box(sum);
    job.first_chunk()
        .map_or(Duration::ZERO, |nanos| Duration::from_nanos(u64::from_le_bytes(*nanos)))
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("target/pipeline"), PathBuf::from);
    let count: u64 = args.next().map_or(Ok(600_000), |arg| arg.to_string_lossy().parse())?;
    // A power cut may take the last 100 ms and one sync; a kill takes nothing.
    let durability = Durability::Interval(Duration::from_millis(100));
    // Messages that are left over are tried again, however often this program was killed.
    let options = Queue::options().durability(durability).max_attempts(0);
    let queue = options.max_messages(MAX_BACKLOG).overflow(Overflow::Block).open(dir)?;
    let waiting = queue.len();
    println!("{waiting} messages are left from the last run");
    let pipeline = Pipeline {
        queue: queue.clone(),
        has_failed: AtomicBool::new(false),
        latency: Mutex::new(Histogram::new_with_bounds(1, 3_600_000_000, 3)?),
        last_before: queue.last_seq(),
        pushed: AtomicU64::new(0),
        worked: AtomicU64::new(0),
        left_over: AtomicU64::new(0),
        is_over: AtomicBool::new(false),
    };
    let start = Instant::now();
    let mut results = Vec::new();
    std::thread::scope(|scope| {
        let pipeline = &pipeline;
        let workers: Vec<_> =
            (0..WORKERS).map(|_| scope.spawn(|| pipeline.run(|| pipeline.work()))).collect();
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|n| {
                let share = count / PRODUCERS + u64::from(n < count % PRODUCERS);
                scope.spawn(move || pipeline.run(|| pipeline.produce(share)))
            })
            .collect();
        scope.spawn(|| pipeline.show());
        // The queue is closed before a panic is reported: workers wait for that.
        let produced: Vec<_> = producers.into_iter().map(ScopedJoinHandle::join).collect();
        while unsettled(&queue) > 0 && !pipeline.has_failed.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        pipeline.is_over.store(true, Relaxed);
        results.push(queue.close().map_err(Into::into));
        let worked = workers.into_iter().map(ScopedJoinHandle::join);
        results.extend(produced.into_iter().chain(worked).map(|thread| thread.expect("no panic")));
    });
    results.into_iter().collect::<Result<()>>()?;
    summary(&pipeline, waiting, start.elapsed())
}

fn summary(pipeline: &Pipeline, waiting: u64, took: Duration) -> Result<()> {
    let [pushed, worked, left_over] =
        [&pipeline.pushed, &pipeline.worked, &pipeline.left_over].map(|count| count.load(Relaxed));
    let seconds = took.as_secs_f64();
    println!("{worked} worked on = {pushed} pushed + {left_over} left over, in {seconds:.2} s");
    println!("{:.0} messages/s", worked as f64 / seconds);
    let latency = pipeline.latency.lock().unwrap();
    for percentile in [50.0, 90.0, 99.0, 99.9, 100.0] {
        let value = latency.value_at_percentile(percentile);
        println!("{percentile:5} % took at most {value} us from push to ack");
    }
    let adds_up = worked == pushed + left_over && left_over == waiting;
    if adds_up { Ok(()) } else { Err("the counts do not add up".into()) }
}
