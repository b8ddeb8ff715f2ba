//! Instructions that the process needs for each message of 64 B, for push, and for pop and ack:
//! counted by valgrind, so that a busy machine gives the same figures as an idle one.
//!
//! `cargo bench --bench instructions` needs valgrind and takes half a minute; `KEEPQ_BENCH_DIR`
//! chooses the disk, which hardly matters, since the system's own instructions do not count. It
//! fails if a count is more than 5 % above the one that is noted here: then either something has
//! become slower, or the note has to say why it may.
//!
//! The bench runs itself under callgrind, twice for each scenario. The difference of the two
//! counts, divided by the difference of the two numbers of messages, does not contain start-up.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
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
use keepq::{Durability, Queue};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Messages in the two runs. Their difference is a multiple of `BATCH`, and of 64, since keepq
/// measures the time of one message in 64. All messages fit into one segment.
const SHORT: u64 = 20_000;
const LONG: u64 = 60_000;
const BATCH: usize = 100;
static PAYLOADS: [[u8; 64]; BATCH] = [[7; 64]; BATCH];

#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    /// What a message took when this was written.
    noted: u64,
    /// What a message is to take one day, or takes already.
    target: u64,
    /// Whether messages are waiting before it begins, the same number in both runs.
    is_filled: bool,
    /// Whether leases run out.
    has_timeout: bool,
    run: fn(&Queue, u64),
}

const SCENARIOS: [Scenario; 6] = [
    Scenario { noted: 703, ..scenario("push", 700, push) },
    Scenario { noted: 376, ..scenario("push, batches of 100", 400, push_batches) },
    filled(Scenario { noted: 980, ..scenario("pop + ack", 1000, pop_ack) }, false),
    filled(
        Scenario { noted: 495, ..scenario("pop + ack, batches of 100", 500, pop_batches) },
        false,
    ),
    filled(Scenario { noted: 1096, ..scenario("pop + ack, timeout", 1100, pop_ack) }, true),
    filled(
        Scenario { noted: 495, ..scenario("pop + ack, batches, timeout", 550, pop_batches) },
        true,
    ),
];

/// The most that a count may be above the one that is noted.
const TOLERANCE: f64 = 1.05;

const fn scenario(name: &'static str, target: u64, run: fn(&Queue, u64)) -> Scenario {
    Scenario { name, noted: 0, target, is_filled: false, has_timeout: false, run }
}

const fn filled(scenario: Scenario, has_timeout: bool) -> Scenario {
    Scenario { is_filled: true, has_timeout, ..scenario }
}

fn push(queue: &Queue, messages: u64) {
    for _ in 0..messages {
        queue.push(&PAYLOADS[0]).unwrap();
    }
}

fn push_batches(queue: &Queue, messages: u64) {
    for _ in 0..messages / BATCH as u64 {
        queue.push_batch(PAYLOADS.iter()).unwrap();
    }
}

fn pop_ack(queue: &Queue, messages: u64) {
    for _ in 0..messages {
        queue.pop().unwrap().unwrap().ack().unwrap();
    }
}

fn pop_batches(queue: &Queue, messages: u64) {
    for _ in 0..messages / BATCH as u64 {
        let jobs = queue.pop_batch(BATCH).unwrap();
        assert_eq!(jobs.len(), BATCH);
        queue.ack_batch(jobs).unwrap();
    }
}

/// The part that runs under valgrind. The process ends without a close.
fn run(scenario: &Scenario, messages: u64, path: &Path) -> ! {
    let timeout = scenario.has_timeout.then_some(Duration::from_secs(60));
    let options = Queue::options().durability(Durability::Os).background(false);
    let options = options.visibility_timeout(timeout);
    let queue = options.open(path).unwrap();
    if scenario.is_filled {
        // One batch more than the longer run pops, so that no run empties the queue. Single pushes
        // would leave glibc's allocator in one of two states, by the length of the directory's
        // path, and these differ by 190 instructions for each message that is popped in a batch.
        push_batches(&queue, LONG + BATCH as u64);
    }
    (scenario.run)(&queue, messages);
    std::process::exit(0);
}

/// Instructions of a process that runs a scenario.
fn count(number: usize, messages: u64) -> Result<u64, String> {
    let dir = directory();
    let counts = dir.path().join("counts");
    let mut valgrind = Command::new("valgrind");
    valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", counts.display()));
    valgrind.arg(std::env::current_exe().unwrap());
    valgrind.args([number.to_string(), messages.to_string()]).arg(dir.path().join("q"));
    let output = valgrind.stdin(Stdio::null()).output().map_err(|error| {
        format!("valgrind does not start ({error}): install it, as by `apt-get install valgrind`")
    })?;
    let written = std::fs::read_to_string(&counts).unwrap_or_default();
    let total = written.lines().find_map(|line| line.strip_prefix("totals: "));
    match total.and_then(|total| total.trim().parse().ok()) {
        Some(total) if output.status.success() => Ok(total),
        _ => Err(format!(
            "{}: {}\n{}",
            SCENARIOS[number].name,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// With a comma between the thousands; up to 999,999.
fn with_comma(value: u64) -> String {
    match value {
        0..1000 => value.to_string(),
        _ => format!("{},{:03}", value / 1000, value % 1000),
    }
}

/// Instructions of each message that the longer run has more.
fn per_message(number: usize) -> Result<u64, String> {
    let (difference, messages) = (count(number, LONG)? - count(number, SHORT)?, LONG - SHORT);
    Ok((difference + messages / 2) / messages)
}

fn compare() -> Result<(), String> {
    // A loop, since with one more `collect` into a `Result` in this crate the compiler would not
    // inline the one in `push_batch`: 58 instructions more for each message.
    let mut counts = Vec::new();
    for number in 0..SCENARIOS.len() {
        counts.push(per_message(number)?);
    }
    println!("| 64 B, `Os`, no background | instructions a message | noted | ratio | target |");
    println!("| --- | --- | --- | --- | --- |");
    let mut too_many = Vec::new();
    for (Scenario { name, noted, target, .. }, count) in SCENARIOS.iter().zip(counts) {
        let ratio = count as f64 / *noted as f64;
        let [count, noted, target] = [count, *noted, *target].map(with_comma);
        println!("| {name} | {count} | {noted} | {ratio:.3} | {target} |");
        if ratio > TOLERANCE {
            too_many.push(*name);
        }
    }
    if too_many.is_empty() { Ok(()) } else { Err(format!("above what is noted: {too_many:?}")) }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, number, messages, path] = arguments.as_slice() {
        let scenario = &SCENARIOS[number.parse::<usize>().unwrap()];
        run(scenario, messages.parse().unwrap(), path.as_ref());
    }
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
