//! How soon a waiting consumer has a message that is pushed, beside a mutex with a condition
//! variable that does the same, in turn within one run.
//!
//! `cargo bench --bench wait`; on a busy machine `chrt -f 5 cargo bench --bench wait`.

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

use keepq::{Durability, Queue};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 3000;
/// The rounds of one side before the other takes its turn.
const IN_TURN: usize = 50;

/// Hands a value to a thread that waits for it.
trait Handoff: Send + Sync + 'static {
    fn give(&self, value: u64);
    fn take(&self) -> u64;
}

#[derive(Default)]
struct Cond {
    value: Mutex<Option<u64>>,
    there: Condvar,
}

impl Handoff for Cond {
    fn give(&self, value: u64) {
        *self.value.lock().unwrap() = Some(value);
        self.there.notify_one();
    }

    fn take(&self) -> u64 {
        let mut value = self.value.lock().unwrap();
        loop {
            match value.take() {
                Some(taken) => return taken,
                None => value = self.there.wait(value).unwrap(),
            }
        }
    }
}

impl Handoff for Queue {
    fn give(&self, value: u64) {
        self.push(&value.to_le_bytes()).unwrap();
    }

    fn take(&self) -> u64 {
        let job = self.pop_wait().unwrap();
        let value = u64::from_le_bytes(job[..].try_into().unwrap());
        job.ack().unwrap();
        value
    }
}

/// One kind of hand-off, and how long each of its rounds took.
struct Side {
    name: &'static str,
    handoff: Arc<dyn Handoff>,
    back: std::sync::mpsc::Receiver<Duration>,
    taken: Vec<Duration>,
}

impl Side {
    fn new(name: &'static str, start: Instant, handoff: impl Handoff) -> Self {
        let handoff: Arc<dyn Handoff> = Arc::new(handoff);
        let (tell, back) = std::sync::mpsc::channel();
        let waiting = Arc::clone(&handoff);
        thread::spawn(move || {
            loop {
                let given_at = waiting.take();
                let took = start.elapsed().saturating_sub(Duration::from_nanos(given_at));
                if tell.send(took).is_err() {
                    return;
                }
            }
        });
        Self { name, handoff, back, taken: Vec::new() }
    }

    fn round(&mut self, start: Instant, pause: Duration) {
        // The consumer has this long to start waiting.
        let until = Instant::now() + pause;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        self.handoff.give(start.elapsed().as_nanos() as u64);
        // This thread does not park: that would leave the consumer idle for longer than `pause`.
        self.taken.push(loop {
            match self.back.try_recv() {
                Ok(took) => break took,
                Err(_) => std::hint::spin_loop(),
            }
        });
    }

    fn percentile(&mut self, percent: f64) -> f64 {
        common::percentile(&mut self.taken, percent).as_secs_f64() * 1e6
    }
}

fn main() {
    for (what, pause) in [
        ("parked consumer (idle for 200 us)", Duration::from_micros(200)),
        ("spinning consumer (idle for 1 us)", Duration::from_micros(1)),
    ] {
        let start = Instant::now();
        let dir = common::directory();
        let queue = Queue::options().durability(Durability::Os).open(dir.path().join("q")).unwrap();
        let mut sides =
            [Side::new("condvar", start, Cond::default()), Side::new("keepq", start, queue)];
        for _ in 0..ROUNDS / IN_TURN {
            for side in &mut sides {
                (0..IN_TURN).for_each(|_| side.round(start, pause));
            }
        }
        println!("hand-off to a {what}, {ROUNDS} rounds:");
        let medians = sides.each_mut().map(|side| {
            let (p50, p99) = (side.percentile(50.0), side.percentile(99.0));
            println!("  {:8} p50 {p50:6.2} us  p99 {p99:6.2} us", side.name);
            p50
        });
        println!("  ratio of the medians: {:.2}", medians[1] / medians[0]);
    }
}
