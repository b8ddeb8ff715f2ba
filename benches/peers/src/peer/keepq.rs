//! keepq itself: each durability, and two configurations for single jobs.

use crate::contender::{Acks, Answer, Contender, Keeps, Kind};
use keepq::{Delivery, Durability, Options, Queue, Receipt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

const BASE: Kind = Kind {
    name: "keepq Os",
    package: "keepq",
    keeps: Keeps::Kill,
    acks: Acks::AnyOrder,
    many_processes: false,
    open: |path| open(path, Durability::Os),
    longest: 16 << 20,
    cannot: &[],
    remarks: "stores into a mapped file (src/docs/design.md)",
};

pub(crate) const OS: Kind = BASE;

const ALWAYS: Kind = Kind {
    name: "keepq Always",
    keeps: Keeps::Power,
    open: |path| open(path, Durability::Always),
    remarks: "threads share one sync; acks are synced once a second (README.md, The promise)",
    ..BASE
};

/// Each lease runs out after a while.
pub(crate) const LEASED: Kind = Kind {
    name: "keepq Os, visibility timeout",
    open: |path| {
        let options = Queue::options().durability(Durability::Os);
        open_with(path, options.visibility_timeout(Duration::from_secs(30)))
    },
    remarks: "each delivery has a lease of 30 s",
    ..BASE
};

/// Synced by the background.
pub(crate) const INTERVAL: Kind = Kind {
    name: "keepq Interval(50 ms)",
    open: |path| open(path, Durability::Interval(Duration::from_millis(50))),
    remarks: "synced within 50 ms and one sync",
    ..BASE
};

/// Pushes with `submit`; one thread waits for the receipts.
pub(crate) const ALWAYS_SUBMITTED: Kind = Kind {
    name: "keepq Always, submit",
    keeps: Keeps::Kill,
    open: |path| Box::new(Submitted::new(path)),
    remarks: "one thread waits for the receipts; a message may be popped before it is synced",
    ..BASE
};

pub(super) const KINDS: [Kind; 2] = [OS, ALWAYS];

/// `Os` with stores into maps on a file system where they are writes otherwise.
pub(crate) fn unshared(path: &Path) -> Box<dyn Contender> {
    open_with(path, Queue::options().durability(Durability::Os).unshared_blocks(true))
}

struct Keepq {
    queue: Queue,
    kept: Mutex<Vec<Delivery>>,
}

fn open(path: &Path, durability: Durability) -> Box<dyn Contender> {
    open_with(path, Queue::options().durability(durability))
}

fn open_with(path: &Path, options: Options) -> Box<dyn Contender> {
    Box::new(Keepq { queue: options.open(path).unwrap(), kept: Mutex::default() })
}

impl Contender for Keepq {
    fn push(&self, payload: &[u8]) {
        self.queue.push(payload).unwrap();
    }

    fn push_batch(&self, payloads: &[&[u8]]) {
        self.queue.push_batch(payloads.iter().copied()).unwrap();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        if limit == 1 {
            let Some(job) = self.queue.pop().unwrap() else { return 0 };
            match answer(&job) {
                Answer::Ack => job.ack().unwrap(),
                Answer::Keep => self.kept.lock().unwrap().push(job),
            }
            return 1;
        }
        let mut jobs = self.queue.pop_batch(limit).unwrap();
        let count = jobs.len();
        let kept = jobs.extract_if(.., |job| answer(job) == Answer::Keep);
        self.kept.lock().unwrap().extend(kept);
        self.queue.ack_batch(jobs).unwrap();
        count
    }

    fn sync(&self) {
        self.queue.sync().unwrap();
    }

    fn close(self: Box<Self>) {
        self.queue.close().unwrap();
    }
}

struct Submitted {
    keepq: Keepq,
    receipts: SyncSender<Receipt>,
    waiter: JoinHandle<()>,
}

impl Submitted {
    fn new(path: &Path) -> Self {
        let queue = Queue::options().durability(Durability::Always).open(path).unwrap();
        let (receipts, waiting) = sync_channel::<Receipt>(100_000);
        let waiter = std::thread::spawn(move || {
            for receipt in waiting {
                receipt.wait().unwrap();
            }
        });
        Self { keepq: Keepq { queue, kept: Mutex::default() }, receipts, waiter }
    }
}

impl Contender for Submitted {
    fn push(&self, payload: &[u8]) {
        self.receipts.send(self.keepq.queue.submit(payload).unwrap()).unwrap();
    }

    fn take(&self, limit: usize, answer: &mut dyn FnMut(&[u8]) -> Answer) -> usize {
        self.keepq.take(limit, answer)
    }

    fn sync(&self) {
        self.keepq.sync();
    }

    fn close(self: Box<Self>) {
        drop(self.receipts);
        self.waiter.join().unwrap();
        Box::new(self.keepq).close();
    }
}
