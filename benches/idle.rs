//! Idle queues: what a thousand of them take of a process, and how soon one that was idle is as
//! fast as before.
//!
//! `cargo bench --bench idle` takes half a minute; `KEEPQ_BENCH_DIR` chooses the disk. A thousand
//! queues need some 4,000 descriptors: there are fewer where the limit (`ulimit -n`) is lower.
//! Linux only: the figures of a process come from `/proc`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark, not the crate"
)]

mod common;

use common::directory;
use keepq::{Durability, Queue};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const QUEUES: u64 = 1000;
/// Each queue takes up to so many.
const DESCRIPTORS: u64 = 5;
/// More than ten: what happens after ten seconds has happened, and the threads that did it have
/// ended.
const IDLE: Duration = Duration::from_secs(13);
const PAYLOAD: [u8; 256] = [7; 256];
/// Messages that are pushed, and then popped and acked, in turn.
const ROUND: usize = 1000;
/// How long a queue is used before it is idle, and after.
const BUSY: Duration = Duration::from_secs(3);
/// The speed is that of a span like this.
const SPAN: Duration = Duration::from_millis(50);

/// A figure of `/proc/self/status`.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Bytes of the disk below a directory.
fn disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(path).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| {
        let is_directory = entry.file_type().unwrap().is_dir();
        if is_directory { disk(&entry.path()) } else { entry.metadata().unwrap().blocks() * 512 }
    });
    sizes.sum()
}

/// How many queues may be open.
fn queues() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let most = line.split_whitespace().next().unwrap().parse().unwrap_or(u64::MAX);
    QUEUES.min((most - 100) / DESCRIPTORS)
}

fn many() {
    let dir = directory();
    let memory = status("VmRSS:");
    let number = queues();
    let queues: Vec<_> = (0..number)
        .map(|number| {
            let options = Queue::options().durability(Durability::Os);
            let queue = options.open(dir.path().join(number.to_string())).unwrap();
            queue.push(&PAYLOAD).unwrap();
            queue.pop().unwrap().unwrap().ack().unwrap();
            queue
        })
        .collect();
    thread::sleep(IDLE);
    println!("| idle queues | disk | memory | threads | descriptors |");
    println!("| --- | --- | --- | --- | --- |");
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {number} | {:.0} MiB | {:.0} MiB | {} | {} |",
        mib(disk(dir.path())),
        mib((status("VmRSS:") - memory) * 1024),
        status("Threads:") - 1,
        fs::read_dir("/proc/self/fd").unwrap().count(),
    );
    drop(queues);
}

/// Messages a second in each span.
struct Use {
    speeds: Vec<f64>,
    longest_push: Duration,
}

impl Use {
    fn of(queue: &Queue) -> Self {
        let mut done = Self { speeds: Vec::new(), longest_push: Duration::ZERO };
        let start = Instant::now();
        while start.elapsed() < BUSY {
            let (span, mut messages) = (Instant::now(), 0);
            while span.elapsed() < SPAN {
                for _ in 0..ROUND {
                    let push = Instant::now();
                    queue.push(&PAYLOAD).unwrap();
                    done.longest_push = done.longest_push.max(push.elapsed());
                }
                let jobs = queue.pop_batch(ROUND).unwrap();
                messages += jobs.len();
                queue.ack_batch(jobs).unwrap();
            }
            done.speeds.push(messages as f64 / span.elapsed().as_secs_f64());
        }
        done
    }

    /// The median of the second half.
    fn speed(&self) -> f64 {
        let mut last = self.speeds[self.speeds.len() / 2..].to_vec();
        last.sort_by(f64::total_cmp);
        last[last.len() / 2]
    }
}

fn one() {
    let dir = directory();
    let queue = Queue::options().durability(Durability::Os).open(dir.path()).unwrap();
    let before = Use::of(&queue);
    let disk_before = disk(dir.path());
    thread::sleep(IDLE);
    let idle = disk(dir.path());
    let after = Use::of(&queue);
    let full = 0.9 * before.speed();
    let soon = after.speeds.iter().position(|&speed| speed >= full);
    let kib = |bytes: u64| bytes / 1024;
    println!("| one queue | in use | idle | in use again |");
    println!("| --- | --- | --- | --- |");
    println!("| disk | {} KiB | {} KiB | |", kib(disk_before), kib(idle));
    let speeds = [&before, &after].map(|used| used.speed() / 1e6);
    println!("| messages a second | {:.2} M | | {:.2} M |", speeds[0], speeds[1]);
    let longest = [&before, &after].map(|used| used.longest_push.as_secs_f64() * 1e3);
    println!("| longest push | {:.2} ms | | {:.2} ms |", longest[0], longest[1]);
    let soon = soon.map(|spans| SPAN * u32::try_from(spans).unwrap());
    let soon = soon.map_or("never".into(), |soon| format!("{soon:.0?}"));
    println!("| 90 % of the speed before, after | | | {soon} |");
}

fn main() {
    one();
    println!();
    many();
}
