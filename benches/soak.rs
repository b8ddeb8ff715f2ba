//! Hours of mixed load in minutes, with a clock that is advanced fast: pushes of many sizes, with
//! delays and times to live; consumers that ack, fail, reject, release and hold on; dead letters
//! that are pushed again; purges, closes, and drops. Disk, memory, descriptors and the time to open
//! are plotted, and must not grow.
//!
//! `cargo bench --bench soak`; `KEEPQ_SOAK_SECONDS` sets how long it takes (default 120),
//! `KEEPQ_SOAK_SVG` where the plot goes (default `target/soak.svg`), `KEEPQ_BENCH_DIR` the disk.

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
use keepq::fault::ManualClock;
use keepq::{Backoff, Delivery, Durability, Message, Options, Queue};
use std::collections::VecDeque;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

/// What is watched, and how much larger it may be in the last third than in the middle third: by
/// this factor, and by this amount on top.
const WATCHED: [(&str, f64, f64); 4] = [
    ("disk, MiB", 1.5, 4.0),
    ("memory without mapped files, MiB", 1.3, 4.0),
    ("descriptors", 1.3, 4.0),
    ("time to open, ms", 2.0, 5.0),
];
/// The number of steps in one run of the queue.
const STEPS: u64 = 6000;
/// How much of the queue's time a step takes.
const TICK: Duration = Duration::from_millis(250);

/// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

struct Soak {
    clock: Arc<ManualClock>,
    path: PathBuf,
    dice: Dice,
    /// Deliveries that are held for a long time, each with the step at which it is answered.
    held: VecDeque<(u64, Delivery)>,
    step: u64,
    pushed: u64,
    acked: u64,
}

impl Soak {
    fn options(&self) -> Options {
        Queue::options()
            .segment_bytes(1 << 20)
            .durability(Durability::Interval(Duration::from_millis(50)))
            .visibility_timeout(Duration::from_secs(7200))
            .backoff(Backoff::exponential(Duration::from_secs(2)))
            .max_attempts(5)
            .clock(self.clock.clone())
    }

    fn message(&mut self) -> Message<'static> {
        let len = match self.dice.below(100) {
            0 => 100_000,
            1..=10 => 5_000,
            _ => 50 + self.dice.below(400),
        };
        let message = Message::new(vec![7; len as usize]);
        match self.dice.below(40) {
            0 => message.delay(Duration::from_secs(self.dice.below(900))),
            1 => message.ttl(Duration::from_secs(1 + self.dice.below(60))),
            2 => message.transient(),
            3 => message.header("kind", b"soaked"),
            _ => message,
        }
    }

    fn one_step(&mut self, queue: &Queue) {
        self.step += 1;
        self.clock.advance(TICK);
        for _ in 0..=self.dice.below(8) {
            let message = self.message();
            queue.push(message).unwrap();
            self.pushed += 1;
        }
        for _ in 0..9 {
            let Some(job) = queue.pop().unwrap() else { break };
            match self.dice.below(200) {
                0..=5 => job.nack().unwrap(),
                6..=8 => job.nack_after(Duration::from_secs(self.dice.below(600))).unwrap(),
                9 => job.reject("not today").unwrap(),
                10 => job.release().unwrap(),
                // Nearly two hours of the queue's time.
                11 => self.held.push_back((self.step + 25_000, job)),
                _ => {
                    job.ack().unwrap();
                    self.acked += 1;
                }
            }
        }
        while self.held.front().is_some_and(|(until, _)| *until <= self.step) {
            // The answers to deliveries of an earlier run fail.
            drop(self.held.pop_front().map(|(_, job)| job.ack()));
        }
        if self.step.is_multiple_of(500) {
            queue.redrive(20).unwrap();
            let dead = queue.dead_letters().unwrap();
            dead.ack_batch(dead.pop_batch(20).unwrap()).unwrap();
        }
        if self.step.is_multiple_of(20_000) {
            queue.purge().unwrap();
        }
    }

    /// One run of the queue: returns the time to open, and the largest numbers during the run.
    fn run(&mut self) -> [f64; 4] {
        let mut queue = None;
        let opened = timed(|| queue = Some(self.options().open(&self.path).unwrap()));
        let queue = queue.unwrap();
        let mut most = [0.0, 0.0, 0.0, opened.as_secs_f64() * 1000.0];
        for _ in 0..STEPS {
            self.one_step(&queue);
            if self.step.is_multiple_of(100) {
                let now = [disk(&self.path) as f64 / MIB, anonymous_kib() / 1024.0, descriptors()];
                most.iter_mut().zip(now).for_each(|(most, now)| *most = most.max(now));
            }
        }
        if self.dice.below(2) == 0 {
            queue.close().unwrap();
        }
        most
    }
}

const MIB: f64 = (1 << 20) as f64;

fn disk(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    // A file may be gone by now.
    let sizes = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        Some(if metadata.is_dir() { disk(&entry.path()) } else { metadata.len() })
    });
    sizes.sum()
}

fn anonymous_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0.0)
}

fn descriptors() -> f64 {
    std::fs::read_dir("/proc/self/fd").map_or(0.0, |entries| entries.count() as f64)
}

/// Four plots, one above the other.
fn plot(samples: &[(f64, [f64; 4])]) -> String {
    let (width, height, gap) = (900.0, 120.0, 50.0);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{}' height='{}' font-family='sans-serif' \
         font-size='13'>\n<rect width='100%' height='100%' fill='white'/>\n",
        width + 120.0,
        4.0 * (height + gap) + 40.0
    );
    let hours = samples.last().map_or(1.0, |sample| sample.0);
    for (number, (name, ..)) in WATCHED.iter().enumerate() {
        let top = 40.0 + number as f64 * (height + gap);
        let values: Vec<f64> = samples.iter().map(|(_, values)| values[number]).collect();
        let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let points: String =
            samples.iter().zip(&values).fold(String::new(), |mut all, ((at, _), value)| {
                write!(
                    all,
                    "{:.1},{:.1} ",
                    90.0 + at / hours * width,
                    top + height * (1.0 - value / most)
                )
                .unwrap();
                all
            });
        writeln!(
            svg,
            "<text x='90' y='{:.0}'>{name}: up to {most:.1}, in {hours:.1} hours of the queue's \
             time</text>\n\
             <path d='M90 {top} V{bottom} H{right}' fill='none' stroke='#999'/>\n\
             <text x='82' y='{:.0}' text-anchor='end'>{most:.1}</text>\n\
             <text x='82' y='{bottom}' text-anchor='end'>0</text>\n\
             <polyline points='{points}' fill='none' stroke='#06c' stroke-width='1.5'/>",
            top - 10.0,
            top + 10.0,
            bottom = top + height,
            right = 90.0 + width
        )
        .unwrap();
    }
    svg + "</svg>\n"
}

fn main() {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    let seconds = number("KEEPQ_SOAK_SECONDS").unwrap_or(120);
    let dir = directory();
    let start = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let mut soak = Soak {
        clock: Arc::new(ManualClock::new(start)),
        path: dir.path().join("q"),
        dice: Dice(number("KEEPQ_SOAK_SEED").unwrap_or(1)),
        held: VecDeque::new(),
        step: 0,
        pushed: 0,
        acked: 0,
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut samples = Vec::new();
    while Instant::now() < end || samples.len() < 9 {
        let most = soak.run();
        samples.push((soak.step as f64 * TICK.as_secs_f64() / 3600.0, most));
    }
    let svg = std::env::var("KEEPQ_SOAK_SVG").unwrap_or_else(|_| "target/soak.svg".to_string());
    std::fs::write(&svg, plot(&samples)).unwrap();
    println!(
        "{} pushed, {} acked, {} runs, {:.1} hours of the queue's time; plotted to {svg}",
        soak.pushed,
        soak.acked,
        samples.len(),
        samples.last().map_or(0.0, |sample| sample.0)
    );
    let third = samples.len() / 3;
    let most = |samples: &[(f64, [f64; 4])], number: usize| {
        samples.iter().map(|(_, values)| values[number]).fold(0.0, f64::max)
    };
    let mut is_flat = true;
    for (number, (name, part, besides)) in WATCHED.into_iter().enumerate() {
        let middle = most(&samples[third..samples.len() - third], number);
        let last = most(&samples[samples.len() - third..], number);
        let holds = last <= middle * part + besides;
        is_flat &= holds;
        let told = if holds { "flat" } else { "GROWS" };
        println!("{name}: {middle:.1} in the middle third, {last:.1} in the last: {told}");
    }
    assert!(is_flat, "something grows: see {svg}");
}
