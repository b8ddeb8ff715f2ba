//! Stalls: the age of messages when they are popped, in an open loop, beside a channel of the
//! standard library in the same run; and the longest push under `Overflow::DropOldest`.
//!
//! A message is due at its time, whether those before it are late or not, and its age counts from
//! then: a stall makes all that came due in it old. "Spins" means that the consumer asks all the
//! time, so that with two cores none is left for the background. "Waits" means that it sleeps until
//! there is something.
//!
//! `cargo bench --bench stalls`; `KEEPQ_BENCH_DIR` chooses the disk. On a busy machine put
//! `nice -n -20` before it. Not `chrt -f`: the system stops threads of that kind that spin, for 50
//! ms in each second.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::disallowed_types,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark, not the crate"
)]

mod common;

use common::{directory, percentile};
use keepq::{Compaction, Durability, Message, Options, Overflow, Queue};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

const PAYLOAD: usize = 256;
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(2);
/// Not to be measured any more.
const LATER: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Consumer {
    Spins,
    Waits,
}

/// What a consumer found.
enum Found {
    Message,
    Nothing,
    /// Nothing, and nothing will come.
    End,
}

/// Calls `push` at the times of the rate, late or not, with a payload that says when it was due.
/// Gives how long after its time each call returned, but for the warm-up.
fn produce(start: Instant, rate: u64, mut push: impl FnMut(&[u8; PAYLOAD])) -> Vec<Duration> {
    let mut payload = [7; PAYLOAD];
    let count = (WARM_UP + MEASURED).as_secs() * rate;
    let mut took = Vec::with_capacity(count as usize);
    for number in 0..count {
        let due = Duration::from_nanos(number * 1_000_000_000 / rate);
        while start.elapsed() < due {
            spin_loop();
        }
        payload[..8].copy_from_slice(&(due.as_nanos() as u64).to_le_bytes());
        push(&payload);
        if due >= WARM_UP {
            took.push(start.elapsed().saturating_sub(due));
        }
    }
    took
}

/// The times of pushes, and the ages of messages when they are popped.
fn open_loop(
    rate: u64,
    push: impl FnMut(&[u8; PAYLOAD]) + Send,
    mut pop: impl FnMut(&mut dyn FnMut(&[u8])) -> Found,
) -> [Vec<Duration>; 2] {
    let start = Instant::now();
    let mut ages = Vec::with_capacity((MEASURED.as_secs() * rate) as usize);
    let mut see = |payload: &[u8]| {
        let due = Duration::from_nanos(u64::from_le_bytes(payload[..8].try_into().unwrap()));
        if due >= WARM_UP {
            ages.push(start.elapsed().saturating_sub(due));
        }
    };
    let pushes = thread::scope(|scope| {
        let producer = scope.spawn(move || produce(start, rate, push));
        loop {
            match pop(&mut see) {
                Found::Message => {}
                Found::Nothing => spin_loop(),
                Found::End => return producer.join().unwrap(),
            }
        }
    });
    [pushes, ages]
}

fn channel(rate: u64, consumer: Consumer) -> [Vec<Duration>; 2] {
    let (sender, receiver) = sync_channel::<[u8; PAYLOAD]>(1_000_000);
    let push = move |payload: &[u8; PAYLOAD]| sender.send(*payload).unwrap();
    open_loop(rate, push, |see| {
        let found = match consumer {
            Consumer::Spins => receiver.try_recv(),
            Consumer::Waits => receiver.recv_timeout(LATER).map_err(|error| match error {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            }),
        };
        match found {
            Ok(payload) => {
                see(&payload);
                Found::Message
            }
            Err(TryRecvError::Empty) => Found::Nothing,
            Err(TryRecvError::Disconnected) => Found::End,
        }
    })
}

/// Says that nothing is pushed any more.
struct OverAtEnd<'a>(&'a AtomicBool);

impl Drop for OverAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The same of a queue, of which a thread waits for the receipts under `Always`.
fn through(
    queue: &Queue,
    durability: Durability,
    rate: u64,
    consumer: Consumer,
) -> [Vec<Duration>; 2] {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (receipts, waiting) = sync_channel::<keepq::Receipt>(1_000_000);
        scope.spawn(move || {
            for receipt in waiting {
                receipt.wait().unwrap();
            }
        });
        let over = OverAtEnd(&is_over);
        let push = move |payload: &[u8; PAYLOAD]| {
            let _over = &over;
            if durability == Durability::Always {
                receipts.send(queue.submit(payload).unwrap()).unwrap();
            } else {
                queue.push(payload).unwrap();
            }
        };
        open_loop(rate, push, |see| {
            // Read before the pop: what it finds empty then, stays empty.
            let was_over = is_over.load(Ordering::Acquire);
            let job = match consumer {
                Consumer::Spins => queue.pop().unwrap(),
                Consumer::Waits => queue.pop_timeout(Duration::from_millis(100)).unwrap(),
            };
            match job {
                Some(job) => {
                    see(&job);
                    job.ack().unwrap();
                    Found::Message
                }
                None if was_over => Found::End,
                None => Found::Nothing,
            }
        })
    })
}

fn print(what: &str, [mut pushes, mut ages]: [Vec<Duration>; 2]) {
    let micros = |times: &mut [Duration], percent| percentile(times, percent).as_secs_f64() * 1e6;
    let [p50, p99, p999, most] = [50.0, 99.0, 99.9, 100.0].map(|at| micros(&mut ages, at));
    let [push, longest] = [99.9, 100.0].map(|at| micros(&mut pushes, at));
    println!("| {what} | {p50:.1} | {p99:.0} | {p999:.0} | {most:.0} | {push:.0} | {longest:.0} |");
}

const HEAD: &str = "age p50, us | p99 | p99.9 | most | push p99.9 | most |\n\
                    | --- | --- | --- | --- | --- | --- | --- |";

fn by_durability() {
    println!("| {PAYLOAD} B | {HEAD}");
    for (rate, consumer, words) in [
        (10_000, Consumer::Spins, "10 k/s, spins"),
        (10_000, Consumer::Waits, "10 k/s, waits"),
        (100_000, Consumer::Spins, "100 k/s, spins"),
        (100_000, Consumer::Waits, "100 k/s, waits"),
    ] {
        print(&format!("{words}: channel"), channel(rate, consumer));
        let interval = Durability::Interval(Duration::from_millis(50));
        for durability in [Durability::Os, interval, Durability::Always] {
            let dir = directory();
            let options = Queue::options().durability(durability);
            let queue = options.open(dir.path().join("q")).unwrap();
            let times = through(&queue, durability, rate, consumer);
            print(&format!("{words}: keepq `{durability:?}`"), times);
            queue.close().unwrap();
        }
    }
}

/// Something that goes on in the same queue meanwhile.
type Aside = (&'static str, fn(&Queue), fn(&Queue) -> keepq::Result<()>);

/// Messages that nobody takes now.
fn fill_with_delayed(queue: &Queue) {
    let message = || Message::new(&[7; PAYLOAD]).delay(LATER);
    (0..400).for_each(|_| drop(queue.push_batch((0..1000).map(|_| message())).unwrap()));
}

/// Segments with one unsettled message in twenty.
fn fill_sparsely(queue: &Queue) {
    (0..400).for_each(|_| drop(queue.push_batch((0..1000).map(|_| &[7; PAYLOAD])).unwrap()));
    for (number, job) in (0..).zip(std::iter::from_fn(|| queue.pop().unwrap())) {
        if number % 20 == 0 { job.nack_after(LATER).unwrap() } else { job.ack().unwrap() }
    }
}

fn with_asides() {
    let asides: [Aside; 5] = [
        ("nothing", |_| (), |_| Ok(())),
        ("compact, 400,000 messages", fill_sparsely, |queue| queue.compact().map(|_| ())),
        ("purge, 400,000 messages", fill_with_delayed, |queue| queue.purge().map(|_| ())),
        ("maintain, which syncs and writes a CHECKPOINT", |_| (), Queue::maintain),
        ("sync", |_| (), Queue::sync),
    ];
    println!("\n| 10 k/s, spins, `Os`; meanwhile | {HEAD}");
    for (what, before, meanwhile) in asides {
        let dir = directory();
        // Compaction is to come when it is measured.
        let options = Queue::options().durability(Durability::Os).compaction(Compaction::off());
        let queue = options.open(dir.path().join("q")).unwrap();
        before(&queue);
        let (times, took) = thread::scope(|scope| {
            let aside = scope.spawn(|| again_and_again(|_| meanwhile(&queue).unwrap()));
            let times = through(&queue, Durability::Os, 10_000, Consumer::Spins);
            (times, aside.join().unwrap())
        });
        print(what, times);
        queue.close().unwrap();
        let compute = |time| {
            let start = Instant::now();
            while start.elapsed() < time {
                spin_loop();
            }
        };
        let times = thread::scope(|scope| {
            scope.spawn(|| {
                again_and_again(|at| took.get(at).copied().into_iter().for_each(compute))
            });
            channel(10_000, Consumer::Spins)
        });
        print("a channel, and a thread that computes as long", times);
    }
}

/// While it is measured; with how often it was called before. Gives how long each call took.
fn again_and_again(mut call: impl FnMut(usize)) -> Vec<Duration> {
    thread::sleep(WARM_UP);
    let (start, mut took) = (Instant::now(), Vec::new());
    while start.elapsed() < MEASURED {
        let began = Instant::now();
        call(took.len());
        took.push(began.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
    took
}

/// Pushes while two threads drain a million messages.
fn with_drain() {
    let dir = directory();
    let queue = Queue::options().durability(Durability::Os).open(dir.path().join("q")).unwrap();
    (0..1000).for_each(|_| drop(queue.push_batch((0..1000).map(|_| &[7; PAYLOAD])).unwrap()));
    let is_over = AtomicBool::new(false);
    let mut pushes = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) || !queue.is_empty() {
                queue.ack_batch(queue.pop_batch(100).unwrap()).unwrap();
            }
        });
        let _over = OverAtEnd(&is_over);
        produce(Instant::now(), 10_000, |payload| {
            queue.push(payload).unwrap();
        })
    });
    let [p99, p999, most] =
        [99.0, 99.9, 100.0].map(|at| percentile(&mut pushes, at).as_secs_f64() * 1e6);
    println!(
        "\nPushes at 10 k/s while a backlog of a million is drained, `Os`: p99 {p99:.0} us, p99.9 \
              {p999:.0} us, most {most:.0} us."
    );
    queue.close().unwrap();
}

type Limit = fn(Options) -> Options;

/// As fast as one thread can.
fn dropping_oldest() {
    println!("\n| `DropOldest`, `Os`, at full speed | messages/s | push p99.9, us | most, us |");
    println!("| --- | --- | --- | --- |");
    let limits: [(&str, Limit); 2] = [
        ("100,000 messages", |options| options.max_messages(100_000)),
        ("256 MiB", |options| options.max_bytes(256 << 20)),
    ];
    for (what, limited) in limits {
        let dir = directory();
        let options = Queue::options().durability(Durability::Os).overflow(Overflow::DropOldest);
        let queue = limited(options).open(dir.path().join("q")).unwrap();
        let mut pushes = Vec::with_capacity(20_000_000);
        let start = Instant::now();
        let mut before = Duration::ZERO;
        while before < WARM_UP + MEASURED {
            queue.push(&[7; PAYLOAD]).unwrap();
            let now = start.elapsed();
            if before > WARM_UP {
                pushes.push(now.saturating_sub(before));
            }
            before = now;
        }
        let rate = pushes.len() as f64 / MEASURED.as_secs_f64();
        let [p999, most] = [99.9, 100.0].map(|at| percentile(&mut pushes, at).as_secs_f64() * 1e6);
        println!("| {what} | {rate:.0} | {p999:.1} | {most:.0} |");
        queue.close().unwrap();
    }
}

fn main() {
    by_durability();
    with_asides();
    with_drain();
    dropping_oldest();
}
