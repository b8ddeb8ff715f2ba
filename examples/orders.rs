//! Orders go through three queues: reserve, charge, ship. Kill it at any moment and run it again:
//! no order is lost, and none is reserved, charged or shipped twice.
//!
//! `cargo run --release --example orders [DIRECTORY [ORDERS]]`
//!
//! Three habits make it so, and are worth copying:
//!
//! 1. An order's number is the `Seq` under which the first queue took it. It travels with the order,
//!    and each step does its work once for each number: it looks into its book, works, writes the
//!    book, and only then goes on.
//! 2. An order is pushed to the next queue before it is acked in this one. A crash in between
//!    delivers it again, and the next step's book shows that it is there already.
//! 3. What may succeed later is given back (`nack`); what never will is ended in a book of its own.

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

use keepq::{Queue, TypedDelivery, TypedQueue};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const WORKERS_PER_STEP: usize = 2;
/// One in so many charges fails for now, and one in so many for good.
const TIMEOUTS: u64 = 10;
const DECLINES: u64 = 25;

/// What the customer wants.
#[derive(Serialize, Deserialize, Clone)]
struct Order {
    customer: String,
    pieces: u64,
    cents: u64,
}

/// The same, on its way, under its number.
#[derive(Serialize, Deserialize, Clone)]
struct Numbered {
    number: u64,
    order: Order,
}

/// What one step has done, by order number: a file of lines, written before the step goes on.
struct Book {
    inner: Mutex<(File, BTreeMap<u64, u64>)>,
}

impl Book {
    fn open(path: &Path) -> Result<Self> {
        let mut text = fs::read_to_string(path).unwrap_or_default();
        // A crash may have left half a line. Its order was not told that it is done.
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        file.set_len(text.len() as u64)?;
        drop(file);
        let mut entries = BTreeMap::new();
        for line in text.lines() {
            let (number, amount) = line.split_once(' ').ok_or("a line that is none of ours")?;
            entries.insert(number.parse()?, amount.parse()?);
        }
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self { inner: Mutex::new((file, entries)) })
    }

    /// Notes that an order is done, durably; once, however often it is called.
    fn note(&self, number: u64, amount: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        let (file, entries) = &mut *inner;
        if let Entry::Vacant(entry) = entries.entry(number) {
            file.write_all(format!("{number} {amount}\n").as_bytes())?;
            file.sync_data()?;
            entry.insert(amount);
        }
        Ok(())
    }

    fn has(&self, number: u64) -> bool {
        self.inner.lock().unwrap().1.contains_key(&number)
    }

    fn count(&self) -> u64 {
        self.inner.lock().unwrap().1.len() as u64
    }

    fn sum(&self) -> u64 {
        self.inner.lock().unwrap().1.values().sum()
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
    retries: AtomicU64,
    orders: u64,
}

impl Shop {
    fn open(dir: &Path, orders: u64) -> Result<Self> {
        let book = |name: &str| Book::open(&dir.join(name));
        let shop = Self {
            accepted: Queue::open(dir.join("accepted"))?.typed(),
            to_charge: Queue::open(dir.join("to_charge"))?.typed(),
            to_ship: Queue::open(dir.join("to_ship"))?.typed(),
            reserved: book("reserved")?,
            charged: book("charged")?,
            shipped: book("shipped")?,
            declined: book("declined")?,
            retries: AtomicU64::new(0),
            orders,
        };
        // A batch is there as a whole or not at all, so a run that was killed here changes nothing.
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

    /// Runs one step until all orders are done.
    fn work<T>(
        &self,
        queue: &TypedQueue<T>,
        step: impl Fn(TypedDelivery<T>) -> Result<()>,
    ) -> Result<()>
    where
        T: Serialize + for<'de> Deserialize<'de>,
    {
        while !self.is_done() {
            if let Some(job) = queue.pop_timeout(Duration::from_millis(50))? {
                step(job)?;
            }
        }
        Ok(())
    }

    fn reserve(&self, job: TypedDelivery<Order>) -> Result<()> {
        let number = job.seq().into();
        self.reserved.note(number, job.pieces)?;
        self.to_charge.push(&Numbered { number, order: job.clone() })?;
        Ok(job.ack()?)
    }

    fn charge(&self, job: TypedDelivery<Numbered>) -> Result<()> {
        let number = job.number;
        if !self.charged.has(number) && !self.declined.has(number) {
            // What the bank says of this order, this time. A real one is given the number as its
            // idempotency key: a crash right here makes us ask again.
            let said = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
            if said.is_multiple_of(TIMEOUTS) && job.attempts() == 1 {
                self.retries.fetch_add(1, Relaxed);
                return Ok(job.nack()?);
            }
            if said % DECLINES == 1 {
                self.declined.note(number, job.order.cents)?;
            } else {
                self.charged.note(number, job.order.cents)?;
            }
        }
        if self.charged.has(number) {
            self.to_ship.push(&job)?;
        }
        Ok(job.ack()?)
    }

    fn ship(&self, job: TypedDelivery<Numbered>) -> Result<()> {
        self.shipped.note(job.number, job.order.cents)?;
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

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("target/orders"), PathBuf::from);
    let orders = args.next().map_or(Ok(1000), |arg| arg.to_string_lossy().parse())?;
    let is_demo = std::env::args_os().len() == 1;
    fs::create_dir_all(&dir)?;
    let shop = Shop::open(&dir, orders)?;
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
    shop.to_ship.close()?;
    if is_demo {
        fs::remove_dir_all(&dir)?;
    }
    Ok(())
}
