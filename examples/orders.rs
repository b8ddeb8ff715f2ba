//! Orders go through three queues: reserve, charge, ship. Kill it at any moment and run it again:
//! no order is lost, and none is reserved, charged or shipped twice.
//!
//! `cargo run --release --example orders [DIRECTORY [ORDERS]]`
//!
//! Three habits achieve this, and are worth copying:
//!
//! 1. An order's number is the `Seq` under which the first queue took it. It travels with the
//!    order, and each step does its work once for each number: it looks into its book, works,
//!    writes the book, and only then goes on. No other worker looks at the same number meanwhile.
//! 2. An order is pushed to the next queue before it is acked in this one. A crash in between
//!    delivers it again, and the next step's book shows that it is there already.
//! 3. An order that may succeed later is given back (`nack`), and stays away for a while that grows
//!    with its attempts (`Options::backoff`). An order that never will is noted in a book of its
//!    own.

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
use keepq::{Backoff, Queue, TypedDelivery, TypedQueue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WORKERS_PER_STEP: usize = 2;
/// One charge in this many fails for now.
const TIMEOUTS: u64 = 10;
/// One charge in this many fails for good.
const DECLINES: u64 = 25;
/// How long an order stays away from the bank after the first timeout; it is longer each time.
const PAUSE: Duration = Duration::from_millis(2);

/// What the customer wants.
#[derive(Serialize, Deserialize, Clone)]
struct Order {
    customer: String,
    pieces: u64,
    cents: u64,
}

/// The same on its way, under its number.
#[derive(Serialize, Deserialize, Clone)]
struct Numbered {
    number: u64,
    order: Order,
}

/// What one step has done: an amount for each order number, durable before the step goes on.
struct Book {
    done: Mutex<BTreeMap<u64, u64>>,
    lines: Mutex<Lines>,
}

impl Book {
    fn open(path: &Path) -> Result<Self> {
        let mut done = BTreeMap::new();
        let lines = Lines::open(path, |numbers| {
            done.extend(
                numbers.first().zip(numbers.get(1)).map(|(number, amount)| (*number, *amount)),
            );
        })?;
        Ok(Self { done: Mutex::new(done), lines: Mutex::new(lines) })
    }

    /// Notes that an order is done. The caller knows that it is not in the book.
    fn note(&self, number: u64, amount: u64) -> io::Result<()> {
        self.lines.lock().unwrap().append_synced(&[[number, amount]])?;
        self.done.lock().unwrap().insert(number, amount);
        Ok(())
    }

    fn has(&self, number: u64) -> bool {
        self.done.lock().unwrap().contains_key(&number)
    }

    fn count(&self) -> u64 {
        self.done.lock().unwrap().len() as u64
    }

    fn sum(&self) -> u64 {
        self.done.lock().unwrap().values().sum()
    }
}

struct Shop {
    accepted: TypedQueue<Order>,
    to_charge: TypedQueue<Numbered>,
    to_ship: TypedQueue<Numbered>,
    reserved: Book,
    charged: Book,
    shipped: Book,
    declined: Book,
    /// A crash may leave an order twice in a queue, and two workers may have one each: a worker
    /// holds the desk of the number that it works on.
    desks: [Mutex<()>; 16],
    retries: AtomicU64,
    has_failed: AtomicBool,
    orders: u64,
}

impl Shop {
    fn open(dir: &Path, orders: Option<u64>) -> Result<Self> {
        // The first run decides how many orders there are.
        let mut known = None;
        let mut count =
            Lines::open(&dir.join("count"), |numbers| known = numbers.first().copied())?;
        let orders = match (known, orders) {
            (Some(known), Some(other)) if known != other => {
                return Err(format!("{} is a shop of {known} orders", dir.display()).into());
            }
            (Some(known), _) => known,
            (None, orders) => orders.unwrap_or(1000),
        };
        if known.is_none() {
            count.append_synced(&[[orders]])?;
        }
        let book = |name: &str| Book::open(&dir.join(name));
        // No order is given up, however often this program was killed while it worked on it.
        let options = || Queue::options().max_attempts(0);
        let patient = options().backoff(Backoff::exponential(PAUSE).jitter(0.5));
        let shop = Self {
            accepted: options().open(dir.join("accepted"))?.typed(),
            to_charge: patient.open(dir.join("to_charge"))?.typed(),
            to_ship: options().open(dir.join("to_ship"))?.typed(),
            reserved: book("reserved")?,
            charged: book("charged")?,
            shipped: book("shipped")?,
            declined: book("declined")?,
            desks: Default::default(),
            retries: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
            orders,
        };
        // A batch is there as a whole or not at all, so a run that is killed here changes nothing.
        if shop.accepted.queue().last_seq().is_none() && shop.reserved.count() == 0 {
            shop.accepted.push_batch((0..orders).map(|n| Order {
                customer: format!("customer {n}"),
                pieces: 1 + n % 3,
                cents: 500 + 10 * (n % 100),
            }))?;
            println!("{orders} orders accepted");
        } else {
            let done = shop.shipped.count() + shop.declined.count();
            println!("{done} of {orders} orders are done; going on");
        }
        Ok(shop)
    }

    fn is_done(&self) -> bool {
        self.shipped.count() + self.declined.count() == self.orders
    }

    /// Runs one step until all orders are done, or a worker anywhere has failed.
    fn work<T: Serialize + for<'de> Deserialize<'de>>(
        &self,
        queue: &TypedQueue<T>,
        step: impl Fn(TypedDelivery<T>) -> Result<()>,
    ) -> Result<()> {
        /// A worker that leaves early, by an error or a panic, ends the work of all.
        struct Failing<'a>(&'a AtomicBool);
        impl Drop for Failing<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let failing = Failing(&self.has_failed);
        while !self.is_done() && !self.has_failed.load(Relaxed) {
            if let Some(job) = queue.pop_timeout(Duration::from_millis(50))? {
                step(job)?;
            }
        }
        std::mem::forget(failing);
        Ok(())
    }

    fn desk(&self, number: u64) -> &Mutex<()> {
        &self.desks[number as usize % self.desks.len()]
    }

    fn reserve(&self, job: TypedDelivery<Order>) -> Result<()> {
        // One message, one number: only one worker has it at a time.
        let number = job.seq().into();
        if !self.reserved.has(number) {
            self.reserved.note(number, job.pieces)?;
        }
        self.to_charge.push(&Numbered { number, order: job.clone() })?;
        Ok(job.ack()?)
    }

    fn charge(&self, job: TypedDelivery<Numbered>) -> Result<()> {
        let number = job.number;
        let desk = self.desk(number).lock().unwrap();
        if !self.charged.has(number) && !self.declined.has(number) {
            // What the bank says of this order, this time. Give a real bank the number as its
            // idempotency key: after a crash right here we ask again.
            let said = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
            if said.is_multiple_of(TIMEOUTS) && job.attempts() == 1 {
                self.retries.fetch_add(1, Relaxed);
                return Ok(job.nack()?);
            }
            let book = if said % DECLINES == 1 { &self.declined } else { &self.charged };
            book.note(number, job.order.cents)?;
        }
        drop(desk);
        if self.charged.has(number) {
            self.to_ship.push(&job)?;
        }
        Ok(job.ack()?)
    }

    fn ship(&self, job: TypedDelivery<Numbered>) -> Result<()> {
        let desk = self.desk(job.number).lock().unwrap();
        if !self.shipped.has(job.number) {
            self.shipped.note(job.number, job.order.cents)?;
        }
        drop(desk);
        Ok(job.ack()?)
    }

    fn print_summary(&self) -> Result<()> {
        let (shipped, declined) = (self.shipped.count(), self.declined.count());
        println!("{} charges were tried again", self.retries.load(Relaxed));
        println!("{} orders = {shipped} shipped + {declined} declined", self.orders);
        println!("{} cents charged = {} cents shipped", self.charged.sum(), self.shipped.sum());
        let adds_up = self.orders == shipped + declined
            && self.reserved.count() == self.orders
            && self.charged.sum() == self.shipped.sum();
        if adds_up { Ok(()) } else { Err("the books do not add up".into()) }
    }
}

fn run(dir: &Path, orders: Option<u64>) -> Result<()> {
    fs::create_dir_all(dir)?;
    let shop = Shop::open(dir, orders)?;
    let mut results = Vec::new();
    std::thread::scope(|scope| {
        let shop = &shop;
        let mut workers = Vec::new();
        for _ in 0..WORKERS_PER_STEP {
            workers.push(scope.spawn(|| shop.work(&shop.accepted, |job| shop.reserve(job))));
            workers.push(scope.spawn(|| shop.work(&shop.to_charge, |job| shop.charge(job))));
            workers.push(scope.spawn(|| shop.work(&shop.to_ship, |job| shop.ship(job))));
        }
        results.extend(workers.into_iter().map(|worker| worker.join().expect("no panic")));
    });
    results.into_iter().collect::<Result<()>>()?;
    shop.print_summary()?;
    shop.accepted.close()?;
    shop.to_charge.close()?;
    Ok(shop.to_ship.close()?)
}

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let Some(dir) = args.next().map(PathBuf::from) else {
        // Without arguments a shop that is done makes room for a new one, all at once.
        let (dir, old) = (Path::new("target/orders"), Path::new("target/orders.old"));
        run(dir, None)?;
        fs::remove_dir_all(old).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        return Ok(fs::rename(dir, old)?);
    };
    let orders = args.next().map(|arg| arg.to_string_lossy().parse()).transpose()?;
    run(&dir, orders)
}
