//! Segment files that are moved away for some runs and put back, bytes that go bad while no queue
//! has them open, and a backup that is copied over the directory, among random runs that end with a
//! close, a kill or a power cut; against what the queue has confirmed.
//!
//! * A confirmed message is there at each open, and comes until it is settled, unless its own
//!   record went bad or its file is away. Once the file is back, so is the message.
//! * A message that is not there is never told as settled, but as damage or as unknown.
//! * What is settled does not come again, unless its own slot went bad, and the queue knows of it,
//!   unless what says so went bad or was away.
//! * Damage is told of no message that is sound.
//! * Files of two states do not fit together: a backup that is copied over a later state may cost
//!   messages or bring them back. But the queue opens, and what it finds then holds from there on.
//!
//! `KEEPQ_AWAY_CASES` sets how many histories are tried, `KEEPQ_AWAY_SEED` the first seed. The
//! story of a history that fails is printed.

mod damage;
mod model;

use crate::support::agree::files;
use crate::support::{Dice, cases};
use keepq::fault::{CrashImage, FaultPlan, FaultStorage, MemoryStorage, Storage};
use keepq::{Compaction, Delivery, Durability, Options, Queue};
use model::Model;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const RUNS: u64 = 8;
/// How many steps a run has at most.
const STEPS: u64 = 60;
/// At which operation the power is cut at the latest: of an open, and of what comes after it.
const OPEN_OPERATIONS: u64 = 60;
const RUN_OPERATIONS: u64 = 250;

struct History {
    seed: u64,
    dice: Dice,
    story: Vec<String>,
    disk: Arc<MemoryStorage>,
    model: Model,
    /// The files that are away, with what was in them.
    away: BTreeMap<String, Vec<u8>>,
    has_backups: bool,
    /// The files of the directory, as they once were.
    backup: Option<Vec<(String, Vec<u8>)>>,
    /// Messages whose records in a file are damaged.
    spoiled: BTreeMap<String, Vec<usize>>,
    /// Which files count was written down since the last overlay.
    is_decided: bool,
}

/// A run of the queue.
struct Run {
    queue: Queue,
    faults: Arc<FaultStorage>,
    /// Whether its storage may have failed.
    may_crash: bool,
    payload_len: usize,
    held: Vec<Delivery>,
}

impl Drop for History {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.story.join("\n"));
            eprintln!("KEEPQ_AWAY_SEED={} KEEPQ_AWAY_CASES=1", self.seed);
        }
    }
}

fn options(storage: Arc<dyn Storage>) -> Options {
    Queue::options()
        .segment_bytes(65_536)
        .background(false)
        .durability(Durability::Always)
        .sync_acks(true)
        .max_attempts(0)
        .dead_letters(false)
        .compaction(Compaction::default().idle(Duration::ZERO))
        .storage(storage)
}

impl History {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let has_backups = dice.one_in(2);
        Self {
            seed,
            dice,
            story: Vec::new(),
            disk: Arc::new(MemoryStorage::new()),
            model: Model::default(),
            away: BTreeMap::new(),
            has_backups,
            backup: None,
            spoiled: BTreeMap::new(),
            is_decided: true,
        }
    }

    fn note(&mut self, what: impl Into<String>) {
        self.story.push(what.into());
    }

    fn names(&self) -> Vec<String> {
        let names = files(&*self.disk).into_iter().map(|(name, _)| name);
        names.map(|name| name.trim_start_matches('0').to_string()).collect()
    }

    fn run(&mut self) {
        self.model.begin_run();
        let is_closed = match self.start() {
            Some(mut run) => {
                self.work(&mut run);
                self.end(run)
            }
            None => false,
        };
        self.leave_disk();
        self.put_some_back();
        if self.has_backups && self.away.is_empty() {
            self.back_up_or_overlay();
        }
        self.is_decided |= is_closed;
        if self.model.is_overlaid() {
            self.is_decided = false;
        } else {
            for _ in 0..self.dice.below(4) {
                self.damage(is_closed);
            }
        }
    }

    /// None if the power was cut before the queue was open.
    fn start(&mut self) -> Option<Run> {
        let faults = Arc::new(FaultStorage::new(self.disk.clone()));
        let crashes_early = self.dice.one_in(5);
        if crashes_early {
            self.plan_crash(&faults, OPEN_OPERATIONS);
        }
        let opened = options(faults.clone()).open("queue");
        let queue = match opened {
            Ok(queue) => queue,
            Err(error) => {
                assert!(crashes_early, "{error}");
                self.note("no open");
                return None;
            }
        };
        self.opened(&queue);
        let crashes_later = !crashes_early && self.dice.one_in(2);
        if crashes_later {
            self.plan_crash(&faults, RUN_OPERATIONS);
        }
        let payload_len = 100 + self.dice.below(5000) as usize;
        let may_crash = crashes_early || crashes_later;
        Some(Run { queue, faults, may_crash, payload_len, held: Vec::new() })
    }

    fn plan_crash(&mut self, faults: &FaultStorage, end: u64) {
        let at = self.dice.below(end);
        self.note(format!("a crash at {at}"));
        faults.plan(FaultPlan::CrashAt { at });
    }

    fn opened(&mut self, queue: &Queue) {
        self.note(format!("open, files {:?}, {:?}", self.names(), queue.recovery()));
        self.model.check(queue);
    }

    fn work(&mut self, run: &mut Run) {
        for _ in 0..self.dice.below(STEPS) {
            match self.dice.below(12) {
                0..=4 => {
                    if !self.push(run) {
                        break;
                    }
                }
                5..=8 => self.pop(run),
                9 => self.told("maintain", run.queue.maintain()),
                10 => self.told("compact", run.queue.compact()),
                _ => run.held.clear(),
            }
        }
        self.model.check_damage(&run.queue);
    }

    fn told<T: Debug>(&mut self, what: &str, told: keepq::Result<T>) {
        match told {
            Ok(told) => self.note(format!("{what}: {told:?}")),
            Err(error) => self.note(format!("{what}: {error}")),
        }
    }

    /// Whether it was confirmed.
    fn push(&mut self, run: &Run) -> bool {
        let told = run.queue.push(self.model.next_payload(run.payload_len));
        let is_ok = told.is_ok();
        assert!(is_ok || run.may_crash, "{told:?}");
        let seq = told.as_ref().ok().map(|&seq| seq.into());
        let number = self.model.pushed(run.payload_len, seq);
        self.told(&format!("push {number}"), told);
        is_ok
    }

    fn pop(&mut self, run: &mut Run) {
        let limit = 1 + self.dice.below(12) as usize;
        let popped = run.queue.pop_batch(limit);
        assert!(popped.is_ok() || run.may_crash, "{popped:?}");
        for job in popped.unwrap_or_default() {
            let (number, seq) = (self.model.came(&job), job.seq().into());
            if self.dice.one_in(3) {
                run.held.push(job);
                continue;
            }
            let told = job.ack();
            assert!(told.is_ok() || run.may_crash, "{told:?}");
            self.model.acked(number, seq, told.is_ok());
            self.told(&format!("ack {number}"), told);
        }
    }

    /// Whether the run ended in order.
    fn end(&mut self, run: Run) -> bool {
        drop(run.held);
        if self.dice.one_in(2) {
            let told = run.queue.close();
            let is_closed = told.is_ok();
            self.told("close", told);
            return is_closed;
        }
        // What the queue does while it is dropped reaches no disk.
        run.faults.plan(FaultPlan::CrashAt { at: 0 });
        false
    }

    /// What is on the disk then.
    fn leave_disk(&mut self) {
        let image = if self.dice.one_in(2) {
            CrashImage::Newest
        } else {
            CrashImage::Mixed(self.dice.next())
        };
        self.note(format!("the disk is left as {image:?}"));
        self.disk = Arc::new(self.disk.power_cut(image));
    }

    /// All files that are away are put back, and all that is left is handed out.
    fn finish(&mut self) {
        let all = self.away.keys().cloned().collect();
        self.put_back(all);
        let queue = options(self.disk.clone()).open("queue").unwrap();
        self.opened(&queue);
        let mut popped = BTreeSet::new();
        while let Some(job) = queue.pop().unwrap() {
            popped.insert(self.model.came(&job));
            job.ack().unwrap();
        }
        self.model.check_damage(&queue);
        self.model.check_popped(&popped);
    }
}

#[test]
fn files_that_come_and_go_cost_no_other_message() {
    let first = cases("KEEPQ_AWAY_SEED", 1);
    for seed in first..first + cases("KEEPQ_AWAY_CASES", 800) {
        let mut history = History::new(seed);
        for _ in 0..RUNS {
            history.run();
        }
        history.finish();
    }
}
