//! A task scheduler: tasks that are due at their times, retries with backoff, and a kind of task
//! that fails at each attempt, ends in the dead letters, and is done after a fix. Kill it at any
//! moment and run it again: every task is done once, and none before its time.
//!
//! `cargo run --release --example schedule [DIRECTORY [TASKS]]`
//!
//! Worth copying:
//!
//! 1. A task is pushed with its time (`deliver_at`), and no worker sees it before then. The program
//!    needs no timer.
//! 2. A task that failed is given back (`nack`). `Options::backoff` says how long it stays away,
//!    and `Options::max_attempts` when it is given up. Attempts are counted through kills.
//! 3. After the fix, the program calls `redrive`: the dead letters are tasks again, with new
//!    numbers. So each task has a key of its own, and a book says which tasks are done.

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

mod common;

use common::Lines;
use keepq::{Backoff, Error, Message, Queue, TypedDelivery, TypedQueue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WORKERS: usize = 4;
const MAX_ATTEMPTS: u32 = 4;
/// Tasks are due within this time from when they are made.
const SPREAD: u64 = 1500;

#[derive(Serialize, Deserialize, Clone)]
struct Task {
    /// The task's key: the same however often the task is pushed.
    id: u64,
    /// Milliseconds since 1970.
    due: u64,
    kind: Kind,
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Fails now and then.
    Flaky,
    /// Fails until it is fixed.
    Broken,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The keys of the tasks that are done, each with the number of its attempts. An entry is durable
/// before its task is acked.
struct Book {
    done: Mutex<BTreeSet<u64>>,
    lines: Mutex<Lines>,
}

struct Scheduler {
    tasks: TypedQueue<Task>,
    book: Book,
    fix: PathBuf,
    retries: AtomicU64,
    has_failed: AtomicBool,
    count: u64,
}

impl Scheduler {
    fn open(dir: &Path, count: u64) -> Result<Self> {
        let options = Queue::options()
            .max_attempts(MAX_ATTEMPTS)
            .backoff(Backoff::exponential(Duration::from_millis(20)).jitter(0.5));
        let tasks = options.open(dir.join("tasks"))?.typed::<Task>();
        let mut done = BTreeSet::new();
        let lines = Lines::open(&dir.join("done"), |numbers| done.extend(numbers.first()))?;
        let book = Book { done: Mutex::new(done), lines: Mutex::new(lines) };
        let (retries, has_failed) = (AtomicU64::new(0), AtomicBool::new(false));
        let this = Self { tasks, book, fix: dir.join("fixed"), retries, has_failed, count };
        if this.tasks.queue().last_seq().is_none() && this.done() == 0 {
            this.push_all()?;
            println!("{count} tasks pushed");
        } else {
            println!("{} of {count} tasks are done; going on", this.done());
        }
        Ok(this)
    }

    /// Pushes all or none, so a run that is killed here changes nothing.
    fn push_all(&self) -> Result<()> {
        let start = now();
        let mut messages = Vec::new();
        for id in 0..self.count {
            let due = start + id.wrapping_mul(0x9E37_79B9_7F4A_7C15) % SPREAD;
            let kind = match id % 20 {
                3 | 11 => Kind::Flaky,
                17 => Kind::Broken,
                _ => Kind::Plain,
            };
            let message: Message<'static> = self.tasks.message(&Task { id, due, kind })?;
            messages.push(message.deliver_at(UNIX_EPOCH + Duration::from_millis(due)));
        }
        self.tasks.queue().push_batch(messages)?;
        Ok(())
    }

    fn done(&self) -> u64 {
        self.book.done.lock().unwrap().len() as u64
    }

    fn is_fixed(&self) -> bool {
        self.fix.exists()
    }

    /// The work of a task. Returns whether it succeeded.
    fn succeeds(&self, job: &TypedDelivery<Task>) -> bool {
        match job.kind {
            Kind::Plain => true,
            Kind::Flaky => job.attempts() > 2 || job.id.is_multiple_of(3),
            Kind::Broken => self.is_fixed(),
        }
    }

    fn run(&self, job: TypedDelivery<Task>) -> Result<()> {
        // (A wall clock that was set back meanwhile looks the same.)
        if job.due > now() {
            return Err(format!("task {} was handed out too early", job.id).into());
        }
        if !self.succeeds(&job) {
            self.retries.fetch_add(1, Relaxed);
            return Ok(job.nack()?);
        }
        // The lock is held from the look to the write, so a task that is there twice is done once.
        let mut done = self.book.done.lock().unwrap();
        if !done.contains(&job.id) {
            let line = [job.id, job.attempts().into()];
            self.book.lines.lock().unwrap().append_synced(&[line])?;
            done.insert(job.id);
        }
        drop(done);
        Ok(job.ack()?)
    }

    /// Works until the queue is closed. A worker that leaves early, by an error or a panic, ends
    /// the work of all.
    fn work(&self) -> Result<()> {
        struct Failing<'a>(&'a AtomicBool);
        impl Drop for Failing<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let failing = Failing(&self.has_failed);
        loop {
            match self.tasks.pop_wait() {
                Ok(job) => self.run(job)?,
                Err(Error::Closed) => break,
                Err(error) => return Err(error.into()),
            }
        }
        std::mem::forget(failing);
        Ok(())
    }

    /// Waits until all tasks are done or dead, fixes the broken ones, and pushes the dead ones
    /// again.
    fn oversee(&self) -> Result<()> {
        let dead = self.tasks.queue().dead_letters()?;
        // A task has to be acked, too, not only done.
        let unsettled = || {
            let stats = self.tasks.queue().stats();
            stats.ready() + stats.in_flight() + stats.delayed() + stats.dying()
        };
        while self.done() < self.count || unsettled() > 0 {
            if self.has_failed.load(Relaxed) {
                return Err("a worker failed".into());
            }
            let died = dead.len();
            if self.is_fixed() && died > 0 {
                println!("{} dead tasks are pushed again", self.tasks.queue().redrive(died)?);
            } else if died > 0 && unsettled() == 0 {
                for letter in &dead {
                    let letter = letter?;
                    let death = letter.dead_letter().ok_or("a dead letter without an origin")?;
                    if death.attempts() != MAX_ATTEMPTS {
                        return Err(format!("dead after {} attempts", death.attempts()).into());
                    }
                }
                println!(
                    "{died} tasks are dead after {MAX_ATTEMPTS} attempts each; fixing the cause"
                );
                fs::write(&self.fix, "")?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn run(dir: &Path, count: u64) -> Result<()> {
    fs::create_dir_all(dir)?;
    let scheduler = Scheduler::open(dir, count)?;
    let results = std::thread::scope(|scope| {
        let scheduler = &scheduler;
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| scheduler.work())).collect();
        let overseen = scheduler.oversee();
        // In any case: the workers wait for this.
        let closed = scheduler.tasks.queue().clone().close().map_err(Into::into);
        let worked = workers.into_iter().map(|worker| worker.join().expect("no panic"));
        [overseen, closed].into_iter().chain(worked).collect::<Vec<Result<()>>>()
    });
    // The error of a worker comes first, then those that followed from it.
    results.into_iter().rev().collect::<Result<()>>()?;
    println!("{} attempts failed and were tried again later", scheduler.retries.load(Relaxed));
    println!("{} of {count} tasks are done, each once and none too early", scheduler.done());
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    if let Some(dir) = args.next() {
        let count = args.next().map_or(Ok(400), |arg| arg.to_string_lossy().parse())?;
        return run(Path::new(&dir), count);
    }
    // Without arguments a schedule that is done makes room for a new one, all at once.
    let (dir, old) = (Path::new("target/schedule"), Path::new("target/schedule.old"));
    run(dir, 400)?;
    fs::remove_dir_all(old).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    Ok(fs::rename(dir, old)?)
}
