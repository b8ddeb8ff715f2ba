//! P9: the age of messages when they are popped, at a fixed rate of pushes, both sides spinning.

use super::{Entrant, Job, Mode, Part, Scene};
use crate::contender::{Answer, Kind};
use crate::measure::{Figure, Unit, Work, latencies, note};
use crate::peer;
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

const PAYLOAD: usize = 256;

pub(super) fn job(mode: Mode, kinds: &[Kind]) -> Job {
    let mut job = Job::new("P9", "message age at 10 k/s and 100 k/s, 256 B");
    job.rounds = mode.pick(1, 3);
    job.times = 0.0;
    let pace = mode.pick(Pace::new(300, 700), Pace::new(1000, 2000));
    job.aside = (pace.warm_up + pace.measured).as_secs_f64();
    for rate in [10_000, 100_000] {
        let name = format!("message age at {} k/s (p99)", rate / 1000);
        let work = Work::new("P9", name, PAYLOAD).threads(2).unit(Unit::Microseconds);
        let limit = work.clone();
        let mut entrants = vec![Entrant::limit("limit: std channel", move |_| {
            vec![figure(&limit, &channel(pace, rate), pace)]
        })];
        if kinds.iter().any(|kind| kind.package == "keepq") {
            for kind in [peer::OS, peer::INTERVAL, peer::ALWAYS_SUBMITTED] {
                let work = work.clone();
                entrants.push(Entrant::contender(kind, move |scene, kind| {
                    vec![figure(&work, &ages(scene, kind, pace, rate), pace)]
                }));
            }
        }
        job.parts.push(Part::InTurn(entrants));
    }
    job
}

#[derive(Clone, Copy)]
struct Pace {
    warm_up: Duration,
    measured: Duration,
}

impl Pace {
    fn new(warm_up: u64, measured: u64) -> Self {
        Self { warm_up: Duration::from_millis(warm_up), measured: Duration::from_millis(measured) }
    }
}

fn figure(work: &Work, ages: &Histogram<u64>, pace: Pace) -> Figure {
    let p99 = ages.value_at_percentile(99.0) as f64 / 1000.0;
    Figure::plain(work.clone(), p99, ages.len(), pace.measured).latency(ages)
}

/// Calls `push` at the times of the rate, late or not, with a payload that says when it was due.
fn produce(start: Instant, pace: Pace, rate: u64, mut push: impl FnMut(&[u8])) {
    let mut payload = [7; PAYLOAD];
    let seconds = (pace.warm_up + pace.measured).as_secs_f64();
    let count = (seconds * rate as f64) as u64;
    for number in 0..count {
        let due = Duration::from_nanos(number * 1_000_000_000 / rate);
        while start.elapsed() < due {
            std::hint::spin_loop();
        }
        payload[..8].copy_from_slice(&(due.as_nanos() as u64).to_le_bytes());
        push(&payload);
    }
}

/// Notes how long ago a message was due, but for the warm-up.
fn consume(start: Instant, pace: Pace, payload: &[u8], ages: &mut Histogram<u64>) {
    let due = Duration::from_nanos(u64::from_le_bytes(payload[..8].try_into().unwrap()));
    if due >= pace.warm_up {
        note(ages, start.elapsed().saturating_sub(due));
    }
}

fn channel(pace: Pace, rate: u64) -> Histogram<u64> {
    let (sender, receiver) = sync_channel::<[u8; PAYLOAD]>(1_000_000);
    let mut ages = latencies();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let push = |payload: &[u8]| sender.send(payload.try_into().unwrap()).unwrap();
            produce(start, pace, rate, push);
        });
        loop {
            match receiver.try_recv() {
                Ok(payload) => consume(start, pace, &payload, &mut ages),
                Err(std::sync::mpsc::TryRecvError::Empty) => std::hint::spin_loop(),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            }
        }
    });
    ages
}

fn ages(scene: &Scene<'_>, kind: &Kind, pace: Pace, rate: u64) -> Histogram<u64> {
    let queue = scene.open(kind);
    let mut ages = latencies();
    let is_over = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            produce(start, pace, rate, |payload| queue.push(payload));
            is_over.store(true, Ordering::Release);
        });
        loop {
            // Read before the pop: what it finds empty then, stays empty.
            let was_over = is_over.load(Ordering::Acquire);
            let popped = queue.take(1, &mut |payload| {
                consume(start, pace, payload, &mut ages);
                Answer::Ack
            });
            if popped == 0 {
                if was_over {
                    return;
                }
                std::hint::spin_loop();
            }
        }
    });
    queue.close();
    ages
}
